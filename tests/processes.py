"""The program as its users run it: real processes, real sockets, real directories."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIRST = ROOT / "examples" / "first.py"
DECIDE = "/v1/policies/authorise/decide"
EVENTS = "/v1/topics/payments/events"
NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
PATIENCE_S = 60
# What `penstock run` is run by.
PROGRAM: tuple[str, ...] = (sys.executable, "-m", "penstock")
READY = r"^ready after .*: (https?://\S+)$"

JSON = dict[str, Any]


def lacking(what: str) -> NoReturn:
    """This machine lacks what a test needs: where CI runs that is a failure, elsewhere the test is skipped."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def penstock(
    *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "penstock", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
        cwd=cwd,
    )


def succeed(*arguments: object, **options: Any) -> str:
    """Run the command line, which must end well; what it wrote."""
    done = penstock(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail(*arguments: object, **options: Any) -> str:
    """Run the command line, which must end with an error in words; the words."""
    done = penstock(*arguments, **options)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def begin(data: Path, app: Path, *arguments: str, setup: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    """The process of `penstock run`, which need not be ready yet; `setup` runs in it before anything else."""
    port = () if "--port" in arguments else ("--port", "0")
    command = [*PROGRAM, "run", str(app), "--data", str(data), *port, *arguments]
    with data.with_suffix(".stderr").open("w") as log:
        return subprocess.Popen(command, stderr=log, preexec_fn=setup, start_new_session=True)


class Service:
    """`penstock run` on a data directory; it is there when it has said this, with its address."""

    def __init__(
        self, data: Path, app: Path, *arguments: str, said: str = READY, setup: Callable[[], None] | None = None
    ) -> None:
        self.log = data.with_suffix(".stderr")
        self.process = begin(data, app, *arguments, setup=setup)
        self.port = int(self.wait_until_said(said).rpartition(":")[2])
        self.context: ssl.SSLContext | None = None  # of its callers, where it speaks TLS

    def wait_until_said(self, pattern: str) -> str:
        """What of this a line of the start says; the service is ended where none does."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(pattern, self.log.read_text(), re.MULTILINE):
                return found.group(1)
            time.sleep(0.02)
        self.end(signal.SIGKILL)
        raise AssertionError("the service did not start:\n" + self.log.read_text())

    def call(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json", *, token: str = ""
    ) -> Answer:
        headers = {"Content-Type": kind, **({"Authorization": f"Bearer {token}"} if token else {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if self.context is not None:
            connection = http.client.HTTPSConnection("localhost", self.port, timeout=30, context=self.context)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def decide(self, event: JSON) -> JSON:
        return self.call("POST", DECIDE, json.dumps(event).encode()).json()

    def metric(self, name: str) -> float:
        """One of its numbers, as `/metrics` says it."""
        page = self.call("GET", "/metrics").body.decode()
        found = re.search(rf"^penstock_{re.escape(name)} (\S+)$", page, re.MULTILINE)
        assert found, name
        return float(found.group(1))

    def end(self, number: signal.Signals = signal.SIGTERM, *, group: bool = False) -> int:
        """Send it a signal, or its whole group of processes; its status."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.process.wait(60)


class Answer:
    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status, self.body, self.headers = status, body, headers

    def json(self) -> JSON:
        value: JSON = json.loads(self.body)
        return value

    def lines(self) -> list[JSON]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def code(self) -> str:
        code: str = self.json()["error"]["code"]
        return code


def patient_first(folder: Path) -> Path:
    return patient(folder, FIRST, "first.toml")


def patient(folder: Path, example: Path, rules: str) -> Path:
    """A copy of an example, with a deadline that a machine busy with other things does not miss."""
    shutil.copy(example.with_name(rules), folder)
    app = folder / example.name
    app.write_text(re.sub(r'within="\w+"', 'within="30s"', example.read_text()))
    return app


def patient_first_with(folder: Path, models: str) -> Path:
    """The first example with more after it: models, and policies of theirs."""
    app = patient_first(folder)
    app.write_text(app.read_text() + models)
    return app


@contextmanager
def running(
    data: Path,
    *arguments: str,
    app: Path | None = None,
    said: str = READY,
    setup: Callable[[], None] | None = None,
) -> Iterator[Service]:
    """A service of this app, or of the first example, for the length of a `with`."""
    service = Service(data, app or patient_first(data.parent), *arguments, said=said, setup=setup)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end(signal.SIGKILL)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until this is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def append_until_the_log_is_cut(service: Service, data: Path) -> None:
    """Payments that no compression makes small, two megabytes at a time, until retention has removed the first file."""
    first, numbers = data / "log" / "0000000000000001.segment", itertools.count()

    def append() -> bool:
        some = itertools.islice(numbers, 2_000)
        events = (payment(f"b{number}", card=random.randbytes(500).hex()) for number in some)
        answer = service.call("POST", EVENTS, b"\n".join(json.dumps(event).encode() for event in events), NDJSON)
        assert answer.status == 200
        return not first.exists()

    eventually(append)


def payment(number: int | str, **changed: Any) -> JSON:
    event = {"payment_id": f"p{number}", "card": "c1", "amount": "12.50", "paid_at": "2026-11-01T12:00:00Z"}
    return {**event, **changed}


def without_time(answer: JSON) -> JSON:
    return {name: value for name, value in answer.items() if name != "took_ms"}
