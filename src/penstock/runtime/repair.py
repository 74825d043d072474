"""Putting right a log whose durable bytes are damaged: what is behind the damage goes aside, and is reported.

A torn end, which nobody was told of, needs no repair: the next start cuts it off. What is damaged had been
acknowledged, so nothing here removes it: the damaged file is copied, and whatever cannot stay in the log is moved, to
`quarantine/<time>/` in the data directory, with a report. The log then ends before the damage.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock import _native
from penstock.errors import InputError
from penstock.runtime.durable import sync, write_durably
from penstock.runtime.logs import verify_log
from penstock.runtime.snapshot_files import list_snapshots

# A segment's first commit, its catalog, begins here; what is damaged up to it leaves nothing of the segment.
FIRST_COMMIT = 64
PIECE_BYTES = 1 << 20

Report = dict[str, Any]


def repair_log(data: Path, *, quarantine: bool) -> Report:
    """Repair the log of a directory that nothing runs on; the report.

    Raises `LockedError` beside a service or what is left of one, and `InputError` where acknowledged commits would
    leave the log and `quarantine` does not say that they may, or where nothing could stay.
    """
    before = verify_log(data)
    locks = [_native.Lock(str(data))]
    try:
        # The snapshotter of a service that was killed may be about to give a snapshot its name.
        locks.append(_native.Lock(str(data / "snapshots")))
        damages = sorted((each["file"], each["offset"]) for each in before["damages"])
        if not damages:
            return {"repaired": False, "torn_bytes": before["torn_bytes"], "quarantine": None}
        file, offset = damages[0]
        if not quarantine:
            raise InputError(
                f"{file} is damaged at byte {offset:,}: all that follows would leave the log, acknowledged or not",
                hint="restore the directory from a copy, or let it be moved aside with --quarantine",
            )
        return set_aside(data, before, data / file, offset)
    finally:
        locks.clear()


def set_aside(data: Path, before: Report, damaged: Path, offset: int) -> Report:
    """End the log at this byte; what was there from it on is kept elsewhere."""
    segments = sorted((data / "log").glob("*.segment"))
    index = segments.index(damaged) if damaged in segments else 0
    whole = offset > FIRST_COMMIT
    kept = segments[: index + whole]
    if not kept:
        raise InputError(
            f"{damaged.relative_to(data)} is damaged where the log begins: nothing of it could stay",
            hint="restore the directory from a copy",
        )
    folder = data / "quarantine" / datetime.now(UTC).strftime("%Y-%m-%dT%H.%M.%S.%fZ")
    folder.mkdir(parents=True)
    if whole:
        keep_copy(damaged, folder / damaged.name)
        clear_from(damaged, offset)
    # They say how far the log went, and where ids are in it: both are made again.
    aside = [*segments[len(kept) :], data / "log" / "durable", *(data / "ids").glob("*.ids*")]
    moved = [move(path, folder) for path in aside if path.exists()]
    end = verify_log(data)["last_sequence"]
    moved += [move(each.path, folder) for each in list_snapshots(data) if each.sequence > end]
    after = verify_log(data)
    report = {
        "repaired": True,
        "quarantine": str(folder.relative_to(data)),
        "file": str(damaged.relative_to(data)),
        "offset": offset,
        "copied": [damaged.name] if whole else [],
        "moved": moved,
        "last_sequence": {"before": before["last_sequence"], "after": after["last_sequence"]},
        "rows": {"before": before["rows"], "after": after["rows"]},
        "damages": before["damages"],
    }
    write_durably(folder / "report.json", json.dumps(report, indent=2).encode())
    if after["damages"]:
        raise InputError(f"the log is still damaged; what was set aside is in {folder}")
    return report


def keep_copy(path: Path, target: Path) -> None:
    shutil.copyfile(path, target)
    sync(target)
    sync(target.parent)


def clear_from(path: Path, offset: int) -> None:
    """Make the rest of a segment zeros, as it was before it was written."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        while (left := size - file.tell()) > 0:
            file.write(bytes(min(left, PIECE_BYTES)))
        file.flush()
        os.fsync(file.fileno())


def move(path: Path, folder: Path) -> str:
    name = path.name
    path.rename(folder / name)
    sync(folder)
    sync(path.parent)
    return name
