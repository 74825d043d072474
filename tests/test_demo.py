"""The demonstration: what it generates, and that it runs and ends as it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from penstock.demo.generator import Size, generate, payments_table, reports_table
from processes import PATIENCE_S, ROOT

NOW = int(datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp() * 1e6)
DAY_US = 86_400_000_000
COMMAND = [sys.executable, "-m", "penstock", "demo", "--rate", "300", "--customers", "200", "--terminals", "400"]


def test_a_seed_gives_the_same_history_and_it_ends_now() -> None:
    first, again, other = (generate(seed=seed, days=50, now=NOW, size=Size(100, 200)) for seed in (1, 1, 2))
    assert payments_table(first.payments).equals(payments_table(again.payments))
    assert reports_table(first.reports).equals(reports_table(again.reports))
    assert not payments_table(first.payments).equals(payments_table(other.payments))
    paid_at = first.payments.paid_at
    assert np.all(np.diff(paid_at) >= 0)
    assert NOW - DAY_US < paid_at[-1] <= NOW
    assert first.reports.reported_at.max() <= NOW


def test_the_demonstration_prints_what_was_decided_and_caught(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--seconds", "2"],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    decided = re.search(r"payments decided +(\d+)", done.stdout)
    assert decided is not None and int(decided.group(1)) == 600
    outcomes = re.findall(r"^(approve|review|decline) +([\d,]+) \(", done.stdout, re.MULTILINE)
    assert sum(int(count.replace(",", "")) for _, count in outcomes) == 600
    for line in ("answer p50", "answer p99", "money caught", "amount above the threshold", "card stolen"):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == [], "what it wrote is removed again"


def test_ctrl_c_ends_the_demonstration_with_its_summary(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("w") as out:
        demo = subprocess.Popen([*COMMAND, "--seconds", "300"], stdout=out, stderr=out, cwd=ROOT)
        deadline = time.monotonic() + PATIENCE_S
        while "loaded the weeks before" not in output.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(PATIENCE_S) == 0, output.read_text()
    assert "payments decided" in output.read_text()
    assert "Traceback" not in output.read_text()
