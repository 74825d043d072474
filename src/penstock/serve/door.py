"""What all connections of a door have in common: what is behind it, its pages, the look after them all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from penstock.serve.answers import Refusal
from penstock.serve.guard import Guard
from penstock.serve.http import Connection
from penstock.serve.reading import SMALL_BODY, Head
from penstock.serve.relay import Exchange, Relay
from penstock.serve.routes import Route, Routes
from penstock.serve.settings import DoorSettings

logger = logging.getLogger("penstock.serve")

HEADS_MAX = 1_000
CHECKED_PER_TURN = 500

# A page of the door's own: status, body and form of its answer.
Page = Callable[[], tuple[int, bytes, int]]


class Door:
    """What all connections share."""

    def __init__(self, settings: DoorSettings, *, routes: Routes, relay: Relay, guard: Guard) -> None:
        self.settings = settings
        self.routes = routes
        self.relay = relay
        self.guard = guard
        self.access = guard.access
        self.pages: dict[Route, Page] = {}  # what is answered here
        self.connections: set[Connection] = set()
        self.lingering = 0  # of these
        self.stopping = False
        self.small_body = min(SMALL_BODY, settings.body_bytes_max)
        # A client sends the same few heads again and again: those need not be parsed twice.
        self.heads: dict[bytes, Head] = {}

    def connect(self) -> Connection:
        return Connection(self)

    def reload(self) -> None:
        """Read tokens anew. A head that was let in before is looked at again; what is held goes on."""
        if self.guard.reload():
            self.access = self.guard.access
            self.heads.clear()

    def learn(self, head_bytes: bytes, head: Head) -> None:
        if self.stopping:
            return
        if len(self.heads) >= HEADS_MAX:
            self.heads.clear()
        self.heads[head_bytes] = head

    def answer(self, exchange: Exchange, refusal: Refusal | None) -> None:
        """Answer what the core is not asked: a refused request, or one for a page of the door's own."""
        if refusal is not None:
            self.relay.refuse(exchange, refusal)
            return
        try:
            status, body, form = self.pages[exchange.route]()
        except Exception:
            logger.exception("the page %s failed", exchange.route.name)
            self.relay.refuse(exchange, Refusal("internal_error", "this page failed; see the log"))
        else:
            exchange.form |= form
            self.relay.answer(exchange, status, body)

    def check(self, now_ns: int) -> None:
        """End what takes too long, some connections a turn of the loop."""
        self._check_some(list(self.connections), now_ns)

    def _check_some(self, connections: list[Connection], now_ns: int) -> None:
        for connection in connections[-CHECKED_PER_TURN:]:
            connection.check(now_ns)
        del connections[-CHECKED_PER_TURN:]
        if connections:
            asyncio.get_running_loop().call_soon(self._check_some, connections, now_ns)

    def begin_stop(self) -> None:
        """From now on each connection closes with its last answer; one without a request may still have one coming."""
        self.stopping = True
        # A head that is known leads to an answer that keeps its connection.
        self.heads.clear()
        for connection in list(self.connections):
            if connection.queue:
                connection.stop()

    def stop(self) -> None:
        """Take no more; a connection closes with its last answer, one without a request now."""
        for connection in list(self.connections):
            connection.stop()

    def busy(self) -> bool:
        """Whether any connection has a request, or an answer that has not left."""
        return any(connection.busy() for connection in self.connections)

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.abort("the gate stopped")
