"""A disk that fails calls with EIO while a service runs on it: a real file system, which does as a test says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from processes import (
    DECIDE,
    JSON,
    PATIENCE_S,
    ROOT,
    append_until_the_log_is_cut,
    eventually,
    fail,
    lacking,
    patient_first,
    payment,
    penstock,
    running,
    succeed,
    without_time,
)

SETTINGS = ("--segment-bytes", "16MiB", "--snapshot-every", "1h")


@dataclass
class Disk:
    folder: Path
    data: Path
    faults: Path

    def fail(self, call: str, paths: str) -> None:
        (self.faults / call).write_text(paths)

    def heal(self) -> None:
        for fault in self.faults.iterdir():
            fault.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    source, folder, faults = (tmp_path / name for name in ("source", "mounted", "faults"))
    for each in (source, folder, faults):
        each.mkdir()
    said = tmp_path / "passthrough.stderr"
    command = [sys.executable, str(ROOT / "tests" / "passthrough.py"), str(source), str(folder), str(faults)]
    with said.open("w") as log:
        server = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        eventually(lambda: folder.is_mount() or server.poll() is not None)
        if server.poll() is not None:
            lacking(f"no file system of one's own can be mounted here (FUSE): {said.read_text()[-300:]}")
        yield Disk(folder, folder / "data", faults)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
        server.kill()
        server.wait(PATIENCE_S)


def test_what_cannot_be_read_is_said_to_who_asks_for_it_and_to_nobody_else(tmp_path: Path, disk: Disk) -> None:
    with running(disk.data, *SETTINGS, app=patient_first(tmp_path)) as service:
        told = without_time(service.decide(payment(1)))
        disk.fail("read", ".segment")
        for answer in (
            service.call("POST", DECIDE, body(payment(1))),
            service.call("GET", "/v1/decisions/authorise/p1"),
        ):
            assert (answer.status, answer.code) == (500, "log_damaged")
            message = answer.json()["error"]["message"]
            assert re.search(r"could not read log/\w+\.segment at byte \d+: Input/output error", message)
            assert "what was written there cannot be told, all else goes on: see to the disk, and ask again" in message
        # New events ask nothing of the log.
        assert service.decide(payment(2))["features"]["card_count_1h"] == 2
        assert service.call("GET", "/readyz").status == 200
        disk.heal()
        assert without_time(service.decide(payment(1))) == told
        assert service.end() == 0


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failed_write_or_sync_ends_the_service_and_costs_nothing_acknowledged(
    tmp_path: Path, disk: Disk, call: str
) -> None:
    app, told = patient_first(tmp_path), []
    with running(disk.data, *SETTINGS, app=app) as service:
        told = [without_time(service.decide(payment(number))) for number in range(20)]
        disk.fail(call, ".segment")
        refused = service.call("POST", DECIDE, body(payment(20)))
        assert (refused.status, refused.code) == (503, "core_failed")
        assert service.process.wait(PATIENCE_S) == 1
        assert "Input/output error" in service.log.read_text()
    disk.heal()
    with running(disk.data, *SETTINGS, app=app) as service:
        for number, first in enumerate(told):
            assert without_time(service.decide(payment(number))) == first
        # What was refused may be in the log, and then has its decision; or this is its first attempt.
        assert service.decide(payment(20))["features"]["card_count_1h"] == 21
        assert service.end() == 0
    lines = succeed("tail", "payments", "--data", disk.data, "-n", 100).splitlines()
    assert [json.loads(line)["payment_id"] for line in lines] == [f"p{number}" for number in range(21)]


def test_a_start_that_cannot_read_the_log_says_where_and_one_that_can_goes_on(tmp_path: Path, disk: Disk) -> None:
    app = patient_first(tmp_path)
    with running(disk.data, *SETTINGS, app=app) as service:
        told = without_time(service.decide(payment(1)))
        service.end()
    disk.fail("read", ".segment")
    said = fail("run", app, "--data", disk.data, "--port", "0")
    assert ".segment" in said and "Input/output error" in said
    verified = penstock("log", "verify", "--data", disk.data)
    assert verified.returncode == 1
    assert ".segment" in verified.stdout and "Input/output error" in verified.stdout
    disk.heal()
    with running(disk.data, *SETTINGS, app=app) as service:
        assert without_time(service.decide(payment(1))) == told


def test_a_snapshot_that_cannot_be_read_is_passed_over(tmp_path: Path, disk: Disk) -> None:
    app = patient_first(tmp_path)
    with running(disk.data, "--snapshot-every", "1s", app=app) as service:
        told = without_time(service.decide(payment(1)))
        eventually(lambda: any((disk.data / "snapshots").glob("*.snapshot")))
        service.end()
    disk.fail("read", ".snapshot")
    with running(disk.data, *SETTINGS, app=app) as service:
        assert without_time(service.decide(payment(1))) == told
        assert service.decide(payment(2))["features"]["card_count_1h"] == 2
        log = service.log.read_text()
        assert ".snapshot" in log and "Input/output error" in log
    for command in ("log", "snapshot"):
        verified = penstock(command, "verify", "--data", disk.data)
        assert verified.returncode == 1
        assert re.search(r"could not read snapshots/\w+\.snapshot.*: Input/output error", verified.stdout)
    disk.heal()
    succeed("log", "verify", "--data", disk.data)


def test_a_snapshot_that_cannot_be_read_ends_a_start_where_the_log_is_cut(tmp_path: Path, disk: Disk) -> None:
    """Nothing could make the state again; another start may read it."""
    app, keep = patient_first(tmp_path), ("--snapshot-every", "1s", "--retention", "1s", "--segment-bytes", "16MiB")
    with running(disk.data, *keep, app=app) as service:
        append_until_the_log_is_cut(service, disk.data)
        service.end()
    disk.fail("read", ".snapshot")
    said = fail("run", app, "--data", disk.data, "--port", "0")
    assert "no snapshot can be read, and the log's beginning is gone" in said and "Input/output error" in said
    disk.heal()
    with running(disk.data, *keep, app=app) as service:
        assert ".snapshot" not in service.log.read_text()


def body(event: JSON) -> bytes:
    return json.dumps(event).encode()
