"""The twelve features in Pathway: all rows of a key in one group, and a function over them.

    python -m bench.handbook.in_pathway IN.parquet OUT.parquet PART

takes one customer and one terminal in PART, all their rows; what was not computed is null. Its
windows are not used: `intervals_over` ignores a key, and a sliding window moves in steps.
"""

from __future__ import annotations

import sys

import pathway as pw

from bench.handbook.columns import CUSTOMER, TERMINAL, rows
from bench.handbook.past import DELAY, Past

# The transaction and its features.
Featured = tuple[int, int, int, int, float, float, float]


class Row(pw.Schema):
    transaction: int
    seconds: int
    customer: int
    terminal: int
    cents: int
    fraud: int


def main(source: str, target: str, part: str) -> None:
    every = int(part)
    table = pw.debug.table_from_pandas(rows(source).to_pandas(), schema=Row)
    customers = of_key(table.filter(pw.this.customer % every == 0), "customer", "cents", CUSTOMER)
    terminals = of_key(table.filter(pw.this.terminal % every == 0), "terminal", "fraud", TERMINAL)
    both = customers.join_outer(terminals, customers.transaction == terminals.transaction).select(
        TRANSACTION_ID=pw.coalesce(customers.transaction, terminals.transaction),
        **{name: customers[name] for name in CUSTOMER},
        **{name: terminals[name] for name in TERMINAL},
    )
    frame = pw.debug.table_to_pandas(both, include_id=False)
    frame.to_parquet(target, compression="zstd", index=False)


def of_key(table: pw.Table, key: str, value: str, names: list[str]) -> pw.Table:
    event = pw.make_tuple(pw.this.seconds, pw.this.transaction, pw.this[value])
    groups = table.groupby(pw.this[key]).reduce(events=pw.reducers.sorted_tuple(event))
    function = customer_features if key == "customer" else terminal_features
    features = groups.select(row=function(pw.this.events)).flatten(pw.this.row)
    columns = {name: pw.this.row[place + 1] for place, name in enumerate(names)}
    return features.select(transaction=pw.this.row[0], **columns)


@pw.udf
def customer_features(events: tuple[tuple[int, int, int], ...]) -> list[Featured]:
    past = Past()
    return [(transaction, *past.means(time, cents)) for time, transaction, cents in events]


@pw.udf
def terminal_features(events: tuple[tuple[int, int, int], ...]) -> list[Featured]:
    past = Past(DELAY)
    return [(transaction, *past.risks(time, fraud)) for time, transaction, fraud in events]


if __name__ == "__main__":
    main(*sys.argv[1:])
