"""Bodies of every form at the doors of a running service: what is taken, what is refused by line, what whole."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from processes import ARROW, DECIDE, EVENTS, JSON, NDJSON, Service, patient_first, payment, running, without_time

PLAIN = "application/json"

# An unmarked card per event, so that no test moves another's counts.
NUMBERS = itertools.count(1)


def fresh(**changed: Any) -> JSON:
    number = next(NUMBERS)
    return payment(number, card=f"c{number}", **changed)


def text(*events: JSON) -> bytes:
    return b"\n".join(json.dumps(event).encode() for event in events)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("bodies")
    limits = ("--body-bytes", "64KiB", "--request-time", "500ms")
    with running(folder / "data", *limits, app=patient_first(folder)) as service:
        yield service


def next_offset(service: Service) -> int:
    """The offset that the next payment gets, and now a payment has it."""
    offset: int = service.call("POST", EVENTS, text(fresh())).json()["offsets"][0]
    return offset + 1


def arrow(events: list[JSON], **columns: pa.Array) -> bytes:
    values = {
        "payment_id": pa.array([event["payment_id"] for event in events]),
        "card": pa.array([event["card"] for event in events]),
        "amount": pa.array([Decimal(event["amount"]) for event in events], pa.decimal128(12, 2)),
        "paid_at": pa.array([datetime.fromisoformat(event["paid_at"]) for event in events], pa.timestamp("us", "UTC")),
    }
    table = pa.table({**values, **columns})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def test_one_event_an_array_lines_and_a_stream_are_taken(service: Service) -> None:
    events = [fresh() for _ in range(4)]
    start = next_offset(service)
    bodies = [
        (text(events[0]), PLAIN, [0]),
        (json.dumps(events[:2]).encode(), PLAIN, [0, 1]),
        (text(*events[:3]) + b"\r\n\n", NDJSON, [0, 1, 2]),
        (arrow(events), ARROW, [0, 1, 2, 3]),
    ]
    for new, (body, kind, offsets) in enumerate(bodies):
        answer = service.call("POST", EVENTS, body, kind)
        assert answer.status == 200, answer.body
        assert answer.json() == {
            "accepted": 1,
            "repeated": new,
            "offsets": [start + offset for offset in offsets],
            "rejected": [],
        }


def wrong(**changed: Any) -> JSON:
    event = fresh()
    event.update(changed)
    return event


@pytest.mark.parametrize("kind", [PLAIN, NDJSON])
def test_rejected_rows_are_listed_with_their_reason_and_the_others_are_in(service: Service, kind: str) -> None:
    """Each is JSON, and does not fit: by a field's kind, name, range or time, by its id, or by being no object."""
    taken, good = fresh(), [fresh(), fresh()]
    assert service.call("POST", EVENTS, text(taken)).status == 200
    rows: list[tuple[Any, str | None, str | None]] = [
        (good[0], None, None),
        (wrong(card=7), "wrong_type", "card"),
        (wrong(card=None), "null", "card"),
        (wrong(shop="x"), "unknown_field", "shop"),
        (wrong(amount=1.005), "too_precise", "amount"),
        (wrong(amount="99999999999.00"), "out_of_range", "amount"),
        (wrong(paid_at="2026-11-01T12:00:00"), "wrong_type", "paid_at"),
        (wrong(paid_at="2100-01-01T00:00:00Z"), "ahead_of_clock", "paid_at"),
        ({"payment_id": "p"}, "missing_field", "card"),
        ({**taken, "amount": "1.00"}, "id_conflict", None),
        ({**good[0], "amount": "2.00"}, "id_conflict", None),
        ([1], "not_object", None),
        (5, "not_object", None),
        (None, "not_object", None),
        (good[1], None, None),
    ]
    values = [row for row, _, _ in rows]
    body = json.dumps(values).encode() if kind == PLAIN else b"\n".join(json.dumps(row).encode() for row in values)
    answer = service.call("POST", EVENTS, body, kind)
    assert answer.status == 200
    told = answer.json()
    assert told["accepted"] == 2
    refused = [index for index, (_, code, _) in enumerate(rows) if code]
    assert [each["index"] for each in told["rejected"]] == refused
    for each in told["rejected"]:
        _, code, field = rows[each["index"]]
        assert (each["error"]["code"], each["error"].get("field")) == (code, field)
        assert each["error"]["message"]
    assert [offset is None for offset in told["offsets"]] == [code is not None for _, code, _ in rows]
    start = told["offsets"][0]
    assert told["offsets"][-1] == start + 1


