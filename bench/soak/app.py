"""The pipeline that is soaked: its windows are shorter than a run, so that its state comes to stay the same size."""

import os
import time
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import polars as pl

import penstock as ps

# While this file is there, the model hangs.
STUCK = Path(os.environ.get("SOAK_STUCK", "/nonexistent"))


class Payment(ps.Event):
    payment_id: int = ps.id(retain="3m")
    card: str
    terminal: str
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time(lateness="5s", ahead="1m")


pipeline = ps.Pipeline("soaked")
payments = pipeline.topic("payments", Payment)
card, terminal = payments.by("card"), payments.by("terminal")
scored = payments.features(
    card_count_1m=card.past("1m").count(),
    card_sum_1m=card.past("1m").sum("amount"),
    card_mean_2m=card.past("2m").mean("amount"),
    card_terminals_2m=card.past("2m").n_unique("terminal"),
    card_idle=card.past("2m").since_last(),
    terminal_count_1m=terminal.past("1m", delay="1m").count(),
)


@pipeline.model(version="1")
def risk(batch: pl.DataFrame) -> pl.Series:
    while STUCK.exists():
        time.sleep(0.05)
    usual = batch["card_mean_2m"].fill_null(1.0)
    return pl.Series("risk", (batch["amount"].cast(pl.Float64) / (usual + 1)).clip(0, 1))


pipeline.policy("authorise", scored, rules="app.toml", score=risk, within="500ms", fallback="approve")
