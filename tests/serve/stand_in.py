"""A core for the door's own tests: answers are made from the request, and a test says when.

It keeps the interface's promises (a thread of its own, an eventfd, handles given back) and none of the
core's work, so that a test of the door can have any answer at any time.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.runtime.gate import Answer, Request

# What a request is answered with; None leaves it unanswered.
Script = Callable[[Request], tuple[int, bytes, int] | None]


def echo(request: Request) -> tuple[int, bytes, int]:
    """The answer names what was asked."""
    _, kind, target, body, _ = request
    return 200, json.dumps([kind, target, body.decode("latin-1")]).encode(), 0


@dataclass
class StandIn:
    """A scripted core."""

    script: Script = echo
    stuck: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    told_handles: list[int] = field(default_factory=list)
    worded: int = 0  # bodies of many lines that were told
    wording: threading.Event = field(default_factory=threading.Event)  # set: that does not end
    beat: int = 0
    state_bytes: int = 0
    reader_lags: tuple[tuple[str, float | None], ...] = ()
    log_sequence: int = 0
    removal_failed: str | None = None
    ids_damaged: str | None = None
    ids_unmerged: str | None = None
    started: bool = False
    stopped: bool = False
    fails: str = ""  # the method that raises
    full: str | None = None
    failed: str | None = None

    def __post_init__(self) -> None:
        self._submitted = 0
        self._queue: queue.SimpleQueue[list[Request] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def start(self) -> int:
        self._check("start")
        self.started = True
        self._thread.start()
        return self._fd

    def submit(self, requests: list[Request], /) -> None:
        self._check("submit")
        assert requests, "nothing is submitted only when there is something"
        self.batches.append(len(requests))
        self._submitted += len(requests)
        self._queue.put(requests)

    def take(self) -> list[Answer]:
        self._check("take")
        taken = []
        while not self._ready.empty():
            taken.append(self._ready.get())
        return taken

    def told(self, handle: int, /) -> None:
        self.told_handles.append(handle)

    def fallback(self, target: int, body: bytes, took_ns: int, /) -> tuple[int, bytes]:
        self._check("fallback")
        if not body.startswith(b"{"):
            return 422, b'{"error": {"code": "invalid_event", "message": "it is no event"}}'
        return 200, json.dumps({"timed_out": True, "cause": "deadline", "of": target}).encode()

    def overload(self, target: int, body: bytes, took_ns: int, /) -> tuple[int, bytes]:
        if not body.startswith(b"{"):
            return 422, b'{"error": {"code": "invalid_event", "message": "it is no event"}}'
        return 200, json.dumps({"timed_out": False, "cause": "overload", "of": target}).encode()

    def fallbacks(self, target: int, body: bytes, took_ns: int, /) -> bytes:
        return self._word(body, lambda line: self.fallback(target, line, took_ns))

    def overloads(self, target: int, body: bytes, took_ns: int, /) -> bytes:
        return self._word(body, lambda line: self.overload(target, line, took_ns))

    def _word(self, body: bytes, each: Callable[[bytes], tuple[int, bytes]]) -> bytes:
        while self.wording.is_set():
            time.sleep(0.002)
        self.worded += 1
        return b"".join(each(line)[1] + b"\n" for line in body.splitlines() if line)

    def stats(self) -> bytes:
        return json.dumps(
            {
                "beat": self.beat,
                "queued": self._submitted - len(self.requests),
                "state_bytes": self.state_bytes,
                "state_bytes_max": 1_000,
                "reader_lags": self.reader_lags,
                "log_sequence": self.log_sequence,
                "removal_failed": self.removal_failed,
                "ids_damaged": self.ids_damaged,
                "ids_unmerged": self.ids_unmerged,
                "full": self.full,
                "failed": self.failed,
                "commits": len(self.batches),
                "decisions": [["authorise", 'a "quoted" outcome', 3]],
                "sync_seconds": {"bounds": [0.5, 1.0], "counts": [3, 2, 1], "sum": 4.5},
            }
        ).encode()

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._check("stop")
        self.stopped = True

    # What tests do.

    def say(self, *answers: Answer) -> None:
        """Have these taken next."""
        for answer in answers:
            self._ready.put(answer)
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        if self._thread.is_alive():
            self.stuck.clear()
            self.wording.clear()
            self._queue.put(None)
            self._thread.join()
        os.close(self._fd)

    def _check(self, method: str) -> None:
        if self.fails == method:
            raise OSError(5, "the disk failed")

    def _run(self) -> None:
        while (requests := self._queue.get()) is not None:
            while self.stuck.is_set():
                time.sleep(0.002)
            self.beat += 1
            self.requests += requests
            answers = [(request[0], self.script(request)) for request in requests]
            self.say(*((handle, *answer) for handle, answer in answers if answer is not None))
