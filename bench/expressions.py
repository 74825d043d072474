"""The evaluator alone: twenty rules and derived features, on a single event and on a million."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from bench.measure import repeat
from bench.report import Figure, Section
from penstock import _native
from penstock.process.expressions import parse_expression
from penstock.schema import Field, Type

REPEATS = 5
SINGLE_TIMES = 20_000
MANY_ROWS = 1_000_000
MANY_BATCH = 65_536

COLUMNS: dict[str, tuple[Type, Any]] = {
    "amount": (Type("decimal", 12, 2), Decimal("125.50")),
    "country": (Type("text"), "DE"),
    "paid_at": (Type("timestamp"), datetime(2026, 11, 1, 9, 30, tzinfo=UTC)),
    "card_count_1h": (Type("int64"), 3),
    "card_mean_30d": (Type("float64"), 41.7),
    "card_countries_1d": (Type("int64"), 2),
    "card_idle": (Type("float64"), 5_400.0),
    "terminal_count_7d": (Type("int64"), 211),
    "terminal_big_7d": (Type("int64"), 4),
    "terminal_reports_30d": (Type("int64"), 0),
    "score": (Type("float64"), 0.31),
}

EXPRESSIONS = (
    "amount > 220",
    "amount > 4 * card_mean_30d and coalesce(score, 0) > 0.2",
    "amount > 2.5 * card_mean_30d and card_count_1h >= 10",
    "amount < 3 and terminal_reports_30d = 0",
    "terminal_reports_30d >= 3",
    "coalesce(score, 0) > 0.9",
    "coalesce(score, 0) > 0.5",
    "card_count_1h >= 5",
    "card_countries_1d >= 3 and amount > 150",
    "card_idle > 14 * 86400 and amount > 150",
    "coalesce(terminal_big_7d / nullif(terminal_count_7d, 0), 0)",
    "terminal_big_7d >= 0.25 * terminal_count_7d and terminal_count_7d >= 4",
    "case when extract(dow from paid_at) in (0, 6) then 1 else 0 end",
    "case when extract(hour from paid_at) <= 6 then 1 else 0 end",
    "country in ('DE', 'AT', 'CH')",
    "country is null or not starts_with(upper(country), 'D')",
    "amount between 100 and 200 and card_countries_1d > 1",
    "ln(1 + amount) * coalesce(score, 0)",
    "round(amount / greatest(card_mean_30d, 1), 2)",
    "abs(amount - card_mean_30d) > 3 * sqrt(card_mean_30d)",
)


def measure_expressions(scale: float = 1.0) -> Section:
    single = repeat(REPEATS, lambda: microseconds(batch_of(1), SINGLE_TIMES))
    one = repeat(REPEATS, lambda: microseconds(batch_of(1), SINGLE_TIMES, EXPRESSIONS[:1]))
    rows = round(MANY_ROWS * scale) // MANY_BATCH + 1
    many = repeat(REPEATS, lambda: MANY_BATCH / microseconds(batch_of(MANY_BATCH), rows) * 1e6)
    figures = [
        Figure(
            f"{len(EXPRESSIONS)} expressions on a single event, µs",
            single.text(1),
            f"{one.median:.1f} for one expression: most of it the way from pyarrow and back",
            "≤ 30",
            single.median <= 30,
        ),
        Figure(f"the same, in batches of {MANY_BATCH:,}, one thread, events/s", many.text()),
    ]
    return Section("Expressions", NOTES, figures)


NOTES = """\
Twenty rules and derived features as the examples have them, in `penstock._native.Evaluator`: the
batch crosses from pyarrow to the core and the results come back, which the gate does without."""


def microseconds(batch: pa.RecordBatch, times: int, texts: Sequence[str] = EXPRESSIONS) -> float:
    """How long the evaluation of a batch takes, on average."""
    evaluate = evaluator(texts).evaluate
    start = time.perf_counter()
    for _ in range(times):
        evaluate(batch)
    return (time.perf_counter() - start) / times * 1e6


def evaluator(texts: Sequence[str]) -> _native.Evaluator:
    types = {name: kind for name, (kind, _) in COLUMNS.items()}
    plans = [
        (f"e{place}", parse_expression(text, types, subject="bench").plan)
        for place, text in enumerate(texts)
    ]
    fields = [Field(name, kind, True).to_json() for name, kind in types.items()]
    return _native.Evaluator(json.dumps(plans), json.dumps(fields))


def batch_of(rows: int) -> pa.RecordBatch:
    columns = {
        name: pa.array([value] * rows, kind.to_arrow()) for name, (kind, value) in COLUMNS.items()
    }
    return pa.record_batch(columns)
