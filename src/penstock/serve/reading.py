"""One request after another out of a connection's bytes: head, route, body, and the bounds of each.

    data ─▶ parser ─▶ on_url, on_header … on_body … on_message_complete ─▶ Exchange ─▶ relay

What is wrong is found as early as can be. A head that asks for what there is not is refused when its
body has passed, and the connection goes on; what cannot be read to its end is refused and ends it.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import httptools

from penstock.runtime.gate import DECIDE_MANY, DRY_RUN_MANY
from penstock.serve.access import AccessRefused
from penstock.serve.answers import ALLOW_GET, ALLOW_POST, CLOSE, NDJSON, NO_BODY, Refusal
from penstock.serve.relay import Exchange
from penstock.serve.routes import JSON, MEDIA_TYPES, Route, media_type

if TYPE_CHECKING:
    from penstock.serve.door import Door

logger = logging.getLogger("penstock.serve")

# Bodies up to this size are bounded by the number of connections; larger ones take from a reserve.
SMALL_BODY = 64 << 10

_RARE_HEADERS = (b"content-encoding", b"expect", b"transfer-encoding", b"upgrade")


class Head:
    """What a request's head has been found to ask for."""

    __slots__ = ("form", "kind", "length", "route")

    def __init__(self, exchange: Exchange, length: int) -> None:
        self.route = exchange.route
        self.kind = exchange.kind
        self.form = exchange.form
        self.length = length  # of the body


class Reader(asyncio.Protocol, ABC):
    """The half of a connection that reads requests; the other half, with the transport, is `Connection`.

    They are one object, because each request would pay for the way between two.
    """

    __slots__ = (
        "_authorization", "_began_ns", "_body", "_continue_due", "_door", "_form", "_head", "_head_bytes",
        "_head_count", "_headed", "_hosts", "_id", "_kind", "_length", "_media", "_now_ns", "_parser", "_rare",
        "_reading", "_refusal", "_reserved", "_route", "_size", "_unparsed", "_url", "_whole", "queue",
    )  # fmt: skip

    def __init__(self, door: Door) -> None:
        self.queue: deque[Exchange] = deque()
        self._door = door
        self._parser: Any = httptools.HttpRequestParser(self)
        self._reading = True  # otherwise what comes is thrown away
        self._whole = True  # no request is begun and not ended
        self._began_ns = 0  # when the one that is had begun
        self._unparsed = 0  # bytes of a head that came after that
        self._now_ns = monotonic_ns()  # when bytes came last
        self._continue_due = False
        self._head: Head | None = None  # of the request read last, where it may be known again
        self._clear()

    def _clear(self) -> None:
        """Forget the request that was read."""
        self._url = b""
        self._head_bytes = 0
        self._head_count = 0
        self._hosts = 0
        self._authorization: bytes | None = None
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

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            if not self._whole:
                self._wait_for_rest(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, Refusal) as error:
            # After the last request of a connection the parser complains about whatever follows.
            if self._reading:
                self._refuse(_refusal(error))

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
        elif name == b"authorization":
            # Of two it is not known which is meant: none is.
            self._authorization = b"" if self._authorization is not None else value
        elif name in _RARE_HEADERS:
            self._rare = {**(self._rare or {}), name: value.lower()}

    def on_headers_complete(self) -> None:
        """Decide what is asked: refuse it once it is read, or raise to stop reading it."""
        self._headed = True
        self._check_head()
        try:
            self._find_route()
        except Refusal as refusal:
            if isinstance(refusal, AccessRefused) and not self._small():
                raise
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
            self._door.answer(exchange, self._refusal)
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

    # The steps of these.

    def _check_head(self) -> None:
        if len(self._url) > self._door.settings.header_bytes_max:
            raise Refusal("url_too_long", "the URL is too long")
        self._check_head_size()
        if self._parser.should_upgrade():
            raise _malformed("a change of protocol is not offered")
        if self._hosts != 1 and (self._hosts or self._parser.get_http_version() != "1.0"):
            raise _malformed("it needs exactly one Host header")
        # Where such a message ends is not to be trusted (RFC 9112, 6.1).
        if self._rare is not None and b"transfer-encoding" in self._rare and self._parser.get_http_version() == "1.0":
            raise _malformed("HTTP/1.0 has no transfer encodings")

    def _find_route(self) -> None:
        method = self._parser.get_method()
        if method == b"HEAD":
            self._form = NO_BODY
        caller = self._door.access.caller(self._authorization)
        self._route, self._id = route, _ = self._door.routes.find(self._url, caller)
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
        return self._kind is not None and not self._id and self._rare is None and self._small()

    def _small(self) -> bool:
        return self._length <= self._door.small_body and b"transfer-encoding" not in (self._rare or ())

    def _add_exchange(self) -> Exchange:
        route = self._route or self._door.routes.refused
        exchange = Exchange(
            self, route, self._kind or 0, bytes(self._body), self._form, self._now_ns
        )
        exchange.reserved, self._reserved = self._reserved, 0
        self.queue.append(exchange)
        return exchange

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and read no further; earlier requests keep their turn."""
        self._reading = False
        self._began_ns = 0
        self._body = b""
        self._form |= CLOSE
        self._door.relay.refuse(self._add_exchange(), refusal)

    # The other half does these.

    @abstractmethod
    def flush(self) -> None: ...

    @abstractmethod
    def _pause_reading(self) -> None: ...

    @abstractmethod
    def _read_on(self) -> None: ...


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
