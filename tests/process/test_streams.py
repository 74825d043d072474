"""What a pipeline cannot say is refused where it is said, with what could be meant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

import penstock as ps
from penstock.errors import DefinitionError
from penstock.process.streams import Topic
from penstock.runtime.plan import compile_plan


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str
    shop: int
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time()


class Report(ps.Event):
    report_id: str = ps.id()
    shop: str
    reported_at: datetime = ps.event_time()


class Scored(ps.Event):
    key: str = ps.id()
    score: float
    at: datetime = ps.event_time()


class Said:
    """A pipeline that is being written."""

    def __init__(self) -> None:
        self.pipeline = ps.Pipeline("cards")
        self.payments = self.pipeline.topic("payments", Payment)
        self.reports = self.pipeline.topic("reports", Report)
        self.card = self.payments.by("card")


def compiled(said: Said) -> object:
    return compile_plan(said.pipeline)


REFUSED: dict[str, tuple[Callable[[Said], object], str, str | None]] = {
    "no key": (lambda said: said.payments.by(), "by() needs at least one field", None),
    "a key twice": (lambda said: said.payments.by("card", "card"), "by() names a field twice", None),
    "an unknown key": (lambda said: said.payments.by("crad"), 'Payment has no field "crad"', 'did you mean "card"?'),
    "no length": (lambda said: said.card.past("0s"), "a window of no length is always empty", None),
    "a length in words": (lambda said: said.card.past("an hour"), "is not a length of time", "write a whole number"),
    "an unknown column": (lambda said: said.card.past("1h").sum("amuont"), 'no field "amuont"', '"amount"?'),
    "a sum of text": (lambda said: said.card.past("1h").sum("card"), 'sum("card") needs a number', None),
    "a lag of nothing": (lambda said: said.card.past("1h").lag("card", 0), "n is 1 to 10,000", None),
    "no aggregate": (
        lambda said: said.payments.features(n=said.card.past("1h")),  # type: ignore[arg-type]
        'feature "n" is not an aggregate over a window',
        ".count()",
    ),
    "a field's name": (
        lambda said: said.payments.features(card=said.card.past("1h").count()),
        'feature "card" has the name of a field of Payment',
        None,
    ),
    "a reserved name": (
        lambda said: said.payments.features(outcome=said.card.past("1h").count()),
        'feature "outcome" has a reserved name',
        "timed_out",
    ),
    "a key of another type": (
        lambda said: said.payments.features(n=said.reports.by("shop").past("1h").count()),
        'the key "shop" has another type in topic "reports"',
        None,
    ),
    "a key that is not there": (
        lambda said: said.reports.features(n=said.card.past("1h").count()), 'Report has no field "card"', None,
    ),
    "a derived name twice": (
        lambda said: said.payments.features(n=said.card.past("1h").count()).derive(n="1"),
        'but a feature has that name already',
        None,
    ),
    "a wrong derived expression": (
        lambda said: (said.payments.features(n=said.card.past("1h").count()).derive(m="n + k"), compiled(said)),
        'derived feature "m": there is no column "k"',
        None,
    ),
    "a wrong filter": (
        lambda said: (said.payments.features(n=said.card.past("1h").count(where="amount")), compiled(said)),
        'feature "n", where: this is decimal',
        None,
    ),
    "a filter over a feature": (
        lambda said: (
            said.payments.features(n=said.card.past("1h").count(), m=said.card.past("1h").count(where="n > 1")),
            compiled(said),
        ),
        'feature "m", where: there is no column "n"',
        None,
    ),
    "a topic twice": (lambda said: said.pipeline.topic("payments", Payment), 'has a topic "payments" already', None),
    "a topic's name": (lambda said: said.pipeline.topic("a.b", Payment), "a topic cannot have the name", "letters"),
    "no class": (lambda said: said.pipeline.topic("x", dict), "needs a class of events", None),  # type: ignore[arg-type]
    "a model's version": (lambda said: said.pipeline.model(version=""), "a model needs a version", None),
    "another pipeline's topic": (
        lambda said: said.pipeline.policy("p", Topic("payments", Payment.schema), rules="r.toml", fallback="a"),
        "another pipeline's topic",
        None,
    ),
    "another pipeline's feature": (
        lambda said: (
            said.payments.features(n=ps.Pipeline("b").topic("b", Payment).by("card").past("1h").count()),
            compiled(said),
        ),
        'topic "b" belongs to another pipeline',
        None,
    ),
    "no model": (
        lambda said: said.pipeline.policy(
            "p", said.payments, rules="r.toml", fallback="a", score=lambda batch: batch["amount"]  # type: ignore[arg-type]
        ),
        "score is not a model of this pipeline",
        "@pipeline.model",
    ),
    "too short a deadline": (
        lambda said: said.pipeline.policy("p", said.payments, rules="r.toml", fallback="a", within="900us"),
        "within is at least 1ms",
        None,
    ),
    "another overload": (
        lambda said: said.pipeline.policy(
            "p", said.payments, rules="r.toml", fallback="a", on_overload="drop"  # type: ignore[arg-type]
        ),
        'on_overload is "refuse" or "fallback"',
        None,
    ),
    "another full disk": (
        lambda said: said.pipeline.policy(
            "p", said.payments, rules="r.toml", fallback="a", on_full="drop"  # type: ignore[arg-type]
        ),
        'on_full is "refuse" or "fallback"',
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_with_what_could_be(case: str) -> None:
    say, message, hint = REFUSED[case]
    with pytest.raises(DefinitionError) as refused:
        say(Said())
    assert message in str(refused.value)
    assert hint is None or (refused.value.hint and hint in refused.value.hint)


def test_a_field_named_score_would_hide_the_model_s(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('default = "a"\noutcomes = ["a"]\n')
    pipeline = ps.Pipeline("scored")
    pipeline.policy("p", pipeline.topic("events", Scored), rules=tmp_path / "rules.toml", fallback="a")
    with pytest.raises(DefinitionError, match='a field named "score"'):
        compile_plan(pipeline)


def test_a_policy_and_a_model_have_their_names_once(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('default = "a"\noutcomes = ["a"]\n')
    said = Said()

    def risk(batch: pl.DataFrame) -> pl.Series:
        return batch["amount"]

    said.pipeline.model(version="1")(risk)
    with pytest.raises(DefinitionError, match='has a model "risk" already'):
        said.pipeline.model(version="2")(risk)
    said.pipeline.policy("p", said.payments, rules=tmp_path / "rules.toml", fallback="a")
    with pytest.raises(DefinitionError, match='has a policy "p" already'):
        said.pipeline.policy("p", said.payments, rules=tmp_path / "rules.toml", fallback="a")
