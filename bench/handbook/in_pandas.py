"""The twelve features in pandas, the book's way: a function per customer and per terminal.

    python bench/handbook/in_pandas.py IN.parquet OUT.parquet PART

takes one customer and one terminal in PART, all their rows: the whole takes a minute and more. What
was not computed is null.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pandas as pd

WINDOWS = (1, 7, 30)
DELAY = 7


def main(source: str, target: str, part: str) -> None:
    rows = pd.read_parquet(source).sort_values(["TX_TIME_SECONDS", "TRANSACTION_ID"])
    customers = by_group(rows[rows.CUSTOMER_ID % int(part) == 0], "CUSTOMER_ID", customer_features)
    terminals = by_group(rows[rows.TERMINAL_ID % int(part) == 0], "TERMINAL_ID", terminal_features)
    both = customers.merge(terminals, on="TRANSACTION_ID", how="outer")
    both.to_parquet(target, compression="zstd", index=False)


def by_group(
    rows: pd.DataFrame, key: str, function: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    features = pd.concat([function(group) for _, group in rows.groupby(key, sort=False)])
    names = [name for name in features.columns if name.endswith("DAY_WINDOW")]
    return features[["TRANSACTION_ID", *names]]


def customer_features(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.set_index("TX_DATETIME")
    for days in WINDOWS:
        past = rows.TX_AMOUNT.rolling(f"{days}D")
        count = past.count()
        rows[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"] = count.astype("int64")
        rows[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"] = past.sum() / count
    return rows


def terminal_features(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.set_index("TX_DATETIME")
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
