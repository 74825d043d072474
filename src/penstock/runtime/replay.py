"""Replay: features and decisions over history, by the very operators that decide live.

    history ─▶ (reads ahead) ─▶ Replayer, in the core ─▶ (writes behind) ─▶ Parquet

Three threads, joined by short queues: all three work outside the GIL nearly all of the time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from penstock import _native
from penstock.decide.policy import Model
from penstock.errors import DefinitionError, InputError
from penstock.runtime import model_worker
from penstock.runtime.history import Run
from penstock.runtime.plan import Plan

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
AHEAD = 4
DECIDED = ["score", "outcome", "reasons"]
# Small enough that the last one, which nothing else is done beside, is soon written.
ROW_GROUP_ROWS = 1 << 17
ROW_GROUP_CHUNKS = 16


@dataclass(frozen=True)
class Replay:
    """What to compute: a policy's features and decisions, or a set of features without a policy."""

    plan: Plan
    policy: int | None
    features: int

    @property
    def topic(self) -> int:
        topic: int = self.plan.document["features"][self.features]["topic"]
        return topic

    @property
    def model(self) -> Model | None:
        if self.policy is None:
            return None
        index = self.plan.document["policies"][self.policy]["model"]
        return None if index is None else list(self.plan.pipeline.models.values())[index]

    @property
    def columns(self) -> list[str]:
        """The names of all that replay can write."""
        document = self.plan.document
        fields = [field["name"] for field in document["topics"][self.topic]["fields"]]
        features = [column["name"] for column in document["features"][self.features]["columns"]]
        decided = [] if self.policy is None else DECIDED
        return fields + features + decided

    def run(
        self,
        history: Iterable[Run],
        *,
        select: Sequence[str] | None = None,
        threads: int = 2,
    ) -> Iterator[pa.RecordBatch]:
        """The selected columns of each row of the policy's topic, in order, batch by batch."""
        import pyarrow as pa

        names = self.check_selected(select)
        replayer = _native.Replayer(
            self.plan.to_json(), policy=self.policy, features=self.features, select=names, threads=threads
        )
        model = self.model if set(DECIDED) & set(names) else None
        for topic, batch, marks in history:
            result = replayer.process(topic, batch, marks)
            if result is None:
                continue
            if model is not None:
                features = pa.record_batch(result)
                result = replayer.decide(batch, features, score(model, batch, features))
            yield pa.record_batch(result)

    def check_selected(self, select: Sequence[str] | None) -> list[str]:
        if select is None:
            return self.columns
        for name in select:
            if name not in self.columns:
                raise DefinitionError(
                    f'there is no column "{name}" to select', hint="there are: " + ", ".join(self.columns)
                )
        return list(dict.fromkeys(select))


def choose(plan: Plan, policy: str | None) -> Replay:
    """The policy to replay: the one that is named, or the only one; without policies the only set of features.

    Raises `DefinitionError` where the choice is open.
    """
    policies = plan.document["policies"]
    if policy is not None or policies:
        if policy is None and len(policies) > 1:
            names = ", ".join(each["name"] for each in policies)
            raise DefinitionError("the pipeline has several policies", hint=f"choose one with --policy: {names}")
        index = 0 if policy is None else plan.policy_index(policy)
        return Replay(plan, index, policies[index]["features"])
    if len(plan.document["features"]) != 1:
        count = len(plan.document["features"])
        raise DefinitionError(f"the pipeline has no policy and {count} sets of features; replay needs one")
    return Replay(plan, None, 0)


def score(model: Model, events: pa.RecordBatch, features: pa.RecordBatch) -> pa.RecordBatch:
    """A model's answer for a batch, as a column of float64; by the very function that its process scores with.

    Raises `InputError` where the model raises or does not give one number a row.
    """
    import numpy as np
    import polars as pl
    import pyarrow as pa

    names = [*events.schema.names, *features.schema.names]
    frame = pl.from_arrow(pa.Table.from_arrays([*events.columns, *features.columns], names=names))
    assert isinstance(frame, pl.DataFrame)
    try:
        scores = np.frombuffer(model_worker.score(frame, model.function), "<f8")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A panic of Polars is no Exception.
        raise InputError(f'model "{model.name}" failed: {model_worker.describe(error)}') from error
    return pa.RecordBatch.from_arrays([pa.array(scores, mask=np.isnan(scores))], names=["score"])


def write_parquet(batches: Iterable[pa.RecordBatch], path: Path, *, schema: pa.Schema | None = None) -> int:
    """Write batches to a Parquet file, which gets its name when it is whole; how many rows there were.

    Without a `schema` it is the first batch's, and there has to be one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = flushed = 0
    draft = path.with_name(f".{path.name}.draft")
    writer: pq.ParquetWriter | None = None
    gathered: list[pa.RecordBatch] = []

    def flush() -> None:
        nonlocal writer, gathered, flushed
        if not gathered:
            return
        table = pa.Table.from_batches(gathered)
        gathered, flushed = [], rows
        if table.column(0).num_chunks > ROW_GROUP_CHUNKS:
            table = table.combine_chunks()  # Each chunk costs as much as thousands of rows.
        if writer is None:
            writer = _parquet_writer(draft, table.schema)
        writer.write_table(table, row_group_size=2 * ROW_GROUP_ROWS)

    try:
        for batch in batches:
            gathered.append(batch)
            rows += batch.num_rows
            if rows - flushed >= ROW_GROUP_ROWS:
                flush()
        flush()
        if writer is None and schema is not None:
            writer = _parquet_writer(draft, schema)
        if writer is None:
            raise InputError("the history has no events of the wanted topic")
        writer.close()
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    return rows


def _parquet_writer(path: Path, schema: pa.Schema) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Texts repeat, and integers lie close together: both shrink before zstd sees them, which costs more.
    kinds = {field.name: field.type for field in schema}
    repeating = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_list(kind)]
    close = [name for name, kind in kinds.items() if pa.types.is_int64(kind) or pa.types.is_timestamp(kind)]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=repeating,
        column_encoding=dict.fromkeys(close, "DELTA_BINARY_PACKED"),
        write_statistics=False,
    )


def in_background(items: Iterable[T]) -> Iterator[T]:
    """The same items, made a few ahead by a thread of their own."""
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # Raised again where the items are wanted.
            put((False, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            good, item = waiting.get()
            if not good:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stopped.set()
        thread.join()
