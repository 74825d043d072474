"""A real file system that is full: known before an event is taken, said at once, and over when there is space again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks import fill, fill_the_log, on, small_disk
from processes import (
    DECIDE,
    EVENTS,
    FIRST,
    JSON,
    NDJSON,
    PATIENCE_S,
    Answer,
    Service,
    eventually,
    lacking,
    payment,
    running,
    without_time,
)

SETTINGS = ("--segment-bytes", "16MiB", "--snapshot-every", "1h")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as disk:
        yield disk


def pipeline(folder: Path) -> Path:
    """Two policies that differ in what they say while the disk is full, in times that no machine misses."""
    policy = 'pipeline.policy("authorise", scored, rules="first.toml", within="50ms", fallback="approve")'
    text = FIRST.read_text()
    assert policy in text
    patient = policy.replace("50ms", "60s")
    lenient = patient.replace("authorise", "lenient").replace("approve", "review")[:-1] + ', on_full="fallback")'
    app = folder / "app.py"
    app.write_text(text.replace(policy, f"{patient}\n{lenient}"))
    shutil.copy(FIRST.with_suffix(".toml"), folder)
    return app


def decide(service: Service, policy: str, event: JSON) -> Answer:
    return service.call("POST", f"/v1/policies/{policy}/decide", json.dumps(event).encode())


def test_a_full_disk_is_said_at_once_and_is_over_when_there_is_space(tmp_path: Path, disk: Path) -> None:
    with running(on(disk, tmp_path), *SETTINGS, app=pipeline(tmp_path)) as service:
        told = without_time(decide(service, "authorise", payment(1)).json())
        ballast = fill(disk)
        fill_the_log(service)

        refused = decide(service, "authorise", payment(2))
        assert (refused.status, refused.code, refused.headers["Retry-After"]) == (503, "disk_full", "1")
        assert "no space left" in refused.json()["error"]["message"]
        assert service.call("POST", EVENTS, json.dumps(payment(3)).encode()).code == "disk_full"
        assert decide_many(service, "authorise", [payment(1), payment(4)]).code == "disk_full"

        fallback = decide(service, "lenient", payment(5)).json()
        assert (fallback["outcome"], fallback["cause"], fallback["timed_out"]) == ("review", "disk_full", False)
        assert (fallback["id"], fallback["features"], fallback["offset"]) == ("p5", None, None)
        # Nothing is taken, so that one id may come twice, whatever it comes with.
        lines = decide_many(service, "lenient", [payment(5), payment(6), payment(6, amount="1.00")]).lines()
        assert [line.get("cause") for line in lines] == ["disk_full"] * 3

        # What needs no space goes on.
        again = decide(service, "authorise", payment(1))
        assert without_time(again.json()) == told and again.headers["Penstock-Repeat"] == "1"
        assert service.call("GET", "/v1/decisions/authorise/p1").status == 200
        assert service.call("GET", "/v1/decisions/lenient/p5").status == 404
        assert service.call("POST", f"{DECIDE}?dry_run=1", json.dumps(payment(7)).encode()).status == 200
        assert service.call("GET", "/healthz").status == 200
        ready = service.call("GET", "/readyz")
        assert ready.status == 503 and "nothing is taken at present: no space left" in ready.json()["error"]["message"]
        assert service.metric("disk_full_total") == 5

        ballast.unlink()
        eventually(lambda: service.call("GET", "/readyz").status == 200)
        # Neither the refused nor those with the fallback have left a trace.
        counts = [decide(service, "authorise", payment(n)).json()["features"]["card_count_1h"] for n in (2, 4)]
        assert counts == [2, 3]
        first = decide(service, "lenient", payment(5))
        assert "cause" not in first.json()
        assert "Penstock-Repeat" not in first.headers
        assert service.end() == 0
        assert "b" * 20 not in service.log.read_text()  # what the log was filled with


def decide_many(service: Service, policy: str, events: list[JSON]) -> Answer:
    body = b"\n".join(json.dumps(event).encode() for event in events)
    return service.call("POST", f"/v1/policies/{policy}/decide", body, NDJSON)


def test_a_service_starts_on_a_full_disk_and_says_so(tmp_path: Path, disk: Path) -> None:
    app, data = pipeline(tmp_path), on(disk, tmp_path)
    with running(data, *SETTINGS, app=app) as service:
        told = without_time(decide(service, "authorise", payment(1)).json())
        ballast = fill(disk)
        fill_the_log(service)
        service.end()
    ballast.unlink(missing_ok=True)
    (data / "log" / "spare").unlink(missing_ok=True)
    fill(disk)
    with running(data, *SETTINGS, app=app) as service:
        assert decide(service, "authorise", payment(2)).code == "disk_full"
        assert without_time(decide(service, "authorise", payment(1)).json()) == told
        assert service.call("GET", "/readyz").status == 503
        (disk / "ballast").unlink()
        eventually(lambda: service.call("GET", "/readyz").status == 200)
        assert decide(service, "authorise", payment(2)).json()["features"]["card_count_1h"] == 2
        assert service.end() == 0


def test_a_device_that_fails_a_sync_ends_the_service_and_costs_nothing_acknowledged(tmp_path: Path) -> None:
    """A real EIO: a loop device over a file with holes, in a file system that has no room left to fill them.

    The log's zeros are holes in that file once it is dug through; a sync that must fill one fails in the device. A loop
    device says of a request that it could write in part only that it is done (seen on Linux 6.18), so blocks and
    requests are a page each, which is written whole or not.
    """
    backing = tmp_path / "backing"
    backing.mkdir()
    undo: list[list[str]] = []

    def do(*command: object) -> str:
        # What a user's path lacks is root's.
        found = shutil.which(str(command[0]), path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if found is None:
            lacking(f"no failing device can be made here without {command[0]}")
        words = [found, *map(str, command[1:])]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        if done.returncode:
            lacking(f"no failing device can be made here: {done.stderr.strip()}")
        return done.stdout.strip()

    try:
        do("mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", backing)
        undo.append(["umount", "--lazy", str(backing)])
        image, folder = backing / "image", tmp_path / "device"
        do("truncate", "-s", "96M", image)
        do("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        device = do("losetup", "--find", "--show", image)
        undo.append(["losetup", "--detach", device])
        Path(f"/sys/block/{Path(device).name}/queue/max_sectors_kb").write_text("4")
        folder.mkdir()
        do("mount", device, folder)
        undo.append(["umount", str(folder)])
        told: list[JSON] = []
        data = on(folder, tmp_path)
        with running(data, *SETTINGS, app=pipeline(tmp_path)) as service:
            told.append(without_time(decide(service, "authorise", payment(0)).json()))
            os.sync()
            do("fallocate", "--dig-holes", image)
            ballast = fill(backing)
            # Each commit is a page further; before long one of them needs a page that cannot be had.
            for number in range(1, 5_000):
                answer = decide(service, "authorise", payment(number))
                if answer.status != 200:
                    break
                told.append(without_time(answer.json()))
            assert (answer.status, answer.code) == (503, "core_failed")
            assert service.process.wait(PATIENCE_S) == 1
            # That, or the file system has become read-only because its journal met the same.
            assert re.search("could not (sync|write)", service.log.read_text())
        ballast.unlink()
        # What the kernel has of the file is not what the device has: only a fresh look counts.
        do("umount", folder)
        undo.pop()
        do("mount", device, folder)
        undo.append(["umount", str(folder)])
        with running(data, *SETTINGS, app=tmp_path / "app.py") as service:
            for number, first in enumerate(told):
                again = decide(service, "authorise", payment(number))
                assert without_time(again.json()) == first, number
            assert service.end() == 0
    finally:
        for command in reversed(undo):
            subprocess.run(command, check=False, timeout=PATIENCE_S)
