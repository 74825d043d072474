"""One key's past, event by event, in plain Python: the state of the tasks that keep their own."""

from __future__ import annotations

from collections import deque

DAY = 86_400
DAYS = (1, 7, 30)
DELAY = 7 * DAY

# Three counts, then three averages or shares.
Features = tuple[int, int, int, float, float, float]


class Past:
    """Counts and sums over the Handbook's three windows, (t − delay − w, t − delay]."""

    def __init__(self, delay: int = 0) -> None:
        self._delay = delay
        self._waiting: deque[tuple[int, int]] = deque()
        self._windows = [Window(days * DAY) for days in DAYS]

    def add(self, time: int, value: int) -> list[tuple[int, int]]:
        """Take an event, and give each window's count and sum as of its time."""
        self._waiting.append((time, value))
        known = time - self._delay
        while self._waiting and self._waiting[0][0] <= known:
            event = self._waiting.popleft()
            for window in self._windows:
                window.add(event)
        return [window.read(known) for window in self._windows]

    def means(self, time: int, cents: int) -> Features:
        """The three counts and the three averages, of cents in units."""
        (n1, cents1), (n7, cents7), (n30, cents30) = self.add(time, cents)
        return n1, n7, n30, cents1 / (n1 * 100), cents7 / (n7 * 100), cents30 / (n30 * 100)

    def risks(self, time: int, fraud: int) -> Features:
        """The three counts and the three shares of frauds; of nothing it is 0."""
        (n1, frauds1), (n7, frauds7), (n30, frauds30) = self.add(time, fraud)
        return n1, n7, n30, frauds1 / (n1 or 1), frauds7 / (n7 or 1), frauds30 / (n30 or 1)


class Window:
    """The events of one window, and their sum."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._events: deque[tuple[int, int]] = deque()
        self._sum = 0

    def add(self, event: tuple[int, int]) -> None:
        self._events.append(event)
        self._sum += event[1]

    def read(self, end: int) -> tuple[int, int]:
        while self._events and self._events[0][0] <= end - self._length:
            self._sum -= self._events.popleft()[1]
        return len(self._events), self._sum
