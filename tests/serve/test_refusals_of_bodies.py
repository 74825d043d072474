"""What a real service says of bodies that are none, and that nothing else suffers from them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from processes import ARROW, DECIDE, EVENTS, NDJSON, Service, patient_first, payment, running
from serve.siege import siege

PLAIN = "application/json"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("bodies")
    with running(folder / "data", app=patient_first(folder)) as service:
        yield service


def raw(**changed: str) -> bytes:
    """A payment whose fields are these bytes of JSON."""
    fields = {"payment_id": '"p"', "card": '"c"', "amount": "1", "paid_at": '"2026-11-01T12:00:00Z"', **changed}
    text = "{" + ",".join(f'"{name}": {value}' for name, value in fields.items() if value) + "}"
    return text.encode("utf-8", "surrogateescape")


TIME = '"{}-01-01T00:00:00Z"'
# The body of one event, the code, and the field where there is one.
EVENTS_REFUSED: dict[str, tuple[bytes, str, str | None]] = {
    "nothing": (b"", "empty", None),
    "blanks": (b" \n\t", "empty", None),
    "half an object": (raw()[:-1], "not_json", None),
    "two objects": (raw() + raw(), "not_json", None),
    "a comma too many": (raw()[:-1] + b",}", "not_json", None),
    "NaN": (raw(amount="NaN"), "not_json", None),
    "Infinity": (raw(amount="-Infinity"), "not_json", None),
    "a number beyond any": (raw(amount="1e999"), "out_of_range", "amount"),
    "a number of a million digits": (raw(amount="1" * 1_000_000), "out_of_range", "amount"),
    "NaN as text": (raw(amount='"NaN"'), "wrong_type", "amount"),
    "hex": (raw(amount="0x10"), "not_json", None),
    "a deep array": (raw(card="[" * 100_000 + "]" * 100_000), "wrong_type", "card"),
    "an object in a field": (raw(card='{"a": {}}'), "wrong_type", "card"),
    "true": (raw(card="true"), "wrong_type", "card"),
    "null": (raw(card="null"), "null", "card"),
    "a field twice": (raw()[:-1] + b', "card": "d"}', "repeated_field", "card"),
    "an unknown field": (raw(x="1"), "unknown_field", "x"),
    "a missing one": (raw(card=""), "missing_field", "card"),
    "a huge key": (raw(**{"k" * 100_000: "1"}), "unknown_field", "k" * 64),
    "a key of nothing": (raw(**{"": "1"}), "unknown_field", ""),
    "a huge id": (raw(payment_id=json.dumps("p" * 70_000)), "too_large", "payment_id"),
    "bytes that are no UTF-8": (raw(card='"\udcff"'), "not_json", None),
    "an overlong slash": (raw(card='"\udcc0\udcaf"'), "not_json", None),
    "a surrogate in UTF-8": (raw(card='"\udced\udca0\udc80"'), "not_json", None),
    "a lone surrogate": (raw(card='"\\ud800"'), "not_json", None),
    "two halves the wrong way": (raw(card='"\\udc00\\ud800"'), "not_json", None),
    "a line's end in a text": (raw(card='"a\nb"'), "not_json", None),
    "UTF-16": (raw().decode().encode("utf-16"), "not_json", None),
    "a byte order mark": (b"\xef\xbb\xbf" + raw(), "not_json", None),
    "year 0": (raw(paid_at=TIME.format("0000")), "out_of_range", "paid_at"),
    "year 9999": (raw(paid_at=TIME.format("9999")), "ahead_of_clock", "paid_at"),
    "year 10000": (raw(paid_at=TIME.format("10000")), "wrong_type", "paid_at"),
    "the 30th of February": (raw(paid_at='"2026-02-30T00:00:00Z"'), "out_of_range", "paid_at"),
    "a time of day beyond": (raw(paid_at='"2026-02-28T25:00:00Z"'), "out_of_range", "paid_at"),
    "nanoseconds": (raw(paid_at='"2026-02-28T00:00:00.123456789Z"'), "too_precise", "paid_at"),
}  # fmt: skip


@pytest.mark.parametrize("case", EVENTS_REFUSED)
def test_a_wrong_event_is_refused_at_every_door_with_its_code_and_field(service: Service, case: str) -> None:
    body, code, field = EVENTS_REFUSED[case]
    for path in (DECIDE, DECIDE + "?dry_run=1", EVENTS):
        answer = service.call("POST", path, body)
        error: dict[str, Any] = answer.json().get("error") or answer.json()["rejected"][0]["error"]
        if code == "ahead_of_clock" and path.endswith("1"):
            assert answer.status in (200, 422)
            continue
        assert (error["code"], error.get("field")) == (code, field), (path, error)
        assert len(answer.body) < 2_000, "an error is no echo"
    lines = body + b"\n" + json.dumps(payment(1)).encode()
    if code != "empty" and b"\n" not in body:
        told = service.call("POST", EVENTS, lines, NDJSON).json()
        assert [each["index"] for each in told["rejected"]] == [0]


def test_an_empty_id_and_key_are_texts_like_others(service: Service) -> None:
    answer = service.call("POST", DECIDE, raw(payment_id='""', card='""'))
    assert (answer.status, answer.json()["id"]) == (200, "")


def stream(rows: int = 3, **columns: Any) -> bytes:
    fields: dict[str, Any] = {
        "payment_id": [f"arrow-{number}" for number in range(rows)],
        "card": ["c"] * rows,
        "amount": pa.array([1.0] * rows),
        "paid_at": pa.array([1_793_534_400_000_000] * rows, pa.timestamp("us", "UTC")),
    }
    table = pa.table({name: value for name, value in {**fields, **columns}.items() if value is not None})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=columns.pop("options", None)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def compressed() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"payment_id": ["p" * 1_000_000] * 50})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


STREAMS = {
    "no stream": b"no stream at all",
    "a compressed bomb": compressed(),
    "another column": stream(shop=["x"] * 3),
    "a column less": stream(card=None),
    "a column of another type": stream(amount=pa.array([True] * 3)),
    "the stream twice": stream() * 2,
    "no rows": stream(0),
    "an Arrow file": b"ARROW1\0\0" + stream() + b"ARROW1",
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_wrong_stream_is_refused_whole(service: Service, case: str) -> None:
    answer = service.call("POST", EVENTS, STREAMS[case], ARROW)
    assert (answer.status, answer.code) == (422, "empty" if case == "no rows" else "not_arrow")
    assert service.call("POST", DECIDE, STREAMS[case], ARROW).code == "unsupported_media_type"


def test_a_stream_cut_anywhere_is_refused_and_one_garbled_anywhere_does_no_harm(service: Service) -> None:
    whole, random_bytes = stream(), random.Random(1)
    with siege(service):
        for end in range(0, len(whole), 7):
            answer = service.call("POST", EVENTS, whole[:end], ARROW)
            assert (answer.status, answer.code) == (422, "not_arrow")
        for _ in range(400):
            garbled = bytearray(whole)
            for _ in range(random_bytes.randint(1, 8)):
                garbled[random_bytes.randrange(len(garbled))] = random_bytes.randrange(256)
            assert service.call("POST", EVENTS, bytes(garbled), ARROW).status in (200, 422)


def test_a_stream_of_more_rows_than_one_body_may_have_is_refused_whole(service: Service) -> None:
    """A dictionary's keys take a byte a row: what comes of 30 MB would be gigabytes."""
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * 600_000, pa.int8()), ["bomb"])
    with siege(service):
        answer = service.call("POST", EVENTS, stream(600_000, card=ids, payment_id=ids), ARROW)
        assert (answer.status, answer.code) == (422, "too_many_events")


def test_half_a_million_wrong_rows_cost_one_answer_and_nobody_waits(service: Service) -> None:
    with siege(service, grows_bytes=400 << 20):
        answer = service.call("POST", EVENTS, b"{}\n" * 500_000, NDJSON)
        told = answer.json()
        assert (answer.status, told["accepted"], len(told["rejected"])) == (200, 0, 500_000)
        assert "deadletter" in told["rejected"][9_999] and "deadletter" not in told["rejected"][10_000]
        too_many = service.call("POST", EVENTS, b"1\n" * 500_001, NDJSON)
        assert (too_many.status, too_many.code) == (422, "too_many_events")
