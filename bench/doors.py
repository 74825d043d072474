"""Decisions over HTTP: the Handbook's example, beside a bare server that answers as many bytes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bench.measure import HANDBOOK, ROOT, Spread
from bench.report import Figure, Section
from penstock.demo.load import Address, Load, closed_loop, open_loop, request, steady
from penstock.demo.service import Service, free_port

APP = ROOT / "examples" / "handbook.py"
DECIDE = "/v1/policies/authorise/decide"
EVENTS = "/v1/topics/transactions/events"
NDJSON = "application/x-ndjson"

REPEATS = 3
WARM_EVENTS = 200_000
WARM_BATCH = 10_000
CLOSED_EVENTS = 100_000
OPEN_RATE = 2_000
OPEN_SECONDS = 10
MANY_EVENTS = 200_000
MANY_BATCH = 1_000
MANY_CONNECTIONS = 8


def measure_doors(scale: float = 1.0) -> Section:
    """All measurements over HTTP. `scale` shortens them, for trying them out."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / ".bench")))
        service = Service(APP, data=folder / "data", log=folder / "service.txt")
        stack.enter_context(service)
        service.wait_until_ready()
        events = Events(handbook_lines())
        warm_up(service, events, round(WARM_EVENTS * scale))
        size = len(service.post(DECIDE, events.take(1)[0]))
        bare = stack.enter_context(bare_server(folder / "bare", size))
        results = [measure_both(service.address, bare, events, scale) for _ in range(REPEATS)]
        check_both(results)
        return Section("Over HTTP", notes(size), figures(results))


@dataclass(frozen=True)
class Loads:
    """One repetition against one server."""

    closed_64: Load
    closed_256: Load
    open: Load
    many: Load
    timed_out: int


Pair = tuple[Loads, Loads]


def measure_both(service: Address, bare: Address, events: Events, scale: float) -> Pair:
    """The same requests, to one server after the other, so that both see the machine as it was."""
    single = round(CLOSED_EVENTS * scale)
    steady_ = round(OPEN_RATE * OPEN_SECONDS * scale)
    taken = events.take(single), events.take(single), events.take(steady_)
    many = events.take(round(MANY_EVENTS * scale))
    return measure(service, *taken, many), measure(bare, *taken, many)


def measure(
    address: Address, few: list[bytes], lots: list[bytes], paced: list[bytes], many: list[bytes]
) -> Loads:
    fallbacks = Fallbacks()
    batches = [many[start : start + MANY_BATCH] for start in range(0, len(many), MANY_BATCH)]
    bodies = [request(DECIDE, b"\n".join(batch), content_type=NDJSON) for batch in batches]
    return Loads(
        closed_64=closed_loop(address, decides(few), connections=64, on_answer=fallbacks),
        closed_256=closed_loop(address, decides(lots), connections=256, on_answer=fallbacks),
        open=open_loop(
            address,
            decides(paced),
            steady(OPEN_RATE, len(paced)),
            connections=64,
            on_answer=fallbacks,
        ),
        many=closed_loop(address, bodies, connections=MANY_CONNECTIONS),
        timed_out=fallbacks.count,
    )


