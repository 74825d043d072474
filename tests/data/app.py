"""The pipeline of the data directories of earlier versions that tests open; it stays as it is."""

from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    payment_id: str = ps.id(retain="36500d")
    card: str
    memo: str | None
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time()


class Report(ps.Event):
    report_id: int = ps.id(retain="36500d")
    card: str
    reported_at: datetime = ps.event_time()


pipeline = ps.Pipeline("cards")
payments = pipeline.topic("payments", Payment)
reports = pipeline.topic("reports", Report)
card = payments.by("card")
scored = payments.features(
    n=card.past(None).count(),
    spent=card.past("30d").sum("amount"),
    spread=card.past("30d").std("amount"),
    memos=card.past("30d").n_unique("memo"),
    previous=card.past("30d").lag("amount", 1),
    reported=reports.by("card").past("30d").count(),
)
pipeline.policy("authorise", scored, rules="rules.toml", within="60s", fallback="review")
