"""The twelve features in Polars, a batch over the whole file: `rolling_sum_by().over()`.

python bench/handbook/in_polars.py IN.parquet OUT.parquet
"""

from __future__ import annotations

import sys

import polars as pl

DAYS = (1, 7, 30)
DELAY = 7
# A row's place in time: its second, then its row. More slots than rows, so that a window of whole
# seconds over places is one over seconds, and ties stand in the order of the rows.
SLOTS = 10_000_000
DAY = 86_400 * SLOTS


def main(source: str, target: str) -> None:
    rows = pl.read_parquet(source).with_row_index("row")
    rows = rows.select(
        "TRANSACTION_ID",
        "CUSTOMER_ID",
        "TERMINAL_ID",
        (pl.col("TX_TIME_SECONDS").cast(pl.Int64) * SLOTS + pl.col("row")).alias("place"),
        (pl.col("TX_AMOUNT") * 100).round().cast(pl.Int64).alias("cents"),
        pl.col("TX_FRAUD").cast(pl.Int64).alias("fraud"),
        pl.lit(1, pl.Int64).alias("one"),
    )
    customers = [past(column, "CUSTOMER_ID", days) for days in DAYS for column in ("one", "cents")]
    terminals = [
        past(column, "TERMINAL_ID", days)
        for days in (DELAY, *(DELAY + days for days in DAYS))
        for column in ("one", "fraud")
    ]
    sums = rows.with_columns(*customers, *terminals)
    sums.select("TRANSACTION_ID", *features()).write_parquet(target, compression="zstd")


def past(column: str, key: str, days: int) -> pl.Expr:
    window = pl.col(column).rolling_sum_by("place", f"{days * DAY}i").over(key)
    return window.alias(f"{key}_{column}_{days}")


def features() -> list[pl.Expr]:
    expressions = []
    for days in DAYS:
        count = pl.col(f"CUSTOMER_ID_one_{days}")
        mean = pl.col(f"CUSTOMER_ID_cents_{days}") / (count * 100)
        expressions += [
            count.alias(f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"),
            mean.alias(f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"),
        ]
    for days in DAYS:
        # What is older than the delay: all of the longer window but what is in the delay itself.
        count, frauds = (
            pl.col(f"TERMINAL_ID_{column}_{DELAY + days}") - pl.col(f"TERMINAL_ID_{column}_{DELAY}")
            for column in ("one", "fraud")
        )
        risk = pl.when(count > 0).then(frauds / count).otherwise(0.0)
        expressions += [
            count.alias(f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"),
            risk.alias(f"TERMINAL_ID_RISK_{days}DAY_WINDOW"),
        ]
    return expressions


if __name__ == "__main__":
    main(*sys.argv[1:])
