"""How tests evaluate: the core's evaluator over rows, and DuckDB over the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa

from penstock import _native
from penstock.process.expressions import Expression, parse_expression
from penstock.schema import Field, Type

Columns = Mapping[str, tuple[Type, Sequence[Any]]]


def batch_of(columns: Columns) -> pa.RecordBatch:
    """Values as Python has them; timestamps are microseconds."""
    arrays = {name: _array(kind, values) for name, (kind, values) in columns.items()}
    return pa.record_batch(list(arrays.values()), names=list(arrays))


def _array(kind: Type, values: Sequence[Any]) -> pa.Array:
    if kind.kind == "timestamp":
        return pa.array(values, pa.int64()).cast(kind.to_arrow())
    return pa.array(values, kind.to_arrow())


def types_of(columns: Columns) -> dict[str, Type]:
    return {name: kind for name, (kind, _) in columns.items()}


def parse(text: str, columns: Columns) -> Expression:
    return parse_expression(text, types_of(columns), subject="test")


def evaluate_plans(
    plans: Sequence[tuple[str, Any]], columns: Columns
) -> tuple[list[list[Any]], int]:
    """Each plan's values, and the number of faults."""
    fields = [Field(name, kind, True).to_json() for name, kind in types_of(columns).items()]
    evaluator = _native.Evaluator(json.dumps(list(plans)), json.dumps(fields))
    result, faults = evaluator.evaluate(batch_of(columns))
    return [_values(column) for column in pa.record_batch(result).columns], faults


def evaluate(text: str, columns: Columns) -> list[Any]:
    (values,), _ = evaluate_plans([("value", parse(text, columns).plan)], columns)
    return values


def faults_of(text: str, columns: Columns) -> int:
    return evaluate_plans([("value", parse(text, columns).plan)], columns)[1]


def value_of(text: str) -> Any:
    """What an expression over no columns is."""
    return evaluate(text, {"row": (Type("int64"), [0])})[0]


def query_duckdb(texts: Sequence[str], columns: Columns) -> list[list[Any]]:
    """What DuckDB makes of the same rows; its timestamps have no zone, as ours are all UTC."""
    table = pa.Table.from_batches([batch_of(columns)])
    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            naive = table.column(place).cast(pa.timestamp("us"))
            table = table.set_column(place, field.name, naive)
    with duckdb.connect() as connection:
        connection.execute("create macro finite(x) as case when isfinite(x) then x end")
        connection.register("rows", table)
        selected = ", ".join(f"{text} as e{place}" for place, text in enumerate(texts))
        result = connection.sql(f"select {selected} from rows").to_arrow_table()
    return [_values(column) for column in result.columns]


def _values(column: Any) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    return [_plain(value) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    # A decimal with its scale, so that 1.5 and 1.50 differ.
    return (value, value.as_tuple().exponent) if isinstance(value, Decimal) else value
