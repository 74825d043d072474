"""`make soak`: a service under load for as long as one likes, with a fault every half minute; bench/SOAK.md.

    python bench/soak/run.py [--minutes 20] [--share 0.7] [--seed 1] [--to FILE]

The load is 70 % of what the service takes from the same client when it does not wait. Nothing that was acknowledged may
be lost, repeated or told otherwise; memory must stay what it is once the windows are full; and between faults answers
must come in time.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.measure import ROOT, anonymous_mb, preface, process_tree
from bench.report import Figure, Section, write_results
from bench.soak.books import Books, now
from bench.soak.client import CONNECTIONS, OPEN_CONNECTIONS, Client
from bench.soak.faults import Faults, command_of
from bench.soak.witness import ADDITIONS, PERIOD_S, SLOW, SLOW_MAX, Witness
from penstock import _native
from penstock.demo.service import Service

APP = Path(__file__).with_name("app.py")
RESULTS = ROOT / "bench" / "SOAK.md"
FAULT_EVERY_S = 30
# It is calm again once a fault has been undone and payments are sent within this time of being due. What cannot be
# sent meanwhile is a queue of tens of thousands, which 30 % of what the service can do has to work off.
LATE_S = 0.01
SETTLED_S = 25
# The longest of the pipeline's windows and retentions: from then on, state and log stay as large as they are.
FULL_S = 300
SETTINGS = {"PENSTOCK_RETENTION": "4m", "PENSTOCK_SNAPSHOT_EVERY": "10s", "PENSTOCK_MODEL_TIME": "1s"}
PROBE_EVENTS = 100_000
P99_MS = 20
# Of all calm seconds, whatever the host did: a fifth of the deadline.
P99_ALWAYS_MS = 100
# A percentile of fewer calm seconds that the host left alone says nothing: then it is not shown that the bound holds.
ALONE_MIN = 60
# How often a reader of the log looks for more.
LOOK_S = 0.02
# Far from the numbers that the books give out.
PROBE_FROM = 10**12


def main() -> None:
    arguments = parse_arguments()
    (ROOT / ".bench").mkdir(exist_ok=True)
    before = preface(f"make soak MINUTES={arguments.minutes:g}")
    print(before, flush=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as folder:
        soak = Soak(Path(folder), arguments.minutes * 60, arguments.share, arguments.seed)
        section = soak.run()
    print(f"\n{section.title}", *section.figures, sep="\n  ")
    target = arguments.to or RESULTS
    write_results(target, title="Soaked", preface=before, sections=[section])
    print(f"\nwrote {target}")
    missed = [figure.what for figure in section.figures if figure.met is False]
    if missed:
        sys.exit("\n".join(["missed: " + ", ".join(missed), *soak.books.findings[:20]]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--share", type=float, default=0.7, help="of what the service can do")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to", type=Path, help="write the results here")
    return parser.parse_args()


class Soak:
    def __init__(self, folder: Path, seconds: float, share: float, seed: int) -> None:
        self.seconds, self.share = seconds, share
        self.data = folder / "data"
        stuck = folder / "stuck"
        environment = {**SETTINGS, "SOAK_STUCK": str(stuck)}
        self.service = Service(APP, data=self.data, log=folder / "service.txt", environment=environment)
        self.books = Books(now(), 1.0)
        self.faults = Faults(self.service, self.books, stuck, random.Random(seed))
        self.fault_spans: list[tuple[int, float, str]] = []  # when each began, when it had been undone, and its name
        self.memory: list[tuple[int, dict[str, float]]] = []  # MB by process, at a second
        self.log_mb: list[float] = []
        self.freshness_s: list[float] = []
        self.witness = Witness(folder)
        self.slow_steps: list[int] | None = None  # by second: of the witness
        self.stopped = threading.Event()
        self._due = FAULT_EVERY_S
        self._faulting: threading.Thread | None = None
        self._failed: list[BaseException] = []

    def run(self) -> Section:
        with self.witness, self.service:
            self.service.wait_until_ready()
            most = self.probe()
            self.books.begins, self.books.rate = now() + timedelta(seconds=1), self.share * most
            print(f"{most:,.0f} decisions/s at most; the load is {self.books.rate:,.0f}/s", flush=True)
            time.sleep(1)
            reading = threading.Thread(target=self.guarded, args=(self.follow,), name="reader")
            reading.start()
            client = Client(self.service.address, self.books, OPEN_CONNECTIONS)
            began = time.monotonic()
            try:
                client.run(self.seconds, self.each_second)
            finally:
                # A fault may be starting the service anew: what it starts is ended with the rest.
                if self._faulting is not None:
                    self._faulting.join()
                self.stopped.set()
            reading.join()
        if self._failed:
            raise self._failed[0]
        self.slow_steps = self.witness.slow_steps(began, len(client.seconds))
        self.tell_worst(client)
        compared = self.books.check_export(self.export())
        return Section("A soak", self.notes(most), self.figures(client, compared))

    def probe(self) -> float:
        """How many decisions a second the service gives to the same caller where all are due at once."""
        books = Books(now(), PROBE_EVENTS * 1_000, first=PROBE_FROM)
        began = time.perf_counter()
        Client(self.service.address, books, CONNECTIONS).run(PROBE_EVENTS / books.rate, lambda _: None)
        if books.acknowledged() + books.fallbacks != PROBE_EVENTS:
            raise RuntimeError(f"not all were decided: {books.findings[:3]}")
        return PROBE_EVENTS / (time.perf_counter() - began)

    def each_second(self, second: int) -> None:
        """In the client's own thread: a fault is begun in another."""
        if self._failed:
            raise self._failed[0]
        if second % 5 == 0:
            self.measure(second)
        if second >= self._due and second < self.seconds - FAULT_EVERY_S / 2:
            self._due += FAULT_EVERY_S
            if self._faulting is not None:
                self._faulting.join()
            fault = partial(self.fault, second)
            self._faulting = threading.Thread(target=self.guarded, args=(fault,), name="fault")
            self._faulting.start()

    def guarded(self, work: Callable[[], None]) -> None:
        """In a thread of its own: what goes wrong there ends the run."""
        try:
            work()
        except Exception as error:
            self._failed.append(error)

    def fault(self, second: int) -> None:
        began = time.monotonic()
        name = self.faults.do_one()
        self.fault_spans.append((second, second + time.monotonic() - began, name))
        left = int(self.seconds - second)
        sizes = " ".join(f"{role} {size:,.0f}" for role, size in self.memory[-1][1].items()) if self.memory else ""
        print(f"  {second:6,} s  {name:17}  {left:6,} s left; MB: {sizes}", flush=True)

    def measure(self, second: int) -> None:
        sizes: dict[str, float] = {}
        try:
            for pid in process_tree(self.service.process.pid):
                command = command_of(pid)
                roles = {"snapshotter": "snapshotter", "model_worker": "model"}
                role = next((name for part, name in roles.items() if part in command), "gate")
                sizes[role] = sizes.get(role, 0) + anonymous_mb(pid)
        except (OSError, RuntimeError):
            return  # It is being ended or started: there is another look in five seconds.
        self.memory.append((second, sizes))
        self.log_mb.append(sum(each.stat().st_size for each in (self.data / "log").glob("*.segment")) / 1e6)

    def follow(self) -> None:
        """Another process's view: how long after its answer a decision's event is seen by a reader of the log."""
        reader = _native.LogReader(str(self.data), "payments", 0)
        seen = -1
        waiting: list[tuple[float, int]] = []
        while not self.stopped.is_set():
            places = self.books.places
            recent = max(places[-OPEN_CONNECTIONS * 4 :], default=-1)
            if recent > seen and (not waiting or recent > waiting[-1][1]):
                waiting.append((time.monotonic(), recent))
            while (sections := reader.next()) is not None:
                for _, base, _, _, rows in sections:
                    seen = base + rows.num_rows - 1
            moment = time.monotonic()
            self.freshness_s += [moment - since for since, offset in waiting if offset <= seen]
            waiting = [each for each in waiting if each[1] > seen]
            self.stopped.wait(LOOK_S)

    def export(self) -> Path:
        target = self.data.with_name("payments.parquet")
        command = [sys.executable, "-m", "penstock", "export", "payments", "--to", target, "--data", self.data]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        return target

    def notes(self, most: float) -> str:
        count = sum(self.faults.done.values())
        each = ", ".join(f"{name} {times}" for name, times in sorted(self.faults.done.items()))
        return f"""\
`bench/soak/app.py` (six features, a model in a process of its own, two rules; retention of four
minutes) under an open loop of {self.books.rate:,.0f} decisions/s over {OPEN_CONNECTIONS} connections,
{self.share:.0%} of the {most:,.0f}/s that the same machine gave to {CONNECTIONS} callers who do not wait, for
{self.seconds / 60:,.0f} minutes; the client shares the cores. {count} faults, one every
{FAULT_EVERY_S} s: {each}.
Latencies count from the moment at which a payment was due. Calm is every second but those from the beginning
of a fault until it has been undone and its queue is gone.
[The host left a second alone](../docs/decisions/0017-a-witness-of-the-host.md) if in it and the one before
at most {2 * SLOW_MAX} steps of a witness took more than {SLOW} × their median or did not come: {ADDITIONS} additions on
each processor every {PERIOD_S * 1_000:.0f} ms, at real-time priority."""

    def figures(self, client: Client, compared: int) -> list[Figure]:
        return [*self.books_figures(client, compared), *self.time_figures(client), *self.memory_figures()]

    def books_figures(self, client: Client, compared: int) -> list[Figure]:
        books, wrong = self.books, len(self.books.findings)
        looked = (
            f"{compared:,} compared with the log at the end, {self.faults.told_again:,} asked again after a start, "
            f"{client.sent_again:,} sent again whose connection had ended"
        )
        fallbacks = f"{books.fallbacks:,} more were told the fallback at their deadline"
        return [
            Figure("acknowledged, with an offset", f"{books.acknowledged():,}", fallbacks),
            Figure("lost, repeated or told otherwise", str(wrong), looked, "0", wrong == 0),
        ]

    def time_figures(self, client: Client) -> list[Figure]:
        calm_seconds, settled = self.calm(client)
        calm = np.concatenate([np.zeros(0), *calm_seconds.values()]) * 1_000
        if not calm_seconds:
            calm = np.array([math.inf])
        p50, p99, p999, most = (float(each) for each in np.percentile(calm, [50, 99, 99.9, 100]))
        watched = self.slow_steps is not None
        alone = {second: each for second, each in calm_seconds.items() if self.alone(second)}
        p99_alone = float(np.percentile(np.concatenate(list(alone.values())) * 1_000, 99)) if alone else math.inf
        always = float(np.percentile(np.concatenate(client.seconds) * 1_000, 99))
        starts, fresh = self.faults.recoveries_s or [0.0], [each * 1_000 for each in self.freshness_s]
        begun = f"greatest: {max(starts):.2f}, of {len(starts)}"
        return [
            Figure("p50 in calm, ms", f"{p50:.2f}"),
            Figure(
                "p99 in calm, ms",
                f"{p99:.2f}",
                f"of all seconds: {always:,.0f}",
                f"≤ {P99_ALWAYS_MS}" if watched else f"≤ {P99_MS}",
                p99 <= (P99_ALWAYS_MS if watched else P99_MS),
            ),
            Figure("p99.9 in calm, ms", f"{p999:.2f}", f"greatest: {most:,.0f}"),
            Figure(
                "p99 in calm, seconds that the host left alone, ms",
                f"{p99_alone:.2f}" if alone else "–",
                f"{len(alone):,} of them" if watched else "not watched: the bound is that of all",
                f"≤ {P99_MS}, of at least {ALONE_MIN} seconds" if watched else "",
                p99_alone <= P99_MS and len(alone) >= ALONE_MIN if watched else None,
            ),
            Figure(
                "seconds in calm",
                f"{len(calm_seconds):,}",
                f"of {len(client.seconds):,}",
                "≥ half",
                2 * len(calm_seconds) >= len(client.seconds),
            ),
            Figure(
                "from a fault's beginning until its queue is gone, s",
                f"{statistics.median(settled):.0f}",
                f"greatest: {max(settled):.0f}",
                f"≤ {SETTLED_S}, each",
                max(settled) <= SETTLED_S,
            ),
            Figure("from a process's end to the next one ready, s", f"{statistics.median(starts):.2f}", begun),
            Figure(
                "freshness for a reader of the log, ms",
                f"{statistics.median(fresh):.1f}",
                f"greatest: {max(fresh):,.0f}; it looks every {LOOK_S * 1_000:.0f}",
            ),
        ]

    def slow_in(self, second: int) -> int:
        """The witness's slow steps in this second and the one before: what was late then is answered now."""
        return sum(self.slow_steps[max(second - 1, 0) : second + 1]) if self.slow_steps else 0

    def alone(self, second: int) -> bool:
        return self.slow_steps is not None and self.slow_in(second) <= 2 * SLOW_MAX

    def calm(self, client: Client) -> tuple[dict[int, NDArray[np.float64]], list[float]]:
        """The latencies of calm seconds by second, and for each fault how many seconds it took until it was calm."""
        seconds = len(client.seconds)
        busy: set[int] = set()
        settled = []
        for began, undone, _ in self.fault_spans:
            ends = (each + 1 for each in range(int(undone), seconds) if client.late_s[each] < LATE_S)
            end = next(ends, None)
            busy.update(range(began, end or seconds))
            settled.append(math.inf if end is None else end - began)
        calm = {second: latencies for second, latencies in enumerate(client.seconds) if second not in busy}
        return calm, settled or [0.0]

    def tell_worst(self, client: Client) -> None:
        """Which calm seconds have the slowest answers, for whoever looks for the reason."""
        calm, _ = self.calm(client)
        faults = {began: name for began, _, name in self.fault_spans}
        for second, latencies in sorted(calm.items(), key=lambda each: -max(each[1], default=0))[:10]:
            before = max((began for began in faults if began <= second), default=None)
            since = "" if before is None else f", {second - before} s after a fault: {faults[before]}"
            slow = f"; {self.slow_in(second)} slow steps of the witness"
            print(f"  slow in calm: second {second:,}, {max(latencies) * 1_000:,.0f} ms{since}{slow}", flush=True)

    def memory_figures(self) -> list[Figure]:
        """Early and late, once everything that has a window or a retention has come to its size."""
        full = [sizes for second, sizes in self.memory if second > FULL_S] or [sizes for _, sizes in self.memory]
        part = max(len(full) // 3, 1)
        figures = []
        for role in ("gate", "snapshotter", "model"):
            early, late = (
                statistics.median(sizes.get(role, 0) for sizes in each) for each in (full[:part], full[-part:])
            )
            figures.append(
                Figure(
                    f"memory of the {role}, MB",
                    f"{late:,.0f}",
                    f"{early:,.0f} in the first third of the time after {FULL_S} s; the figure is the last third's",
                    "≤ 1.1 × the first third's, or 20 more",
                    late <= max(1.1 * early, early + 20),
                )
            )
        log = f"greatest: {max(self.log_mb):,.0f}"
        return [*figures, Figure("the log on disk, MB", f"{statistics.median(self.log_mb):,.0f}", log)]


if __name__ == "__main__":
    main()
