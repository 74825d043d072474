"""The twelve features in Bytewax: a branch of `stateful_map` for each key, merged in the sink.

    python -m bench.handbook.in_bytewax IN.parquet OUT.parquet PART

takes one customer and one terminal in PART, all their rows; what was not computed is null. One
`stateful_map` after the other would be shorter and wrong: a step hands on its events key by key, so
that the next one sees them out of order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import bytewax.operators as op
import pyarrow as pa
import pyarrow.parquet as pq
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from bench.handbook.columns import CUSTOMER, TERMINAL, batches
from bench.handbook.past import DELAY, Features, Past

Row = tuple[int, ...]


def main(source: str, target: str, part: str) -> None:
    every = int(part)
    flow = Dataflow("handbook")
    rows = op.input("rows", flow, Rows(source))
    customers = op.filter("some_customers", rows, lambda row: row[2] % every == 0)
    customers = op.key_on("customer", customers, lambda row: str(row[2]))
    customers = op.stateful_map("customer_past", customers, add_to_customer)
    terminals = op.filter("some_terminals", rows, lambda row: row[3] % every == 0)
    terminals = op.key_on("terminal", terminals, lambda row: str(row[3]))
    terminals = op.stateful_map("terminal_past", terminals, add_to_terminal)
    op.output("features", op.merge("both", customers, terminals), Sink(target))
    cli_main(flow)


def add_to_customer(past: Past | None, row: Row) -> tuple[Past, Any]:
    past = past or Past()
    return past, (0, row[0], past.means(row[1], row[4]))


def add_to_terminal(past: Past | None, row: Row) -> tuple[Past, Any]:
    past = past or Past(DELAY)
    return past, (1, row[0], past.risks(row[1], row[5]))


class Rows(DynamicSource):
    """The file's rows, by the only worker."""

    def __init__(self, source: str) -> None:
        self._source = source

    def build(self, _step: str, _worker: int, _workers: int) -> Any:
        return RowsOfFile(self._source)


class RowsOfFile(StatelessSourcePartition):
    def __init__(self, source: str) -> None:
        self._batches = batches(source)

    def next_batch(self) -> Iterable[Row]:
        return next(self._batches)  # StopIteration is the end of the stream.


class Sink(DynamicSink):
    """Joins both halves by transaction, and writes them at the end."""

    def __init__(self, target: str) -> None:
        self._target = target

    def build(self, _step: str, _worker: int, _workers: int) -> Any:
        return SinkOfFile(self._target)


class SinkOfFile(StatelessSinkPartition):
    def __init__(self, target: str) -> None:
        self._target = target
        self._halves: tuple[list[pa.RecordBatch], list[pa.RecordBatch]] = ([], [])

    def write_batch(self, items: list[tuple[str, tuple[int, int, Features]]]) -> None:
        for half, names in enumerate((CUSTOMER, TERMINAL)):
            found = [(transaction, *six) for _, (which, transaction, six) in items if which == half]
            if found:
                columns = [pa.array(column) for column in zip(*found, strict=True)]
                batch = pa.record_batch(columns, names=["TRANSACTION_ID", *names])
                self._halves[half].append(batch)

    def close(self) -> None:
        customers, terminals = (pa.Table.from_batches(half) for half in self._halves)
        both = customers.join(terminals, "TRANSACTION_ID", join_type="full outer")
        pq.write_table(both, self._target, compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
