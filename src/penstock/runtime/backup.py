"""A consistent copy of a data directory while a service writes it.

    snapshots ─▶ the log's end ─▶ segments up to the end, the last one cut behind it ─▶ manifest

The end is the one that a start would find: the last commit that is whole, and with it all that was acknowledged. What
is before it no longer changes; what is behind it may be half written, and is left out. Ids are not copied: the first
start makes them from the log. The copy is a data directory, with a manifest beside it that is written last: without one
it is not whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock import _native
from penstock.errors import InputError, LogError
from penstock.runtime.durable import sync, write_durably
from penstock.runtime.snapshot_files import list_snapshots

MANIFEST = "backup.json"
FOLDERS = ("log", "snapshots", "ids")
TRIES = 5
PIECE_BYTES = 1 << 20


def back_up(data: Path, target: Path) -> dict[str, Any]:
    """Copy a data directory to a new folder; the manifest.

    Raises `InputError` where the folder is not empty, and `DamagedError` where the log has lost what was durable.
    """
    if not (data / "log").is_dir():
        raise InputError(f"{data} is not a data directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already", hint="give a new folder")
    for folder in ("log", "snapshots"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for _ in range(TRIES):
        try:
            return copy_once(data, target)
        except FileNotFoundError:
            # Retention or a newer snapshot removed what was about to be copied: from the beginning, with what there is.
            for path in (*(target / "log").iterdir(), *(target / "snapshots").iterdir()):
                path.unlink()
    raise LogError("files went faster than they could be copied", hint="keep more of the log, or try again")


def copy_once(data: Path, target: Path) -> dict[str, Any]:
    files = {}
    snapshots = list_snapshots(data)
    for snapshot in snapshots:
        files[f"snapshots/{snapshot.path.name}"] = copy(snapshot.path, target / "snapshots", None)
    end = _native.log_end(str(data))
    if end is None:
        raise InputError(f"{data} has no log yet")
    sequence, last, offset = end
    segments = sorted(path.name for path in (data / "log").glob("*.segment") if f"log/{path.name}" <= last)
    needed = [snapshot.segment for snapshot in snapshots]
    if needed and min(needed) < segments[0]:
        raise FileNotFoundError("the log was trimmed behind the snapshots that were copied")
    for name in segments:
        files[f"log/{name}"] = copy(data / "log" / name, target / "log", offset if f"log/{name}" == last else None)
    for folder in (target / "log", target / "snapshots", target):
        sync(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"format": 1, "made_at": now, "sequence": sequence, "files": files}
    write_durably(target / MANIFEST, json.dumps(manifest, indent=2).encode())
    return manifest


def copy(path: Path, folder: Path, end: int | None) -> dict[str, Any]:
    """Copy a file, zeros from `end` on; what the manifest says of it."""
    with path.open("rb") as source, (folder / path.name).open("wb") as target:
        size = os.fstat(source.fileno()).st_size
        left = size if end is None else end
        while piece := source.read(min(left, PIECE_BYTES)):
            target.write(piece)
            left -= len(piece)
        if left:
            raise LogError(f"{path.name} ended while it was copied")
        target.truncate(size)
        target.flush()
        os.fsync(target.fileno())
    return describe(folder / path.name)


def describe(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest.hexdigest()}


def check_backup(target: Path) -> tuple[dict[str, Any], list[str]]:
    """A copy's manifest, and which of its files are not as they were copied, or are none of it.

    Raises `InputError` where there is no manifest.
    """
    try:
        manifest: dict[str, Any] = json.loads((target / MANIFEST).read_bytes())
        files, _ = dict(manifest["files"]), int(manifest["sequence"])
    except FileNotFoundError:
        hint = "a copy that was not finished has none: make another"
        raise InputError(f"{target} has no {MANIFEST}", hint=hint) from None
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{target / MANIFEST} cannot be read", hint="make another copy") from None
    # What is there beside the copied files would count with them: a start reads all of these folders.
    here = {str(path.relative_to(target)) for folder in FOLDERS for path in (target / folder).glob("*")}
    wrong = [f"{name} is not of the copy" for name in sorted(here - set(files))]
    for name, copied in files.items():
        try:
            if describe(target / name) != copied:
                wrong.append(f"{name} is not as it was copied")
        except FileNotFoundError:
            wrong.append(f"{name} is missing")
        except OSError as error:
            wrong.append(f"{name} cannot be read: {error.strerror}")
    return manifest, wrong
