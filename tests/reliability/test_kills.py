"""`kill -9` at random instants under full load: everything that was acknowledged is there, and nothing is there twice.

This finds faults of the process, not of the disk: what a killed process has written is in the kernel's memory and
survives it, synced or not. That nothing is acknowledged before its sync is what the tests with a simulated power loss
show (`native/tests/log/power.rs`). So the control here is of the ledger: it must notice a planted loss and a planted
repeat, else its silence means nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from processes import DECIDE, Service, begin, running, succeed
from reliability.caller import Caller
from reliability.figures import percentile, write_figures
from reliability.ledger import Ledger
from reliability.load import MEMOS, Load

APP = Path(__file__).with_name("app.py")
# Small segments and frequent snapshots: a kill often meets a new segment or a draft.
SETTINGS = ("--segment-bytes", "16MiB", "--snapshot-every", "150ms")
# With retention two files are kept. Larger payments, so many before each kill, fill others, which go; what came last,
# by the bytes of its memos, is surely there.
RETAINED = ("--retention-bytes", "32MiB")
RETAINED_MEMOS = ("", "m" * 2_000, "m" * 8_000)
RETAINED_BEFORE_A_KILL = 2_000
SURELY_KEPT = 8 << 20
# A start under so many is killed before it is ready.
KILLED_STARTS = 0.2
# Of what was checked before, so many are asked for again after each kill; after the last one, all.
SAMPLE = 100


class Attack:
    """Kills a service again and again, and keeps the books."""

    def __init__(self, data: Path, seed: int, *, retention: bool = False) -> None:
        self.data = data
        self.rng = random.Random(seed)
        self.retention = retention
        self.settings = (*SETTINGS, *RETAINED) if retention else SETTINGS
        self.ledger = Ledger()
        self.load = Load(self.ledger, self.rng, RETAINED_MEMOS if retention else MEMOS)
        self.kills = {"under load": 0, "while starting": 0}
        self.recoveries: list[tuple[int, float]] = []  # keys of the state, seconds until ready
        self.removed = 0  # rows that retention has removed

    def fill(self, keys: int) -> None:
        """Give so many cards a payment, so that there is more to recover."""
        with self.started() as service:
            asyncio.run(self.load.fill(service.port, keys))
            assert service.end() == 0

    def kill_once(self) -> None:
        if self.rng.random() < KILLED_STARTS:
            self.kill_a_start()
        with self.started() as service:
            asyncio.run(self.verify(service.port))
            asyncio.run(self.kill_under_load(service))

    @contextmanager
    def started(self) -> Iterator[Service]:
        began = time.monotonic()
        with running(self.data, *self.settings, app=APP) as service:
            took_s = time.monotonic() - began
            self.recoveries.append((int(service.metric("state_keys")), took_s))
            yield service

    def kill_a_start(self) -> None:
        process = begin(self.data, APP, *self.settings)
        time.sleep(self.rng.uniform(0.05, 0.8))
        process.kill()
        process.wait()
        self.kills["while starting"] += 1

    async def kill_under_load(self, service: Service) -> None:
        load = asyncio.create_task(self.load.run(service.port, lambda: False))
        enough = len(self.ledger.payments) + (RETAINED_BEFORE_A_KILL if self.retention else 0)
        while len(self.ledger.payments) < enough and not load.done():
            await asyncio.sleep(0.01)
        await asyncio.sleep(min(self.rng.expovariate(7), 2))
        service.process.kill()
        await load
        service.process.wait()
        self.kills["under load"] += 1

    async def verify(self, port: int, *, everything: bool = False) -> None:
        """Send again what got no answer; then look for all that is new, and for some of the rest, or all of it."""
        caller = Caller(port)
        await self.ledger.settle(caller)
        new, known = self.ledger.check_order(), self.surely_there()
        new = sorted(set(new) & set(known))
        older = self.rng.sample(known, min(SAMPLE, len(known)))
        await self.ledger.look_up(caller, [*new, *older])
        await self.ledger.retry(caller, known if everything else [*new, *older])
        await caller.close()

    def surely_there(self) -> list[str]:
        """What was sent, as far as retention must have kept it; newest first."""
        newest = reversed(self.ledger.payments.items())
        if not self.retention:
            return [id for id, _ in newest]
        size = 0
        return [id for id, payment in newest if (size := size + len(payment["memo"])) <= SURELY_KEPT]

    def finish(self) -> None:
        """One more start that looks for all of it, and a reading of the log itself."""
        with self.started() as service:
            asyncio.run(self.verify(service.port, everything=True))
            assert service.end() == 0
        self.removed, ids = rows_in_log(self.data)
        assert ids == self.ledger.in_order()[self.removed :]
        assert set(ids) >= set(self.surely_there())
        assert bool(self.removed) == self.retention, "retention is what removes rows, and does"
        assert "sound" in succeed("log", "verify", "--data", self.data)

    def figures(self) -> dict[str, object]:
        findings = self.ledger.findings
        return {
            "kills": self.kills,
            "acknowledged": self.ledger.acknowledged,
            "removed by retention": self.removed,
            "lost": len(findings.lost),
            "repeated": len(findings.repeated),
            "refused": len(findings.refused),
        }


def rows_in_log(data: Path) -> tuple[int, list[str]]:
    """The offset of the topic's first row as they are on disk, and the ids of all in the order of their offsets."""
    import pyarrow.parquet as pq

    target = data.with_suffix(".parquet")
    succeed("export", "payments", "--to", target, "--data", data)
    rows = pq.read_table(target, columns=["_offset", "payment_id"])
    first: int = rows["_offset"][0].as_py()
    assert rows["_offset"].to_pylist() == list(range(first, first + rows.num_rows))
    ids: list[str] = rows["payment_id"].to_pylist()
    return first, ids


