"""A changed pipeline on a live data directory keeps what it shares with the old one, and builds the rest from the log.

The oracle is DuckDB over every event that was ever sent, whatever retention has removed from the log.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import penstock as ps
from penstock import testing

RULES = 'default = "approve"\noutcomes = ["decline", "approve"]\n'
SMALL = {"segment_bytes": 64 << 10, "commit_bytes": 16 << 10, "memory_ids": 1_000}
CUT = {**SMALL, "retention_us": 2 * 86_400_000_000}


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str
    country: str | None
    amount: Decimal = ps.decimal(12, 2)
    fee: int
    paid_at: datetime = ps.event_time()


class PatientPayment(ps.Event):
    payment_id: str = ps.id()
    card: str
    country: str | None
    amount: Decimal = ps.decimal(12, 2)
    fee: int
    paid_at: datetime = ps.event_time(lateness="2h")


# Features by name: their definition, and what DuckDB says of the rows `h` that they see. The span is in hours.
def sliding(hours: int, call: Callable[[Any], Any], sql: str, where: str = "true") -> tuple[Any, str]:
    window = f"h.paid_at > p.paid_at - interval {hours} hour and ({where})"
    return (lambda card: call(card.past(f"{hours}h"))), f"(select {sql} from seen h where {window})"


def endless(call: Callable[[Any], Any], sql: str, where: str = "true") -> tuple[Any, str]:
    return (lambda card: call(card.past(None))), f"(select {sql} from seen h where {where})"


COUNT = sliding(120, lambda past: past.count(), "count(*)")
SUM = sliding(120, lambda past: past.sum("amount"), "sum(h.amount)")
ALL = endless(lambda past: past.count(), "count(*)")
ALL_LAST = endless(
    lambda past: past.last("country"), "last(h.country order by h.paid_at, h.seq) filter (h.country is not null)"
)
OLD = {"count": COUNT, "sum": SUM, "all": ALL, "all_last": ALL_LAST}
BIG = "h.amount > 50"

CHANGES: dict[str, dict[str, Any]] = {
    "nothing": OLD,
    "renamed and moved": {"everything": ALL, "total": SUM, "latest": ALL_LAST, "number": COUNT},
    "one less": {"sum": SUM},
    "a shorter window": {**OLD, "count_1d": sliding(24, lambda past: past.count(), "count(*)")},
    "a longer window": {**OLD, "sum_10d": sliding(240, lambda past: past.sum("amount"), "sum(h.amount)")},
    "a new column": {**OLD, "fees": sliding(120, lambda past: past.sum("fee"), "sum(h.fee)")},
    "a new filter": {**OLD, "big": sliding(120, lambda past: past.count(where="amount > 50"), "count(*)", BIG)},
    "a new endless read": {**OLD, "all_max": endless(lambda past: past.max("amount"), "max(h.amount)")},
    "a deeper endless read": {**OLD, "all_mean": endless(lambda past: past.mean("fee"), "avg(h.fee)")},
}
COMPLETE = {"nothing", "renamed and moved", "one less", "a shorter window"}


def build(folder: Path, features: dict[str, Any], event: type[ps.Event] = Payment) -> ps.Pipeline:
    (folder / "rules.toml").write_text(RULES)
    pipeline = ps.Pipeline("cards")
    payments = pipeline.topic("payments", event)
    card = payments.by("card")
    scored = payments.features(**{name: define(card) for name, (define, _) in features.items()})
    pipeline.policy("authorise", scored, rules=folder / "rules.toml", fallback="approve")
    return pipeline


class Story:
    """Payments of a few cards, three hours apart, some of them late, and all that was ever sent."""

    def __init__(self, service: testing.Service, seed: int = 1) -> None:
        self.service = service
        self.random = random.Random(seed)
        self.sent: list[dict[str, Any]] = []

    def go_on(self, steps: int, *, snapshots: bool = True) -> list[dict[str, Any]]:
        answers = []
        for step in range(steps):
            self.service.clock.advance("3h")
            answers += self.service.decide_many("authorise", [self.payment() for _ in range(40)])
            if snapshots and step % 8 == 7:
                self.service.snapshot()
        return answers

    def payment(self) -> dict[str, Any]:
        late = timedelta(minutes=self.random.choice([0, 0, 0, 5, 40]))
        payment = {
            "payment_id": f"p{len(self.sent)}",
            "card": f"c{self.random.randrange(6)}",
            "country": self.random.choice(["DE", "FR", None]),
            "amount": f"{self.random.randrange(10_000) / 100:.2f}",
            "fee": self.random.randrange(100),
            "paid_at": (self.service.clock.now - late).isoformat(),
        }
        self.sent.append(payment)
        return payment

    def check(
        self, answers: list[dict[str, Any]], features: dict[str, Any], complete: dict[str, datetime | None]
    ) -> int:
        """Compare features with DuckDB's wherever they claim to be complete; how many were compared."""
        connection = duckdb.connect()
        connection.register("raw", pa.Table.from_pylist(self.sent))
        connection.execute(
            "create table sent as select cast(substr(payment_id, 2) as int) seq, card, country, fee,"
            " cast(amount as decimal(12, 2)) amount, cast(paid_at as timestamptz) paid_at from raw"
        )
        first = len(self.sent) - len(answers)
        columns = ", ".join(
            sql.replace("from seen h where", f"from sent h where {SEEN} and") for _, sql in features.values()
        )
        found = connection.execute(
            f"select paid_at, {columns} from sent p where seq >= {first} order by seq"
        ).fetchall()
        compared = 0
        for answer, (paid_at, *values) in zip(answers, found, strict=True):
            for name, value in zip(features, values, strict=True):
                since = complete.get(name, datetime.min.replace(tzinfo=paid_at.tzinfo))
                if since is not None and paid_at >= since:
                    got = answer["features"][name]
                    assert (Decimal(got) if isinstance(value, Decimal) else got) == value, (answer["id"], name)
                    compared += 1
        return compared


