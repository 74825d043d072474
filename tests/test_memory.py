"""What a service's process holds, beside what it counts as its state and its ids: the state's limit rests on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from processes import ROOT, Service, running, succeed

APP = ROOT / "bench" / "retained.py"
EVENTS, KEYS, DAYS = 2_000_000, 20_000, 29
# Beside what is counted: buffers of a batch, and what the allocator keeps at hand.
AROUND_MB = 24.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with two million events, all within the longest window."""
    folder = tmp_path_factory.mktemp("memory")
    write_payments(folder / "payments.parquet")
    succeed("replay", APP, "--from", folder / "payments.parquet", "--load", "--data", folder / "data")
    return folder / "data"


def test_a_start_from_the_log_and_one_from_a_snapshot_hold_little_more_than_they_count(data: Path) -> None:
    with started(data.with_name("empty")) as service:
        empty = held_mb(service)
    with started(data) as service:
        # Rings that grow leave holes behind, which a snapshot closes.
        check(service, empty, factor=2.0)
    with started(data) as service:
        check(service, empty, factor=1.5)


def check(service: Service, empty_mb: float, *, factor: float) -> None:
    assert metric(service, "state_events") == EVENTS
    counted = (metric(service, "state_bytes") + metric(service, "ids_memory_bytes")) / (1 << 20)
    grown = held_mb(service) - empty_mb
    assert counted / 4 < grown < factor * counted + AROUND_MB, (grown, counted)


@contextmanager
def started(data: Path) -> Iterator[Service]:
    """A service that is ready, and writes a snapshot when it ends."""
    with running(data, app=APP) as service:
        yield service
        assert service.end() == 0


def held_mb(service: Service) -> float:
    """Memory of the process itself, files mapped apart."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"RssAnon:\s*(\d+) kB", status)
    assert found
    return int(found.group(1)) / 1024


def metric(service: Service, name: str) -> float:
    text = service.call("GET", "/metrics").body.decode()
    found = re.search(rf"^penstock_{name} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found.group(1))


def write_payments(path: Path) -> None:
    rng = np.random.default_rng(1)
    start = datetime(2026, 10, 1, tzinfo=UTC)
    seconds = np.sort(rng.integers(0, DAYS * 86_400, EVENTS))
    table = pl.DataFrame(
        {
            "payment_id": np.arange(EVENTS),
            "card": rng.integers(0, KEYS, EVENTS),
            "amount": np.ones(EVENTS),
            "seconds": seconds,
        }
    ).select(
        "payment_id",
        "card",
        pl.col("amount").cast(pl.Decimal(12, 2)),
        paid_at=pl.lit(start) + pl.duration(seconds="seconds"),
    )
    table.write_parquet(path)
