"""The life of the doors: core, models, listening, and an orderly end.

A signal ends it: no new connections, then the answers to what is held, then the core's last sync.
Each step has its bound, so that stopping always ends.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic, monotonic_ns, time

from penstock.errors import PenstockError, SettingsError
from penstock.runtime.gate import Gate
from penstock.runtime.models import PROGRAM, ModelLimits, Models, Worker
from penstock.runtime.snapshots import Snapshots
from penstock.serve.answers import Answers
from penstock.serve.door import Door
from penstock.serve.guard import Guard
from penstock.serve.health import Health, trouble
from penstock.serve.metrics import Metrics
from penstock.serve.notices import DeadLetterNotice
from penstock.serve.relay import Relay
from penstock.serve.routes import Routes
from penstock.serve.settings import Doors, DoorSettings, check_address
from penstock.serve.tls import BACKLOG, TlsListener, bound_sockets

logger = logging.getLogger("penstock.serve")

TICK_S_MAX = 1.0
DRAIN_STEP_S = 0.005
# How long a connection that waits for nothing stays open for a request on its way.
ARRIVE_S = 0.1
# After the core has stopped, how long its last answers may take to leave.
LAST_WRITES_S = 1.0
# What the process opens beside its connections: the log's files, the models' sockets, the rest.
OTHER_FILES = 512


@dataclass(frozen=True)
class Steps:
    """Who hears how the start goes: `listening` once calls are taken (host and port), then `ready` once all models
    have come up, as `/readyz` says too. Until then `waiting` hears of each model that did not: which, and why.
    """

    listening: Callable[[str, int], None] = lambda host, port: None
    waiting: Callable[[str], None] = lambda reason: None
    ready: Callable[[], None] = lambda: None


UNHEARD = Steps()


def run(
    core: Gate,
    doors: Doors,
    settings: DoorSettings,
    *,
    snapshots: Snapshots,
    steps: Steps = UNHEARD,
    model_program: Sequence[str] = PROGRAM,
) -> None:
    """Serve until a signal, as this process's main task."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        # What was made by now stays: a collection that walks it would hold every answer back.
        gc.collect()
        gc.freeze()
        runner.run(serve(core, doors, settings, snapshots=snapshots, steps=steps, model_program=model_program))


async def serve(
    core: Gate,
    doors: Doors,
    settings: DoorSettings,
    *,
    snapshots: Snapshots,
    steps: Steps = UNHEARD,
    stop: asyncio.Event | None = None,
    model_program: Sequence[str] = PROGRAM,
) -> None:
    """Answer HTTP until SIGTERM or SIGINT, then end in order; a second signal waits for no answers.

    Where `stop` is given it ends the doors, and signals are left alone. Raises `SettingsError` for
    an address that cannot be listened on, and what the core raised if it was lost.
    """
    check_address(settings)
    connections_max = allow_connections(settings.connections_max)
    settings = replace(settings, connections_max=connections_max)
    server = Server(core, doors, settings, snapshots, steps, model_program)
    with stop_signals(stop, hang_up=server.reload if server.guarded else None) as (stop, hurry):
        await server.live(stop=stop, hurry=hurry)


def check_port(host: str, port: int) -> None:
    """See that nobody else listens there. Raises `SettingsError`."""
    for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise _cannot_listen(host, port, error) from None


def _cannot_listen(host: str, port: int, error: OSError) -> SettingsError:
    if error.errno == errno.EADDRINUSE:  # The loop words it at length, with the address again.
        hint = "stop what is listening there, or choose another --port"
        return SettingsError(f"port {port} of {host} is in use", hint=hint)
    return SettingsError(f"cannot listen on {host}, port {port}: {error.strerror}")