SEEN = "h.card = p.card and h.seq <= p.seq and h.paid_at <= p.paid_at"


def complete_from(service: testing.Service) -> dict[str, datetime | None]:
    """The features that start says are not complete yet, and from when they are."""
    found = service.started["incomplete"]
    return {
        each["feature"]: None
        if each["complete_from_us"] is None
        else testing.EPOCH + timedelta(microseconds=each["complete_from_us"])
        for each in found
    }


@pytest.mark.parametrize("change", CHANGES)
def test_on_a_whole_log_the_state_is_that_of_a_pipeline_that_was_always_so(tmp_path: Path, change: str) -> None:
    changed = build(tmp_path, CHANGES[change])
    with (
        testing.run(build(tmp_path, OLD), settings=SMALL) as service,
        testing.run(changed, settings=SMALL) as always,
    ):
        Story(service).go_on(20)
        Story(always).go_on(20, snapshots=False)
        service.restart(changed)
        assert service.started["incomplete"] == []
        assert service.state() == always.state()


@pytest.mark.parametrize("change", CHANGES)
def test_after_retention_what_is_unchanged_is_complete_and_what_is_new_says_from_when(
    tmp_path: Path, change: str
) -> None:
    features = CHANGES[change]
    with testing.run(build(tmp_path, OLD), settings=CUT) as service:
        story = Story(service)
        story.go_on(80)
        service.restart(build(tmp_path, features))
        assert service.started["first_sequence"] > 1
        incomplete = complete_from(service)
        assert set(incomplete) == (set() if change in COMPLETE else set(features) - set(OLD))
        answers = story.go_on(60, snapshots=False)
        assert story.check(answers, features, incomplete) >= len(answers)


@pytest.mark.parametrize("change", ["a longer window", "a new column", "a new endless read"])
@pytest.mark.parametrize("then", ["crash", "restart", "snapshot and crash", "snapshots, retention, crash"])
def test_what_was_kept_survives_the_next_start_as_well(tmp_path: Path, change: str, then: str) -> None:
    features = CHANGES[change]
    with testing.run(build(tmp_path, OLD), settings=CUT) as service:
        story = Story(service)
        story.go_on(80)
        service.restart(build(tmp_path, features))
        incomplete = complete_from(service)
        story.go_on(2, snapshots=False)
        before = service.state()
        if then == "restart":
            service.restart()
        else:
            if "snapshot" in then:
                service.snapshot()
            if "retention" in then:
                story.go_on(24)
                before = service.state()
            service.crash()
        assert service.state() == before
        again = complete_from(service)
        assert set(again) <= set(incomplete)
        story.check(story.go_on(20, snapshots=False), features, again)


