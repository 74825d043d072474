"""What the service has acknowledged, as its callers know it; and whether it still stands by all of it.

The ledger is the load's: it shares no code with the service. Every request is entered before it is sent, so that one
that got no answer is known and can be sent again. When nothing is open any more, what was sent is what the topic must
hold: offsets 0, 1, 2 … each once, and of each card a first, a second, a third payment.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from processes import DECIDE, EVENTS, NDJSON
from reliability.caller import JSON, Caller, Reply

DECISIONS = "/v1/decisions/authorise/"
# A retry of what was told goes in bodies of so many lines.
LINES = 200


@dataclass(frozen=True)
class Request:
    """Payments that are sent together: one decision, a body of decisions, or events for their topic."""

    kind: Literal["one", "many", "events"]
    payments: tuple[JSON, ...]

    @property
    def path(self) -> str:
        return EVENTS if self.kind == "events" else DECIDE

    @property
    def media_type(self) -> str:
        return "application/json" if self.kind == "one" else NDJSON

    @property
    def body(self) -> bytes:
        return b"\n".join(json.dumps(payment).encode() for payment in self.payments)


@dataclass
class Findings:
    """What must stay empty, in words: never an event's values."""

    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return self.lost + self.repeated + self.refused


class Ledger:
    """What was sent, what of it was acknowledged and how."""

    def __init__(self) -> None:
        self.payments: dict[str, JSON] = {}
        self.told: dict[str, JSON] = {}  # decisions by id, as they were first answered
        self.taken: dict[str, int] = {}  # offsets of what entered through the topic
        self.open: list[Request] = []
        self.findings = Findings()
        self._unchecked: list[str] = []  # acknowledged since the last check of the order
        self._end = 0  # offsets below are checked
        self._counts: dict[str, int] = {}  # payments of each card, as far as they are checked

    @property
    def acknowledged(self) -> int:
        return len(self.told) + len(self.taken)

    async def send(self, caller: Caller, request: Request) -> Reply:
        """Enter it, send it, note the answer. Raises `NoAnswer`; then it stays open."""
        self.open.append(request)
        self.payments.update((payment["payment_id"], payment) for payment in request.payments)
        reply = await caller.call("POST", request.path, request.body, request.media_type)
        self.note(request, reply)
        return reply

    def note(self, request: Request, reply: Reply) -> None:
        """Take in an answer; one of 503 or 429 is none, and what was asked stays open."""
        if reply.status in (429, 503):
            return
        self.open = [each for each in self.open if each is not request]
        if reply.status != 200:
            self.findings.refused.append(f"{request.payments[0]['payment_id']} got {reply.status} {reply.code}")
        elif request.kind == "events":
            for payment, offset in zip(request.payments, reply.json()["offsets"], strict=True):
                self._note_taken(payment["payment_id"], offset)
        else:
            for payment, line in zip(request.payments, reply.body.splitlines(), strict=True):
                self._note_told(payment["payment_id"], json.loads(line))

    def _note_told(self, id: str, answer: JSON) -> None:
        answer.pop("took_ms", None)
        if id not in self.told:
            if "error" in answer or answer["timed_out"] or answer["id"] != id:
                self.findings.refused.append(f"{id} was answered {sorted(answer)}")
                return
            self.told[id] = answer
            self._unchecked.append(id)
        elif self.told[id] != answer:
            places = (self.told[id]["offset"], answer.get("offset"))
            self.findings.lost.append(f"{id} was told otherwise by a retry: offsets {places}")

    def _note_taken(self, id: str, offset: int | None) -> None:
        if offset is None:
            self.findings.refused.append(f"{id} was not taken")
        elif id not in self.taken:
            self.taken[id] = offset
            self._unchecked.append(id)
        elif self.taken[id] != offset:
            self.findings.lost.append(f"{id} was taken at offset {self.taken[id]}, then at {offset}")

    async def settle(self, caller: Caller) -> None:
        """Send again what got no answer, until nothing is open."""
        while self.open:
            request = self.open[0]
            reply = await caller.call("POST", request.path, request.body, request.media_type)
            self.note(request, reply)

    async def look_up(self, caller: Caller, ids: Iterable[str]) -> None:
        """Whether the decisions among these are there by GET, as they were told."""
        for id in ids:
            if id in self.told:
                self._compare(id, await caller.call("GET", DECISIONS + id))

    async def retry(self, caller: Caller, ids: Collection[str]) -> None:
        """Whether these are told again, with the very same answers."""
        told = [id for id in ids if id in self.told]
        taken = [id for id in ids if id in self.taken]
        for kind, group in (("many", told), ("events", taken)):
            for start in range(0, len(group), LINES):
                payments = tuple(self.payments[id] for id in group[start : start + LINES])
                request = Request(kind, payments)  # type: ignore[arg-type]
                self.note(request, await caller.call("POST", request.path, request.body, request.media_type))
        if told:
            request = Request("one", (self.payments[told[0]],))
            reply = await caller.call("POST", request.path, request.body)
            if reply.headers.get("Penstock-Repeat") != "1":
                self.findings.lost.append(f"{told[0]} was decided anew by a retry")
            self.note(request, reply)

    def _compare(self, id: str, reply: Reply) -> None:
        answer = reply.json()
        if reply.status != 200:
            self.findings.lost.append(f"{id} is {reply.status} {reply.code}")
        elif answer.pop("late_decision") is not None or answer != self.told[id]:
            self.findings.lost.append(f"{id} is not as it was told")

    def check_order(self) -> list[str]:
        """Whether each payment entered once and in one order; the ids that are checked by this, newest last.

        Only where nothing is open: an event without an answer may or may not be in the log.
        """
        assert not self.open, "what is open has no place yet"
        ids, self._unchecked = sorted(self._unchecked, key=self._offset), []
        for id in ids:
            self._check_place(id, self._offset(id))
        return ids

    def in_order(self) -> list[str]:
        """All ids by their offsets."""
        return sorted([*self.told, *self.taken], key=self._offset)

    def _check_place(self, id: str, offset: int) -> None:
        if offset != self._end:
            kind = self.findings.repeated if offset > self._end else self.findings.lost
            kind.append(f"{id} has offset {offset}, and {self._end} is the next that was acknowledged")
        self._end = offset + 1
        card = self.payments[id]["card"]
        self._counts[card] = count = self._counts.get(card, 0) + 1
        if id in self.told and (counted := self.told[id]["features"]["card_count"]) != count:
            kind = self.findings.repeated if counted > count else self.findings.lost
            kind.append(f"{id} is payment {count} of its card, and was counted as {counted}")
            self._counts[card] = counted

    def _offset(self, id: str) -> int:
        offset: int = self.taken[id] if id in self.taken else self.told[id]["offset"]
        return offset