class Server:
    """The parts of the doors, and their common life."""

    def __init__(
        self,
        core: Gate,
        doors: Doors,
        settings: DoorSettings,
        snapshots: Snapshots,
        steps: Steps,
        model_program: Sequence[str],
    ) -> None:
        routes = Routes(doors, settings)
        limits = ModelLimits(settings.model_start_s, settings.model_batch_s, settings.model_queue_max)
        self._core = core
        self._settings = settings
        self._steps = steps
        self._ready = False
        self._answers = Answers()
        self._relay = relay = Relay(core, routes, settings, self._answers)
        self._models = Models(doors.models, limits, scored=relay.scored, moved=self._hear_model, program=model_program)
        self._guard = Guard(settings)
        self._door = Door(settings, routes=routes, relay=relay, guard=self._guard)
        self._health = Health(door=self._door, models=self._models, snapshots=snapshots)
        self._notice = DeadLetterNotice()
        metrics = Metrics(door=self._door, routes=routes, models=self._models, snapshots=snapshots)
        self._door.pages = {
            routes.metrics: metrics.page,
            routes.healthz: self._health.alive,
            routes.readyz: self._health.ready,
        }
        self._tick_s = min(
            TICK_S_MAX,
            min(settings.request_s, settings.idle_s, settings.write_s, settings.stuck_s) / 4,
        )
        self._ticking: asyncio.TimerHandle | None = None

    @property
    def guarded(self) -> bool:
        """Whether there are files that say who may call."""
        return bool(self._guard.files)

    def reload(self) -> None:
        self._door.reload()

    async def live(self, *, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        listener = await self._bind()
        try:
            self._open(stop)
            await listener.start_serving()
            self._steps.listening(*listener.sockets[0].getsockname()[:2])
            self._models.start()
            self._say_ready()
            await stop.wait()
            listener.close()
            await self._drain(hurry)
        finally:
            listener.close()
            self._close()

    async def _bind(self) -> asyncio.Server | TlsListener:
        loop = asyncio.get_running_loop()
        host, port = self._settings.host, self._settings.port
        try:
            if self._guard.certificate is not None:
                return TlsListener(self._door, bound_sockets(host, port))
            return await loop.create_server(self._door.connect, host, port, backlog=BACKLOG, start_serving=False)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None

    def _open(self, stop: asyncio.Event) -> None:
        self._relay.open(self._core.start(), self._models.score)
        self._relay.failed.add_done_callback(lambda _: stop.set())
        self._tick()

    def _hear_model(self, worker: Worker) -> None:
        if worker.proven:
            self._say_ready()
        elif worker.starts == 1:
            self._steps.waiting(trouble(worker))

    def _say_ready(self) -> None:
        if self._models.proven and not self._ready:
            self._ready = True
            self._steps.ready()

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Answer what is held, then have the core end; raises what the core was lost with."""
        logger.info("stopping: answering what is held")
        relay = self._relay
        self._door.begin_stop()
        await self._let_arrive(hurry)
        self._door.stop()
        await wait_until(
            lambda: relay.failed.done() or not (relay.pending or self._door.busy()),
            limit_s=self._settings.drain_s,
            hurry=hurry,
        )
        # Batches that are still at a model fail now, so that the core can decide without it.
        self._models.stop()
        relay.submit()
        if not relay.failed.done():
            await self._stop_core()
        relay.abandon()
        await wait_until(lambda: not self._door.busy(), limit_s=LAST_WRITES_S, hurry=hurry)
        if relay.failed.done():
            relay.failed.result()

    async def _let_arrive(self, hurry: asyncio.Event) -> None:
        """Requests that were sent before their callers can know of the end are read, and so answered."""
        await wait_until(lambda: self._relay.failed.done(), limit_s=ARRIVE_S, hurry=hurry)
        # However late this goes on: a turn of the loop that reads what is there, and one that takes it.
        for _ in range(2):
            await asyncio.sleep(0)

    async def _stop_core(self) -> None:
        try:
            await stop_core(self._core, self._settings.stop_s)
            self._relay.deliver_taken()
        except Exception as error:
            self._relay.fail(error)

    def _close(self) -> None:
        self._models.stop()
        self._relay.close()
        self._door.abort()
        if self._ticking is not None:
            self._ticking.cancel()

    def _tick(self) -> None:
        """What need not be exact: dates, and the ends of what takes too long."""
        self._ticking = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        now_ns = monotonic_ns()
        self._answers.set_date(time())
        self._door.check(now_ns)
        if self._guard.changed():
            self.reload()
        try:
            self._health.watch(now_ns)
            self._notice.look(self._relay.core_stats(), now_ns)
        except Exception as error:
            self._relay.fail(error)


async def wait_until(condition: Callable[[], bool], *, limit_s: float, hurry: asyncio.Event) -> None:
    """Wait for this to be so, no longer than `limit_s` and not at all in a hurry."""
    until_s = monotonic() + limit_s
    while not (condition() or hurry.is_set() or monotonic() > until_s):
        await asyncio.sleep(DRAIN_STEP_S)


async def stop_core(core: Gate, limit_s: float) -> None:
    """Have the core end, on a thread of its own, while the loop hands out the last answers.

    Raises `PenstockError` if it takes longer than `limit_s`.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        outcome: Exception | None
        try:
            core.stop()
        except Exception as error:
            outcome = error
        else:
            outcome = None
        # Where the core took too long the loop may have ended by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, stopped, outcome)

    # A daemon, so that a core that hangs cannot keep the process.
    threading.Thread(target=stop, name="stop the core", daemon=True).start()
    try:
        await asyncio.wait_for(stopped, limit_s)
    except TimeoutError:
        raise PenstockError(
            f"the core did not stop within {limit_s:g} s",
            hint="nothing that was answered is lost; the next start reads the log's tail again",
        ) from None


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


@contextmanager
def stop_signals(
    stop: asyncio.Event | None, *, hang_up: Callable[[], None] | None
) -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Events for the first signal to stop and the second; only `stop` where that is given.

    SIGHUP calls `hang_up`; without it, it ends the process as it always does.
    """
    hurry = asyncio.Event()
    if stop is not None:
        yield stop, hurry
        return
    stop = first = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = [signal.SIGTERM, signal.SIGINT]
    for number in signals:
        loop.add_signal_handler(number, lambda: (hurry if first.is_set() else first).set())
    if hang_up is not None:
        signals.append(signal.SIGHUP)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        yield stop, hurry
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def allow_connections(wanted: int) -> int:
    """How many connections there may be, so that they cannot use up the files the log needs."""
    files = wanted + OTHER_FILES
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        files = min(files, most)
    if allowed != resource.RLIM_INFINITY and allowed < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    if files - OTHER_FILES < wanted:
        connections = max(files - OTHER_FILES, files // 2)
        logger.warning("at most %d connections: the process may open %d files", connections, files)
        return connections
    return wanted