def test_rows_of_a_stream_that_do_not_fit_are_listed_and_a_column_that_does_not_refuses_it_whole(
    service: Service,
) -> None:
    events = [fresh() for _ in range(5)]
    amounts = pa.array([1.0, 2.005, 3.0, None, 5.25])
    told = service.call("POST", EVENTS, arrow(events, amount=amounts), ARROW).json()
    assert (told["accepted"], [each["index"] for each in told["rejected"]]) == (3, [1, 3])
    assert [each["error"]["field"] for each in told["rejected"]] == ["amount", "amount"]
    for columns in ({"amount": pa.array([True] * 5)}, {"shop": pa.array(["x"] * 5)}):
        refused = service.call("POST", EVENTS, arrow([fresh() for _ in range(5)], **columns), ARROW)
        assert (refused.status, refused.code) == (422, "not_arrow")


GOOD = payment(10_000_000)
UNREADABLE = {
    "nothing": (b"", PLAIN),
    "blanks": (b" \n ", PLAIN),
    "words": (b"not json", PLAIN),
    "an event cut off": (text(GOOD)[:-1], PLAIN),
    "an event and more": (text(GOOD) + b"}", PLAIN),
    "two events": (text(GOOD, GOOD), PLAIN),
    "an unknown field and then no JSON": (b'{"shop": 1, nope}', PLAIN),
    "not UTF-8": (b'{"card": "\xff"}', PLAIN),
    "text": (b'"p1"', PLAIN),
    "a number": (b" 5", PLAIN),
    "null": (b"null", PLAIN),
    "a boolean": (b"true", PLAIN),
    "an array cut off": (b"[" + text(GOOD) + b",", PLAIN),
    "an array with what is not JSON": (b"[" + text(GOOD) + b', {"card": nope}]', PLAIN),
    "an empty array": (b"[]", PLAIN),
    "no lines": (b"\n\n", NDJSON),
    "lines of words": (b"not json\nnor this", NDJSON),
    "lines that are bytes": (b"\xff\xfe\n\x00", NDJSON),
    "no stream": (text(GOOD), ARROW),
    "a stream without rows": (arrow([]), ARROW),
    "a stream cut off": (arrow([GOOD])[:-20], ARROW),
    "a stream without its end": (arrow([GOOD])[:-8], ARROW),
}


# Those that are no event at the doors of decisions either.
UNREADABLE_EVENTS = {"nothing", "blanks", "words", "an event cut off", "null", "a number", "an array cut off"}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_body_that_cannot_be_read_is_refused_whole_and_takes_nothing(service: Service, case: str) -> None:
    body, kind = UNREADABLE[case]
    before = next_offset(service)
    paths = [EVENTS]
    if kind == NDJSON or case in UNREADABLE_EVENTS:
        paths += [DECIDE, DECIDE + "?dry_run=1"]
    for path in paths:
        answer = service.call("POST", path, body, kind)
        assert answer.status == 422, (path, answer.body)
        assert answer.code in ("empty", "not_json", "not_arrow", "not_object")
        assert answer.headers["Content-Type"] == PLAIN
    assert next_offset(service) == before + 1
    assert service.call("GET", "/v1/decisions/authorise/p10000000").status == 404


def test_a_bad_line_gives_an_error_in_its_place_and_takes_nothing_else_with_it(service: Service) -> None:
    first, last = fresh(), fresh()
    other = text({**first, "card": "x"})
    lines = [text(first), b"{", b"\xff", text(wrong(card=7)), b"[]", text(first), other, text(last)]
    for path in (DECIDE + "?dry_run=1", DECIDE):
        answer = service.call("POST", path, b"\n".join(lines), NDJSON)
        assert (answer.status, answer.headers["Content-Type"]) == (200, NDJSON)
        told = answer.lines()
        codes = [each["error"]["code"] if "error" in each else None for each in told]
        assert codes[:6] == [None, "not_json", "not_json", "wrong_type", "not_object", None]
        assert (told[0]["id"], told[-1]["id"]) == (first["payment_id"], last["payment_id"])
    assert codes[6] == "id_conflict"
    assert without_time(told[5]) == without_time(told[0])
    assert told[-1]["offset"] == told[0]["offset"] + 1


