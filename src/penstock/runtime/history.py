"""Events of the past as batches: Parquet, CSV and NDJSON files, or a log, in the order in which replay takes them.

The order is event time, then the order of the files as they are named, then the row. A file that is sorted so by itself
is streamed; several files, or one that is not sorted, are brought into order in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock import _native
from penstock.errors import InputError, PenstockError
from penstock.runtime.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BATCH_ROWS = 65_536
TEXT_BYTES = 8 << 20
REFUSED_SHOWN = 5


class Run(NamedTuple):
    """Rows of one topic, in order; of a log with their marks, a byte for each row, where any row has one."""

    topic: int
    batch: pa.RecordBatch
    marks: bytes | None = None


@dataclass(frozen=True)
class HistoryFile:
    """A file of one topic's events."""

    topic: int
    path: Path


@dataclass
class Refusals:
    """Rows that do not fit their schema: counted, and the first few worded."""

    count: int = 0
    shown: list[str] | None = None

    def add(self, path: Path, row: int, why: str) -> None:
        self.count += 1
        self.shown = self.shown or []
        if len(self.shown) < REFUSED_SHOWN:
            self.shown.append(f"{_place(path, row)}: {why}")


@dataclass
class FileRows:
    """What was read of a file: how many rows fit, and the numbers, from 0, of those that did not."""

    kept: int = 0
    left_out: list[int] = field(default_factory=list)

    def number(self, kept: int) -> int:
        """The row in the file, from 0, of one that fits, counted among these."""
        for row in self.left_out:
            if row > kept:
                break
            kept += 1
        return kept


