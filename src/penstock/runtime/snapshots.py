"""What the gate's process knows of its snapshotter: the newest snapshot, and what became of the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic, time

RESULTS = ("written", "failed", "mismatched")
# A snapshot is overdue after so many times the length of time between two.
OVERDUE = 10


class Snapshots:
    """Made from the snapshotter's lines. A thread writes here and another one reads; each value is replaced whole."""

    def __init__(self, every_s: float, *, clock: Callable[[], float] = time) -> None:
        self.starts = 0
        self.results: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        # The commit that the newest snapshot is as of; 0 where there is none.
        self.sequence = 0
        self._written_at: float | None = None
        self._every_s = every_s
        self._clock = clock
        # Since when, and beyond which snapshot, the log has been seen to have more.
        self._behind: tuple[float, int] | None = None

    def hear(self, line: str) -> None:
        """One line of the snapshotter."""
        about = json.loads(line)
        if about["result"] == "found":
            self.starts += 1
        else:
            self.results[about["result"]] += 1
        if "sequence" in about:
            self.sequence, self._written_at = about["sequence"], about["written_at"]

    def age_s(self) -> float | None:
        """Of the newest snapshot; None where there is none."""
        return None if self._written_at is None else max(self._clock() - self._written_at, 0.0)

    def warnings(self, log_sequence: int, *, now_s: float | None = None) -> Iterator[str]:
        """Whether the log has gone on for long without a snapshot; `log_sequence` is its newest commit."""
        now_s = monotonic() if now_s is None else now_s
        if log_sequence <= self.sequence:
            self._behind = None
        elif self._behind is None or self._behind[1] != self.sequence:
            self._behind = (now_s, self.sequence)
        elif now_s - self._behind[0] > OVERDUE * self._every_s:
            commits = log_sequence - self.sequence
            yield f"no snapshot for {now_s - self._behind[0]:.0f} s: a start would read {commits:,} commits"