def test_a_dry_run_says_what_would_be_decided_and_moves_nothing(service: Service) -> None:
    event = fresh()
    dry = service.call("POST", DECIDE + "?dry_run=1", text(event))
    assert dry.json()["offset"] is None
    many = service.call("POST", DECIDE + "?dry_run=1", text(event, event, {**event, "payment_id": "other"}), NDJSON)
    assert [line["features"]["card_count_1h"] for line in many.lines()] == [1, 1, 1]
    assert service.call("GET", f"/v1/decisions/authorise/{event['payment_id']}").code == "not_found"
    told = service.decide(event)
    assert told["features"] == dry.json()["features"]
    again = service.call("POST", DECIDE + "?dry_run=1", text({**event, "payment_id": "other"}))
    assert again.json()["features"]["card_count_1h"] == 2
    assert service.decide({**event, "payment_id": f"{event['payment_id']}-2"})["features"]["card_count_1h"] == 2


def test_an_event_enters_its_topic_once_by_one_door(service: Service) -> None:
    decided, appended = fresh(), fresh()
    assert service.call("POST", DECIDE, text(decided)).status == 200
    assert service.call("POST", EVENTS, text(appended)).status == 200
    refused = service.call("POST", DECIDE, text(appended))
    assert (refused.status, refused.code) == (409, "entered_elsewhere")
    row = service.call("POST", EVENTS, text(decided)).json()["rejected"][0]
    assert (row["index"], row["error"]["code"]) == (0, "entered_elsewhere")
    other = service.call("POST", DECIDE, text({**decided, "amount": "1.00"}))
    assert (other.status, other.code) == (409, "id_conflict")
    line = service.call("POST", DECIDE, text(appended, decided), NDJSON).lines()
    assert line[0]["error"]["code"] == "entered_elsewhere" and line[1]["id"] == decided["payment_id"]
    # Equal fields are the same content, however they are written.
    same = {**decided, "amount": 12.5, "paid_at": "2026-11-01T13:00:00.000+01:00"}
    again = service.call("POST", DECIDE, json.dumps(same, indent=1).encode())
    assert (again.status, again.headers["Penstock-Repeat"]) == (200, "1")


def test_bodies_have_limits_of_size_and_time(service: Service) -> None:
    large = service.call("POST", EVENTS, b" " * (65 << 10))
    assert (large.status, large.code) == (413, "body_too_large")
    assert "65,536" in large.json()["error"]["message"] or "65536" in large.json()["error"]["message"]
    import socket

    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as slow:
        slow.sendall(f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        received = slow.recv(65_536)
    assert received.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in received


def test_more_requests_than_the_rate_are_told_to_come_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rate")
    with running(folder / "data", "--rate", "5", app=patient_first(folder)) as service:
        answers = [service.call("POST", DECIDE, text(fresh())) for _ in range(12)]
        refused = [answer for answer in answers if answer.status == 429]
        assert refused and answers[0].status == 200
        assert refused[0].code == "rate_limited"
        assert int(refused[0].headers["Retry-After"]) >= 1


def test_a_decision_is_looked_up_by_its_id(service: Service) -> None:
    event = fresh(payment_id="a b/ü?%")
    told = service.decide(event)
    found = service.call("GET", "/v1/decisions/authorise/a%20b%2F%C3%BC%3F%25")
    assert found.json() == {**without_time(told), "late_decision": None}
    appended = fresh()
    service.call("POST", EVENTS, text(appended))
    for unknown in ("never", appended["payment_id"]):
        missing = service.call("GET", f"/v1/decisions/authorise/{unknown}")
        assert (missing.status, missing.code) == (404, "not_found")
    assert service.call("GET", "/v1/decisions/other/never").code == "unknown_policy"
