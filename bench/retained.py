"""Counts and sums over three windows of one entity, to measure what retained events cost."""

from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    payment_id: int = ps.id(retain="1h")
    card: int
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time()


pipeline = ps.Pipeline("retained")
payments = pipeline.topic("payments", Payment)
card = payments.by("card")
scored = payments.features(
    count_1d=card.past("1d").count(),
    count_7d=card.past("7d").count(),
    count_30d=card.past("30d").count(),
    sum_1d=card.past("1d").sum("amount"),
    sum_7d=card.past("7d").sum("amount"),
    sum_30d=card.past("30d").sum("amount"),
)
pipeline.policy("authorise", scored, rules="retained.toml", within="1s", fallback="approve")
