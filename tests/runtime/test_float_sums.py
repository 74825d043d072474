"""Sums of floats of every size, through the gate, against fractions: exact inside, rounded once.

Values enter and leave windows, are freed from one that reaches back to the beginning, and the service stops in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock import testing

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
WINDOWS = {"3s": 3, None: 1000}
AGGREGATES = ("sum", "mean", "var", "std")


class Sample(ps.Event):
    sample_id: str = ps.id()
    key: str
    value: float
    at: datetime = ps.event_time(lateness="1s", ahead="1000d")


def powers(least: int, most: int) -> st.SearchStrategy[float]:
    signs = st.sampled_from((1.0, -1.0))
    return st.tuples(signs, st.integers(least, most)).map(lambda pair: math.ldexp(*pair))


# Near the ends of what a sum keeps at hand (2^-96 to 2^62), of its squares (2^-80 to 2^31), and of all floats.
VALUE = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    powers(28, 34),
    powers(56, 66),
    powers(90, 96),
    powers(-100, -60),
    powers(-1074, 1023),
    st.sampled_from((1.7976931348623157e308, -1.7976931348623157e308, 5e-324, 0.0)),
)
SECONDS = st.sampled_from((0, 1, 1, 2, 5))
ACTION = st.one_of(
    st.tuples(SECONDS, VALUE),
    st.tuples(SECONDS, VALUE),
    st.tuples(SECONDS, VALUE),
    st.sampled_from(("crash", "restart", "snapshot")),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@example([(0, 2.0**95), (0, 2.0**32), (5, 0.0), "snapshot", "crash", (5, 1.0)])
@example([(0, -(2.0**95)), (0, -(2.0**32)), (5, 0.0), (5, 0.0), "snapshot", "crash", (5, 1.0)])
@given(st.lists(ACTION, min_size=3, max_size=20))
def test_every_moment_of_floats_is_the_exact_one_rounded_once(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Any]
) -> None:
    with testing.run(pipeline_of(tmp_path_factory.getbasetemp()), now=NOON) as service:
        sent: list[tuple[int, float]] = []
        now = 0
        for action in actions:
            if isinstance(action, str):
                getattr(service, action)()
                continue
            now += action[0]
            sent.append((now, action[1]))
            check(service, sent)


def check(service: testing.Service, sent: list[tuple[int, float]]) -> None:
    now, value = sent[-1]
    event = {"sample_id": str(len(sent)), "key": "a", "value": value, "at": NOON + timedelta(seconds=now)}
    features = service.decide("authorise", event)["features"]
    for window, seconds in WINDOWS.items():
        values = [Fraction(value) for at, value in sent if at > now - seconds]
        for aggregate in AGGREGATES:
            given, wanted = features[name_of(aggregate, window)], moment(aggregate, values)
            if aggregate == "std" and given is not None and wanted is not None:
                assert math.isclose(given, wanted, rel_tol=2**-52, abs_tol=5e-324), (aggregate, window, sent)
            else:
                assert given == wanted, (aggregate, window, sent)


def moment(aggregate: str, values: list[Fraction]) -> float | None:
    total, count = sum(values, Fraction(0)), len(values)
    if aggregate == "sum":
        return rounded(lambda: float(total))
    if aggregate == "mean":
        return rounded(lambda: float(total / count))
    if count < 2:
        return None
    variance = sum(((value - total / count) ** 2 for value in values), Fraction(0)) / (count - 1)
    return rounded(lambda: float(variance) if aggregate == "var" else root(variance))


def rounded(value: Callable[[], float]) -> float | None:
    """A float, or null where it would be an infinity."""
    try:
        return value()
    except OverflowError:
        return None


def root(value: Fraction) -> float:
    """Its root, from an integer with 200 bits or more."""
    shift = 2400
    return float(Fraction(math.isqrt((value.numerator << shift) // value.denominator), 1 << shift // 2))


def name_of(aggregate: str, window: str | None) -> str:
    return f"{aggregate}_{window or 'all'}"


def pipeline_of(folder: Path) -> ps.Pipeline:
    (folder / "rules.toml").write_text('default = "approve"\noutcomes = ["approve"]\n')
    pipeline = ps.Pipeline("samples")
    samples = pipeline.topic("samples", Sample)
    key = samples.by("key")
    features = {
        name_of(aggregate, window): getattr(key.past(window), aggregate)("value")
        for window in WINDOWS
        for aggregate in AGGREGATES
    }
    scored = samples.features(**features)
    pipeline.policy("authorise", scored, rules=folder / "rules.toml", within="30s", fallback="approve")
    return pipeline
