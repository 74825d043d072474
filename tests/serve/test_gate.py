"""The door over the real gate: what callers are promised, seen from their side of the socket."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from penstock import _native
from penstock.runtime.app import load_app
from penstock.runtime.plan import compile_plan
from penstock.serve.service import Service, core_settings, door_settings
from penstock.settings import read_settings
from serve.client import Answer, Client, Running, eventually, get, post, running

APP = '''
import os
import time
from datetime import datetime

import polars as pl

import penstock as ps


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str
    amount: float
    paid_at: datetime = ps.event_time(ahead="1000d")


pipeline = ps.Pipeline("cards")
payments = pipeline.topic("payments", Payment)
scored = payments.features(count=payments.by("card").past("1h").count())


@pipeline.model(version="1")
def risk(batch: pl.DataFrame) -> pl.Series:
    amounts = batch["amount"]
    if (amounts == -1).any():
        raise ValueError("no")
    if (amounts == -2).any():
        time.sleep(1000)
    if (amounts == -3).any():
        os._exit(3)
    if (amounts == -4).any():
        time.sleep(1.0)
    return amounts / 100


plain = pipeline.policy(
    "plain", scored, rules="rules.toml", within="20s", fallback="review"
)
modelled = pipeline.policy(
    "modelled", scored, rules="rules.toml", score=risk, within="20s", fallback="review"
)
hasty = pipeline.policy(
    "hasty", scored, rules="rules.toml", score=risk, within="100ms", fallback="review"
)
'''

RULES = """
default = "approve"
outcomes = ["decline", "review", "approve"]
[[rule]]
name = "much"
when = "amount > 100 or coalesce(score, 0) > 0.9"
outcome = "decline"
code = "R1"
"""

NDJSON = "application/x-ndjson"
EVENTS = "/v1/topics/payments/events"


def decide(policy: str) -> str:
    return f"/v1/policies/{policy}/decide"


def payment(number: int | str, amount: float = 5.0, card: str = "c1") -> bytes:
    event = {
        "payment_id": f"p{number}",
        "card": card,
        "amount": amount,
        "paid_at": "2026-11-01T09:30:00Z",
    }
    return json.dumps(event).encode()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "rules.toml").write_text(RULES)
    settings = read_settings({"data": tmp_path / "data", "segment_bytes": "16MiB"}, environment={})
    return Service(tmp_path / "app.py", compile_plan(load_app(tmp_path / "app.py")), settings)


@contextmanager
def serving(service: Service, **settings: Any) -> Iterator[Running]:
    data = service.settings["data"]
    data.mkdir(exist_ok=True)
    gate = _native.Gate(service.plan.to_json(), str(data), core_settings(service.settings))
    with running(gate, doors=service.doors(), drain_s=2.0, **settings) as door:
        yield door


def models_up(door: Running) -> None:
    eventually(lambda: b'penstock_model_up{model="risk"} 1\n' in door.ask(get("/metrics")).body)


def told(answer: Answer) -> dict[str, Any]:
    """All of a decision but the time that it took."""
    return {key: value for key, value in answer.json.items() if key != "took_ms"}


def test_a_decision_says_why_and_a_retry_is_told_the_same(service: Service) -> None:
    with serving(service) as door:
        first = door.ask(post(decide("plain"), payment(1, 150.0)))
        assert first.status == 200
        assert first.json["outcome"] == "decline"
        assert first.json["reasons"] == [{"rule": "much", "code": "R1"}]
        assert first.json["features"] == {"count": 1}
        assert (first.json["offset"], first.json["timed_out"]) == (0, False)
        assert first.json["took_ms"] > 0
        again = door.ask(post(decide("plain"), payment(1, 150.0)))
        assert told(again) == told(first)
        assert again.headers["penstock-repeat"] == "1"
        other = door.ask(post(decide("plain"), payment(1, 151.0)))
        assert (other.status, other.code) == (409, "id_conflict")
        assert door.ask(post(decide("plain"), payment(2))).json["features"] == {"count": 2}
    with serving(service) as door:
        again = door.ask(post(decide("plain"), payment(1, 150.0)))
        assert told(again) == told(first)
        assert door.ask(post(decide("plain"), payment(3))).json["features"] == {"count": 3}


def test_a_thousand_at_once_on_one_card_are_counted_each_once(service: Service) -> None:
    counts: list[int] = []

    def ask_fifty(port: int, start: int) -> None:
        client = Client(port)
        for number in range(start, start + 50):
            client.send(post(decide("plain"), payment(number)))
        answers = [client.answer() for _ in range(50)]
        assert not [a.body for a in answers if "features" not in a.json]
        counts.extend(a.json["features"]["count"] for a in answers)
        client.close()

    with serving(service) as door:
        threads = [
            threading.Thread(target=ask_fifty, args=(door.port, 50 * each)) for each in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(counts) == list(range(1, 1_001))


def test_many_are_decided_in_order_and_bad_lines_named(service: Service) -> None:
    with serving(service) as door:
        body = b"\n".join([payment(1), b"{}", payment(2, 500.0), payment(1)])
        answer = door.ask(post(decide("plain"), body, media=NDJSON))
        assert (answer.status, answer.headers["content-type"]) == (200, NDJSON)
        first, bad, second, again = (json.loads(line) for line in answer.body.splitlines())
        assert (first["outcome"], second["outcome"]) == ("approve", "decline")
        assert bad["error"]["code"] == "missing_field"
        assert again["offset"] == first["offset"]


def test_a_dry_run_moves_nothing(service: Service) -> None:
    with serving(service) as door:
        for _ in range(2):
            dry = door.ask(post(decide("plain") + "?dry_run=1", payment(1, 500.0)))
            assert (dry.json["outcome"], dry.json["features"]) == ("decline", {"count": 1})
        many = door.ask(post(decide("plain") + "?dry_run=1", payment(1), media=NDJSON))
        assert (many.status, many.headers["content-type"]) == (200, NDJSON)
        assert door.ask(get("/v1/decisions/plain/p1")).status == 404
        assert door.ask(post(decide("plain"), payment(1))).json["features"] == {"count": 1}


def test_a_decision_can_be_looked_up(service: Service) -> None:
    with serving(service) as door:
        decided = door.ask(post(decide("plain"), payment("a/ä")))
        found = door.ask(get("/v1/decisions/plain/pa%2F%C3%A4"))
        assert found.status == 200
        # The time that an answer took is told with the answer alone.
        assert found.json == {**told(decided), "late_decision": None}
        assert door.ask(get("/v1/decisions/plain/other")).code == "not_found"


def arrow(*payments: bytes) -> bytes:
    out = io.BytesIO()
    frame = pl.DataFrame([json.loads(payment) for payment in payments])
    times = pl.col("paid_at").str.to_datetime(time_unit="us", time_zone="UTC")
    frame.with_columns(times).write_ipc_stream(out, compat_level=pl.CompatLevel.oldest())
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"[" + payment(1) + b"," + payment(2) + b"]", "application/json"),
        (payment(1) + b"\n" + payment(2) + b"\n", NDJSON),
        (arrow(payment(1), payment(2)), "application/vnd.apache.arrow.stream"),
    ],
)
def test_events_are_taken_in_each_form(service: Service, body: bytes, media: str) -> None:
    with serving(service) as door:
        answer = door.ask(post(EVENTS, body, media=media))
        assert answer.status == 200, answer.body
        assert answer.json == {"accepted": 2, "repeated": 0, "offsets": [0, 1], "rejected": []}
        again = door.ask(post(EVENTS, body, media=media))
        assert again.json["repeated"] == 2
        assert again.json["offsets"] == [0, 1]
        entered = door.ask(post(decide("plain"), payment(1)))
        assert (entered.status, entered.code) == (409, "entered_elsewhere")


def test_what_is_no_event_is_refused_with_its_field(service: Service) -> None:
    with serving(service) as door:
        answer = door.ask(post(decide("plain"), payment(1).replace(b"5.0", b'"much"')))
        assert (answer.status, answer.code) == (422, "wrong_type")
        assert answer.json["error"]["field"] == "amount"
        assert b"much" not in answer.body
        assert door.ask(post(decide("plain"), b"")).status == 422
        assert door.ask(post(EVENTS, b"", media=NDJSON)).status == 422


def test_a_model_scores_and_its_failures_cost_only_their_own(service: Service) -> None:
    with serving(service) as door:
        models_up(door)
        scored = door.ask(post(decide("modelled"), payment(1, 93.75)))
        assert (scored.json["score"], scored.json["outcome"]) == (0.9375, "decline")
        failed = door.ask(post(decide("modelled"), payment(2, -1.0)))
        assert (failed.json["outcome"], failed.json["cause"]) == ("review", "model")
        assert door.ask(get("/v1/decisions/modelled/p2")).json == {**told(failed), "late_decision": None}
        assert failed.json["timed_out"] is False
        crashed = door.ask(post(decide("modelled"), payment(3, -3.0)))
        assert crashed.json["cause"] == "model"
        models_up(door)
        assert door.ask(post(decide("modelled"), payment(4, 50.0))).json["score"] == 0.5


def test_a_stuck_model_costs_its_policy_s_fallback_and_nothing_else(service: Service) -> None:
    with serving(service, model_batch_s=2.0) as door:
        models_up(door)
        stuck = door.client()
        stuck.send(post(decide("hasty"), payment(1, -2.0)))
        assert door.ask(post(decide("plain"), payment(2))).json["outcome"] == "approve"
        answer = stuck.answer()
        assert (answer.json["outcome"], answer.json["timed_out"]) == ("review", True)
        assert answer.json["cause"] == "deadline"
        assert [answer.json[key] for key in ("features", "score", "offset")] == [None] * 3
        again = door.ask(post(decide("hasty"), payment(1, -2.0)))
        assert told(again) == told(answer)
        # Both events moved the state, the stuck one first.
        assert door.ask(post(decide("plain"), payment(3))).json["features"] == {"count": 3}
        models_up(door)


def test_what_is_decided_late_is_recorded_beside_what_was_told(service: Service) -> None:
    with serving(service) as door:
        models_up(door)
        answer = door.ask(post(decide("hasty"), payment(1, -4.0)))
        assert answer.json["timed_out"] is True
        lookup = get("/v1/decisions/hasty/p1")
        eventually(lambda: door.ask(lookup).json.get("late_decision") is not None)
        found = door.ask(lookup).json
        assert (found["outcome"], found["timed_out"]) == ("review", True)
        late = found["late_decision"]
        assert (late["outcome"], late["score"], late["timed_out"]) == ("approve", -0.04, False)


def test_stopping_while_decisions_wait_for_a_model_answers_them(service: Service) -> None:
    with serving(service) as door:
        models_up(door)
        client = door.client()
        client.send(post(decide("modelled"), payment(1, -2.0)))
        eventually(lambda: b"penstock_door_waiting 1\n" in door.ask(get("/metrics")).body)
        door.stop()
        answer = client.answer()
        assert (answer.json["outcome"], answer.json["cause"]) == ("review", "model")


def test_the_gate_s_numbers_are_shown(service: Service) -> None:
    with serving(service) as door:
        assert door.ask(get("/readyz")).status in (200, 503)
        for number in range(3):
            door.ask(post(decide("plain"), payment(number)))
        text = door.ask(get("/metrics")).body.decode()
    for line in (
        "penstock_events_total 3",
        'penstock_decisions_total{policy="plain",outcome="approve"} 3',
        "penstock_sync_seconds_count 3",
        "penstock_state_keys 1",
    ):
        assert line in text.splitlines()


def test_answers_have_the_fields_that_the_http_document_names(service: Service, root: Path) -> None:
    schemas = yaml.safe_load((root / "docs" / "http.yaml").read_text())["components"]["schemas"]

    def check(name: str, answer: dict[str, Any]) -> None:
        assert set(schemas[name]["required"]) <= set(answer) <= set(schemas[name]["properties"])

    with serving(service) as door:
        models_up(door)
        check("Decision", door.ask(post(decide("plain"), payment(1))).json)
        check("Decision", door.ask(post(decide("hasty"), payment(2, -4.0))).json)
        check("Decision", door.ask(post(decide("plain") + "?dry_run=1", payment(3))).json)
        taken = door.ask(post(EVENTS, b"[" + payment(4) + b", {}]")).json
        check("Taken", taken)
        check("Problem", taken["rejected"][0]["error"])
        for request in (
            post("/v1/policies/other/decide"),
            post(decide("plain"), media="text/plain"),
            post(decide("plain") + "?dry_run=2"),
            post(decide("plain"), b"{}"),
            post(EVENTS, b"[{}"),
        ):
            check("Problem", door.ask(request).json["error"])


def test_every_metric_of_a_service_is_documented(service: Service, root: Path) -> None:
    documents = (root / "docs" / "operations.md").read_text()
    with serving(service) as door:
        door.ask(post(decide("plain"), payment(1)))
        text = door.ask(get("/metrics")).body.decode()
    shown = {family.name: family.type for family in text_string_to_metric_families(text)}
    names = {f"{name}_total" if kind == "counter" else name for name, kind in shown.items()}
    assert names == set(re.findall(r"`(penstock_\w+)`", documents))


def test_the_settings_of_a_service_are_the_door_s(service: Service) -> None:
    settings = door_settings(service.settings)
    assert settings.host == "127.0.0.1"
    assert settings.requests_per_second_max is None
