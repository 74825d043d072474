"""The faults of a soak: each is done to a running service, and undone."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import process_tree
from bench.soak.books import Books
from bench.soak.client import DECIDE
from penstock.demo.service import Service

SAMPLE = 300
PAUSE_S = 1.0
NOTICED_S = 1.0
PATIENCE_S = 15
STUCK_S = 3.0
FLOOD = 500
POISONS = (b"{", b"[]", b"\xff\xfe", b'{"payment_id":1}', b'{"payment_id":"x"}' * 100_000, b"[" * 1_000_000)


@dataclass
class Faults:
    """Done in an order that the seed shuffles, each once before any comes again."""

    service: Service
    books: Books
    stuck: Path
    rng: random.Random
    done: dict[str, int] = field(default_factory=dict)
    recoveries_s: list[float] = field(default_factory=list)  # from the end of a process until the next was ready
    told_again: int = 0
    _coming: list[Callable[[], None]] = field(default_factory=list)

    def do_one(self) -> str:
        if not self._coming:
            self._coming = [
                self.kill, self.terminate, self.pause, self.kill_snapshotter, self.kill_model, self.stick_model,
                self.flood, self.poison,
            ]  # fmt: skip
            self.rng.shuffle(self._coming)
        fault = self._coming.pop()
        name = fault.__name__.replace("_", " ")
        if (status := self.service.process.poll()) is not None:
            self.books.findings.append(f"the service had ended by itself, with {status}")
        fault()
        # What a fault has ended is noticed, and made anew, a moment later: it is undone once the service says so.
        time.sleep(NOTICED_S)
        self.service.wait_until_ready()
        self.done[name] = self.done.get(name, 0) + 1
        return name

    def kill(self) -> None:
        self.service.process.kill()
        self._start_again()

    def terminate(self) -> None:
        self.service.process.send_signal(signal.SIGTERM)
        if status := self.service.process.wait():
            self.books.findings.append(f"an end in order had the status {status}")
        self._start_again()

    def pause(self) -> None:
        self.service.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_S)
        self.service.process.send_signal(signal.SIGCONT)

    def kill_snapshotter(self) -> None:
        self._kill_child("penstock.runtime.snapshotter")

    def kill_model(self) -> None:
        self._kill_child("penstock.runtime.model_worker")

    def stick_model(self) -> None:
        self.stuck.touch()
        time.sleep(STUCK_S)
        self.stuck.unlink()

    def flood(self) -> None:
        """Connections that stop in the middle of a request, and then go."""
        half = f"POST {DECIDE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n".encode()
        opened = []
        for _ in range(FLOOD):
            opened.append(socket.create_connection(self.service.address))
            opened[-1].sendall(half)
        time.sleep(1)
        for each in opened:
            each.close()

    def poison(self) -> None:
        for body in POISONS:
            status = self._post(body, "application/json")[0]
            if status not in (413, 422):
                self.books.findings.append(f"a body that is no payment got {status}")

    def _start_again(self) -> None:
        began = time.monotonic()
        self.service.process.wait()
        self.service.__enter__()
        self.service.wait_until_ready()
        self.recoveries_s.append(time.monotonic() - began)
        self._retry_some()

    def _retry_some(self) -> None:
        """Of the last half minute's, whether they are told the same again."""
        end = len(self.books.places)
        recent = range(max(end - int(30 * self.books.rate), 0), end)
        chosen = self.rng.sample(recent, min(3 * SAMPLE, len(recent)))
        numbers = [number for number in chosen if self.books.places[number] >= 0][:SAMPLE]
        if numbers:
            body = b"\n".join(self.books.payment(number) for number in numbers)
            self.told_again += self.books.compare(numbers, self._post(body, "application/x-ndjson")[1])

    def _post(self, body: bytes, kind: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.service.address, timeout=60)
        try:
            connection.request("POST", DECIDE, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _kill_child(self, module: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for pid in process_tree(self.service.process.pid)[1:]:
                if module in command_of(pid):
                    os.kill(pid, signal.SIGKILL)
                    return
            time.sleep(0.1)  # It may be about to be started again, after the fault before this one.
        self.books.findings.append(f"{module} was not running")


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
