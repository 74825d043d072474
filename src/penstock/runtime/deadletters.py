"""Dead letters: what a topic's door rejected and the log keeps, listed and put right.

They are read from the log, whether or not a service writes it; what is tried again goes through the door of a running
one. It marks what it takes in the same commit, so that trying again after a crash takes nothing twice.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from penstock import _native
from penstock.errors import InputError
from penstock.runtime.calls import post
from penstock.runtime.logs import read_catalog

LETTERS = ".deadletters"
MARKS = ".deadletters.done"
# What one request to the service holds at most.
RETRY_LETTERS = 1_000
RETRY_BYTES = 4 << 20
ANSWER_S = 60


@dataclass(frozen=True)
class DeadLetter:
    """A rejected event: why, from where, and its bytes as they came."""

    topic: str
    offset: int
    code: str
    field: str | None
    message: str
    source: str
    received_at: datetime
    request: int
    index: int
    body: str
    encoding: str
    bytes: int
    cut: bool

    def about(self) -> dict[str, Any]:
        """All but the body: nothing of this is an event's value."""
        shown = {**vars(self), "received_at": self.received_at.isoformat().replace("+00:00", "Z")}
        return {name: value for name, value in shown.items() if name not in ("body", "encoding")}


def original(letter: DeadLetter) -> bytes:
    """The event as it came, up to where it was cut."""
    return letter.body.encode(letter.encoding)


def read_letters(data: Path, topic: str | None = None) -> list[DeadLetter]:
    """The dead letters that are not put right, of one topic or of all. Raises `InputError` for an unknown topic."""
    names = {each["name"] for each in read_catalog(data)["topics"]}
    if topic is not None and topic not in names:
        known = ", ".join(sorted(name for name in names if "." not in name)) or "none"
        raise InputError(f'the log in {data} has no topic "{topic}"', hint=f"there are: {known}")
    topics = sorted(name.removesuffix(LETTERS) for name in names if name.endswith(LETTERS))
    return [letter for name in topics if topic in (None, name) for letter in _open_letters(data, name, names)]


def _open_letters(data: Path, topic: str, names: set[str]) -> Iterator[DeadLetter]:
    # The letters first: what is put right meanwhile is then known to be.
    letters = [(offset, row) for offset, row in _rows(data, topic + LETTERS)]
    done = {row["offset"] for _, row in _rows(data, topic + MARKS)} if topic + MARKS in names else set()
    yield from (DeadLetter(topic, offset, **row) for offset, row in letters if offset not in done)


def _rows(data: Path, topic: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa

    reader = _native.LogReader(str(data), topic)
    while (sections := reader.next()) is not None:
        for _, base_offset, _, _, rows in sections:
            yield from enumerate(pa.record_batch(rows).to_pylist(), start=base_offset)


def choose_letters(letters: Sequence[DeadLetter], offsets: Iterable[int]) -> list[DeadLetter]:
    """Those with these offsets; all where there are none. Raises `InputError` for one that is not there."""
    by_offset = {letter.offset: letter for letter in letters}
    chosen = list(dict.fromkeys(offsets))
    for offset in chosen:
        if offset not in by_offset:
            raise InputError(
                f"there is no dead letter {offset} to put right",
                hint="penstock deadletters list shows those there are",
            )
    return [by_offset[offset] for offset in chosen] if chosen else list(letters)


# A file to correct: for each letter a line with its offset, a tab and the event.


def write_events(letters: Iterable[DeadLetter], target: Path) -> None:
    target.write_bytes(b"".join(b"%d\t%b\n" % (letter.offset, _line(original(letter))) for letter in letters))


def read_events(source: Path) -> dict[int, bytes]:
    """The events of a corrected file by their letters' offsets. Raises `InputError` with the line that is wrong."""
    events: dict[int, bytes] = {}
    for number, line in enumerate(source.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        offset, tab, event = line.partition(b"\t")
        if not (tab and re.fullmatch(rb"[0-9]{1,18}", offset) and event.strip()):
            raise InputError(
                f"{source}, line {number}: not a dead letter's offset, a tab and an event",
                hint="penstock deadletters show TOPIC --to FILE writes such lines",
            )
        if int(offset) in events:
            raise InputError(f"{source}, line {number}: dead letter {int(offset)} is there twice")
        events[int(offset)] = event.strip()
    return events


def _line(original: bytes) -> bytes:
    """On one line: between values JSON takes a space as it takes a line's end."""
    return original.replace(b"\r", b" ").replace(b"\n", b" ")


# Trying again.


@dataclass(frozen=True)
class Retried:
    """What became of letters: how many were put right, and why others were not."""

    taken: int
    rejected: Mapping[int, str]


def retry_letters(topic: str, events: Mapping[int, bytes], *, url: str) -> Retried:
    """Send events for their letters' offsets through the service's door. Raises `InputError` where it refuses."""
    taken, rejected = 0, {}
    for offsets in _parts(events):
        lines = [json.dumps(offsets).encode(), *(_line(events[offset]) for offset in offsets)]
        path = f"/v1/topics/{urllib.parse.quote(topic)}/deadletters"
        body = b"\n".join(lines)
        answer = post(url, path, body, media_type="application/x-ndjson", timeout_s=ANSWER_S)
        refused = {offsets[each["index"]]: each["error"]["message"] for each in answer["rejected"]}
        taken += len(offsets) - len(refused)
        rejected.update(refused)
    return Retried(taken, rejected)


def original_events(letters: Iterable[DeadLetter], skip: Callable[[DeadLetter], None]) -> dict[int, bytes]:
    """Their bytes as they came; `skip` hears of those that cannot be sent so: cut, or no line of JSON's."""
    events = {}
    for letter in letters:
        event = original(letter)
        if letter.cut or not event.strip() or not _has_line(event):
            skip(letter)
        else:
            events[letter.offset] = event
    return events


def _has_line(event: bytes) -> bool:
    """Whether it means the same on one line: an end of a line within a text, which is no JSON, would become a space."""
    if b"\n" not in event and b"\r" not in event:
        return True
    try:
        json.loads(event)
    except (ValueError, RecursionError):
        return False
    return True


def _parts(events: Mapping[int, bytes]) -> Iterator[list[int]]:
    part: list[int] = []
    size = 0
    for offset, event in events.items():
        if part and (len(part) == RETRY_LETTERS or size + len(event) > RETRY_BYTES):
            yield part
            part, size = [], 0
        part.append(offset)
        size += len(event)
    if part:
        yield part
