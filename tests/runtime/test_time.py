"""What times do: lateness, events from the future, and how long an id is remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock import testing

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Payment(ps.Event):
    payment_id: str = ps.id(retain="6h")
    card: str
    paid_at: datetime = ps.event_time(lateness="1h", ahead="10m")


class Report(ps.Event):
    payment_id: int = ps.id(retain="1h")
    card: str
    reported_at: datetime = ps.event_time(lateness="0s", ahead="1d")


@pytest.fixture
def pipeline(tmp_path: Path) -> ps.Pipeline:
    (tmp_path / "rules.toml").write_text('default = "approve"\noutcomes = ["approve"]\n')
    pipeline = ps.Pipeline("times")
    payments = pipeline.topic("payments", Payment)
    reports = pipeline.topic("reports", Report)
    scored = payments.features(
        hour=payments.by("card").past("1h").count(),
        all=payments.by("card").past(None).count(),
        idle=payments.by("card").past(None).since_last(),
        reports=reports.by("card").past("1h").count(),
    )
    pipeline.policy("authorise", scored, rules=tmp_path / "rules.toml", fallback="approve")
    pipeline.policy("other", scored, rules=tmp_path / "rules.toml", fallback="approve")
    return pipeline


@contextmanager
def running(pipeline: ps.Pipeline) -> Iterator[testing.Service]:
    with testing.run(pipeline, now=NOON) as service:
        yield service


def paid(number: int | str, moment: datetime, card: str = "c") -> dict[str, Any]:
    return {"payment_id": f"p{number}", "card": card, "paid_at": moment}


def test_an_event_is_late_only_beyond_its_topics_lateness(pipeline: ps.Pipeline) -> None:
    with running(pipeline) as service:
        service.decide("authorise", paid(1, NOON))
        on_time = service.decide("authorise", paid(2, NOON - timedelta(hours=1)))
        assert "late" not in on_time
        assert on_time["features"] == {"hour": 1, "all": 1, "idle": None, "reports": 0}
        late = service.decide("authorise", paid(3, NOON - timedelta(hours=1) - MICROSECOND))
        assert late["late"] is True
        # It was moved up to an hour before noon: after the one that was there, and before the newest.
        assert late["features"] == {"hour": 2, "all": 2, "idle": 0.0, "reports": 0}
        much_later = service.decide("authorise", paid(4, datetime(2001, 1, 1, tzinfo=UTC)))
        assert (much_later["late"], much_later["features"]["hour"]) == (True, 3)
        assert service.stats["late"] == 2
        # The newest is still the first: what comes late makes nothing else late.
        assert "late" not in service.decide("authorise", paid(5, NOON - timedelta(minutes=59)))
        assert service.dry_run("authorise", paid(6, NOON - timedelta(hours=2)))["late"] is True
        before = service.look_up("authorise", "p3")
        service.crash()
        assert service.look_up("authorise", "p3") == before
        assert before["late"] is True
        assert "late" not in service.decide("authorise", paid(7, NOON - timedelta(hours=1)))


def test_each_topic_has_its_own_newest_and_lateness(pipeline: ps.Pipeline) -> None:
    """Reports have no lateness: one that is behind another is moved to its time, and payments do not mind."""
    with running(pipeline) as service:
        for number, minutes in ((1, 30), (2, -90)):
            report = {"payment_id": number, "card": "c", "reported_at": NOON + timedelta(minutes=minutes)}
            service.append("reports", [report])
        assert service.stats["late"] == 1
        seen = service.decide("authorise", paid(1, NOON))["features"]
        assert (seen["reports"], seen["hour"]) == (0, 1)
        service.clock.advance("30m")
        assert service.decide("authorise", paid(2, NOON + timedelta(minutes=30)))["features"]["reports"] == 2


def test_an_event_from_the_future_is_refused_and_leaves_nothing(pipeline: ps.Pipeline) -> None:
    with running(pipeline) as service:
        allowed = NOON + timedelta(minutes=10)
        for moment, status in ((allowed, 200), (allowed + MICROSECOND, 422), (NOON + timedelta(days=9), 422)):
            event = paid(status, moment, card="future")
            if status == 200:
                service.decide("authorise", event)
                continue
            for ask in (service.decide, service.dry_run):
                with pytest.raises(testing.Refused) as refused:
                    ask("authorise", event)
                assert (refused.value.status, refused.value.code) == (422, "ahead_of_clock")
                assert refused.value.field == "paid_at"
                assert '"paid_at"' in refused.value.message
            for answer in (
                service.append("payments", [event])["rejected"][0],
                service.decide_many("authorise", [event])[0],
            ):
                assert (answer["error"]["code"], answer["error"]["field"]) == ("ahead_of_clock", "paid_at")
        # What was refused has not made the present late.
        now = service.decide("authorise", paid("now", NOON - timedelta(minutes=50)))
        assert "late" not in now
        with pytest.raises(testing.Refused, match="no decision"):
            service.look_up("authorise", "p422")
        service.clock.advance("9d")
        entered = service.decide("authorise", paid(422, NOON + timedelta(days=9), card="future"))
        assert entered["features"]["all"] == 2


def test_replay_has_no_clock_to_be_ahead_of(pipeline: ps.Pipeline) -> None:
    rows = testing.replay(
        pipeline,
        [("payments", paid(1, NOON)), ("payments", paid(2, datetime(2400, 1, 1, tzinfo=UTC)))],
        policy="authorise",
    )
    assert [row["all"] for row in rows] == [1, 2]


@pytest.mark.parametrize("between", ["nothing", "crash", "snapshot"])
def test_an_id_is_new_again_after_its_retention(pipeline: ps.Pipeline, between: str) -> None:
    with running(pipeline) as service:
        first = service.decide("authorise", paid(1, NOON))
        service.append("payments", [paid(2, NOON)])
        service.clock.advance("5h59m")
        if between != "nothing":
            getattr(service, between)()
        assert service.decide("authorise", paid(1, NOON)) == first
        with pytest.raises(testing.Refused) as refused:
            service.decide("other", paid(2, NOON))
        assert refused.value.code == "entered_elsewhere"
        service.clock.advance("1m")
        if between != "nothing":
            getattr(service, between)()
        moment = NOON + timedelta(hours=6)
        again = service.decide("authorise", paid(1, moment))
        assert (again["offset"], again["features"]["all"]) == (2, 3)
        assert service.decide("other", paid(2, moment))["offset"] == 3
        # From here on the id is that of the new event, for its callers and for those who look it up.
        assert service.decide("authorise", paid(1, moment)) == again
        del again["took_ms"]
        assert service.look_up("authorise", "p1") == {**again, "late_decision": None}
        with pytest.raises(testing.Refused) as refused:
            service.decide("authorise", paid(1, NOON))
        assert refused.value.code == "id_conflict"


def test_each_topic_remembers_its_own_ids_for_its_own_time(pipeline: ps.Pipeline) -> None:
    report = {"payment_id": 1, "card": "c", "reported_at": NOON}
    with running(pipeline) as service:
        service.decide("authorise", paid(1, NOON))
        assert service.append("reports", [report, report]) == {
            "accepted": 1, "repeated": 1, "offsets": [0, 0], "rejected": [],
        }  # fmt: skip
        service.clock.advance("59m")
        assert service.append("reports", [report])["offsets"] == [0]
        service.clock.advance("1m")
        assert service.append("reports", [report])["offsets"] == [1]
        assert service.decide("authorise", paid(1, NOON))["offset"] == 0


def test_one_event_under_two_policies_is_refused_by_the_second(pipeline: ps.Pipeline) -> None:
    with running(pipeline) as service:
        told = service.decide("authorise", paid(1, NOON))
        for _ in range(2):
            with pytest.raises(testing.Refused) as refused:
                service.decide("other", paid(1, NOON))
            assert (refused.value.status, refused.value.code) == (409, "entered_elsewhere")
            service.crash()
        with pytest.raises(testing.Refused, match="no decision"):
            service.look_up("other", "p1")
        assert service.decide("authorise", paid(1, NOON)) == told
        assert service.decide("other", paid(2, NOON))["features"]["all"] == 2