def test_a_changed_lateness_is_another_time_so_the_state_is_built_anew(tmp_path: Path) -> None:
    changed = build(tmp_path, OLD, PatientPayment)
    with (
        testing.run(build(tmp_path, OLD), settings=SMALL) as service,
        testing.run(changed, settings=SMALL) as always,
    ):
        Story(service).go_on(10)
        Story(always).go_on(10, snapshots=False)
        service.restart(changed)
        assert service.state() == always.state()


def test_another_lateness_of_a_topic_that_features_read_is_another_version(tmp_path: Path) -> None:
    def with_refunds(event: type[ps.Event]) -> ps.Pipeline:
        (tmp_path / "rules.toml").write_text(RULES)
        pipeline = ps.Pipeline("cards")
        refunds = pipeline.topic("refunds", event)
        refunded = pipeline.topic("payments", Payment).features(refunds=refunds.by("card").past("90m").count())
        pipeline.policy("authorise", refunded, rules=tmp_path / "rules.toml", fallback="approve")
        return pipeline

    def event(id: str, paid_at: str) -> dict[str, Any]:
        time = f"2026-11-01T{paid_at}:00Z"
        return {"payment_id": id, "card": "c1", "country": None, "amount": "1.00", "fee": 0, "paid_at": time}

    with testing.run(with_refunds(Payment), now="2026-11-01T12:00:00Z") as service:
        service.append("refunds", [event("r1", "12:00"), event("r2", "10:15")])
        first = service.decide("authorise", event("p1", "12:00"))
        service.restart(with_refunds(PatientPayment))
        second = service.decide("authorise", event("p2", "12:00"))
        assert (first["features"], second["features"]) == ({"refunds": 2}, {"refunds": 1})
        assert first["policy_version"] != second["policy_version"]
        # A follower does not take the one's features for wrong ones of the other.
        assert service.compared == (1, 0)


def test_a_topic_that_left_the_pipeline_comes_back_with_its_time_and_its_state(tmp_path: Path) -> None:
    def with_reports(there: bool) -> ps.Pipeline:
        pipeline = build(tmp_path, OLD)
        if there:
            pipeline.topic("refunds", Payment).features(
                refunds=pipeline.topics["payments"].by("card").past("5h").count()
            )
        return pipeline

    with testing.run(with_reports(True), settings=SMALL) as service:
        story = Story(service)
        story.go_on(4)
        service.append("refunds", [story.payment()])
        before = service.state()
        for there in (False, True):
            service.snapshot()
            service.restart(with_reports(there))
        assert service.state() == before


def test_policies_may_change_their_order_and_a_retry_is_told_the_same(tmp_path: Path) -> None:
    def two(names: list[str]) -> ps.Pipeline:
        (tmp_path / "rules.toml").write_text(RULES)
        pipeline = ps.Pipeline("cards")
        payments = pipeline.topic("payments", Payment)
        for name in names:
            pipeline.policy(name, payments, rules=tmp_path / "rules.toml", fallback="approve")
        return pipeline

    with testing.run(two(["one", "other"])) as service:
        payment = Story(service).payment()
        first = service.decide("one", payment)
        service.restart(two(["other", "one"]))
        assert service.decide("one", payment) == first
        assert service.look_up("one", "p0")["outcome"] == "approve"
        with pytest.raises(testing.Refused, match="another door"):
            service.decide("other", payment)


def test_the_log_is_kept_until_the_changed_pipeline_has_its_snapshots(tmp_path: Path) -> None:
    features = CHANGES["a new column"]
    with testing.run(build(tmp_path, OLD), settings=CUT) as service:
        story = Story(service)
        story.go_on(40)
        service.restart(build(tmp_path, features))
        first = service.started["first_sequence"]
        story.go_on(40, snapshots=False)
        state, incomplete = service.state(), complete_from(service)
        for snapshot in (0, 1, 2):
            service.crash()
            # What the first start found is found again, however long ago it was.
            assert (service.started["first_sequence"] == first) == (snapshot < 2)
            assert snapshot == 2 or service.state() == state
            assert set(complete_from(service)) <= set(incomplete)
            service.snapshot()
            story.go_on(8, snapshots=False)
            state = service.state()
