"""Where the coefficients of `examples/payments.py` come from: a logistic regression on generated payments.

    python examples/fit_risk.py

Payments of one seed are replayed for their features and fitted; those of another seed say how good the result is.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from penstock.demo.generator import DAY_US, GENUINE, Size, generate, payments_table, reports_table

APP = Path(__file__).with_name("payments.py")
NOW = 1_793_491_200_000_000  # 2026-11-01, in microseconds: the same payments on every day.
SIZE = Size(2_000, 4_000)
DAYS = 90
# The windows are not full before.
WARM_DAYS = 38
STEPS = 25

Column = np.ndarray


def main() -> None:
    inputs, fraud = history(seed=2)
    weights = fit(inputs, fraud)
    for name, weight in zip(["constant", *TERMS], weights, strict=True):
        print(f"{weight:+.3f}  {name}")
    inputs, fraud = history(seed=3)
    print(f"average precision on other payments: {average_precision(inputs @ weights, fraud):.3f}")


TERMS: dict[str, Callable[[dict[str, Column]], Column]] = {
    "min(amount / max(card_mean_30d, 1), 5)": lambda row: np.minimum(
        row["amount"] / np.maximum(row["card_mean_30d"], 1), 5
    ),
    "amount / 100": lambda row: row["amount"] / 100,
    "log1p(terminal_reports_7d)": lambda row: np.log1p(row["terminal_reports_7d"]),
    "log1p(terminal_reports_30d)": lambda row: np.log1p(row["terminal_reports_30d"]),
}


def history(seed: int) -> tuple[Column, Column]:
    """A constant and the terms of each payment, and whether it is fraud."""
    made = generate(seed=seed, days=DAYS, now=NOW, size=SIZE)
    warm = made.payments.paid_at < made.payments.paid_at.min() + WARM_DAYS * DAY_US
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(payments_table(made.payments), folder / "payments.parquet")
        pq.write_table(reports_table(made.reports), folder / "reports.parquet")
        command = [sys.executable, "-m", "penstock", "replay", str(APP)]
        command += ["--from", f"{folder}/payments.parquet", "--to", f"{folder}/out.parquet"]
        command += ["--topic", "fraud_reports", f"{folder}/reports.parquet"]
        subprocess.run(command, check=True)
        rows = pl.read_parquet(folder / "out.parquet").with_columns(pl.col("amount").cast(pl.Float64))
    row = {column.name: column.to_numpy() for column in rows.get_columns() if column.dtype.is_numeric()}
    inputs = np.column_stack([np.ones(len(rows)), *(term(row) for term in TERMS.values())])
    return inputs[~warm], (made.payments.scenario != GENUINE)[~warm]


def fit(inputs: Column, fraud: Column) -> Column:
    """Newton's method on the likelihood, with a whisper of a prior."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (fraud - chance) - 1e-3 * weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + 1e-3 * np.eye(len(weights))
        weights = weights + np.linalg.solve(curve, slope)
    return weights


def average_precision(scores: Column, fraud: Column) -> float:
    hits = fraud[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


if __name__ == "__main__":
    main()
