"""Snapshots as a running service has them: what is damaged, who writes them, and who must not."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock import _native
from penstock.errors import LockedError
from penstock.runtime import gate as kinds
from penstock.runtime.app import load_app
from penstock.runtime.plan import compile_plan
from penstock.runtime.snapshotter import GONE, OUTDATED
from processes import (
    DECIDE,
    FIRST,
    JSON,
    NDJSON,
    PATIENCE_S,
    Service,
    eventually,
    patient_first,
    payment,
    running,
    without_time,
)

OFTEN = ("--snapshot-every", "100ms")
TWO_TOPICS = Path(__file__).with_name("data") / "app.py"


def snapshots(data: Path, names: str = "*.snapshot") -> list[Path]:
    return sorted((data / "snapshots").glob(names))


def header(snapshot: Path) -> JSON:
    content = snapshot.read_bytes()
    about: JSON = json.loads(content[12 : 12 + int.from_bytes(content[8:12], "little")])
    return about


def metric(service: Service, name: str) -> float:
    found = re.search(rf"^penstock_{re.escape(name)} (\S+)$", service.call("GET", "/metrics").body.decode(), re.M)
    assert found, name
    return float(found.group(1))


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def write_two_snapshots(data: Path) -> None:
    for start in range(2):
        with running(data) as service:
            for number in range(20):
                service.decide(payment(100 * start + number, card=f"c{number % 5}"))
            assert service.end() == 0
    assert len(snapshots(data)) == 2


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("part", ["header", "state"])
def test_a_start_says_which_snapshot_is_damaged_and_decides_as_with_a_sound_one(
    tmp_path: Path, damaged: int, part: str
) -> None:
    write_two_snapshots(tmp_path / "sound")
    shutil.copytree(tmp_path / "sound", tmp_path / "data")
    files = snapshots(tmp_path / "data")[-damaged:]
    for file in files:
        flip(file, 100 if part == "header" else file.stat().st_size - 100)

    def decide(data: Path) -> tuple[list[JSON], str]:
        with running(data) as service:
            answers = [without_time(service.decide(payment(n, card=f"c{n % 5}"))) for n in range(110, 140)]
            words = service.log.read_text()
            assert service.end() == 0
        return answers, words

    (sound, silent), (answers, words) = decide(tmp_path / "sound"), decide(tmp_path / "data")
    assert "passed over" not in silent
    assert words.count("passed over") == damaged
    assert all(re.search(rf"passed over: snapshots/{file.name} is damaged at byte", words) for file in files)
    assert answers == sound


def test_whichever_byte_of_a_snapshot_is_flipped_the_state_is_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_two_snapshots(data)
    plan = compile_plan(load_app(patient_first(tmp_path))).to_json()

    def read() -> tuple[int, list[bytes]]:
        follower = _native.Follower(plan, str(data))
        began = follower.sequence
        while follower.advance(1_000) == 1_000:
            pass
        return began, follower.state()

    older, newest = snapshots(data)
    began, state = read()
    assert began == int(newest.stem, 16)
    size = newest.stat().st_size
    passed_over = 0
    for place in range(0, size, max(size // 2_000, 1)):
        flip(newest, place)
        began, found = read()
        assert found == state, place
        passed_over += began == int(older.stem, 16)
        flip(newest, place)
    # The closing mark alone is nothing that is read.
    assert passed_over > 1_000


def test_a_pause_follows_each_piece_of_a_snapshot(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data) as service:
        events = [json.dumps(payment(number, card=f"card {number}" * 20)).encode() for number in range(5_000)]
        assert service.call("POST", DECIDE, b"\n".join(events), NDJSON).status == 200
        assert service.end() == 0
    follower = _native.Follower(compile_plan(load_app(patient_first(tmp_path))).to_json(), str(data))
    sizes = [0]
    follower.snapshot(lambda: sizes.append(sum(each.stat().st_size for each in snapshots(data, "draft*"))))
    pieces = [after - before for before, after in itertools.pairwise(sizes)]
    assert len(pieces) > 3 and max(pieces) <= 256 << 10
    assert sizes[-1] == snapshots(data)[-1].stat().st_size

    # Once there is no time for more, in larger ones; and what a pause raises ends it, without a trace.
    hurried = iter([False, True])
    follower.snapshot(lambda: next(hurried))
    assert next(hurried, None) is None
    names = [each.name for each in snapshots(data, "*")]
    with pytest.raises(ZeroDivisionError):
        follower.snapshot(lambda: 1 // 0)
    assert [each.name for each in snapshots(data, "*")] == names


def test_an_old_snapshot_stays_for_as_long_as_a_newer_one_is_damaged(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_two_snapshots(data)
    older, damaged = snapshots(data)
    flip(damaged, damaged.stat().st_size - 100)
    app = patient_first(tmp_path)
    for start in (2, 3):
        # A process that began with the older one, and knows nothing of the other.
        with running(data, app=app) as service:
            service.decide(payment(100 * start))
            assert service.end() == 0
        kept = snapshots(data)
        if start == 2:
            assert kept[:2] == [older, damaged] and len(kept) == 3
    assert len(kept) == 2 and older not in kept and damaged not in kept


def snapshotter_pid(data: Path) -> int:
    lock = data / "snapshots" / "lock"
    eventually(lambda: lock.exists() and lock.read_text().strip())
    return int(lock.read_text())


def test_the_snapshotter_of_a_killed_service_ends_and_its_successor_takes_over(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data, *OFTEN) as service:
        first = snapshotter_pid(data)
        service.decide(payment(1))
        eventually(lambda: metric(service, 'snapshots_total{result="written"}') >= 1)
        with pytest.raises(LockedError, match=f"process {first}"):
            _native.Lock(str(data / "snapshots"))
        service.end(signal.SIGKILL)
    with running(data, *OFTEN) as service:
        service.decide(payment(2))
        eventually(lambda: metric(service, 'snapshots_total{result="written"}') >= 1)
        assert snapshotter_pid(data) != first
        assert service.end() == 0


@contextmanager
def snapshotter(data: Path, app: Path) -> Iterator[subprocess.Popen[str]]:
    """A snapshotter whose gate the test is."""
    command = [sys.executable, "-m", "penstock.runtime.snapshotter", str(data), "100000", "lines", "info"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdin is not None
        process.stdin.write(compile_plan(load_app(app)).to_json() + "\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_last_snapshot_to_be_written(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(tmp_path / "data", "--snapshot-every", "1h") as service:
        eventually(lambda: metric(service, "snapshotter_starts_total") == 1)
        service.decide(payment(1))
        assert service.end(number, group=True) == 0
    assert len(snapshots(tmp_path / "data")) == 1


def test_a_snapshotter_whose_gate_is_gone_ends_at_once(tmp_path: Path) -> None:
    data, app = tmp_path / "data", patient_first(tmp_path)
    write_two_snapshots(data)
    before = snapshots(data)
    with snapshotter(data, app) as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline())["result"] == "found"
        process.stdin.close()
        assert process.wait(PATIENCE_S) == GONE
    # It has written nothing on its way out.
    assert snapshots(data) == before


def test_a_second_snapshotter_waits_for_the_first(tmp_path: Path) -> None:
    data, app = tmp_path / "data", patient_first(tmp_path)
    write_two_snapshots(data)
    with snapshotter(data, app) as first:
        assert first.stdin is not None and first.stdout is not None
        assert json.loads(first.stdout.readline())["result"] == "found"
        with snapshotter(data, app) as second:
            assert second.stdout is not None and second.stderr is not None
            assert f"process {first.pid}" in second.stderr.readline()
            first.stdin.write("stop\n")
            first.stdin.close()
            assert first.wait(PATIENCE_S) == 0
            assert json.loads(second.stdout.readline())["result"] == "found"


def test_a_snapshotter_of_an_earlier_pipeline_ends_where_the_log_is_of_another(tmp_path: Path) -> None:
    data, app = tmp_path / "data", patient_first(tmp_path)
    write_two_snapshots(data)
    changed = tmp_path / "changed" / "app.py"
    changed.parent.mkdir()
    shutil.copy(FIRST.with_name("first.toml"), changed.parent)
    changed.write_text(app.read_text().replace('past("1h")', 'past("2h")'))
    (mark,) = {header(each)["fingerprint"] for each in snapshots(data)}
    last = int(snapshots(data)[-1].stem, 16)
    with snapshotter(data, app) as earlier:
        assert earlier.stdout is not None
        assert json.loads(earlier.stdout.readline())["result"] == "found"
        with running(data, *OFTEN, app=changed) as service:
            service.decide(payment(1_000))
            assert earlier.wait(PATIENCE_S) == OUTDATED
            assert earlier.stderr is not None
            assert "the log is of another pipeline now" in earlier.stderr.read()
            eventually(lambda: metric(service, 'snapshots_total{result="written"}') >= 1)
            service.decide(payment(1_001))
            assert service.end() == 0
    written = [header(each) for each in snapshots(data)]
    later = [each for each in written if each["sequence"] > last]
    assert later and all(each["fingerprint"] != mark for each in later)
    assert os.listdir(data / "snapshots").count("lock") == 1


def test_a_snapshot_of_another_pipeline_than_the_log_s_is_passed_over(tmp_path: Path) -> None:
    """As a copy of a file from elsewhere would be."""
    data = tmp_path / "data"
    write_two_snapshots(data)
    _, newest = snapshots(data)
    content, about = newest.read_bytes(), header(newest)
    text = json.dumps({**about, "fingerprint": "0" * 16}).encode()
    length = int.from_bytes(content[8:12], "little")
    parts = [content[:8], len(text).to_bytes(4, "little"), text, crc32c(text).to_bytes(4, "little")]
    newest.write_bytes(b"".join([*parts, content[16 + length :]]))
    with running(data) as service:
        words = service.log.read_text()
        assert f"passed over: snapshots/{newest.name}" in words
        assert "it is of another pipeline than the log was at its commit" in words
        assert service.decide(payment(1_000, card="c1"))["features"]["card_count_1h"] == 9
        assert service.end() == 0


def crc32c(content: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_snapshot_that_cannot_be_written_is_counted_and_missed(tmp_path: Path) -> None:
    data = tmp_path / "data"

    def warned(service: Service) -> list[Any]:
        found: list[Any] = service.call("GET", "/readyz").json()["warnings"]
        return found

    with running(data, *OFTEN) as service:
        draft = data / "snapshots" / f"draft{snapshotter_pid(data)}"
        draft.mkdir()
        service.decide(payment(1))
        eventually(lambda: metric(service, 'snapshots_total{result="failed"}') >= 2)
        eventually(lambda: warned(service))
        assert re.fullmatch(r"no snapshot for \d+ s: a start would read [\d,]+ commits", warned(service)[0])
        draft.rmdir()
        eventually(lambda: metric(service, 'snapshots_total{result="written"}') >= 1)
        assert warned(service) == []
        assert metric(service, "snapshot_sequence") == metric(service, "log_sequence")
        assert 0 <= metric(service, "snapshot_age_seconds") < 3_600
        assert metric(service, "snapshotter_starts_total") == 1
        assert service.end() == 0


SMALL = {
    "state_bytes": 1 << 30,
    "commit_bytes": 8 << 10,
    "segment_bytes": 40 << 10,
    "retention_us": None,
    "retention_bytes": 80 << 10,
    "threads": 1,
    "memory_ids": 1_000,
}


class Gate:
    """A gate of this process, with files so small that retention removes some."""

    def __init__(self, app: Path, data: Path) -> None:
        data.mkdir(exist_ok=True)
        self.plan, self.data = compile_plan(load_app(app)).to_json(), data
        self.gate = _native.Gate(self.plan, str(data), json.dumps(SMALL))
        self.started: JSON = json.loads(self.gate.started)
        self._ready = self.gate.start()

    def ask(self, kind: int, target: int, event: JSON) -> JSON:
        self.gate.submit([(1, kind, target, json.dumps(event).encode(), 0)])
        while not (answers := self.gate.take()):
            select.select([self._ready], [], [], PATIENCE_S)
            os.eventfd_read(self._ready)
        answer: JSON = json.loads(answers[0][2])
        return answer

    def follower(self) -> _native.Follower:
        follower = _native.Follower(self.plan, str(self.data))
        while follower.advance(1_000) == 1_000:
            pass
        return follower

    def go_on_until_the_log_is_cut(self, payments: Iterator[JSON]) -> None:
        """Two snapshots, and so much after them that only they have what came before."""
        for count in (400, 1, 1):
            for event in itertools.islice(payments, count):
                self.ask(kinds.DECIDE, 0, event)
            self.follower().snapshot()
        for event in itertools.islice(payments, 600):
            self.ask(kinds.DECIDE, 0, event)
        assert not (self.data / "log" / f"{1:016x}.segment").exists()
        compared, mismatches = self.follower().compared
        assert compared > 500 and mismatches == 0


def test_a_follower_goes_on_where_the_snapshots_and_a_part_of_the_log_are_gone(tmp_path: Path) -> None:
    """What it lacks is not what was decided by: that is no reason to keep no snapshot ever again."""
    data = tmp_path / "data"
    gate = Gate(FIRST, data)
    gate.go_on_until_the_log_is_cut(payment(number, card="c") for number in itertools.count())
    for snapshot in snapshots(data):
        snapshot.unlink()
    follower = gate.follower()
    assert follower.compared[1] == 0
    assert follower.snapshot() == follower.sequence
    gate.gate.stop()


def test_a_start_without_snapshots_says_what_lacks_a_topic_that_no_row_of_is_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    gate = Gate(TWO_TOPICS, data)
    report = {"report_id": 1, "card": "c", "reported_at": "2026-01-01T12:00:00Z"}
    assert gate.ask(kinds.EVENTS_JSON, 1, report)["accepted"] == 1
    payments = (payment(number, card="c", memo=None, paid_at="2026-01-01T13:00:00Z") for number in itertools.count())
    gate.go_on_until_the_log_is_cut(payments)
    assert gate.ask(kinds.DECIDE, 0, next(payments))["features"]["reported"] == 1
    gate.gate.stop()
    for snapshot in snapshots(data):
        snapshot.unlink()

    def lacking() -> JSON:
        return {each["feature"]: each["complete_from_us"] for each in gate.started["incomplete"]}

    gate = Gate(TWO_TOPICS, data)
    first = lacking()
    # Not of when the report was: of when it can have been at the latest, and thirty days more.
    assert first["n"] is None and first["reported"] > 1_767_268_800_000_000
    assert gate.ask(kinds.DECIDE, 0, next(payments))["features"]["reported"] == 0
    follower = gate.follower()
    assert follower.compared[1] == 0 and follower.snapshot() == follower.sequence
    gate.gate.stop()
    gate = Gate(TWO_TOPICS, data)
    assert lacking() == first
    gate.gate.stop()
