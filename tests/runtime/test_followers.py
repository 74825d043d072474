"""Processes beside the gate: whatever ends or prevents one, another is started."""

from __future__ import annotations

import queue
import sys
from pathlib import Path

import pytest

from penstock.runtime import followers
from penstock.runtime.followers import Follower

PATIENCE_S = 60.0


def program(path: Path, text: str) -> None:
    """A program that is there at once, as a whole."""
    draft = path.with_suffix(".draft")
    draft.write_text(f"#!{sys.executable}\n{text}\n")
    draft.chmod(0o755)
    draft.rename(path)


def test_a_follower_that_could_not_be_launched_or_ended_is_started_anew_and_stops_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followers, "BACK_OFF_FIRST_S", 0.05)
    heard: queue.Queue[str] = queue.Queue()
    follower = Follower("nobody", [], "the plan", hear=heard.put)
    path = tmp_path / "program"
    follower.command = [str(path)]
    warned: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(followers.logger, "warning", lambda text, *rest: warned.put(text % rest))
    follower.start()
    for _ in range(2):
        assert warned.get(timeout=PATIENCE_S) == (
            "nobody could not be started (No such file or directory); starting it anew"
        )
    program(path, "print(input(), flush=True); raise SystemExit(7)")
    assert heard.get(timeout=PATIENCE_S) == "the plan\n"
    while "could not" in (words := warned.get(timeout=PATIENCE_S)):
        pass
    assert words == "nobody ended with status 7; starting it anew"
    program(path, "print(input(), 'again', flush=True); print(input(), flush=True)")
    while heard.get(timeout=PATIENCE_S) != "the plan again\n":
        pass
    follower.stop()
    assert heard.get(timeout=PATIENCE_S) == "stop\n"
    follower.thread.join(PATIENCE_S)
    assert not follower.thread.is_alive()


def test_a_follower_that_is_stopped_before_it_could_be_launched_is_not_launched(tmp_path: Path) -> None:
    follower = Follower("nobody", [], "", hear=lambda _: None)
    follower.command = [str(tmp_path / "absent")]
    follower.start()
    follower.stop()
    follower.thread.join(PATIENCE_S)
    assert not follower.thread.is_alive()
    assert follower.process is None