class FileHistory:
    """The events of files. Iterating gives runs in order.

    Raises `InputError` for a file that cannot be read, and for rows that do not fit unless `skip_invalid`.
    """

    def __init__(
        self, plan: Plan, files: Sequence[HistoryFile], *, as_arrived: bool = False, skip_invalid: bool = False
    ) -> None:
        self.plan = plan
        self.files = files
        self.as_arrived = as_arrived
        self.skip_invalid = skip_invalid
        self.refusals = Refusals()
        self.total = self.told_rows()
        self.read_rows = [FileRows() for _ in files]
        self.places: dict[int, np.ndarray[Any, Any]] = {}

    def told_rows(self) -> int | None:
        """How many rows there are, where the files say so themselves."""
        if any(file.path.suffix != ".parquet" for file in self.files):
            return None
        counts: list[int] = [_open_parquet(file.path).metadata.num_rows for file in self.files]
        return sum(counts)

    def __iter__(self) -> Iterator[Run]:
        if self.as_arrived or (len(self.files) == 1 and self.sorted_by_itself(self.files[0])):
            for file, rows in zip(self.files, self.read_rows, strict=True):
                for batch in self.read(file, rows):
                    yield Run(file.topic, batch)
            return
        yield from self.merge()

    def place(self, topic: int, index: int) -> str:
        """Where an event stands that was given, the topic's events counted from 0: file and row."""
        if topic in self.places:
            index = int(self.places[topic][index])
        for file, rows in zip(self.files, self.read_rows, strict=True):
            if file.topic != topic:
                continue
            if index < rows.kept:
                return _place(file.path, rows.number(index))
            index -= rows.kept
        raise IndexError(index)

    def sorted_by_itself(self, file: HistoryFile) -> bool:
        """Whether a Parquet file's times never fall; of the other formats that is only known when they are read."""
        import numpy as np
        import pyarrow as pa

        if file.path.suffix != ".parquet":
            return False
        time = self.topic_plan(file)["fields"][self.topic_plan(file)["time"]]["name"]
        opened = _open_parquet(file.path)
        if time not in opened.schema_arrow.names:
            return True  # Reading says what is missing.
        newest = None
        for batch in _batches(file.path, opened, [time]):
            if not pa.types.is_timestamp(batch.column(0).type) or batch.column(0).null_count:
                return False  # Merging conforms the times before it compares them.
            times = _integers(batch.column(0))
            if len(times) == 0:
                continue
            if not np.all(times[1:] >= times[:-1]) or (newest is not None and times[0] < newest):
                return False
            newest = times[-1]
        return True

    def merge(self) -> Iterator[Run]:
        """All files in one order; a run of rows of one topic is one batch."""
        import numpy as np
        import pyarrow as pa

        tables = [
            pa.Table.from_batches(list(self.read(file, rows)), self.arrow_schema(file))
            for file, rows in zip(self.files, self.read_rows, strict=True)
        ]
        self.total = sum(table.num_rows for table in tables)
        times = np.concatenate([self.times(file, table) for file, table in zip(self.files, tables, strict=True)])
        # Stable, and the files stand one after the other: equal times keep the order of files, then of rows.
        order = np.argsort(times, kind="stable")
        by_topic: dict[int, list[int]] = {}
        for index, file in enumerate(self.files):
            by_topic.setdefault(file.topic, []).append(index)
        topics = np.concatenate(
            [np.full(table.num_rows, file.topic) for file, table in zip(self.files, tables, strict=True)]
        )
        sorted_tables = {}
        for topic, indexes in by_topic.items():
            self.places[topic] = _sorted_places(tables, indexes, order, topics, topic)
            own = pa.concat_tables([tables[index] for index in indexes])
            sorted_tables[topic] = own.take(pa.array(self.places[topic]))
        yield from _runs(sorted_tables, topics[order])

    def read(self, file: HistoryFile, read: FileRows) -> Iterator[pa.RecordBatch]:
        """A file's events with their schema's types, in the file's order."""
        import pyarrow as pa

        row = 0
        for batch, rows, refused in self.conformed(file):
            for index, _, why in refused:
                self.refusals.add(file.path, row + index, why)
                read.left_out.append(row + index)
            if refused and not self.skip_invalid:
                raise self.invalid()
            row += rows
            read.kept += batch.num_rows
            if batch.num_rows:
                yield pa.record_batch(batch)

    def invalid(self) -> InputError:
        shown = "\n".join(self.refusals.shown or [])
        return InputError(
            f"the history has rows that do not fit:\n{shown}",
            hint="mend the file, or leave such rows out with --skip-invalid",
        )

    def conformed(self, file: HistoryFile) -> Iterator[tuple[_native.Batch, int, list[_native.Refused]]]:
        topic = self.topic_plan(file)
        fields = json.dumps(topic["fields"])
        match file.path.suffix:
            case ".parquet":
                raw, conform = _read_parquet(file.path, topic), _conform
            case ".csv":
                raw, conform = _read_csv(file.path, topic), _native.conform_cells
            case ".ndjson" | ".jsonl":
                yield from _read_ndjson(file.path, topic, fields)
                return
            case suffix:
                raise InputError(
                    f"{file.path}: cannot read files that end in {suffix!r}",
                    hint="there are .parquet, .csv, .ndjson and .jsonl",
                )
        for batch in raw:
            try:
                conformed, refused = conform(batch, fields)
            except PenstockError as error:
                raise InputError(f"{file.path}: {error.message}", hint=error.hint) from None
            yield conformed, batch.num_rows, refused

    def topic_plan(self, file: HistoryFile) -> dict[str, Any]:
        plan: dict[str, Any] = self.plan.document["topics"][file.topic]
        return plan

    def arrow_schema(self, file: HistoryFile) -> pa.Schema:
        import pyarrow as pa

        topic = list(self.plan.pipeline.topics.values())[file.topic]
        return pa.schema(
            [pa.field(each.name, each.type.to_arrow(), each.optional) for each in topic.schema.fields]
        )

    def times(self, file: HistoryFile, table: pa.Table) -> np.ndarray[Any, Any]:
        return _integers(table.column(self.topic_plan(file)["time"]).combine_chunks())


class LogHistory:
    """The events of a data directory's log, in the log's own order."""

    def __init__(self, plan: Plan, data: Path) -> None:
        if not (data / "log").is_dir():
            raise InputError(f"{data} is not a data directory: it has no log")
        topics = [(topic["name"], json.dumps(topic["fields"])) for topic in plan.document["topics"]]
        self.runs = _native.LogRuns(str(data), topics, BATCH_ROWS)
        self.refusals = Refusals()
        self.total: int | None = None

    def __iter__(self) -> Iterator[Run]:
        import pyarrow as pa

        while (run := self.runs.next()) is not None:
            topic, batch, marks = run
            yield Run(topic, pa.record_batch(batch), marks)


