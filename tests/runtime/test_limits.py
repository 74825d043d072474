"""What fits: large events, long texts, and a disk without space while decisions are in flight."""

from __future__ import annotations

import base64
import io
import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from penstock import _native, testing
from penstock.runtime.app import load_app
from penstock.runtime.gate import DECIDE, DECIDE_MANY, DRY_RUN_MANY, EVENTS_ARROW

NOON = "2026-11-01T12:00:00Z"
SMALLEST = {"segment_bytes": 16 << 20, "commit_bytes": 1 << 20}
"""The smallest segments that a service can have, with the largest commits."""
LONG = base64.b64encode(random.Random(1).randbytes(48 << 10)).decode()
"""64 KiB that do not become smaller where commits are compressed."""

NOTES = """
from datetime import datetime
import penstock as ps

class Note(ps.Event):
    note_id: str = ps.id()
    author: str
    text: str | None = None
    at: datetime = ps.event_time()

pipeline = ps.Pipeline("notes")
notes = pipeline.topic("notes", Note)
author = notes.by("author")
seen = notes.features(
    last=author.past("1h").last("text"),
    before=author.past("1h").lag("text", 2),
    first=author.past(None).first("text"),
).derive(shouted="upper(last)")

@pipeline.model(version="1")
def risk(batch):
    return batch["note_id"].str.len_bytes() / 100

pipeline.policy("keep", seen, rules="rules.toml", within="50ms", fallback="approve")
pipeline.policy("score", seen, rules="rules.toml", score=risk, within="50ms", fallback="decline")
"""
RULES = 'default = "approve"\noutcomes = ["decline", "approve"]\n'


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    path = tmp_path / "notes.py"
    path.write_text(NOTES)
    return path


def note(number: int | str, **changed: Any) -> dict[str, Any]:
    return {"note_id": f"n{number}", "author": "a", "text": "short", "at": NOON, **changed}


def requests(kind: int, target: int, notes: list[dict[str, Any]], first: int = 1_000) -> list[_native.Request]:
    return [(first + index, kind, target, json.dumps(each).encode(), 0) for index, each in enumerate(notes)]


def arrow(notes: list[dict[str, Any]]) -> bytes:
    columns = {name: pa.array([each[name] for each in notes]) for name in ("note_id", "author", "text")}
    columns["at"] = pa.array([0] * len(notes), pa.timestamp("us", "UTC"))
    table = pa.table(columns)
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


def test_a_text_may_be_64_kib_and_an_event_a_mib(app: Path) -> None:
    with testing.run(app, now=NOON) as service:
        assert service.decide("keep", note(1, text=LONG))["features"]["last"] == LONG
        for event, words in [
            (note(2, text=LONG + "t"), "65537 bytes of text where 65536 are the most, wanted text"),
            (note(LONG), "65537 bytes of text where 65536 are the most"),
            ({**note(3), "x" * (1 << 20): 1}, "an event of 1048"),
        ]:
            with pytest.raises(testing.Refused) as refused:
                service.decide("keep", event)
            assert (refused.value.status, refused.value.code) == (422, "too_large")
            assert words in str(refused.value)
            assert service.append("notes", [note("good"), event])["rejected"][0]["error"]["code"] == "too_large"
        body = arrow([note(4), note(5, text=LONG + "t"), note(6, text=LONG)])
        ((_, status, text, _),) = service._step([(9_000, EVENTS_ARROW, 0, body, 0)])
        answer = json.loads(text)
        assert (status, answer["accepted"], answer["rejected"][0]["index"]) == (200, 2, 1)
        assert answer["rejected"][0]["error"]["code"] == "too_large"


def test_long_texts_in_the_features_of_a_full_cycle_fit_the_log(app: Path) -> None:
    """A thousand small events, each of whose decisions holds four texts of 64 KiB: 256 MiB of decisions."""
    with testing.run(app, now=NOON, settings=SMALLEST) as service:
        for number in range(3):
            service.decide("keep", note(f"long{number}", text=LONG))
        optional = [note(number, text=None) for number in range(300)]
        answers = service._step(requests(DECIDE, 0, optional))
        decided = [json.loads(text) for _, status, text, _ in answers if status == 200]
        assert sorted(each["offset"] for each in decided) == list(range(3, 303))
        assert all(len(each["features"]["first"]) == len(LONG) for each in decided)
        body = b"\n".join(json.dumps(note(f"b{number}", text=None)).encode() for number in range(300))
        for kind, answer in [(DRY_RUN_MANY, -1), (DECIDE_MANY, 303)]:
            ((_, status, text, _),) = service._step([(9_000 + kind, kind, 0, body, 0)])
            assert status == 200
            assert json.loads(text.splitlines()[0])["offset"] in (answer, None)
            assert len(text.splitlines()) == 300
        service.crash()
        assert service.decide("keep", note("b299", text=None))["offset"] == 602


