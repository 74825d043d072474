"""The follower that writes snapshots: it replays the log in a process of its own, so that the gate never pauses.

Started with the data directory and the time between snapshots; the plan comes by standard input, which stays open for
as long as the gate lives. It computes the state a second time, and keeps none that came out otherwise. What became of
each snapshot is a line on standard output (`runtime/snapshots.py`).

One at a time: what an earlier gate left behind ends with that gate, at the latest when it reads in the log that another
pipeline has begun; until it has, its successor waits.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from penstock import _native
from penstock.errors import LockedError, PenstockError
from penstock.runtime.diagnostics import start_diagnostics
from penstock.runtime.followers import STOP

logger = logging.getLogger("penstock.snapshotter")

COMMITS = 1_000
IDLE_S = 0.25
LOCK_S = 0.5
# After each 256 KiB of a snapshot, so that it never takes all of the disk: 64 MB/s at most; none once this is to end.
PAUSE_S = 0.004
# Statuses: the gate is gone; the log is of another pipeline.
GONE, OUTDATED = 3, 4


def main() -> None:
    # A signal to the whole group of processes reaches this one too; the gate alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    data, every_us, style, level = sys.argv[1:5]
    start_diagnostics(style, level)
    # Decisions come first where both want a core.
    os.nice(10)
    gate = Gate()
    folder = Path(data) / "snapshots"
    lock = lock_folder(folder, gate.stop)
    if lock is None:
        return
    follower = _native.Follower(gate.plan, data)
    written = follower.sequence
    report("found", sequence=written, written_at=time_written(folder, written))
    due = time.monotonic() + int(every_us) / 1e6
    while not gate.stop.is_set():
        behind = follower.advance(COMMITS) == COMMITS
        if not behind and not follower.is_current():
            logger.error("the log is of another pipeline now: this process of an earlier one ends")
            sys.exit(OUTDATED)
        # Also while it is behind: what it writes is what shortens the next start, and lets the log be trimmed.
        if time.monotonic() >= due:
            written = write(follower, written, gate.stop)
            due = time.monotonic() + int(every_us) / 1e6
        if not behind:
            gate.stop.wait(IDLE_S)
    while follower.advance(COMMITS) == COMMITS:
        pass
    write(follower, written, gate.stop)


def lock_folder(folder: Path, stop: threading.Event) -> _native.Lock | None:
    """The lock of the one process that writes snapshots, as soon as it is free; None where this is to end before."""
    waiting = False
    while True:
        try:
            return _native.Lock(str(folder))
        except LockedError as error:
            if not waiting:
                logger.warning("another process still writes snapshots, which this one waits for: %s", error.message)
            waiting = True
        if stop.wait(LOCK_S):
            return None


def write(follower: _native.Follower, written: int, stop: threading.Event) -> int:
    """Write the state where it is newer than what was written; the sequence that is written now."""
    # A changed pipeline's state counts from the commit on that the change took effect with.
    if follower.sequence == written or not follower.is_current():
        return written
    compared, mismatches = follower.compared
    if mismatches:
        logger.error(
            "%d batches of decisions came out otherwise (%d decisions computed twice); no snapshot is kept",
            mismatches,
            compared,
        )
        report("mismatched")
        return follower.sequence
    started = time.monotonic()
    try:
        sequence = follower.snapshot(partial(stop.wait, PAUSE_S))
    except PenstockError as error:  # A full disk may have room again when the next one is due.
        logger.warning("could not write a snapshot: %s", error.message)
        report("failed")
        return written
    logger.info(
        "wrote a snapshot as of commit %d in %.2f s; %d decisions computed twice, none differed",
        sequence,
        time.monotonic() - started,
        compared,
    )
    report("written", sequence=sequence, written_at=time.time())
    return sequence


def report(result: str, **more: Any) -> None:
    """Tell the gate's process, where there still is one."""
    with suppress(BrokenPipeError):
        print(json.dumps({"result": result, **more}), flush=True)


def time_written(folder: Path, sequence: int) -> float | None:
    """When the snapshot of this sequence was written, where there is one."""
    try:
        return (folder / f"{sequence:016x}.snapshot").stat().st_mtime
    except FileNotFoundError:
        return None


class Gate:
    """The other end of standard input: first the plan, then the wish that this should stop.

    Its end without that wish says that the gate is gone. Then this process ends at once, whatever it does: its
    successor, which may be of a changed pipeline, waits for it.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        received = b""
        while b"\n" not in received:
            received += read_input()
        plan, _, rest = received.partition(b"\n")
        self.plan = plan.decode()
        threading.Thread(target=self.listen, args=(rest,), name="gate", daemon=True).start()

    def listen(self, received: bytes) -> None:
        while not received.startswith(STOP.encode()):
            received += read_input()
        self.stop.set()


def read_input() -> bytes:
    received = os.read(0, 1 << 16)
    if not received:
        os._exit(GONE)
    return received


if __name__ == "__main__":
    main()
