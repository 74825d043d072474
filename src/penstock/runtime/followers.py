"""Processes beside the gate, started with it and started anew when they end on their own."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from contextlib import suppress

logger = logging.getLogger("penstock.followers")

BACK_OFF_FIRST_S = 0.5
BACK_OFF_LAST_S = 30.0
STOP_S = 20.0


class Follower:
    """One process, `python -m MODULE ARGUMENTS`, that gets `text` on standard input and ends with the gate."""

    def __init__(self, module: str, arguments: list[str], text: str) -> None:
        self.module = module
        self.command = [sys.executable, "-m", module, *arguments]
        self.text = text
        self.process: subprocess.Popen[str] | None = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.supervise, name=module, daemon=True)

    def start(self) -> None:
        self.launch()
        self.thread.start()

    def launch(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(self.text + "\n")
            self.process.stdin.flush()

    def supervise(self) -> None:
        back_off = BACK_OFF_FIRST_S
        while not self.stopping.is_set():
            assert self.process is not None
            status = self.process.wait()
            if self.stopping.is_set():
                return
            logger.warning("%s ended with status %d; starting it anew", self.module, status)
            if self.stopping.wait(back_off):
                return
            back_off = min(2 * back_off, BACK_OFF_LAST_S)
            self.launch()

    def stop(self) -> None:
        """Let it finish what it does, for a bounded time."""
        self.stopping.set()
        if self.process is None:
            return
        assert self.process.stdin is not None
        # Its end is the request: a signal could arrive before the process is ready for one.
        self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            logger.warning("%s did not end in time and is killed", self.module)
            self.process.kill()
            self.process.wait()