def test_long_texts_gathered_at_the_head_of_an_arrow_body_fit_the_log(app: Path) -> None:
    """On average its rows are small."""
    with testing.run(app, now=NOON, settings=SMALLEST) as service:
        long = [note(number, text=LONG) for number in range(400)]
        body = arrow(long + [note(f"s{number}") for number in range(20_000)])
        ((_, status, text, _),) = service._step([(9_000, EVENTS_ARROW, 0, body, 0)])
        assert (status, json.loads(text)["offsets"]) == (200, list(range(20_400)))


def test_segments_too_small_for_the_pipelines_largest_decision_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    many = "\n".join(f'    last_{number}=author.past("1h").last("text"),' for number in range(120))
    path = tmp_path / "wide.py"
    path.write_text(
        NOTES.replace('    last=author.past("1h").last("text"),', many + '\n    last=author.past("1h").last("text"),')
    )
    with pytest.raises(Exception, match=r"one commit may take .* bytes, and a segment of the log has room") as refused:
        testing.Service(load_app(path), now=datetime.fromisoformat(NOON), settings=SMALLEST)
    assert "set larger segments (segment_bytes)" in str(refused.value)


def fill(service: testing.Service) -> int:
    """Leave no space for a next segment, and append until the gate says so; how many it took."""
    service._disk.limit(service._disk.used())
    for number in range(10_000):
        try:
            service.append("notes", [note(f"fill{number}-{line}", text=LONG) for line in range(20)])
        except testing.Refused as refused:
            assert (refused.status, refused.code) == (503, "disk_full")
            return number
    raise AssertionError("the disk has not become full")


@pytest.mark.parametrize("told", [False, True])
def test_decisions_in_flight_are_recorded_on_a_disk_that_is_full(app: Path, told: bool) -> None:
    with testing.run(app, now=NOON, settings=SMALLEST) as service:
        service.models_stuck = True
        waiting = [note(number) for number in range(200)]
        assert service._step(requests(DECIDE, 1, waiting)) == []
        fill(service)
        with pytest.raises(testing.Refused) as refused:
            service.decide("keep", note("new"))
        assert (refused.value.status, refused.value.code) == (503, "disk_full")
        if told:
            service._told = [1_000 + index for index in range(200)]
            service._step([])
        answers = service.models_answer()
        assert [answer["outcome"] for answer in answers] == ["decline" if told else "approve"] * 200
        # Reading goes on, and the retry of what was taken is no new event.
        found = service.look_up("score", "n7")
        assert (found["outcome"], found["timed_out"]) == (("decline", True) if told else ("approve", False))
        service.crash()
        assert service.started["undecided"] == 0
        service._disk.limit(None)
        assert service.decide("keep", note("new"))["outcome"] == "approve"
        again = service.decide("score", waiting[7])
        assert (again["outcome"], again["timed_out"]) == (found["outcome"], told)


def test_what_does_not_fit_a_full_disk_waits_and_the_gate_goes_on(app: Path) -> None:
    """More decisions in flight than a full disk has kept space for: they are told when there is space again."""
    with testing.run(app, now=NOON, settings=SMALLEST) as service:
        for number in range(3):
            service.decide("keep", note(f"long{number}", text=LONG))
        service.models_stuck = True
        waiting = [note(number, text=None) for number in range(400)]
        service._step(requests(DECIDE, 1, waiting))
        assert len(service._unscored) > 20
        fill(service)
        answers = service.models_answer()
        assert 0 < len(answers) < 400
        with pytest.raises(testing.Refused):
            service.decide("keep", note("new"))
        service._disk.limit(None)
        late = service._step([])
        assert len(answers) + len(late) == 400
        assert service.decide("keep", note("new"))["outcome"] == "approve"
        service.crash()
        assert service.started["undecided"] == 0
        assert service.decide("score", waiting[399])["score"] == 0.04
