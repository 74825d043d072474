"""Every bound of the door: what is beyond it is refused, and nobody else notices."""

from __future__ import annotations

import socket
import time

import pytest

from penstock.serve.limits import Rate, Reserve
from serve.client import DECIDE, PATIENCE_S, Client, eventually, get, post, running
from serve.stand_in import StandIn

CHUNKED = f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
SECOND_NS = 1_000_000_000


@pytest.mark.parametrize("largest", [100, 100_000])
def test_a_body_at_the_limit_is_taken_and_one_beyond_it_refused(
    core: StandIn, largest: int
) -> None:
    with running(core, body_bytes_max=largest) as door:
        assert door.ask(post(DECIDE, b"a" * largest)).status == 200
        answer = door.ask(post(DECIDE, b"a" * (largest + 1)))
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert answer.json["error"]["bytes_max"] == largest


def test_a_large_body_is_refused_by_its_length_before_it_is_sent(core: StandIn) -> None:
    with running(core, body_bytes_max=1_000) as door:
        client = door.client()
        assert client.ask(post(DECIDE, b"", length=1 << 40)).code == "body_too_large"
        assert client.ended()


@pytest.mark.parametrize("largest", [100, 100_000])
def test_a_body_of_unknown_length_is_refused_once_it_is_too_large(
    core: StandIn, largest: int
) -> None:
    with running(core, body_bytes_max=largest) as door:
        whole = b"%x\r\n%s\r\n0\r\n\r\n" % (largest, b"a" * largest)
        assert door.ask(CHUNKED + whole).status == 200
        client = door.client()
        client.send(CHUNKED + b"%x\r\n" % (1 << 40))
        client.send(b"a" * (largest + 1))
        assert client.answer().code == "body_too_large"


def test_the_refused_get_their_answer_although_they_go_on_sending(core: StandIn) -> None:
    with running(core, body_bytes_max=1_000) as door:
        client = door.client()
        client.send(post(DECIDE, b"a" * 8_000_000))
        assert client.answer().status == 413


def test_large_bodies_together_have_a_bound(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, body_bytes_max=200_000, held_bytes_max=300_000) as door:
        first = door.client()
        first.send(post(DECIDE, b"a" * 200_000))
        eventually(lambda: len(core.requests) == 1)
        refused = door.ask(post(DECIDE, b"a" * 200_000))
        assert (refused.status, refused.code) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        # Nobody has read its events, so that there is nothing to tell a fallback about.
        assert door.ask(post("/v1/policies/lenient/decide", b"a" * 200_000)).status == 429
        assert door.ask(CHUNKED + b"30d40\r\n" + b"a" * 200_000).status == 429
        core.say((core.requests[0][0], 200, b"{}", 0))
        assert first.answer().status == 200
        core.script = lambda request: (200, b"{}", 0)
        for _ in range(5):
            assert door.ask(post(DECIDE, b"a" * 200_000)).status == 200
            assert (
                door.ask(CHUNKED + b"30d40\r\n" + b"a" * 200_000 + b"\r\n0\r\n\r\n").status == 200
            )


def test_large_bodies_of_clients_that_go_give_their_place_back(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, body_bytes_max=200_000, held_bytes_max=200_000) as door:
        for cut in (100_000, 0):
            client = door.client()
            client.send(post(DECIDE, b"a" * 200_000)[: cut or None])
            time.sleep(0.05)
            client.reset()
        eventually(lambda: len(core.requests) == 1)
        core.say((core.requests[0][0], 200, b"{}", 0))
        core.script = lambda request: (200, b"{}", 0)
        eventually(lambda: door.ask(post(DECIDE, b"a" * 200_000)).status == 200)


def test_a_header_that_never_ends_is_cut_off(core: StandIn) -> None:
    with running(core, header_bytes_max=1_000) as door:
        client = door.client()
        client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: ")
        for _ in range(300):
            client.send(b"a" * 1_000)
        assert client.answer().code == "headers_too_large"
        assert door.ask(get("/healthz")).status == 200


