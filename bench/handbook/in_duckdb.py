"""The twelve features in DuckDB: window functions on a unique integer key, for exact bounds.

python bench/handbook/in_duckdb.py IN.parquet OUT.parquet
"""

from __future__ import annotations

import sys

import duckdb

DAYS = (1, 7, 30)
DELAY = 7
# A row's place in time: its second, then its row; more slots than rows.
SLOTS = 10_000_000
DAY = 86_400 * SLOTS


def main(source: str, target: str) -> None:
    query = f"""
        with rows as (
            select TRANSACTION_ID, CUSTOMER_ID, TERMINAL_ID, cast(TX_FRAUD as bigint) as fraud,
                   cast(round(TX_AMOUNT * 100) as bigint) as cents,
                   cast(TX_TIME_SECONDS as bigint) * {SLOTS} + file_row_number as place
            from read_parquet('{source}', file_row_number = true)
        ), sums as (select TRANSACTION_ID, {", ".join(sums())} from rows)
        select TRANSACTION_ID, {", ".join(features())} from sums
    """
    duckdb.sql(f"copy ({query}) to '{target}' (format parquet, compression zstd)")


def sums() -> list[str]:
    columns = []
    for days in DAYS:
        frame = past("CUSTOMER_ID", days)
        columns += [f"count(*) {frame} as n{days}", f"sum(cents) {frame} as cents{days}"]
    for days in (DELAY, *(DELAY + days for days in DAYS)):
        frame = past("TERMINAL_ID", days)
        columns += [f"count(*) {frame} as t{days}", f"sum(fraud) {frame} as frauds{days}"]
    return columns


def past(key: str, days: int) -> str:
    frame = f"range between {days * DAY - 1} preceding and current row"
    return f"over (partition by {key} order by place {frame})"


def features() -> list[str]:
    columns = []
    for days in DAYS:
        columns += [
            f"n{days} as CUSTOMER_ID_NB_TX_{days}DAY_WINDOW",
            f"cast(cents{days} as double) / (n{days} * 100) "
            f"as CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW",
        ]
    for days in DAYS:
        # What is older than the delay: all of the longer window but what is in the delay itself.
        count = f"(t{DELAY + days} - t{DELAY})"
        frauds = f"cast(frauds{DELAY + days} - frauds{DELAY} as double)"
        columns += [
            f"{count} as TERMINAL_ID_NB_TX_{days}DAY_WINDOW",
            f"coalesce({frauds} / nullif({count}, 0), 0) as TERMINAL_ID_RISK_{days}DAY_WINDOW",
        ]
    return columns


if __name__ == "__main__":
    main(*sys.argv[1:])
