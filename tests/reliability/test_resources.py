"""Memory and files that run out: the process ends or goes on, says so, and owes nobody what it acknowledged."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from processes import DECIDE, EVENTS, JSON, NDJSON, eventually, lacking, patient_first, payment, running, succeed
from reliability.caller import Caller, NoAnswer
from reliability.ledger import Ledger
from reliability.load import Load

APP = Path(__file__).with_name("app.py")
SETTINGS = ("--segment-bytes", "16MiB", "--snapshot-every", "150ms")
MEMORY_LEFT = 48 << 20
CARDS_MAX = 1_000_000


async def settle(ledger: Ledger, port: int) -> None:
    caller = Caller(port)
    await ledger.settle(caller)
    await ledger.retry(caller, ledger.check_order())
    await caller.close()


@contextmanager
def memory_group(pid: int, left: int) -> Iterator[None]:
    """Let a process have so much more memory than it holds, and be ended by the kernel beyond it."""
    root = Path("/sys/fs/cgroup")
    folder, limit = (
        (root / "memory" / f"penstock-{pid}", "memory.limit_in_bytes")
        if (root / "memory").is_dir()
        else (root / f"penstock-{pid}", "memory.max")
    )
    held = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    try:
        folder.mkdir()
        (folder / limit).write_text(str(held + left))
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        lacking(f"no memory group can be made here: {error.strerror}")
    try:
        yield
    finally:
        folder.rmdir()


def test_a_process_without_memory_ends_and_the_next_one_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    data, ledger = tmp_path / "data", Ledger()
    load = Load(ledger, random.Random(1))

    async def fill_up(port: int) -> None:
        """New cards, until there is no memory for their state."""
        with pytest.raises(NoAnswer):
            await load.fill(port, CARDS_MAX)

    with running(data, *SETTINGS, app=APP) as service:
        asyncio.run(load.run(service.port, lambda: ledger.acknowledged > 1_000))
        with memory_group(service.process.pid, MEMORY_LEFT):
            asyncio.run(fill_up(service.port))
            assert service.process.wait(60) == -signal.SIGKILL
    with running(data, *SETTINGS, app=APP) as service:
        asyncio.run(settle(ledger, service.port))
        assert service.end() == 0
    assert ledger.acknowledged > 20_000
    assert not ledger.findings.all()


def test_without_files_it_goes_on_for_those_it_knows_and_takes_others_when_it_can(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data) as service:
        known = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)

        def decide(number: int) -> int:
            known.request("POST", DECIDE, json.dumps(payment(number)))
            offset: int = json.loads(known.getresponse().read())["offset"]
            return offset

        assert decide(0) == 0
        pid = service.process.pid
        allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(int(each) for each in os.listdir(f"/proc/{pid}/fd")) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, allowed[1]))
        with pytest.raises((OSError, http.client.HTTPException)):
            service.call("GET", "/healthz")
        assert [decide(number) for number in range(1, 50)] == list(range(1, 50))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
        assert service.call("GET", "/readyz").status == 200
        assert service.decide(payment(50))["offset"] == 50
        known.close()
        assert service.end() == 0


def test_without_files_for_the_log_nothing_is_taken_that_is_not_kept_until_there_are_some(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data, "--segment-bytes", "16MiB", app=patient_first(tmp_path)) as service, ExitStack() as stack:
        known = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)

        def call(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, JSON]:
            known.request(method, path, body, {"Content-Type": kind})
            response = known.getresponse()
            return response.status, json.loads(response.read())

        def append(start: int) -> tuple[int, JSON]:
            # What no compression makes small.
            events = (payment(start + each, card=random.randbytes(600).hex()) for each in range(3_000))
            return call("POST", EVENTS, b"\n".join(json.dumps(event).encode() for event in events), NDJSON)

        # No number is free below the greatest of its open files.
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=60))
        assert append(0)[1]["accepted"] == 3_000
        pid = service.process.pid
        allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(int(each) for each in os.listdir(f"/proc/{pid}/fd")) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, allowed[1]))
        taken, full = 3_000, None
        for start in range(3_000, 60_000, 3_000):
            status, answer = append(start)
            taken += answer.get("accepted", 0)
            if status != 200:
                full = answer["error"]
                break
        assert full is not None and full["code"] == "disk_full"
        assert "could not allocate log/spare: Too many open files" in full["message"]
        status, told = call("GET", "/readyz")
        assert status == 503 and "Too many open files" in str(told)
        assert call("GET", "/healthz")[0] == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
        eventually(lambda: call("GET", "/readyz")[0] == 200)
        assert append(60_000)[1]["accepted"] == 3_000
        known.close()
        assert service.end() == 0
    report = json.loads(succeed("log", "verify", "--data", data, "--json"))
    assert report["sound"] and report["rows"]["payments"] == taken + 3_000


def test_a_process_that_may_open_few_files_says_how_many_connections_it_takes(tmp_path: Path) -> None:
    most = 200

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    with running(tmp_path / "data", setup=few_files) as service:
        assert f"at most {most // 2} connections: the process may open {most} files" in service.log.read_text()
        crowd = [socket.create_connection(("127.0.0.1", service.port), timeout=60) for _ in range(most // 2)]
        # Those beyond are told so, rather than left without an answer.
        beyond = service.call("GET", "/healthz")
        assert (beyond.status, beyond.code) == (429, "too_many_connections")
        for each in crowd:
            each.close()
        while service.call("GET", "/healthz").status != 200:
            assert service.process.poll() is None
        assert service.decide(payment(1))["offset"] == 0
        assert service.end() == 0
