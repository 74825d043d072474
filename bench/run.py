"""`make bench`: measure this machine and write bench/RESULTS.md.

python bench/run.py [--only doors|replay|core] [--scale 0.1] [--to FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.core import measure_core
from bench.doors import measure_doors
from bench.measure import HANDBOOK, ROOT, flush_ms, load_average, machine
from bench.replay import measure_replay
from bench.report import Section, write_results

RESULTS = ROOT / "bench" / "RESULTS.md"
# More than this and something else is running: figures would be about that.
QUIET = 0.5


def main() -> None:
    arguments = parse_arguments()
    if not HANDBOOK.exists():
        sys.exit(f"the Handbook's transactions are not there: {HANDBOOK}")
    (ROOT / ".bench").mkdir(exist_ok=True)
    before = preface(arguments.scale)
    print(before)
    measurements: dict[str, Callable[[], Section]] = {
        "doors": lambda: measure_doors(arguments.scale),
        "replay": measure_replay,
        "core": lambda: measure_core(arguments.scale),
    }
    sections = []
    for name, measure in measurements.items():
        if arguments.only in (None, name):
            section = measure()
            sections.append(section)
            print(f"\n{section.title}", *section.figures, sep="\n  ", flush=True)
    target = arguments.to or (RESULTS if arguments.only is None else None)
    if target is not None:
        write_results(target, title="What this machine does", preface=before, sections=sections)
        print(f"\nwrote {target}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("doors", "replay", "core"))
    parser.add_argument("--scale", type=float, default=1.0, help="of events, to try it out")
    parser.add_argument("--to", type=Path, help="write the results here")
    return parser.parse_args()


def preface(scale: float) -> str:
    load = load_average()
    lines = [
        f"`make bench`, {time.strftime('%Y-%m-%d', time.gmtime())}, {machine()}; one fdatasync of "
        f"4 KiB takes {flush_ms(ROOT / '.bench'):.2f} ms; load before: {load:.2f}. The load "
        "generator is included in all of it."
    ]
    if load > QUIET:
        lines.append(
            f"**The machine was not idle (load {load:.2f}): read every figure with care.**"
        )
    if scale != 1:
        lines.append(f"**Shortened to {scale:g} of the events: not the figures of a release.**")
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
