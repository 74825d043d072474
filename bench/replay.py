"""Replay of the Handbook's file as a whole command, beside Polars, DuckDB and pandas."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from bench.measure import HANDBOOK, ROOT, Spread, run
from bench.report import Figure, Section

APP = ROOT / "examples" / "handbook.py"
TASKS = ROOT / "bench" / "handbook"
REPEATS = 3
# pandas takes a minute and more for all: one in so many customers and terminals, all their rows.
PANDAS_PART = 10

FEATURES = [
    f"{key}_{what}_{days}DAY_WINDOW"
    for key, what in (
        ("CUSTOMER_ID", "NB_TX"),
        ("CUSTOMER_ID", "AVG_AMOUNT"),
        ("TERMINAL_ID", "NB_TX"),
        ("TERMINAL_ID", "RISK"),
    )
    for days in (1, 7, 30)
]


@dataclass(frozen=True)
class Timed:
    """One way to do the task."""

    rate: Spread
    peak_mb: float


def measure_replay(repeats: int = REPEATS) -> Section:
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as name:
        folder = Path(name)
        everything = time_task(penstock_command(folder / "all.parquet"), repeats)
        selected = time_task(penstock_command(folder / "ours.parquet", FEATURES), repeats)
        in_polars = time_task(task_command("in_polars", folder / "polars.parquet"), repeats)
        in_duckdb = time_task(task_command("in_duckdb", folder / "duckdb.parquet"), repeats)
        pandas = task_command("in_pandas", folder / "pandas.parquet", str(PANDAS_PART))
        in_pandas = time_task(pandas, 1, part=PANDAS_PART)
        for other in ("all", "polars", "duckdb", "pandas"):
            verify_equal(folder / "ours.parquet", folder / f"{other}.parquet")
    references = (
        f"Polars {in_polars.rate.text()}; DuckDB {in_duckdb.rate.text()}; "
        f"pandas {in_pandas.rate.text()} (of one key in {PANDAS_PART})"
    )
    memory = f"Polars {in_polars.peak_mb:,.0f}, DuckDB {in_duckdb.peak_mb:,.0f}"
    figures = [
        Figure(
            "replay, all columns, events/s",
            everything.rate.text(),
            references,
            "≥ 1,000,000",
            everything.rate.median >= 1_000_000,
        ),
        Figure(
            "replay, id and 12 features, events/s",
            selected.rate.text(),
            references,
            "≥ 1,300,000 and not behind Polars",
            selected.rate.median >= max(1_300_000, in_polars.rate.median),
        ),
        Figure("peak memory of that, MB", f"{selected.peak_mb:,.0f}", memory),
    ]
    return Section("Replay of the Handbook's file", NOTES, figures)


NOTES = """\
Whole commands, from Parquet to zstd Parquet, start-up included: `penstock replay
examples/handbook.py`, and a script each in `bench/handbook/`. Before figures count, all outputs
are compared value by value: counts and risks equal, averages to 1e-9. Median [least … greatest]."""


def penstock_command(target: Path, select: Sequence[str] | None = None) -> list[str]:
    chosen = ["--select", ",".join(["TRANSACTION_ID", *select])] if select else []
    start = [sys.executable, "-m", "penstock.cli", "replay", str(APP)]
    return [*start, "--from", str(HANDBOOK), "--to", str(target), *chosen]


def task_command(task: str, target: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(TASKS / f"{task}.py"), str(HANDBOOK), str(target), *arguments]


def time_task(command: Sequence[str | Path], repeats: int, *, part: int = 1) -> Timed:
    """Events per second of a command that does one part in `part` of the task."""
    rows = pq.read_metadata(HANDBOOK).num_rows / part
    runs = [run(command) for _ in range(repeats)]
    rate = Spread(tuple(rows / each.seconds for each in runs))
    return Timed(rate, max(each.peak_mb for each in runs))


def verify_equal(ours: Path, other: Path) -> None:
    """Raise `RuntimeError` unless both hold the same features, the nulls of the other apart."""
    names = ["TRANSACTION_ID", *FEATURES]
    pair = _read(other, names).join(_read(ours, names), on="TRANSACTION_ID", suffix="_ours")
    if len(pair) != pq.read_metadata(other).num_rows:
        raise RuntimeError(f"{other.name} has rows that ours has not")
    for name in FEATURES:
        apart = pair.select((pl.col(name) - pl.col(f"{name}_ours")).abs().max()).item()
        if apart is None or apart > (1e-9 if "AVG" in name else 0):
            raise RuntimeError(f"{name} differs by {apart} between {ours.name} and {other.name}")


def _read(path: Path, names: list[str]) -> pl.DataFrame:
    features = (pl.col(name).cast(pl.Float64).fill_nan(None) for name in names[1:])
    return pl.read_parquet(path, columns=names).select(pl.col(names[0]).cast(pl.Int64), *features)
