"""A service with a model, from its start on: it is ready when the model is, and says what keeps the model down."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from processes import DECIDE, FIRST, Answer, Service, payment, running

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
