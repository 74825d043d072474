"""The numbers of door, core and models as Prometheus text (exposition format 0.0.4).

Written here from counters that exist anyway: prometheus-client's own writer takes 3 ms for 200
lines, and every caller would wait for it. Its parser is what the tests read these lines with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from penstock.runtime.models import Models
from penstock.runtime.snapshots import Snapshots
from penstock.serve.answers import TEXT
from penstock.serve.door import Door
from penstock.serve.health import state_warnings
from penstock.serve.routes import LATENCY_BOUNDS_S, Route, Routes

# One sample: the rest of its name, its labels as written, its value.
Sample = tuple[str, str, float]


# What the core counts: how it is shown, and what it is.
CORE = {
    "beat": (
        "core_cycles_total",
        "Cycles of the gate; with work and without cycles it is stuck.",
    ),
    "queued": ("core_queued", "Requests that wait for the core."),
    "commits": ("commits_total", "Commits to the log."),
    "events": ("events_total", "Events taken."),
    "late": ("late_events_total", "Events that came later than their topic's lateness."),
    "repeats": ("repeated_events_total", "Events whose id was known."),
    "refused": ("refused_events_total", "Events refused for what they hold."),
    "timeouts": ("recorded_timeouts_total", "Fallbacks recorded as told at a deadline."),
    "faults": ("expression_faults_total", "Overflows, divisions by zero and the like, made null."),
    "decisions": ("decisions_total", "Decisions by policy and outcome."),
    "dead_letters": (
        "dead_letters_total",
        "Rejected events by topic: kept as dead letters, not kept, and put right.",
    ),
    "model_failures": ("core_model_failures_total", "Batches decided without their score."),
    "core_seconds": ("core_seconds", "Time of a cycle of the core, its sync apart."),
    "sync_seconds": ("sync_seconds", "Time of a commit's write and sync."),
    "model_seconds": ("score_seconds", "From when rows left for a model until their scores came."),
    "state_bytes": ("state_bytes", "Memory of the keyed state."),
    "state_bytes_max": ("state_bytes_max", "The state's limit."),
    "state_keys": ("state_keys", "Keys in the state."),
    "retained_events": ("state_events", "Events in the state's windows."),
    "state_full": (
        "state_full_total",
        "Events that got the fallback because the state was full.",
    ),
    "disk_full": (
        "disk_full_total",
        "Events that were not decided because the disk was full.",
    ),
    "reader_lags": (
        "reader_lag_seconds",
        "How far a topic is behind others whose events it reads; they are kept for it.",
    ),
    "removal_failures": (
        "removal_failures_total",
        "Times that files beyond their retention could not be removed.",
    ),
    "ids": ("ids", "Ids that are known."),
    "ids_memory_bytes": ("ids_memory_bytes", "Memory of the index of ids."),
    "pending": ("pending_decisions", "Decisions that wait for a model."),
    "log_sequence": ("log_sequence", "The newest commit."),
    "flush_us": ("flush_microseconds", "Time of a flush, measured at start."),
}


class Metrics:
    """`GET /metrics`."""

    def __init__(self, *, door: Door, routes: Routes, models: Models, snapshots: Snapshots) -> None:
        self._door = door
        self._routes = routes
        self._models = models
        self._snapshots = snapshots

    def page(self) -> tuple[int, bytes, int]:
        lines = [line for family in self._families() for line in family]
        return 200, ("\n".join(lines) + "\n").encode(), TEXT

    def _families(self) -> Iterator[Iterable[str]]:
        yield from self._door_families()
        yield from self._route_families()
        yield from self._model_families()
        stats = self._door.relay.core_stats()
        yield from core_families(stats)
        yield from self._snapshot_families()
        warned = [("", "", int(any(state_warnings(stats))))]
        yield family("state_warning", "gauge", "1 from 80 % of the state's limit on.", warned)

    def _door_families(self) -> Iterator[Iterable[str]]:
        relay, door = self._door.relay, self._door
        busy = [("", "", relay.busy_ns / 1e9)]
        yield family("door_seconds_total", "counter", "Time in the door's own code.", busy)
        waiting = [("", "", len(relay.pending))]
        yield family("door_waiting", "gauge", "Requests that the core has not answered.", waiting)
        refused = [("", f'{{reason="{reason}"}}', number) for reason, number in door.guard.refusals.items()]
        yield family("refused_callers_total", "counter", "Requests refused for their token, by reason.", refused)
        failed = [("", "", door.guard.handshakes_failed)]
        yield family("tls_handshakes_failed_total", "counter", "Connections that came to no TLS.", failed)
        expiries = [("", "", door.guard.certificate.expires_s)] if door.guard.certificate else []
        yield family("tls_certificate_expires_seconds", "gauge", "When it expires, since 1970.", expiries)
        connections = [("", "", len(door.connections))]
        yield family("door_connections", "gauge", "Open connections.", connections)

    def _route_families(self) -> Iterator[Iterable[str]]:
        statuses = [
            ("", f'{{{route.labels},status="{status}"}}', number)
            for route in self._routes
            for status, number in route.statuses.items()
        ]
        yield family("requests_total", "counter", "Answers by route and HTTP status.", statuses)
        asked = [route for route in self._routes if route.deadline is not None]
        decide = self._routes.decide.values()
        latencies = [sample for route in asked for sample in latency(route)]
        text = "From when a request was held whole until its answer was ready."
        yield family("request_seconds", "histogram", text, latencies)
        repeats = [("", f"{{{route.labels}}}", route.repeats) for route in decide]
        yield family("repeats_total", "counter", "Retries that were told the same again.", repeats)
        late = [("", f"{{{route.labels}}}", route.timed_out) for route in decide]
        text = "Requests that were told the fallback at their deadline."
        yield family("timed_out_total", "counter", text, late)
        over = [("", f"{{{route.labels}}}", route.overloaded) for route in asked]
        yield family("overloaded_total", "counter", "Requests the queue had no room for.", over)

    def _model_families(self) -> Iterator[Iterable[str]]:
        workers = self._models.workers
        if not workers:
            return

        def samples(values: Iterable[float]) -> list[Sample]:
            names = (f'{{model="{worker.spec.name}"}}' for worker in workers)
            return [("", name, value) for name, value in zip(names, values, strict=True)]

        seconds = samples(worker.busy_s for worker in workers)
        text = "Time that batches spent in a model."
        yield family("model_seconds_total", "counter", text, seconds)
        batches = samples(worker.scored for worker in workers)
        yield family("model_batches_total", "counter", "Batches that a model scored.", batches)
        failures = samples(worker.failed for worker in workers)
        yield family("model_failures_total", "counter", "Batches without a score.", failures)
        starts = samples(worker.starts for worker in workers)
        yield family("model_starts_total", "counter", "Starts of a model's process.", starts)
        up = samples(int(worker.ready) for worker in workers)
        yield family("model_up", "gauge", "1 while a model's process takes batches.", up)

    def _snapshot_families(self) -> Iterator[Iterable[str]]:
        snapshots = self._snapshots
        starts = [("", "", snapshots.starts)]
        yield family("snapshotter_starts_total", "counter", "Starts of the snapshotter.", starts)
        results = [("", f'{{result="{name}"}}', n) for name, n in snapshots.results.items()]
        text = "Snapshots written, failed, and not kept because the state differed."
        yield family("snapshots_total", "counter", text, results)
        sequence = [("", "", snapshots.sequence)]
        text = "The commit that the newest snapshot is as of."
        yield family("snapshot_sequence", "gauge", text, sequence)
        age_s = snapshots.age_s()
        ages = [] if age_s is None else [("", "", age_s)]
        yield family("snapshot_age_seconds", "gauge", "Age of the newest snapshot.", ages)


def core_families(stats: dict[str, Any]) -> Iterator[Iterable[str]]:
    """The core's numbers; one that is not listed here is shown as a gauge under its own name."""
    for name, value in stats.items():
        shown, text = CORE.get(name, (name, f"The core's {name.replace('_', ' ')}."))
        if name == "decisions":
            yield family(shown, "counter", text, decisions(value))
        elif name == "dead_letters":
            yield family(shown, "counter", text, dead_letters(value))
        elif name == "reader_lags":
            yield family(shown, "gauge", text, lags(value))
        elif isinstance(value, dict):
            samples = histogram("", value["bounds"], value["counts"], value["sum"])
            yield family(shown, "histogram", text, samples)
        elif isinstance(value, int | float):
            kind = "counter" if shown.endswith("_total") else "gauge"
            yield family(shown, kind, text, [("", "", value)])


