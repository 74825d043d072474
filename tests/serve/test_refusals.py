"""Everything that the door refuses, with its status, its code and what the client can do next."""

from __future__ import annotations

import json

import pytest

from penstock.serve.answers import CODES
from serve.client import DECIDE, Running, get, post

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
HEAD = f"POST {DECIDE} HTTP/1.1\r\nHost: x\r\n"

# What leaves the connection as it is: the request was read to its end.
READ = {
    "no such path": (post("/v1/nothing"), 404, "unknown_path"),
    "a path with more": (post(DECIDE + "/more"), 404, "unknown_path"),
    "no such policy": (post("/v1/policies/other/decide"), 404, "unknown_policy"),
    "no such policy's decision": (get("/v1/decisions/other/1"), 404, "unknown_policy"),
    "no such topic": (post("/v1/topics/other/events"), 404, "unknown_topic"),
    "a decision without id": (get("/v1/decisions/quick/"), 404, "unknown_path"),
    "an id that is not UTF-8": (get("/v1/decisions/quick/%ff"), 400, "malformed_request"),
    "a misspelt parameter": (post(DECIDE + "?dryrun=1"), 400, "unknown_parameter"),
    "a parameter's value": (post(DECIDE + "?dry_run=yes"), 400, "unknown_parameter"),
    "a parameter of another path": (
        post("/v1/topics/payments/events?dry_run=1"), 400, "unknown_parameter",
    ),
    "a body of text": (post(DECIDE, media="text/plain"), 415, "unsupported_media_type"),
    "Arrow for a decision": (post(DECIDE, media=ARROW), 415, "unsupported_media_type"),
    "another charset": (
        post(DECIDE, media="application/json; charset=latin-1"), 415, "unsupported_media_type",
    ),
    "a compressed body": (
        post(DECIDE, b"{}", "Content-Encoding: gzip"), 415, "unsupported_encoding",
    ),
}  # fmt: skip

# What ends the connection: where the next request would begin is not known, or not worth reading.
ENDED = {
    "no HTTP": (b"hello\r\n\r\n", 400, "malformed_request"),
    "an unknown method": (b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "malformed_request"),
    "two hosts": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_request"),
    "a space before the colon": (
        b"GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", 400, "malformed_request",
    ),
    "two lengths": (
        f"{HEAD}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab".encode(), 400, "malformed_request",
    ),
    "a length and chunks": (
        f"{HEAD}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
        400, "malformed_request",
    ),
    "a negative length": (f"{HEAD}Content-Length: -1\r\n\r\n".encode(), 400, "malformed_request"),
    "chunks that are none": (
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\nxyz\r\n".encode(), 400, "malformed_request",
    ),
    "another transfer encoding": (
        f"{HEAD}Transfer-Encoding: gzip\r\n\r\n".encode(), 400, "malformed_request",
    ),
    "an upgrade": (
        get("/healthz", "Connection: Upgrade", "Upgrade: h2c"), 400, "malformed_request",
    ),
    "a tunnel": (b"CONNECT a:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
    "an expectation": (
        post(DECIDE, b"{}", "Expect: the-impossible"), 417, "expectation_failed",
    ),
    "a long header": (get("/healthz", "A: " + "a" * 20_000), 431, "headers_too_large"),
    "many headers": (get("/healthz", *["A: a"] * 101), 431, "headers_too_large"),
    "many trailers": (
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n{'A: a' * 1}\r\n".encode()
        + b"A: a\r\n" * 100 + b"\r\n", 431, "headers_too_large",
    ),
    "a long URL": (get("/" + "a" * 20_000), 414, "url_too_long"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_refused_request_is_answered_and_the_connection_kept(door: Running, case: str) -> None:
    request, status, code = READ[case]
    client = door.client()
    answer = client.ask(request)
    assert (answer.status, answer.code) == (status, code)
    assert client.ask(get("/healthz")).status == 200


@pytest.mark.parametrize("case", ENDED)
def test_what_cannot_be_read_on_is_answered_and_the_connection_ended(
    door: Running, case: str
) -> None:
    request, status, code = ENDED[case]
    client = door.client()
    answer = client.ask(request)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["connection"] == "close"
    assert client.ended()


@pytest.mark.parametrize(
    ("request_bytes", "allowed"),
    [
        (get(DECIDE), "POST"),
        (get(DECIDE, method="HEAD"), "POST"),
        (get(DECIDE, method="DELETE"), "POST"),
        (post("/healthz"), "GET, HEAD"),
        (post("/v1/decisions/quick/1"), "GET, HEAD"),
        (get("/metrics", method="OPTIONS"), "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_are_allowed(
    door: Running, request_bytes: bytes, allowed: str
) -> None:
    client = door.client()
    client.send(request_bytes)
    answer = client.answer(head_only=request_bytes.startswith(b"HEAD"))
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert client.ask(get("/healthz")).status == 200


def test_an_error_says_what_is_wrong_and_what_there_is(door: Running) -> None:
    error = door.ask(post("/v1/policies/other/decide")).json["error"]
    assert error["message"] == "there is no such policy"
    assert error["known"] == ["authorise", "lenient", "quick"]
    media = door.ask(post(DECIDE, media="text/plain")).json["error"]
    assert media["media_types"] == ["application/json", NDJSON]


def test_requests_before_a_bad_one_are_answered_first(door: Running) -> None:
    client = door.client()
    client.send(post(DECIDE, b"1") + post(DECIDE, b"2") + b"rubbish\r\n\r\n" + post(DECIDE, b"3"))
    assert [client.answer().json[2] for _ in range(2)] == ["1", "2"]
    assert client.answer().code == "malformed_request"
    assert client.ended()


def test_no_error_repeats_what_was_sent(door: Running) -> None:
    for request in [
        post("/v1/secret-4711"),
        post("/v1/policies/secret-4711/decide"),
        post(DECIDE + "?secret-4711=1"),
        post(DECIDE, media="secret-4711"),
        get("/v1/decisions/quick/secret-4711%ff"),
        b"secret-4711\r\n\r\n",
        get("/healthz", "secret 4711: 1"),
    ]:
        answer = door.ask(request)
        assert answer.status >= 400
        assert b"4711" not in json.dumps(answer.json).encode()


def test_every_code_has_a_status_for_errors() -> None:
    assert all(400 <= status < 600 for status in CODES.values())
