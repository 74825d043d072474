"""Compile a pipeline into the plan that the core runs: one JSON document, every name resolved and every type known.

    pipeline ─▶ topics ─▶ stores (what is remembered, by source and key) ─▶ features ─▶ policies

Features with the same source and key share one store, and features that mean the same share one read of it. Those
that reach back to the beginning have stores of their own, one for each delay: what such a store has counted and freed
can then stay when other windows change.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penstock.decide.policy import Policy
from penstock.decide.rules import Rules, read_rules
from penstock.errors import DefinitionError
from penstock.process.expressions import parse_expression
from penstock.process.streams import Feature, FeatureSet, Topic
from penstock.runtime.pipeline import Pipeline
from penstock.schema import BOOL, FLOAT64, Type

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The compiled pipeline: `document` is what the core reads; the rest is for those who join the stages."""

    pipeline: Pipeline
    document: dict[str, Any]
    warnings: tuple[str, ...] = ()
    """What may be meant, but hardly is."""

    def to_json(self) -> str:
        return json.dumps(self.document, separators=(",", ":"))

    def topic_index(self, name: str) -> int:
        return _index(self.document["topics"], "topic", name)

    def policy_index(self, name: str) -> int:
        return _index(self.document["policies"], "policy", name)


def compile_plan(pipeline: Pipeline) -> Plan:
    """Check everything that a pipeline says and lay it out for the core.

    Raises `DefinitionError`.
    """
    compiler = _Compiler(pipeline)
    document = compiler.document()
    return Plan(pipeline, document, tuple(compiler.warnings))


def _index(entries: list[dict[str, Any]], what: str, name: str) -> int:
    for index, entry in enumerate(entries):
        if entry["name"] == name:
            return index
    names = ", ".join(entry["name"] for entry in entries) or "none"
    raise DefinitionError(f'the pipeline has no {what} "{name}"', hint=f"there are: {names}")


@dataclass
class _Store:
    """What is remembered of one topic by one key, while it is being put together."""

    source: int
    topic: Topic
    key: tuple[str, ...]
    endless_delay_us: int | None
    columns: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    filter_plans: list[Any] = field(default_factory=list)
    reads: list[dict[str, Any]] = field(default_factory=list)

    def add_read(self, name: str, feature: Feature) -> int:
        read = {
            "aggregate": _aggregate(feature),
            "column": None if feature.field is None else _place(self.columns, feature.field),
            "filter": None if feature.where is None else self._add_filter(name, feature.where),
            "length_us": feature.window.length_us,
            "delay_us": feature.window.delay_us,
            "include_current": feature.window.include_current,
        }
        return _place(self.reads, read)

    def _add_filter(self, name: str, where: str) -> int:
        types = self.topic.schema.types
        parsed = parse_expression(where, types, wanted=BOOL, subject=f'feature "{name}", where')
        if where not in self.filters:
            self.filters.append(where)
            self.filter_plans.append(parsed.plan)
        return self.filters.index(where)

    def to_json(self) -> dict[str, Any]:
        types = self.topic.schema.types
        return {
            "source": self.source,
            "key": list(self.key),
            "filters": self.filter_plans,
            "plan": {
                "key": [types[name].to_json() for name in self.key],
                "columns": [[name, types[name].to_json()] for name in self.columns],
                "filters": self.filters,
                "reads": self.reads,
            },
        }


