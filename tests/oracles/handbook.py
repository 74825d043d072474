"""The Handbook's twelve features over the whole file at once, in DuckDB: what every replay must
give.

The definitions are those of the *Fraud Detection Handbook*, chapter 3, with the exact boundaries of
its code. With t the event time, w in 1, 7 and 30 days, and rows in the order of (time,
TRANSACTION_ID):

    customer    (t − w, t]                 the row itself included, later rows of its second not
    terminal    (t − 7 d − w, t − 7 d]     all rows of the second t − 7 d included

A frame of SQL's RANGE is closed at both ends and takes peers in. So times become one unique, rising
integer, `seconds * n + position`, in which "more than t − w" and "at most t − 7 d" are exact
bounds.
"""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent.parent
# Not part of the project; CONTRIBUTING.md says how to have it.
HISTORY = Path(os.environ.get("HANDBOOK") or ROOT.parent / "shared" / "data" / "handbook_transactions.parquet")

DAYS = (1, 7, 30)
DELAY_DAYS = 7
DAY_SECONDS = 86_400

FEATURES = (
    *(f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW" for days in DAYS),
    *(f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW" for days in DAYS),
    *(f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW" for days in DAYS),
    *(f"TERMINAL_ID_RISK_{days}DAY_WINDOW" for days in DAYS),
)
FLAGS = ("TX_DURING_WEEKEND", "TX_DURING_NIGHT")


def handbook_features(file: Path) -> pa.Table:
    """TRANSACTION_ID, the twelve features and the two flags, sorted by TRANSACTION_ID.

    Counts and flags are int64. Averages are the float64 nearest to (sum of cents) / n / 100; risks
    are frauds / n.
    """
    with duckdb.connect() as connection:
        return connection.sql(handbook_sql(file)).to_arrow_table()


def handbook_sql(file: Path) -> str:
    return f"""
        with ordered as (
            select *, row_number() over (order by TX_DATETIME, TRANSACTION_ID) - 1 as position
            from read_parquet('{file}')
        ), keyed as (
            select cast(TRANSACTION_ID as bigint) as TRANSACTION_ID, CUSTOMER_ID, TERMINAL_ID,
            TX_DATETIME,
                   cast(round(TX_AMOUNT * 100) as bigint) as cents, cast(TX_FRAUD as bigint) as
                   fraud, epoch_ms(TX_DATETIME) // 1000 * {SLOTS} + position as place,
                   epoch_ms(TX_DATETIME) // 1000 * {SLOTS} as second_start
            from ordered
        ), windows as (
            select TRANSACTION_ID, TX_DATETIME, {", ".join([*_customer_sums(), *_terminal_sums()])}
            from keyed
        )
        select TRANSACTION_ID, {", ".join(_columns())}
        from windows order by TRANSACTION_ID
    """


# More rows than the file has, so that a row's place in its second never reaches the next second.
SLOTS = 10_000_000


def _customer_sums() -> list[str]:
    sums = []
    for days in DAYS:
        # Everything of the second t − w is out: the first place in is that of the next second,
        # whoever asks.
        width = days * DAY_SECONDS * SLOTS
        frame = (
            "over (partition by CUSTOMER_ID order by place range between "
            f"(place - second_start + {width - SLOTS}) preceding and current row)"
        )
        sums.append(f"count(*) {frame} as customer_n{days}")
        sums.append(f"sum(cents) {frame} as customer_cents{days}")
    return sums


def _terminal_sums() -> list[str]:
    sums = []
    for days in DAYS:
        # From the second after t − 7 d − w to the last place of the second t − 7 d.
        first = (DELAY_DAYS + days) * DAY_SECONDS * SLOTS - SLOTS
        last = DELAY_DAYS * DAY_SECONDS * SLOTS - SLOTS + 1
        frame = (
            "over (partition by TERMINAL_ID order by place range between "
            f"(place - second_start + {first}) preceding "
            f"and (place - second_start + {last}) preceding)"
        )
        sums.append(f"count(*) {frame} as terminal_n{days}")
        sums.append(f"coalesce(sum(fraud) {frame}, 0) as terminal_frauds{days}")
    return sums


def _columns() -> list[str]:
    return [
        *(f"customer_n{days} as CUSTOMER_ID_NB_TX_{days}DAY_WINDOW" for days in DAYS),
        *(
            f"cast(customer_cents{days} as double) / (customer_n{days} * 100) "
            f"as CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"
            for days in DAYS
        ),
        *(f"terminal_n{days} as TERMINAL_ID_NB_TX_{days}DAY_WINDOW" for days in DAYS),
        *(
            f"coalesce(cast(terminal_frauds{days} as double) / nullif(terminal_n{days}, 0), 0) "
            f"as TERMINAL_ID_RISK_{days}DAY_WINDOW"
            for days in DAYS
        ),
        "cast(isodow(TX_DATETIME) >= 6 as bigint) as TX_DURING_WEEKEND",
        "cast(hour(TX_DATETIME) <= 6 as bigint) as TX_DURING_NIGHT",
    ]
