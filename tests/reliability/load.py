"""The load: several connections at once, each sending what its seed says until it is told to stop or is cut."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from reliability.caller import JSON, Caller, NoAnswer
from reliability.ledger import Ledger, Request

CONNECTIONS = 8
CARDS = 40
MEMOS = ("", "m" * 10, "m" * 2_000)
FILL_LINES = 10_000


class Load:
    """Makes payments; ids never come twice, cards do all the time."""

    def __init__(self, ledger: Ledger, rng: random.Random, memos: tuple[str, ...] = MEMOS) -> None:
        self.ledger = ledger
        self.rng = rng
        self.memos = memos
        self._number = 0
        self.cut_at: list[float] = []  # when requests were sent whose connection then ended without an answer
        self.refused: dict[str, int] = {}  # answers of 503 and 429, by code

    def request(self) -> Request:
        kind = self.rng.choices(("one", "many", "events"), (80, 12, 8))[0]
        count = 1 if kind == "one" else self.rng.randint(1, 40)
        return Request(kind, tuple(self.payment() for _ in range(count)))  # type: ignore[arg-type]

    def payment(self) -> JSON:
        self._number += 1
        return {
            "payment_id": f"p{self._number}",
            "card": f"c{self.rng.randrange(CARDS)}",
            "memo": self.rng.choice(self.memos),
            "amount": f"{self.rng.randrange(1, 100_000) / 100:.2f}",
            "paid_at": "2026-11-01T12:00:00Z",
        }

    async def fill(self, port: int, cards: int) -> None:
        """A payment of each of so many cards of their own, through the topic."""
        caller = Caller(port)
        for start in range(0, cards, FILL_LINES):
            numbers = range(start, min(start + FILL_LINES, cards))
            payments = tuple({**self.payment(), "card": f"f{self._number}", "memo": ""} for _ in numbers)
            await self.ledger.send(caller, Request("events", payments))
        await caller.close()

    async def run(self, port: int, until: Callable[[], bool], *, connections: int = CONNECTIONS) -> None:
        await asyncio.gather(*(self._work(port, until) for _ in range(connections)))

    async def _work(self, port: int, until: Callable[[], bool]) -> None:
        """One connection. What is refused for now is sent again a moment later, as a good client does."""
        caller, sent_at = Caller(port), time.monotonic()
        try:
            while not until():
                request, sent_at = self.request(), time.monotonic()
                reply = await self.ledger.send(caller, request)
                while reply.status in (429, 503) and not until():
                    self.refused[reply.code] = self.refused.get(reply.code, 0) + 1
                    await asyncio.sleep(0.05)
                    reply = await caller.call("POST", request.path, request.body, request.media_type)
                    self.ledger.note(request, reply)
        except NoAnswer:
            self.cut_at.append(sent_at)
        finally:
            await caller.close()
