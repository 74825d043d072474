"""No event's value and no secret in any diagnostic, at any level, in either style.

Everything that can go wrong with an event does so here, and each value is unique, so that what leaks is named.
"""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from certificates import Authority
from penstock.errors import PenstockError
from penstock.runtime.replaying import ReplayOptions, Source, run_replay
from penstock.settings import TOKEN, read_settings
from processes import (
    ARROW,
    DECIDE,
    EVENTS,
    JSON,
    NDJSON,
    Answer,
    Service,
    eventually,
    patient_first_with,
    payment,
    penstock,
    running,
    succeed,
)
from serve.client import Client

TRICKY = "/v1/policies/tricky/decide"
LETTERS = "/v1/topics/payments/deadletters"

# What the model does with a card of each kind. Polars's panics are no `Exception`, as `sys.exit` is none.
MODEL = '''
@pipeline.model(version="1")
def risk(batch):
    import os, sys, time
    import polars as pl
    card, amounts = batch["card"][0], batch["amount"]
    if card.startswith("raises"):
        raise ValueError(f"{card} of {amounts.to_list()}")
    if card.startswith("defined"):
        raise ps.errors.DefinitionError(card)
    if card.startswith("panics"):
        raise pl.exceptions.PanicException(card)
    if card.startswith("exits"):
        sys.exit(card)
    if card.startswith("names"):
        return pl.Series([card] * len(batch), dtype=pl.Enum([card]))
    if card.startswith("prints"):
        print(card)
    if card.startswith("hangs"):
        time.sleep(1000)
    if card.startswith("crashes"):
        os._exit(3)
    return pl.Series([0.25] * len(batch))


pipeline.policy("tricky", scored, rules="first.toml", score=risk, within="60s", fallback="review")
'''
# … and what is said of it.
MODELS = {
    "scored": "is up",
    "raises": "ValueError at",
    "defined": "DefinitionError at",
    "panics": "PanicException at",
    "exits": "SystemExit at",
    "names": "Series of Enum",
    "hangs": "took longer than 1 s",
    "crashes": "its process ended",
}


