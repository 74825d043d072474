"""A copied data directory is a log of its own: both may run, and nothing of the one is ever taken for the other's."""

from __future__ import annotations

import json
import os
import select
import shutil
import time
from pathlib import Path

import pytest

from penstock import _native
from penstock.errors import DamagedError
from penstock.runtime.app import load_app
from penstock.runtime.gate import DECIDE
from penstock.runtime.plan import compile_plan
from processes import FIRST, fail, patient_first, payment, penstock, running
from reliability.test_damage import GATE

APP = ("--segment-bytes", "16MiB")


def fork(tmp_path: Path) -> tuple[Path, Path]:
    """A directory and its copy, each with decisions that the other does not know, made by services that ran at once."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    with running(data, *APP) as service:
        service.decide(payment(1))
        assert service.end() == 0
    shutil.copytree(data, copy)
    with running(data, *APP) as one, running(copy, *APP) as other:
        for number in range(2, 30):
            assert one.decide(payment(number))["features"]["card_count_1h"] == number
        for number in range(102, 112):
            assert other.decide(payment(number))["features"]["card_count_1h"] == number - 100
        assert one.call("GET", "/v1/decisions/authorise/p102").status == 404
        assert (one.end(), other.end()) == (0, 0)
    return data, copy


def test_a_copy_and_its_original_run_apart(tmp_path: Path) -> None:
    data, copy = fork(tmp_path)
    with running(data, *APP) as one, running(copy, *APP) as other:
        assert one.decide(payment(200))["offset"] == 29
        assert other.decide(payment(200))["offset"] == 11


@pytest.mark.parametrize("file", ["segment", "durable"])
def test_a_log_with_a_file_of_its_copy_is_refused(tmp_path: Path, file: str) -> None:
    """Each run begins an epoch that its frames carry and chain on: the files of two runs do not fit together."""
    data, copy = fork(tmp_path)
    (own,) = (data / "log").glob(f"*{file}")
    shutil.copy(own, copy / "log" / own.name)
    shutil.copytree(data / "snapshots", copy / "snapshots", dirs_exist_ok=True)
    if file == "segment":
        # Whole and newer: this is the original's log, whatever else the copy has. Its own end is what is missing.
        (copy / "log" / "durable").unlink()
        with running(copy, *APP) as service:
            assert service.decide(payment(300))["offset"] == 29
            assert service.call("GET", "/v1/decisions/authorise/p102").status == 404
        return
    refused = fail("run", patient_first(tmp_path), "--data", copy, "--port", "0")
    assert "is damaged at byte" in refused and "was durable" in refused


@pytest.mark.parametrize("witness", ["snapshots", "ids"])
@pytest.mark.parametrize("log", ["older", "empty"])
def test_an_older_log_than_what_was_made_of_it_is_refused_however_often(tmp_path: Path, witness: str, log: str) -> None:
    """Whoever brings back one folder from an older copy would lose what was acknowledged since, and not be told."""
    data, old = tmp_path / "data", tmp_path / "old"
    decide(data, range(1, 5))
    shutil.copytree(data / "log", old)
    decide(data, range(5, 40))
    with running(data, *APP, "--snapshot-every", "100ms") as service:
        service.decide(payment(40))
        while not any((data / "snapshots").glob("*.snapshot")):
            time.sleep(0.05)
        assert service.end() == 0
    other = {"snapshots", "ids"} - {witness}
    for folder in ("log", *other):
        shutil.rmtree(data / folder)
    if log == "older":
        shutil.copytree(old, data / "log")
    else:
        (data / "log").mkdir()
    assert list((data / witness).iterdir())
    before = contents(data)
    for _ in range(2):
        refused = fail("run", patient_first(tmp_path), "--data", data, "--port", "0")
        assert "was durable, as" in refused and f"{witness}/" in refused
        assert "bring back the whole directory" in refused
    with pytest.raises(DamagedError, match="was durable, as"):
        _native.commit_position(str(data), "lake", "payments", 1, 0)
    assert "was durable, as" in fail("backup", tmp_path / "backup", "--data", data)
    verified = json.loads(penstock("log", "verify", "--json", "--data", data).stdout)
    assert not verified["sound"]
    assert "was durable, as" in verified["damages"][0]["what"]
    assert contents(data) == before


def contents(data: Path) -> dict[str, bytes]:
    """Of all files but the locks, which name the process that held them last."""
    files = (path for path in data.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(data)): path.read_bytes() for path in files}


def decide(data: Path, numbers: range) -> None:
    """Decide with so few ids in memory that most are in files."""
    settings = {**GATE, "memory_ids": 4}
    plan = compile_plan(load_app(FIRST)).to_json()
    data.mkdir(exist_ok=True)
    gate = _native.Gate(plan, str(data), json.dumps(settings))
    ready = gate.start()
    for number in numbers:
        gate.submit([(number, DECIDE, 0, json.dumps(payment(number)).encode(), 0)])
        while not (answers := gate.take()):
            select.select([ready], [], [], 30)
            os.eventfd_read(ready)
        assert [(handle, status) for handle, status, _, _ in answers] == [(number, 200)]
    gate.stop()
