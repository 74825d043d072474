"""Processes beside the gate, started with it and started anew when they end on their own."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

logger = logging.getLogger("penstock.followers")

BACK_OFF_FIRST_S = 0.5
BACK_OFF_LAST_S = 30.0
STOP_S = 20.0

# What asks a process to end; the end of its input without it says that the gate is gone.
STOP = "stop\n"


class Follower:
    """One process, `python -m MODULE ARGUMENTS`, that gets `text` on standard input and ends with the gate.

    Each line of its standard output goes to `hear`, on a thread of this class.
    """

    def __init__(self, module: str, arguments: list[str], text: str, *, hear: Callable[[str], None]) -> None:
        self.module = module
        self.command = [sys.executable, "-m", module, *arguments]
        self.text = text
        self.hear = hear
        self.process: subprocess.Popen[str] | None = None
        self.stopping = threading.Event()
        # Of `process` and its input: none is launched once `stop` has looked for one.
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.supervise, name=module, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def supervise(self) -> None:
        back_off = BACK_OFF_FIRST_S
        while not self.stopping.is_set():
            started = monotonic()
            ended = self.live()
            if self.stopping.is_set():
                return
            logger.warning("%s %s; starting it anew", self.module, ended)
            if monotonic() - started > BACK_OFF_LAST_S:
                back_off = BACK_OFF_FIRST_S
            self.stopping.wait(back_off)
            back_off = min(2 * back_off, BACK_OFF_LAST_S)

    def live(self) -> str:
        """Run it to its end; how that was."""
        try:
            process = self.launch()
        except OSError as error:  # There is no memory or no process to be had; there may be later.
            return f"could not be started ({error.strerror})"
        if process is None:
            return "was not started"
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.hear(line)
        status = process.wait()
        with self.lock:
            close_input(process)
        return f"ended with status {status}"

    def launch(self) -> subprocess.Popen[str] | None:
        with self.lock:
            if self.stopping.is_set():
                return None
            process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.process = process
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(self.text + "\n")
            process.stdin.flush()
        return process

    def stop(self) -> None:
        """Let it finish what it does, for a bounded time."""
        with self.lock:
            self.stopping.set()
            process = self.process
            if process is None:
                return
            # A signal could arrive before the process is ready for one.
            close_input(process, STOP)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            logger.warning("%s did not end in time and is killed", self.module)
            process.kill()
            process.wait()


def close_input(process: subprocess.Popen[str], last: str = "") -> None:
    """Close a process's standard input, after these words; it may be closed already, or nobody's any more."""
    assert process.stdin is not None
    if process.stdin.closed:
        return
    with suppress(BrokenPipeError):
        process.stdin.write(last)
    with suppress(BrokenPipeError):
        process.stdin.close()