class Marks:
    """Makes values that occur nowhere else, and finds those that do."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self._numbers = itertools.count(1)

    def text(self, *before: str) -> str:
        self.made.append(f"zq{next(self._numbers):05}mark")
        return "-".join((*before, self.made[-1]))

    def amount(self) -> str:
        self.made.append(f"73{next(self._numbers):05}19.57")
        return self.made[-1]

    def event(self, card: str = "card") -> JSON:
        return payment(self.text("id"), card=self.text(card), amount=self.amount())

    def found(self, text: str) -> list[str]:
        return [mark for mark in self.made if mark in text]


@pytest.fixture
def marks() -> Marks:
    return Marks()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return patient_first_with(tmp_path, MODEL)


class Guarded:
    """A service that says all it has to say, behind TLS and a token; each secret of it is marked."""

    def __init__(self, folder: Path, marks: Marks) -> None:
        self.folder, self.marks = folder, marks
        authority = Authority(folder)
        self.certificate, self.key, self.tokens = folder / "door.pem", folder / "door.key", folder / "tokens.toml"
        authority.issue(self.certificate, self.key)
        self.context, self.authority = authority.context(), authority.file
        self.token = succeed("tokens", "new", "admin", "--role", "admin", "--tokens", self.tokens).strip()
        marks.made += [self.token, self.tokens.read_text().split('sha256 = "')[1][:64]]
        marks.made += [line for line in self.key.read_text().splitlines() if not line.startswith("-----")]

    def options(self, style: str) -> tuple[str, ...]:
        files = {"--tls-certificate": self.certificate, "--tls-key": self.key, "--tokens": self.tokens}
        named = [word for name, path in files.items() for word in (name, str(path))]
        return (*named, "--level", "debug", "--diagnostics", style, "--model-time", "1s", "--body-bytes", "256KiB")

    def raw(self, service: Service, *requests: bytes) -> list[bytes]:
        """What each of these bytes is told, over a connection of its own."""
        return [raw_answer(service.port, self, request) for request in requests]


def raw_answer(port: int, guarded: Guarded, request: bytes) -> bytes:
    client = Client(port, guarded.context)
    try:
        with suppress(OSError):
            client.send(request)
        return client.answer().body
    except ConnectionError:
        return b""
    finally:
        client.close()


# What goes wrong, as callers do it.


def wrong_events(marks: Marks) -> Iterator[bytes]:
    """Events that are none, each in its own way, each with marks where it is wrong and where it is not."""
    good = marks.event()
    yield json.dumps(good).encode()[:-3]
    yield f'"{marks.text()}"'.encode()
    yield json.dumps([marks.text(), marks.event()]).encode()
    yield json.dumps({**good, "other": marks.text()}).encode()  # A field's name is no value, and is told.
    yield json.dumps({**good, "card": int(marks.amount().partition(".")[0])}).encode()
    for name in good:
        yield json.dumps({**marks.event(), name: None}).encode()
        yield json.dumps({**marks.event(), name: [marks.text()]}).encode()
        yield json.dumps({**marks.event(), name: {marks.text(): 1}}).encode()
    for amount in (marks.text(), marks.amount() + "1", "9" * 30 + marks.amount(), float(marks.amount()) / 1000):
        yield json.dumps({**marks.event(), "amount": amount}).encode()
    for paid_at in (marks.text(), "2999-01-01T00:00:00.73192Z", "2026-11-01T12:00:00", "2026-13-01T12:00:00Z"):
        yield json.dumps({**marks.event(), "paid_at": paid_at}).encode()
    yield json.dumps({**marks.event(), "card": marks.text("y" * 66_000)}).encode()
    yield json.dumps(marks.event()).encode().replace(b'"card"', b'"card": "", "card"')
    yield json.dumps(marks.event()).encode() + marks.text().encode()
    yield marks.text().encode() + b"\xff\x00{"


def arrow(marks: Marks, **columns: pa.Array) -> bytes:
    events = [marks.event(), marks.event()]
    table = {name: pa.array([event[name] for event in events]) for name in events[0]}
    table["paid_at"] = pa.array([0, 1], pa.timestamp("us", "UTC"))
    batch = pa.record_batch({**table, **columns})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def bad_bodies(marks: Marks) -> Iterator[tuple[str, str, bytes]]:
    """Path, media type and body of what the doors refuse, whole or by row."""
    for wrong in wrong_events(marks):
        yield DECIDE, "application/json", wrong
        yield EVENTS, "application/json", wrong
    lines = b"\n".join([json.dumps(marks.event()).encode(), *wrong_events(marks)])
    yield DECIDE, NDJSON, lines
    yield EVENTS, NDJSON, lines
    yield EVENTS, ARROW, arrow(marks)
    yield EVENTS, ARROW, arrow(marks, amount=pa.array([marks.text(), marks.amount() + "9"]))
    yield EVENTS, ARROW, arrow(marks, other=pa.array([marks.text(), None]))
    yield EVENTS, ARROW, arrow(marks)[:-300]
    yield LETTERS, NDJSON, b"[0]\n" + json.dumps({**marks.event(), "amount": marks.text()}).encode()
    yield LETTERS, NDJSON, json.dumps([marks.text()]).encode() + b"\n{}"
    position = {"consumer": marks.text(), "topic": marks.text(), "offset": 0}
    yield "/v1/positions", "application/json", json.dumps(position).encode()
    yield "/v1/positions", "application/json", json.dumps({**position, "other": marks.text()}).encode()
    yield "/v1/topics/payments/" + marks.text(), "application/json", b"{}"
    yield f"/v1/topics/{marks.text()}/events", "application/json", b"{}"
    yield f"/v1/policies/{marks.text()}/decide", "application/json", b"{}"
    yield f"{DECIDE}?{marks.text()}={marks.text()}", "application/json", b"{}"
    yield DECIDE, marks.text(), marks.text().encode()
    yield DECIDE, "application/json", json.dumps({**marks.event(), "card": "x" * 300_000}).encode()


def bad_requests(marks: Marks, token: str) -> list[bytes]:
    known = f"Host: x\r\nAuthorization: Bearer {token}\r\n"
    event = json.dumps(marks.event())
    heads = [
        f"{marks.text()} / HTTP/1.1\r\n\r\n",
        f"GET /{marks.text()} HTTP/9.9\r\n\r\n",
        f"GET /v1/decisions/authorise/%ff{marks.text()} HTTP/1.1\r\n{known}\r\n",
        f"GET /v1/decisions/authorise/{marks.text()} HTTP/1.1\r\n{known}\r\n",
        f"GET /{marks.text() * 2_000} HTTP/1.1\r\n{known}\r\n",
        f"GET /metrics HTTP/1.1\r\n{known}{marks.text()}: {marks.text() * 2_000}\r\n\r\n",
        f"GET /metrics HTTP/1.1\r\n{known}{marks.text()}\r\n\r\n",
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {marks.text()}\r\n\r\n",
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: {marks.text()}\r\n\r\n",
        f"POST {DECIDE} HTTP/1.1\r\n{known}Transfer-Encoding: {marks.text()}\r\n\r\n",
        f"POST {DECIDE} HTTP/1.1\r\n{known}Content-Length: {marks.text()}\r\n\r\n",
        f"POST {DECIDE} HTTP/1.1\r\n{known}Expect: {marks.text()}\r\nContent-Length: 1\r\n\r\n",
        f"POST {DECIDE} HTTP/1.1\r\n{known}Transfer-Encoding: chunked\r\n\r\n{marks.text()}\r\n",
        f"POST {DECIDE} HTTP/1.1\r\n{known}Content-Length: {len(event)}\r\n\r\n{event}{marks.text()}",
    ]
    return [head.encode() for head in heads]


def ask_all(service: Service, guarded: Guarded, marks: Marks) -> str:
    """Everything that can go wrong over HTTP; what was told."""
    told: list[bytes] = []

    def call(method: str, path: str, body: bytes, kind: str = "application/json") -> Answer:
        told.append((answer := service.call(method, path, body, kind, token=guarded.token)).body)
        return answer

    taken, entered = marks.event(), marks.event()
    assert call("POST", DECIDE, json.dumps(taken).encode()).status == 200
    assert call("POST", DECIDE, json.dumps({**taken, "card": marks.text()}).encode()).code == "id_conflict"
    assert call("POST", EVENTS, json.dumps(entered).encode()).status == 200
    assert call("POST", DECIDE, json.dumps(entered).encode()).code == "entered_elsewhere"
    for path, kind, body in bad_bodies(marks):
        call("POST", path, body, kind)
    told += guarded.raw(service, *bad_requests(marks, guarded.token))
    for kind, word in MODELS.items():
        eventually(lambda: "is not up" not in call("GET", "/readyz", b"").body.decode())
        while word not in service.log.read_text():  # A model's failures are said once a second at most.
            answer = call("POST", TRICKY, json.dumps(marks.event(kind)).encode()).json()
            assert (answer.get("cause"), answer["score"]) == ((None, 0.25) if kind == "scored" else ("model", None))
            time.sleep(0.2)
    told += [call("GET", path, b"").body for path in ("/metrics", "/readyz")]
    return b"\n".join(told).decode(errors="replace")


def stop_under_load(service: Service, guarded: Guarded, marks: Marks) -> None:
    """SIGTERM while callers send what is right and what is wrong."""
    stopped = threading.Event()

    def send(bodies: list[bytes]) -> None:
        for body in itertools.cycle(bodies):
            if stopped.is_set():
                return
            with suppress(Exception):
                service.call("POST", TRICKY, body, token=guarded.token)

    callers = []
    for kind in ("scored", "raises", "hangs"):
        bodies = [json.dumps(marks.event(kind)).encode() for _ in range(50)] + list(wrong_events(marks))
        callers.append(threading.Thread(target=send, args=(bodies,)))
        callers[-1].start()
    before = service.log.stat().st_size
    eventually(lambda: service.log.stat().st_size > before)  # The model has failed under this load.
    try:
        assert service.end() == 0
    finally:
        stopped.set()
        for caller in callers:
            caller.join()


@pytest.mark.parametrize("style", ["lines", "json"])
def test_no_value_and_no_secret_is_in_any_diagnostic_whatever_goes_wrong(
    tmp_path: Path, app: Path, marks: Marks, style: str
) -> None:
    guarded, data = Guarded(tmp_path, marks), tmp_path / "data"
    with running(data, *guarded.options(style), app=app, said=r"ready after .*: (https?://[\w.]+:\d+)") as service:
        service.context = guarded.context
        told = ask_all(service, guarded, marks)
        guarded.tokens.write_text(guarded.tokens.read_text() + marks.text())
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: "stays in force" in service.log.read_text())
        stop_under_load(service, guarded, marks)
        said = service.log.read_text()
    for word in (*MODELS.values(), "rejected", "stopping: answering what is held"):
        assert word in said
    assert marks.found(said) == []
    # A decision names its event to who asked for it, and is all that does: the search finds a value that is there.
    assert len(marks.found(told)) > len(MODELS)
    assert marks.found("\n".join(line for line in told.splitlines() if not line.startswith('{"id":'))) == []


def test_no_value_and_no_secret_is_in_what_is_said_of_dead_letters(tmp_path: Path, app: Path, marks: Marks) -> None:
    guarded, data = Guarded(tmp_path, marks), tmp_path / "data"
    corrected = write_text(tmp_path / "a.txt", "0\t" + json.dumps({**marks.event(), "amount": marks.text()}))
    broken = write_text(tmp_path / "b.txt", marks.text())
    done = []
    with running(data, *guarded.options("lines"), app=app) as service:
        service.context = guarded.context
        lines = b"\n".join(wrong_events(marks))
        assert service.call("POST", EVENTS, lines, NDJSON, token=guarded.token).status == 200
        at = ("--data", data, "--url", f"https://localhost:{service.port}")
        for listed in ((), ("--json",)):
            done.append(penstock("deadletters", "list", *at[:2], *listed))
            assert "wrong_type" in done[-1].stdout
        for token, *source in (
            (guarded.token,),
            (guarded.token, "--from", corrected),
            (guarded.token, "--from", broken),
            (marks.text(),),
            (marks.text(" "),),
        ):
            environment = {"SSL_CERT_FILE": str(guarded.authority), TOKEN: token}
            done.append(penstock("deadletters", "retry", "payments", *at, *source, environment=environment))
            assert done[-1].returncode == 1
        shown = succeed("deadletters", "show", "payments", *at[:2])
    said = "".join(each.stdout + each.stderr for each in done)
    for words in ("put 0 events right", "payments 0: ", "line 1: not a dead letter's offset", "not known here"):
        assert words in said
    assert marks.found(said) == []
    assert marks.found(shown)


# History, which holds events too.


def write_text(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def histories(folder: Path, marks: Marks) -> Iterator[Path]:
    """Files with a row that is wrong, each in its own way."""
    head = "payment_id,card,amount,paid_at"

    def cells(**changed: str) -> str:
        return ",".join({**marks.event(), **changed}.values())

    for number, row in enumerate(
        [
            cells() + "," + marks.text(),
            cells(amount=marks.text()),
            cells(paid_at=marks.text()),
            cells(paid_at=""),
            f'"{cells()}',
        ]
    ):
        yield write_text(folder / f"{number}.csv", head, cells(), row)
    # A column that is none of ours: its type must not be guessed, nor what does not fit the guess be told.
    more = cells(amount=marks.text()) + "," + marks.text()
    yield write_text(folder / "more.csv", head + ",more", cells() + ",5", more)
    for number, wrong in enumerate(wrong_events(marks)):
        (folder / f"{number}.ndjson").write_bytes(json.dumps(marks.event()).encode() + b"\n" + wrong + b"\n")
        yield folder / f"{number}.ndjson"
    events = [marks.event(), {**marks.event(), "amount": marks.text()}]
    columns: JSON = {name: [event[name] for event in events] for name in head.split(",")}
    columns["paid_at"] = pa.array([0, 1], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table(columns), folder / "0.parquet")
    yield folder / "0.parquet"
    whole = (folder / "0.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(whole[:200] + whole[230:])
    yield folder / "1.parquet"


def test_no_value_is_in_what_replay_and_load_say_of_rows_that_do_not_fit(
    tmp_path: Path, app: Path, marks: Marks, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "history"
    folder.mkdir()
    said = ""
    for file in histories(folder, marks):
        said += replayed(app, file) + replayed(app, file, skip_invalid=True)
    assert said.count("row 2") > 20
    event = marks.event()
    twice = write_text(folder / "twice.ndjson", json.dumps(event), json.dumps({**event, "card": marks.text()}))
    loaded = replayed(app, twice, load=tmp_path / "data")
    assert "could not load into the log" in loaded
    said += loaded + capsys.readouterr().err
    assert marks.found(said) == []
    assert marks.found((folder / "0.csv").read_text())


def replayed(app: Path, file: Path, *, load: Path | None = None, skip_invalid: bool = False) -> str:
    """What is said of a file that does not fit, or that a log does not take."""
    target = app.parent / "o.parquet" if load is None else None
    options = ReplayOptions((Source(str(file)),), target, None, "authorise", False, skip_invalid, load is not None)
    try:
        run_replay(app, options, read_settings({"data": load}, environment={}))
    except PenstockError as error:
        return f"{error}\n"
    return ""


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in ("scored", "hangs", "crashes")])
def test_no_value_is_in_what_replay_says_of_a_model_that_fails(
    tmp_path: Path, app: Path, marks: Marks, kind: str
) -> None:
    file = write_text(tmp_path / "history.ndjson", json.dumps(marks.event(kind)))
    done = penstock("replay", app, "--from", file, "--to", tmp_path / "o.parquet", "--policy", "tricky")
    assert done.returncode == 1 and 'model "risk" failed' in done.stderr
    assert marks.found(done.stdout + done.stderr) == []


@pytest.mark.parametrize("style", ["lines", "json"])
def test_what_a_model_prints_is_its_own_and_would_be_found(
    tmp_path: Path, app: Path, marks: Marks, style: str
) -> None:
    said = r"ready after .*: (https?://[\w.]+:\d+)"
    with running(tmp_path / "data", "--level", "debug", "--diagnostics", style, app=app, said=said) as service:
        event = marks.event("prints")
        assert service.call("POST", TRICKY, json.dumps(event).encode()).status == 200
        eventually(lambda: marks.found(service.log.read_text()) == marks.found(event["card"]))