class _Compiler:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.topics = list(pipeline.topics.values())
        self.models = list(pipeline.models.values())
        self.stores: list[_Store] = []
        self.feature_sets: list[FeatureSet] = []
        self.features: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def document(self) -> dict[str, Any]:
        for topic in self.topics:
            for feature_set in topic.feature_sets:
                self.add_features(feature_set)
        policies = [self.add_policy(policy) for policy in self.pipeline.policies.values()]
        return {
            "name": self.pipeline.name,
            "topics": [{**_topic(topic), "dead_letters": topic.dead_letters} for topic in self.topics],
            "stores": [store.to_json() for store in self.stores],
            "features": self.features,
            "policies": policies,
            "models": [{"name": model.name, "version": model.version} for model in self.models],
        }

    def add_features(self, feature_set: FeatureSet) -> int:
        for index, known in enumerate(self.feature_sets):
            if known is feature_set:
                return index
        types: dict[str, Type] = dict(feature_set.topic.schema.types)
        reads = []
        for name, feature in feature_set.aggregates.items():
            store = self.store_index(feature)
            reads.append([store, self.stores[store].add_read(name, feature)])
            types[name] = feature.type
        derived = []
        for name, text in feature_set.derived.items():
            parsed = parse_expression(text, types, subject=f'derived feature "{name}"')
            derived.append([name, parsed.plan])
            types[name] = parsed.type
        names = [*feature_set.aggregates, *feature_set.derived]
        self.feature_sets.append(feature_set)
        self.features.append(
            {
                "topic": self.topics.index(feature_set.topic),
                "reads": reads,
                "derived": derived,
                "columns": [{"name": name, "type": types[name].to_json(), "optional": True} for name in names],
            }
        )
        return len(self.features) - 1

    def store_index(self, feature: Feature) -> int:
        keyed = feature.window.keyed
        if keyed.topic not in self.topics:
            raise DefinitionError(f'topic "{keyed.topic.name}" belongs to another pipeline')
        source = self.topics.index(keyed.topic)
        window = feature.window
        endless_delay_us = window.delay_us if window.length_us is None else None
        for index, store in enumerate(self.stores):
            if (store.source, store.key, store.endless_delay_us) == (source, keyed.key, endless_delay_us):
                return index
        self.stores.append(_Store(source, keyed.topic, keyed.key, endless_delay_us))
        return len(self.stores) - 1

    def add_policy(self, policy: Policy) -> dict[str, Any]:
        features = self.add_features(policy.features)
        rules = read_rules(policy.rules, self.policy_columns(policy, features))
        if policy.fallback not in rules.outcomes:
            raise DefinitionError(
                f'policy "{policy.name}": fallback "{policy.fallback}" is none of the outcomes',
                hint=f"{policy.rules.name} has: " + ", ".join(rules.outcomes),
            )
        if policy.model is None:
            self.warnings += [
                f'policy "{policy.name}", rule "{rule.name}": score is always null, for the policy has no model'
                for rule in rules.rules
                if "score" in rule.when.columns
            ]
        document = {
            "name": policy.name,
            "features": features,
            "model": None if policy.model is None else self.models.index(policy.model),
            "within_us": policy.within_us,
            "fallback": policy.fallback,
            "outcomes": list(rules.outcomes),
            "default": rules.default,
            "rules": _rules(rules),
            "on_overload": policy.on_overload,
            "on_full": policy.on_full,
        }
        definition = _definition(policy, rules)
        document["definition"] = definition
        document["version"] = hashlib.sha256(definition.encode()).hexdigest()[:12]
        return document

    def policy_columns(self, policy: Policy, features: int) -> dict[str, Type]:
        columns = dict(policy.features.topic.schema.types)
        for column in self.features[features]["columns"]:
            columns[column["name"]] = Type.from_json(column["type"])
        if "score" in columns:
            raise DefinitionError(f'policy "{policy.name}": a field named "score" hides the model\'s score')
        columns["score"] = FLOAT64
        return columns


def _topic(topic: Topic) -> dict[str, Any]:
    schema = topic.schema
    names = [each.name for each in schema.fields]
    return {
        "name": topic.name,
        "fields": [each.to_json() for each in schema.fields],
        "id": names.index(schema.id),
        "time": names.index(schema.time),
        "retain_us": schema.retain_us,
        "lateness_us": schema.lateness_us,
        "ahead_us": schema.ahead_us,
    }


def _rules(rules: Rules) -> list[dict[str, Any]]:
    return [
        {"name": rule.name, "code": rule.code, "outcome": rules.outcomes.index(rule.outcome), "when": rule.when.plan}
        for rule in rules.rules
    ]


def _definition(policy: Policy, rules: Rules) -> str:
    """The text that decides what a policy says: the same text always decides the same."""
    features = policy.features
    aggregates = {
        name: {
            "topic": feature.window.keyed.topic.name,
            # The effective times of what it sees depend on it.
            "lateness_us": feature.window.keyed.topic.schema.lateness_us,
            "by": feature.window.keyed.key,
            "length_us": feature.window.length_us,
            "delay_us": feature.window.delay_us,
            "include_current": feature.window.include_current,
            "aggregate": feature.aggregate,
            "field": feature.field,
            "n": feature.n,
            "where": feature.where,
        }
        for name, feature in features.aggregates.items()
    }
    model = policy.model
    document = {
        "policy": policy.name,
        "topic": _topic(features.topic),
        "features": aggregates,
        "derived": dict(features.derived),
        "model": None if model is None else {"name": model.name, "version": model.version},
        "within_us": policy.within_us,
        "fallback": policy.fallback,
        "rules": rules.text,
    }
    return json.dumps(document, separators=(",", ":"))


def _aggregate(feature: Feature) -> Any:
    return {"lag": feature.n} if feature.aggregate == "lag" else feature.aggregate


def _place(items: list[T], item: T) -> int:
    if item not in items:
        items.append(item)
    return items.index(item)
