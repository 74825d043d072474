"""The state's limit and consumers' positions, as callers of a running service see them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from processes import ARROW, DECIDE, EVENTS, NDJSON, Answer, Service, fail, payment, running, succeed

LIMIT = str(1 << 20)


def pay(service: Service, cards: range) -> list[dict[str, Any]]:
    lines = [
        json.dumps({"payment_id": f"p{card}", "card": f"c{card}", "amount": "1.00", "paid_at": "2026-01-01T00:00:00Z"})
        for card in cards
    ]
    answer = service.call(
        "POST", "/v1/policies/authorise/decide", "\n".join(lines).encode(), kind="application/x-ndjson"
    )
    assert answer.status == 200
    return [json.loads(line) for line in answer.body.splitlines()]


def test_from_80_percent_on_readiness_and_metrics_warn_and_at_the_limit_new_keys_get_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_STATE_BYTES", LIMIT)
    with running(tmp_path / "data") as service:
        warned = False
        for card in range(0, 50_000, 100):
            answers = pay(service, range(card, card + 100))
            full = [answer for answer in answers if answer.get("cause")]
            if full:
                break
            ready = service.call("GET", "/readyz")
            warned = warned or bool(ready.status == 200 and ready.json()["warnings"])
        assert warned
        assert {answer["cause"] for answer in full} == {"state_full"}
        assert {answer["outcome"] for answer in full} == {"approve"}
        assert all(set(answer["features"].values()) == {None} for answer in full)
        metrics = service.call("GET", "/metrics").body.decode()
        assert "\npenstock_state_warning 1" in metrics
        assert f"\npenstock_state_full_total {len(full)}" in metrics
        ready = service.call("GET", "/readyz")
        assert ready.status == 200  # known keys go on
        assert ready.json()["warnings"] == ["the state is full: new keys get the fallback"]


def test_tail_with_a_consumer_goes_on_beside_a_service_and_without_one(tmp_path: Path) -> None:
    data = tmp_path / "data"

    def tail(port: int) -> list[str]:
        command = [sys.executable, "-m", "penstock", "tail", "payments", "--consumer", "lake"]
        command += ["--data", str(data), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return [json.loads(line)["payment_id"] for line in done.stdout.splitlines()]

    with running(data) as service:
        pay(service, range(3))
        assert tail(service.port) == ["p0", "p1", "p2"]
        assert tail(service.port) == []
        pay(service, range(3, 5))
        service.end()
    assert tail(9) == ["p3", "p4"]
    assert tail(9) == []
    with running(data) as service:
        answer = service.call("POST", "/v1/positions", b'{"consumer": "lake", "topic": "payments", "offset": 6}')
        assert (answer.status, answer.json()["error"]["code"]) == (422, "invalid_position")
        assert tail(service.port) == []


def test_consumers_are_bounded_listed_and_forgotten_beside_a_service_and_without_one(tmp_path: Path) -> None:
    data = tmp_path / "data"

    def position(service: Service, consumer: str, offset: int | None) -> Answer:
        body = {"consumer": consumer, "topic": "payments", "offset": offset}
        return service.call("POST", "/v1/positions", json.dumps(body).encode())

    with running(data) as service:
        pay(service, range(3))
        for number in range(1_000):
            assert position(service, f"c{number}", 1).status == 200
        refused = position(service, "new", 1)
        assert (refused.status, refused.code) == (422, "too_many_positions")
        assert position(service, "c7", 2).status == 200
        beside = ("--data", data, "--port", service.port)
        words = fail("tail", "payments", "--consumer", "new", *beside)
        assert "the log has 1000 positions of consumers" in words
        assert "penstock consumers --forget NAME" in words
        assert "1 positions of c7" in succeed("consumers", "--forget", "c7", *beside)
        assert len(succeed("tail", "payments", "--consumer", "new", *beside).splitlines()) == 3
        assert position(service, "new", None).json() == {"offset": None}
        wrong = service.call("POST", "/v1/positions", b'{"consumer": "c", "topic": "payments"}')
        assert (wrong.status, wrong.code) == (422, "invalid_position")
        assert service.end() == 0
    listed = json.loads(succeed("consumers", "--json", "--data", data))
    assert len(listed) == 999
    assert listed[0] == {"consumer": "c0", "topic": "payments", "offset": 1, "next_offset": 3}
    succeed("consumers", "--forget", "c0", "--data", data)
    assert 'has no consumer "c0"' in fail("consumers", "--forget", "c0", "--data", data)
    assert re.match(r"c1 +payments +1  2 left", succeed("consumers", "--data", data))


def test_a_damaged_commit_costs_who_asks_for_it_and_nobody_else(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        service.decide(payment(1))
        segment = next((tmp_path / "data" / "log").glob("*.segment"))
        place = segment.read_bytes().rindex(b"p1")
        with segment.open("r+b") as file:
            file.seek(place)
            file.write(b"q")
        retry = service.call("POST", DECIDE, json.dumps(payment(1)).encode())
        for answer in (service.call("GET", "/v1/decisions/authorise/p1"), retry):
            assert (answer.status, answer.code) == (500, "log_damaged")
            assert segment.name in answer.json()["error"]["message"]
        assert service.decide(payment(2))["offset"] == 1


def test_a_body_with_more_wrong_values_than_are_worded_costs_its_own_rows(tmp_path: Path) -> None:
    count = 60_000
    nothing = pa.DictionaryArray.from_arrays(pa.nulls(count, pa.int8()), pa.array(["x"]))
    table = pa.table(
        {
            "payment_id": nothing,
            "card": nothing,
            "amount": pa.nulls(count, pa.int8()),
            "paid_at": pa.nulls(count, pa.timestamp("us", "UTC")),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=count // 2)
    with running(tmp_path / "data") as service:
        answer = service.call("POST", EVENTS, sink.getvalue().to_pybytes(), ARROW)
        assert (answer.status, answer.json()["accepted"], len(answer.json()["rejected"])) == (200, 0, count)
        assert service.decide(payment(1))["offset"] == 0


def test_a_body_of_too_many_lines_is_refused_whole(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        answer = service.call("POST", EVENTS, b"1\n" * 500_001, NDJSON)
        assert (answer.status, answer.code) == (422, "too_many_events")
