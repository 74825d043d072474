"""Run a pipeline inside a test: in memory, with a clock that the test moves, and a crash as an input.

with testing.run(pipeline, now="2026-11-01T12:00:00Z") as service:
    answer = service.decide("authorise", payment)
    assert answer["outcome"] == "approve"
    service.clock.advance("1h")
    service.crash()                                    # power loss: only what was acknowledged remains
    assert service.decide("authorise", payment) == answer  # the retry is told the same
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from penstock import _native
from penstock.clock import duration_us
from penstock.errors import InputError
from penstock.runtime.app import load_app
from penstock.runtime.gate import (
    DECIDE,
    DECIDE_MANY,
    DRY_RUN,
    EVENTS_NDJSON,
    LOOKUP,
    MODEL,
    POSITION,
    SCORES,
)
from penstock.runtime.history import Run
from penstock.runtime.logs import read_position
from penstock.runtime.pipeline import Pipeline
from penstock.runtime.plan import Plan, compile_plan
from penstock.runtime.replay import choose, score

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EventValues = Mapping[str, Any]


class Clock:
    """The time of a service under test."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def advance(self, length: str) -> None:
        """Move on by a length such as `"90s"` or `"30d"`."""
        self.now += timedelta(microseconds=duration_us(length, subject="clock.advance()"))

    @property
    def now_us(self) -> int:
        return (self.now - EPOCH) // timedelta(microseconds=1)


class Refused(InputError):
    """The service did not take a request: `status` and `code` are what an HTTP caller would see."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.status = status
        self.code: str = error["code"]
        self.field: str | None = error.get("field")


class NoAnswer(Exception):
    """The event is taken, and its model has not answered yet."""


class Service:
    """A pipeline's gate without its door: each call is one request, answered when it returns.

    Models run in this process, at once unless `models_stuck` is set. Deadlines do not pass by themselves:
    `told_fallback` says that one has.
    """

    def __init__(self, pipeline: Pipeline, *, now: datetime, settings: Mapping[str, Any] | None = None) -> None:
        self.plan: Plan = compile_plan(pipeline)
        self.clock = Clock(now)
        self._settings = _core_settings(settings or {})
        self._disk = _native.Memory()
        self._handle = 0
        self._decided = 0
        self._told: list[int] = []
        self.models_stuck = False
        self._unscored: list[tuple[int, int, bytes]] = []
        self._seed = 0
        self._gate = self._open()

    def decide(self, policy: str, event: EventValues) -> dict[str, Any]:
        """The answer about one event. Raises `Refused`, and `NoAnswer` while models are stuck."""
        self._decided = self._handle + 1
        return _answer(self._call(DECIDE, self.plan.policy_index(policy), _json(event)))

    def decide_many(self, policy: str, events: Iterable[EventValues]) -> list[dict[str, Any]]:
        """The answers about several, in order; a refused one has an `error`."""
        body = b"\n".join(_json(event) for event in events)
        status, text = self._call(DECIDE_MANY, self.plan.policy_index(policy), body)
        if status != 200:
            _answer((status, text))
        return [json.loads(line) for line in text.splitlines()]

    def dry_run(self, policy: str, event: EventValues) -> dict[str, Any]:
        """What would be decided now; nothing is recorded and nothing moves."""
        return _answer(self._call(DRY_RUN, self.plan.policy_index(policy), _json(event)))

    def append(self, topic: str, events: Iterable[EventValues]) -> dict[str, Any]:
        """Events through their topic's door."""
        body = b"\n".join(_json(event) for event in events)
        return _answer(self._call(EVENTS_NDJSON, self.plan.topic_index(topic), body))

    def look_up(self, policy: str, id: str | int) -> dict[str, Any]:
        """What `GET /v1/decisions/{policy}/{id}` answers."""
        return _answer(self._call(LOOKUP, self.plan.policy_index(policy), str(id).encode()))

    def told_fallback(self) -> None:
        """The caller of the newest `decide` was told the fallback, because its deadline had passed."""
        self._told.append(self._decided)
        self._step([])

    def models_answer(self) -> list[dict[str, Any]]:
        """The stuck models answer after all: what those are told who still wait."""
        self.models_stuck, unscored = False, self._unscored
        self._unscored = []
        requests = [(number, SCORES, number, self._score(model, rows), 0) for number, model, rows in unscored]
        return [_answer((status, text)) for _, status, text, _ in self._step(requests)]

    def commit_position(self, consumer: str, topic: str, offset: int) -> None:
        """A consumer of a topic has seen what comes before this offset."""
        body = {"consumer": consumer, "topic": topic, "offset": offset}
        _answer(self._call(POSITION, 0, json.dumps(body).encode()))

    def forget_position(self, consumer: str, topic: str) -> None:
        """A consumer of a topic is gone."""
        body = {"consumer": consumer, "topic": topic, "offset": None}
        _answer(self._call(POSITION, 0, json.dumps(body).encode()))

    def position(self, consumer: str, topic: str) -> int | None:
        """Where a consumer goes on in a topic."""
        return read_position(json.loads(_native.catalog(self._disk)), consumer, topic)

    def crash(self) -> None:
        """Lose power and start again: what was not synced is lost, wholly or in part."""
        self._seed += 1
        self._unscored = []
        del self._gate
        self._disk = self._disk.crash(self._seed)
        self._gate = self._open()

    def restart(self, pipeline: Pipeline | None = None) -> None:
        """End in order and start again, with a changed pipeline where one is given."""
        self._gate.close()
        self._unscored = []
        if pipeline is not None:
            self.plan = compile_plan(pipeline)
        self._gate = self._open()

    def snapshot(self) -> int:
        """Have a follower write the state; the sequence of the commit that it is as of."""
        return self._follower().snapshot()

    def state(self) -> list[bytes]:
        """The bytes of the state as a follower has it: equal for equal state."""
        return self._follower().state()

    @property
    def compared(self) -> tuple[int, int]:
        """Decisions whose features a follower computes a second time, and batches of them that come out otherwise."""
        return self._follower().compared

    def _follower(self) -> _native.Follower:
        follower = _native.Follower(self.plan.to_json(), self._disk)
        while follower.advance(1_000) == 1_000:
            pass
        return follower

    @property
    def stats(self) -> dict[str, Any]:
        counted: dict[str, Any] = json.loads(self._gate.stats())
        return counted

    @property
    def started(self) -> dict[str, Any]:
        """What the last start found and did."""
        found: dict[str, Any] = json.loads(self._gate.started)
        return found

    def close(self) -> None:
        self._gate.close()

    def _open(self) -> _native.ManualGate:
        return _native.ManualGate(self.plan.to_json(), self._disk, self._settings, self.clock.now_us)

    def _call(self, kind: int, target: int, body: bytes) -> tuple[int, bytes]:
        self._handle += 1
        answers = self._step([(self._handle, kind, target, body, 0)])
        for handle, status, text, flags in answers:
            if handle == self._handle and not flags & MODEL:
                return status, text
        raise NoAnswer("the event's model has not answered")

    def _step(self, requests: list[_native.Request]) -> list[_native.Answer]:
        self._gate.set_now(self.clock.now_us)
        told, self._told = self._told, []
        answers = self._gate.step(requests, told)
        done = [answer for answer in answers if not answer[3] & MODEL]
        for number, model, rows, flags in answers:
            if flags & MODEL and self.models_stuck:
                self._unscored.append((number, model, rows))
            elif flags & MODEL:
                done += self._gate.step([(number, SCORES, number, self._score(model, rows), 0)], [])
        return done

    def _score(self, model: int, rows: bytes) -> bytes:
        import pyarrow as pa

        batch = pa.ipc.open_stream(rows).read_all().combine_chunks().to_batches()[0]
        nothing = pa.RecordBatch.from_arrays([], names=[])
        try:
            scored = score(list(self.plan.pipeline.models.values())[model], batch, nothing)
        except InputError:
            return b""
        values = scored.column(0).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        body: bytes = values.astype("<f8").tobytes()
        return body


