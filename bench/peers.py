"""`make bench-peers`: the Handbook's task in Bytewax and Pathway, beside ours; bench/PEERS.md.

    python bench/peers.py [--only bytewax|pathway] [--part 20] [--to FILE]

Each peer lives in an environment of its own under .bench/peers, made on demand. The whole takes a
minute and more for each of them; `--part 20` takes one customer and one terminal in 20, to try it
out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import HANDBOOK, ROOT, check_handbook, preface
from bench.replay import FEATURES, Timed, penstock_command, time_task, verify_equal
from bench.report import Figure, Section, write_results

RESULTS = ROOT / "bench" / "PEERS.md"
ENVIRONMENTS = ROOT / ".bench" / "peers"
OUR_REPEATS = 3


@dataclass(frozen=True)
class Peer:
    """Another streaming engine for Python; the task is `bench/handbook/in_<name>.py`."""

    name: str
    requirements: tuple[str, ...]
    pythons: str
    about: str

    @property
    def title(self) -> str:
        return self.name.capitalize()

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"


PEERS = (
    Peer(
        "bytewax",
        ("bytewax>=0.21,<0.22", "pyarrow>=24,<27"),
        "3.8 to 3.12",
        "0.21.1, of November 2024, its last release; Apache-2.0; 226 MB installed with pyarrow. A "
        "branch of `stateful_map` for each key, merged in the sink; one worker",
    ),
    Peer(
        "pathway",
        ("pathway>=0.33,<0.34",),
        "3.10 to 3.14",
        "0.33.0, of September 2026; BSL 1.1, free up to 8 GB and 4 cores; 1.6 GB installed. A group "
        "for each key with a Python function over its rows, an outer join; Parquet through pandas",
    ),
)


def main() -> None:
    arguments = parse_arguments()
    check_handbook()
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    chosen = [peer for peer in PEERS if arguments.only in (None, peer.name)]
    for peer in chosen:
        install(peer)
    before = preface("make bench-peers")
    print(before, flush=True)
    section = measure_peers(chosen, arguments.part)
    print(f"\n{section.title}", *section.figures, sep="\n  ")
    complete = arguments.only is None and arguments.part == 1
    target = arguments.to or (RESULTS if complete else None)
    if target is not None:
        write_results(target, title="Beside the peers", preface=before, sections=[section])
        print(f"\nwrote {target}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[peer.name for peer in PEERS])
    parser.add_argument("--part", type=int, default=1, help="one customer and terminal in so many")
    parser.add_argument("--to", type=Path, help="write the results here")
    return parser.parse_args()


def install(peer: Peer) -> None:
    """Make the peer's environment, once. Says what is wrong and ends where that does not work."""
    folder = ENVIRONMENTS / peer.name
    done = folder / "installed"
    if done.exists() and done.read_text().split() == list(peer.requirements):
        return
    print(f"installing {peer.title} into {folder.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Wheels only: a peer's source needs a tool chain of its own, and fails after minutes.
    wheels = ["--only-binary", ":all:", *peer.requirements]
    installed = subprocess.run([*pip, *wheels], capture_output=True, text=True)
    if installed.returncode != 0:
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(
            f"{peer.title} could not be installed for Python {version}; it has wheels for "
            f"{peer.pythons}. pip said:\n{installed.stderr.strip()}"
        )
    done.write_text("\n".join(peer.requirements))


def measure_peers(peers: list[Peer], part: int) -> Section:
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as name:
        folder = Path(name)
        ours = folder / "ours.parquet"
        print("measuring Penstock", flush=True)
        replay = time_task(penstock_command(ours, FEATURES), OUR_REPEATS)
        figures = [figure("Penstock, the whole file", replay)]
        for peer in peers:
            print(f"measuring {peer.title}", flush=True)
            target = folder / f"{peer.name}.parquet"
            timed = time_task(task_command(peer, target, part), 1, part=part)
            verify_equal(ours, target)
            slower = f"Penstock is {replay.rate.median / timed.rate.median:,.0f} × as fast"
            figures.append(figure(peer.title, timed, slower))
    return Section("The Handbook's task, events/s", notes(peers, part), figures)


def task_command(peer: Peer, target: Path, part: int) -> list[str | Path]:
    task = f"bench.handbook.in_{peer.name}"
    return [peer.python, "-m", task, HANDBOOK, target, str(part)]


def figure(what: str, timed: Timed, reference: str = "") -> Figure:
    memory = f"peak memory {timed.peak_mb:,.0f} MB"
    return Figure(what, timed.rate.text(), "; ".join(filter(None, [reference, memory])))


def notes(peers: list[Peer], part: int) -> str:
    lines = [
        """\
Twelve features of 1,754,155 transactions, whole commands from Parquet to zstd Parquet, start-up
included. Before a figure counts, every value is compared with ours: counts and risks equal,
averages to 1e-9. The peers' state is the same plain Python (`bench/handbook/past.py`); neither is
asked to be durable, to answer anybody, or to evaluate rules.""",
        *(f"- {peer.title} {peer.about}." for peer in peers),
    ]
    if part != 1:
        lines.append(
            f"**The peers did one customer and one terminal in {part}, and read the whole file: "
            "not the figures of a release.**"
        )
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
