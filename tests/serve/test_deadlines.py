"""The deadline: whoever waits for longer is told the fallback, whatever the core does."""

from __future__ import annotations

import asyncio
import time

from penstock.serve.deadlines import Deadline
from penstock.serve.relay import Exchange
from penstock.serve.routes import Routes
from penstock.serve.settings import Doors, DoorSettings
from serve.client import DECIDE, eventually, get, post, running
from serve.stand_in import StandIn

QUICK = "/v1/policies/quick/decide"
NDJSON = "application/x-ndjson"


def test_a_stuck_core_costs_its_callers_the_fallback_and_nothing_else(core: StandIn) -> None:
    core.stuck.set()
    with running(core) as door:
        clients = [door.client() for _ in range(20)]
        started = time.monotonic()
        for client in clients:
            client.send(post(QUICK))
        for client in clients:
            answer = client.answer()
            assert answer.json == {"timed_out": True, "cause": "deadline", "of": 1}
        took_s = time.monotonic() - started
        assert 0.05 <= took_s < 5
        assert sorted(core.told_handles) == list(range(1, 21))
        assert door.ask(get("/healthz")).status == 200
        core.stuck.clear()
        # What comes late is dropped, and the connection goes on.
        eventually(lambda: len(core.requests) == 20)
        for client in clients:
            assert client.ask(post(DECIDE, b"next")).json[2] == "next"


def test_a_decision_in_time_is_what_its_caller_is_told(core: StandIn) -> None:
    with running(core) as door:
        client = door.client()
        for _ in range(50):
            assert client.ask(post("/v1/policies/authorise/decide", b"{}")).json == [0, 0, "{}"]
        assert core.told_handles == []


def test_what_is_no_event_is_refused_at_the_deadline_too_and_not_recorded(core: StandIn) -> None:
    core.stuck.set()
    with running(core) as door:
        answer = door.ask(post(QUICK, b"no event"))
        assert (answer.status, answer.code) == (422, "invalid_event")
        assert core.told_handles == []
        core.stuck.clear()


def test_each_line_of_many_is_told_its_fallback(core: StandIn) -> None:
    core.stuck.set()
    with running(core) as door:
        body = b"\n".join([b"{}", b"", b"no event", b"{}"] * 500)
        answer = door.ask(post(QUICK, body, media=NDJSON))
        assert (answer.status, answer.headers["content-type"]) == (200, NDJSON)
        told = [b"timed_out" in line for line in answer.body.splitlines()]
        assert told == [True, False, True] * 500
        assert core.told_handles == [1]
        assert core.worded == 1
        core.stuck.clear()


def test_nobody_waits_while_a_large_body_is_told_its_fallbacks(core: StandIn) -> None:
    core.stuck.set()
    core.wording.set()
    with running(core) as door:
        many, there = door.client(), door.client()
        many.send(post(QUICK, b"{}\n" * 100_000, media=NDJSON))
        for _ in range(3):
            assert there.ask(post(QUICK)).json["cause"] == "deadline"
        core.wording.clear()
        assert many.answer().body.count(b"timed_out") == 100_000
        assert sorted(core.told_handles) == [1, 2, 3, 4]
        core.stuck.clear()


def test_an_answer_that_comes_while_a_large_body_is_told_stands(core: StandIn) -> None:
    core.script = lambda request: None
    core.wording.set()
    with running(core, drain_s=0.1) as door:
        many, there = door.client(), door.client()
        many.send(post(QUICK, b"{}\n" * 100_000, media=NDJSON))
        assert there.ask(post(QUICK)).json["cause"] == "deadline"
        eventually(lambda: len(core.requests) == 2)
        large = max(core.requests, key=lambda request: len(request[3]))[0]
        core.say((large, 200, b"decided", 0))
        assert many.answer().body == b"decided"
        core.wording.clear()
        assert there.ask(post(QUICK)).json["cause"] == "deadline"
        assert len(core.told_handles) == 2 and large not in core.told_handles


def test_a_core_that_fails_while_a_large_body_is_told_stops_the_door(core: StandIn) -> None:
    core.script = lambda request: None
    core.fails = "fallback"
    with running(core, fails=True) as door:
        answer = door.ask(post(QUICK, b"{}\n" * 100_000, media=NDJSON))
        assert (answer.status, answer.code) == (503, "core_failed")


