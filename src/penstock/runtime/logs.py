"""Looking into a data directory, whether or not a service writes it: topics, rows, exports, damage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import _native
from penstock.errors import InputError, LockedError
from penstock.runtime.calls import post
from penstock.runtime.snapshot_files import verify_snapshots
from penstock.schema import Type

if TYPE_CHECKING:
    import pyarrow as pa

FOLLOW_S = 0.2
NEWEST = 10
# What the keys of positions among the catalog's notes begin with.
POSITION = "consumer/"


def read_catalog(data: Path) -> dict[str, Any]:
    """Topics with their next offset and fields, and the notes, as of the log's end."""
    check_data(data)
    catalog: dict[str, Any] = json.loads(_native.catalog(str(data)))
    return catalog


def read_position(catalog: dict[str, Any], consumer: str, topic: str) -> int | None:
    """The offset at which a consumer goes on in a topic; None where it has not committed one."""
    text = catalog["notes"].get(f"{POSITION}{consumer}/{topic}")
    return None if text is None else int(text)


def read_positions(catalog: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Every consumer with each of its topics and the offset at which it goes on there."""
    keys = [key for key in catalog["notes"] if key.startswith(POSITION)]
    places = [key.removeprefix(POSITION).split("/", 1) for key in keys]
    return [(name, topic, int(catalog["notes"][key])) for key, (name, topic) in zip(keys, places, strict=True)]


def forget_consumer(data: Path, name: str, *, url: str) -> int:
    """Remove all positions of a consumer; how many there were. Raises `InputError` where there are none."""
    topics = [topic for consumer, topic, _ in read_positions(read_catalog(data)) if consumer == name]
    if not topics:
        raise InputError(f'the log in {data} has no consumer "{name}"', hint="penstock consumers lists them")
    for topic in topics:
        _commit_position(data, name, topic, None, url=url)
    return len(topics)


class Consumer:
    """A named reader of a topic, whose position is in the log: it goes on where it committed last.

    At least once: what was read after the last commit is read again after a crash. Retention does not wait for it.
    """

    def __init__(self, data: Path, name: str, topic: str, *, url: str) -> None:
        catalog = read_catalog(data)
        self.data, self.name, self.topic, self.url = data, name, topic, url
        self.position = read_position(catalog, name, topic) or 0

    def commit(self, offset: int) -> None:
        """Remember that the rows before an offset are done: by the service that writes the log, or without one."""
        if offset == self.position:
            return
        _commit_position(self.data, self.name, self.topic, offset, url=self.url)
        self.position = offset


def _commit_position(data: Path, consumer: str, topic: str, offset: int | None, *, url: str) -> None:
    try:
        lock = _native.Lock(str(data))
    except LockedError:
        position = {"consumer": consumer, "topic": topic, "offset": offset}
        post(url, "/v1/positions", json.dumps(position).encode())
    else:
        _native.commit_position(str(data), consumer, topic, offset, time.time_ns() // 1_000)
        del lock


def tail_rows(
    data: Path,
    topic: str,
    *,
    lines: int | None = None,
    offset: int | None = None,
    follow: bool,
    sleep: Callable[[float], None],
    consumer: Consumer | None = None,
) -> Iterator[str]:
    """JSON lines of a topic's newest rows, of those from an offset on, or of those that a consumer has not seen.

    `lines` says how many of the newest (default 10), or after how many rows to end where an offset or a consumer says
    from where. With `follow` it never ends before that. A consumer's position is committed when what there is has been
    taken. Raises `LogError` where retention has removed the offset, `InputError` where the topic has not come to it.
    """
    import pyarrow as pa

    end: int = _topic(data, topic)["next_offset"]
    if offset is not None and offset > end:
        raise InputError(f'topic "{topic}" has no offset {offset:,} yet: its next one is {end:,}')
    if offset is None and consumer is not None:
        offset = consumer.position
    left = lines
    if offset is None:
        offset = max(end - (NEWEST if lines is None else lines), 0)
        left = None if follow else end - offset
    reader = _native.LogReader(str(data), topic, offset)
    while True:
        while left != 0 and (sections := reader.next()) is not None:
            for _, base_offset, _, _, rows in sections:
                batch = pa.record_batch(rows).slice(0, left)
                offset = base_offset + len(batch)
                left = None if left is None else left - len(batch)
                yield _json_lines(topic, batch, base_offset)
        if consumer is not None:
            consumer.commit(offset)
        if left == 0 or not follow:
            return
        sleep(FOLLOW_S)


def _json_lines(topic: str, batch: pa.RecordBatch, base_offset: int) -> str:
    """Rows under their offsets. No topic of a pipeline has a dot in its name; decisions hold their reasons as JSON."""
    placed = batch.add_column(0, "_offset", _offsets(base_offset, len(batch)))
    return _native.rows_json(placed, ["reasons"] if topic.endswith(".decisions") else [])


def _offsets(start: int, count: int) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    return pa.array(np.arange(start, start + count, dtype=np.int64))


def export_topic(data: Path, topic: str, target: Path) -> int:
    """Write the rows of a topic, with their offsets and commit times, to a Parquet file; how many there were.

    They begin with the oldest that retention has left. The columns are the newest schema's: what older rows lack is
    null. Where older rows have another type, a column `name:type` beside the newest has their values.
    """
    from penstock.runtime.replay import write_parquet

    columns = {each["name"]: Column.of_field(each) for each in _topic(data, topic)["fields"]}
    while True:
        rows = _with_places(_native.LogReader(str(data), topic), columns)
        try:
            return write_parquet(rows, target, schema=_export_schema(columns))
        except OtherType as found:  # Only decisions change so, and rarely: what was written is written again.
            columns[found.column.key] = found.column
            columns[found.column.name] = replace(columns[found.column.name], optional=True)


@dataclass(frozen=True)
class Column:
    """A column of an export: the log's column of this name, in the rows in which it has this type."""

    name: str
    type: pa.DataType
    optional: bool

    @staticmethod
    def of_field(field: dict[str, Any]) -> Column:
        return Column(field["name"], Type.from_json(field["type"]).to_arrow(), field["optional"])

    @property
    def key(self) -> str:
        """Its name in the file where it is not the newest of its name."""
        return f"{self.name}:{Type.from_arrow(self.type)}"

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        import pyarrow as pa

        column = batch.column(self.name) if self.name in batch.schema.names else None
        fits = column is not None and column.type == self.type
        return column if fits else pa.nulls(batch.num_rows, self.type)


class OtherType(Exception):
    """Rows have a column in a type that the export has no column for."""

    def __init__(self, column: Column) -> None:
        self.column = column


def verify_log(data: Path) -> dict[str, Any]:
    """Every frame of every segment checked, every block of the ids and every store of the snapshots.

    `damages` are the log's; ids and snapshots have their own, since a start makes them again from the log.
    """
    check_data(data)
    report: dict[str, Any] = json.loads(_native.verify(str(data)))
    count, damages = _native.verify_ids(str(data)) if (data / "ids").is_dir() else (0, [])
    listed = [{"file": file, "offset": offset, "what": what} for file, offset, what in damages]
    report["ids"] = {"files": count, "damages": listed}
    report["snapshots"] = verify_snapshots(data)
    report["sound"] = not (report["damages"] or listed or report["snapshots"]["damages"])
    return report


def _export_schema(columns: dict[str, Column]) -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field(name, column.type, column.optional) for name, column in columns.items()]
    places = [pa.field("_offset", pa.int64(), False), pa.field("_committed_at", pa.timestamp("us", tz="UTC"), False)]
    return pa.schema([*places, *fields])


