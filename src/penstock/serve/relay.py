"""The hand-over between connections and the core: what came in one turn of the loop goes together.

    connections ── accept ──▶ batch ── submit, once a turn ──▶ core
    connections ◀── flush, once a connection ── deliver ◀── take, once a wake-up ── core

A request is answered once, by whichever is first: the core, its deadline, or an overload. What
comes after the first is dropped here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Protocol

from penstock.errors import LogError
from penstock.runtime.gate import DECIDE, DECIDE_MANY, MODEL, REPEAT, SCORES, Gate, Request
from penstock.serve.answers import Answers, Refusal
from penstock.serve.deadlines import Deadline
from penstock.serve.limits import Rate, Reserve
from penstock.serve.lines import Lines
from penstock.serve.routes import Route, Routes
from penstock.serve.settings import DoorSettings

logger = logging.getLogger("penstock.serve")

RATE_LIMITED = Refusal("rate_limited", "too many requests a second; try again in a second")
OVERLOADED = Refusal("overloaded", "the queue is full and nothing was taken; try again in a second")
NOT_ANSWERED = Refusal(
    "not_answered",
    "no answer in time: whether this was taken is not known; the same again is safe",
)
CORE_FAILED = Refusal(
    "core_failed",
    "the gate has ended: whether this was taken is not known; the same again is safe",
)

# How often at most a wake-up for nothing leads to asking whether the core is lost.
LOOK_NS = 100_000_000


class Connection(Protocol):
    """What is known here of who asks: what they wait for, in order, and that answers may leave."""

    queue: deque[Exchange]

    def flush(self) -> None: ...


class Exchange:
    """One request, from when it is held whole until its answer is written.

    `answer` is None while it waits, then the answer's bytes; empty when those are written or nobody
    is there to read them.
    """

    __slots__ = (
        "answer", "body", "connection", "form", "handle", "held_ns", "kind", "reserved", "route",
        "shared",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, route: Route, kind: int, body: bytes, form: int, held_ns: int
    ) -> None:
        self.connection = connection
        self.route = route
        self.kind = kind
        self.body = body
        self.form = form
        self.held_ns = held_ns
        self.handle = 0  # the core's name for it, once it is handed over
        self.answer: bytes | None = None
        self.reserved = 0  # bytes of the reserve
        self.shared = False  # between the core and the connection


class Relay:
    """Feeds the core and hands out its answers; lives on the loop's thread."""

    __slots__ = (
        "_answers", "_batch", "_core", "_deadlines", "_eventfd", "_handle", "_lines", "_looked_ns",
        "_loop", "_queue_max", "_rate", "_score", "busy_ns", "failed", "pending", "reserve",
    )  # fmt: skip

    def __init__(
        self, core: Gate, routes: Routes, settings: DoorSettings, answers: Answers
    ) -> None:
        self.pending: dict[int, Exchange] = {}  # what the core has not answered yet
        self.reserve = Reserve(settings.held_bytes_max)
        self.busy_ns = 0  # the time that the door's own code took
        self._core = core
        self._answers = answers
        self._queue_max = settings.queue_max
        self._rate = Rate(settings.requests_per_second_max, monotonic_ns())
        self._batch: list[Request] = []
        self._eventfd = -1
        self._handle = 0
        self._looked_ns = 0
        self._deadlines: list[Deadline] = routes.deadlines()
        self._lines = Lines(self.fail)

    def open(self, eventfd: int, score: Callable[[int, int, bytes], None]) -> None:
        """Begin to deliver; `score` takes rows to a model: (model, batch number, Arrow stream)."""
        self._loop = asyncio.get_running_loop()
        self._eventfd = eventfd
        self._score = score
        self.failed: asyncio.Future[None] = self._loop.create_future()
        for deadline in self._deadlines:
            deadline.open(self._loop, self._expire)
        self._loop.add_reader(eventfd, self.deliver)

    def close(self) -> None:
        if self._eventfd >= 0:
            self._loop.remove_reader(self._eventfd)
        for deadline in self._deadlines:
            deadline.close()
        self._lines.close()

    def accept(self, exchange: Exchange) -> None:
        """Take a request that is held whole: it will have an answer."""
        rate = self._rate
        rate.left -= 1
        if rate.left < 0 and not rate.refill(exchange.held_ns):
            self.refuse(exchange, RATE_LIMITED)
        elif len(self.pending) >= self._queue_max:
            self._overload(exchange)
        else:
            self._handle = exchange.handle = handle = self._handle + 1
            self.pending[handle] = exchange
            exchange.shared = True
            route = exchange.route
            assert route.deadline is not None, "what the core is asked has a deadline"
            route.deadline.waiting.append(exchange)
            self._add((handle, exchange.kind, route.target, exchange.body, exchange.held_ns))

    def scored(self, number: int, scores: bytes) -> None:
        """Take a model's answer for one of its batches; empty is a failure."""
        self._handle += 1
        self._add((self._handle, SCORES, number, scores, monotonic_ns()))

    def submit(self) -> None:
        """Hand over what has come; the loop calls it once a turn."""
        batch, self._batch = self._batch, []
        if not batch or self.failed.done():
            return
        try:
            self._core.submit(batch)
        except Exception as error:
            self.fail(error)
        for deadline in self._deadlines:
            deadline.arm()

    def deliver(self) -> None:
        """Hand out what the core has ready."""
        began_ns = monotonic_ns()
        try:
            os.eventfd_read(self._eventfd)
            # A deadline that passed while the loop was busy has passed all the same.
            for deadline in self._deadlines:
                deadline.pass_by(began_ns)
            if not self.deliver_taken() and began_ns - self._looked_ns > LOOK_NS:
                self.core_stats()
        except Exception as error:
            self.fail(error)
        self.busy_ns += monotonic_ns() - began_ns

    def deliver_taken(self) -> int:
        """Hand out what can be taken; how much that was."""
        ready: list[Connection] = []
        pending = self.pending
        make = self._answers.make
        taken = self._core.take()
        now_ns = monotonic_ns()
        for handle, status, body, flags in taken:
            if flags & MODEL:
                self._score(status, handle, body)
                continue
            exchange = pending.pop(handle)
            if exchange.reserved:
                self.settle(exchange)
            if exchange.answer is not None:
                continue  # its caller has been told, or has gone
            exchange.route.observe(status, now_ns - exchange.held_ns, flags & REPEAT)
            exchange.answer = make(status, body, exchange.form | (flags & REPEAT))
            exchange.body = b""
            connection = exchange.connection
            if connection.queue[0] is exchange:
                ready.append(connection)
        for connection in ready:
            connection.flush()
        return len(taken)

    def core_stats(self) -> dict[str, Any]:
        """The core's numbers, by its own names; they also tell whether it is lost."""
        self._looked_ns = monotonic_ns()
        stats: dict[str, Any] = json.loads(self._core.stats())
        if stats["failed"] is not None:
            self.fail(LogError(stats["failed"]))
        return stats

    def answer(self, exchange: Exchange, status: int, body: bytes) -> None:
        """Answer at once, from here."""
        exchange.route.statuses[status] += 1
        self._give(exchange, status, body)

    def _give(self, exchange: Exchange, status: int, body: bytes) -> None:
        exchange.answer = self._answers.make(status, body, exchange.form)
        exchange.body = b""
        exchange.connection.flush()

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        exchange.form |= refusal.form
        self.answer(exchange, refusal.status, refusal.body)

    def abandon(self) -> None:
        """Answer all who still wait that there will be no answer."""
        for exchange in self.pending.values():
            if exchange.answer is None:
                self.refuse(exchange, CORE_FAILED)
        self.pending.clear()

    def fail(self, error: Exception) -> None:
        """The core is lost: whoever waits on `failed` stops the process."""
        if not self.failed.done():
            logger.critical("the core failed: %s", error)
            self.failed.set_exception(error)

    def settle(self, exchange: Exchange) -> None:
        """Give a large body's place back once both the core and the client are done with it."""
        if exchange.shared:
            exchange.shared = False
        else:
            self.reserve.give_back(exchange.reserved)
            exchange.reserved = 0

    def _add(self, request: Request) -> None:
        if not self._batch:
            self._loop.call_soon(self.submit)
        self._batch.append(request)

    def _overload(self, exchange: Exchange) -> None:
        exchange.route.overloaded += 1
        if not exchange.route.fallback_on_overload:
            self.refuse(exchange, OVERLOADED)
        elif exchange.kind == DECIDE:
            took_ns = monotonic_ns() - exchange.held_ns
            answer = self._core.overload(exchange.route.target, exchange.body, took_ns)
            self.answer(exchange, *answer)
        else:
            self._lines.make(exchange, self._core.overloads, self.answer)

    def _expire(self, exchange: Exchange) -> None:
        try:
            if exchange.kind == DECIDE:
                took_ns = monotonic_ns() - exchange.held_ns
                answer = self._core.fallback(exchange.route.target, exchange.body, took_ns)
                self._tell(exchange, *answer)
            elif exchange.kind == DECIDE_MANY:
                self._lines.make(exchange, self._core.fallbacks, self._tell)
            else:
                self.refuse(exchange, NOT_ANSWERED)
        except Exception as error:
            self.fail(error)

    def _tell(self, exchange: Exchange, status: int, body: bytes) -> None:
        """The deadline has passed: answer, and have it recorded where it is a decision."""
        if status == 200:
            exchange.route.timed_out += 1
            self._core.told(exchange.handle)
        exchange.route.observe(status, monotonic_ns() - exchange.held_ns, repeat=0)
        self._give(exchange, status, body)
