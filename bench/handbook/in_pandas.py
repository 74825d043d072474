"""The twelve features in pandas, the way the book does it: a function per customer and per terminal.

    python bench/handbook/in_pandas.py IN.parquet OUT.parquet DAYS

takes only the file's first DAYS days: the whole takes a minute and more.
"""

from __future__ import annotations

import sys

import pandas as pd

WINDOWS = (1, 7, 30)
DELAY = 7


def main(source: str, target: str, days: str) -> None:
    rows = pd.read_parquet(source)
    rows = rows[rows.TX_TIME_DAYS < int(days)].sort_values(["TX_TIME_SECONDS", "TRANSACTION_ID"])
    rows = by_group(rows, "CUSTOMER_ID", customer_features)
    rows = by_group(rows, "TERMINAL_ID", terminal_features)
    columns = [name for name in rows.columns if name.endswith("DAY_WINDOW")]
    rows[["TRANSACTION_ID", *columns]].to_parquet(target, compression="zstd", index=False)


def by_group(rows, key, function):
    return pd.concat([function(group) for _, group in rows.groupby(key, sort=False)])


def customer_features(rows):
    rows = rows.set_index("TX_DATETIME", drop=False)
    for days in WINDOWS:
        past = rows.TX_AMOUNT.rolling(f"{days}D")
        count = past.count()
        rows[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"] = count.astype("int64")
        rows[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"] = past.sum() / count
    return rows


def terminal_features(rows):
    rows = rows.sort_values(["TX_TIME_SECONDS", "TRANSACTION_ID"])
    in_delay = rows.TX_FRAUD.rolling(f"{DELAY}D")
    delay_count, delay_frauds = in_delay.count(), in_delay.sum()
    for days in WINDOWS:
        # What is older than the delay: all of the longer window but what is in the delay itself.
        past = rows.TX_FRAUD.rolling(f"{DELAY + days}D")
        count, frauds = past.count() - delay_count, past.sum() - delay_frauds
        rows[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"] = count.astype("int64")
        rows[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"] = (frauds / count).fillna(0)
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
