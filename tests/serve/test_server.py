"""The life of the doors: where they listen, how they end, and what a lost core does."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import LogError, PenstockError, SettingsError
from penstock.serve.server import OTHER_FILES, allow_connections
from penstock.serve.settings import Doors, DoorSettings, PolicyDoor, check_address
from serve.client import DECIDE, PATIENCE_S, Client, eventually, get, post, running
from serve.stand_in import StandIn


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_the_door_may_listen_where_only_this_machine_calls(host: str) -> None:
    check_address(DoorSettings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "192.168.1.1", "8.8.8.8"])
def test_any_other_address_is_refused_before_anything_starts(core: StandIn, host: str) -> None:
    with pytest.raises(AssertionError) as raised, running(core, host=host):
        pass
    cause = raised.value.__cause__
    assert isinstance(cause, SettingsError)
    message = f"cannot listen on {host}, where others can call, without tokens and tls_certificate and tls_key"
    assert cause.message == message
    assert not core.started


FILES: dict[str, Any] = {name: Path(name) for name in ("tokens", "tls_certificate", "tls_key")}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_beyond_loopback_tokens_and_tls_are_both_needed(host: str) -> None:
    check_address(DoorSettings(host=host, **FILES))
    with pytest.raises(SettingsError, match="without tokens\n"):
        check_address(DoorSettings(host=host, **{**FILES, "tokens": None}))
    with pytest.raises(SettingsError, match="without tls_certificate and tls_key\n"):
        check_address(DoorSettings(host=host, tokens=Path("tokens")))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
def test_a_certificate_without_its_key_is_refused_and_the_other_way_round(host: str, missing: str) -> None:
    with pytest.raises(SettingsError, match=f"^{missing} is not set"):
        check_address(DoorSettings(host=host, **{**FILES, missing: None}))


def test_a_name_that_is_no_address_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on no\.such\.invalid"):
        check_address(DoorSettings(host="no.such.invalid"))


def test_a_port_in_use_is_refused_before_the_core_starts(core: StandIn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(AssertionError) as raised,
            running(core, doors=Doors(), port=port),
        ):
            pass
    assert isinstance(raised.value.__cause__, SettingsError)
    assert str(raised.value.__cause__).startswith(f"port {port} of 127.0.0.1 is in use")


@pytest.mark.parametrize("wrong", [{"queue_max": 0}, {"request_s": -1.0}, {"port": 70_000}, {"model_batch_s": 0.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        DoorSettings(**wrong)  # type: ignore[arg-type]


def test_connections_leave_files_for_the_log() -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, allowed[1]))
        assert allow_connections(100) == 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 100 + OTHER_FILES
        assert 0 < allow_connections(1 << 40) < 1 << 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


def test_stopping_answers_what_is_held_and_ends(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core) as door:
        waiting = [door.client() for _ in range(5)]
        for client in waiting:
            client.send(post(DECIDE, b"1") + post(DECIDE, b"2"))
        idle = door.client()
        assert idle.ask(get("/healthz")).status == 200
        arriving = door.client()
        arriving.send(post(DECIDE, b"", length=3))
        eventually(lambda: len(core.requests) == 10)
        door.stop()
        assert idle.ended()
        eventually(lambda: refuses_connections(door.port))
        core.script = lambda request: (200, request[3], 0)
        core.say(*((request[0], 200, request[3], 0) for request in list(core.requests)))
        for client in waiting:
            assert client.answer().body == b"1"
            last = client.answer()
            assert (last.body, last.headers["connection"]) == (b"2", "close")
            assert client.ended()
        assert arriving.ask(b"abc").body == b"abc"
        assert arriving.ended()
    assert core.stopped


def refuses_connections(port: int) -> bool:
    try:
        Client(port).close()
    except ConnectionRefusedError:
        return True
    return False


def test_stopping_does_not_wait_for_ever_for_a_core_that_says_nothing(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, drain_s=0.2) as door:
        client = door.client()
        client.send(post(DECIDE))
        eventually(lambda: len(core.requests) == 1)
        door.stop()
        answer = client.answer()
        assert (answer.status, answer.code) == (503, "core_failed")
    assert core.stopped


def test_what_the_core_answers_while_it_stops_is_delivered(core: StandIn) -> None:
    core.stuck.set()
    with running(core, drain_s=0.1) as door:
        client = door.client()
        client.send(post(DECIDE, b"late"))
        eventually(lambda: b"door_waiting 1\n" in door.ask(get("/metrics")).body)
        door.stop()
        threading.Timer(0.5, core.stuck.clear).start()
        assert client.answer().json[2] == "late"


def test_a_core_that_does_not_stop_is_left_with_an_error(core: StandIn) -> None:
    core.stuck.set()
    with running(core, drain_s=0.1, stop_s=0.2, fails=True) as door:
        client = door.client()
        client.send(post(DECIDE))
        eventually(lambda: b"door_waiting 1\n" in door.ask(get("/metrics")).body)
    assert isinstance(door.errors[0], PenstockError)
    assert "did not stop within 0.2 s" in str(door.errors[0])


@pytest.mark.parametrize("method", ["submit", "take"])
def test_a_core_that_fails_ends_the_doors_with_its_error(core: StandIn, method: str) -> None:
    with running(core, fails=True) as door:
        client = door.client()
        assert client.ask(post(DECIDE)).status == 200
        core.fails = method
        answer = client.ask(post(DECIDE))
        assert (answer.status, answer.code) == (503, "core_failed")
        eventually(lambda: refuses_connections(door.port))
    assert isinstance(door.errors[0], OSError)


def test_a_core_that_does_not_start_is_the_doors_error(core: StandIn) -> None:
    core.fails = "start"
    with pytest.raises(AssertionError) as raised, running(core):
        pass
    assert isinstance(raised.value.__cause__, OSError)


def test_a_core_that_fails_while_it_stops_leaves_nobody_without_an_answer(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, drain_s=0.1, fails=True) as door:
        client = door.client()
        client.send(post(DECIDE))
        eventually(lambda: len(core.requests) == 1)
        core.fails = "stop"
        door.stop()
        assert client.answer().code == "core_failed"
    assert isinstance(door.errors[0], OSError)


def test_a_core_that_says_it_has_failed_ends_the_doors(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, fails=True) as door:
        client = door.client()
        client.send(post(DECIDE))
        eventually(lambda: len(core.requests) == 1)
        core.failed = "the disk failed to sync"
        core.say()
        assert client.answer().status == 503
        eventually(lambda: bool(door.errors))
    assert isinstance(door.errors[0], LogError)
    assert str(door.errors[0]) == "the disk failed to sync"


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
from penstock.runtime.snapshots import Snapshots
from penstock.serve.server import Steps, run
from penstock.serve.settings import Doors, DoorSettings, PolicyDoor
from serve.stand_in import StandIn

import time
def slowly(request):
    time.sleep(0.3)
    return 200, request[3], 0

def listening(host, port):
    print(port, flush=True)

core = StandIn(slowly)
doors = Doors(policies=(PolicyDoor("authorise", 0, within_s=30.0),))
run(core, doors, DoorSettings(port=0), snapshots=Snapshots(30.0), steps=Steps(listening))
print("ended in order" if core.stopped else "core left", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order(root: Path, number: int) -> None:
    folders = [str(root / "src"), str(root / "tests")]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *folders], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        client = Client(int(process.stdout.readline()))
        client.send(post(DECIDE, b"held"))
        time.sleep(0.1)
        os.kill(process.pid, number)
        assert client.answer().body == b"held"
        client.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == "ended in order\n"


@pytest.mark.parametrize("path", ["policies/{}/decide", "policies/{}/decide?dry_run=1"])
def test_a_policy_is_found_by_its_name_and_asked_for_by_the_plan_s_index(core: StandIn, path: str) -> None:
    doors = Doors(policies=(PolicyDoor("a", 5, 1.0), PolicyDoor("b", 3, 1.0), PolicyDoor("c", 5, 1.0)))
    with running(core, doors=doors) as door:
        asked = [door.ask(post(f"/v1/{path.format(name)}", b"x")).json for name in "abc"]
    assert [target for _, target, _ in asked] == [5, 3, 5]
