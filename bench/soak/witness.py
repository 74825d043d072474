"""When the host was away: a little work of always the same size, on each processor, before everything else there.

    python bench/soak/witness.py CPU FILE

A virtual machine's processors are run by its host in turns with others' work. What it takes is not always told as
steal: a step of arithmetic that takes ten times as long as the same step before shows it all the same. The work is
done at real-time priority, so that what else this machine does cannot delay it; it costs 2 % of a processor.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import numpy as np

# One step's work and period.
ADDITIONS = 600
PERIOD_S = 0.002
# A step is slow that takes so many times the median of all. Twice is what a neighbour on the same core costs.
SLOW = 3
# So many slow steps in a second, over all processors, are the host's doing and not an interrupt's.
SLOW_MAX = 5
# When a step had ended (seconds of the monotonic clock), and how long it took.
RECORD = struct.Struct("<dd")


class Witness:
    """One process for each processor, while the block runs. Without the right to real-time priority it sees nothing."""

    def __init__(self, folder: Path) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        self._files = [folder / f"witness-{cpu}" for cpu in cpus]
        self._commands = [
            [sys.executable, __file__, str(cpu), str(file)] for cpu, file in zip(cpus, self._files, strict=True)
        ]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._processes = [subprocess.Popen(command) for command in self._commands]
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def slow_steps(self, start: float, seconds: int) -> list[int] | None:
        """By second from `start` on: how many steps were slow. None where nothing could be watched."""
        if any(not file.is_file() for file in self._files):
            return None
        counts = np.zeros(seconds, np.int64)
        for file in self._files:
            data = file.read_bytes()
            steps = np.frombuffer(data[: len(data) // RECORD.size * RECORD.size]).reshape(-1, 2)
            slow = steps[steps[:, 1] > SLOW * np.median(steps[:, 1]), 0] - start
            counts += np.histogram(slow, bins=seconds, range=(0, seconds))[0]
        return [int(each) for each in counts]


def main(cpu: int, file: Path) -> None:
    os.sched_setaffinity(0, {cpu})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        sys.exit("the host is not watched: that takes the right to real-time priority")
    with file.open("wb") as out:
        while True:
            began, total = time.monotonic(), 0
            for number in range(ADDITIONS):
                total += number
            ended = time.monotonic()
            out.write(RECORD.pack(ended, ended - began))
            time.sleep(PERIOD_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
