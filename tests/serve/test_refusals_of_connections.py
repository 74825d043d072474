"""What a real service does about clients that are slow, many, loud or sly."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from processes import DECIDE, EVENTS, Service, lacking, patient_first, payment, running
from serve.client import Client, eventually, get, post
from serve.siege import MIB, answers, exchange, siege

HEAD = f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
GOOD = json.dumps(payment(1)).encode()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("connections")
    with running(
        folder / "data", "--request-time", "1s", "--connections", "10100", app=patient_first(folder)
    ) as service:
        yield service


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_hundred_megabytes_are_refused_declared_or_in_chunks(service: Service) -> None:
    with siege(service):
        declared = exchange(service, f"{HEAD}Content-Length: {100 * MIB}\r\n\r\n".encode())
        assert (declared.status, declared.code) == (413, "body_too_large")
        for _ in range(3):
            sent = exchange(service, CHUNKED + chunk(b" " * MIB) * 100)
            assert (sent.status, sent.code) == (413, "body_too_large")
            assert sent.json["error"]["bytes_max"] == 32 * MIB


@pytest.mark.parametrize("start", [b"GET / HT", get("/healthz", "A: ")[:-4], CHUNKED + b"5\r\n", CHUNKED])
def test_those_that_drip_are_ended_in_time_and_others_do_not_wait(service: Service, start: bytes) -> None:
    with siege(service):
        slow = [Client(service.port) for _ in range(200)]
        for client in slow:
            client.send(start)
        for client in slow:
            answer = client.answer()
            assert (answer.status, answer.code) == (408, "request_timeout")
            assert client.ended()
            client.close()


def connect_many(service: Service, wanted: int) -> None:
    if files_left(wanted) < wanted:
        lacking(f"a process may open too few files here for {wanted:,} connections: ulimit -Hn")
    with siege(service, grows_bytes=300 * MIB), ExitStack() as stack:
        clients = [Client(service.port) for _ in range(wanted)]
        for client in clients:
            stack.callback(client.close)
        for client in clients:
            client.send(get("/healthz"))
        assert {client.answer().status for client in clients} == {200}
        for client in clients[::2]:
            client.reset()
        for number, client in enumerate(clients[1::2]):
            client.send(post(DECIDE, json.dumps(payment(70_000_000 + number)).encode()))
        assert {client.answer().status for client in clients[1::2]} == {200}


def files_left(wanted: int) -> int:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(allowed, wanted + 500)), most))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500


def test_two_thousand_connections_are_served(service: Service) -> None:
    connect_many(service, 2_000)


@pytest.mark.long
def test_ten_thousand_connections_are_served(service: Service) -> None:
    connect_many(service, 10_000)


# What is sent, and the statuses that come; after a refusal the connection ends.
SLY: dict[str, tuple[bytes, list[int]]] = {
    "two lengths": (f"{HEAD}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde".encode(), [400]),
    "one length twice": (f"{HEAD}Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd".encode(), [400]),
    "a list of lengths": (f"{HEAD}Content-Length: 4, 4\r\n\r\nabcd".encode(), [400]),
    "chunks and a length": (f"{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n".encode(), [400]),
    "a length and chunks": (f"{HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(), [400]),
    "chunks twice": (f"{HEAD}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n".encode(), [400]),
    "chunks not last": (f"{HEAD}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".encode(), [400]),
    "chunks with a tab": (f"{HEAD}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n".encode(), [400]),
    "a length with a plus": (f"{HEAD}Content-Length: +4\r\n\r\nabcd".encode(), [400]),
    "a length in hex": (f"{HEAD}Content-Length: 0x4\r\n\r\nabcd".encode(), [400]),
    "a length beyond 64 bits": (f"{HEAD}Content-Length: {1 << 64}\r\n\r\nabcd".encode(), [400]),
    "a negative chunk": (CHUNKED + b"-1\r\n\r\n", [400]),
    "a chunk beyond 64 bits": (CHUNKED + b"10000000000000004\r\nabcd\r\n", [400]),
    "a chunk that is longer": (CHUNKED + b"2\r\nabcd\r\n0\r\n\r\n", [400]),
    "a chunk without size": (CHUNKED + b"\r\nabcd\r\n0\r\n\r\n", [400]),
    "a bare line feed": (b"GET /healthz HTTP/1.1\nHost: x\n\n", [400]),
    "a folded header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", [400]),
    "NUL in a header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", [400]),
    "NUL in the path": (b"GET /health\0z HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    "another version": (b"GET /healthz HTTP/3.1\r\nHost: x\r\n\r\n", [400]),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), [400]),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", [200]),
    "HTTP/1.0 with chunks": (CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n", [400]),
    "a GET with a hidden one": (
        get("/healthz", "Content-Length: 41") + b"GET /metrics HTTP/1.1\r\nHost: smuggled\r\n\r\n",
        [200],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SLY)
def test_what_could_be_read_in_two_ways_is_read_in_one_or_refused(service: Service, case: str) -> None:
    request, statuses = SLY[case]
    found = answers(service, request)
    assert [answer.status for answer in found] == statuses
    if statuses == [400]:
        assert found[0].code == "malformed_request"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/topics/payments/../payments/events", "/v1/topics/%2e%2e/events", "//v1/topics/payments/events",
        "/v1//topics/payments/events", "/v1/topics/payments%2fevents", "/v1/topics/payments/events/",
        "/v1/topics/payments%00/events", "/V1/topics/payments/events", "/v1/topics/payments/events%20",
        "/v1/topics//events", "/./v1/topics/payments/events", "/v1/topics/payments;x=1/events", "*", "/%",
        "/v1/topics/%ff/events", "/../../../../etc/passwd",
    ],
)  # fmt: skip
def test_a_path_is_what_it_says_and_nothing_else(service: Service, path: str) -> None:
    answer = exchange(service, post(path, GOOD))
    assert answer.status in (400, 404)
    assert answer.code in ("malformed_request", "unknown_path", "unknown_topic")


def test_an_escaped_name_is_the_same_name(service: Service) -> None:
    assert exchange(service, post("/v1/topics/p%61yments/events", GOOD)).status == 200


def test_a_flood_of_headers_is_refused(service: Service) -> None:
    with siege(service):
        for _ in range(50):
            many = exchange(service, get("/healthz", *[f"H{number}: x" for number in range(100_000)]))
            assert (many.status, many.code) == (431, "headers_too_large")
            long = exchange(service, get("/healthz", "A: " + "a" * MIB))
            assert (long.status, long.code) == (431, "headers_too_large")


def test_pipelined_floods_are_answered_in_order_or_wait(service: Service) -> None:
    """A client that asks twenty thousand times and reads nothing meanwhile."""
    count = 20_000
    with siege(service):
        client = Client(service.port)
        sender = threading.Thread(target=client.send, args=(get("/healthz") * count,), daemon=True)
        sender.start()
        time.sleep(0.3)
        assert all(client.answer().status == 200 for _ in range(count))
        sender.join(10)
        client.close()


def test_those_that_connect_and_go_leave_nothing(service: Service) -> None:
    with siege(service):
        for number in range(1_000):
            client = Client(service.port)
            client.send((CHUNKED + b"ffff\r\nabc", b"", post(DECIDE, GOOD), b"GET /")[number % 4])
            if number % 3:
                client.reset()
            else:
                client.socket.shutdown(socket.SHUT_WR)
                client.close()
    eventually(lambda: b"penstock_door_connections 1\n" in service.call("GET", "/metrics").body.replace(b".0\n", b"\n"))
