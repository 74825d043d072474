"""The gate's side of models: one process each, fed with batches, given up when it takes too long.

             start              loaded, warmed up            a batch
    down ───────────▶ starting ───────────────────▶ ready ◀──────────▶ at work
      ▲                  │                            │                   │
      └──── back-off ────┴──── ended, no warm-up ─────┴──── too long ─────┘

Nothing here waits: whatever happens to a model, its batches are answered, scored or failed, and no
other work of the gate is held back. While a model is down its batches fail at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import cast

from penstock.runtime.frames import (
    LENGTH_BYTES,
    ROWS,
    SCORES,
    WARM_UP,
    Part,
    decode,
    encode,
    frame_length,
)

logger = logging.getLogger("penstock.models")

# Batches that wait go to the process together, up to these bounds.
FRAME_BATCHES_MAX = 64
FRAME_ROWS_BYTES_MAX = 4 << 20

BACK_OFF_FIRST_S = 0.1
BACK_OFF_LAST_S = 10.0
REAP_S = 0.05
STOP_S = 1.0
COMPLAINTS_S = 1.0

PROGRAM = (sys.executable, "-m", "penstock.runtime.model_worker")

# A model's cores are the gate's too: its libraries start one thread each unless told otherwise.
THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# Takes a batch's scores (number, float64s); empty where it failed.
Scored = Callable[[int, bytes], None]

# Hears that a model has come up, or has been lost.
Moved = Callable[["Worker"], None]


@dataclass(frozen=True)
class ModelSpec:
    """A model: its name in the user's file `app`, and the shortest deadline of its policies.

    `warm_up` is an Arrow stream with the columns that batches will have; empty leaves the warm-up
    out. A model that cannot score it is not up.
    """

    name: str
    app: Path
    within_s: float
    warm_up: bytes = b""


@dataclass(frozen=True)
class ModelLimits:
    """`batch_s` is the time of one call of the model; None means 20 deadlines, at least a second."""

    start_s: float = 60.0
    batch_s: float | None = None
    queue_max: int = 256

    def batch_limit_s(self, spec: ModelSpec) -> float:
        return self.batch_s or max(1.0, 20 * spec.within_s)


class Models:
    """All models of a pipeline; a model's index is its place in `specs`."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        limits: ModelLimits,
        *,
        scored: Scored,
        moved: Moved | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        hear = moved or _nobody
        self.workers = [Worker(spec, limits, scored, hear, program=program) for spec in specs]

    @property
    def proven(self) -> bool:
        """Whether each has been up once: from then on one that is lost is started again meanwhile."""
        return all(worker.proven for worker in self.workers)

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    def score(self, index: int, number: int, rows: bytes) -> None:
        """Have a batch (an Arrow stream) scored; `scored` is called with its number, once."""
        self.workers[index].score(number, rows)

    def stop(self) -> None:
        """End the processes; what they had at work fails."""
        for worker in self.workers:
            worker.stop()


