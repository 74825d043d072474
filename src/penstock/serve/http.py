"""HTTP/1.1 on one connection: bytes to requests, answers in the order of their requests.

    data_received ─▶ parser ─▶ on_url, on_header … on_message_complete ─▶ Exchange ─▶ relay
    transport ◀─ flush ◀─ the answers at the head of the queue

There is no coroutine, no task and no timer for a request: at tens of thousands a second each would
cost as much as everything else here. One tick for all connections finds those that take too long.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, cast

import httptools

from penstock.runtime.gate import DECIDE_MANY, DRY_RUN_MANY
from penstock.serve.answers import (
    ALLOW_GET,
    ALLOW_POST,
    CLOSE,
    CONTINUE,
    NDJSON,
    NO_BODY,
    Refusal,
)
from penstock.serve.relay import Exchange, Relay
from penstock.serve.routes import JSON, MEDIA_TYPES, Route, Routes, media_type
from penstock.serve.settings import DoorSettings

logger = logging.getLogger("penstock.serve")

# Bodies up to this size are bounded by the number of connections; larger ones take from a reserve.
SMALL_BODY = 64 << 10
WRITE_BUFFER_MAX = 256 << 10
# A connection that is done stays half open for a moment, so that a reset does not destroy the last
# answer on its way (RFC 9112, 9.6); so many at a time, which do not count as connections.
LINGER_NS = 2_000_000_000
LINGERING_MAX = 100
HEADS_MAX = 1_000
CHECKED_PER_TURN = 500

_RARE_HEADERS = (b"content-encoding", b"expect", b"transfer-encoding", b"upgrade")

# A page of the door's own: status, body and form of its answer.
Page = Callable[[], tuple[int, bytes, int]]


class Door:
    """What all connections share."""

    def __init__(self, settings: DoorSettings, *, routes: Routes, relay: Relay) -> None:
        self.settings = settings
        self.routes = routes
        self.relay = relay
        self.pages: dict[Route, Page] = {}  # what is answered here
        self.connections: set[Connection] = set()
        self.lingering = 0  # of these
        self.stopping = False
        self.small_body = min(SMALL_BODY, settings.body_bytes_max)
        # A client sends the same few heads again and again: those need not be parsed twice.
        self.heads: dict[bytes, Head] = {}

    def connect(self) -> Connection:
        return Connection(self)

    def learn(self, head_bytes: bytes, head: Head) -> None:
        if len(self.heads) >= HEADS_MAX:
            self.heads.clear()
        self.heads[head_bytes] = head

    def check(self, now_ns: int) -> None:
        """End what takes too long, some connections a turn of the loop."""
        self._check_some(list(self.connections), now_ns)

    def _check_some(self, connections: list[Connection], now_ns: int) -> None:
        for connection in connections[-CHECKED_PER_TURN:]:
            connection.check(now_ns)
        del connections[-CHECKED_PER_TURN:]
        if connections:
            asyncio.get_running_loop().call_soon(self._check_some, connections, now_ns)

    def stop(self) -> None:
        """Take no more; a connection closes with its last answer, one without a request now."""
        self.stopping = True
        for connection in list(self.connections):
            connection.stop()

    def busy(self) -> bool:
        """Whether any connection has a request, or an answer that has not left."""
        return any(connection.busy() for connection in self.connections)

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.abort("the gate stopped")


class Head:
    """What a request's head has been found to ask for."""

    __slots__ = ("form", "kind", "length", "route")

    def __init__(self, exchange: Exchange, length: int) -> None:
        self.route = exchange.route
        self.kind = exchange.kind
        self.form = exchange.form
        self.length = length  # of the body


