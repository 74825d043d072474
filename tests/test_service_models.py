"""A service with a model, from its start on: it is ready when the model is, and says what keeps the model down."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from pathlib import Path

import pytest

from processes import DECIDE, FIRST, JSON, Answer, Service, eventually, patient_first_with, payment, running

NOT_READY = r"^not ready, (http://[\d.:]+): model"

APP = (
    FIRST.read_text()
    .replace(
        'pipeline.policy("authorise", scored,',
        """
@pipeline.model(version="1")
def risk(batch):
    import os, pathlib, polars
    if (batch["amount"] == 666).any():
        os._exit(3)
    if pathlib.Path(__file__).with_name("broken").exists():
        raise ValueError("secret 4711")
    return polars.Series([0.25] * len(batch))


pipeline.policy("authorise", scored, score=risk,""",
    )
    .replace('within="50ms"', 'within="30s"')
)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "first.toml").write_text(FIRST.with_suffix(".toml").read_text())
    (tmp_path / "app.py").write_text(APP)
    return tmp_path / "app.py"


def ready(service: Service) -> Answer:
    return service.call("GET", "/readyz")


def test_the_first_decision_after_ready_has_its_score(tmp_path: Path, app: Path) -> None:
    with running(tmp_path / "data", app=app) as service:
        assert (service.decide(payment(1))["score"], ready(service).json()["warnings"]) == (0.25, [])


def test_a_model_whose_warm_up_fails_keeps_the_service_from_being_ready_and_is_named(tmp_path: Path, app: Path) -> None:
    broken = app.with_name("broken")
    broken.touch()
    with running(tmp_path / "data", app=app, said=NOT_READY) as service:
        line = service.wait_until_said(r"^(not ready, .*)$")
        assert 'model "risk" is not up: its warm-up failed: ValueError at ' in line
        assert f"{app}:" in line and "4711" not in service.log.read_text()
        refused = ready(service)
        assert (refused.status, refused.code) == (503, "not_ready")
        reason = refused.json()["error"]["reasons"][0]
        assert reason.startswith('model "risk" is not up: its warm-up failed: ValueError')
        assert service.call("GET", "/healthz").status == 200
        assert "ready after" not in service.log.read_text()
        broken.unlink()
        service.wait_until_said(r"^(ready after .*)$")
        assert ready(service).status == 200
        assert service.decide(payment(1))["score"] == 0.25


def test_a_model_that_has_been_up_and_ends_is_a_warning(tmp_path: Path, app: Path) -> None:
    broken = app.with_name("broken")
    with running(tmp_path / "data", app=app) as service:
        broken.touch()
        ended = service.call("POST", DECIDE, json.dumps(payment(1, amount="666.00")).encode())
        assert ended.json()["cause"] == "model"
        while "its warm-up failed" not in str((warned := ready(service)).json()):
            assert warned.status == 200
        assert warned.status == 200
        assert warned.json()["warnings"][0].startswith('model "risk" is not up: its warm-up failed: ValueError')
        broken.unlink()
        while ready(service).json()["warnings"]:
            time.sleep(0.02)
        assert service.decide(payment(2))["score"] == 0.25


# One model for each thing that can go wrong; cards say which batch does it.
MODELS = """
def model(name, act):
    def score(batch):
        import polars
        if (batch["card"] == "wrong").any():
            act()
        return polars.Series([0.25] * len(batch))

    score.__name__ = name
    chosen = pipeline.model(version="1")(score)
    pipeline.policy(f"by_{name}", scored, rules="first.toml", score=chosen, within="60s", fallback="review")


def raises():
    raise ValueError("secret 4711")


def hangs():
    import pathlib, time
    while not pathlib.Path(__file__).with_name("released").exists():
        time.sleep(0.01)


def crashes():
    import os, signal
    os.kill(os.getpid(), signal.SIGSEGV)


model("raises", raises)
model("hangs", hangs)
model("crashes", crashes)
"""
WRONG = ("raises", "hangs", "crashes")
_numbers = itertools.count()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return patient_first_with(tmp_path, MODELS)


def decide(service: Service, policy: str, card: str = "") -> JSON:
    number = next(_numbers)
    event = payment(number, card=card or f"c{number}")
    answer = service.call("POST", f"/v1/policies/{policy}/decide", json.dumps(event).encode())
    assert answer.status == 200, answer.body
    return answer.json()


def check_others(service: Service, but: str) -> None:
    """Whoever has nothing to do with this model is decided about as ever."""
    assert service.call("GET", "/healthz").status == 200
    assert service.call("GET", "/readyz").status == 200
    assert decide(service, "authorise")["outcome"] == "approve"
    for name in WRONG:
        if name != but:
            assert decide(service, f"by_{name}")["score"] == 0.25


def test_a_model_that_raises_costs_its_rows_their_score_and_nobody_else(tmp_path: Path, models: Path) -> None:
    with running(tmp_path / "data", app=models) as service:
        for _ in range(20):
            told = decide(service, "by_raises", "wrong")
            assert (told["outcome"], told["cause"], told["score"]) == ("review", "model", None)
            assert decide(service, "by_raises")["score"] == 0.25
            check_others(service, "raises")
        assert service.metric('model_starts_total{model="raises"}') == 1
        assert service.end() == 0


def test_a_model_that_crashes_again_and_again_is_named_while_it_is_down_and_comes_back(
    tmp_path: Path, models: Path
) -> None:
    warned: list[str] = []
    with running(tmp_path / "data", app=models) as service:
        for _ in range(3):
            told = decide(service, "by_crashes", "wrong")
            assert (told["outcome"], told["cause"], told["score"]) == ("review", "model", None)
            warned += ready(service).json()["warnings"]
            check_others(service, "crashes")
            eventually(lambda: not ready(service).json()["warnings"])
        assert decide(service, "by_crashes")["score"] == 0.25
        assert service.metric('model_starts_total{model="crashes"}') == 4
        assert warned
        assert all(re.fullmatch(r'model "crashes" is not up: its process ended, for \d+ s', each) for each in warned)
        assert service.end() == 0


def test_a_model_that_hangs_holds_nobody_else_up(tmp_path: Path, models: Path) -> None:
    with running(tmp_path / "data", app=models) as service:
        told: list[JSON] = []
        held = threading.Thread(target=lambda: told.append(decide(service, "by_hangs", "wrong")))
        held.start()
        eventually(lambda: service.metric("door_waiting") == 1)
        for _ in range(20):
            check_others(service, "hangs")
        assert held.is_alive()
        models.with_name("released").touch()
        held.join()
        assert told[0]["score"] == 0.25
        assert service.end() == 0


def test_a_model_that_hangs_for_too_long_is_ended_and_started_anew(tmp_path: Path, models: Path) -> None:
    with running(tmp_path / "data", "--model-time", "1s", app=models) as service:
        assert decide(service, "by_hangs", "wrong")["cause"] == "model"
        eventually(lambda: not ready(service).json()["warnings"])
        assert decide(service, "by_hangs")["score"] == 0.25
        assert 'model "hangs": a batch took longer than 1 s' in service.log.read_text()
        check_others(service, "hangs")
        assert service.end() == 0
