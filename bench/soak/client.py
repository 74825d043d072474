"""The soak's one caller: an open loop over many connections, which outlives its service.

A payment has its time, whatever the service does; its latency counts from then. What gets no answer because a
connection ended is sent again until it has one.
"""

from __future__ import annotations

import select
import socket
from array import array
from collections import deque
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from bench.soak.books import Books
from penstock.demo.load import Address, request

DECIDE = "/v1/policies/authorise/decide"
# Callers who do not wait, when it is asked how much the service takes.
CONNECTIONS = 64
# An open loop's: a payment that is due must not have to wait for one.
OPEN_CONNECTIONS = 256
RECEIVE_BYTES = 1 << 16
# A connection that was refused is tried again after so long, as is what was told to wait.
AGAIN_S = 0.05


class Client:
    def __init__(self, address: Address, books: Books, connections: int) -> None:
        self.books, self.connections = books, connections
        self.seconds: list[NDArray[np.float64]] = []  # latencies by the second in which their answer came
        self.late_s: list[float] = []  # at the end of each second: for how long a payment had waited to be sent
        self.sent_again = 0
        self._address = address
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._again: deque[int] = deque()
        self._refused_at = 0.0
        self._second = array("d")

    def run(self, seconds: float, on_second: Callable[[int], None]) -> None:
        """Send what becomes due in so many seconds, and have an answer to all of it."""
        books, start = self.books, perf_counter()
        total, number = int(seconds * books.rate), 0
        while number < total or self._again or len(self._idle) < len(self._open):
            now = perf_counter()
            self._connect(now)
            while self._idle and (self._again and now > self._refused_at + AGAIN_S):
                self._send(self._again.popleft(), start)
            while self._idle and number < total and start + number / books.rate <= now:
                books.enter(number)
                self._send(number, start)
                number += 1
            for fd, _ in self._epoll.poll(0.001):
                self._receive(self._open[fd], start)
            while now - start >= len(self.seconds) + 1:
                self.seconds.append(np.array(self._second))
                self._second = array("d")
                self.late_s.append(max(now - start - number / books.rate, 0.0))
                on_second(len(self.seconds))

    def _send(self, number: int, start: float) -> None:
        connection = self._idle.pop()
        connection.number, connection.due = number, start + number / self.books.rate
        try:
            connection.socket.sendall(request(DECIDE, self.books.payment(number)))
        except OSError:
            self._lose(connection)

    def _receive(self, connection: _Connection, start: float) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._lose(connection)
            return
        answer = connection.take(data)
        if answer is None:
            return
        number, connection.number = connection.number, None
        if number is None:
            raise RuntimeError("an answer that nobody asked for")
        if self.books.note(number, *answer):
            self._second.append(perf_counter() - connection.due)
        else:
            self._again.append(number)
            self._refused_at = perf_counter()
        if answer[0] in (408, 503):
            # Who says so may close: what comes next goes over a new connection.
            self._lose(connection)
        else:
            self._idle.append(connection)

    def _lose(self, connection: _Connection) -> None:
        del self._open[connection.socket.fileno()]
        # To close it is not enough while a child that is being forked holds it too.
        self._epoll.unregister(connection.socket)
        connection.socket.close()
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.number is not None:
            self._again.append(connection.number)
            self.sent_again += 1

    def _connect(self, now: float) -> None:
        while len(self._open) < self.connections and now > self._refused_at + AGAIN_S:
            try:
                opened = socket.create_connection(self._address)
            except OSError:
                self._refused_at = now
                return
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(opened)
            self._open[opened.fileno()] = connection
            self._epoll.register(opened, select.EPOLLIN)
            self._idle.append(connection)


class _Connection:
    """One socket with at most one request on it."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.number: int | None = None
        self.due = 0.0
        self._received = b""

    def take(self, data: bytes) -> tuple[int, bytes] | None:
        """The status and body, once they are there."""
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        head = self._received[:end]
        start = head.lower().find(b"content-length:") + 15
        length = int(head[start : head.find(b"\r\n", start)])
        if len(self._received) < end + length:
            return None
        body, self._received = self._received[end : end + length], self._received[end + length :]
        return int(head[9:12]), body
