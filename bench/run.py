"""`make bench`: measure this machine and write bench/RESULTS.md.

python bench/run.py [--only NAME] [--scale 0.1] [--to FILE]
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.core import measure_core
from bench.doors import measure_doors
from bench.expressions import measure_expressions
from bench.ids import measure_ids
from bench.measure import ROOT, check_handbook, preface
from bench.replay import measure_replay
from bench.report import Section, write_results
from bench.snapshots import measure_snapshots
from bench.starts import measure_starts

RESULTS = ROOT / "bench" / "RESULTS.md"
# What other days and machines gave.
EARLIER = ROOT / "bench" / "earlier"
MEASUREMENTS: dict[str, Callable[[float], Section]] = {
    "doors": measure_doors,
    "replay": lambda _scale: measure_replay(),
    "core": measure_core,
    "expressions": measure_expressions,
    "ids": lambda _scale: measure_ids(),
    "starts": measure_starts,
    "snapshots": measure_snapshots,
}


def main() -> None:
    arguments = parse_arguments()
    check_handbook()
    (ROOT / ".bench").mkdir(exist_ok=True)
    before = preface("make bench", scale=arguments.scale)
    print(before)
    chosen = [name for name in MEASUREMENTS if arguments.only in (None, name)]
    sections = [measure(name, arguments.scale) for name in chosen]
    target = arguments.to or (RESULTS if arguments.only is None else None)
    if target is not None:
        if target == RESULTS:
            before = "\n\n".join(filter(None, [before, keep_earlier()]))
        write_results(target, title="What this machine does", preface=before, sections=sections)
        print(f"\nwrote {target}")


def measure(name: str, scale: float) -> Section:
    print(f"\nmeasuring: {name}", flush=True)
    start = time.monotonic()
    section = MEASUREMENTS[name](scale)
    print(f"{section.title} ({time.monotonic() - start:,.0f} s)", *section.figures, sep="\n  ")
    return section


def keep_earlier() -> str:
    """Put the results of an earlier day away; where all of them are, newest first."""
    EARLIER.mkdir(exist_ok=True)
    results = RESULTS.read_text() if RESULTS.exists() else ""
    day = re.search(r", (\d{4}-\d\d-\d\d), ", results)
    if day is not None and day[1] != time.strftime("%Y-%m-%d", time.gmtime()):
        (EARLIER / f"{day[1]}.md").write_text(results.replace("](", "](../"))
    names = sorted((each.name for each in EARLIER.glob("*.md")), reverse=True)
    links = ", ".join(f"[{name.removesuffix('.md')}]({EARLIER.name}/{name})" for name in names)
    return f"Earlier, on what may have been another machine: {links}." if links else ""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MEASUREMENTS)
    parser.add_argument("--scale", type=float, default=1.0, help="of events, to try it out")
    parser.add_argument("--to", type=Path, help="write the results here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
