"""Every aggregate over generated streams, through the gate, against Polars over the whole history.

The streams have ties, late and repeated events, null and composite keys, several topics, and crashes in between. What
Polars is asked is the definition: for each event, all rows of its key whose effective time lies in its window and that
stand before it in the order. Effective times are computed here, from the words of the design.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock import testing
from penstock.process.streams import Feature, Window

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATENESS_S = 20
REPORT_LATENESS_S = 5
# Windows are read at times up to a few hundred seconds apart, so that events lie on, in and beyond every edge.
LENGTHS: tuple[str | None, ...] = ("1s", "7s", "30s", "2m", None)
DELAYS = (None, "1s", "10s", "40s")
SECONDS = {"1s": 1, "7s": 7, "10s": 10, "30s": 30, "40s": 40, "2m": 120}

WHERE: dict[str | None, pl.Expr] = {
    None: pl.lit(True),
    "amount > 2.5": pl.col("amount") > Decimal("2.5"),
    "flag": pl.col("flag"),
    "country in ('de', 'fr') or items < 0": pl.col("country").is_in(["de", "fr"]) | (pl.col("items") < 0),
    "weight is null": pl.col("weight").is_null(),
}
REPORT_WHERE: dict[str | None, pl.Expr] = {None: pl.lit(True), "loss >= 1": pl.col("loss") >= 1}


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str | None
    country: str | None
    items: int | None
    flag: bool | None
    weight: float | None
    amount: Decimal = ps.decimal(12, 2)
    fee: Decimal | None = ps.decimal(20, 5)
    seen_at: datetime | None
    paid_at: datetime = ps.event_time(lateness="20s", ahead="1000d")


class Report(ps.Event):
    report_id: int = ps.id()
    card: str | None
    country: str | None
    loss: int | None
    reported_at: datetime = ps.event_time(lateness="5s", ahead="1000d")


class Read(NamedTuple):
    """One feature, as a value that Polars can be asked about too."""

    topic: str
    key: tuple[str, ...]
    length: str | None
    delay: str | None
    current: bool
    aggregate: str
    column: str | None
    n: int
    where: str | None

    def define(self, topics: dict[str, Any]) -> Feature:
        window: Window = topics[self.topic].by(*self.key).past(
            self.length, delay=self.delay, include_current=self.current
        )
        method = getattr(window, self.aggregate)
        arguments = [] if self.column is None else [self.column]
        feature: Feature = method(*arguments, *([self.n] if self.aggregate == "lag" else []), where=self.where)
        return feature


NUMBERS = ("items", "weight", "amount", "fee")
COLUMNS = (*NUMBERS, "country", "flag", "seen_at")
BY_COLUMN = {
    "sum": NUMBERS, "mean": NUMBERS, "std": NUMBERS, "var": NUMBERS, "min": COLUMNS, "max": COLUMNS,
    "n_unique": COLUMNS, "first": COLUMNS, "last": COLUMNS, "lag": COLUMNS,
}  # fmt: skip
KEYS = (("card",), ("country",), ("card", "country"), ("country", "card"))


@st.composite
def reads(draw: st.DrawFn) -> Read:
    topic = draw(st.sampled_from(("payments", "payments", "reports")))
    aggregate = draw(st.sampled_from(("count", "since_last", *BY_COLUMN)))
    columns = ("loss",) if topic == "reports" else BY_COLUMN.get(aggregate, ())
    return Read(
        topic,
        draw(st.sampled_from(KEYS)),
        draw(st.sampled_from(LENGTHS)),
        draw(st.sampled_from(DELAYS)),
        draw(st.booleans()),
        aggregate,
        draw(st.sampled_from(columns)) if aggregate in BY_COLUMN else None,
        draw(st.integers(1, 3)) if aggregate == "lag" else 0,
        draw(st.sampled_from(list(REPORT_WHERE if topic == "reports" else WHERE))),
    )


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values, values, values)


def decimals(digits: int, scale: int) -> st.SearchStrategy[Decimal]:
    most = 10**digits - 1
    return st.integers(-most, most).map(lambda unscaled: Decimal(unscaled).scaleb(-scale))


CARD = optional(st.sampled_from(("a", "b", "")))
COUNTRY = optional(st.sampled_from(("de", "fr")))

PAYMENT = st.fixed_dictionaries(
    {
        "card": CARD,
        "country": COUNTRY,
        "items": optional(st.integers(-3, 3) | st.integers(-(2**40), 2**40)),
        "flag": optional(st.booleans()),
        "weight": optional(st.integers(-1000, 1000).map(lambda n: n / 8) | st.floats(-1e6, 1e6).map(lambda x: x + 0.0)),
        "amount": decimals(3, 2) | decimals(12, 2),
        "fee": optional(decimals(4, 5) | decimals(19, 5)),
        "seen_at": optional(st.integers(0, 5).map(lambda seconds: NOON + timedelta(seconds=seconds))),
    }
)
REPORT = st.fixed_dictionaries({"card": CARD, "country": COUNTRY, "loss": optional(st.integers(-2, 5))})

# How far each event's time is from the newest: mostly on, sometimes equal, out of order, late, or far ahead.
STEPS = st.one_of(
    st.sampled_from((0, 0, 1, 1, 2, 7)),
    st.sampled_from((-1, -6, -LATENESS_S, -LATENESS_S - 1, -50, 30, 130)),
    st.sampled_from((0.000001, 0.5, 6.999999)),
)

REPORT_STEPS = st.sampled_from((0, 1, -3, -REPORT_LATENESS_S, -REPORT_LATENESS_S - 1, -9, -30))

ACTION = st.one_of(
    st.tuples(st.just("payment"), STEPS, PAYMENT),
    st.tuples(st.just("payment"), STEPS, PAYMENT),
    st.tuples(st.just("many"), st.lists(st.tuples(STEPS, PAYMENT), min_size=1, max_size=6)),
    st.tuples(st.just("report"), REPORT_STEPS, REPORT),
    st.tuples(st.just("append"), STEPS, PAYMENT),
    st.tuples(st.just("retry")),
    st.tuples(st.sampled_from(("crash", "restart", "snapshot"))),
)


class Sent(NamedTuple):
    """An event that was taken, in the order, with the effective time that the design gives it."""

    topic: str
    time: datetime
    values: dict[str, Any]


class History:
    """What was sent so far, and what the design says of its times."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.newest: dict[str, datetime] = {}
        self.clock = NOON

    def next_time(self, step: float) -> datetime:
        moment = self.clock + timedelta(seconds=step)
        self.clock = max(self.clock, moment)
        return moment

    def take(self, topic: str, time: datetime, values: dict[str, Any]) -> bool:
        """Note an event; whether it is late."""
        lateness = timedelta(seconds=LATENESS_S if topic == "payments" else REPORT_LATENESS_S)
        newest = self.newest.get(topic)
        effective = time if newest is None else max(time, newest - lateness)
        self.newest[topic] = time if newest is None else max(newest, time)
        self.sent.append(Sent(topic, effective, values))
        return effective != time


