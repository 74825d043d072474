"""One connection of the load: requests in, answers out, and an exception where there is no answer.

Code of its own, so that what the service acknowledged is known from the bytes that came back and from nothing else.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

JSON = dict[str, Any]
PATIENCE_S = 60


class NoAnswer(Exception):
    """The connection ended, or was refused, before an answer was there whole."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> JSON:
        value: JSON = json.loads(self.body)
        return value

    @property
    def code(self) -> str:
        code: str = self.json()["error"]["code"]
        return code


class Caller:
    """Sends one request after the other over one connection, which it opens when it needs it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Reply:
        """The answer. Raises `NoAnswer`."""
        headers = f"Host: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
        try:
            request = f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body
            return await asyncio.wait_for(self._exchange(request), PATIENCE_S)
        except (OSError, EOFError) as error:
            await self.close()
            raise NoAnswer(type(error).__name__) from error

    async def close(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with suppress(OSError):  # It was cut: that is what this is for.
                await writer.wait_closed()

    async def _exchange(self, request: bytes) -> Reply:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        self._writer.write(request)
        await self._writer.drain()
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = await self._reader.readexactly(int(headers["Content-Length"]))
        if headers.get("Connection") == "close":
            await self.close()
        return Reply(int(status.split()[1]), headers, body)
