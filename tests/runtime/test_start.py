"""What a service knows of itself when it has started, before anybody has asked it anything."""

from __future__ import annotations

from pathlib import Path

from penstock import testing

FIRST = Path(__file__).resolve().parents[2] / "examples" / "first.py"


def test_the_size_of_the_state_is_known_before_the_first_event() -> None:
    with testing.run(FIRST, now="2026-11-01T12:00:00Z") as service:
        for number in range(3):
            payment = {"payment_id": f"p{number}", "card": "c1", "amount": "1.00", "paid_at": "2026-11-01T11:00:00Z"}
            service.decide("authorise", payment)
        service.restart()
        stats = service.stats
    assert (stats["state_keys"], stats["retained_events"], stats["ids"]) == (1, 3, 3)
    assert stats["state_bytes"] > 0