class Connection(asyncio.Protocol):
    """One client. `queue` holds its exchanges in order until their answers are written."""

    __slots__ = (
        "_active_ns",
        "_began_ns",
        "_body",
        "_continue_due",
        "_door",
        "_ended",
        "_form",
        "_head",
        "_head_bytes",
        "_head_count",
        "_headed",
        "_hosts",
        "_id",
        "_kind",
        "_length",
        "_lingering",
        "_media",
        "_now_ns",
        "_parser",
        "_paused_ns",
        "_rare",
        "_reading",
        "_reading_paused",
        "_refusal",
        "_reserved",
        "_route",
        "_size",
        "_transport",
        "_unparsed", "_unread",
        "_url",
        "_whole",
        "queue",
    )  # fmt: skip

    def __init__(self, door: Door) -> None:
        self.queue: deque[Exchange] = deque()
        self._door = door
        self._parser: Any = httptools.HttpRequestParser(self)
        self._reading = True  # otherwise what comes is thrown away
        self._reading_paused = False
        self._lingering = False
        self._ended = False  # the client has closed its side
        self._whole = True  # no request is begun and not ended
        self._began_ns = 0  # when the one that is had begun
        self._unparsed = 0  # bytes of a head that came after that
        self._paused_ns = 0  # since when the client leaves answers unread
        self._unread = 0  # bytes, when that was last looked at
        self._now_ns = self._active_ns = monotonic_ns()
        self._continue_due = False
        self._head: Head | None = None  # of the request read last, where it may be known again
        self._clear()

    def _clear(self) -> None:
        """Forget the request that was read."""
        self._url = b""
        self._head_bytes = 0
        self._head_count = 0
        self._hosts = 0
        self._media: int | None = JSON
        self._length = 0
        self._rare: dict[bytes, bytes] | None = None
        self._route: Route | None = None
        self._kind: int | None = None
        self._form = 0
        self._id = b""
        self._refusal: Refusal | None = None
        self._headed = False  # its head has been read: more headers are trailers
        self._body: bytes | bytearray = b""
        self._size = 0
        self._reserved = 0

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
        """The client has said all it had to say; it may still be listening."""
        self._reading = False
        self._ended = True
        return bool(self.queue)

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

    # The parser calls these, in this order.

    def on_message_begin(self) -> None:
        self._whole = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self._head_count += 1
        if self._headed:
            self._check_head_size()
            return
        name = name.lower()
        if name == b"content-length":
            self._length = int(value)
        elif name == b"content-type":
            self._media = MEDIA_TYPES.get(value)
            if self._media is None:
                self._media = media_type(value)
        elif name == b"host":
            self._hosts += 1
        elif name in _RARE_HEADERS:
            self._rare = {**(self._rare or {}), name: value.lower()}

    def on_headers_complete(self) -> None:
        """Decide what is asked: refuse it once it is read, or raise to stop reading it."""
        self._headed = True
        self._check_head()
        try:
            self._find_route()
        except Refusal as refusal:
            self._refusal = refusal
            self._kind = None
        if self._rare is not None and b"expect" in self._rare:
            self._expect(self._rare[b"expect"])
        if self._length > self._door.small_body:
            self._hold_large(self._length)

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._door.small_body:
            self._hold_large(self._size)
        if self._refusal is not None:
            return
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytes):
            # Not a list of pieces: a byte sent alone would take forty.
            self._body = bytearray(self._body + data)
        else:
            self._body += data

    def on_message_complete(self) -> None:
        self._whole = True
        self._began_ns = self._unparsed = 0
        closing = self._door.stopping or not self._parser.should_keep_alive()
        if closing:
            self._form |= CLOSE
        if self._id:
            self._body = self._id
        exchange = self._add_exchange()
        if self._kind is None:
            self._answer_here(exchange)
        else:
            self._door.relay.accept(exchange)
        if not closing and self._plain():
            self._head = Head(exchange, self._length)
        self._clear()
        if closing:
            self._reading = False
            raise _LastRequest
        if len(self.queue) >= self._door.settings.pipelined_max:
            self._pause_reading()

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

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            if not self._whole:
                self._wait_for_rest(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, Refusal) as error:
            # After the last request of a connection the parser complains about whatever follows.
            if self._reading:
                self._refuse(_refusal(error))

    def _check_head(self) -> None:
        if len(self._url) > self._door.settings.header_bytes_max:
            raise Refusal("url_too_long", "the URL is too long")
        self._check_head_size()
        if self._parser.should_upgrade():
            raise _malformed("a change of protocol is not offered")
        if self._hosts != 1 and (self._hosts or self._parser.get_http_version() != "1.0"):
            raise _malformed("it needs exactly one Host header")

    def _find_route(self) -> None:
        method = self._parser.get_method()
        if method == b"HEAD":
            self._form = NO_BODY
        self._route, self._id = route, _ = self._door.routes.find(self._url)
        if method != route.method and not (method == b"HEAD" and route.method == b"GET"):
            raise _wrong_method(route)
        if method == b"POST":
            self._find_kind(route)
        else:
            self._kind = route.kinds[JSON]

    def _find_kind(self, route: Route) -> None:
        if (self._rare or {}).get(b"content-encoding", b"identity") != b"identity":
            raise Refusal("unsupported_encoding", "bodies are taken without content encoding")
        self._kind = None if self._media is None else route.kinds[self._media]
        if self._kind is None:
            raise _unsupported(route)
        if self._kind in (DECIDE_MANY, DRY_RUN_MANY):
            self._form |= NDJSON

    def _expect(self, value: bytes) -> None:
        """The client waits for a word before it sends the body (RFC 9110, 10.1.1)."""
        if value != b"100-continue":
            raise Refusal("expectation_failed", "the only expectation that is met is 100-continue")
        if self._refusal is not None:
            raise self._refusal
        self._continue_due = True
        self._read_on()

    def _hold_large(self, size: int) -> None:
        settings = self._door.settings
        if size > settings.body_bytes_max:
            raise Refusal(
                "body_too_large",
                f"a body has at most {settings.body_bytes_max:,} bytes",
                bytes_max=settings.body_bytes_max,
            )
        if size > self._reserved and self._refusal is None:
            # One whose length is not known grows in steps.
            more = max(size - self._reserved, SMALL_BODY if self._reserved else 0)
            if not self._door.relay.reserve.take(more):
                raise Refusal("overloaded", "too many large bodies at once; try again in a second")
            self._reserved += more

    def _wait_for_rest(self, size: int) -> None:
        """A request has begun and not ended: from now on its time runs, and its head is bounded."""
        if not self._began_ns:
            self._began_ns = self._now_ns
        elif not self._headed:
            # The parser keeps a header that never ends, and says nothing of it until then.
            self._unparsed += size
            self._check_head_size()

    def _check_head_size(self) -> None:
        settings = self._door.settings
        size = max(self._head_bytes, self._unparsed)
        if size > settings.header_bytes_max or self._head_count > settings.header_count_max:
            raise Refusal(
                "headers_too_large",
                f"a head has at most {settings.header_bytes_max:,} bytes"
                f" and {settings.header_count_max:,} headers",
            )

    def _plain(self) -> bool:
        """Whether nothing but a small body of known length comes after this head."""
        small = self._length <= self._door.small_body
        return self._kind is not None and not self._id and self._rare is None and small

    def _add_exchange(self) -> Exchange:
        route = self._route or self._door.routes.refused
        exchange = Exchange(
            self, route, self._kind or 0, bytes(self._body), self._form, self._now_ns
        )
        exchange.reserved, self._reserved = self._reserved, 0
        self.queue.append(exchange)
        return exchange

    def _answer_here(self, exchange: Exchange) -> None:
        relay = self._door.relay
        if self._refusal is not None:
            relay.refuse(exchange, self._refusal)
            return
        try:
            status, body, form = self._door.pages[exchange.route]()
        except Exception:
            logger.exception("the page %s failed", exchange.route.name)
            relay.refuse(exchange, Refusal("internal_error", "this page failed; see the log"))
        else:
            exchange.form |= form
            relay.answer(exchange, status, body)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and read no further; earlier requests keep their turn."""
        self._reading = False
        self._began_ns = 0
        self._body = b""
        self._form |= CLOSE
        self._door.relay.refuse(self._add_exchange(), refusal)

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
        if self._ended:
            self._transport.close()
            return
        self._transport.write_eof()
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


class _LastRequest(Exception):
    """Stops the parser after a connection's last request."""


def _refusal(error: BaseException) -> Refusal:
    """What to say of an error in reading; the parser wraps those of its callbacks."""
    if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
        return _refusal(error.__context__)
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, httptools.HttpParserError | httptools.HttpParserUpgrade):
        logger.error("reading a request failed", exc_info=error)
        return Refusal("internal_error", "reading the request failed; see the log")
    return _malformed(str(error) if isinstance(error, httptools.HttpParserError) else "an upgrade")


def _malformed(why: str) -> Refusal:
    return Refusal("malformed_request", f"this is not a request in HTTP/1.1: {why}")


def _wrong_method(route: Route) -> Refusal:
    form = ALLOW_GET if route.method == b"GET" else ALLOW_POST
    return Refusal("method_not_allowed", f"this path takes {route.method.decode()}", form)


def _unsupported(route: Route) -> Refusal:
    taken = [name.decode() for name, media in MEDIA_TYPES.items() if route.kinds[media] is not None]
    message = f"this path takes {', '.join(taken)}"
    return Refusal("unsupported_media_type", message, media_types=taken)
