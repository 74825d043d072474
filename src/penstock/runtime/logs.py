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
# What the keys of positions among the catalog's notes begin with.
POSITION = "consumer/"
COMMIT_S = 10


def read_catalog(data: Path) -> dict[str, Any]:
    """Topics with their next offset and fields, and the notes, as of the log's end."""
    _check_data(data)
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
        _ask_service(data, {"consumer": consumer, "topic": topic, "offset": offset}, url=url)
    else:
        _native.commit_position(str(data), consumer, topic, offset, time.time_ns() // 1_000)
        del lock


def _ask_service(data: Path, position: dict[str, Any], *, url: str) -> None:
    request = urllib.request.Request(
        f"{url}/v1/positions", json.dumps(position).encode(), {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=COMMIT_S).close()
    except urllib.error.HTTPError as error:
        raise InputError(f"the service refused the position: {json.load(error)['error']['message']}") from None
    except OSError:
        raise InputError(
            f"the service of {data} does not answer at {url}", hint="give its --host and --port"
        ) from None


def tail_rows(
    data: Path,
    topic: str,
    *,
    lines: int,
    offset: int | None,
    follow: bool,
    sleep: Callable[[float], None],
    consumer: Consumer | None = None,
) -> Iterator[str]:
    """JSON lines of a topic's newest rows, of those from an offset on, or of those that a consumer has not seen.

    With `follow` it never ends. A consumer's position is committed when what there is has been taken. Raises `LogError`
    where retention has removed the offset.
    """
    if consumer is not None and offset is None:
        offset = consumer.position
    if offset is None:
        offset = max(_topic(data, topic)["next_offset"] - lines, 0)
    else:
        _topic(data, topic)
    import pyarrow as pa

    reader = _native.LogReader(str(data), topic, offset)
    while True:
        while (sections := reader.next()) is not None:
            for _, base_offset, _, _, batch in sections:
                yield _native.rows_json(batch)
                offset = base_offset + len(pa.record_batch(batch))
        if consumer is not None:
            consumer.commit(offset)
        if not follow:
            return
        sleep(FOLLOW_S)


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
            offsets = pa.array(np.arange(base_offset, base_offset + batch.num_rows, dtype=np.int64))
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