def _place(path: Path, row: int) -> str:
    return f"{path}, row {row + 1:,}"


def _integers(times: pa.Array) -> np.ndarray[Any, Any]:
    """Times as integers of their unit. `to_numpy` would import pandas, which takes longer than the file."""
    import numpy as np

    return np.from_dlpack(times.view("int64"))


def _sorted_places(
    tables: list[pa.Table], indexes: list[int], order: Any, topics: Any, topic: int
) -> np.ndarray[Any, Any]:
    """For each row of one topic in the common order, which it is in the topic's own tables one after the other."""
    import numpy as np

    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    own = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in indexes])
    places: np.ndarray[Any, Any] = np.searchsorted(own, order[topics[order] == topic])
    return places


def _runs(tables: dict[int, pa.Table], topics: Any) -> Iterator[Run]:
    import numpy as np

    edges = np.flatnonzero(np.diff(topics)) + 1
    taken = dict.fromkeys(tables, 0)
    for start, end in zip([0, *edges], [*edges, len(topics)], strict=True):
        if start == end:
            continue
        topic = int(topics[start])
        run = tables[topic].slice(taken[topic], int(end - start))
        taken[topic] += int(end - start)
        for batch in run.combine_chunks().to_batches(max_chunksize=BATCH_ROWS):
            yield Run(topic, batch)


def _read_parquet(path: Path, topic: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    opened = _open_parquet(path)
    names = [field["name"] for field in topic["fields"] if field["name"] in opened.schema_arrow.names]
    yield from _batches(path, opened, names)


def _batches(path: Path, opened: Any, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet file, of which any may be where it is damaged. Raises `InputError`."""
    with _reading(path):
        for batch in opened.iter_batches(BATCH_ROWS, columns=names):
            _check_sound(path, batch)
            yield batch


def _check_sound(path: Path, batch: pa.RecordBatch) -> None:
    """Arrow reads a damaged page without looking: an index beyond its dictionary, or text that is not UTF-8.

    The core takes its arrays at their word. This costs half a millisecond for 65,536 rows of four columns.
    """
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:  # Its words may hold a value.
        raise InputError(f"could not read {path}: it is damaged, and holds what its columns' types cannot") from None


def _read_csv(path: Path, topic: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Every cell as text, so that one that cannot be read costs its row alone; null is a cell of nothing."""
    import pyarrow as pa
    from pyarrow import csv

    blocks = csv.ReadOptions(block_size=TEXT_BYTES)
    lines = csv.ParseOptions(newlines_in_values=True)
    with _reading(path):
        # Of every column that the file has: a type that is guessed from the first rows may not hold for the others.
        names = csv.open_csv(path, blocks, lines).schema.names
        options = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        yield from csv.open_csv(path, blocks, lines, options)


def _read_ndjson(
    path: Path, topic: dict[str, Any], fields: str
) -> Iterator[tuple[_native.Batch, int, list[_native.Refused]]]:
    decoder = _native.JsonDecoder(fields, topic["id"])
    with _reading(path), path.open("rb") as file:
        while lines := file.readlines(TEXT_BYTES):
            batch, refused = decoder.decode_lines(b"".join(lines))
            yield batch, batch.num_rows + len(refused), refused


def _conform(batch: pa.RecordBatch, fields: str) -> tuple[_native.Batch, list[_native.Refused]]:
    return _native.conform(batch, fields, True)


def _open_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    with _reading(path):
        return pq.ParquetFile(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file that cannot be read, and why. Raises `InputError`."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    # A damaged file meets whatever check comes first: of Arrow's, of its bindings, or of the text in its names.
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"could not read {path}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """Arrow's words for it, but for what follows a colon in those about CSV: that is the row itself."""
    text = "it has text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).partition("\n")[0]
    found = re.match(r".*?(?:CSV parse error: [^:]*|CSV conversion error[^:]*: invalid UTF8 data|Empty CSV file)", text)
    return found.group() if found else "it is not CSV" if "CSV" in text else text
