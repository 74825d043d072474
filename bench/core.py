"""The core without the doors: the operators alone, in and out of order; appending."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import HANDBOOK, ROOT, Spread, repeat
from bench.report import Figure, Section
from penstock import _native
from penstock.demo.generator import DAY_US, decimals
from penstock.runtime.app import load_app
from penstock.runtime.gate import EVENTS_ARROW
from penstock.runtime.plan import Plan, compile_plan
from penstock.serve.service import core_settings
from penstock.settings import read_settings

REPEATS = 3
BATCH_ROWS = 65_536

APPEND_ROWS = 1_000
APPEND_EVENTS = 2_000_000
# Batches under way at a time: more than a commit takes, so that the log is never without work.
APPEND_WAITING = 64

APPEND_KEYS = 100_000

# Keys that are busy, so that events out of order pass others of their key; how many of them do, and
# by how much at most: the default lateness is an hour.
BUSY_EVENTS = 1_000_000
BUSY_KEYS = 1_000
DISPLACED_PART = 10
DISPLACED_SECONDS = 3_000


def measure_core(scale: float = 1.0) -> Section:
    figures = [operators_figure(), displaced_figure(scale), append_figure(scale)]
    return Section("The core alone", NOTES, figures)


NOTES = f"""\
Operators: the features of the Handbook example in `penstock._native.Replayer`, events in memory,
without files and rules. Out of order: counts and sums over three windows (`bench/retained.py`) of
{BUSY_KEYS:,} busy keys, {BUSY_EVENTS:,} events in a day; one event in {DISPLACED_PART} comes up to
{DISPLACED_SECONDS // 60} minutes after its time, and is placed among its key's events that came
before it. Appending: Arrow batches submitted to the gate, without HTTP, each decoded, its ids
checked and synced before its answer."""


def operators_figure() -> Figure:
    plan = compile_plan(load_app(ROOT / "examples" / "handbook.py"))
    rate = operators_rate(plan, pq.read_table(HANDBOOK))
    return Figure(
        "operators alone, Arrow in, Arrow out, two threads, events/s",
        rate.text(),
        "",
        "≥ 3,000,000",
        rate.median >= 3_000_000,
    )


def displaced_figure(scale: float) -> Figure:
    plan = compile_plan(load_app(ROOT / "bench" / "retained.py"))
    table = payments(round(BUSY_EVENTS * scale), keys=BUSY_KEYS, days=1)
    ordered, displaced = operators_rate(plan, table), operators_rate(plan, displace(table))
    more = (1 / displaced.median - 1 / ordered.median) * DISPLACED_PART * 1e6
    return Figure(
        f"operators, one event in {DISPLACED_PART} out of order, events/s",
        displaced.text(),
        f"in order {ordered.text()}: one out of order costs {more:.2f} µs more",
    )


def displace(table: pa.Table) -> pa.Table:
    """The same events in another order of arrival: some of them late."""
    rng = np.random.default_rng(1)
    arrival = table["paid_at"].cast(pa.int64()).to_numpy()
    late = rng.random(len(arrival)) < 1 / DISPLACED_PART
    arrival = arrival + late * rng.integers(1, DISPLACED_SECONDS * 1_000_000, size=len(arrival))
    return table.take(pa.array(np.argsort(arrival, kind="stable")))


def operators_rate(plan: Plan, table: pa.Table) -> Spread:
    batches = conformed(plan, table)
    return repeat(REPEATS, lambda: table.num_rows / operators_seconds(plan, batches))


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
    table = payments(events, keys=APPEND_KEYS, days=1)
    batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=APPEND_ROWS)
    return batches


def arrow_body(batch: pa.RecordBatch) -> bytes:
    body = io.BytesIO()
    with pa.ipc.new_stream(body, batch.schema) as stream:
        stream.write_batch(batch)
    return body.getvalue()


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