def _with_places(reader: _native.LogReader, columns: dict[str, Column]) -> Iterator[pa.RecordBatch]:
    """Rows with their places, in these columns. Raises `OtherType` where one of them is in none."""
    import numpy as np
    import pyarrow as pa

    schema = _export_schema(columns)
    known = {(column.name, column.type) for column in columns.values()}
    while (sections := reader.next()) is not None:
        for _, base_offset, time_us, _, rows in sections:
            batch = pa.record_batch(rows)
            for field in batch.schema:
                if field.name in columns and (field.name, field.type) not in known:
                    raise OtherType(Column(field.name, field.type, optional=True))
            offsets = _offsets(base_offset, batch.num_rows)
            times = pa.array(np.full(batch.num_rows, time_us, dtype=np.int64)).cast(pa.timestamp("us", tz="UTC"))
            arrays = [offsets, times, *(column.of(batch) for column in columns.values())]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _topic(data: Path, topic: str) -> dict[str, Any]:
    topics = read_catalog(data)["topics"]
    for each in topics:
        if each["name"] == topic:
            found: dict[str, Any] = each
            return found
    names = ", ".join(each["name"] for each in topics) or "none"
    raise InputError(f'the log in {data} has no topic "{topic}"', hint=f"there are: {names}")


def check_data(data: Path) -> None:
    if not (data / "log").is_dir():
        raise InputError(
            f"{data} is not a data directory: it has no log", hint="give the directory of the service with --data"
        )
