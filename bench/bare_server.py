"""The bare server: the door and the sync of a decision, and no work, to measure Penstock by.

A uvloop protocol over httptools takes any POST, appends the body to a preallocated file by group
commit (one fdatasync for all that gathered during the previous one, in a thread), and only then
answers with a fixed body. NDJSON is answered with one such body per line.

    python bench/bare_server.py --port 8090 --file /path/on/the/same/disk --answer-bytes 700
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import threading
import zlib
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httptools
import uvloop

FILE_BYTES = 64 << 20
FRAME = struct.Struct("<III")


def main() -> None:
    settings = argparse.ArgumentParser(description=__doc__)
    settings.add_argument("--port", type=int, required=True)
    settings.add_argument("--file", type=Path, required=True)
    settings.add_argument("--answer-bytes", type=int, required=True)
    arguments = settings.parse_args()
    uvloop.run(serve(arguments.port, arguments.file, arguments.answer_bytes))


async def serve(port: int, file: Path, answer_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    committer = Committer(loop, file)
    answer = b"x" * (answer_bytes - 1) + b"\n"
    server = await loop.create_server(lambda: Door(committer, answer), "127.0.0.1", port)
    await server.serve_forever()


class Door(asyncio.Protocol):
    """One connection: hands bodies to the committer and answers when they are durable."""

    def __init__(self, committer: Committer, answer: bytes) -> None:
        self._committer = committer
        self._answer = answer
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        self._committer.take(self, body)

    def answer(self, body: bytes) -> None:
        lines = max(1, body.count(b"\n"))
        length = lines * len(self._answer)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % length + self._answer * lines)


class Committer:
    """Group commit: what came during one sync is the next."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: Path) -> None:
        self._loop = loop
        self._fd = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
        os.pwrite(self._fd, bytes(FILE_BYTES), 0)
        os.fsync(self._fd)
        self._position = 0
        self._waiting: list[tuple[Door, bytes]] = []
        self._committing = False
        self._commits: SimpleQueue[list[tuple[Door, bytes]]] = SimpleQueue()
        threading.Thread(target=self._commit_for_ever, daemon=True).start()

    def take(self, door: Door, body: bytes) -> None:
        self._waiting.append((door, body))
        if not self._committing:
            self._committing = True
            # After the callbacks of this turn of the loop, so that what arrived together is
            # together.
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        taken, self._waiting = self._waiting, []
        self._commits.put(taken)

    def _commit_for_ever(self) -> None:
        while True:
            taken = self._commits.get()
            self._commit(b"".join(framed(body) for _, body in taken))
            self._loop.call_soon_threadsafe(self._finish, taken)

    def _finish(self, taken: list[tuple[Door, bytes]]) -> None:
        self._committing = bool(self._waiting)
        if self._committing:
            self._start()
        for door, body in taken:
            door.answer(body)

    def _commit(self, frames: bytes) -> None:
        if self._position + len(frames) > FILE_BYTES:
            self._position = 0
        os.pwrite(self._fd, frames, self._position)
        os.fdatasync(self._fd)
        self._position += len(frames)


def framed(body: bytes) -> bytes:
    return FRAME.pack(len(body), zlib.crc32(body), 1) + body


if __name__ == "__main__":
    main()
