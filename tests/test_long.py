"""What takes minutes: a large part of the Handbook's history over HTTP, and a model's fit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from oracles.handbook import HISTORY
from penstock.demo.service import Service

ROOT = Path(__file__).resolve().parent.parent
DECIDE = "/v1/policies/authorise/decide"

pytestmark = pytest.mark.long

EVENTS = 500_000
BATCH = 1_000


@pytest.mark.skipif(not HISTORY.exists(), reason="the Handbook's data is not part of the project")
def test_half_a_million_transactions_are_decided_over_http_as_in_replay(tmp_path: Path) -> None:
    app = ROOT / "examples" / "handbook.py"
    source, target = tmp_path / "history.parquet", tmp_path / "replayed.parquet"
    history = pl.read_parquet(HISTORY).head(EVENTS)
    history.write_parquet(source)
    command = [sys.executable, "-m", "penstock", "replay", str(app)]
    subprocess.run([*command, "--from", str(source), "--to", str(target)], check=True, timeout=600)
    replayed = pl.read_parquet(target).sort("TRANSACTION_ID")
    with Service(app, data=tmp_path / "data", log=tmp_path / "service.txt") as service:
        service.wait_until_ready()
        answers = b"".join(
            service.post(DECIDE, body, content_type="application/x-ndjson") for body in bodies(history)
        )
    live = pl.read_ndjson(answers).sort("id")
    assert live["id"].equals(replayed["TRANSACTION_ID"].cast(pl.Int64), check_names=False)
    assert not live["timed_out"].any()
    features = live["features"].struct.unnest()
    assert len(features.columns) == 17
    for name in features.columns:
        assert features[name].equals(replayed[name].cast(features[name].dtype)), name
    assert live["outcome"].equals(replayed["outcome"].cast(pl.String), check_names=False)
    rules = live["reasons"].list.eval(pl.element().struct.field("rule"))
    assert rules.equals(replayed["reasons"], check_names=False)


def bodies(history: pl.DataFrame) -> list[bytes]:
    rows = history.select(
        "TRANSACTION_ID",
        pl.col("TX_DATETIME").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "CUSTOMER_ID",
        "TERMINAL_ID",
        pl.col("TX_AMOUNT").round(2),
        "TX_FRAUD",
    )
    return [part.write_ndjson().encode() for part in rows.iter_slices(BATCH)]


def test_the_model_of_the_payments_has_the_weights_that_their_fit_gives() -> None:
    said = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "fit_risk.py")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    weights = re.findall(r"^([+-])(\d+\.\d{3})  ", said, re.MULTILINE)
    assert len(weights) == 5
    example = (ROOT / "examples" / "payments.py").read_text()
    for sign, weight in weights:
        assert re.search(rf"{re.escape(sign)} ?{re.escape(weight)}\b", example), f"{sign}{weight}"
