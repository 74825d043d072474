"""Bytes of a real directory changed one by one: harmless, or refused where they are met; never 404, never less.

The core's own tests go through every byte of small logs (`native/tests/log/faults.rs`); here the files are those of a
service, and what is asked is what its callers would.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import select
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock import _native
from penstock.errors import DamagedError
from penstock.runtime.app import load_app
from penstock.runtime.gate import DECIDE, LOOKUP
from penstock.runtime.plan import compile_plan
from processes import DECIDE as DECIDE_URL
from processes import JSON, Answer, Service, running, succeed, without_time
from reliability.ledger import Ledger
from reliability.load import Load
from reliability.test_tools import APP, SETTINGS, flip, frames

GATE = {
    "state_bytes": 1 << 30,
    "commit_bytes": 512 << 10,
    "segment_bytes": 16 << 20,
    "retention_us": None,
    "retention_bytes": None,
    "threads": 1,
    "memory_ids": 1_000_000,
}
PLACES = 40


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A directory as a killed service left it, with two snapshots, and what was acknowledged."""
    data, ledger = tmp_path_factory.mktemp("killed") / "data", Ledger()
    load = Load(ledger, random.Random(1))
    for end in (60, 120, 150):
        with running(data, *SETTINGS, app=APP) as service:
            asyncio.run(load.run(service.port, lambda end=end: ledger.acknowledged > end))  # type: ignore[misc]
            if end < 150:
                assert service.end() == 0
            else:
                service.end(signal.SIGKILL)
    assert len(list((data / "snapshots").glob("*.snapshot"))) == 2
    return data, ledger


@pytest.fixture
def data(killed: tuple[Path, Ledger], tmp_path: Path) -> Path:
    shutil.copytree(killed[0], tmp_path / "data")
    return tmp_path / "data"


PLAN = compile_plan(load_app(APP)).to_json()


@contextmanager
def changed(data: Path) -> Iterator[None]:
    """The directory is as it was afterwards: what is tried out writes to it."""
    whole = data.with_name("whole")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(data, whole)
    yield
    shutil.rmtree(data)
    whole.rename(data)


def look_up(gate: _native.Gate, ids: list[str]) -> list[tuple[int, JSON]]:
    """What GET says of each of these."""
    return ask(gate, LOOKUP, [id.encode() for id in ids])


def ask(gate: _native.Gate, kind: int, bodies: list[bytes]) -> list[tuple[int, JSON]]:
    """Status and answer of each, of a gate that is then stopped."""
    ready = gate.start()
    gate.submit([(number, kind, 0, body, 0) for number, body in enumerate(bodies, 1)])
    answers: dict[int, tuple[int, JSON]] = {}
    while len(answers) < len(bodies):
        select.select([ready], [], [], 30)
        answers.update((handle, (status, json.loads(body))) for handle, status, body, _ in gate.take())
    gate.stop()
    return [answers[number] for number in range(1, len(bodies) + 1)]


def judge(data: Path, ledger: Ledger) -> str:
    """What a start and all callers make of it: "harmless" or "refused", with the place."""
    ids = list(ledger.told)
    try:
        gate = _native.Gate(PLAN, str(data), json.dumps(GATE))
    except DamagedError as error:
        assert re.search(r"^\S+ is damaged at byte \d+: ", error.message), error.message
        assert error.hint
        return "refused"
    verdict = "harmless"
    for id, (status, answer) in zip(ids, look_up(gate, ids), strict=True):
        if status == 500:
            assert answer["error"]["code"] == "log_damaged" and "is damaged at byte" in answer["error"]["message"]
            verdict = "refused"
            continue
        assert answer.pop("late_decision", None) is None
        assert (status, answer) == (200, ledger.told[id]), (id, status)
    return verdict


