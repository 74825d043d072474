"""A real service under attack: a good client goes on meanwhile, and the process keeps its memory and its files."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from processes import DECIDE, Service, payment
from serve.client import Answer, Client, eventually

MIB = 1 << 20
_numbers = itertools.count(50_000_000)


def resident_bytes(service: Service) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024


def open_files(service: Service) -> int:
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


@dataclass
class GoodClient(threading.Thread):
    """Decides one payment after the other, each over the one connection, until it is told to stop."""

    port: int
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            while not self.stopping.is_set():
                connection.request("POST", DECIDE, json.dumps(payment(next(_numbers), card="good")))
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    self.wrong.append(f"{response.status}: {body!r}")
                self.answered += 1
                time.sleep(0.002)
        except (OSError, http.client.HTTPException) as error:
            self.wrong.append(repr(error))
        finally:
            connection.close()

    __hash__ = threading.Thread.__hash__


@contextmanager
def siege(service: Service, *, grows_bytes: int = 96 * MIB) -> Iterator[GoodClient]:
    """Within it a good client is answered; after it the process has no more files, and not much more memory."""
    files, resident = open_files(service), resident_bytes(service)
    good = GoodClient(service.port)
    good.start()
    try:
        eventually(lambda: good.answered > 0 or bool(good.wrong))
        before = good.answered
        yield good
        eventually(lambda: good.answered > before + 5 or bool(good.wrong))
    finally:
        good.stopping.set()
        good.join(60)
    assert not good.wrong, good.wrong[:3]
    # Connections that were given up are closed with the next look at them.
    eventually(lambda: open_files(service) <= files + 2)
    assert resident_bytes(service) < resident + grows_bytes
    assert service.process.poll() is None


def exchange(service: Service, request: bytes) -> Answer:
    """The first answer to these bytes; the client goes on reading where the door closes before all was sent."""
    client = Client(service.port)
    try:
        with suppress(OSError):
            client.send(request)
        return client.answer()
    finally:
        client.close()


def answers(service: Service, request: bytes) -> list[Answer]:
    """All answers until the door closes the connection, or has nothing more to say."""
    client, found = Client(service.port), []
    try:
        client.send(request)
        client.socket.shutdown(socket.SHUT_WR)
        while True:
            found.append(client.answer())
    except (ConnectionError, TimeoutError):
        return found
    finally:
        client.close()