def frame(history: list[Sent]) -> pl.DataFrame:
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "topic": pl.String, "time": pl.Datetime("us", "UTC"), "card": pl.String, "country": pl.String,
        "items": pl.Int64, "flag": pl.Boolean, "weight": pl.Float64, "amount": pl.Decimal(38, 2),
        "fee": pl.Decimal(38, 5), "seen_at": pl.Datetime("us", "UTC"), "loss": pl.Int64,
    }  # fmt: skip
    rows = [{"topic": each.topic, "time": each.time, **each.values} for each in history]
    return pl.DataFrame(rows, schema=schema).with_row_index("place")


def expected(table: pl.DataFrame, place: int, read: Read) -> Any:
    """One feature of the event at this place, by its definition, in Polars."""
    event = table.row(place, named=True)
    if any(event[name] is None for name in read.key):
        return None
    time = event["time"]
    high = time if read.delay is None else time - timedelta(seconds=SECONDS[read.delay])
    inside = (pl.col("topic") == read.topic) & (pl.col("time") <= high)
    if read.length is not None:
        inside &= pl.col("time") > high - timedelta(seconds=SECONDS[read.length])
    for name in read.key:
        inside &= pl.col(name) == event[name]
    own = pl.col("place") == place
    before = pl.col("place") < place
    behind = read.aggregate in ("lag", "since_last") or not read.current
    inside &= before if behind else before | own
    where = (WHERE if read.topic == "payments" else REPORT_WHERE)[read.where]
    # By time, and equal times by their place in the order; so the event itself is the last.
    rows = table.filter(inside & where.fill_null(False)).sort("time", "place")
    if read.aggregate == "count":
        return rows.height
    if read.aggregate == "since_last":
        return None if rows.is_empty() else (time - rows["time"][-1]) / timedelta(seconds=1)
    assert read.column is not None
    return aggregate(rows[read.column].drop_nulls(), read)


