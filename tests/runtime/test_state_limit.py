"""The state has a limit: at it new keys get the fallback, known ones go on, and the log says which was which."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock import testing

FIRST = Path(__file__).resolve().parents[2] / "examples" / "first.py"
NOON = "2026-11-01T12:00:00Z"
SMALL = {"state_bytes": 200 << 10, "segment_bytes": 256 << 10, "commit_bytes": 32 << 10}


def payments(service: testing.Service, cards: range, turn: int = 0) -> list[dict[str, Any]]:
    paid_at = service.clock.now.isoformat()
    events = [
        {"payment_id": f"p{card}-{turn}", "card": f"c{card}", "amount": "1.00", "paid_at": paid_at} for card in cards
    ]
    return service.decide_many("authorise", events)


def fill(service: testing.Service) -> int:
    """Pay with new cards until one finds no room; its number."""
    for card in range(100_000):
        if payments(service, range(card, card + 1))[0].get("cause"):
            return card
    raise AssertionError("the state has not become full")


def test_at_the_limit_new_keys_get_the_fallback_and_known_ones_go_on() -> None:
    with testing.run(FIRST, now=NOON, settings=SMALL) as service:
        full = fill(service)
        assert full > 100
        refused = service.look_up("authorise", f"p{full}-0")
        assert (refused["outcome"], refused["cause"], refused["timed_out"]) == ("approve", "state_full", False)
        assert set(refused["features"].values()) == {None}
        known = payments(service, range(0, full, 50), turn=1)
        assert [answer["features"]["card_count_1h"] for answer in known] == [2] * len(known)
        assert not any(answer.get("cause") for answer in known)
        assert service.stats["state_full"] == 1
        retry = payments(service, range(full, full + 1))[0]
        assert (retry["cause"], retry["offset"], retry["timed_out"]) == ("state_full", full, False)


def test_what_leaves_its_windows_makes_room_for_new_keys() -> None:
    with testing.run(FIRST, now=NOON, settings=SMALL) as service:
        full = fill(service)
        # Longer than the longest window and the lateness; the sweep needs rows that pass to come by.
        service.clock.advance("31d")
        for turn in range(3_000):
            last = payments(service, range(full - 1, full), turn=turn + 1)
            assert not last[0].get("cause")
        again = payments(service, range(200_000, 200_000 + full // 2))
        assert not any(answer.get("cause") for answer in again)


@pytest.mark.parametrize("between", ["nothing", "crash", "snapshot and crash"])
def test_the_log_gives_the_same_state_however_full_it_was(between: str) -> None:
    with testing.run(FIRST, now=NOON, settings=SMALL) as service:
        full = fill(service)
        payments(service, range(full - 20, full + 20), turn=1)
        if "snapshot" in between:
            service.snapshot()
        state = service.state()
        if "crash" in between:
            service.crash()
        assert service.state() == state
        payments(service, range(full - 20, full + 20), turn=2)
        # The follower has computed every decision's features from the log, and found them as the gate did.
        assert service.compared == (full + 1 + 80, 0) or "snapshot" in between
        assert service.compared[1] == 0


def test_the_topic_whose_silence_holds_events_is_named_by_how_far_it_is_behind(tmp_path: Path) -> None:
    class Payment(ps.Event):
        id: str = ps.id()
        card: str
        at: datetime = ps.event_time()

    class Report(ps.Event):
        id: str = ps.id()
        card: str
        at: datetime = ps.event_time()

    (tmp_path / "rules.toml").write_text('default = "approve"\noutcomes = ["approve"]\n')
    pipeline = ps.Pipeline("cards")
    payments, reports = pipeline.topic("payments", Payment), pipeline.topic("reports", Report)
    paid = payments.features(paid=payments.by("card").past("1h").count())
    seen = reports.features(seen=payments.by("card").past("1h").count())
    pipeline.policy("authorise", paid, rules=tmp_path / "rules.toml", fallback="approve")
    pipeline.policy("judge", seen, rules=tmp_path / "rules.toml", fallback="approve")
    with testing.run(pipeline, now="2026-11-01T12:00:00Z") as service:

        def events(topic: str, count: int) -> None:
            for _ in range(count):
                service.clock.advance("10m")
                name = service.clock.now.isoformat()
                service.append(topic, [{"id": name, "card": "c", "at": name}])

        def lags() -> dict[str, float | None]:
            return dict(service.stats["reader_lags"])

        events("payments", 100)
        assert lags() == {"reports": None}
        assert service.stats["retained_events"] == 100
        events("reports", 1)
        events("payments", 3)
        assert lags() == {"payments": 0.0, "reports": 1_800.0}
        # What it does not reach any more has gone: an hour of lateness, and an hour of the window before it.
        assert service.stats["retained_events"] < 20
