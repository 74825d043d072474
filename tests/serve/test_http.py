"""Requests in any shape that HTTP/1.1 allows, and their answers in order."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.runtime.gate import DECIDE as DECIDE_ONE
from penstock.runtime.gate import (
    DECIDE_MANY,
    DRY_RUN,
    DRY_RUN_MANY,
    EVENTS_ARROW,
    EVENTS_JSON,
    EVENTS_NDJSON,
    LOOKUP,
    REPEAT,
)
from serve.client import DECIDE, Client, Running, eventually, get, post, running
from serve.stand_in import StandIn

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"


def test_a_decision_is_asked_for_and_answered(door: Running) -> None:
    answer = door.ask(post(DECIDE, b'{"id": 1}'))
    assert answer.status == 200
    assert answer.json == [DECIDE_ONE, 0, '{"id": 1}']
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"])


@pytest.mark.parametrize(
    ("request_bytes", "asked"),
    [
        (post("/v1/policies/quick/decide", b"a"), [DECIDE_ONE, 1, "a"]),
        (post(DECIDE, b"a", media=None), [DECIDE_ONE, 0, "a"]),
        (post(DECIDE, b"a", media="application/json; charset=UTF-8"), [DECIDE_ONE, 0, "a"]),
        (post(DECIDE, b"a", media=NDJSON), [DECIDE_MANY, 0, "a"]),
        (post(DECIDE + "?dry_run=0", b"a"), [DECIDE_ONE, 0, "a"]),
        (post(DECIDE + "?dry_run=1", b"a"), [DRY_RUN, 0, "a"]),
        (post(DECIDE + "?dry_run=1", b"a", media=NDJSON), [DRY_RUN_MANY, 0, "a"]),
        (post("/v1/topics/payments/events", b"a"), [EVENTS_JSON, 0, "a"]),
        (post("/v1/topics/reports/events", b"a", media=NDJSON), [EVENTS_NDJSON, 1, "a"]),
        (post("/v1/topics/reports/events", b"a", media=ARROW), [EVENTS_ARROW, 1, "a"]),
        (get("/v1/decisions/quick/p-1"), [LOOKUP, 1, "p-1"]),
        (get("/v1/decisions/quick/a%2Fb%20%C3%A9"), [LOOKUP, 1, "a/b \u00c3\u00a9"]),
        (post("http://penstock:7070" + DECIDE, b"a"), [DECIDE_ONE, 0, "a"]),
        (post(DECIDE, b"a", "Content-Encoding: identity"), [DECIDE_ONE, 0, "a"]),
        (post(DECIDE, b""), [DECIDE_ONE, 0, ""]),
    ],
)
def test_every_route_asks_the_core_for_its_kind(
    door: Running, request_bytes: bytes, asked: list[object]
) -> None:
    answer = door.ask(request_bytes)
    assert (answer.status, answer.json) == (200, asked)


def test_many_decisions_are_answered_as_lines_and_errors_as_json(core: StandIn) -> None:
    core.script = lambda request: (200 if request[3] else 422, b"{}\n", 0)
    with running(core) as door:
        client = door.client()
        assert client.ask(post(DECIDE, b"a", media=NDJSON)).headers["content-type"] == NDJSON
        refused = client.ask(post(DECIDE, b"", media=NDJSON))
        assert (refused.status, refused.headers["content-type"]) == (422, "application/json")


def test_a_repeat_is_marked(core: StandIn) -> None:
    core.script = lambda request: (200, b"{}", REPEAT if request[3] == b"again" else 0)
    with running(core) as door:
        client = door.client()
        assert "penstock-repeat" not in client.ask(post(DECIDE, b"first")).headers
        assert client.ask(post(DECIDE, b"again")).headers["penstock-repeat"] == "1"


def test_a_connection_is_kept_for_the_next_request(door: Running) -> None:
    client = door.client()
    for number in range(5):
        answer = client.ask(post(DECIDE, b"%d" % number))
        assert answer.json[2] == str(number)
        assert answer.headers["connection"] == "keep-alive"


def test_the_same_head_with_another_body_is_another_request(door: Running) -> None:
    client = door.client()
    for body in (b"abc", b"xyz", b"abc"):
        assert client.ask(post(DECIDE, body)).json[2] == body.decode()
    # A known head whose body comes later, or with more behind it.
    client.send(post(DECIDE, b"lat"))
    client.send(post(DECIDE, b"", length=3))
    client.send(b"er!" + post(DECIDE, b"abc") + post(DECIDE, b"def"))
    assert [client.answer().json[2] for _ in range(4)] == ["lat", "er!", "abc", "def"]


def test_a_known_head_in_the_middle_of_a_request_is_not_one(door: Running) -> None:
    client = door.client()
    head_and_body = post(DECIDE, b"abc")
    assert client.ask(head_and_body).status == 200
    client.send(post(DECIDE, b"", length=len(head_and_body)))
    assert client.ask(head_and_body).json[2] == head_and_body.decode()
    # Nor where the parser has seen the first letters of a request.
    client.send(head_and_body + b"PO")
    assert client.answer().status == 200
    assert client.ask(head_and_body).code == "malformed_request"


def test_pipelined_requests_are_answered_in_their_order(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core) as door:
        client = door.client()
        client.send(b"".join(post(DECIDE, b"%d" % number) for number in range(10)))
        eventually(lambda: len(core.requests) == 10)
        for handle, _, _, body, _ in reversed(core.requests):
            core.say((handle, 200, body, 0))
        assert [client.answer().body for _ in range(10)] == [b"%d" % n for n in range(10)]


def test_requests_of_one_turn_are_submitted_together(core: StandIn) -> None:
    with running(core) as door:
        client = door.client()
        client.send(b"".join(post(DECIDE) for _ in range(30)))
        for _ in range(30):
            assert client.answer().status == 200
        assert core.batches[0] == 30


def test_a_chunked_body_is_put_together(door: Running) -> None:
    client = door.client()
    head = f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    client.send(head + b"1\r\na\r\n2;name=value\r\nbc\r\n" + b"0\r\nTrailer: x\r\n\r\n")
    assert client.answer().json[2] == "abc"
    assert client.ask(post(DECIDE, b"next")).json[2] == "next"


def test_a_client_that_asks_first_is_told_to_go_on(door: Running) -> None:
    client = door.client()
    client.send(post(DECIDE, b"", "Expect: 100-continue", length=3))
    assert client.answer().status == 100
    assert client.ask(b"abc").json[2] == "abc"


def test_a_client_that_asks_first_waits_for_the_answers_before(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core) as door:
        client = door.client()
        client.send(post(DECIDE, b"1") + post(DECIDE, b"", "Expect: 100-continue", length=3))
        eventually(lambda: len(core.requests) == 1)
        core.say((core.requests[0][0], 200, b"one", 0))
        assert client.answer().body == b"one"
        assert client.answer().status == 100


def test_a_client_that_asks_first_is_refused_before_it_sends(door: Running) -> None:
    client = door.client()
    answer = client.ask(post("/v1/nothing", b"", "Expect: 100-continue", length=3))
    assert (answer.status, answer.code) == (404, "unknown_path")
    assert client.ended()


def test_connection_close_closes_after_the_answer(door: Running) -> None:
    client = door.client()
    answer = client.ask(post(DECIDE, b"a", "Connection: close") + post(DECIDE, b"b"))
    assert answer.headers["connection"] == "close"
    assert client.ended()


@pytest.mark.parametrize("header", ["", "Host: x\r\n"])
def test_http_1_0_closes_after_the_answer(door: Running, header: str) -> None:
    client = door.client()
    request = f"POST {DECIDE} HTTP/1.0\r\n{header}Content-Length: 1\r\n\r\na".encode()
    assert client.ask(request).json[2] == "a"
    assert client.ended()


def test_http_1_0_keeps_the_connection_if_asked(door: Running) -> None:
    client = door.client()
    request = f"POST {DECIDE} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na"
    for _ in range(2):
        assert client.ask(request.encode()).headers["connection"] == "keep-alive"


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/v1/decisions/quick/p"])
def test_head_gives_the_head_alone(door: Running, path: str) -> None:
    client = door.client()
    client.send(get(path, method="HEAD"))
    assert client.answer(head_only=True).status == 200
    assert client.ask(get("/healthz")).body == b'{"alive": true}'


def test_a_client_that_has_closed_its_side_gets_its_answers(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core) as door:
        client = door.client()
        client.send(post(DECIDE, b"1") + post(DECIDE, b"2"))
        client.socket.shutdown(1)
        eventually(lambda: len(core.requests) == 2)
        core.say(*((request[0], 200, request[3], 0) for request in core.requests))
        assert [client.answer().body for _ in range(2)] == [b"1", b"2"]
        assert client.ended()


def chunked(body: bytes, cut: int) -> bytes:
    head = f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


bodies = st.binary(max_size=40) | st.sampled_from([b"", post(DECIDE, b"x"), b"\r\n\r\n"])
requests = st.one_of(
    st.builds(lambda body: (post(DECIDE, body), [0, 0, body.decode("latin-1")]), bodies),
    st.builds(
        lambda body, cut: (chunked(body, cut), [0, 0, body.decode("latin-1")]),
        bodies,
        st.integers(0, 40),
    ),
    st.just((get("/v1/decisions/quick/p-1"), [LOOKUP, 1, "p-1"])),
    st.just((get("/healthz"), {"alive": True})),
)


@given(sequence=st.lists(requests, min_size=1, max_size=6), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_however_the_bytes_are_cut_the_requests_are_the_same(
    door: Running, sequence: list[tuple[bytes, object]], data: st.DataObject
) -> None:
    sent = b"".join(request for request, _ in sequence)
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=8).map(sorted))
    client = Client(door.port)
    client.socket.setsockopt(6, 1, 1)
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        client.send(sent[start:end])
    assert [client.answer().json for _ in sequence] == [wanted for _, wanted in sequence]
    client.close()


def test_answers_of_others_survive_a_client_that_goes(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core) as door:
        clients = [door.client() for _ in range(40)]
        for number, client in enumerate(clients):
            client.send(post(DECIDE, b"%d" % number) * 2)
        eventually(lambda: len(core.requests) == 80)
        for client in clients[::2]:
            client.reset()
        core.say(*((request[0], 200, request[3] * 1000, 0) for request in core.requests))
        for number, client in list(enumerate(clients))[1::2]:
            assert client.answer().body == client.answer().body == b"%d" % number * 1000