class Fallbacks:
    """Counts the answers that were the fallback: a deadline missed is no decision."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _place: int, _status: int, body: bytes, _seconds: float) -> None:
        self.count += b'"timed_out":true' in body


def decides(lines: list[bytes]) -> list[bytes]:
    return [request(DECIDE, line) for line in lines]


def check_both(results: list[Pair]) -> None:
    for loads in (each for pair in results for each in pair):
        statuses: Counter[int] = Counter()
        for load in (loads.closed_64, loads.closed_256, loads.open, loads.many):
            statuses += load.statuses
        if set(statuses) != {200} or loads.timed_out:
            raise RuntimeError(f"not all were decided: {statuses}, {loads.timed_out} fallbacks")


def figures(results: list[Pair]) -> list[Figure]:
    ours, bare = [pair[0] for pair in results], [pair[1] for pair in results]
    return [
        *closed(64, [each.closed_64 for each in ours], [each.closed_64 for each in bare], p99=10),
        *closed(
            256, [each.closed_256 for each in ours], [each.closed_256 for each in bare], p99=15
        ),
        *paced([each.open for each in ours], [each.open for each in bare]),
        many([each.many for each in ours], [each.many for each in bare]),
    ]


def closed(connections: int, ours: list[Load], bare: list[Load], *, p99: float) -> list[Figure]:
    rate, bare_rate = rates(ours), rates(bare)
    latency, bare_latency = percentiles(ours, 99), percentiles(bare, 99)
    ratio = rate.median / bare_rate.median
    return [
        Figure(
            f"single decisions/s, {connections} connections",
            rate.text(),
            f"bare server {bare_rate.text()}; {ratio:.2f} × it",
            "≥ 40,000 and ≥ 0.6 × the bare server",
            rate.median >= 40_000 and ratio >= 0.6,
        ),
        Figure(
            f"their p99, ms (p50 {percentiles(ours, 50).text(2)})",
            latency.text(2),
            f"bare server {bare_latency.text(2)}",
            f"≤ {p99:.0f}",
            latency.median <= p99,
        ),
    ]


def paced(ours: list[Load], bare: list[Load]) -> list[Figure]:
    p50, p99 = percentiles(ours, 50), percentiles(ours, 99)
    bare_p50, bare_p99 = percentiles(bare, 50), percentiles(bare, 99)
    what = f"steady {OPEN_RATE:,}/s, open loop"
    return [
        Figure(
            f"{what}: p50, ms",
            p50.text(2),
            f"bare server {bare_p50.text(2)}",
            "≤ 0.6",
            p50.median <= 0.6,
        ),
        Figure(
            f"{what}: p99, ms",
            p99.text(2),
            f"bare server {bare_p99.text(2)}",
            "≤ 3, or ≤ 1.5 × the bare server",
            p99.median <= 3 or p99.median <= 1.5 * bare_p99.median,
        ),
    ]


def many(ours: list[Load], bare: list[Load]) -> Figure:
    rate, bare_rate = rates(ours).scaled(MANY_BATCH), rates(bare).scaled(MANY_BATCH)
    return Figure(
        f"decisions/s in NDJSON of {MANY_BATCH:,}, {MANY_CONNECTIONS} connections",
        rate.text(),
        f"bare server {bare_rate.text()}",
        "≥ 250,000",
        rate.median >= 250_000,
    )


def rates(loads: list[Load]) -> Spread:
    return Spread(tuple(load.rate for load in loads))


def percentiles(loads: list[Load], percent: float) -> Spread:
    return Spread(tuple(load.percentile_ms(percent) for load in loads))


def notes(size: int) -> str:
    return f"""\
`examples/handbook.py` (12 features and their helpers, 10 rules) under `penstock run`, on the
Handbook's transactions in their order, after {WARM_EVENTS:,} of them; keep-alive, JSON, answers of
{size} bytes, every decision synced before its answer. The client (`penstock.demo.load`) shares the
cores. The bare server takes the same bodies, syncs them and answers {size} bytes, without any work.
{REPEATS} repetitions, the two in turn; median [least … greatest]. Latencies of the open loop count
from the moment at which a request was due. [PROFILE.md](PROFILE.md) says what bounds them."""


class Events:
    """The Handbook's transactions as JSON, each taken once: a second time would be a repeat."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines
        self._place = 0

    def take(self, count: int) -> list[bytes]:
        taken = self._lines[self._place : self._place + count]
        if len(taken) < count:
            raise RuntimeError("the Handbook's file has no more transactions")
        self._place += count
        return taken


def handbook_lines() -> list[bytes]:
    rows = pl.read_parquet(HANDBOOK).select(
        "TRANSACTION_ID",
        pl.col("TX_DATETIME").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "CUSTOMER_ID",
        "TERMINAL_ID",
        pl.col("TX_AMOUNT").round(2),
        "TX_FRAUD",
    )
    return rows.write_ndjson().encode().splitlines()


def warm_up(service: Service, events: Events, count: int) -> None:
    lines = events.take(count)
    for start in range(0, count, WARM_BATCH):
        body = b"\n".join(lines[start : start + WARM_BATCH])
        service.post(EVENTS, body, content_type=NDJSON)


@contextmanager
def bare_server(file: Path, answer_bytes: int) -> Iterator[Address]:
    port = free_port()
    command = [sys.executable, str(ROOT / "bench" / "bare_server.py"), "--port", str(port)]
    command += ["--file", str(file), "--answer-bytes", str(answer_bytes)]
    process = subprocess.Popen(command)
    try:
        wait_for(port)
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            probe = closed_loop(("127.0.0.1", port), [request("/", b"{}")], connections=1)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            if probe.statuses[200] == 1:
                return
