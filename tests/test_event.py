"""What an event class says, and what it cannot say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import penstock as ps
from penstock.errors import DefinitionError, PenstockError


class Payment(ps.Event):
    payment_id: int = ps.id(retain="2d")
    text: str
    number: float | None
    whole: int | None
    flag: bool
    amount: Decimal = ps.decimal(12, 2)
    fee: Decimal | None = ps.decimal(38, 38)
    seen_at: datetime | None
    paid_at: datetime = ps.event_time(lateness="30m", ahead="5s")


def test_a_class_is_an_arrow_schema_of_its_fields_in_order() -> None:
    schema = pa.schema([pa.field(each.name, each.type.to_arrow(), each.optional) for each in Payment.schema.fields])
    time = pa.timestamp("us", tz="UTC")
    assert schema == pa.schema(
        [
            pa.field("payment_id", pa.int64(), False),
            pa.field("text", pa.string(), False),
            pa.field("number", pa.float64(), True),
            pa.field("whole", pa.int64(), True),
            pa.field("flag", pa.bool_(), False),
            pa.field("amount", pa.decimal128(12, 2), False),
            pa.field("fee", pa.decimal128(38, 38), True),
            pa.field("seen_at", time, True),
            pa.field("paid_at", time, False),
        ]
    )
    assert (Payment.schema.id, Payment.schema.time) == ("payment_id", "paid_at")
    lengths = (Payment.schema.retain_us, Payment.schema.lateness_us, Payment.schema.ahead_us)
    assert lengths == (172_800_000_000, 1_800_000_000, 5_000_000)


def test_lengths_have_the_design_s_defaults() -> None:
    class Plain(ps.Event):
        key: str = ps.id()
        at: datetime = ps.event_time()

    lengths = (Plain.schema.retain_us, Plain.schema.lateness_us, Plain.schema.ahead_us)
    assert lengths == (86_400_000_000, 3_600_000_000, 600_000_000)


def define(**annotations: Any) -> Callable[[], object]:
    """A class with an id, a time and these fields: a type, or a type and its value."""

    def make() -> object:
        fields = {"key": (str, ps.id()), "at": (datetime, ps.event_time()), **annotations}
        pairs = {name: each if isinstance(each, tuple) else (each,) for name, each in fields.items() if each}
        values = {name: pair[1] for name, pair in pairs.items() if len(pair) > 1}
        hints = {name: pair[0] for name, pair in pairs.items()}
        return type("Made", (ps.Event,), {**values, "__annotations__": hints, "__module__": __name__})

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (define(key=None), "Made needs exactly one field with ps.id(), and has none"),
        (define(other=(str, ps.id())), "needs exactly one field with ps.id(), and has key and other"),
        (define(at=None), "needs exactly one field with ps.event_time(), and has none"),
        (define(then=(datetime, ps.event_time())), "and has at and then"),
        (define(key=(float, ps.id())), "Made.key is ps.id() and must be str or int, not optional"),
        (define(key=(str | None, ps.id())), "Made.key is ps.id() and must be str or int, not optional"),
        (define(at=(int, ps.event_time())), "Made.at is ps.event_time() and must be datetime, not optional"),
        (define(amount=Decimal), "Made.amount is a Decimal without digits"),
        (define(tags=list[str]), "Made.tags has a type that events cannot hold"),
        (define(both=str | int), "Made.both has a type that events cannot hold"),
        (define(raw=bytes), "Made.raw has a type that events cannot hold"),
        (define(country=(str, "DE")), "Made.country has a default value"),
        (define(_hidden=str), "a field's name does not begin with an underscore"),
    ],
)
def test_a_class_that_cannot_be_meant_is_refused_where_it_is_defined(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(DefinitionError) as refused:
        make()
    assert message in refused.value.message


@pytest.mark.parametrize(
    "make",
    [
        lambda: ps.decimal(0, 0),
        lambda: ps.decimal(39, 2),
        lambda: ps.decimal(5, 6),
        lambda: ps.decimal(5, -1),
        lambda: ps.id(retain="a day"),
        lambda: ps.event_time(lateness="-1h"),
        lambda: ps.event_time(ahead="2000y"),
    ],
)
def test_numbers_and_lengths_that_do_not_exist_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(PenstockError):
        make()
