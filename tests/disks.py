"""A file system of its own, in memory and small, and how it is filled."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import EVENTS, NDJSON, Service, lacking, payment

# Two segments, the ids and the rest of a service's files, and a little.
DISK_MIB = 48


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mounted in this folder; the test is skipped where nothing can be."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        lacking(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return ballast


def on(disk: Path, tmp_path: Path) -> Path:
    """A data directory on the disk; what its service says goes elsewhere."""
    (disk / "data").mkdir()
    (tmp_path / "data").symlink_to(disk / "data")
    return tmp_path / "data"


def fill_the_log(service: Service) -> int:
    """Append until the log has no room for more; how many rows it took."""
    taken = 0
    while True:
        body = b"\n".join(json.dumps(payment(f"b{taken + n}", card="b" * 1_000)).encode() for n in range(500))
        answer = service.call("POST", EVENTS, body, NDJSON)
        if answer.status == 503:
            return taken
        assert answer.status == 200, answer.body
        about = answer.json()
        taken += int(about["accepted"])
        if about["rejected"]:
            return taken
