"""Event classes: what a user declares about the events of a topic.

    class Payment(ps.Event):
        payment_id: str = ps.id(retain="24h")
        card: str
        amount: Decimal = ps.decimal(12, 2)
        paid_at: datetime = ps.event_time(lateness="1h", ahead="10m")

The class is a declaration: it is read once into an `EventSchema` and never instantiated on a data path.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from penstock.clock import duration_us
from penstock.errors import DefinitionError
from penstock.schema import BOOL, FLOAT64, INT64, TEXT, TIMESTAMP, Field, Type, decimal_type


@dataclass(frozen=True)
class EventSchema:
    """The fields of an event class, and the two with a meaning of their own.

    `id` and `time` are names of fields; lengths of time are in microseconds.
    """

    name: str
    fields: tuple[Field, ...]
    id: str
    time: str
    retain_us: int
    lateness_us: int
    ahead_us: int

    @property
    def types(self) -> dict[str, Type]:
        return {field.name: field.type for field in self.fields}


class Event:
    """Base of event classes. Fields are annotations: `str`, `int`, `float`, `bool`, `datetime`, `Decimal`, `X | None`.

    Exactly one field is `ps.id()`, of `str` or `int`, and exactly one is `ps.event_time()`, a `datetime`. A `Decimal`
    says its digits with `ps.decimal(precision, scale)`. A field `X | None` is optional: it may be null or absent.

    Raises `DefinitionError` where the class is defined.
    """

    schema: ClassVar[EventSchema]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.schema = _read_schema(cls)


def id(*, retain: str = "24h") -> Any:
    """The field that names an event: the same id again within `retain` (of commit time) is the same event."""
    return _Id(duration_us(retain, subject="id(retain=…)"))


def event_time(*, lateness: str = "1h", ahead: str = "10m") -> Any:
    """The field that says when an event happened.

    An event more than `lateness` behind the newest of its topic is moved up to that limit and flagged late; one more
    than `ahead` past the clock of the gate is refused.
    """
    return _EventTime(
        duration_us(lateness, subject="event_time(lateness=…)"),
        duration_us(ahead, subject="event_time(ahead=…)"),
    )


def decimal(precision: int, scale: int) -> Any:
    """An exact decimal of `precision` digits (1 to 38), `scale` of them (0 to `precision`) after the point."""
    if not (1 <= precision <= 38 and 0 <= scale <= precision):
        raise DefinitionError(
            f"decimal({precision}, {scale}) does not exist",
            hint="precision is 1 to 38, scale 0 to precision",
        )
    return _Decimal(precision, scale)


@dataclass(frozen=True)
class _Id:
    retain_us: int


@dataclass(frozen=True)
class _EventTime:
    lateness_us: int
    ahead_us: int


@dataclass(frozen=True)
class _Decimal:
    precision: int
    scale: int


_PLAIN = {str: TEXT, int: INT64, float: FLOAT64, bool: BOOL, datetime: TIMESTAMP}


def _read_schema(cls: type[Event]) -> EventSchema:
    hints = typing.get_type_hints(cls)
    hints.pop("schema", None)
    fields = tuple(_read_field(cls, name, hint) for name, hint in hints.items())
    id_name = _only_one(cls, hints, _Id, "ps.id()")
    time_name = _only_one(cls, hints, _EventTime, "ps.event_time()")
    by_name = {field.name: field for field in fields}
    _check_role(cls, by_name[id_name], (TEXT, INT64), "ps.id()", "str or int")
    _check_role(cls, by_name[time_name], (TIMESTAMP,), "ps.event_time()", "datetime")
    time: _EventTime = getattr(cls, time_name)
    return EventSchema(
        name=cls.__name__,
        fields=fields,
        id=id_name,
        time=time_name,
        retain_us=getattr(cls, id_name).retain_us,
        lateness_us=time.lateness_us,
        ahead_us=time.ahead_us,
    )


def _read_field(cls: type[Event], name: str, hint: Any) -> Field:
    subject = f"{cls.__name__}.{name}"
    if name.startswith("_"):
        raise DefinitionError(f"{subject}: a field's name does not begin with an underscore")
    hint, optional = _split_optional(hint)
    default = getattr(cls, name, None)
    if hint is Decimal:
        if not isinstance(default, _Decimal):
            raise DefinitionError(
                f"{subject} is a Decimal without digits", hint=f"write {name}: Decimal = ps.decimal(12, 2)"
            )
        return Field(name, decimal_type(default.precision, default.scale), optional)
    if hint not in _PLAIN:
        raise DefinitionError(
            f"{subject} has a type that events cannot hold",
            hint="fields are str, int, float, bool, datetime, Decimal, or one of these | None",
        )
    if default is not None and not isinstance(default, _Id | _EventTime):
        raise DefinitionError(
            f"{subject} has a default value, which fields cannot have", hint="make it optional: X | None"
        )
    return Field(name, _PLAIN[hint], optional)


def _split_optional(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arguments = [each for each in typing.get_args(hint) if each is not type(None)]
        if len(arguments) == 1:
            return arguments[0], True
    return hint, False


def _only_one(cls: type[Event], hints: dict[str, Any], role: type, word: str) -> str:
    names = [name for name in hints if isinstance(getattr(cls, name, None), role)]
    if len(names) != 1:
        found = "none" if not names else " and ".join(names)
        raise DefinitionError(f"{cls.__name__} needs exactly one field with {word}, and has {found}")
    return names[0]


def _check_role(
    cls: type[Event], field: Field, allowed: tuple[Type, ...], word: str, wanted: str
) -> None:
    if field.type not in allowed or field.optional:
        raise DefinitionError(f"{cls.__name__}.{field.name} is {word} and must be {wanted}, not optional")