def places_of(data: Path, name: str) -> tuple[Path, list[int]]:
    """A file of this class and the bytes of it that the class has, or a sample of them."""
    (segment,) = (data / "log").glob("*.segment")
    starts = frames(segment)
    middle, last = starts[len(starts) // 2], starts[-1]
    payload_bytes = int.from_bytes(segment.read_bytes()[middle + 8 : middle + 12], "little")
    newest = sorted((data / "snapshots").glob("*.snapshot"))[-1]
    file, span = {
        "segment header": (segment, range(56)),
        "catalog": (segment, range(64, starts[1])),
        "frame header": (segment, range(middle, middle + 52)),
        "payload": (segment, range(middle + 52, middle + 52 + payload_bytes)),
        "last frame header": (segment, range(last, last + 52)),
        "durable slots": (data / "log" / "durable", [*range(28), *range(4096, 4124)]),
        "snapshot": (newest, range(newest.stat().st_size)),
    }[name]
    return file, sorted(random.Random(1).sample(list(span), min(PLACES, len(span))))


REFUSED = {"segment header", "catalog", "frame header", "payload", "last frame header"}
HARMLESS = {"durable slots", "snapshot"}


@pytest.mark.parametrize("name", sorted(REFUSED | HARMLESS))
def test_a_flipped_byte_is_harmless_or_refused_where_it_is_met(
    data: Path, killed: tuple[Path, Ledger], name: str
) -> None:
    file, places = places_of(data, name)
    for place in places:
        with changed(data):
            flip(file, place)
            verdict = judge(data, killed[1])
        assert verdict == ("refused" if name in REFUSED else "harmless"), (name, place)


def test_a_flipped_byte_of_the_ids_costs_who_asks_for_them_an_answer_and_nobody_else_anything(
    data: Path, killed: tuple[Path, Ledger]
) -> None:
    """A retry is told the same, or that it cannot be known, and where; the next start has all of them again."""
    ledger, settings = killed[1], json.dumps({**GATE, "memory_ids": 16})
    payments = [ledger.payments[id] for id in ledger.told]
    bodies = [json.dumps(payment).encode() for payment in payments]
    new = json.dumps({**payments[0], "payment_id": "new"}).encode()

    def retried(*more: bytes) -> list[tuple[int, JSON]]:
        answers = ask(_native.Gate(PLAN, str(data), settings), DECIDE, [*bodies, *more])
        return [(status, {name: answer[name] for name in answer if name != "took_ms"}) for status, answer in answers]

    told = [(200, answer) for answer in ledger.told.values()]
    assert retried() == told
    file = max((data / "ids").glob("*.ids"), key=lambda path: path.stat().st_size)
    refused = 0
    for place in random.Random(1).sample(range(file.stat().st_size), PLACES):
        with changed(data):
            flip(file, place)
            *again, decided = retried(new)
            for answer, first in zip(again, told, strict=True):
                if answer != first:
                    assert (answer[0], answer[1]["error"]["code"]) == (500, "log_damaged")
                    assert f"ids/{file.name} is damaged at byte" in answer[1]["error"]["message"]
                    refused += 1
            assert decided[0] == 200
            assert retried() == told
    assert refused


def test_ids_that_are_damaged_under_a_running_service_are_refused_with_the_place_and_all_else_goes_on(
    data: Path, killed: tuple[Path, Ledger]
) -> None:
    # So few files that the service merges none of them.
    ledger, settings = killed[1], json.dumps({**GATE, "memory_ids": 64})
    look_up(_native.Gate(PLAN, str(data), settings), ["makes files of ids"])

    def retry(service: Service, id: str) -> Answer:
        return service.call("POST", DECIDE_URL, json.dumps(ledger.payments[id]).encode())

    with running(data, *SETTINGS, app=APP) as service:
        file = max((data / "ids").glob("*.ids"), key=lambda path: path.stat().st_size)
        with file.open("r+b") as changed:
            changed.write(bytes(file.stat().st_size))
        refused = 0
        for id, first in ledger.told.items():
            answer = retry(service, id)
            if answer.status == 200:
                assert without_time(answer.json()) == first
                continue
            assert (answer.status, answer.code) == (500, "log_damaged")
            assert f"ids/{file.name} is damaged at byte" in answer.json()["error"]["message"]
            assert "the next start makes the files of ids again" in answer.json()["error"]["message"]
            assert service.call("GET", f"/v1/decisions/authorise/{id}").status == 500
            refused += 1
        assert refused
        (warning,) = service.call("GET", "/readyz").json()["warnings"]
        assert f"until the next start makes their files again: ids/{file.name} is damaged at byte" in warning
        assert service.decide({**next(iter(ledger.payments.values())), "payment_id": "next"})["id"] == "next"
        assert service.end() == 0
    with running(data, *SETTINGS, app=APP) as service:
        assert all(without_time(retry(service, id).json()) == first for id, first in ledger.told.items())
        assert service.call("GET", "/readyz").json()["warnings"] == []
        service.end()
    assert "sound" in succeed("log", "verify", "--data", data)


def test_a_log_that_ends_anywhere_in_its_last_acknowledged_commit_is_refused(
    data: Path, killed: tuple[Path, Ledger]
) -> None:
    (segment,) = (data / "log").glob("*.segment")
    content, start = segment.read_bytes(), frames(segment)[-1]
    end = start + (52 + int.from_bytes(content[start + 8 : start + 12], "little"))
    for place in range(start, end, max((end - start) // PLACES, 1)):
        for rest in (b"", bytes(len(content) - place)):
            with changed(data):
                segment.write_bytes(content[:place] + rest)
                verdict = judge(data, killed[1])
                # A commit may end with zeros, and is the same commit without them.
                assert verdict == "refused" or not any(content[place:end]), place


def test_what_is_damaged_under_a_running_service_is_500_with_the_place_and_costs_nobody_else(
    tmp_path: Path,
) -> None:
    data, ledger = tmp_path / "data", Ledger()
    load = Load(ledger, random.Random(1))
    with running(data, *SETTINGS, app=APP) as service:
        asyncio.run(load.run(service.port, lambda: ledger.acknowledged > 300))
        first = next(iter(ledger.told))
        (segment,) = (data / "log").glob("*.segment")
        place = segment.read_bytes().index(first.encode())
        with segment.open("r+b") as file:
            file.seek(place)
            file.write(b"\xff")
        found = service.call("GET", f"/v1/decisions/authorise/{first}")
        again = service.call("POST", "/v1/policies/authorise/decide", json.dumps(ledger.payments[first]).encode())
        for answer in (found, again):
            assert (answer.status, answer.code) == (500, "log_damaged")
            assert f"log/{segment.name} is damaged at byte" in answer.json()["error"]["message"]
            assert "penstock log verify" in answer.json()["error"]["message"]
        last = next(reversed(ledger.told))
        assert service.call("GET", f"/v1/decisions/authorise/{last}").status == 200
        assert service.decide({**ledger.payments[last], "payment_id": "next"})["id"] == "next"
        service.end(signal.SIGKILL)
