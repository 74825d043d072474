"""The examples, each served and replayed as its text says."""

from __future__ import annotations

import json
import math
import random
import socket
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oracles.handbook import handbook_features
from penstock.runtime.app import load_app
from penstock.runtime.plan import compile_plan
from processes import DECIDE, FIRST, JSON, NDJSON, ROOT, patient, payment, running, succeed

PAYMENTS = ROOT / "examples" / "payments.py"
HANDBOOK = ROOT / "examples" / "handbook.py"


def test_the_first_example_has_at_most_25_lines() -> None:
    assert len(FIRST.read_text().splitlines()) <= 25


def test_the_first_example_declines_and_reviews(tmp_path: Path) -> None:
    """As it stands, with its own deadline, which a first decision on any machine may miss."""
    with running(tmp_path / "data", app=FIRST) as service:
        assert {"outcome", "reasons", "timed_out"} <= set(service.decide(payment(1)))
    with running(tmp_path / "patient") as service:
        usual = [service.decide(payment(number)) for number in range(5)]
        assert [answer["outcome"] for answer in usual] == ["approve"] * 5
        sixth = service.decide(payment(5, amount="50.01"))
        assert sixth["outcome"] == "decline"
        assert sixth["reasons"] == [{"rule": "too_many", "code": "D01"}, {"rule": "far_above_usual", "code": "R01"}]


def patient_payments(folder: Path) -> Path:
    return patient(folder, PAYMENTS, "authorise.toml")


