"""Callers that nobody vouches for: whatever they send, they get answers or the connection ends, and nothing is lost.

One service takes it all. Each example is followed by a right one, and at the end the log holds what was acknowledged.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuzz import EXAMPLES, EXTREME, fuzz, mutated
from processes import ARROW, DECIDE, EVENTS, JSON, NDJSON, ROOT, Service, payment, running, succeed

DOCUMENT = yaml.safe_load((ROOT / "docs" / "http.yaml").read_text())
CODES = {
    code: {int(status) for status in re.findall(r"\d{3}", statuses)}
    for statuses, codes in re.findall(r"^\| (\d{3}[^|]*) \| (.*) \|$", DOCUMENT["info"]["description"], re.MULTILINE)
    for code in re.findall(r"`(\w+)`", codes)
}
PLAIN = "application/json"
LETTERS = "/v1/topics/payments/deadletters"
PATIENCE_S = 60


@dataclass
class Told:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def lines(self) -> Iterator[JSON]:
        if self.headers["content-type"] in (PLAIN, NDJSON):
            yield from map(json.loads, self.body.splitlines())


def read_answers(received: bytes, *, heads: bool = False) -> list[Told]:
    """All answers that these bytes are; nothing may be left. With `heads` there may be some to HEAD, without a body."""
    answers: list[Told] = []
    while received := received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"):
        head, end, received = received.partition(b"\r\n\r\n")
        line, *fields = head.decode("ascii").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Za-z -]+", line)
        assert found and end, line
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in fields)}
        assert len(headers) == len(fields) and {"date", "content-length", "content-type", "connection"} <= set(headers)
        length = int(headers["content-length"])
        if heads and (not received or received.startswith(b"HTTP/1.1 ")):
            length = 0
        assert len(received) >= length
        answers.append(Told(int(found[1]), headers, received[:length]))
        received = received[length:]
    return answers


@dataclass
class Ledger:
    """What was acknowledged, by topic: offsets with the ids that they were told for, where an answer says them."""

    offsets: dict[int, str | None] = field(default_factory=dict)
    statuses: set[int] = field(default_factory=set)

    def note(self, answer: Told) -> None:
        """Check one answer by itself, and keep what it promises."""
        self.statuses.add(answer.status)
        for told in answer.lines() if answer.body else ():
            if "error" in told:
                code = told["error"]["code"]
                assert CODES[code] & ({answer.status} if answer.status != 200 else {200, 409, 422}), told
                assert answer.status < 500, told
            elif "accepted" in told:
                offsets = [offset for offset in told["offsets"] if offset is not None]
                assert len(offsets) == told["accepted"] + told["repeated"]
                assert len(told["offsets"]) == len(offsets) + len(told["rejected"])
                for offset in offsets:
                    self.offsets.setdefault(offset, None)
            elif told.get("offset") is not None and "outcome" in told:
                # An offset is one event's for ever.
                assert self.offsets.get(told["offset"]) in (None, told["id"])
                self.offsets[told["offset"]] = told["id"]


class Attacked:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.ledger = Ledger()
        self._numbers = itertools.count()

    def send(self, *pieces: bytes, heads: bool = False) -> list[Told]:
        """What is told over a connection of its own, to its end."""
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=PATIENCE_S) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionError):  # The door may end it before all is sent.
                for number, piece in enumerate(pieces):
                    if number:
                        time.sleep(0.0005)  # The door is to see the pieces one by one.
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            received = b""
            with suppress(ConnectionResetError):
                while data := client.recv(1 << 16):
                    received += data
        answers = read_answers(received, heads=heads)
        for answer in answers:
            self.ledger.note(answer)
        return answers

    def check_alive(self) -> None:
        """A right request right after is answered right."""
        event = payment(f"right{next(self._numbers)}", card="right")
        (answer,) = self.send(request("POST", DECIDE, json.dumps(event).encode()))
        (told,) = answer.lines()
        assert (answer.status, told["id"], told["timed_out"]) == (200, event["payment_id"], False)
        assert self.service.process.poll() is None


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """The service, whose log is looked at when it has taken everything."""
    folder = tmp_path_factory.mktemp("attacked")
    data = folder / "data"
    with running(data, "--body-bytes", "256KiB", "--request-time", "5s") as service:
        attacked = Attacked(service)
        yield attacked
        assert service.call("GET", "/readyz").json() == {"ready": True, "warnings": []}
        assert service.end() == 0
        assert "Traceback" not in service.log.read_text() and " ERROR " not in service.log.read_text()
    check_log(data, attacked.ledger)


def check_log(data: Path, ledger: Ledger) -> None:
    """Every event that was acknowledged is there once, under its id, and no other one."""
    succeed("export", "payments", "--data", data, "--to", data / "payments.parquet")
    logged = pq.read_table(data / "payments.parquet", columns=["_offset", "payment_id"]).to_pylist()
    ids = {row["_offset"]: row["payment_id"] for row in logged}
    assert len(ids) == len(set(ids.values())) == len(logged)
    assert set(ids) == set(ledger.offsets)
    assert all(told in (None, ids[offset]) for offset, told in ledger.offsets.items())
    assert json.loads(succeed("log", "verify", "--json", "--data", data))["sound"]


def request(
    method: str, path: str, body: bytes = b"", kind: str = PLAIN, *headers: str, chunks: int = 0, version: str = "1.1"
) -> bytes:
    """A request that is right; with `chunks` its body comes in pieces of this size."""
    lines = [f"{method} {path} HTTP/{version}", "Host: penstock", *headers]
    if chunks:
        lines += [f"Content-Type: {kind}", "Transfer-Encoding: chunked"]
        pieces = [body[start : start + chunks] for start in range(0, len(body), chunks)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    elif method == "POST":
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def event(number: int) -> bytes:
    return json.dumps(payment(f"e{number}", card=f"c{number % 7}")).encode()


numbers = st.integers(0, 100_000)
events = numbers.map(event)
many = st.lists(events, max_size=4).map(b"\n".join)
requests = st.one_of(
    events.map(lambda body: request("POST", DECIDE, body)),
    events.map(lambda body: request("POST", DECIDE, body, chunks=20)),
    many.map(lambda body: request("POST", DECIDE, body, NDJSON)),
    events.map(lambda body: request("POST", DECIDE + "?dry_run=1", body)),
    events.map(lambda body: request("POST", EVENTS, body)),
    many.map(lambda body: request("POST", EVENTS, body, NDJSON, chunks=50)),
    many.map(lambda body: request("POST", LETTERS, b"[0]\n" + body, NDJSON)),
    numbers.map(lambda number: request("GET", f"/v1/decisions/authorise/pe{number}")),
    st.sampled_from(
        [
            request("HEAD", "/readyz"),
            request("GET", "/metrics"),
            request("GET", "http://penstock/healthz"),
            request("GET", "/healthz", b"", PLAIN, "Connection: keep-alive", version="1.0"),
            request("GET", "/healthz", b"", PLAIN, "Connection: close"),
            request("POST", "/v1/positions", b'{"consumer": "a", "topic": "payments", "offset": 0}'),
            request("POST", DECIDE, event(1), PLAIN, "Expect: 100-continue"),
        ]
    ),
)

# What HTTP is made of, and what has led other readers astray (RFC 9112, 11).
HTTP = (
    *EXTREME, b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"%",
    b"?a=1", b"/..",
    b"\r\nContent-Length: 5", b"\r\nContent-Length: +5", b"\r\nContent-Length: 5, 5", b"\r\nContent-Length: 0x5",
    b"\r\nContent-Length: 99999999999999999999", b"\r\nContent-Length: -1", b"\r\nContent-Length : 5",
    b"\r\n Content-Length: 5",
    b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: identity", b"\r\nTransfer-Encoding: gzip, chunked",
    b"\r\nTransfer-Encoding:\x0bchunked", b"\r\nHost: other", b"\r\nHost:", b"\r\nExpect: 100-continue",
    b"\r\nConnection: close",
    b"\r\nUpgrade: h2c\r\nConnection: Upgrade", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\nContent-Encoding: gzip",
    b"\r\nContent-Type: text/plain", b"\r\nX: " + b"x" * 20_000, b"/" + b"x" * 20_000, b"x" * 300_000, b"0\r\n\r\n",
    b"5\r\n",
    b"5;name=value\r\n", b"FFFFFFFFFFFFFFFFF\r\n", b"-1\r\n", b"0\r\nX: y\r\n\r\n", b"\r\nAuthorization: Bearer x",
    b"\x16\x03\x01\x02\x00",
)  # fmt: skip


@EXAMPLES
def test_whatever_bytes_come_answers_are_well_formed_and_what_is_taken_is_acknowledged(
    attacked: Attacked, examples: str
) -> None:
    @st.composite
    def sequences(draw: st.DrawFn) -> list[bytes]:
        right = b"".join(draw(st.lists(requests, min_size=1, max_size=3)))
        wrong = draw(mutated(right, HTTP))
        cuts = sorted(draw(st.lists(st.integers(0, len(wrong)), max_size=3)))
        return [wrong[start:end] for start, end in zip([0, *cuts], [*cuts, len(wrong)], strict=True)]

    @fuzz(examples, 250)
    @given(sequences())
    def check(pieces: list[bytes]) -> None:
        attacked.send(*pieces, heads=b"HEAD" in b"".join(pieces))
        attacked.check_alive()

    check()
    assert {200, 400, 404, 422} <= attacked.ledger.statuses


def test_wherever_requests_are_cut_they_are_answered_the_same(attacked: Attacked) -> None:
    right = [
        request("POST", DECIDE, event(200_001)),
        request("POST", EVENTS, event(200_002), chunks=30),
        request("GET", "/v1/decisions/authorise/pe200001"),
        request("POST", DECIDE, event(200_001) + b"\n" + event(200_003), NDJSON),
    ]
    sent = b"".join(right)
    wanted: Any = None
    for place in range(1, len(sent)):
        answers = attacked.send(sent[:place], sent[place:])
        assert [answer.status for answer in answers] == [200] * len(right)
        found = [{**told, "took_ms": 0} for answer in answers for told in answer.lines()]
        if place > 1:  # By then all are repeats.
            wanted = wanted or found
            assert found == wanted
    attacked.check_alive()


# Bodies, in requests that are right.

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.decimals(allow_nan=False, places=2).map(str)
    | st.datetimes().map(lambda time: time.isoformat() + "Z")
    | st.sampled_from(["12.50", "p1", "2026-11-01T12:00:00Z", "9" * 40, -0.0, 1e400, 2**63, -(2**63)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
fields = st.sampled_from([*payment(0), "other", ""])
wrong_events = st.builds(lambda number, more: json.dumps({**payment(f"e{number}"), **more}).encode(), numbers,
                         st.dictionaries(fields, values, max_size=2))  # fmt: skip
JSON_PIECES = (
    *EXTREME, b"}", b"]", b",", b":", b'"card": 1,', b"\\", b"\\ud800", b"1e5", b"-", b"+1", b"0.10", b"Infinity",
    b"//", b"\xef\xbb\xbf",
    b"[" * 3_000, b'{"a":' * 3_000, b'"' + b"a" * 70_000 + b'"',
)  # fmt: skip
bodies = st.one_of(
    wrong_events,
    st.lists(wrong_events, max_size=4).map(lambda each: b"[" + b",".join(each) + b"]"),
    st.lists(wrong_events | values.map(lambda value: json.dumps(value).encode()), max_size=5).map(b"\n".join),
    values.map(lambda value: json.dumps(value).encode()),
).flatmap(lambda body: st.just(body) | mutated(body, JSON_PIECES, least=1))
places = st.sampled_from(
    [
        (DECIDE, PLAIN),
        (DECIDE, NDJSON),
        (DECIDE + "?dry_run=1", PLAIN),
        (DECIDE + "?dry_run=1", NDJSON),
        (EVENTS, PLAIN),
        (EVENTS, NDJSON),
        (EVENTS, ARROW),
        (LETTERS, NDJSON),
        ("/v1/positions", PLAIN),
    ]
)


def check_body(attacked: Attacked, path: str, kind: str, body: bytes) -> None:
    """It is told one answer, of a status that is documented for its path."""
    template = re.sub("authorise", "{policy}", re.sub("payments", "{topic}", path.partition("?")[0]))
    (answer,) = attacked.send(request("POST", path, body, kind))
    assert str(answer.status) in DOCUMENT["paths"][template]["post"]["responses"]
    attacked.check_alive()


@EXAMPLES
def test_whatever_a_body_holds_it_is_taken_or_refused_as_documented(attacked: Attacked, examples: str) -> None:
    @fuzz(examples, 200)
    @given(places, bodies)
    def check(place: tuple[str, str], body: bytes) -> None:
        check_body(attacked, *place, body)

    check()
    assert {200, 422} <= attacked.ledger.statuses


ARROW_ARRAYS: dict[str, Any] = {
    "text": pa.array(["a", "1.00", None]),
    "integers": pa.array([1, None, 2**62]),
    "doubles": pa.array([1.25, float("nan"), 1e300]),
    "times": pa.array([0, 2**62, None], pa.timestamp("us", "UTC")),
    "naive": pa.array([0, 1, 2**40], pa.timestamp("ms")),
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "large": pa.array(["a", "b", None], pa.large_string()),
    "lists": pa.array([[1], [], None]),
    "nulls": pa.nulls(3),
}


def arrow_body(first: int, changed: str, array: str) -> bytes:
    columns: dict[str, Any] = {
        "payment_id": pa.array([f"pa{first + row}" for row in range(3)]),
        "card": pa.array(["c1", "c2", "c1"]),
        "amount": pa.array([1.25, 3.5, 0.0]),
        "paid_at": pa.array([1_700_000_000_000_000 + row for row in range(3)], pa.timestamp("us", "UTC")),
    }
    if changed:
        columns[changed] = ARROW_ARRAYS[array]
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch.slice(1, 1))
    body: bytes = sink.getvalue().to_pybytes()
    return body


changed = st.sampled_from(["", *payment(0), "other"])
arrow_bodies = st.builds(arrow_body, numbers, changed, st.sampled_from([*ARROW_ARRAYS]))


@EXAMPLES
def test_whatever_an_arrow_stream_holds_it_is_taken_or_refused_as_documented(attacked: Attacked, examples: str) -> None:
    pieces = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x08\x00\x00\x00")

    @fuzz(examples, 120)
    @given(arrow_bodies.flatmap(lambda body: st.just(body) | mutated(body, pieces, least=1)))
    def check(body: bytes) -> None:
        check_body(attacked, EVENTS, ARROW, body)

    check()
