"""A topic and nothing else: what appending costs by itself."""

from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    payment_id: int = ps.id()
    card: int
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time()


pipeline = ps.Pipeline("appended")
payments = pipeline.topic("payments", Payment)
