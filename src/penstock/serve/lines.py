"""The fallback for each line of a body: at once for a small one, beside the loop for a large one.

The core words all lines of a body in one call. For a large body that takes longer than other callers
should wait, so a thread makes the call, which holds no GIL; one body after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.serve.relay import Exchange

# Of these the call takes about a millisecond.
AT_ONCE_BYTES = 128 << 10

# Takes the target, the body and how long its caller has waited.
Fallbacks = Callable[[int, bytes, int], bytes]


class Lines:
    """Makes such answers; lives on the loop's thread.

    What waits for the thread has been held whole, so that the door's bounds are those of its queue. A
    body whose caller has gone is let go at once, and costs no call.
    """

    __slots__ = ("_fail", "_thread")

    def __init__(self, fail: Callable[[Exception], None]) -> None:
        self._fail = fail
        self._thread: ThreadPoolExecutor | None = None  # from the first large body on

    def make(
        self, exchange: Exchange, call: Fallbacks, done: Callable[[Exchange, int, bytes], None]
    ) -> None:
        """Have `done` called with the answer, unless there is another one before."""
        if len(exchange.body) <= AT_ONCE_BYTES:
            done(exchange, 200, _call(exchange, call))
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="penstock-lines")
        made = asyncio.get_running_loop().run_in_executor(self._thread, _call, exchange, call)
        made.add_done_callback(lambda made: self._take(exchange, made, done))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(
        self,
        exchange: Exchange,
        made: asyncio.Future[bytes],
        done: Callable[[Exchange, int, bytes], None],
    ) -> None:
        if made.cancelled():
            return
        try:
            answer = made.result()
            if exchange.answer is None:
                done(exchange, 200, answer)
        except Exception as error:
            self._fail(error)


def _call(exchange: Exchange, call: Fallbacks) -> bytes:
    if exchange.answer is not None:
        return b""
    return call(exchange.route.target, exchange.body, monotonic_ns() - exchange.held_ns)