def aggregate(values: pl.Series, read: Read) -> Any:
    match read.aggregate:
        case "n_unique":
            return values.n_unique()
        case "first":
            return None if values.is_empty() else values[0]
        case "last":
            return None if values.is_empty() else values[-1]
        case "lag":
            return values[-read.n] if len(values) >= read.n else None
        case "min":
            return values.min()
        case "max":
            return values.max()
        case "sum":
            return None if values.is_empty() else values.sum()
        case "mean" if read.column == "weight":
            return values.mean()
        case "mean":
            return None if values.is_empty() else float(exact_sum(values) / len(values))
        case "var" | "std" if len(values) < 2:
            return None
        case "var" if read.column == "weight":
            return values.var()
        case "std" if read.column == "weight":
            return values.std()
        case "var":
            return float(exact_variance(values))
        case "std":
            return math.sqrt(exact_variance(values))
    raise AssertionError(read.aggregate)


def exact_sum(values: pl.Series) -> Fraction:
    return sum(map(Fraction, values), Fraction(0))


def exact_variance(values: pl.Series) -> Fraction:
    mean = exact_sum(values) / len(values)
    return sum(((Fraction(value) - mean) ** 2 for value in values), Fraction(0)) / (len(values) - 1)


def check(read: Read, given: Any, wanted: Any, table: pl.DataFrame) -> None:
    """Equal, but for sums of floats, which are so to 1e-9 of what was summed, and for the last bit of a root."""
    if wanted is None or given is None:
        assert given is None and wanted is None, read
        return
    if isinstance(wanted, Decimal):
        assert Decimal(given) == wanted, read
        return
    if isinstance(wanted, datetime):
        assert datetime.fromisoformat(given) == wanted, read
        return
    if read.aggregate == "std" and read.column != "weight":
        assert math.isclose(given, wanted, rel_tol=2**-52), (read, given, wanted)
        return
    if read.column == "weight" and read.aggregate in ("sum", "mean", "var", "std"):
        largest = max(abs(value) for value in table["weight"].drop_nulls())
        scale = largest * largest if read.aggregate == "var" else largest
        assert math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-9 * scale), (read, given, wanted)
        return
    assert given == wanted and type(given) is type(wanted), (read, given, wanted)


def pipeline_of(chosen: list[Read], folder: Path) -> ps.Pipeline:
    (folder / "rules.toml").write_text('default = "approve"\noutcomes = ["approve"]\n')
    pipeline = ps.Pipeline("generated")
    topics = {"payments": pipeline.topic("payments", Payment), "reports": pipeline.topic("reports", Report)}
    features = {f"f{index}": read.define(topics) for index, read in enumerate(chosen)}
    scored = topics["payments"].features(**features)
    pipeline.policy("authorise", scored, rules=folder / "rules.toml", fallback="approve")
    return pipeline


