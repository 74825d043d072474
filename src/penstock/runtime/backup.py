"""A consistent copy of a data directory while a service writes it.

    snapshots ─▶ the durable mark ─▶ segments up to the mark, the last one cut behind it ─▶ manifest

The mark is the last commit that was durable when it was read. All before it is on disk and no longer changes; what is
behind it may be half written, and is left out. Ids are not copied: the first start makes them from the log. The copy is
a data directory, with a manifest beside it that is written last: without one it is not whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from penstock.errors import InputError, LogError
from penstock.runtime.repair import sync, write_durably
from penstock.runtime.snapshot_files import list_snapshots

MANIFEST = "backup.json"
TRIES = 5
PIECE_BYTES = 1 << 20
# Of native/src/log: durable.rs, place.rs, segment.rs, frame.rs.
SLOTS, SLOT = (0, 4096), struct.Struct("<4sIQQI")
OFFSET_BITS = 26
NUMBER = struct.Struct("<I")
FRAME, FRAME_HEADER_BYTES = struct.Struct("<4sIIIQ"), 52


@dataclass(frozen=True)
class Mark:
    """The last durable commit: its sequence, its segment, and where in that it ends."""

    sequence: int
    segment: str
    end: int


def back_up(data: Path, target: Path) -> dict[str, Any]:
    """Copy a data directory to a new folder; the manifest. Raises `InputError` where the folder is not empty."""
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
    mark = read_mark(data)
    segments = sorted(path.name for path in (data / "log").glob("*.segment") if path.name <= mark.segment)
    needed = [snapshot.segment for snapshot in snapshots]
    if needed and min(needed) < segments[0]:
        raise FileNotFoundError("the log was trimmed behind the snapshots that were copied")
    for name in segments:
        end = mark.end if name == mark.segment else None
        files[f"log/{name}"] = copy(data / "log" / name, target / "log", end)
    for folder in (target / "log", target / "snapshots", target):
        sync(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"format": 1, "made_at": now, "sequence": mark.sequence, "files": files}
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
    """A copy's manifest, and which of its files are not as they were copied. Raises `InputError` where it has none."""
    try:
        manifest: dict[str, Any] = json.loads((target / MANIFEST).read_bytes())
        files = dict(manifest["files"])
    except FileNotFoundError:
        hint = "a copy that was not finished has none: make another"
        raise InputError(f"{target} has no {MANIFEST}", hint=hint) from None
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"{target / MANIFEST} cannot be read", hint="make another copy") from None
    wrong = []
    for name, copied in files.items():
        try:
            if describe(target / name) != copied:
                wrong.append(f"{name} is not as it was copied")
        except FileNotFoundError:
            wrong.append(f"{name} is missing")
        except OSError as error:
            wrong.append(f"{name} cannot be read: {error.strerror}")
    return manifest, wrong


def read_mark(data: Path) -> Mark:
    """The durable mark of a log that may be growing."""
    for _ in range(TRIES):
        with (data / "log" / "durable").open("rb") as file:
            slots = [SLOT.unpack(os.pread(file.fileno(), SLOT.size, place)) for place in SLOTS]
        valid = [slot for slot in slots if slot[0] == b"pdur"]
        for _, _, sequence, address, checksum in sorted(valid, key=lambda slot: slot[2], reverse=True):
            # A slot that was read half written leads to no commit of its sequence and checksum.
            if mark := mark_at(data, sequence, address, checksum):
                return mark
    raise LogError("log/durable does not lead to a commit", hint="`penstock log verify` shows what is damaged")


def mark_at(data: Path, sequence: int, address: int, checksum: int) -> Mark | None:
    number, offset = address >> OFFSET_BITS, (address & ((1 << OFFSET_BITS) - 1)) * 8
    for path in sorted((data / "log").glob("*.segment"), reverse=True):
        with path.open("rb") as file:
            if segment_number(file) != number:
                continue
            head = os.pread(file.fileno(), FRAME.size, offset)
            if len(head) == FRAME.size:
                _, found, payload_bytes, _, found_sequence = FRAME.unpack(head)
                if (found, found_sequence) == (checksum, sequence):
                    frame_bytes = -(-(FRAME_HEADER_BYTES + payload_bytes) // 8) * 8
                    return Mark(sequence, path.name, offset + frame_bytes)
    return None


def segment_number(file: BinaryIO) -> int:
    number: int = NUMBER.unpack(os.pread(file.fileno(), NUMBER.size, 20))[0]
    return number
