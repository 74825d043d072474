"""The follower that writes snapshots: it replays the log in a process of its own, so that the gate never pauses.

Started with the data directory and the time between snapshots; the plan comes by standard input, which stays open for
as long as the gate lives. It computes the state a second time, and keeps none that came out otherwise.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time

from penstock import _native
from penstock.errors import PenstockError
from penstock.runtime.diagnostics import start_diagnostics

logger = logging.getLogger("penstock.snapshotter")

COMMITS = 1_000
IDLE_S = 0.25


def main() -> None:
    data, every_us, style, level = sys.argv[1:5]
    start_diagnostics(style, level)
    # Decisions come first where both want a core.
    os.nice(10)
    plan = sys.stdin.readline()
    stopping = Stopping()
    follower = _native.Follower(plan, data)
    written = follower.sequence
    due = time.monotonic() + int(every_us) / 1e6
    while not stopping.wait(0):
        behind = follower.advance(COMMITS) == COMMITS
        # Also while it is behind: what it writes is what shortens the next start, and lets the log be trimmed.
        if time.monotonic() >= due:
            written = write(follower, written)
            due = time.monotonic() + int(every_us) / 1e6
        if not behind:
            stopping.wait(IDLE_S)
    while follower.advance(COMMITS) == COMMITS:
        pass
    write(follower, written)


def write(follower: _native.Follower, written: int) -> int:
    """Write the state where it is newer than what was written; the sequence that is written now."""
    if follower.sequence == written:
        return written
    compared, mismatches = follower.compared
    if mismatches:
        logger.error(
            "%d batches of decisions came out otherwise (%d decisions computed twice); no snapshot is kept",
            mismatches,
            compared,
        )
        return follower.sequence
    started = time.monotonic()
    try:
        sequence = follower.snapshot()
    except PenstockError as error:  # A full disk may have room again when the next one is due.
        logger.warning("could not write a snapshot: %s", error.message)
        return written
    logger.info(
        "wrote a snapshot as of commit %d in %.2f s; %d decisions computed twice, none differed",
        sequence,
        time.monotonic() - started,
        compared,
    )
    return sequence


class Stopping:
    """Whether to end: the gate closes standard input when it wants that, and when it dies."""

    def __init__(self) -> None:
        self.asked = False
        # Ctrl-C reaches the whole group of processes; the gate alone decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait(self, seconds: float) -> bool:
        if not self.asked:
            ready, _, _ = select.select([sys.stdin], [], [], seconds)
            self.asked = bool(ready)
        return self.asked


if __name__ == "__main__":
    main()
