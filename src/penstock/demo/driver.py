"""Sends a schedule of requests in a process of its own, which showing the answers cannot delay.

A `Schedule` comes in by standard input, pickled; then a line says go. Lists of `Answer`s go out by
standard output, a few times a second. SIGTERM ends it.

    python -m penstock.demo.driver
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, NamedTuple, Self

import numpy as np

from penstock.demo.generator import History, payments_json, reports_json
from penstock.demo.load import open_loop, request
from penstock.runtime.calls import read_token

REPORT_SECONDS = 0.25
CONNECTIONS = 64


@dataclass(frozen=True)
class Schedule:
    """A history, and the seconds in which it is to happen again; in the order of its time."""

    history: History
    seconds: float
    port: int


class Answer(NamedTuple):
    """`place` counts payments, then reports."""

    place: int
    status: int
    body: bytes
    seconds: float


class Driver:
    """The driver's process, seen from outside."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._received: SimpleQueue[list[Answer] | None] = SimpleQueue()

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C on the terminal must not end it in mid-request.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "penstock.demo.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        pickle.dump(self._schedule, self._input)
        self._input.flush()
        threading.Thread(target=self._receive_all, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        # It may still wait for the word to go, which now never comes.
        with suppress(BrokenPipeError):
            self._input.close()
        self._process.wait()

    def start(self) -> None:
        """Send the first request as soon as all are prepared."""
        self._input.write(b"go\n")
        self._input.flush()

    def stop(self) -> None:
        """Send no more; the answers to what is under way still come."""
        self._process.terminate()

    def answers(self, wait: float) -> Iterator[list[Answer]]:
        """What has been answered, a list now and then, empty after `wait` seconds without."""
        while True:
            try:
                batch = self._received.get(timeout=wait)
            except Empty:
                batch = []
            if batch is None:
                return
            yield batch

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _receive_all(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                batch = pickle.load(self._process.stdout)
                self._received.put([Answer(*each) for each in batch])
        except EOFError:
            pass
        finally:
            self._received.put(None)


class Reporter:
    """Passes answers on from a thread, so that a full pipe never stops the sending."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        # Plain tuples: a class of the module that runs as `__main__` cannot be unpickled elsewhere.
        self._answers: list[tuple[int, int, bytes, float]] = []
        self._due = time.monotonic() + REPORT_SECONDS
        self._batches: SimpleQueue[list[tuple[int, int, bytes, float]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all)
        self._thread.start()

    def add(self, place: int, status: int, body: bytes, seconds: float) -> None:
        self._answers.append((place, status, body, seconds))
        if time.monotonic() >= self._due:
            self._hand_over()

    def close(self) -> None:
        self._hand_over()
        self._batches.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        self._batches.put(self._answers)
        self._answers = []
        self._due = time.monotonic() + REPORT_SECONDS

    def _write_all(self) -> None:
        while (batch := self._batches.get()) is not None:
            pickle.dump(batch, self._output)
            self._output.flush()


def main() -> None:
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    schedule: Schedule = pickle.load(sys.stdin.buffer)
    requests, due = prepare(schedule)
    order = np.argsort(due, kind="stable")
    places = order.tolist()
    if not sys.stdin.buffer.readline():
        return
    reporter = Reporter(sys.stdout.buffer)
    try:
        open_loop(
            ("127.0.0.1", schedule.port),
            [requests[place] for place in places],
            due[order].tolist(),
            connections=CONNECTIONS,
            on_answer=lambda n, *answer: reporter.add(places[n], *answer),
            stopped=stopping.is_set,
        )
    except OSError as error:
        print(f"the service went away: {error}", file=sys.stderr)
    finally:
        reporter.close()


def prepare(schedule: Schedule) -> tuple[list[bytes], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """The requests, payments first, and when each is due, in seconds from the start."""
    payments, reports = schedule.history.payments, schedule.history.reports
    token = read_token()
    requests = [request("/v1/policies/authorise/decide", body, token=token) for body in payments_json(payments)]
    requests += [request("/v1/topics/fraud_reports/events", body, token=token) for body in reports_json(reports)]
    times = np.concatenate([payments.paid_at, reports.reported_at])
    first, last = times.min(), times.max()
    return requests, (times - first) * (schedule.seconds / max(1, last - first))


if __name__ == "__main__":
    main()