def decisions(counts: Iterable[tuple[str, str, int]]) -> Iterator[Sample]:
    for policy, outcome, number in counts:
        yield "", f'{{policy="{policy}",outcome="{escaped(outcome)}"}}', number


def dead_letters(topics: Iterable[tuple[str, dict[str, int]]]) -> Iterator[Sample]:
    for topic, counts in topics:
        for result, number in counts.items():
            yield "", f'{{topic="{topic}",result="{result}"}}', number


def lags(topics: Iterable[tuple[str, float | None]]) -> Iterator[Sample]:
    for topic, lag_s in topics:
        yield "", f'{{topic="{topic}"}}', math.inf if lag_s is None else lag_s


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """The lines of one metric."""
    name = f"penstock_{name}"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for suffix, labelled, value in samples:
        yield f"{name}{suffix}{labelled} {value!r}"


def latency(route: Route) -> Iterator[Sample]:
    bounds, counts = LATENCY_BOUNDS_S, route.latency_counts
    return histogram(route.labels, bounds, counts, route.latency_ns / 1e9)


def histogram(labelled: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Iterator[Sample]:
    """The cumulative buckets of Prometheus from one count an interval."""
    comma = "," if labelled else ""
    *sums, number = accumulate(counts)
    for bound, reached in zip(bounds, sums, strict=True):
        yield "_bucket", f'{{{labelled}{comma}le="{bound}"}}', reached
    yield "_bucket", f'{{{labelled}{comma}le="+Inf"}}', number
    yield "_sum", f"{{{labelled}}}" if labelled else "", total
    yield "_count", f"{{{labelled}}}" if labelled else "", number
