"""Topics, keys, windows and features: the part of a pipeline that says what is remembered.

One order everywhere: `topic.by("card")`, then `.past("30d")`, then an aggregate. Each call returns a frozen value that
says what is meant; nothing runs before the pipeline is compiled into a plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from penstock.clock import duration_us
from penstock.errors import DefinitionError
from penstock.event import EventSchema
from penstock.schema import FLOAT64, INT64, Type, decimal_type

Aggregate = Literal[
    "count", "sum", "mean", "min", "max", "std", "var", "n_unique", "first", "last", "lag", "since_last"
]

# What an answer says beside the features; a feature with such a name would be ambiguous in every table of decisions.
RESERVED = frozenset(
    ("id", "offset", "outcome", "reasons", "score", "features", "policy_version", "cause", "late")
    + ("timed_out", "took_ms", "late_decision", "error")
)


@dataclass(frozen=True)
class Topic:
    """A named stream of events of one class, in the order in which the log holds them."""

    name: str
    schema: EventSchema
    # Whether events that its door rejects are kept.
    dead_letters: bool = True
    # The sets defined on this topic, so that a pipeline without a policy can compute them too.
    feature_sets: list[FeatureSet] = dataclasses.field(default_factory=list, compare=False, repr=False)

    def by(self, *fields: str) -> Keyed:
        """The topic's events grouped by one or several fields: an entity. Events with a null there belong to none."""
        if not fields:
            raise DefinitionError(f'topic "{self.name}": by() needs at least one field')
        for field in fields:
            self.field_type(field, subject=f'topic "{self.name}", by()')
        if len(set(fields)) != len(fields):
            raise DefinitionError(f'topic "{self.name}": by() names a field twice')
        return Keyed(self, fields)

    def features(self, **features: Feature) -> FeatureSet:
        """Columns that are added to each event of this topic, each an aggregate over a window.

        Features may come from other topics, where these have fields of the same names and types as keys.

        Raises `DefinitionError` for a name that is taken or a key that this topic does not have.
        """
        for name, feature in features.items():
            _check_name(self, name)
            if not isinstance(feature, Feature):
                raise DefinitionError(
                    f'feature "{name}" is not an aggregate over a window',
                    hint=f'write for example {name} = topic.by("card").past("1h").count()',
                )
            _check_key(self, name, feature.window.keyed)
        return _register(FeatureSet(self, dict(features), {}))

    def field_type(self, name: str, *, subject: str) -> Type:
        types = self.schema.types
        if name not in types:
            close = get_close_matches(name, types, 1)
            hint = f'did you mean "{close[0]}"?' if close else "there are: " + ", ".join(types)
            raise DefinitionError(f'{subject}: {self.schema.name} has no field "{name}"', hint=hint)
        return types[name]


@dataclass(frozen=True)
class Keyed:
    """The events of a topic, grouped by key."""

    topic: Topic
    key: tuple[str, ...]

    def past(
        self, length: str | None, *, delay: str | None = None, include_current: bool = True
    ) -> Window:
        """The sliding window (t - delay - length, t - delay] at an event of time t; `None` is everything so far.

        It holds the events of the same key, earlier in the order, and without a delay the event itself, unless
        `include_current` is false.
        """
        subject = f'topic "{self.topic.name}", past()'
        length_us = None if length is None else duration_us(length, subject=subject)
        delay_us = 0 if delay is None else duration_us(delay, subject=subject)
        if length_us == 0:
            raise DefinitionError(f"{subject}: a window of no length is always empty")
        return Window(self, length_us, delay_us, include_current)


