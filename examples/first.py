"""A first pipeline: refuse a card that pays too often, or far more than it usually does."""

from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time()


pipeline = ps.Pipeline("first")
payments = pipeline.topic("payments", Payment)
card = payments.by("card")
scored = payments.features(
    card_count_1h=card.past("1h").count(),
    card_mean_30d=card.past("30d", include_current=False).mean("amount"),
)
pipeline.policy("authorise", scored, rules="first.toml", within="50ms", fallback="approve")
