"""The numbers of door, core and models as Prometheus text (exposition format 0.0.4).

Written here from counters that exist anyway: prometheus-client's own writer takes 3 to 7 ms for as many lines,
and every caller would wait for it. The tests read what comes out with prometheus-client's parser.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from penstock.runtime.models import Models
from penstock.serve.answers import TEXT
from penstock.serve.core import Gate
from penstock.serve.http import Door
from penstock.serve.routes import LATENCY_BOUNDS_S, Route, Routes

# One sample: the rest of its name, its labels as written, its value.
Sample = tuple[str, str, float]


class Metrics:
    """`GET /metrics`."""

    def __init__(self, *, core: Gate, door: Door, routes: Routes, models: Models) -> None:
        self._core = core
        self._door = door
        self._routes = routes
        self._models = models

    def page(self) -> tuple[int, bytes, int]:
        lines = [line for family in self._families() for line in family]
        return 200, ("\n".join(lines) + "\n").encode(), TEXT

    def _families(self) -> Iterator[Iterable[str]]:
        yield from self._door_families()
        yield from self._route_families()
        yield from self._model_families()
        yield from core_families(json.loads(self._core.stats()))

    def _door_families(self) -> Iterator[Iterable[str]]:
        relay, door = self._door.relay, self._door
        busy = [("", "", relay.busy_ns / 1e9)]
        yield family("door_seconds_total", "counter", "Time in the door's own code.", busy)
        waiting = [("", "", len(relay.pending))]
        yield family("door_waiting", "gauge", "Requests that the core has not answered.", waiting)
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
        yield family("model_seconds_total", "counter", "Time that batches spent in a model.", seconds)
        batches = samples(worker.scored for worker in workers)
        yield family("model_batches_total", "counter", "Batches that a model scored.", batches)
        failures = samples(worker.failed for worker in workers)
        yield family("model_failures_total", "counter", "Batches without a score.", failures)
        starts = samples(worker.starts for worker in workers)
        yield family("model_starts_total", "counter", "Starts of a model's process.", starts)
        up = samples(int(worker.ready) for worker in workers)
        yield family("model_up", "gauge", "1 while a model's process takes batches.", up)


def core_families(stats: dict[str, Any]) -> Iterator[Iterable[str]]:
    """The core's numbers under the names that it gives them."""
    for name, value in stats.items():
        text = f"The core's {name.removesuffix('_total').replace('_', ' ')}."
        if isinstance(value, dict):
            yield family(name, "histogram", text, histogram("", value["bounds"], value["counts"], value["sum"]))
        elif isinstance(value, int | float):
            kind = "counter" if name.endswith("_total") else "gauge"
            yield family(name, kind, text, [("", "", value)])


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


def histogram(
    labelled: str, bounds: Sequence[float], counts: Sequence[int], total: float
) -> Iterator[Sample]:
    """The cumulative buckets of Prometheus from one count an interval."""
    comma = "," if labelled else ""
    *sums, number = accumulate(counts)
    for bound, reached in zip(bounds, sums, strict=True):
        yield "_bucket", f'{{{labelled}{comma}le="{bound}"}}', reached
    yield "_bucket", f'{{{labelled}{comma}le="+Inf"}}', number
    yield "_sum", f"{{{labelled}}}" if labelled else "", total
    yield "_count", f"{{{labelled}}}" if labelled else "", number

