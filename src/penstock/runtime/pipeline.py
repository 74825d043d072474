"""The pipeline: what a user's file defines, by name, and nothing that runs yet."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from penstock.clock import duration_us
from penstock.decide.policy import Model, OnFull, OnOverload, Policy, Score
from penstock.errors import DefinitionError
from penstock.event import Event
from penstock.process.streams import FeatureSet, Topic

TOPICS_MAX = 1_000


class Pipeline:
    """Topics, features and policies under one name.

        pipeline = ps.Pipeline("cards")
        payments = pipeline.topic("payments", Payment)
        scored = payments.features(card_count_1h=payments.by("card").past("1h").count())
        pipeline.policy("authorise", scored, rules="authorise.toml", within="50ms", fallback="approve")

    Every method raises `DefinitionError` for what could not be meant.
    """

    def __init__(self, name: str) -> None:
        _check_name("a pipeline", name)
        self.name = name
        self.topics: dict[str, Topic] = {}
        self.models: dict[str, Model] = {}
        self.policies: dict[str, Policy] = {}

    def topic(self, name: str, event: type[Event], *, dead_letters: bool = True) -> Topic:
        """A stream of `event`s with this name in the log.

        What its door rejects of many events is kept as dead letters, unless `dead_letters` is False.
        """
        _check_name("a topic", name)
        if name in self.topics:
            raise DefinitionError(f'the pipeline has a topic "{name}" already')
        if not (isinstance(event, type) and issubclass(event, Event) and event is not Event):
            raise DefinitionError(f'topic "{name}" needs a class of events', hint="derive it from ps.Event")
        if len(self.topics) >= TOPICS_MAX:
            raise DefinitionError(f"a pipeline has at most {TOPICS_MAX:,} topics")
        topic = Topic(name, event.schema, dead_letters)
        self.topics[name] = topic
        return topic

    def model(self, *, version: str) -> Callable[[Score], Model]:
        """Make a function a model: `(batch: pl.DataFrame) -> pl.Series` of numbers, one a row.

        It runs on whole batches in a process of its own. Change `version` whenever its answers change.
        """
        if not isinstance(version, str) or not version:
            raise DefinitionError("a model needs a version, such as a date")

        def register(function: Score) -> Model:
            name = getattr(function, "__name__", "")
            _check_name("a model", name)
            if name in self.models:
                raise DefinitionError(f'the pipeline has a model "{name}" already')
            self.models[name] = Model(name, version, function)
            return self.models[name]

        return register

    def policy(
        self,
        name: str,
        features: FeatureSet | Topic,
        *,
        rules: str | Path,
        score: Model | None = None,
        within: str = "50ms",
        fallback: str,
        on_overload: OnOverload = "refuse",
        on_full: OnFull = "refuse",
    ) -> Policy:
        """Decide about each event of a topic by rules over its fields, its features and a model's `score`.

        `rules` is a path, relative to the file that calls this. A caller that has waited for `within` is told
        `fallback`, one of the rules' outcomes. `on_overload` says what a caller is told whom the queue has no room
        for: 429 (`"refuse"`) or the fallback (`"fallback"`); `on_full` what one is told while the disk is full: 503 or
        the fallback.
        """
        _check_name("a policy", name)
        if name in self.policies:
            raise DefinitionError(f'the pipeline has a policy "{name}" already')
        if isinstance(features, Topic):
            features = features.features()
        if self.topics.get(features.topic.name) is not features.topic:
            raise DefinitionError(f'policy "{name}" has features of another pipeline\'s topic')
        if score is not None and score not in self.models.values():
            raise DefinitionError(
                f'policy "{name}": score is not a model of this pipeline',
                hint='write @pipeline.model(version="…") before the function',
            )
        if on_overload not in ("refuse", "fallback"):
            raise DefinitionError(f'policy "{name}": on_overload is "refuse" or "fallback"')
        if on_full not in ("refuse", "fallback"):
            raise DefinitionError(f'policy "{name}": on_full is "refuse" or "fallback"')
        within_us = duration_us(within, subject=f'policy "{name}", within')
        if within_us < 1_000:
            raise DefinitionError(f'policy "{name}": within is at least 1ms')
        path = Path(sys._getframe(1).f_code.co_filename).parent / rules
        policy = Policy(name, features, path, score, within_us, fallback, on_overload, on_full)
        self.policies[name] = policy
        return policy


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", name):
        raise DefinitionError(
            f"{what} cannot have the name {name!r}",
            hint="a letter, then up to 99 letters, digits, underscores or hyphens",
        )