def test_a_request_that_does_not_arrive_in_time_is_refused(core: StandIn) -> None:
    with running(core, request_s=0.2) as door:
        for part in (b"PO", b"POST /v1", post(DECIDE, b"", length=10), CHUNKED):
            client = door.client()
            client.send(part)
            answer = client.answer()
            assert (answer.status, answer.code) == (408, "request_timeout")
            assert client.ended()


def test_a_request_that_drips_is_refused_too(core: StandIn) -> None:
    with running(core, request_s=0.3) as door:
        client = door.client()
        started = time.monotonic()
        with pytest.raises((ConnectionError, AssertionError)):
            for byte in post(DECIDE, b"a" * 1_000):
                client.send(bytes([byte]))
                time.sleep(0.02)
                assert time.monotonic() - started < PATIENCE_S / 2
                assert not answered(client)
        assert door.ask(get("/healthz")).status == 200


def answered(client: Client) -> bool:
    client.socket.setblocking(False)
    try:
        return client.socket.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return False
    finally:
        client.socket.settimeout(PATIENCE_S)


def test_a_request_that_waits_for_the_core_is_not_idle(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, idle_s=0.2, request_s=0.2) as door:
        client = door.client()
        client.send(post(DECIDE))
        time.sleep(0.8)
        core.say((core.requests[0][0], 200, b"late", 0))
        assert client.answer().body == b"late"


def test_an_idle_connection_is_closed(core: StandIn) -> None:
    with running(core, idle_s=0.2) as door:
        fresh, used = door.client(), door.client()
        assert used.ask(get("/healthz")).status == 200
        assert fresh.ended()
        assert used.ended()


def test_connections_beyond_the_limit_are_refused_and_others_kept(core: StandIn) -> None:
    with running(core, connections_max=3) as door:
        clients = [door.client() for _ in range(3)]
        for client in clients:
            assert client.ask(get("/healthz")).status == 200
        refused = door.client().answer()
        assert (refused.status, refused.code) == (429, "too_many_connections")
        assert refused.headers["retry-after"] == "1"
        for client in clients:
            assert client.ask(get("/healthz")).status == 200
        # Those that have been refused do not keep others out.
        clients[0].close()
        eventually(lambda: accepted(door.port))


def accepted(port: int) -> bool:
    client = Client(port)
    try:
        return client.ask(get("/healthz")).status == 200
    finally:
        client.close()


def test_requests_beyond_the_rate_are_refused(core: StandIn) -> None:
    with running(core, requests_per_second_max=5) as door:
        client = door.client()
        answers = [client.ask(post(DECIDE)) for _ in range(50)]
        assert [answer.status for answer in answers[:5]] == [200] * 5
        refused = [answer for answer in answers if answer.status == 429]
        assert refused and refused[0].code == "rate_limited"
        assert refused[0].headers["retry-after"] == "1"
        # What watches the gate is not limited.
        assert client.ask(get("/metrics")).status == 200
        eventually(lambda: client.ask(post(DECIDE)).status == 200)


