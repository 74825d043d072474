"""The index of ids at fifty million of them, as `make bench-ids` measures it in the core's tests."""

from __future__ import annotations

import re
import subprocess

from bench.measure import ROOT
from bench.report import Figure, Section

NOTES = """\
`make bench-ids`: fifty million ids inserted in commits of 1,000, merged in the background; then
four million new ones looked up, one after the other. The first figure is while generations are
still being written and merged, the others are after that."""


def measure_ids() -> Section:
    said = measured()
    merging = value(r"while merging: new id alone: (\d+) ns", said) / 1_000
    settled = value(r"settled: new id alone: (\d+) ns", said) / 1_000
    seen = value(r"settled: seen id: (\d+) ns", said) / 1_000
    memory = value(r"memory beyond the newest million: ([\d.]+) bytes", said)
    disk = value(r"disk: ([\d.]+) bytes", said)
    start = value(r"start: ([\d.]+) s", said)
    figures = [
        Figure("know that an id is new, while merging, µs", f"{merging:.2f}"),
        known("know that an id is new, µs", settled, f"{seen:.2f} to find a seen one", 2),
        known("memory per id beyond the newest million, bytes", memory, f"on disk {disk:.1f}", 4),
        Figure("open the index at a start, s", f"{start:.3f}"),
    ]
    return Section("Ids", NOTES, figures)


def known(what: str, value: float, reference: str, most: float) -> Figure:
    return Figure(what, f"{value:.2f}", reference, f"≤ {most:g}", value <= most)


def measured() -> str:
    ended = subprocess.run(["make", "bench-ids"], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"make bench-ids failed:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def value(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"make bench-ids said nothing of {pattern!r}:\n{text}")
    return float(found.group(1))
