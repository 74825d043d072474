"""HTTP/1.1 on one connection: requests come in, answers go out in the order of their requests.

    data_received ─▶ a head that is known: Exchange ─▶ relay
                 └─▶ another: parser (reading.py) ─▶ Exchange ─▶ relay
    transport ◀─ flush ◀─ the answers at the head of the queue

There is no coroutine, no task and no timer for a request: at tens of thousands a second each would
cost as much as everything else here. One tick for all connections finds those that take too long.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic_ns
from typing import TYPE_CHECKING, cast

from penstock.serve.answers import CLOSE, CONTINUE, Refusal
from penstock.serve.reading import Reader
from penstock.serve.relay import Exchange

if TYPE_CHECKING:
    from penstock.serve.door import Door

logger = logging.getLogger("penstock.serve")

WRITE_BUFFER_MAX = 256 << 10
# A connection that is done stays half open for a moment, so that a reset does not destroy the last
# answer on its way (RFC 9112, 9.6); so many at a time, which do not count as connections.
LINGER_NS = 2_000_000_000
LINGERING_MAX = 100


class Connection(Reader):
    """One client. `queue` holds its exchanges in order until their answers are written."""

    __slots__ = ("_active_ns", "_ended", "_lingering", "_paused_ns", "_reading_paused", "_transport", "_unread")

    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self._active_ns = self._now_ns
        self._reading_paused = False
        self._lingering = False
        self._ended = False  # the client has closed its side
        self._paused_ns = 0  # since when the client leaves answers unread
        self._unread = 0  # bytes, when that was last looked at

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_MAX)
        connections = self._door.connections
        connections.add(self)
        if self._door.lingering > LINGERING_MAX:
            self.abort("there are too many connections")
        elif len(connections) - self._door.lingering > self._door.settings.connections_max:
            self._refuse(Refusal("too_many_connections", "there are too many connections"))

    def data_received(self, data: bytes) -> None:
        if not self._reading:
            return
        self._now_ns = self._active_ns = began_ns = monotonic_ns()
        if self._whole:
            self._receive_from_start(data)
        else:
            self._parse(data)
        self._door.relay.busy_ns += monotonic_ns() - began_ns

    def eof_received(self) -> bool:
        """The client has said all it had to say; it may still be listening, though not with TLS."""
        self._reading = False
        self._ended = True
        return bool(self.queue) and self._transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self._reading = False
        self._door.connections.discard(self)
        self._door.lingering -= self._lingering
        self._forget()

    def pause_writing(self) -> None:
        self._paused_ns = monotonic_ns()
        self._unread = self._transport.get_write_buffer_size()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._paused_ns = 0
        self.flush()

    # Answers leave.

    def flush(self) -> None:
        """Write the answers at the head of the queue; what goes wrong stays on this connection."""
        if self._paused_ns:
            return
        try:
            self._write_answers()
        except Exception as error:
            self.abort(f"writing failed: {type(error).__name__}")

    def _write_answers(self) -> None:
        queue = self.queue
        ready: list[bytes] = []
        form = 0
        while queue and (answer := queue[0].answer) is not None and not form & CLOSE:
            exchange = queue.popleft()
            form = exchange.form
            ready.append(answer)
            exchange.answer = b""
            if exchange.reserved:
                self._door.relay.settle(exchange)
        if ready:
            self._transport.write(ready[0] if len(ready) == 1 else b"".join(ready))
        if form & CLOSE or not (queue or self._reading) or self._idle_at_end():
            self._finish()
        elif self._reading_paused or self._continue_due:
            self._read_on()

    def _idle_at_end(self) -> bool:
        return self._door.stopping and self._whole and not self.queue

    # What takes too long, or must end.

    def check(self, now_ns: int) -> None:
        """End this connection, or its request, if it has had its time."""
        try:
            self._check_times(now_ns)
        except Exception as error:
            self.abort(f"ending it failed: {type(error).__name__}")

    def _check_times(self, now_ns: int) -> None:
        settings = self._door.settings
        if self._paused_ns:
            self._check_progress(now_ns)
        elif self._lingering:
            if now_ns - self._active_ns > LINGER_NS:
                self.abort("the client did not close")
        elif self._began_ns and not self._reading_paused:
            if now_ns - self._began_ns > settings.request_s * 1e9:
                self._refuse(Refusal("request_timeout", "the request did not arrive in time"))
        elif self.queue:
            self._active_ns = now_ns
        elif now_ns - self._active_ns > settings.idle_s * 1e9:
            self._finish()

    def _check_progress(self, now_ns: int) -> None:
        """A client may read slowly, and not stop."""
        unread = self._transport.get_write_buffer_size()
        if unread < self._unread:
            self._paused_ns = now_ns
        elif now_ns - self._paused_ns > self._door.settings.write_s * 1e9:
            self.abort("the client left its answers unread")
        self._unread = unread

    def stop(self) -> None:
        """Answer what is held, take no more; a request that is arriving will be the last."""
        if self.queue and self._whole:
            self._reading = False
            self.queue[-1].form |= CLOSE
        elif self._whole:
            self.flush()

    def busy(self) -> bool:
        unread = self._transport.get_write_buffer_size() > 0
        return unread or bool(self.queue) or (self._reading and not self._whole)

    def abort(self, reason: str) -> None:
        logger.debug("a connection was closed: %s", reason)
        self._reading = False
        self._forget()
        self._transport.abort()

    # The steps of these.

    def _receive_from_start(self, data: bytes) -> None:
        """Take what begins with a request; where its bytes are known it is not parsed."""
        door = self._door
        head_bytes = data[: data.find(b"\r\n\r\n") + 4]
        head = door.heads.get(head_bytes)
        if head is not None and len(data) == len(head_bytes) + head.length:
            exchange = Exchange(
                self, head.route, head.kind, data[len(head_bytes) :], head.form, self._now_ns
            )
            self.queue.append(exchange)
            door.relay.accept(exchange)
            if len(self.queue) >= door.settings.pipelined_max:
                self._pause_reading()
            return
        self._head = None
        self._parse(data)
        # Only where one request was all there was: the same bytes then mean the same again.
        if self._head is not None and len(data) == len(head_bytes) + self._head.length:
            door.learn(head_bytes, self._head)

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Undo what made the client wait, where nothing holds it any more."""
        if self._continue_due and not self.queue:
            self._continue_due = False
            self._transport.write(CONTINUE)
        if self._reading_paused and len(self.queue) <= self._door.settings.pipelined_max // 2:
            self._reading_paused = False
            self._began_ns = self._began_ns and monotonic_ns()
            self._transport.resume_reading()

    def _finish(self) -> None:
        """Say that nothing more will come, and wait a moment for the client to close."""
        if self._lingering:
            return
        self._reading = False
        self._lingering = True
        self._door.lingering += 1
        self._active_ns = monotonic_ns()
        half = self._transport.can_write_eof()
        if self._ended or (self._whole and not half):
            self._transport.close()
            return
        if half:
            self._transport.write_eof()
        # With TLS there is no half: who is still sending closes when it has its answer, or is cut off.
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _forget(self) -> None:
        """Nobody is there to read the answers."""
        for exchange in self.queue:
            exchange.answer = b""
            exchange.body = b""
            if exchange.reserved:
                self._door.relay.settle(exchange)
        self.queue.clear()
        self._door.relay.reserve.give_back(self._reserved)
        self._reserved = 0
