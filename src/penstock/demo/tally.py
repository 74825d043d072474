"""What was decided, counted against the truth: frauds caught and missed, false alarms, times."""

from __future__ import annotations

import json
from array import array
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from penstock.demo.driver import Answer
from penstock.demo.generator import (
    ABOVE_THRESHOLD,
    CARD_STOLEN,
    GENUINE,
    TERMINAL_COMPROMISED,
    Payments,
)

PASSED = "approve"
RECENT = 4

PATTERNS = {
    ABOVE_THRESHOLD: "amount above the threshold",
    TERMINAL_COMPROMISED: "terminal compromised",
    CARD_STOLEN: "card stolen",
}


@dataclass
class Money:
    """How many payments, and what they come to."""

    count: int = 0
    cents: int = 0

    def add(self, cents: int) -> None:
        self.count += 1
        self.cents += cents

    def __str__(self) -> str:
        return f"{self.count:,} ({amount(self.cents)})"


@dataclass(frozen=True)
class Refusal:
    """A payment that was not approved, as the summary lists it."""

    payment: str
    cents: int
    outcome: str
    rules: tuple[str, ...]
    fraud: bool


@dataclass
class Tally:
    """Counts over the answers to a history's payments; caught means not approved."""

    payments: Payments
    decided: int = 0
    reports: int = 0
    timed_out: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    frauds: dict[int, Money] = field(default_factory=lambda: {each: Money() for each in PATTERNS})
    caught: dict[int, Money] = field(default_factory=lambda: {each: Money() for each in PATTERNS})
    alarms: Money = field(default_factory=Money)
    recent: deque[Refusal] = field(default_factory=lambda: deque(maxlen=RECENT))
    latencies: array[float] = field(default_factory=lambda: array("d"))

    def add(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self._add(answer)

    @property
    def events(self) -> int:
        return self.decided + self.reports

    @property
    def all_frauds(self) -> Money:
        return _total(self.frauds.values())

    @property
    def all_caught(self) -> Money:
        return _total(self.caught.values())

    def percentiles_ms(self, *percents: float) -> list[float]:
        """Of the times in which decisions were answered; zeros before the first."""
        if not self.latencies:
            return [0.0] * len(percents)
        seconds: list[float] = np.percentile(np.array(self.latencies), percents).tolist()
        return [each * 1_000 for each in seconds]

    def _add(self, answer: Answer) -> None:
        if answer.status != 200:
            self.refused[answer.status] += 1
        elif answer.place >= len(self.payments):
            self.reports += 1
        else:
            self._add_decision(answer)

    def _add_decision(self, answer: Answer) -> None:
        decision = json.loads(answer.body)
        self.decided += 1
        self.latencies.append(answer.seconds)
        self.timed_out += decision["timed_out"]
        self.outcomes[decision["outcome"]] += 1
        scenario = int(self.payments.scenario[answer.place])
        cents = int(self.payments.cents[answer.place])
        passed = decision["outcome"] == PASSED
        if not passed:
            self._add_refusal(decision, cents, scenario)
        if scenario != GENUINE:
            self.frauds[scenario].add(cents)
            if not passed:
                self.caught[scenario].add(cents)
        elif not passed:
            self.alarms.add(cents)

    def _add_refusal(self, decision: dict[str, object], cents: int, scenario: int) -> None:
        reasons = decision["reasons"]
        assert isinstance(reasons, list)
        rules = tuple(reason["rule"] for reason in reasons)
        if rules:
            self.rules[rules[0]] += 1
        payment, outcome = str(decision["id"]), str(decision["outcome"])
        self.recent.append(Refusal(payment, cents, outcome, rules, scenario != GENUINE))


def amount(cents: int) -> str:
    return f"{cents / 100:,.2f}"


def _total(parts: Iterable[Money]) -> Money:
    total = Money()
    for part in parts:
        total.count += part.count
        total.cents += part.cents
    return total
