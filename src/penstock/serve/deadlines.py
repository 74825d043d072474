"""Deadlines: whoever waited too long, in the order in which they began to wait.

All who wait on one deadline wait equally long, so that the first to come is the first to expire: a
queue, and one timer for its head, armed about once per deadline however many requests pass.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.serve.relay import Exchange

# So many expire in one turn of the loop; between turns their answers leave and others are read.
_EXPIRED_PER_TURN = 200
_TIMER_S_MAX = 3_600.0
_TIMER_S_MIN = 0.001  # the loop's own resolution: less would spin


class Deadline:
    """The queue of those who wait for one length of time."""

    __slots__ = ("_expire", "_loop", "_timer", "waiting", "within_ns")

    def __init__(self, within_s: float) -> None:
        self.within_ns = int(within_s * 1e9)
        self.waiting: deque[Exchange] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._expire: Callable[[Exchange], None]

    def open(self, loop: asyncio.AbstractEventLoop, expire: Callable[[Exchange], None]) -> None:
        self._loop = loop
        self._expire = expire

    def arm(self) -> None:
        """See to it that the head will expire; cheap where that is so already."""
        if self._timer is None and self.waiting:
            left_ns = self.waiting[0].held_ns + self.within_ns - monotonic_ns()
            self._set_timer(left_ns / 1e9)

    def pass_by(self, now_ns: int) -> None:
        """Expire those whose time has come, and let go of those who have their answer."""
        waiting = self.waiting
        before = now_ns - self.within_ns
        for _ in range(_EXPIRED_PER_TURN):
            while waiting and waiting[0].answer is not None:
                waiting.popleft()
            if not waiting or waiting[0].held_ns > before:
                return
            self._expire(waiting.popleft())
        self._next_turn()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _next_turn(self) -> None:
        self.close()
        assert self._loop is not None, "a deadline passes only where a loop runs"
        self._timer = self._loop.call_soon(self._ring)

    def _set_timer(self, left_s: float) -> None:
        assert self._loop is not None, "a deadline passes only where a loop runs"
        delay_s = min(max(left_s, _TIMER_S_MIN), _TIMER_S_MAX)
        self._timer = self._loop.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.pass_by(monotonic_ns())
        self.arm()
