"""Card payments, decided inside their authorisation: features, rules and a small model.

    penstock run examples/payments.py --data DIR --port 8080
    make demo

drives it with generated payments of which some are fraud: an amount above what anybody pays, a
terminal that is compromised for four weeks, a card that is stolen for two. Fraud reports follow
days after the payments.
"""

from datetime import datetime
from decimal import Decimal

import numpy as np
import polars as pl

import penstock as ps


class Payment(ps.Event):
    payment_id: str = ps.id(retain="24h")
    card: str
    terminal: str
    country: str | None
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time(lateness="1h", ahead="10m")


class FraudReport(ps.Event):
    report_id: str = ps.id()
    terminal: str
    reported_at: datetime = ps.event_time()


pipeline = ps.Pipeline("cards")
payments = pipeline.topic("payments", Payment)
reports = pipeline.topic("fraud_reports", FraudReport)
card, terminal = payments.by("card"), payments.by("terminal")
reported = reports.by("terminal")

scored = payments.features(
    card_count_1h=card.past("1h").count(),
    card_mean_30d=card.past("30d").mean("amount"),
    card_countries_1d=card.past("1d").n_unique("country"),
    card_idle=card.past("30d").since_last(),
    terminal_count_7d=terminal.past("7d", delay="7d").count(),
    terminal_big_7d=terminal.past("7d", delay="7d").count(where="amount > 500"),
    terminal_reports_7d=reported.past("7d").count(),
    terminal_reports_30d=reported.past("30d").count(),
).derive(
    terminal_big_share="coalesce(terminal_big_7d / terminal_count_7d, 0)",
)


@pipeline.model(version="2026-11-01")
def risk(batch: pl.DataFrame) -> pl.Series:
    """The probability of fraud, by a logistic regression.

    `examples/fit_risk.py` found the coefficients on generated payments, and says how good they are.
    """
    amount = batch["amount"].cast(pl.Float64).to_numpy()
    usual = batch["card_mean_30d"].to_numpy()
    week = batch["terminal_reports_7d"].to_numpy()
    month = batch["terminal_reports_30d"].to_numpy()
    logit = (
        -9.674
        + 2.227 * np.minimum(amount / np.maximum(usual, 1), 5)
        + 0.988 * amount / 100
        + 5.350 * np.log1p(week)
        - 0.765 * np.log1p(month)
    )
    return pl.Series("risk", 1 / (1 + np.exp(-logit)))


authorise = pipeline.policy(
    "authorise", scored, rules="authorise.toml", score=risk, within="50ms", fallback="approve"
)
