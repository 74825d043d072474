"""What every measurement needs: commands with their time and memory, spreads, and the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Not part of the project; CONTRIBUTING.md says how to have it.
HANDBOOK = Path(
    os.environ.get("HANDBOOK") or ROOT.parent / "shared" / "data" / "handbook_transactions.parquet"
).absolute()
# More load than this and something else is running: figures would be about that.
QUIET = 0.5


def check_handbook() -> None:
    if not HANDBOOK.is_file():
        sys.exit(
            f"the Handbook's transactions are not there: {HANDBOOK}\n"
            "name their file with HANDBOOK=FILE; CONTRIBUTING.md says how to have it"
        )


@dataclass(frozen=True)
class Spread:
    """A figure measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def scaled(self, factor: float) -> Spread:
        return Spread(tuple(value * factor for value in self.values))

    def text(self, digits: int = 0) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} [{low:,.{digits}f} … {high:,.{digits}f}]"


def repeat(times: int, measurement: Callable[[], float]) -> Spread:
    return Spread(tuple(measurement() for _ in range(times)))


@dataclass(frozen=True)
class Run:
    """A command that has ended well."""

    seconds: float
    peak_mb: float


def run(command: Sequence[str | Path]) -> Run:
    """Run a whole command. Raises `RuntimeError` with what it said if it fails."""
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as folder:
        file = Path(folder) / "run.json"
        timed = [sys.executable, ROOT / "bench" / "timed.py", file, *command]
        ended = subprocess.run(
            timed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        if ended.returncode != 0:
            raise RuntimeError(f"{command[0]} … ended with {ended.returncode}:\n{ended.stdout}")
        return Run(**json.loads(file.read_text()))


def anonymous_mb(pid: int) -> float:
    """Memory that a process holds itself, files mapped apart."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory")


def process_tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    started = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(each for children in started for child in children for each in process_tree(int(child)))]


def flush_ms(folder: Path) -> tuple[float, float]:
    """The median and the slowest hundredth of an fdatasync of 4 KiB on this disk, in a preallocated file."""
    path = folder / "flush"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    os.pwrite(fd, bytes(1 << 20), 0)
    os.fsync(fd)
    times = []
    for place in range(1_000):
        start = time.perf_counter()
        os.pwrite(fd, bytes(4096), place % 200 * 4096)
        os.fdatasync(fd)
        times.append((time.perf_counter() - start) * 1_000)
    os.close(fd)
    path.unlink()
    return statistics.median(times), sorted(times)[990]


def core_ms() -> float:
    """How long a core takes for a million steps of plain Python: on a shared machine it is not the same every day."""
    times = []
    for _ in range(10):
        start, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        times.append((time.perf_counter() - start) * 1_000)
    return statistics.median(times)


def machine() -> str:
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()}"
    return f"{cores} cores of {cpu}, {memory:.0f} GiB, {system}, Python {platform.python_version()}"


def preface(command: str, *, scale: float = 1.0) -> str:
    """What one must know of the machine to read any figure."""
    load, (flush, slow_flush) = os.getloadavg()[0], flush_ms(ROOT / ".bench")
    lines = [
        f"`{command}`, {time.strftime('%Y-%m-%d', time.gmtime())}, {machine()}; one fdatasync of "
        f"4 KiB takes {flush:.2f} ms (p99 {slow_flush:.2f}), a million steps of plain Python {core_ms():.0f} ms; "
        f"load before: {load:.2f}."
    ]
    if load > QUIET:
        lines.append(
            f"**The machine was not idle (load {load:.2f}): read every figure with care.**"
        )
    if scale != 1:
        lines.append(f"**Shortened to {scale:g} of the events: not the figures of a release.**")
    return "\n\n".join(lines)
