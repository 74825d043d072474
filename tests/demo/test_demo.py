"""The demonstration: what it generates, and how it runs: where there is no terminal, on one, and ended early."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.demo.generator import Size, generate, payments_table, reports_table
from penstock.demo.main import run_demo
from penstock.errors import SettingsError
from penstock.serve.tokens import new_token

SMALL = ["--customers", "200", "--terminals", "300"]
COMMAND = [sys.executable, "-m", "penstock", "demo", *SMALL]
PATIENCE_S = 120
NOW = int(datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp() * 1e6)
DAY_US = 86_400_000_000


def test_a_seed_gives_the_same_history_and_it_ends_now() -> None:
    first, again, other = (generate(seed=seed, days=50, now=NOW, size=Size(100, 200)) for seed in (1, 1, 2))
    assert payments_table(first.payments).equals(payments_table(again.payments))
    assert reports_table(first.reports).equals(reports_table(again.reports))
    assert not payments_table(first.payments).equals(payments_table(other.payments))
    paid_at = first.payments.paid_at
    assert np.all(np.diff(paid_at) >= 0)
    assert NOW - DAY_US < paid_at[-1] <= NOW
    assert first.reports.reported_at.max() <= NOW


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"nothing of {pattern!r} in\n{text}"
    return int(found.group(1).replace(",", ""))


def run(folder: Path, *arguments: str) -> str:
    """The demonstration's output. It runs in an empty folder, as an installed package has nothing else."""
    temporary = folder / "temporary"
    temporary.mkdir()
    ended = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        cwd=folder, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == [temporary] and list(temporary.iterdir()) == [], "what it wrote is removed again"
    return ended.stdout


def test_its_summary_counts_every_payment_once(tmp_path: Path) -> None:
    said = run(tmp_path, "--rate", "300", "--seconds", "2")
    assert "\x1b" not in said and "refused with" not in said
    assert number(r"payments decided +([\d,]+)", said) == 600
    outcomes = ("approve", "review", "decline")
    counts = [number(rf"{outcome} +([\d,]+) \(", said) for outcome in outcomes if outcome in said]
    assert sum(counts) == 600
    frauds = re.search(r"^all +([\d,]+) +([\d,]+) +([\d,.]+) +([\d,.]+)$", said, re.MULTILINE)
    assert frauds and int(frauds.group(1)) <= int(frauds.group(2))
    assert re.search(r"answer p50 +[\d.]+ ms", said) and re.search(r"answer p99 +[\d.]+ ms", said)


def test_less_than_one_payment_is_one(tmp_path: Path) -> None:
    said = run(tmp_path, "--rate", "0.1", "--seconds", "1")
    assert said.startswith("0.1 generated payments a second for 1 s")
    assert number(r"payments decided +([\d,]+)", said) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": float("nan")}, "seconds is nan, and must be a number above 0"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"rate": float("-inf")}, "rate is -inf"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"customers": 0}, "customers is 0"),
        ({"terminals": -1}, "terminals is -1"),
        ({"rate": 1e300}, "more than 10,000,000 payments"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        run_demo(**settings)


def test_it_says_its_token_where_the_service_wants_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens.toml"
    token = new_token(file, "demo", ["decide", "ingest"])
    monkeypatch.setenv("PENSTOCK_TOKENS", str(file))
    options = (*COMMAND, "--rate", "200", "--seconds", "1")
    refused = subprocess.run(options, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 1 and "was answered 401" in refused.stderr
    monkeypatch.setenv("PENSTOCK_TOKEN", token)
    empty = tmp_path / "empty"
    empty.mkdir()
    text = run(empty, "--rate", "200", "--seconds", "1")
    assert number(r"payments decided +([\d,]+)", text) == 200 and "refused with" not in text


def test_it_does_not_start_where_tls_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TLS_CERTIFICATE", str(tmp_path / "door.pem"))
    with pytest.raises(SettingsError, match="without TLS"):
        run_demo()


@pytest.mark.parametrize("on_terminal", [False, True])
def test_ctrl_c_ends_it_in_order_with_its_summary(tmp_path: Path, on_terminal: bool) -> None:
    main, terminal = pty.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "--rate", "300", "--seconds", "100"], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
        cwd=tmp_path, env={**os.environ, "COLUMNS": "80", "LINES": "30", "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    said = read_until(main, "fraud reports taken" if on_terminal else "frauds caught")
    process.send_signal(signal.SIGINT)
    said += read_until(main, None)
    os.close(main)
    assert process.wait(PATIENCE_S) == 0
    closing = said[said.rindex("events in") :]
    assert 0 < number(r"payments decided +([\d,]+)", closing) < 30_000
    assert "Traceback" not in said


def read_until(source: int, word: str | None) -> str:
    """What comes until this word, or until the end."""
    read, end = "", time.monotonic() + PATIENCE_S
    while word is None or word not in read:
        assert time.monotonic() < end, read
        try:
            part = os.read(source, 65_536)
        except OSError:  # A terminal's other side has closed.
            part = b""
        if not part:
            return read
        read += part.decode(errors="replace")
    return read