def recovery_figures(recoveries: list[tuple[int, float]]) -> list[dict[str, float]]:
    """By the order of magnitude of the state's keys: starts, and the seconds from the process's start until ready."""
    sizes: defaultdict[int, list[float]] = defaultdict(list)
    for keys, took_s in recoveries:
        sizes[10 ** (len(str(keys)) - 1)].append(took_s)
    return [
        {
            "state_keys_from": size,
            "starts": len(times),
            "p50_s": round(percentile(times, 0.5), 3),
            "p99_s": round(percentile(times, 0.99), 3),
        }
        for size, times in sorted(sizes.items())
    ]


def attack(
    data: Path,
    seed: int,
    *,
    kills: int,
    keys: int = 0,
    retention: bool = False,
    progress: Callable[[str], None] = print,
) -> Attack:
    attack = Attack(data, seed, retention=retention)
    progress(f"kill -9: seed {seed}, {kills} kills, {keys:,} keys{', retention' if retention else ''}")
    if keys:
        attack.fill(keys)
    for kill in range(1, kills + 1):
        attack.kill_once()
        # What was found first tells most: the rest follows from it.
        assert not attack.ledger.findings.all(), (seed, kill, attack.ledger.findings.all()[:5])
        if kill % 25 == 0 or kill == kills:
            progress(f"  {kill} kills, {attack.ledger.acknowledged:,} acknowledged")
    attack.finish()
    assert not attack.ledger.findings.all(), (seed, attack.ledger.findings.all()[:5])
    assert len(attack.load.cut_at) > kills, "the kills met no load"
    return attack


def test_what_was_acknowledged_survives_kills_at_random_instants_once(tmp_path: Path) -> None:
    attacked = attack(tmp_path / "data", random.randrange(1 << 32), kills=25)
    figures = attacked.figures() | {"recovery": recovery_figures(attacked.recoveries)}
    print(json.dumps(figures, indent=2), f"\nwritten to {write_figures('kills', **figures)}")


