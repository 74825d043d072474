"""The snapshots of a data directory: which there are, whether they are as they were written, and removing one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock import _native
from penstock.errors import DamagedError, InputError, LogError
from penstock.runtime.durable import sync

NAME = re.compile(r"([0-9a-f]{16})\.snapshot")


@dataclass(frozen=True)
class SnapshotFile:
    """A snapshot by the commit that it is as of."""

    sequence: int
    path: Path
    bytes: int
    written_at: datetime

    def to_json(self) -> dict[str, Any]:
        written_at = self.written_at.isoformat(timespec="seconds")
        return {"sequence": self.sequence, "file": self.path.name, "bytes": self.bytes, "written_at": written_at}

    @property
    def segment(self) -> str:
        """The segment from which a start would read on. Raises `DamagedError` where its header is."""
        with self.path.open("rb") as file:
            start = file.read(12)
            text = file.read(int.from_bytes(start[8:], "little"))
        try:
            return f"{json.loads(text)['position']['segment']:016x}.segment"
        except (ValueError, KeyError):
            raise DamagedError(f"snapshots/{self.path.name} is damaged in its header") from None


def list_snapshots(data: Path) -> list[SnapshotFile]:
    """The oldest first."""
    found = []
    for path in sorted((data / "snapshots").glob("*.snapshot")):
        named = NAME.fullmatch(path.name)
        if named is None:
            continue  # As for the core: a file of somebody else's.
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # A service that runs has removed it.
        written_at = datetime.fromtimestamp(stat.st_mtime, UTC)
        found.append(SnapshotFile(int(named[1], 16), path, stat.st_size, written_at))
    return found


def verify_snapshots(data: Path) -> dict[str, Any]:
    """Every one read whole, store by store: how many there are, and what is damaged."""
    damages, count = [], 0
    for snapshot in list_snapshots(data):
        if (wrong := what_is_wrong(data, snapshot)) is not None:
            # A service that runs has written a newer one, and removed this.
            if not snapshot.path.exists():
                continue
            damages.append({"file": f"snapshots/{snapshot.path.name}", "what": wrong})
        count += 1
    return {"files": count, "damages": damages}


def what_is_wrong(data: Path, snapshot: SnapshotFile) -> str | None:
    """Why it cannot be used, or None: all of it is read."""
    try:
        _native.verify_snapshot(str(data), snapshot.sequence)
    except LogError as error:
        return error.message
    return None


def drop_snapshot(data: Path, sequence: int) -> SnapshotFile:
    """Remove one; the next start reads the log from the one before. Raises `InputError`, and `LockedError` beside a
    service: its retention counts on the snapshots that it has seen.
    """
    # The snapshotter of a service that was killed may live on for a moment.
    locks = [_native.Lock(str(data)), _native.Lock(str(data / "snapshots"))]
    try:
        snapshots = list_snapshots(data)
        found = [each for each in snapshots if each.sequence == sequence]
        if not found:
            raise InputError(f"there is no snapshot as of commit {sequence}", hint="penstock snapshot list shows them")
        first = int(json.loads(_native.verify(str(data)))["first_sequence"])
        others = (each for each in snapshots if each.sequence != sequence)
        if first > 1 and all(what_is_wrong(data, each) for each in others):
            raise InputError(
                f"the log begins with commit {first:,}, and no other snapshot is sound: without it the state is lost",
                hint="start the service once, so that it writes another",
            )
        found[0].path.unlink()
        # For good: it must not come back after a power loss.
        sync(found[0].path.parent)
        return found[0]
    finally:
        locks.clear()