@dataclass(frozen=True)
class Window:
    """A sliding window over one entity's events; its methods are the aggregates. All of them skip nulls."""

    keyed: Keyed
    length_us: int | None
    delay_us: int
    include_current: bool

    def count(self, *, where: str | None = None) -> Feature:
        """How many events (int64)."""
        return self._feature("count", None, where, INT64)

    def sum(self, field: str, *, where: str | None = None) -> Feature:
        """The exact sum of an int or decimal field; of a float field to 1e-12 of the window's absolute sum."""
        kind = self._numeric("sum", field)
        return self._feature("sum", field, where, decimal_type(38, kind.scale) if kind.kind == "decimal" else kind)

    def mean(self, field: str, *, where: str | None = None) -> Feature:
        """The mean (float64), from the exact sum, rounded once."""
        self._numeric("mean", field)
        return self._feature("mean", field, where, FLOAT64)

    def std(self, field: str, *, where: str | None = None) -> Feature:
        """The sample standard deviation (float64); null below two values."""
        self._numeric("std", field)
        return self._feature("std", field, where, FLOAT64)

    def var(self, field: str, *, where: str | None = None) -> Feature:
        """The sample variance (float64); null below two values."""
        self._numeric("var", field)
        return self._feature("var", field, where, FLOAT64)

    def min(self, field: str, *, where: str | None = None) -> Feature:
        """The smallest value."""
        return self._feature("min", field, where, self._type("min", field))

    def max(self, field: str, *, where: str | None = None) -> Feature:
        """The greatest value."""
        return self._feature("max", field, where, self._type("max", field))

    def n_unique(self, field: str, *, where: str | None = None) -> Feature:
        """How many different values (int64), exactly."""
        self._type("n_unique", field)
        return self._feature("n_unique", field, where, INT64)

    def first(self, field: str, *, where: str | None = None) -> Feature:
        """The earliest value."""
        return self._feature("first", field, where, self._type("first", field))

    def last(self, field: str, *, where: str | None = None) -> Feature:
        """The latest value."""
        return self._feature("last", field, where, self._type("last", field))

    def lag(self, field: str, n: int = 1, *, where: str | None = None) -> Feature:
        """The n-th latest value of the events before the current one."""
        if not 1 <= n <= 10_000:
            raise DefinitionError(f'lag("{field}", {n}): n is 1 to 10,000')
        return self._feature("lag", field, where, self._type("lag", field), n)

    def since_last(self, *, where: str | None = None) -> Feature:
        """Seconds (float64) since the latest event before the current one; null where there is none."""
        return self._feature("since_last", None, where, FLOAT64)

    def _feature(
        self, aggregate: Aggregate, field: str | None, where: str | None, kind: Type, n: int = 0
    ) -> Feature:
        return Feature(self, aggregate, field, where, n, kind)

    def _type(self, aggregate: str, field: str) -> Type:
        topic = self.keyed.topic
        return topic.field_type(field, subject=f'topic "{topic.name}", {aggregate}()')

    def _numeric(self, aggregate: str, field: str) -> Type:
        kind = self._type(aggregate, field)
        if not kind.numeric:
            raise DefinitionError(f'{aggregate}("{field}") needs a number, and "{field}" is {kind}')
        return kind


@dataclass(frozen=True)
class Feature:
    """One aggregate over one window; `type` is what it gives."""

    window: Window
    aggregate: Aggregate
    field: str | None
    where: str | None
    n: int
    type: Type


@dataclass(frozen=True)
class FeatureSet:
    """A topic's events with the features that are computed for each of them."""

    topic: Topic
    aggregates: Mapping[str, Feature]
    derived: Mapping[str, str]

    def derive(self, **expressions: str) -> FeatureSet:
        """More columns, each a SQL expression over fields, features and columns derived before it."""
        for name, text in expressions.items():
            _check_name(self.topic, name)
            if name in self.aggregates or name in self.derived:
                raise DefinitionError(f'"{name}" is derived, but a feature has that name already')
            if not isinstance(text, str):
                raise DefinitionError(f'derived feature "{name}" is not SQL text')
        self.topic.feature_sets[:] = [each for each in self.topic.feature_sets if each is not self]
        return _register(FeatureSet(self.topic, self.aggregates, {**self.derived, **expressions}))


def _register(feature_set: FeatureSet) -> FeatureSet:
    feature_set.topic.feature_sets.append(feature_set)
    return feature_set


def _check_name(topic: Topic, name: str) -> None:
    if name in topic.schema.types:
        raise DefinitionError(f'feature "{name}" has the name of a field of {topic.schema.name}')
    if name.lower() in RESERVED or name.startswith("_"):
        raise DefinitionError(
            f'feature "{name}" has a reserved name',
            hint="reserved are names that begin with an underscore, and " + ", ".join(sorted(RESERVED)),
        )


def _check_key(topic: Topic, name: str, keyed: Keyed) -> None:
    for field in keyed.key:
        subject = f'topic "{topic.name}", feature "{name}"'
        if topic.field_type(field, subject=subject) != keyed.topic.schema.types[field]:
            raise DefinitionError(
                f'{subject}: the key "{field}" has another type in topic "{keyed.topic.name}"'
            )
