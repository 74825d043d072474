"""Looking into a data directory, whether or not a service writes it: topics, rows, exports, damage."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import _native
from penstock.errors import InputError, LockedError
from penstock.schema import Type

if TYPE_CHECKING:
    import pyarrow as pa

FOLLOW_S = 0.2
NEWEST = 10
COMMIT_S = 10


def read_catalog(data: Path) -> dict[str, Any]:
    """Topics with their next offset and fields, and the notes, as of the log's end."""
    _check_data(data)
    catalog: dict[str, Any] = json.loads(_native.catalog(str(data)))
    return catalog


def read_position(catalog: dict[str, Any], consumer: str, topic: str) -> int | None:
    """The offset at which a consumer goes on in a topic; None where it has not committed one."""
    text = catalog["notes"].get(f"consumer/{consumer}/{topic}")
    return None if text is None else int(text)


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
        try:
            lock = _native.Lock(str(self.data))
        except LockedError:
            self._ask_service(offset)
        else:
            _native.commit_position(str(self.data), self.name, self.topic, offset, time.time_ns() // 1_000)
            del lock
        self.position = offset

    def _ask_service(self, offset: int) -> None:
        body = {"consumer": self.name, "topic": self.topic, "offset": offset}
        request = urllib.request.Request(
            f"{self.url}/v1/positions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=COMMIT_S).close()
        except urllib.error.HTTPError as error:
            raise InputError(f"the service refused the position: {json.load(error)['error']['message']}") from None
        except OSError:
            raise InputError(
                f"the service of {self.data} does not answer at {self.url}", hint="give its --host and --port"
            ) from None


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
    taken. Raises `LogError` where retention has removed the offset.
    """
    import pyarrow as pa

    end: int = _topic(data, topic)["next_offset"]
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
    """Write a topic's rows, with their offsets and commit times, to a Parquet file; how many there were."""
    from penstock.runtime.replay import write_parquet

    fields = _topic(data, topic)["fields"]
    rows = _with_places(_native.LogReader(str(data), topic, 0), fields)
    return write_parquet(rows, target, schema=_export_schema(fields))


def verify_log(data: Path) -> dict[str, Any]:
    """Every frame of every file checked."""
    _check_data(data)
    report: dict[str, Any] = json.loads(_native.verify(str(data)))
    return report


def _export_schema(fields: list[dict[str, Any]]) -> pa.Schema:
    import pyarrow as pa

    columns = [pa.field(each["name"], Type.from_json(each["type"]).to_arrow(), each["optional"]) for each in fields]
    places = [pa.field("_offset", pa.int64(), False), pa.field("_committed_at", pa.timestamp("us", tz="UTC"), False)]
    return pa.schema([*places, *columns])


def _with_places(reader: _native.LogReader, fields: list[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Rows with their places, in the newest schema's columns: what older rows lack is null."""
    import numpy as np
    import pyarrow as pa

    schema, newest = _export_schema(fields), json.dumps(fields)
    while (sections := reader.next()) is not None:
        for _, base_offset, time_us, _, rows in sections:
            batch = pa.record_batch(_native.conform(rows, newest, True)[0])
            offsets = _offsets(base_offset, batch.num_rows)
            times = pa.array(np.full(batch.num_rows, time_us, dtype=np.int64)).cast(pa.timestamp("us", tz="UTC"))
            placed = pa.RecordBatch.from_arrays([offsets, times, *batch.columns], schema=schema)
            yield placed


def _topic(data: Path, topic: str) -> dict[str, Any]:
    topics = read_catalog(data)["topics"]
    for each in topics:
        if each["name"] == topic:
            found: dict[str, Any] = each
            return found
    names = ", ".join(each["name"] for each in topics) or "none"
    raise InputError(f'the log in {data} has no topic "{topic}"', hint=f"there are: {names}")


def _check_data(data: Path) -> None:
    if not (data / "log").is_dir():
        raise InputError(
            f"{data} is not a data directory: it has no log", hint="give the directory of the service with --data"
        )
