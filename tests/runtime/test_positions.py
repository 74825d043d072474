"""A consumer goes on where it committed last: at least once, whatever crashes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from penstock import _native, testing
from penstock.runtime.gate import DECIDE
from penstock.runtime.logs import Consumer, read_catalog, read_position, tail_rows

FIRST = Path(__file__).resolve().parents[2] / "examples" / "first.py"
NOON = "2026-11-01T12:00:00Z"


def pay(service: testing.Service, number: int) -> None:
    payment = {"payment_id": f"p{number}", "card": "c", "amount": "1", "paid_at": service.clock.now.isoformat()}
    service.decide("authorise", payment)


@pytest.mark.parametrize("crash", range(6))
def test_a_committed_position_survives_a_crash_anywhere_after_it(crash: int) -> None:
    with testing.run(FIRST, now=NOON) as service:
        assert service.position("lake", "payments") is None
        steps = itertools.count()
        committed = {}
        for number in range(3):
            pay(service, number)
            if next(steps) == crash:
                service.crash()
            for consumer, topic in [("lake", "payments"), ("lake", "authorise.decisions"), ("other", "payments")]:
                service.commit_position(consumer, topic, number)
                committed[consumer, topic] = number
            if next(steps) == crash:
                service.crash()
            for (consumer, topic), offset in committed.items():
                assert service.position(consumer, topic) == offset


def test_a_position_is_of_a_topic_of_the_log_and_not_beyond_its_end() -> None:
    with testing.run(FIRST, now=NOON) as service:
        pay(service, 0)
        service.commit_position("lake", "payments", 1)
        for consumer, topic, offset, message in [
            ("lake", "payments", 2, "ends before offset 1"),
            ("lake", "others", 0, "no such topic"),
            ("a b", "payments", 0, "this name"),
            ("", "payments", 0, "this name"),
        ]:
            with pytest.raises(testing.Refused, match=message) as refused:
                service.commit_position(consumer, topic, offset)
            assert refused.value.status == 422
        assert service.position("lake", "payments") == 1


def test_retention_does_not_wait_for_a_consumer() -> None:
    settings = {"segment_bytes": 64 << 10, "commit_bytes": 16 << 10, "retention_us": 60_000_000}
    with testing.run(FIRST, now=NOON, settings=settings) as service:
        pay(service, 0)
        service.commit_position("lake", "payments", 0)
        for number in range(1, 1_000):
            service.clock.advance("10s")
            pay(service, number)
            if number % 100 == 0:
                service.snapshot()
        service.restart()
        assert service.started["first_sequence"] > 2
        assert service.position("lake", "payments") == 0


def test_a_log_takes_a_thousand_positions_and_known_ones_still_move() -> None:
    with testing.run(FIRST, now=NOON) as service:
        for number in range(2):
            pay(service, number)
        for number in range(1_000):
            service.commit_position(f"c{number}", "payments", 1)
        for name, topic in [("new", "payments"), ("c0", "authorise.decisions")]:
            with pytest.raises(testing.Refused, match=r"1000 positions.*\n.*consumers --forget NAME") as refused:
                service.commit_position(name, topic, 1)
            assert (refused.value.status, refused.value.code) == (422, "too_many_positions")
        service.commit_position("c999", "payments", 2)
        service.crash()
        assert (service.position("c999", "payments"), service.position("new", "payments")) == (2, None)
        pay(service, 2)
        service.forget_position("c0", "payments")
        service.forget_position("c0", "payments")  # as often as one likes
        service.commit_position("new", "payments", 3)
        service.crash()
        assert (service.position("c0", "payments"), service.position("new", "payments")) == (None, 3)


def write_log(data: Path, rows: int) -> None:
    """A data directory with some payments, closed again."""
    from penstock.runtime.app import load_app
    from penstock.runtime.plan import compile_plan

    data.mkdir()
    core = json.dumps(
        {"state_bytes": 1 << 30, "commit_bytes": 1 << 18, "segment_bytes": 1 << 20, "retention_us": None}
        | {"retention_bytes": None, "threads": 1, "memory_ids": 1_000}
    )
    gate = _native.Gate(compile_plan(load_app(FIRST)).to_json(), str(data), core, lambda *_: None)
    gate.start()
    for number in range(rows):
        payment = {"payment_id": f"p{number}", "card": "c", "amount": "1", "paid_at": "1970-01-01T00:00:00Z"}
        gate.submit([(number + 1, DECIDE, 0, json.dumps(payment).encode(), 0)])
    gate.stop()


def test_tail_goes_on_where_its_consumer_stopped_and_repeats_what_was_not_committed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_log(data, 5)

    def seen(take: int | None) -> list[str]:
        consumer = Consumer(data, "lake", "payments", url="http://127.0.0.1:9")
        rows = tail_rows(data, "payments", follow=False, sleep=lambda _: None, consumer=consumer)
        return [json.loads(line)["payment_id"] for text in itertools.islice(rows, take) for line in text.splitlines()]

    everything = ["p0", "p1", "p2", "p3", "p4"]
    first = seen(1)  # one commit's rows, and then it crashes
    assert first and first == everything[: len(first)]
    assert seen(None) == everything
    assert seen(None) == []
    assert read_position(read_catalog(data), "lake", "payments") == 5