class Worker:
    """One model's process, and what it has been given."""

    def __init__(
        self,
        spec: ModelSpec,
        limits: ModelLimits,
        scored: Scored,
        moved: Moved,
        *,
        program: Sequence[str],
    ) -> None:
        self.spec = spec
        self.ready = False
        self.proven = False  # it has been ready once
        self.trouble = "it is starting"  # why it is not ready, while it is not
        self._down_s = monotonic()  # since when, while it is not
        self.starts = self.scored = self.failed = 0
        self.busy_s = 0.0
        self._limits = limits
        self._tell = scored
        self._moved = moved
        self._program = program
        self._waiting: deque[Part] = deque()
        self._at_work: list[int] = []  # the numbers of the batches in the process
        self._called_s = 0.0  # when the call began that is under way
        self._call_limit_s = 0.0
        self._back_off_s = BACK_OFF_FIRST_S
        self._complained_s = -COMPLAINTS_S
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: list[subprocess.Popen[bytes]] = []  # whose end has not been seen
        self._pipe: Pipe | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None  # kept, or it may vanish
        self._stopped = False

    @property
    def down_s(self) -> float:
        """How long it has not been ready, while it is not; starts that failed meanwhile are part of it."""
        return monotonic() - self._down_s

    def start(self) -> None:
        """Start the process; it is ready when it has loaded the model and warmed it up."""
        loop = asyncio.get_running_loop()
        self.starts += 1
        self._set_timer(self._limits.start_s, f"it did not start in {self._limits.start_s:g} s")
        try:
            ours = self._spawn()
        except OSError as error:
            self.lose(f"it could not be started: {error.strerror}")
            return
        self._pipe = pipe = Pipe(self)
        self._connecting = loop.create_task(_connect(loop, pipe, ours))

    def score(self, number: int, rows: bytes) -> None:
        if not self.ready or len(self._waiting) >= self._limits.queue_max:
            self._complain("it is not up" if not self.ready else "too many batches wait for it")
            self._fail([number])
            return
        self._waiting.append((number, ROWS, rows))
        if not self._at_work:
            self._feed()

    def stop(self) -> None:
        self._stopped = True
        self._end_process()
        for process in self._killed:
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)

    # The pipe calls these.

    def receive(self, parts: list[Part]) -> None:
        """Take what the process says: that it is loaded, or what a call gave of what it has at work.

        A call that failed gives nothing where the same batches follow in smaller ones.
        """
        if not self._at_work:
            self._loaded(parts)
        elif [number for number, _, _ in parts] != self._at_work[: len(parts)]:
            self.lose("it answered something else than it was asked")
        else:
            now_s = monotonic()
            self.busy_s += now_s - self._called_s
            del self._at_work[: len(parts)]
            if self._at_work:
                self._time_call(now_s)
            else:
                self._stop_timer()
            for number, state, load in parts:
                self._take(number, state, load)
            if not self._at_work:
                self._feed()

    def lose(self, reason: str) -> None:
        """The process is of no use any more: fail what it has, start another after a while."""
        if self._stopped:
            return
        logger.warning(
            'model "%s": %s; starting it again in %.1f s', self.spec.name, reason, self._back_off_s
        )
        self.trouble = reason
        self._end_process()
        self._timer = asyncio.get_running_loop().call_later(self._back_off_s, self.start)
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_LAST_S)
        self._moved(self)

    # The steps of these.

    def _spawn(self) -> socket.socket:
        """Start the process; our end of the socket to it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [*self._program, str(self.spec.app), self.spec.name, str(descriptor)],
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                env={**dict.fromkeys(THREADS, "1"), **os.environ},
            )
        return ours

    def _loaded(self, parts: list[Part]) -> None:
        if self.ready or [number for number, _, _ in parts] != [WARM_UP]:
            self.lose("it answered something that it was not asked")
        elif parts[0][1] != SCORES:
            self.lose(f"it could not be loaded: {_reason(parts[0])}")
        elif self.spec.warm_up:
            self._send([(WARM_UP, ROWS, self.spec.warm_up)], self._limits.start_s)
        else:
            self._become_ready()

    def _become_ready(self) -> None:
        self._stop_timer()
        self.ready = self.proven = True
        logger.info('model "%s" is up', self.spec.name)
        self._moved(self)

    def _take(self, number: int, state: int, load: bytes) -> None:
        reason = "" if state == SCORES else _reason((number, state, load))
        if number == WARM_UP and reason:
            self.lose(f"its warm-up failed: {reason}")
        elif number == WARM_UP:
            self._become_ready()
        elif reason:
            self._complain(reason)
            self._fail([number])
        else:
            self.scored += 1
            self._back_off_s = BACK_OFF_FIRST_S
            self._tell(number, load)

    def _feed(self) -> None:
        """Give the process what waits, together."""
        parts: list[Part] = []
        size = 0
        while self._waiting and len(parts) < FRAME_BATCHES_MAX and size < FRAME_ROWS_BYTES_MAX:
            parts.append(self._waiting.popleft())
            size += len(parts[-1][2])
        if parts:
            self._send(parts, self._limits.batch_limit_s(self.spec))

    def _send(self, parts: list[Part], limit_s: float) -> None:
        assert self._pipe is not None, "only a process that has said it is loaded gets batches"
        self._at_work = [number for number, _, _ in parts]
        self._call_limit_s = limit_s
        self._time_call(monotonic())
        self._pipe.write(encode(parts))

    def _time_call(self, now_s: float) -> None:
        self._called_s = now_s
        limit_s = self._call_limit_s
        self._set_timer(limit_s, f"a batch took longer than {limit_s:g} s")

    def _end_process(self) -> None:
        if self.ready:
            self._down_s = monotonic()
        self.ready = False
        self._stop_timer()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._killed.append(self._process)
            self._process = None
            self._reap()
        failed = [number for number in self._at_work if number != WARM_UP]
        failed += [number for number, _, _ in self._waiting]
        self._at_work = []
        self._waiting.clear()
        self._fail(failed)

    def _reap(self) -> None:
        """Take killed processes' exit statuses when they are there; waiting would hold the gate."""
        self._killed = [process for process in self._killed if process.poll() is None]
        if self._killed and not self._stopped:
            asyncio.get_running_loop().call_later(REAP_S, self._reap)

    def _fail(self, numbers: list[int]) -> None:
        self.failed += len(numbers)
        for number in numbers:
            self._tell(number, b"")

    def _complain(self, reason: str) -> None:
        """Say why batches fail, once a second at most."""
        now_s = monotonic()
        if now_s - self._complained_s >= COMPLAINTS_S:
            self._complained_s = now_s
            logger.warning('model "%s" failed: %s', self.spec.name, reason)

    def _set_timer(self, limit_s: float, reason: str) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(limit_s, self.lose, reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Pipe(asyncio.Protocol):
    """The socket to one process; cut off from the worker when the worker gives that process up."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def write(self, frame: bytes) -> None:
        assert self._transport is not None, "the process has spoken over it"
        self._transport.write(frame)

    def close(self) -> None:
        self._worker = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._worker is None:  # given up while it was being connected
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while self._worker is not None and (rest := self._next_frame()) is not None:
                self._worker.receive(list(decode(rest)))
        except ValueError as error:
            self._lose(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._lose("its process ended")

    def _next_frame(self) -> bytes | None:
        received = self._received
        if len(received) < LENGTH_BYTES:
            return None
        end = LENGTH_BYTES + frame_length(received)
        if len(received) < end:
            return None
        rest = bytes(received[LENGTH_BYTES:end])
        del received[:end]
        return rest

    def _lose(self, reason: str) -> None:
        if self._worker is not None:
            self._worker.lose(reason)


def _reason(part: Part) -> str:
    """Why there are no scores, in the process's words."""
    return part[2].decode(errors="replace")


def _nobody(worker: Worker) -> None:
    """Nobody asked to hear of it."""


async def _connect(loop: asyncio.AbstractEventLoop, pipe: Pipe, ours: socket.socket) -> None:
    await loop.create_unix_connection(lambda: pipe, sock=ours)
