"""`penstock run`: one data directory, its gate, its doors and its followers, from start to an orderly end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from penstock import _native
from penstock.clock import duration_text
from penstock.runtime.app import load_app
from penstock.runtime.followers import Follower
from penstock.runtime.models import PROGRAM, ModelSpec
from penstock.runtime.plan import Plan, compile_plan
from penstock.runtime.snapshots import Snapshots
from penstock.serve.guard import Guard
from penstock.serve.server import Steps, check_port, run
from penstock.serve.settings import Doors, DoorSettings, PolicyDoor, TopicDoor, check_address
from penstock.settings import Settings, url
from penstock.wording import number_of

logger = logging.getLogger("penstock")

MEMORY_IDS = 1_000_000

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Service:
    """What `penstock run` runs."""

    app: Path
    plan: Plan
    settings: Settings

    @staticmethod
    def load(app: Path, settings: Settings) -> Service:
        """Load and compile the app. Raises `DefinitionError` and `SettingsError`."""
        check_address(door_settings(settings))
        Guard(door_settings(settings))  # What is wrong with its files is said before the log is read.
        return Service(app, compile_plan(load_app(app)), settings)

    def run(self, *, say: Say, progress: Progress) -> None:
        """Until a signal. Raises `LockedError` where another process has the directory, and other `LogError`s."""
        started = monotonic()
        data: Path = self.settings["data"]
        data.mkdir(parents=True, exist_ok=True)
        lock = _native.Lock(str(data))
        # Recovery takes long, and what would end it is better said before.
        check_port(self.settings["host"], self.settings["port"])
        gate = _native.Gate(self.plan.to_json(), str(data), core_settings(self.settings), progress)
        self.report(json.loads(gate.started), say)
        snapshots = Snapshots(self.settings["snapshot_every"] / 1e6)
        snapshotter = self.snapshotter(snapshots)
        snapshotter.start()

        address = ""

        def listening(host: str, port: int) -> None:
            nonlocal address
            address = url(host, port, tls=self.settings["tls_certificate"] is not None)

        steps = Steps(
            listening,
            waiting=lambda reason: say(f"not ready, {address}: {reason}; it is started again until it is"),
            ready=lambda: say(f"ready after {monotonic() - started:.2f} s: {address}"),
        )
        try:
            program = (*PROGRAM, "json") if self.settings["diagnostics"] == "json" else PROGRAM
            run(
                gate,
                self.doors(),
                door_settings(self.settings),
                snapshots=snapshots,
                steps=steps,
                model_program=program,
            )
        finally:
            snapshotter.stop()
            del lock

    def report(self, started: dict[str, Any], say: Say) -> None:
        """Say what start found."""
        say(f"data in {self.settings['data']}; a flush to its disk takes {started['flush_us'] / 1000:.2f} ms")
        if started["events"]:
            commits, events = number_of(started["commits"], "commit"), number_of(started["events"], "event")
            say(f"read {commits} with {events} from the log's tail")
        if started["cut_bytes"]:
            say(f"cut {number_of(started['cut_bytes'], 'byte')} of an unacknowledged commit from the log's end")
        if started["undecided"]:
            events = number_of(started["undecided"], "event")
            say(f"{events} without a decision got their policy's fallback")
        for reason in started["passed_over"]:
            logger.warning("passed over: %s", reason)
        for feature in started["incomplete"]:
            name, complete = feature["feature"], feature["complete_from_us"]
            if complete is None:
                logger.warning('feature "%s" knows only what happened after %s', name, _time(feature["since_us"]))
            else:
                logger.warning('feature "%s" is complete for events from %s on', name, _time(complete))
        for warning in self.plan.warnings:
            logger.warning("%s", warning)
        self.warn_of_short_retention()

    def warn_of_short_retention(self) -> None:
        retention = self.settings["retention"]
        reads = [read for store in self.plan.document["stores"] for read in store["plan"]["reads"]]
        if retention is not None and any(read["length_us"] is None for read in reads):
            logger.warning(
                "the log is kept for %s and past(None) needs all of it: a changed feature cannot be rebuilt from it",
                duration_text(retention),
            )
        spans = [read["length_us"] + read["delay_us"] for read in reads if read["length_us"] is not None]
        if retention is not None and spans and retention < max(spans):
            logger.warning(
                "the log is kept for %s and the longest window needs %s: a changed feature cannot be rebuilt from it",
                duration_text(retention),
                duration_text(max(spans)),
            )

    def snapshotter(self, snapshots: Snapshots) -> Follower:
        settings = self.settings
        arguments = [str(settings["data"]), str(settings["snapshot_every"]), settings["diagnostics"], settings["level"]]
        return Follower("penstock.runtime.snapshotter", arguments, self.plan.to_json(), hear=snapshots.hear)

    def doors(self) -> Doors:
        document = self.plan.document
        policies = tuple(
            PolicyDoor(policy["name"], index, policy["within_us"] / 1e6, policy["on_overload"])
            for index, policy in enumerate(document["policies"])
        )
        topics = tuple(TopicDoor(topic["name"], index) for index, topic in enumerate(document["topics"]))
        models = tuple(self.model(index, model["name"]) for index, model in enumerate(document["models"]))
        return Doors(policies, topics, models)

    def model(self, index: int, name: str) -> ModelSpec:
        policies = [each for each in self.plan.document["policies"] if each["model"] == index]
        within = min((policy["within_us"] for policy in policies), default=1_000_000)
        warm_up = self.warm_up(policies[0]["features"]) if policies else b""
        return ModelSpec(name, self.app.resolve(), within / 1e6, warm_up)

    def warm_up(self, features: int) -> bytes:
        """One row of zeros, with the columns that a model's batches have.

        Not of no rows: no batch is empty, and many a library refuses to predict nothing.
        """
        import pyarrow as pa

        from penstock.schema import Type

        columns = self.plan.document["features"][features]
        fields = self.plan.document["topics"][columns["topic"]]["fields"] + columns["columns"]
        types = {field["name"]: Type.from_json(field["type"]) for field in fields}
        row = pa.record_batch({name: pa.array([type.zero], type.to_arrow()) for name, type in types.items()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, row.schema) as writer:
            writer.write_batch(row)
        body: bytes = sink.getvalue().to_pybytes()
        return body


def core_settings(settings: Settings, **changed: Any) -> str:
    """The core's part of the settings, as it reads them."""
    return json.dumps(
        {
            "state_bytes": settings["state_bytes"],
            "commit_bytes": settings["commit_bytes"],
            "segment_bytes": settings["segment_bytes"],
            "retention_us": settings["retention"],
            "retention_bytes": settings["retention_bytes"],
            "threads": settings["threads"],
            "memory_ids": MEMORY_IDS,
            **changed,
        }
    )


def door_settings(settings: Settings) -> DoorSettings:
    optional = {}
    if settings["rate"] is not None:
        optional["requests_per_second_max"] = settings["rate"]
    if settings["model_time"] is not None:
        optional["model_batch_s"] = settings["model_time"] / 1e6
    return DoorSettings(
        host=settings["host"],
        port=settings["port"],
        tokens=settings["tokens"],
        tls_certificate=settings["tls_certificate"],
        tls_key=settings["tls_key"],
        connections_max=settings["connections"],
        queue_max=settings["queue"],
        body_bytes_max=settings["body_bytes"],
        header_bytes_max=settings["header_bytes"],
        request_s=settings["request_time"] / 1e6,
        idle_s=settings["idle_time"] / 1e6,
        **optional,
    )


def _time(microseconds: int) -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).isoformat()
