"""An HTTP load client for one core: ready-made requests over keep-alive connections.

Python's cost per request must stay far below the server's, or the client is what gets measured. So
requests are bytes made beforehand, sockets are used directly under one epoll, and of an answer only
the status and length are read, once per distinct head. One request at a time is on a
connection.
"""

from __future__ import annotations

import select
import socket
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Self

import numpy as np
from numpy.typing import NDArray

Address = tuple[str, int]
Answer = tuple[int, bytes]
"""A status and a body."""
Head = tuple[int, int]
"""A status, and how long the body is."""
OnAnswer = Callable[[int, int, bytes, float], None]
"""Called with the request's place, the status, the body and the latency in seconds."""


@dataclass(frozen=True)
class Load:
    """What came back: latencies in seconds, in the order of the answers; answers by status."""

    latencies: NDArray[np.float64]
    statuses: Counter[int]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies, percent)) * 1_000


def request(path: str, body: bytes, *, content_type: str = "application/json", token: str = "") -> bytes:
    """A whole POST request as bytes."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def closed_loop(
    address: Address,
    requests: Iterable[bytes],
    *,
    connections: int,
    seconds: float = float("inf"),
    on_answer: OnAnswer | None = None,
) -> Load:
    """Send on each connection the next request as soon as its answer is there.

    Ends when the requests do, or after `seconds`. A latency counts from the sending, so a server
    that stalls is also asked less: for latencies at a given rate use `open_loop`.
    """
    record = _Record(on_answer)
    coming = enumerate(requests)
    with _Connections(address, connections) as pool:
        start = perf_counter()
        end = start + seconds
        busy = 0
        for connection, (place, data) in zip(pool, coming, strict=False):
            connection.send(data, place, perf_counter())
            busy += 1
        while busy:
            for connection, event in pool.ready():
                answer = connection.receive(event)
                if answer is None:
                    continue
                now = perf_counter()
                record.add(connection, answer, now)
                following = next(coming, None) if now < end else None
                if following is None:
                    busy -= 1
                else:
                    connection.send(following[1], following[0], now)
        return record.load(perf_counter() - start)


def open_loop(
    address: Address,
    requests: Sequence[bytes],
    due: Sequence[float],
    *,
    connections: int,
    on_answer: OnAnswer | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Load:
    """Send each request at its due time, in seconds from the start, or once a connection is free.

    A latency counts from the due time, so waiting for a stalled server is in it: coordinated
    omission does not hide it.
    """
    record = _Record(on_answer)
    with _Connections(address, connections) as pool:
        idle = deque(pool)
        place, start = 0, perf_counter()
        while len(idle) < connections or (place < len(requests) and not stopped()):
            now = perf_counter()
            while idle and place < len(requests) and start + due[place] <= now and not stopped():
                idle.popleft().send(requests[place], place, start + due[place])
                place += 1
            waiting = idle and place < len(requests)
            wait = start + due[place] - perf_counter() if waiting else IDLE_SECONDS
            for connection, event in pool.ready(wait):
                answer = connection.receive(event)
                if answer is not None:
                    record.add(connection, answer, perf_counter())
                    idle.append(connection)
        return record.load(perf_counter() - start)


def steady(rate: float, count: int) -> list[float]:
    """Due times for `open_loop` at a constant rate per second."""
    return [place / rate for place in range(count)]


class _Record:
    """Latencies and statuses as they come."""

    def __init__(self, on_answer: OnAnswer | None) -> None:
        self._latencies = array("d")
        self._statuses = array("H")
        self._on_answer = on_answer

    def add(self, connection: _Connection, answer: Answer, now: float) -> None:
        status, body = answer
        latency = now - connection.since
        self._latencies.append(latency)
        self._statuses.append(status)
        if self._on_answer is not None:
            self._on_answer(connection.place, status, body, latency)

    def load(self, seconds: float) -> Load:
        return Load(np.array(self._latencies), Counter(self._statuses), seconds)


# What an answer usually fits in: Python makes room for all of it before it receives, and gives back
# what was not used. The rest of a longer one is received in larger pieces.
RECEIVE_BYTES = 1 << 13
RECEIVE_MORE_BYTES = 1 << 18
# How long a wait may last when nothing is due; the loop looks around after it.
IDLE_SECONDS = 0.05
# The kernel may wake a waiter this late. The last stretch before a due time is waited for awake.
SPIN_SECONDS = 0.000_15
HEADS_KEPT = 10_000


class _Connections:
    """Connections under one epoll."""

    def __init__(self, address: Address, count: int) -> None:
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        heads: dict[bytes, Head] = {}
        for _ in range(count):
            connection = _Connection(self._epoll, socket.create_connection(address), heads)
            self._by_fd[connection.fd] = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        for connection in self._by_fd.values():
            connection.close()

    def __iter__(self) -> Iterator[_Connection]:
        return iter(self._by_fd.values())

    def ready(self, wait: float | None = None) -> list[tuple[_Connection, int]]:
        """Connections with their events, after waiting at most `wait` seconds for one."""
        # epoll's own timeout counts in milliseconds; select's, on the epoll, in microseconds.
        if wait is not None and wait > SPIN_SECONDS:
            select.select([self._epoll], (), (), wait - SPIN_SECONDS)
        by_fd = self._by_fd
        return [(by_fd[fd], event) for fd, event in self._epoll.poll(-1 if wait is None else 0)]


class _Connection:
    """One socket with at most one request on it."""

    __slots__ = (
        "_epoll",
        "_heads",
        "_received",
        "_recv",
        "_send",
        "_socket",
        "_unsent",
        "fd",
        "place",
        "since",
    )

    def __init__(self, epoll: select.epoll, opened: socket.socket, heads: dict[bytes, Head]) -> None:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._epoll = epoll
        self._heads = heads
        self._socket = opened
        self._recv, self._send = opened.recv, opened.send
        self._received: list[bytes] = []
        self._unsent = memoryview(b"")
        self.fd = opened.fileno()
        self.place = 0
        self.since = 0.0
        epoll.register(self.fd, select.EPOLLIN)

    def send(self, data: bytes, place: int, since: float) -> None:
        self.place, self.since = place, since
        sent = self._send(data)
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._epoll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)

    def receive(self, event: int) -> Answer | None:
        """The status and body, once they are there."""
        if event & select.EPOLLOUT:
            self._send_rest()
            if event == select.EPOLLOUT:
                return None
        data = self._recv(RECEIVE_MORE_BYTES if self._received else RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed a connection")
        if self._received:
            self._received.append(data)
            data = b"".join(self._received)
        start = data.find(b"\r\n\r\n") + 4
        if start < 4:
            self._received = [data]
            return None
        head = data[:start]
        status, length = self._heads.get(head) or self._read(head)
        if len(data) < start + length:
            self._received = [data]
            return None
        if self._received:
            self._received = []
        return status, data[start:]

    def close(self) -> None:
        self._socket.close()

    def _send_rest(self) -> None:
        self._unsent = self._unsent[self._send(self._unsent) :]
        if not self._unsent:
            self._epoll.modify(self.fd, select.EPOLLIN)

    def _read(self, head: bytes) -> Head:
        """The status and length that a head says; heads repeat, so they are kept."""
        if len(self._heads) == HEADS_KEPT:
            self._heads.clear()
        self._heads[head] = known = _read_head(head)
        return known


def _read_head(head: bytes) -> Head:
    lines = head.split(b"\r\n")
    status = int(lines[0].split(b" ", 2)[1])
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return status, int(value)
    raise ConnectionError("an answer without Content-Length")
