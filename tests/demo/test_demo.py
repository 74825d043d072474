"""The demonstration as it is run: where there is no terminal, on one, and ended early."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = ["--rate", "300", "--customers", "200", "--terminals", "300"]
COMMAND = [sys.executable, "-m", "penstock", "demo", *SMALL]
PATIENCE_S = 120


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"nothing of {pattern!r} in\n{text}"
    return int(found.group(1).replace(",", ""))


def test_its_summary_counts_every_payment_once(tmp_path: Path) -> None:
    # From an empty folder: an installed package has nothing else.
    ended = subprocess.run(
        [*COMMAND, "--seconds", "2"], capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout
    assert "\x1b" not in said and "refused with" not in said
    assert number(r"payments decided +([\d,]+)", said) == 600
    outcomes = ("approve", "review", "decline")
    counts = [number(rf"{outcome} +([\d,]+) \(", said) for outcome in outcomes if outcome in said]
    assert sum(counts) == 600
    frauds = re.search(r"^all +([\d,]+) +([\d,]+) +([\d,.]+) +([\d,.]+)$", said, re.MULTILINE)
    assert frauds and int(frauds.group(1)) <= int(frauds.group(2))
    assert re.search(r"answer p50 +[\d.]+ ms", said) and re.search(r"answer p99 +[\d.]+ ms", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("on_terminal", [False, True])
def test_ctrl_c_ends_it_in_order_with_its_summary(tmp_path: Path, on_terminal: bool) -> None:
    main, terminal = pty.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "--seconds", "100"], stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
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
