"""The file's rows as the streaming peers take them, and the features' names as they give them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.handbook.past import DAYS

CUSTOMER = [
    f"CUSTOMER_ID_{what}_{days}DAY_WINDOW" for what in ("NB_TX", "AVG_AMOUNT") for days in DAYS
]
TERMINAL = [f"TERMINAL_ID_{what}_{days}DAY_WINDOW" for what in ("NB_TX", "RISK") for days in DAYS]
BATCH_ROWS = 10_000


def rows(source: str) -> pa.Table:
    """The columns of the task, in the order of the file, which is that of time."""
    table = pq.read_table(source)
    cents = pc.round(pc.multiply(table["TX_AMOUNT"], 100))
    columns = {
        "transaction": table["TRANSACTION_ID"],
        "seconds": table["TX_TIME_SECONDS"],
        "customer": table["CUSTOMER_ID"],
        "terminal": table["TERMINAL_ID"],
        "cents": cents,
        "fraud": table["TX_FRAUD"],
    }
    return pa.table({name: column.cast(pa.int64()) for name, column in columns.items()})


def batches(source: str) -> Iterator[list[tuple[int, ...]]]:
    for batch in rows(source).to_batches(max_chunksize=BATCH_ROWS):
        yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
