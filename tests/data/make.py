"""Writes data-VERSION.tar.gz, the data directory that this version leaves, with what it told: python tests/data/make.py

Once for each version whose files differ, and never again: a later version's files would show nothing of an earlier one.
A snapshot is as of the middle, ids are on disk and in memory, and the service ends by a kill: a start reads the rest.
"""

from __future__ import annotations

import gzip
import io
import json
import signal
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import processes  # noqa: E402 - it is in the folder above
from processes import DECIDE, EVENTS, JSON, Service, eventually, without_time  # noqa: E402

APP = HERE / "app.py"
REPORTS = "/v1/topics/reports/events"
SETTINGS = ("--segment-bytes", "16MiB")
FIRST, LAST = 10, 14
# So few ids go to a file only where memory has room for fewer.
PROGRAM = """
import sys
import penstock.cli, penstock.serve.service
penstock.serve.service.MEMORY_IDS = 4
sys.argv[0] = "penstock"
penstock.cli.main()
"""


def payment(number: int) -> JSON:
    """Of three cards in turn."""
    return {
        "payment_id": f"p{number}",
        "card": f"c{number % 3}",
        "memo": None if number % 4 == 0 else f"m{number % 5}",
        "amount": f"{number}.25",
        "paid_at": f"2026-01-01T12:{number:02}:00.{number:06}Z",
    }


def report(number: int) -> JSON:
    return {"report_id": number, "card": "c2", "reported_at": "2026-01-01T12:04:30Z"}


def wrong(number: int) -> JSON:
    """A payment that becomes a dead letter."""
    return {**payment(number), "amount": "much"}


def post(service: Service, path: str, body: JSON) -> JSON:
    answer = service.call("POST", path, json.dumps(body).encode())
    assert answer.status == 200, answer.body
    return answer.json()


def make(data: Path) -> list[JSON]:
    """Write the directory; what was told about each payment."""
    service = Service(data, APP, *SETTINGS, "--snapshot-every", "10ms")
    told = [post(service, DECIDE, payment(number)) for number in range(5)]
    post(service, REPORTS, report(1))
    told += [post(service, DECIDE, payment(number)) for number in range(5, FIRST)]
    assert post(service, EVENTS, wrong(50))["rejected"][0]["deadletter"] == 0
    post(service, "/v1/positions", {"consumer": "warehouse", "topic": "payments", "offset": 7})
    eventually(lambda: any((data / "ids").glob("*")))
    assert service.end() == 0
    assert list((data / "snapshots").glob("*.snapshot"))
    service = Service(data, APP, *SETTINGS, "--snapshot-every", "1d")
    told += [post(service, DECIDE, payment(number)) for number in range(FIRST, LAST)]
    service.end(signal.SIGKILL)
    return [without_time(each) for each in told]


def pack(data: Path, told: list[JSON], target: Path) -> None:
    """The same bytes for the same files: neither owners nor times are kept."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path in sorted(data.rglob("*")):
            if path.is_file():
                add(tar, f"data/{path.relative_to(data)}", path.read_bytes())
        add(tar, "told.json", json.dumps(told, indent=1).encode())
    target.write_bytes(gzip.compress(whole.getvalue(), mtime=0))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))


if __name__ == "__main__":
    processes.PROGRAM = (sys.executable, "-c", PROGRAM)
    with tempfile.TemporaryDirectory() as folder:
        told = make(Path(folder) / "data")
        pack(Path(folder) / "data", told, HERE / f"data-{version('penstock')}.tar.gz")
