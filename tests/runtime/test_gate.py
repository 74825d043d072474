"""The gate's promises to its callers: one order, one answer for one id, and no half-taken event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock import testing

FIRST = Path(__file__).resolve().parents[2] / "examples" / "first.py"
NOON = "2026-11-01T12:00:00Z"


def payment(number: int, **changed: Any) -> dict[str, Any]:
    return {"payment_id": f"p{number}", "card": "c1", "amount": "12.50", "paid_at": NOON, **changed}


def test_events_of_one_card_in_one_body_are_counted_in_order() -> None:
    with testing.run(FIRST, now=NOON) as service:
        answers = service.decide_many("authorise", [payment(number) for number in range(50)])
        assert [answer["features"]["card_count_1h"] for answer in answers] == list(range(1, 51))


@pytest.mark.parametrize("between", ["nothing", "crash", "restart", "snapshot"])
def test_a_retry_is_answered_the_same_and_moves_nothing(between: str) -> None:
    with testing.run(FIRST, now=NOON) as service:
        first = service.decide("authorise", payment(1))
        if between == "snapshot":
            service.snapshot()
        if between == "crash":
            service.crash()
        elif between != "nothing":
            service.restart()
        assert service.decide("authorise", payment(1)) == first
        with pytest.raises(testing.Refused) as refused:
            service.decide("authorise", payment(1, amount="1"))
        assert (refused.value.status, refused.value.code) == (409, "id_conflict")
        assert service.dry_run("authorise", payment(2))["features"]["card_count_1h"] == 2
        assert service.decide("authorise", payment(3))["features"]["card_count_1h"] == 2


def test_an_event_of_the_topics_door_or_too_far_ahead_is_refused() -> None:
    with testing.run(FIRST, now=NOON) as service:
        service.append("payments", [payment(1)])
        for event, code in [
            (payment(1), (409, "entered_elsewhere")),
            (payment(2, paid_at="2026-11-01T12:11:00Z"), (422, "ahead_of_clock")),
        ]:
            with pytest.raises(testing.Refused) as refused:
                service.decide("authorise", event)
            assert (refused.value.status, refused.value.code) == code
