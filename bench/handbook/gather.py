"""The Fraud Detection Handbook's simulated transactions, 183 days of pickles, made into one Parquet file.

    git clone --depth 1 https://github.com/Fraud-Detection-Handbook/simulated-data-raw
    python -m bench.handbook.gather simulated-data-raw handbook_transactions.parquet

Loading a pickle runs what it says: use no other source than the authors'.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

ROWS = 1_754_155
TYPES = {
    "TRANSACTION_ID": "int32",
    "TX_DATETIME": "datetime64[ms]",
    "CUSTOMER_ID": "int32",
    "TERMINAL_ID": "int32",
    "TX_AMOUNT": "float64",
    "TX_TIME_SECONDS": "int32",
    "TX_TIME_DAYS": "int32",
    "TX_FRAUD": "int8",
    "TX_FRAUD_SCENARIO": "int8",
}


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    days = [pd.read_pickle(path) for path in sorted(source.glob("data/*.pkl"))]
    if not days:
        sys.exit(f"{source} has no data/*.pkl: give a clone of simulated-data-raw")
    rows = pd.concat(days)[list(TYPES)].astype(TYPES)
    rows = rows.sort_values(["TX_TIME_SECONDS", "TRANSACTION_ID"], ignore_index=True)
    rows.to_parquet(target, compression="zstd")
    print(f"wrote {len(rows):,} rows to {target}; the Handbook has {ROWS:,}")


if __name__ == "__main__":
    main()
