"""Connections that shake hands before they are the door's.

    accept ─▶ handshake (counted, and bounded in time) ─▶ Connection, as without TLS
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from penstock.serve.door import Door

BACKLOG = 1_024
ACCEPTED_PER_TURN = 64
# After the system had no more files for a connection, how long until the next is accepted.
PAUSE_S = 0.5
# How long a client may take to say that it has seen the end.
SHUTDOWN_S = 2.0


class TlsListener:
    """Accepts connections, and gives those to the door that have shaken hands.

    A server of asyncio's neither counts nor bounds those that have not yet. Beyond the door's number
    of connections one is closed at once, unheard.
    """

    def __init__(self, door: Door, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._open = False

    async def start_serving(self) -> None:
        self._open = True
        for each in self.sockets:
            each.listen(BACKLOG)
            self._listen(each)

    def close(self) -> None:
        """Take no more, and end those that are still shaking hands."""
        for each in self.sockets:
            if self._open:
                self._loop.remove_reader(each)
            each.close()
        self._open = False
        for task in self._handshakes:
            task.cancel()

    def _listen(self, listening: socket.socket) -> None:
        if self._open:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # No files are left. Those who wait are still there after a pause.
                self._loop.remove_reader(listening)
                self._loop.call_later(PAUSE_S, self._listen, listening)
                return
            self._take(accepted)

    def _take(self, accepted: socket.socket) -> None:
        door = self._door
        if len(self._handshakes) + len(door.connections) - door.lingering >= door.settings.connections_max:
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._shake_hands(accepted))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        guard = self._door.guard
        assert guard.certificate is not None, "only a door with a certificate listens so"
        try:
            await self._loop.connect_accepted_socket(
                self._door.connect,
                accepted,
                ssl=guard.certificate.context,
                ssl_handshake_timeout=self._door.settings.request_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except (OSError, TimeoutError):
            guard.handshakes_failed += 1


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets at every address of a host. Raises `OSError`."""
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in _addresses(host, port):
            each = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            sockets.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind(address)
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _addresses(host: str, port: int) -> list[Any]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))
