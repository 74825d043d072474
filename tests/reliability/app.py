"""The pipeline that is attacked: its features count, so that an event twice or none shows in every later answer."""

from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str
    memo: str
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time()


pipeline = ps.Pipeline("attacked")
payments = pipeline.topic("payments", Payment)
card = payments.by("card")
scored = payments.features(
    card_count=card.past(None).count(),
    card_sum=card.past(None).sum("amount"),
    card_mean_30d=card.past("30d", include_current=False).mean("amount"),
)
# A deadline that a busy machine keeps: a fallback that was told just before a kill may be decided anew, by promise.
pipeline.policy("authorise", scored, rules="app.toml", within="60s", fallback="approve")