def test_the_payments_example_decides_with_its_model_live_and_in_replay(tmp_path: Path) -> None:
    def pay(number: int, amount: str, **changed: Any) -> JSON:
        return payment(number, terminal="t1", country="DE", amount=amount, **changed)

    def report(number: int) -> bytes:
        reported = {"report_id": f"r{number}", "terminal": "t1", "reported_at": "2026-11-01T11:00:00Z"}
        return json.dumps(reported).encode()

    app = patient_payments(tmp_path)
    with running(tmp_path / "data", app=app) as service:
        told = [service.decide(pay(1, "20.00")), service.decide(pay(2, "120.00"))]
        for number in (1, 2, 3):
            assert service.call("POST", "/v1/topics/fraud_reports/events", report(number)).status == 200
        told.append(service.decide(pay(3, "20.00")))
        service.end()
    risk = load_app(app).models["risk"].function
    means = [20.0, 70.0, 160 / 3]
    for answer, amount, mean, reports in zip(told, ("20.00", "120.00", "20.00"), means, (0, 0, 3), strict=True):
        assert answer["features"]["card_mean_30d"] == mean
        assert answer["features"]["terminal_reports_7d"] == reports
        batch = pl.DataFrame([{"amount": Decimal(amount), **answer["features"]}])
        assert math.isclose(answer["score"], pl.Series(risk(batch))[0], rel_tol=1e-12)
    assert [answer["outcome"] for answer in told] == ["approve", "approve", "decline"]
    assert told[2]["reasons"][0] == {"rule": "terminal_reported", "code": "D03"}
    succeed("replay", app, "--from", f"log:{tmp_path / 'data'}", "--to", tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for row, answer in zip(rows, told, strict=True):
        assert (row["score"], row["outcome"]) == (answer["score"], answer["outcome"])
        assert {name: row[name] for name in answer["features"]} == answer["features"]
        assert row["reasons"] == [reason["rule"] for reason in answer["reasons"]]


def test_a_dry_run_with_a_model_moves_nothing(tmp_path: Path) -> None:
    event = payment(1, terminal="t1", country=None)
    with running(tmp_path / "data", app=patient_payments(tmp_path)) as service:
        body = json.dumps(event).encode()
        dry = [service.call("POST", DECIDE + "?dry_run=1", body).json() for _ in range(2)]
        lines = service.call("POST", DECIDE + "?dry_run=1", body + b"\n" + body, NDJSON).lines()
        told = service.decide(event)
        for answer in [*dry, *lines]:
            assert (answer["score"], answer["features"]) == (told["score"], told["features"])
            assert answer["offset"] is None
        assert (told["features"]["card_count_1h"], told["offset"]) == (1, 0)


def test_the_handbook_s_policy_has_a_second_and_needs_five_fields() -> None:
    plan = compile_plan(load_app(HANDBOOK)).document
    (policy,), (topic,) = plan["policies"], plan["topics"]
    assert (policy["name"], policy["within_us"], len(policy["rules"])) == ("authorise", 1_000_000, 10)
    assert (topic["name"], topic["lateness_us"]) == ("transactions", 3_600_000_000)
    required = {field["name"]: field["type"] for field in topic["fields"] if not field["optional"]}
    assert required == {
        "TRANSACTION_ID": "int64", "TX_DATETIME": "timestamp", "CUSTOMER_ID": "int64", "TERMINAL_ID": "int64",
        "TX_AMOUNT": {"decimal": [12, 2]},
    }  # fmt: skip
    assert topic["fields"][topic["id"]]["name"] == "TRANSACTION_ID"


def transactions(count: int) -> list[JSON]:
    """In time, with several in one second, of few customers and terminals, over two months."""
    chance = random.Random(7)
    moment = datetime(2018, 4, 1, tzinfo=UTC)
    made = []
    for number in range(count):
        moment += timedelta(seconds=chance.choice((0, 0, 1, 59, 3_600, 20_000, 43_200)))
        made.append(
            {
                "TRANSACTION_ID": number,
                "TX_DATETIME": moment,
                "CUSTOMER_ID": chance.randrange(3),
                "TERMINAL_ID": chance.randrange(3),
                "TX_AMOUNT": Decimal(chance.randrange(1, 30_000)) / 100,
                "TX_FRAUD": int(chance.random() < 0.2),
            }
        )
    return made


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_handbook_is_served_with_the_book_s_features(tmp_path: Path, free_port: int) -> None:
    """What a caller is told equals the book's definitions in DuckDB, and all that is written is under DIR."""
    events = transactions(500)
    table = pa.Table.from_pylist(events).set_column(
        1, "TX_DATETIME", pa.array([each["TX_DATETIME"].replace(tzinfo=None) for each in events])
    )
    pq.write_table(table, tmp_path / "history.parquet")
    expected = {row["TRANSACTION_ID"]: row for row in handbook_features(tmp_path / "history.parquet").to_pylist()}
    app = patient(tmp_path, HANDBOOK, "handbook.toml")
    there = set(tmp_path.iterdir())
    with running(tmp_path / "data", "--port", str(free_port), app=app) as service:
        assert service.port == free_port
        lines = [{**each, "TX_AMOUNT": str(each["TX_AMOUNT"])} for each in events]
        body = "\n".join(json.dumps(each, default=lambda moment: moment.isoformat()) for each in lines).encode()
        told = service.call("POST", DECIDE, body, NDJSON).lines()
        minimal = {name: lines[-1][name] for name in list(lines[0])[:5]} | {"TRANSACTION_ID": 2**63 - 1}
        answer = service.call("POST", DECIDE, json.dumps(minimal, default=str).encode()).json()
        assert (answer["id"], answer["offset"]) == (2**63 - 1, 500)
        for name in minimal:
            less = {key: value for key, value in minimal.items() if key != name}
            refused = service.call("POST", DECIDE, json.dumps(less, default=str).encode())
            assert (refused.status, refused.json()["error"]["field"]) == (422, name)
        service.end()
    written = {path for path in set(tmp_path.iterdir()) - there if path.name != "__pycache__"}
    assert written == {tmp_path / "data", service.log}
    assert [each["offset"] for each in told] == list(range(500))
    for each in told:
        row = expected[each["id"]]
        assert {name: each["features"][name] for name in row if name != "TRANSACTION_ID"} == {
            name: value for name, value in row.items() if name != "TRANSACTION_ID"
        }
    assert {each["outcome"] for each in told} == {"decline", "review", "approve"}
