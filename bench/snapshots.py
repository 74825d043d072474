"""What a snapshot of a large state costs those who ask meanwhile."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.core import payments
from bench.measure import ROOT, run
from bench.report import Figure, Section
from bench.starts import READY_SECONDS, RETAINED_APP, read_metrics
from penstock.demo.load import open_loop, request, steady
from penstock.demo.service import Service

KEYS = 10_000_000
DAYS = 29
RATE = 2_000
SECONDS = 120
SETTINGS = {"PENSTOCK_SNAPSHOT_EVERY": "15s", "PENSTOCK_STATE_BYTES": "16GiB"}
DECIDE = "/v1/policies/authorise/decide"
CONNECTIONS = 64
LOOK_S = 0.01


def measure_snapshots(scale: float = 1.0) -> Section:
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as name:
        folder = Path(name)
        load(folder, round(KEYS * scale))
        service = Service(RETAINED_APP, data=folder / "data", log=folder / "service.txt", environment=SETTINGS)
        # The first one builds the state from the log, and leaves a snapshot of it.
        with service:
            service.wait_until_ready(READY_SECONDS)
        size = max(each.stat().st_size for each in (folder / "data" / "snapshots").glob("*.snapshot"))
        with service:
            service.wait_until_ready(READY_SECONDS)
            while not read_metrics(service.port)["snapshotter_starts_total"]:
                time.sleep(0.1)
            keys = read_metrics(service.port)["state_keys"]
            watch = Watch(folder / "data" / "snapshots")
            latencies = decide(service, round(SECONDS * max(scale, 0.3)), keys=round(KEYS * scale))
            watch.stop()
    return Section("While a snapshot is written", notes(keys, size), figures(latencies, watch))


def load(folder: Path, keys: int) -> None:
    """A payment of each of so many cards, in the log."""
    table = payments(keys, keys=keys, days=DAYS)
    table = table.set_column(1, "card", pa.array(np.arange(keys)))
    source = folder / "payments.parquet"
    pq.write_table(table, source)
    command = [sys.executable, "-m", "penstock.cli", "replay", str(RETAINED_APP)]
    run([*command, "--from", str(source), "--load", "--data", str(folder / "data")])
    source.unlink()


def decide(service: Service, seconds: int, *, keys: int) -> NDArray[np.float64]:
    """An open loop of decisions; for each the time at which it was due and its latency, in seconds."""
    paid_at = datetime.now(UTC).isoformat()
    cards = np.random.default_rng(2).integers(0, keys, size=RATE * seconds)
    bodies = [
        json.dumps({"payment_id": keys + number, "card": int(card), "amount": "1.00", "paid_at": paid_at}).encode()
        for number, card in enumerate(cards)
    ]
    times: list[tuple[float, float]] = []

    def answered(_place: int, status: int, body: bytes, latency: float) -> None:
        if status != 200 or b'"timed_out":true' in body:
            raise RuntimeError(f"not decided: {status}")
        times.append((time.monotonic() - latency, latency))

    requests = [request(DECIDE, body) for body in bodies]
    open_loop(service.address, requests, steady(RATE, len(requests)), connections=CONNECTIONS, on_answer=answered)
    return np.array(times)


class Watch:
    """When a snapshot was being written or read back, by a look at its folder."""

    def __init__(self, folder: Path) -> None:
        self.changes: list[tuple[float, bool]] = [(time.monotonic(), False)]
        self._folder = folder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch")
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.changes.append((time.monotonic(), False))

    def spans(self) -> list[tuple[float, float]]:
        return [(begin, end) for (begin, busy), (end, _) in itertools.pairwise(self.changes) if busy]

    def _look(self) -> None:
        while not self._stopped.wait(LOOK_S):
            # A snapshot has its name once it has been read back.
            busy = any(each.name.startswith("draft") for each in self._folder.iterdir())
            if busy != self.changes[-1][1]:
                self.changes.append((time.monotonic(), busy))


def figures(latencies: NDArray[np.float64], watch: Watch) -> list[Figure]:
    due, took = latencies[:, 0], latencies[:, 1] * 1_000
    inside = np.zeros(len(due), dtype=bool)
    spans = watch.spans()
    for begin, end in spans:
        inside |= (begin <= due) & (due < end)
    outside_p99, inside_p99 = (float(np.percentile(took[each], 99)) for each in (~inside, inside))
    seconds = sum(end - begin for begin, end in spans)
    ratio = inside_p99 / outside_p99
    return [
        Figure("p99 outside, ms", f"{outside_p99:.2f}", f"p50 {np.percentile(took[~inside], 50):.2f}"),
        Figure(
            "p99 while one is written and read back, ms",
            f"{inside_p99:.2f}",
            f"p50 {np.percentile(took[inside], 50):.2f}; {len(spans)} of {seconds / len(spans):.1f} s; "
            f"{ratio:.2f} × outside",
            "≤ 2 × outside",
            ratio <= 2,
        ),
    ]


def notes(keys: float, size: int) -> str:
    return f"""\
`bench/retained.py` with a state of {keys:,.0f} keys, of which a snapshot takes {size / 1e6:,.0f} MB; an open loop of
{RATE:,} decisions/s over {CONNECTIONS} connections for {SECONDS} s, a snapshot 15 s after the one before."""
