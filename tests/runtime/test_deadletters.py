"""What a topic's door rejects is in the log when its caller hears of it, and is put right once."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import penstock as ps
from penstock import _native, testing
from penstock.runtime.gate import EVENTS_ARROW, EVENTS_JSON, EVENTS_NDJSON, RETRY

FIRST = Path(__file__).resolve().parents[2] / "examples" / "first.py"
NOON = "2026-11-01T12:00:00Z"
JSON = dict[str, Any]


def payment(number: int, **changed: Any) -> JSON:
    return {"payment_id": f"p{number}", "card": "c1", "amount": "12.50", "paid_at": NOON, **changed}


def send(service: testing.Service, kind: int, body: bytes) -> JSON:
    """The answer, which may take several cycles."""
    service._handle += 1
    answers = service._step([(service._handle, kind, 0, body, 0)])
    while not answers:
        answers = service._step([])
    ((_, status, text, _),) = answers
    assert status == 200, text
    answer: JSON = json.loads(text)
    return answer


def rows(service: testing.Service, topic: str) -> list[JSON]:
    reader = _native.LogReader(service._disk, topic)
    found = []
    while (sections := reader.next()) is not None:
        found += [row for *_, batch in sections for row in pa.record_batch(batch).to_pylist()]
    return found


def lines(*values: Any) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


def test_a_rejected_row_is_kept_with_its_reason_its_place_and_its_bytes() -> None:
    wrong = b'{"payment_id": "p2",  "card": 7}'
    with testing.run(FIRST, now=NOON) as service:
        answer = send(service, EVENTS_NDJSON, lines(payment(1), wrong, payment(3), b"\xff\x00{"))
        service.crash()
        kept = rows(service, "payments.deadletters")
    assert [(each["index"], each["deadletter"]) for each in answer["rejected"]] == [(1, 0), (3, 1)]
    told = [each["error"] for each in answer["rejected"]]
    assert [(each["code"], each["field"], each["message"]) for each in kept] == [
        (error["code"], error.get("field"), error["message"]) for error in told
    ]
    first, second = kept
    assert (first["source"], first["index"], first["request"]) == ("ndjson", 1, 1)
    assert first["received_at"].isoformat() == "2026-11-01T12:00:00+00:00"
    assert (first["body"].encode(), first["encoding"], first["cut"]) == (wrong, "utf-8", False)
    assert (second["body"].encode("latin-1"), second["encoding"]) == (b"\xff\x00{", "latin-1")


def test_conflicts_and_events_ahead_of_the_clock_are_kept_and_repeats_are_not() -> None:
    events = [payment(1), payment(1), payment(1, amount="1.00"), payment(2, paid_at="2026-11-01T13:00:00Z")]
    with testing.run(FIRST, now=NOON) as service:
        answer = send(service, EVENTS_JSON, json.dumps(events).encode())
        kept = rows(service, "payments.deadletters")
    assert (answer["accepted"], answer["repeated"]) == (1, 1)
    assert [each["code"] for each in kept] == ["id_conflict", "ahead_of_clock"]
    assert [json.loads(each["body"]) for each in kept] == events[2:]


def test_rows_of_a_stream_are_kept_as_json_with_what_they_held() -> None:
    table = pa.table(
        {
            "payment_id": ["p1", "p2", "p3", "p4"],
            "card": pa.array(["c1", "c1", None, 'c"1']).dictionary_encode(),
            "amount": [1.5, 2.005, 3.0, float("nan")],
            "paid_at": pa.array([1_793_534_400_000_000_000 + each for each in (0, 0, 0, 1)], pa.timestamp("ns", "UTC")),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with testing.run(FIRST, now=NOON) as service:
        answer = send(service, EVENTS_ARROW, sink.getvalue().to_pybytes())
        kept = rows(service, "payments.deadletters")
    assert [each["index"] for each in answer["rejected"]] == [1, 2, 3]
    assert [json.loads(each["body"]) for each in kept] == [
        {"payment_id": "p2", "card": "c1", "amount": 2.005, "paid_at": NOON},
        {"payment_id": "p3", "card": None, "amount": "3.00", "paid_at": NOON},
        {"payment_id": "p4", "card": 'c"1', "amount": "NaN", "paid_at": "1793534400000000001 ns"},
    ]


def test_a_large_event_is_cut_at_a_character_and_says_how_large_it_was() -> None:
    body = '{"card": "' + "é" * 100_000 + '"}'
    with testing.run(FIRST, now=NOON) as service:
        send(service, EVENTS_NDJSON, lines(payment(1), body.encode()))
        (kept,) = rows(service, "payments.deadletters")
    assert (kept["cut"], kept["bytes"]) == (True, len(body.encode()))
    assert body.startswith(kept["body"]) and 65_530 < len(kept["body"].encode()) <= 65_536


@pytest.mark.parametrize("segment_bytes", [64 << 10, 16 << 20])
def test_of_a_flood_so_many_are_kept_and_the_answer_says_which(segment_bytes: int) -> None:
    settings = {"segment_bytes": segment_bytes, "commit_bytes": 16 << 10}
    with testing.run(FIRST, now=NOON, settings=settings) as service:
        body = lines(payment(1), *([{"a": 1}] * 12_000), payment(2))
        answer = send(service, EVENTS_NDJSON, body)
        assert service.decide("authorise", payment(3))["features"]["card_count_1h"] == 3
        service.crash()
        kept = rows(service, "payments.deadletters")
    assert (answer["accepted"], len(answer["rejected"])) == (2, 12_000)
    assert [each.get("deadletter") for each in answer["rejected"]] == [*range(10_000), *([None] * 2_000)]
    assert [each["index"] for each in kept] == list(range(1, 10_001))


def test_what_is_put_right_is_marked_with_its_event_and_enters_once() -> None:
    early = payment(2, paid_at="2026-11-01T13:00:00Z")
    with testing.run(FIRST, now=NOON) as service:
        send(service, EVENTS_NDJSON, lines(early, payment(3, amount="x")))
        service.clock.advance("1h")
        retry = lines([0, 1], early, payment(3, amount="y"))
        first = send(service, RETRY, retry)
        service.crash()
        again = send(service, RETRY, retry)
        marks = rows(service, "payments.deadletters.done")
        assert service.stats["dead_letters"] == [["payments", {"kept": 0, "dropped": 0, "retried": 1}]]
        assert len(rows(service, "payments.deadletters")) == 2, "what is rejected again makes no second one"
        assert [row["payment_id"] for row in rows(service, "payments")] == ["p2"]
    assert (first["accepted"], again["accepted"], again["repeated"]) == (1, 0, 1)
    assert [each["index"] for each in first["rejected"]] == [1] and "deadletter" not in first["rejected"][0]
    assert {mark["offset"] for mark in marks} == {0}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"[0]", b'{"a": 1}\n{}', b"[0, 1]\n{}", b"[7]\n{}", b"[-1]\n{}", b"[0.5]\n{}"]
)
def test_a_retry_of_what_is_no_dead_letter_is_refused_whole(body: bytes) -> None:
    with testing.run(FIRST, now=NOON) as service:
        send(service, EVENTS_NDJSON, lines(payment(1), {"card": 1}))
        assert service._step([(99, RETRY, 0, body, 0)])[0][1] == 422


class Note(ps.Event):
    note_id: str = ps.id()
    text: str
    noted_at: datetime = ps.event_time()


def test_a_topic_may_keep_none() -> None:
    pipeline = ps.Pipeline("notes")
    pipeline.topic("notes", Note, dead_letters=False)
    with testing.run(pipeline, now=NOON) as service:
        answer = send(service, EVENTS_NDJSON, lines({"note_id": "n1", "text": "a", "noted_at": NOON}, {"text": "b"}))
        assert json.loads(_native.catalog(service._disk))["topics"][-1]["name"] == "notes"
    assert [list(each) for each in answer["rejected"]] == [["index", "error"]]