def test_what_was_acknowledged_survives_kills_while_retention_removes_files(tmp_path: Path) -> None:
    """Of what it keeps everything is asked for, of what it has removed the counts go on."""
    attacked = attack(tmp_path / "data", random.randrange(1 << 32), kills=10, retention=True)
    print(json.dumps(attacked.figures(), indent=2))


@pytest.mark.long
def test_what_was_acknowledged_survives_a_thousand_kills(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `--kills` as many as one likes: most of them on a small state, the others with retention or on larger ones."""
    kills: int = request.config.getoption("--kills")

    def progress(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    parts = [
        attack(tmp_path / f"data{number}", random.randrange(1 << 32), progress=progress, **part)
        for number, part in enumerate(shared_out(kills))
    ]
    recoveries = [each for part in parts for each in part.recoveries]
    totals = add_up([part.figures() for part in parts])
    target = write_figures("kills-long", **totals, recovery=recovery_figures(recoveries))
    progress(f"{target.read_text()}written to {target}")


def shared_out(kills: int) -> list[dict[str, Any]]:
    """
    >>> [part["kills"] for part in shared_out(1_000)], len(shared_out(19))
    ([700, 200, 50, 50], 1)
    """
    few = kills // 20
    parts = [
        {"kills": kills - 6 * few},
        {"kills": 4 * few, "retention": True},
        {"kills": few, "keys": 100_000},
        {"kills": few, "keys": 1_000_000},
    ]
    return [part for part in parts if part["kills"]]


def add_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """
    >>> add_up([{"kills": {"a": 1}, "lost": 0}, {"kills": {"a": 2}, "lost": 1}])
    {'kills': {'a': 3}, 'lost': 1}
    """
    return {
        name: add_up([part[name] for part in parts]) if isinstance(value, dict) else sum(part[name] for part in parts)
        for name, value in parts[0].items()
    }


def books(data: Path) -> tuple[Attack, Service]:
    """An attack's books after some load, and the service that is still running."""
    attack = Attack(data, seed=1)
    service = Service(data, APP, *SETTINGS)
    asyncio.run(attack.load.run(service.port, lambda: attack.ledger.acknowledged > 500))
    asyncio.run(attack.verify(service.port, everything=True))
    assert attack.ledger.acknowledged > 500
    assert not attack.ledger.findings.all()
    return attack, service


def test_the_ledger_notices_a_planted_loss(tmp_path: Path) -> None:
    """An older copy of the directory is put back, as if the newest commits had not been on disk."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    attack, service = books(data)
    service.end(signal.SIGKILL)
    shutil.copytree(data, copy)
    with attack.started() as service:
        before = attack.ledger.acknowledged
        asyncio.run(attack.load.run(service.port, lambda: attack.ledger.acknowledged > before + 200))
        service.end(signal.SIGKILL)
    shutil.rmtree(data)
    copy.rename(data)
    with attack.started() as service:
        asyncio.run(attack.verify(service.port, everything=True))
    assert len(attack.ledger.findings.lost) >= 100


def test_the_ledger_notices_a_planted_repeat(tmp_path: Path) -> None:
    """A payment that was acknowledged enters once more, under an id that the service cannot know it by."""
    attack, service = books(tmp_path / "data")

    async def plant() -> None:
        caller = Caller(service.port)
        again = {**next(iter(attack.ledger.payments.values())), "payment_id": "again"}
        assert (await caller.call("POST", DECIDE, json.dumps(again).encode())).status == 200
        await caller.close()

    asyncio.run(plant())
    before = attack.ledger.acknowledged
    asyncio.run(attack.load.run(service.port, lambda: attack.ledger.acknowledged > before + 200))
    asyncio.run(attack.verify(service.port, everything=True))
    service.end(signal.SIGKILL)
    # In the offsets, and in the count of its card.
    assert len(attack.ledger.findings.repeated) >= 2
    assert not attack.ledger.findings.lost
