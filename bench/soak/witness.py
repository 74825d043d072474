"""When the host was away: a little work of always the same size, on each processor, before everything else there.

    python bench/soak/witness.py CPU FILE

A virtual machine's processors are run by its host in turns with others' work. What it takes is not always told as
steal: a step of arithmetic that takes ten times as long as the same step before shows it all the same, and so does one
that does not come. The work is done at real-time priority, before all that this machine runs but the kernel itself; it
costs 2 % of a processor.
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
from numpy.typing import NDArray

# One step's work and period.
ADDITIONS = 600
PERIOD_S = 0.002
# A step is slow that takes so many times the median of all. Twice is what a neighbour on the same core costs.
SLOW = 3
# Up to so many slow or missing steps of a second, over all processors, may be an interrupt's doing.
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
        ended = [process.poll() for process in self._processes]
        for process in self._processes:
            process.kill()
            process.wait()
        if any(ended) and exception[0] is None and self.watches:
            raise RuntimeError("a witness has ended before what it watched")

    @property
    def watches(self) -> bool:
        return all(file.is_file() for file in self._files)

    def slow_steps(self, start: float, seconds: int) -> list[int] | None:
        """By second from `start` on: how many steps were slow or did not come. None where nothing could be watched."""
        if not self.watches:
            return None
        counts = np.zeros(seconds, np.int64)
        for file in self._files:
            data = file.read_bytes()
            ended, took = np.frombuffer(data[: len(data) // RECORD.size * RECORD.size]).reshape(-1, 2).T
            counts += slow_of(ended - start, took, seconds)
        return [int(each) for each in counts]


def slow_of(ended: NDArray[np.float64], took: NDArray[np.float64], seconds: int) -> NDArray[np.int64]:
    """Of one processor's steps, by when they ended and how long they took: the slow and the missing ones by second."""

    def by_second(times: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.histogram(times, bins=seconds, range=(0, seconds))[0].astype(np.int64)

    steps = by_second(ended)
    missing = np.maximum(int(np.median(steps)) - 1 - steps, 0)
    return by_second(ended[took > SLOW * np.median(took)]) + missing


def main(cpu: int, file: Path) -> None:
    os.sched_setaffinity(0, {cpu})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        sys.exit("the host is not watched: that takes the right to real-time priority")
    with file.open("wb", buffering=0) as out:
        while True:
            began, total = time.monotonic(), 0
            for number in range(ADDITIONS):
                total += number
            ended = time.monotonic()
            out.write(RECORD.pack(ended, ended - began))
            time.sleep(PERIOD_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
