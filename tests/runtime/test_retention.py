"""Retention removes the log's oldest files while the service decides, and nothing that it still needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock import testing
from penstock.serve.service import Service
from penstock.settings import read_settings
from runtime.test_restart import build

FIRST = Path(__file__).resolve().parent.parent.parent / "examples" / "first.py"
SMALL = {"segment_bytes": 256 << 10, "commit_bytes": 32 << 10, "retention_us": 60_000_000, "memory_ids": 1_000}
TINY = {**SMALL, "segment_bytes": 32 << 10, "commit_bytes": 8 << 10}


def test_old_files_go_and_an_id_whose_event_went_with_them_is_new(tmp_path: Path) -> None:
    with testing.run(FIRST, now="2026-11-01T12:00:00Z", settings=SMALL) as service:

        def decide(number: int) -> dict[str, Any]:
            paid_at = service.clock.now.isoformat()
            events = [
                {"payment_id": f"p{number}-{each}", "card": f"c{each}", "amount": "1.00", "paid_at": paid_at}
                for each in range(500)
            ]
            return service.decide_many("authorise", events)[0]

        first = decide(0)
        for number in range(1, 40):
            service.clock.advance("1m")
            decide(number)
            if number % 10 == 0:
                service.snapshot()
        service.restart()
        assert service.started["first_sequence"] > 1
        assert first["offset"] == 0
        service.clock.advance("1m")
        again = decide(0)
        assert again["offset"] == 40 * 500
        assert again["features"]["card_count_1h"] == 41


@pytest.mark.parametrize("idle", ["1m", "5d"])
def test_old_files_go_by_the_clock_even_where_nothing_is_written(idle: str) -> None:
    with testing.run(FIRST, now="2026-11-01T12:00:00Z", settings={**SMALL, "retention_us": 86_400_000_000}) as service:
        for number in range(4_000):
            service.clock.advance("1s")
            paid_at = service.clock.now.isoformat()
            service.decide(
                "authorise", {"payment_id": f"p{number}", "card": "c", "amount": "1.00", "paid_at": paid_at}
            )
            if number % 1_000 == 999:
                service.snapshot()
        service.clock.advance(idle)
        with pytest.raises(testing.Refused, match="no decision"):
            service.look_up("authorise", "unknown")  # any request: only time has passed
        service.crash()
        assert (service.started["first_sequence"] > 1) == (idle == "5d")


def test_the_log_is_cut_only_where_two_snapshots_need_it_no_more() -> None:
    with testing.run(FIRST, now="2026-11-01T12:00:00Z", settings=TINY) as service:
        firsts = []
        for number in range(60):
            decide(service, number)
            if number in (20, 40):
                service.snapshot()
            if number in (39, 59):
                service.crash()
                firsts.append(service.started["first_sequence"])
        assert firsts[0] == 1
        assert firsts[1] > 1


def decide(service: testing.Service, number: int) -> None:
    """A hundred payments; a minute later."""
    service.clock.advance("1m")
    paid_at = service.clock.now.isoformat()
    events = [
        {"payment_id": f"p{number}-{each}", "card": f"c{each}", "amount": "1.00", "paid_at": paid_at}
        for each in range(100)
    ]
    service.append("payments", events)


@pytest.mark.parametrize("models", ["stuck", "answer later", "answer before"])
def test_what_waits_for_its_model_is_kept_for_a_start_to_close(tmp_path: Path, models: str) -> None:
    payment = {"payment_id": "waits", "card": "c", "amount": "900.00", "paid_at": "2026-11-01T12:00:00Z"}
    with testing.run(build(tmp_path), now="2026-11-01T12:00:00Z", settings=TINY) as service:
        service.models_stuck = True
        with pytest.raises(testing.NoAnswer):
            service.decide("authorise", payment)
        if models == "answer before":
            service.models_answer()
        for number in range(300):
            decide(service, number)
            if number % 20 == 19:
                service.snapshot()
        if models == "answer later":
            assert service.models_answer()[0]["outcome"] == "decline"
        service.crash()
        first, undecided = service.started["first_sequence"], service.started["undecided"]
        assert (first > 1) == (models == "answer before")
        assert undecided == (models == "stuck")
        if models != "answer before":
            again = service.decide("authorise", payment)
            assert again.get("cause") == ("restart" if models == "stuck" else None)
        # Closed, it holds nothing back any more.
        decide(service, 300)
        service.crash()
        assert service.started["first_sequence"] > 1


@pytest.mark.parametrize("call", ["list", "remove"])
def test_files_that_cannot_be_removed_are_counted_and_tried_again(call: str) -> None:
    settings = {**TINY, "retention_us": 86_400_000_000}
    with testing.run(FIRST, now="2026-11-01T12:00:00Z", settings=settings) as service:
        for number in range(30):
            decide(service, number)
        for _ in range(2):
            service.snapshot()
            decide(service, number := number + 1)
        assert service.stats["removal_failures"] == 0
        service.clock.advance("2d")
        service._disk.fail(call)
        with pytest.raises(testing.Refused, match="no decision"):
            service.look_up("authorise", "unknown")  # any request
        failed = service.stats
        assert failed["removal_failures"] == 1
        assert failed["removal_failed"].startswith("could not")
        decide(service, number := number + 1)
        later = service.stats
        assert (later["removal_failures"], later["removal_failed"]) == (1, None)
        service.crash()
        assert service.started["first_sequence"] > 1


def test_start_warns_where_retention_is_shorter_than_the_longest_window(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for retention, warned in [("29d", True), ("30d", False), (None, False)]:
        caplog.clear()
        options = {"data": str(tmp_path)} | ({} if retention is None else {"retention": retention})
        service = Service.load(FIRST, read_settings(options, file=None))
        service.warn_of_short_retention()
        assert ("the longest window needs 30d" in caplog.text) == warned


def test_start_warns_where_a_window_reaches_back_to_the_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = tmp_path / "app.py"
    app.write_text(FIRST.read_text().replace('.past("1h")', ".past(None)"))
    (tmp_path / "first.toml").write_text(FIRST.with_name("first.toml").read_text())
    settings = read_settings({"data": str(tmp_path / "data"), "retention": "1h"})
    Service.load(app, settings).warn_of_short_retention()
    assert "past(None) needs all of it" in caplog.text