def test_the_rate_lets_a_second_s_worth_pass_at_once_and_no_more_later() -> None:
    rate = Rate(10, now_ns=0)

    def passed(requests: int, now_ns: int) -> int:
        count = 0
        for _ in range(requests):
            rate.left -= 1
            count += rate.left >= 0 or rate.refill(now_ns)
        return count

    assert passed(100, now_ns=0) == 10
    assert passed(100, now_ns=SECOND_NS // 2) == 5
    assert passed(100, now_ns=SECOND_NS // 2) == 0
    assert passed(100, now_ns=100 * SECOND_NS) == 10
    # A tenth of a second at a time gives one each.
    assert [passed(3, 100 * SECOND_NS + n * SECOND_NS // 10) for n in range(1, 6)] == [1] * 5


def test_no_rate_lets_everything_pass() -> None:
    rate = Rate(None, now_ns=0)
    rate.left -= 1_000_000
    assert rate.left >= 0


def test_the_reserve_is_never_overdrawn() -> None:
    reserve = Reserve(10)
    assert reserve.take(6) and not reserve.take(5) and reserve.take(4)
    reserve.give_back(6)
    assert reserve.take(6) and not reserve.take(1)


def test_a_full_queue_refuses_and_takes_nothing(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, queue_max=3) as door:
        waiting = [door.client() for _ in range(3)]
        for client in waiting:
            client.send(post(DECIDE))
        eventually(lambda: len(core.requests) == 3)
        refused = door.ask(post("/v1/topics/payments/events"))
        assert (refused.status, refused.code) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert len(core.requests) == 3
        core.say(*((request[0], 200, b"{}", 0) for request in core.requests))
        for client in waiting:
            assert client.answer().status == 200
        core.script = lambda request: (200, b"{}", 0)
        assert door.ask(post(DECIDE)).status == 200


def test_a_full_queue_tells_the_fallback_where_the_policy_says_so(core: StandIn) -> None:
    core.script = lambda request: None
    lenient = "/v1/policies/lenient/decide"
    with running(core, queue_max=1, drain_s=0.1) as door:
        door.client().send(post(DECIDE))
        eventually(lambda: len(core.requests) == 1)
        assert door.ask(post(lenient)).json == {"timed_out": False, "cause": "overload", "of": 2}
        assert door.ask(post(lenient, b"no event")).status == 422
        many = door.ask(post(lenient, b"{}\nno event\n\n{}", media="application/x-ndjson"))
        assert many.status == 200
        lines = many.body.splitlines()
        assert [b"overload" in line for line in lines] == [True, False, True]
        assert door.ask(post(DECIDE)).status == 429
        assert door.ask(post(lenient + "?dry_run=1")).status == 429
        assert core.told_handles == []


def test_requests_told_at_their_deadline_still_count_as_queued(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, queue_max=2, drain_s=0.1) as door:
        for _ in range(2):
            assert door.ask(post("/v1/policies/quick/decide")).json["cause"] == "deadline"
        assert door.ask(post("/v1/policies/quick/decide")).status == 429


def test_a_client_that_pipelines_too_much_is_read_later(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, pipelined_max=4) as door:
        client = door.client()
        for _ in range(12):
            client.send(post(DECIDE))
            time.sleep(0.02)
        eventually(lambda: len(core.requests) == 4)
        time.sleep(0.1)
        assert len(core.requests) == 4
        core.script = lambda request: (200, b"{}", 0)
        core.say(*((request[0], 200, b"{}", 0) for request in list(core.requests)))
        assert [client.answer().status for _ in range(12)] == [200] * 12


def test_a_client_that_reads_nothing_is_closed_and_nobody_waits_for_it(core: StandIn) -> None:
    core.script = lambda request: (200, b"a" * 1_000_000, 0)
    with running(core, write_s=0.3) as door:
        slow, quick = door.client(), door.client()
        slow.send(post(DECIDE) * 30)
        for _ in range(3):
            assert quick.ask(post(DECIDE)).status == 200
        eventually(lambda: b"penstock_door_connections 1\n" in quick.ask(get("/metrics")).body)
        with pytest.raises(ConnectionError):
            for _ in range(30):
                slow.answer()


def test_a_client_that_reads_slowly_gets_everything(core: StandIn) -> None:
    core.script = lambda request: (200, request[3] * 500_000, 0)
    with running(core) as door:
        slow = door.client()
        slow.send(b"".join(post(DECIDE, b"%02d" % number) for number in range(30)))
        for number in range(30):
            time.sleep(0.01)
            assert slow.answer().body == b"%02d" % number * 500_000
