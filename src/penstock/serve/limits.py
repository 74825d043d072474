"""What the door lets in at all: so many requests a second, so many bytes at once."""

from __future__ import annotations

import math


class Rate:
    """So many a second, of which a second's worth may come at once (a token bucket).

    `left` is counted down by the caller, one a request; only when it is used up is `refill` called.
    """

    __slots__ = ("_filled_ns", "_per_second", "left")

    def __init__(self, per_second: int | None, now_ns: int) -> None:
        self._per_second = math.inf if per_second is None else float(per_second)
        self._filled_ns = now_ns
        self.left = self._per_second

    def refill(self, now_ns: int) -> bool:
        """Add what has grown since the last time; whether the request at hand may pass."""
        grown = (now_ns - self._filled_ns) * self._per_second / 1e9
        self._filled_ns = now_ns
        # The caller has counted the request at hand already; a refused one does not count.
        self.left = min(self.left + 1 + grown, self._per_second)
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Reserve:
    """The bytes that all large bodies together may occupy."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        self.left += size
