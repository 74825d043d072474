"""Starting: the package, a service, a service with ten million events of state; and their memory."""

from __future__ import annotations

import http.client
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from bench.core import payments
from bench.measure import ROOT, Spread, anonymous_mb, repeat, run
from bench.report import Figure, Section
from penstock.demo.service import Service

RETAINED_APP = ROOT / "bench" / "retained.py"
REPEATS = 3
IMPORT_REPEATS = 10
READY_SECONDS = 600

RETAINED_EVENTS = 10_000_000
RETAINED_KEYS = 100_000
RETAINED_DAYS = 29


def measure_starts(scale: float = 1.0) -> Section:
    figures = [import_figure(), *retained_figures(round(RETAINED_EVENTS * scale))]
    return Section("Start and memory", NOTES, figures)


NOTES = f"""\
Whole commands, until `/readyz` says yes. The state: `bench/retained.py`, counts and sums over three
windows of one entity, with {RETAINED_EVENTS:,} events of {RETAINED_KEYS:,} keys in {RETAINED_DAYS}
days, all within the longest window. Memory is what the process holds more than an empty one, the
ids' apart: as the state was built from the log, and after a start from a snapshot."""


def import_figure() -> Figure:
    bare = repeat(IMPORT_REPEATS, lambda: run([sys.executable, "-c", "pass"]).seconds)
    whole = repeat(IMPORT_REPEATS, lambda: run([sys.executable, "-c", "import penstock"]).seconds)
    seconds = whole.median - bare.median
    reference = f"Python alone takes {bare.text(3)}"
    return Figure("import penstock, s", f"{seconds:.3f}", reference, "< 0.3", seconds < 0.3)


def retained_figures(events: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as name:
        folder = Path(name)
        load_retained(folder, events)
        empty = [start(folder / "empty", folder) for _ in range(REPEATS)]
        # The first start builds what the log holds; stopping then leaves a snapshot.
        built = start(folder / "data", folder)
        starts = [start(folder / "data", folder) for _ in range(REPEATS)]
    first, seconds = durations(empty), durations(starts)
    last = starts[-1]
    keys, retained = last.metrics["state_keys"], last.metrics["state_events"]
    counted = (last.metrics["state_bytes"] - 200 * keys) / retained

    def per_event(started: Started) -> float:
        return (beside_ids(started) - beside_ids(empty[-1]) - 200 * keys) / retained

    return [
        Figure("start without state, s", first.text(2), "", "≤ 3", first.median <= 3),
        Figure(
            f"start with {retained:,.0f} retained events, from a snapshot, s",
            seconds.text(2),
            "",
            "≤ 5",
            seconds.median <= 5,
        ),
        Figure(
            f"memory per retained event, bytes, beside 200 per key ({keys:,.0f} keys)",
            f"{per_event(last):.1f}",
            f"built from the log {per_event(built):.1f}; the state counts {counted:.1f}",
            "≤ 32",
            max(per_event(last), per_event(built)) <= 32,
        ),
    ]


def beside_ids(started: Started) -> float:
    return started.memory_mb * (1 << 20) - started.metrics["ids_memory_bytes"]


def durations(starts: list[Started]) -> Spread:
    return Spread(tuple(each.seconds for each in starts))


class Started:
    """A service that was started once: how long that took, and what it then held."""

    def __init__(self, service: Service, seconds: float) -> None:
        self.seconds = seconds
        self.metrics = read_metrics(service.port)
        self.memory_mb = anonymous_mb(service.process.pid)


def start(data: Path, folder: Path) -> Started:
    begin = time.perf_counter()
    with Service(RETAINED_APP, data=data, log=folder / "service.txt") as service:
        service.wait_until_ready(READY_SECONDS)
        return Started(service, time.perf_counter() - begin)


def load_retained(folder: Path, events: int) -> None:
    source = folder / "payments.parquet"
    pq.write_table(payments(events, keys=RETAINED_KEYS, days=RETAINED_DAYS), source)
    command = [sys.executable, "-m", "penstock.cli", "replay", str(RETAINED_APP)]
    run([*command, "--from", str(source), "--load", "--data", str(folder / "data")])
    source.unlink()


def read_metrics(port: int) -> dict[str, float]:
    """The service's metrics without labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line)
    return {name.removeprefix("penstock_"): float(value) for name, value in pairs}
