"""The core without the doors: the operators alone, appending, starting from a snapshot, memory."""

from __future__ import annotations

import http.client
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import HANDBOOK, ROOT, Spread, anonymous_mb, repeat, run
from bench.report import Figure, Section
from penstock import _native
from penstock.demo.generator import DAY_US, decimals
from penstock.demo.service import Service
from penstock.runtime.app import load_app
from penstock.runtime.plan import Plan, compile_plan
from penstock.serve.service import core_settings
from penstock.settings import read_settings

RETAINED_APP = ROOT / "bench" / "retained.py"
REPEATS = 3
BATCH_ROWS = 65_536

APPEND_ROWS = 1_000
APPEND_EVENTS = 2_000_000
# Batches under way at a time: more than a commit takes, so that the log is never without work.
APPEND_WAITING = 64
EVENTS_ARROW = 4

RETAINED_EVENTS = 10_000_000
RETAINED_KEYS = 100_000
RETAINED_DAYS = 29


def measure_core(scale: float = 1.0) -> Section:
    figures = [operators_figure(), append_figure(scale), *retained_figures(scale)]
    return Section("The core alone", NOTES, figures)


NOTES = f"""\
Operators: the features of the Handbook example in `penstock._native.Replayer`, events in memory,
without files and rules. Appending: Arrow batches submitted to the gate, without HTTP, each decoded,
its ids checked and synced before its answer. Start and memory: `bench/retained.py` with
{RETAINED_EVENTS:,} events of {RETAINED_KEYS:,} keys in {RETAINED_DAYS} days, all within the longest
window; start is the whole command until `/readyz`; memory is the state's own count, and beside it
what the process holds more than an empty one."""


def operators_figure() -> Figure:
    plan = compile_plan(load_app(ROOT / "examples" / "handbook.py"))
    batches = conformed(plan, pq.read_table(HANDBOOK))
    rows = sum(batch.num_rows for batch in batches)
    rate = repeat(REPEATS, lambda: rows / operators_seconds(plan, batches))
    return Figure(
        "operators alone, Arrow in, Arrow out, two threads, events/s",
        rate.text(),
        "",
        "≥ 3,000,000",
        rate.median >= 3_000_000,
    )


def operators_seconds(plan: Plan, batches: list[pa.RecordBatch]) -> float:
    names = [column["name"] for column in plan.document["features"][0]["columns"]]
    replayer = _native.Replayer(plan.to_json(), features=0, select=names, threads=2)
    start = time.perf_counter()
    for batch in batches:
        replayer.process(0, batch)
    return time.perf_counter() - start


def conformed(plan: Plan, table: pa.Table) -> list[pa.RecordBatch]:
    """The rows as the core keeps them: its columns and types."""
    fields = json.dumps(plan.document["topics"][0]["fields"])
    batches = table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS)
    return [pa.record_batch(_native.conform(batch, fields, True)[0]) for batch in batches]


def append_figure(scale: float) -> Figure:
    bodies = [arrow_body(batch) for batch in append_batches(round(APPEND_EVENTS * scale))]
    rate = repeat(REPEATS, lambda: len(bodies) * APPEND_ROWS / append_seconds(bodies))
    return Figure(
        f"append, durable, batches of {APPEND_ROWS:,}, events/s",
        rate.text(),
        "",
        "≥ 1,500,000",
        rate.median >= 1_500_000,
    )


def append_seconds(bodies: list[bytes]) -> float:
    """The time in which the gate makes all batches durable, some of them waiting at any time."""
    plan = compile_plan(load_app(ROOT / "bench" / "appended.py"))
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as folder:
        gate = _native.Gate(plan.to_json(), folder, core_settings(read_settings({})))
        ready = gate.start()
        os.set_blocking(ready, True)
        start = time.perf_counter()
        sent = answered = 0
        while answered < len(bodies):
            fill = range(sent, min(len(bodies), answered + APPEND_WAITING))
            gate.submit([(number, EVENTS_ARROW, 0, bodies[number], 0) for number in fill])
            sent = max(sent, fill.stop)
            os.eventfd_read(ready)
            for _, status, text, _ in gate.take():
                if status != 200:
                    raise RuntimeError(f"a batch was answered {status}: {text[:200].decode()}")
                answered += 1
        seconds = time.perf_counter() - start
        gate.stop()
        return seconds


def append_batches(events: int) -> list[pa.RecordBatch]:
    table = payments(events, keys=RETAINED_KEYS, days=1)
    batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=APPEND_ROWS)
    return batches


def arrow_body(batch: pa.RecordBatch) -> bytes:
    body = io.BytesIO()
    with pa.ipc.new_stream(body, batch.schema) as stream:
        stream.write_batch(batch)
    return body.getvalue()


def retained_figures(scale: float) -> list[Figure]:
    events = round(RETAINED_EVENTS * scale)
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as name:
        folder = Path(name)
        load_retained(folder, events)
        empty_mb = start(folder / "empty", folder).memory_mb
        # The first start builds what the log holds; stopping then leaves a snapshot.
        start(folder / "data", folder)
        starts = [start(folder / "data", folder) for _ in range(REPEATS)]
    seconds = Spread(tuple(each.seconds for each in starts))
    last = starts[-1]
    keys, retained = last.metrics["state_keys"], last.metrics["state_events"]
    per_event = (last.metrics["state_bytes"] - 200 * keys) / retained
    held = (last.memory_mb - empty_mb) * (1 << 20) / retained
    return [
        Figure(
            f"start with {retained:,.0f} retained events, from a snapshot, s",
            seconds.text(2),
            "",
            "≤ 5",
            seconds.median <= 5,
        ),
        Figure(
            f"memory per retained event, bytes, beside 200 per key ({keys:,.0f} keys)",
            f"{per_event:.1f}",
            f"the process holds {held:.1f} more per event than an empty one, keys and ids included",
            "≤ 32",
            per_event <= 32,
        ),
    ]


class Started:
    """A service that was started once: how long that took, and what it then held."""

    def __init__(self, service: Service, seconds: float) -> None:
        self.seconds = seconds
        self.metrics = read_metrics(service.port)
        self.memory_mb = anonymous_mb(service.process.pid)


def start(data: Path, folder: Path) -> Started:
    begin = time.perf_counter()
    with Service(RETAINED_APP, data=data, log=folder / "service.txt") as service:
        service.wait_until_ready(600)
        return Started(service, time.perf_counter() - begin)


def load_retained(folder: Path, events: int) -> None:
    source = folder / "payments.parquet"
    pq.write_table(payments(events, keys=RETAINED_KEYS, days=RETAINED_DAYS), source)
    command = [sys.executable, "-m", "penstock.cli", "replay", str(RETAINED_APP)]
    run([*command, "--from", str(source), "--load", "--data", str(folder / "data")])
    source.unlink()


def payments(events: int, *, keys: int, days: int) -> pa.Table:
    """Events of `bench/retained.py`, evenly in time, their keys at random."""
    rng = np.random.default_rng(1)
    end = time.time_ns() // 1_000 // DAY_US * DAY_US
    times = end - days * DAY_US + np.arange(events) * (days * DAY_US // events)
    cents = rng.integers(100, 100_000, size=events)
    return pa.table(
        {
            "payment_id": pa.array(np.arange(events)),
            "card": pa.array(rng.integers(0, keys, size=events)),
            "amount": decimals(cents),
            "paid_at": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )


def read_metrics(port: int) -> dict[str, float]:
    """The service's metrics without labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line)
    return {name.removeprefix("penstock_"): float(value) for name, value in pairs}
