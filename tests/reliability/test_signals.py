"""SIGTERM and SIGSTOP under load: an orderly end answers whom it took, and a stopped process keeps what is its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

from processes import DECIDE, FIRST, Answer, fail, patient_first, payment, running, succeed
from reliability.caller import Caller
from reliability.ledger import Ledger
from reliability.load import CONNECTIONS, Load

APP = Path(__file__).with_name("app.py")
SETTINGS = ("--segment-bytes", "16MiB", "--snapshot-every", "150ms")
STOPS = 5


def test_sigterm_under_load_cuts_nobody_off_whose_request_was_taken(tmp_path: Path) -> None:
    """A request that meets a connection's end on its way is not in the log: its caller may send it again."""
    data, ledger = tmp_path / "data", Ledger()
    load = Load(ledger, random.Random(1))

    async def stop_under_load(port: int, pid: int) -> float:
        working = asyncio.create_task(load.run(port, lambda: False))
        await asyncio.sleep(load.rng.uniform(0.1, 0.4))
        stopped_at = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        await working
        return stopped_at

    async def settle(port: int) -> None:
        caller = Caller(port)
        await ledger.settle(caller)
        await ledger.look_up(caller, ledger.check_order())
        await caller.close()

    for _ in range(STOPS):
        with running(data, *SETTINGS, app=APP) as service:
            asyncio.run(settle(service.port))
            stopped_at = asyncio.run(stop_under_load(service.port, service.process.pid))
            assert service.process.wait(60) == 0, service.log.read_text()
        assert load.refused == {}
        # Whoever was cut off had not begun to send when the end began, and is not in the log.
        cut_at, load.cut_at = load.cut_at, []
        assert len(cut_at) == CONNECTIONS and all(sent_at > stopped_at for sent_at in cut_at)
        assert topic_end(data) == ledger.acknowledged
    with running(data, *SETTINGS, app=APP) as service:
        asyncio.run(settle(service.port))
        assert service.end() == 0
    assert ledger.acknowledged > 100 * STOPS
    assert not ledger.findings.all()


def topic_end(data: Path) -> int:
    topics = json.loads(succeed("topics", "--data", data, "--json"))
    end: int = next(topic["next_offset"] for topic in topics if topic["name"] == "payments")
    return end


def test_a_stopped_process_keeps_its_lock_and_goes_on_where_it_was(tmp_path: Path) -> None:
    data, app = tmp_path / "data", patient_first(tmp_path)
    with running(data, app=app) as service:
        assert service.decide(payment(1))["offset"] == 0
        pid = service.process.pid
        service.process.send_signal(signal.SIGSTOP)
        wait_until_stopped(pid)
        answers: list[Answer] = []
        waiting = threading.Thread(
            target=lambda: answers.append(service.call("POST", DECIDE, json.dumps(payment(2)).encode()))
        )
        waiting.start()
        refused = fail("run", app, "--data", data, "--port", "0")
        assert f"the data directory is in use by process {pid}, which is stopped" in refused
        assert f"kill -CONT {pid}" in refused
        service.process.send_signal(signal.SIGCONT)
        waiting.join()
        # `within` counts from when the door holds the request: its time in the socket is nobody's to know.
        assert answers[0].json()["offset"] == 1
        assert service.decide(payment(3))["offset"] == 2
        assert service.end() == 0


def test_what_a_stopped_process_held_is_told_the_fallback_when_it_goes_on(tmp_path: Path) -> None:
    """Requests that were held when it was stopped are overdue when it goes on, and their callers hear so at once."""
    data = tmp_path / "data"
    (tmp_path / "first.toml").write_text(FIRST.with_suffix(".toml").read_text())
    app = tmp_path / "app.py"
    app.write_text(SLOW)
    with running(data, app=app) as service:
        answers: list[Answer] = []
        held = threading.Thread(
            target=lambda: answers.append(service.call("POST", DECIDE, json.dumps(payment(1)).encode()))
        )
        held.start()
        while service.metric("door_waiting") != 1:
            assert held.is_alive()
        service.process.send_signal(signal.SIGSTOP)
        wait_until_stopped(service.process.pid)
        time.sleep(1.2)  # longer than `within`
        service.process.send_signal(signal.SIGCONT)
        held.join()
        told = answers[0].json()
        assert (told["outcome"], told["timed_out"], told["cause"]) == ("review", True, "deadline")
        assert service.call("GET", "/healthz").status == 200
        service.end(signal.SIGKILL)


SLOW = FIRST.read_text().replace(
    'pipeline.policy("authorise", scored, rules="first.toml", within="50ms", fallback="approve")',
    """
@pipeline.model(version="1")
def slow(batch):
    import time

    if (batch["amount"] > 0).any():  # the warm-up's is zero
        time.sleep(1000)
    return batch["amount"]


pipeline.policy("authorise", scored, rules="first.toml", score=slow, within="1s", fallback="review")
""",
)


def wait_until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