def test_pipelined_requests_are_told_in_order_around_the_deadline(core: StandIn) -> None:
    core.script = lambda request: (200, b"now", 0) if request[3] == b"now" else None
    with running(core, drain_s=0.1) as door:
        client = door.client()
        client.send(post(QUICK) + post(DECIDE, b"now") + post(QUICK) + post(DECIDE, b"now"))
        answers = [client.answer().body for _ in range(4)]
        assert [b"deadline" in answer for answer in answers] == [True, False, True, False]


def test_nobody_is_told_whose_connection_is_gone(core: StandIn) -> None:
    core.stuck.set()
    with running(core) as door:
        gone, there = door.client(), door.client()
        gone.send(post(QUICK))
        eventually(lambda: b"penstock_door_waiting 1\n" in there.ask(get("/metrics")).body)
        gone.reset()
        assert there.ask(post(QUICK)).json["cause"] == "deadline"
        assert core.told_handles == [2]
        core.stuck.clear()


def test_what_has_no_deadline_waits_no_longer_than_the_setting(core: StandIn) -> None:
    core.stuck.set()
    with running(core, answer_s=0.1) as door:
        for request in (
            post("/v1/topics/payments/events"),
            post(QUICK + "?dry_run=1"),
            get("/v1/decisions/quick/1"),
        ):
            answer = door.ask(request)
            assert (answer.status, answer.code) == (503, "not_answered")
            assert answer.headers["retry-after"] == "1"
        core.stuck.clear()


def test_a_policy_s_deadline_does_not_move_another_s(core: StandIn) -> None:
    core.stuck.set()
    with running(core) as door:
        slow, quick = door.client(), door.client()
        slow.send(post(DECIDE, b"slow"))
        for _ in range(3):
            assert quick.ask(post(QUICK)).json["cause"] == "deadline"
        core.stuck.clear()
        assert slow.answer().json[2] == "slow"


def test_the_loop_never_rings_early_and_forgets_nobody() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadline = Deadline(0.02)
        expired: list[tuple[Exchange, int]] = []
        deadline.open(loop, lambda exchange: expired.append((exchange, time.monotonic_ns())))
        waiting = []
        for number in range(30):
            exchange = exchange_held_now()
            waiting.append(exchange)
            deadline.waiting.append(exchange)
            deadline.arm()
            if number % 3 == 0:
                exchange.answer = b"in time"
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.1)
        assert [exchange for exchange, _ in expired] == [e for e in waiting if e.answer is None]
        assert all(at_ns >= exchange.held_ns + deadline.within_ns for exchange, at_ns in expired)
        assert not deadline.waiting
        deadline.close()

    asyncio.run(main())


def test_thousands_expire_over_several_turns_of_the_loop() -> None:
    async def main() -> None:
        deadline = Deadline(0.001)
        expired: list[Exchange] = []
        deadline.open(asyncio.get_running_loop(), expired.append)
        deadline.waiting.extend(exchange_held_now() for _ in range(1_000))
        time.sleep(0.002)
        deadline.pass_by(time.monotonic_ns())
        first = len(expired)
        assert 0 < first < 1_000
        while len(expired) < 1_000:
            await asyncio.sleep(0)
        deadline.close()

    asyncio.run(main())


def test_the_answered_are_let_go_as_answers_come() -> None:
    deadline = Deadline(1_000.0)
    exchanges = [exchange_held_now() for _ in range(10)]
    deadline.waiting.extend(exchanges)
    for exchange in exchanges[:9]:
        exchange.answer = b""
    deadline.pass_by(time.monotonic_ns())
    assert list(deadline.waiting) == exchanges[9:]


def exchange_held_now() -> Exchange:
    routes = Routes(Doors(), DoorSettings())
    return Exchange(None, routes.refused, 0, b"", 0, time.monotonic_ns())  # type: ignore[arg-type]


def test_a_request_told_is_counted_once(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, drain_s=0.1) as door:
        client = door.client()
        assert client.ask(post(QUICK)).json["cause"] == "deadline"
        core.say((core.requests[0][0], 200, b"late", 0))
        eventually(lambda: b"penstock_door_waiting 0\n" in client.ask(get("/metrics")).body)
        text = client.ask(get("/metrics")).body.decode()
        assert 'penstock_timed_out_total{route="decide",policy="quick"} 1\n' in text
        assert 'penstock_requests_total{route="decide",policy="quick",status="200"} 1\n' in text
