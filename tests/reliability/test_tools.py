"""The operators' tools on real directories: what is damaged is named, set aside and never dropped in silence."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path

import pytest

from processes import JSON, append_until_the_log_is_cut, fail, penstock, running, succeed
from reliability.ledger import Ledger
from reliability.load import Load

APP = Path(__file__).with_name("app.py")
SETTINGS = ("--segment-bytes", "16MiB", "--snapshot-every", "100ms")
COMMIT = b"pcmt"


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def frames(segment: Path) -> list[int]:
    """Where the commits of a segment begin, its catalog first."""
    content, places, place = segment.read_bytes(), [], 64
    while content[place : place + 4] == COMMIT:
        places.append(place)
        place += (52 + int.from_bytes(content[place + 8 : place + 12], "little") + 7) // 8 * 8
    return places


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A directory of a service that ended in order, and what it acknowledged."""
    data, ledger = tmp_path_factory.mktemp("sound") / "data", Ledger()
    load = Load(ledger, random.Random(1))
    for end in (400, 800):
        with running(data, *SETTINGS, app=APP) as service:
            asyncio.run(load.run(service.port, lambda end=end: ledger.acknowledged > end))  # type: ignore[misc]
            assert service.end() == 0
    return data, ledger


@pytest.fixture
def data(sound: tuple[Path, Ledger], tmp_path: Path) -> Path:
    shutil.copytree(sound[0], tmp_path / "data")
    return tmp_path / "data"


def verify(data: Path) -> tuple[int, JSON]:
    """The exit status of `log verify`, and its report."""
    done = penstock("log", "verify", "--data", data, "--json")
    assert "Traceback" not in done.stderr
    report: JSON = json.loads(done.stdout)
    return done.returncode, report


def test_a_sound_directory_is_sound_and_needs_no_repair(data: Path) -> None:
    status, report = verify(data)
    assert (status, report["sound"]) == (0, True)
    assert report["snapshots"] == {"files": 2, "damages": []}
    assert "nothing to repair" in succeed("log", "repair", "--data", data)
    assert not (data / "quarantine").exists()


def test_verify_names_what_is_damaged_of_snapshots(data: Path) -> None:
    _, newest = sorted((data / "snapshots").glob("*.snapshot"))
    flip(newest, newest.stat().st_size // 2)
    status, report = verify(data)
    assert (status, report["sound"], report["damages"]) == (1, False, [])
    (found,) = report["snapshots"]["damages"]
    assert found["file"] == f"snapshots/{newest.name}"
    done = penstock("snapshot", "verify", "--data", data)
    assert done.returncode == 1 and newest.name in done.stdout and "DAMAGED: 2 snapshots" in done.stdout


def test_snapshots_are_listed_and_dropped_where_nothing_runs(data: Path) -> None:
    older, newest = (int(path.stem, 16) for path in sorted((data / "snapshots").glob("*.snapshot")))

    def listed() -> list[int]:
        return [each["sequence"] for each in json.loads(succeed("snapshot", "list", "--data", data, "--json"))]

    assert listed() == [older, newest]
    (data / "snapshots" / "bad.snapshot").touch()
    assert listed() == [older, newest]
    assert f"{newest:,}" in succeed("snapshot", "list", "--data", data)
    with running(data, *SETTINGS, app=APP) as service:
        assert "in use by process" in fail("snapshot", "drop", newest, "--data", data)
        assert "in use by process" in fail("log", "repair", "--data", data)
        assert service.end() == 0
    newest = listed()[-1]
    succeed("snapshot", "drop", newest, "--data", data)
    missing = data.with_name("missing")
    assert "is not a data directory" in fail("snapshot", "drop", newest, "--data", missing) and not missing.exists()
    assert "there is no snapshot as of commit" in fail("snapshot", "drop", newest, "--data", data)
    assert newest not in listed()


def test_the_only_sound_snapshot_of_a_cut_log_is_not_dropped(tmp_path: Path) -> None:
    data, keep = tmp_path / "data", ("--snapshot-every", "200ms", "--retention", "1s", "--segment-bytes", "16MiB")
    with running(data, *keep) as service:
        append_until_the_log_is_cut(service, data)
        assert service.end() == 0
    *_, older, newest = sorted((data / "snapshots").glob("*.snapshot"))
    flip(older, older.stat().st_size // 2)
    sequence = int(newest.stem, 16)
    said = fail("snapshot", "drop", sequence, "--data", data)
    assert "no other snapshot is sound: without it the state is lost" in said
    assert newest.exists()
    flip(older, older.stat().st_size // 2)
    succeed("snapshot", "drop", sequence, "--data", data)
    assert not newest.exists()
    said = fail("snapshot", "drop", int(older.stem, 16), "--data", data)
    assert "no other snapshot is sound" in said and older.exists()


def test_repair_ends_the_log_before_the_damage_and_keeps_what_was_there(data: Path, sound: tuple[Path, Ledger]) -> None:
    (segment,) = (data / "log").glob("*.segment")
    places = frames(segment)
    place = places[len(places) // 2]
    # In the frame's header: an epoch's frame has little more.
    flip(segment, place + 20)
    original = segment.read_bytes()
    status, before = verify(data)
    assert status == 1 and [each["offset"] for each in before["damages"]] == [place]
    assert f"is damaged at byte {place}" in fail("run", APP, "--data", data, "--port", "0")

    # Acknowledged commits never leave the log without a word.
    refused = fail("log", "repair", "--data", data)
    assert f"is damaged at byte {place:,}" in refused and "--quarantine" in refused
    assert segment.read_bytes() == original and not (data / "quarantine").exists()

    report = json.loads(succeed("log", "repair", "--data", data, "--quarantine", "--json"))
    folder = data / report["quarantine"]
    assert (folder / segment.name).read_bytes() == original
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["last_sequence"]["after"] == len(places) // 2 < report["last_sequence"]["before"]
    status, after = verify(data)
    assert (status, after["rows"]) == (0, report["rows"]["after"])
    assert 0 < after["rows"]["payments"] < before["rows"]["payments"]

    kept, ledger = after["rows"]["payments"], sound[1]
    first, last = ledger.in_order()[0], ledger.in_order()[-1]
    with running(data, *SETTINGS, app=APP) as service:
        status_of = {id: service.call("GET", f"/v1/decisions/authorise/{id}").status for id in (first, last)}
        assert (status_of[first] if first in ledger.told else 200, status_of[last]) == (200, 404)
        answer = service.decide({**ledger.payments[last], "payment_id": "next"})
        assert answer["offset"] == kept
        assert service.end() == 0


def test_repair_refuses_where_nothing_could_stay(data: Path) -> None:
    (segment,) = (data / "log").glob("*.segment")
    flip(segment, 20)
    original = segment.read_bytes()
    assert "nothing of it could stay" in fail("log", "repair", "--data", data, "--quarantine")
    assert segment.read_bytes() == original