class Trial:
    """A service and what was sent to it."""

    def __init__(self, service: testing.Service, chosen: list[Read]) -> None:
        self.service = service
        self.reads = chosen
        self.history = History()
        self.numbers = itertools.count(1)
        self.told: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
        self.place_of: dict[str, int] = {}

    def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case ("payment", step, values):
                self.decide([(step, values)])
            case ("many", steps):
                self.decide(steps)
            case ("report", step, values):
                time = self.history.next_time(step)
                number = next(self.numbers)
                self.service.append("reports", [{"report_id": number, **values, "reported_at": time}])
                self.history.take("reports", time, values)
            case ("append", step, values):
                time = self.history.next_time(step)
                self.service.append("payments", [{"payment_id": f"p{next(self.numbers)}", **values, "paid_at": time}])
                self.history.take("payments", time, values)
            case ("retry",):
                for _, event, answer in self.told[-3:]:
                    assert self.service.decide("authorise", event) == answer
            case (moment,):
                getattr(self.service, moment)()

    def decide(self, steps: list[tuple[float, dict[str, Any]]]) -> None:
        events, late = [], []
        for step, values in steps:
            time = self.history.next_time(step)
            events.append({"payment_id": f"p{next(self.numbers)}", **values, "paid_at": time})
            late.append(self.history.take("payments", time, values))
        places = range(len(self.history.sent) - len(steps), len(self.history.sent))
        if len(events) == 1:
            answers = [self.service.decide("authorise", events[0])]
        else:
            answers = self.service.decide_many("authorise", events)
        for place, event, was_late, answer in zip(places, events, late, answers, strict=True):
            assert answer.get("late", False) is was_late
            self.told.append((place, event, answer))

    def check(self) -> None:
        table = frame(self.history.sent)
        for place, _, answer in self.told:
            for index, read in enumerate(self.reads):
                check(read, answer["features"][f"f{index}"], expected(table, place, read), table)
        for place, event, answer in self.told[-2:]:
            found = self.service.look_up("authorise", event["payment_id"])
            told = {name: value for name, value in answer.items() if name != "took_ms"}
            assert found == {**told, "late_decision": None}, place


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(reads(), min_size=1, max_size=8, unique=True), st.lists(ACTION, min_size=10, max_size=40))
def test_every_feature_of_every_decision_is_what_its_definition_gives(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[Read], actions: list[tuple[Any, ...]]
) -> None:
    run_trial(tmp_path_factory.getbasetemp(), chosen, actions)


def run_trial(folder: Path, chosen: list[Read], actions: list[tuple[Any, ...]]) -> None:
    with testing.run(pipeline_of(chosen, folder), now=NOON) as service:
        trial = Trial(service, chosen)
        for action in actions:
            trial.act(action)
        trial.check()


def every_read() -> Iterator[Read]:
    """Each aggregate over each column, with the other choices going round."""
    turns = itertools.cycle(
        itertools.product(KEYS, (True, False), list(WHERE), LENGTHS, DELAYS)
    )
    for aggregate, columns in {"count": (None,), "since_last": (None,), **BY_COLUMN}.items():
        for column in columns:
            key, current, where, length, delay = next(itertools.islice(turns, 7, None))
            n = 2 if aggregate == "lag" else 0
            yield Read("payments", key, length, delay, current, aggregate, column, n, where)
    for key, length, delay in itertools.product((("card",), ("card", "country")), LENGTHS, (None, "1s")):
        yield Read("reports", key, length, delay, True, "count", None, 0, None)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ACTION, min_size=30, max_size=60))
def test_all_aggregates_together_over_one_stream_are_what_their_definitions_give(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[Any, ...]]
) -> None:
    run_trial(tmp_path_factory.getbasetemp(), list(every_read()), actions)