@contextmanager
def run(
    pipeline: Pipeline | str | Path,
    *,
    now: datetime | str = "2026-01-01T00:00:00Z",
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Service]:
    """A service of this pipeline, or of the app in this file, for the length of a `with`."""
    loaded = pipeline if isinstance(pipeline, Pipeline) else load_app(pipeline)
    service = Service(loaded, now=_moment(now), settings=settings)
    try:
        yield service
    finally:
        service.close()


def replay(
    pipeline: Pipeline | str | Path,
    events: Iterable[tuple[str, EventValues]],
    *,
    policy: str | None = None,
) -> list[dict[str, Any]]:
    """The same events, (topic, values) in order, through replay: one row of columns for each of the policy's topic."""
    import pyarrow as pa

    plan = compile_plan(pipeline if isinstance(pipeline, Pipeline) else load_app(pipeline))
    chosen = choose(plan, policy)

    def history() -> Iterator[Run]:
        for topic, event in events:
            index = plan.topic_index(topic)
            about = plan.document["topics"][index]
            decoder = _native.JsonDecoder(json.dumps(about["fields"]), about["id"])
            batch, refused = decoder.decode_lines(_json(event))
            if refused:
                raise InputError(refused[0][2])
            yield Run(index, pa.record_batch(batch))

    return [row for batch in chosen.run(history()) for row in batch.to_pylist()]


def _core_settings(changed: Mapping[str, Any]) -> str:
    settings = {
        "state_bytes": 1 << 30,
        "commit_bytes": 256 << 10,
        "segment_bytes": 16 << 20,
        "retention_us": None,
        "retention_bytes": None,
        "threads": 1,
        "memory_ids": 10_000,
    }
    unknown = set(changed) - set(settings)
    if unknown:
        raise InputError(f"there is no setting {', '.join(sorted(unknown))} here", hint=", ".join(settings))
    return json.dumps({**settings, **changed})


def _moment(now: datetime | str) -> datetime:
    try:
        moment = datetime.fromisoformat(now) if isinstance(now, str) else now
    except ValueError:
        raise InputError(f"now is no time: {now!r}", hint="write for example 2026-11-01T12:00:00Z") from None
    if moment.tzinfo is None:
        raise InputError(f"now has no zone: {moment.isoformat()}", hint=f"write for example {moment.isoformat()}Z")
    return moment


def _answer(answer: tuple[int, bytes]) -> dict[str, Any]:
    status, text = answer
    body: dict[str, Any] = json.loads(text)
    if status != 200:
        raise Refused(status, body["error"])
    return body


def _json(event: EventValues) -> bytes:
    return json.dumps(event, default=_json_value, ensure_ascii=False).encode()


def _json_value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"an event cannot hold a {type(value).__name__}")
