"""`penstock backup` beside a service under load: the copy starts, and has all that was acknowledged before it began."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path

from processes import fail, penstock, running, succeed
from reliability.caller import Caller
from reliability.ledger import Ledger
from reliability.load import Load
from reliability.test_tools import APP, SETTINGS, verify


def test_a_backup_of_a_service_under_load_is_sound_and_has_all_that_was_acknowledged_before_it(tmp_path: Path) -> None:
    data, ledger = tmp_path / "data", Ledger()
    load = Load(ledger, random.Random(1))
    copies: list[tuple[Path, int]] = []

    async def back_up_under_load(port: int) -> None:
        done = False
        loading = asyncio.create_task(load.run(port, lambda: done))
        for number in range(3):
            await asyncio.sleep(0.2)
            copy, acknowledged = tmp_path / f"copy{number}", ledger.acknowledged
            said = await asyncio.to_thread(succeed, "backup", copy, "--data", data)
            assert "everything up to commit" in said
            # What is being written meanwhile is not taken for damage.
            assert "sound" in await asyncio.to_thread(succeed, "log", "verify", "--data", data)
            copies.append((copy, acknowledged))
        done = True
        await loading

    async def check(port: int, ids: list[str]) -> None:
        caller = Caller(port)
        await ledger.look_up(caller, ids)
        await ledger.retry(caller, ids)
        await caller.close()

    with running(data, *SETTINGS, app=APP) as service:
        asyncio.run(back_up_under_load(service.port))
        assert service.end() == 0
    assert not ledger.open
    for copy, acknowledged in copies:
        manifest = json.loads((copy / "backup.json").read_text())
        status, report = verify(copy)
        assert (status, report["torn_bytes"], report["last_sequence"]) == (0, 0, manifest["sequence"])
        held = report["rows"]["payments"]
        assert held >= acknowledged
        assert f"as it was copied: {len(manifest['files'])} file" in succeed("backup", "--check", copy)
        restored = tmp_path / "restored"
        shutil.copytree(copy, restored)
        with running(restored, *SETTINGS, app=APP) as service:
            asyncio.run(check(service.port, ledger.in_order()[:held]))
            # What came after the copy is new to it.
            newest = ledger.payments[ledger.in_order()[-1]]
            assert service.decide({**newest, "payment_id": "next"})["offset"] == held
            assert service.end() == 0
        shutil.rmtree(restored)
    assert len(copies) == 3 and copies[-1][1] > 100
    assert not ledger.findings.all()
    assert "is there already" in fail("backup", copies[0][0], "--data", data)
    check_copy_without_the_mark(data, ledger, tmp_path / "after a power loss")
    check_what_a_check_tells(copies[0][0])


def check_copy_without_the_mark(data: Path, ledger: Ledger, copy: Path) -> None:
    """The mark of what was durable is not synced: after a power loss it may be behind, or be none at all."""
    (data / "log" / "durable").unlink()
    succeed("backup", copy, "--data", data)
    status, report = verify(copy)
    assert status == 0 and report["rows"]["payments"] >= ledger.acknowledged


def check_what_a_check_tells(copy: Path) -> None:
    segment = min((copy / "log").glob("*.segment"))
    name = f"log/{segment.name}"
    contents = bytearray(segment.read_bytes())
    contents[len(contents) // 2] ^= 1
    segment.write_bytes(contents)
    assert f"{name} is not as it was copied" in damaged(copy)
    segment.unlink()
    assert f"{name} is missing" in damaged(copy)
    (copy / "log" / "durable").touch()
    assert "log/durable is not of the copy" in damaged(copy)
    for text in ("[]", '{"files": {}}', '{"files": {}, "sequence": "many"}', "{"):
        (copy / "backup.json").write_text(text)
        assert "backup.json cannot be read" in fail("backup", "--check", copy)
    (copy / "backup.json").unlink()
    assert "has no backup.json" in fail("backup", "--check", copy)


def damaged(copy: Path) -> str:
    checked = penstock("backup", "--check", copy)
    assert checked.returncode == 1, checked.stderr
    return checked.stdout
