"""A door that runs, and clients that speak to it in bytes, so that no library mends what is sent."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvloop

from penstock.runtime.gate import Gate
from penstock.runtime.models import PROGRAM
from penstock.runtime.snapshots import Snapshots
from penstock.serve.server import Steps, serve
from penstock.serve.settings import Doors, DoorSettings, PolicyDoor, TopicDoor

# Long enough for a loaded machine; nothing that works waits for it.
PATIENCE_S = 20.0

DOORS = Doors(
    policies=(
        PolicyDoor("authorise", 0, within_s=30.0),
        PolicyDoor("quick", 1, within_s=0.05),
        PolicyDoor("lenient", 2, within_s=30.0, on_overload="fallback"),
    ),
    topics=(TopicDoor("payments", 0), TopicDoor("reports", 1)),
)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class Client:
    """One connection."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        opened = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket = opened if context is None else context.wrap_socket(opened, server_hostname="localhost")
        self._received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.answer()

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer. Raises `ConnectionError` where the connection ends before it."""
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, rest = self._received.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
        length = 0 if head_only else int(headers.get("content-length", 0))
        self._received = rest
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return Answer(int(line.split()[1]), headers, body)

    def exchange(self, data: bytes, count: int) -> list[Answer]:
        """Send as long as that goes, and only then read; so many answers. In one thread: OpenSSL's connections are not
        for two."""
        left = memoryview(data)
        self.socket.setblocking(False)
        while self._received.count(b"HTTP/1.1 ") < count:
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                while left:
                    left = left[self.socket.send(left[: 1 << 16]) :]
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._receive()
                continue
            select.select([self.socket], [self.socket] if left else [], [], PATIENCE_S)
        self.socket.settimeout(PATIENCE_S)
        return [self.answer() for _ in range(count)]

    def ended(self) -> bool:
        """Whether the door closes this connection, with nothing more to say."""
        try:
            return self._received == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Go away without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the door has closed the connection")
        self._received += data


@dataclass
class Running:
    """A door in a thread of its own."""

    core: Gate
    port: int
    stop: Callable[[], None]
    errors: list[BaseException] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    context: ssl.SSLContext | None = None  # of its clients, where it speaks TLS

    def client(self) -> Client:
        self.clients.append(Client(self.port, self.context))
        return self.clients[-1]

    def ask(self, data: bytes) -> Answer:
        """Ask over a connection of its own."""
        return self.client().ask(data)


@contextmanager
def running(
    core: Gate,
    *,
    doors: Doors = DOORS,
    program: Sequence[str] = PROGRAM,
    fails: bool = False,
    snapshots: Snapshots | None = None,
    context: ssl.SSLContext | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """A door over this core until the block ends; `fails` where the core is going to be lost."""
    ready = threading.Event()
    door = Running(core, 0, lambda: None, context=context)

    def live() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:
            door.errors.append(error)
        finally:
            ready.set()

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def listening(host: str, port: int) -> None:
            door.port = port
            door.stop = lambda: _call(loop, stop.set)
            ready.set()

        await serve(
            core,
            doors,
            DoorSettings(**{"port": 0, **settings}),
            snapshots=snapshots or Snapshots(30.0),
            steps=Steps(listening),
            stop=stop,
            model_program=program,
        )

    thread = threading.Thread(target=live)
    thread.start()
    ready.wait(PATIENCE_S)
    try:
        if door.port == 0:
            raise AssertionError("the door did not open") from door.errors[0]
        yield door
    finally:
        door.stop()
        thread.join(PATIENCE_S)
        for client in door.clients:
            client.close()
    assert not thread.is_alive(), "the door did not end"
    if door.errors and not fails:
        raise door.errors[0]


def post(
    path: str,
    body: bytes = b"{}",
    *headers: str,
    media: str | None = "application/json",
    length: int | None = None,
) -> bytes:
    """A request's bytes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: penstock",
        *([] if media is None else [f"Content-Type: {media}"]),
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: penstock", *headers, "", ""]).encode()


DECIDE = "/v1/policies/authorise/decide"


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until this is so."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.005)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)
