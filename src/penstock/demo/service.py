"""A `penstock run` in a process of its own: started, waited for, stopped by its pid."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from penstock.errors import PenstockError
from penstock.runtime.calls import read_token

READY_SECONDS = 60.0
STOP_SECONDS = 40.0
LOG_LINES = 15


class Service:
    """A running service on a port of this machine; what it says goes to a file.

        with Service(app, data=folder, log=folder / "service.txt") as service:
            service.wait_until_ready()
            service.post("/v1/topics/payments/events", body, content_type="application/json")

    Leaving the block stops it by SIGTERM and waits for its end.
    """

    def __init__(
        self,
        app: Path,
        *,
        data: Path,
        log: Path,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self._log = log
        self._command = [
            *(sys.executable, "-m", "penstock.cli", "run", str(app)),
            *("--data", str(data), "--port", str(self.port)),
        ]
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C on the terminal is for whoever started the service.
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> float:
        """Wait for `/readyz`; how long it took. Raises `PenstockError`, saying what it said."""
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            if self.process.poll() is not None:
                raise PenstockError(
                    f"the service ended with {self.process.returncode}", hint=self.said()
                )
            if self._ready():
                return time.monotonic() - start
            time.sleep(0.01)
        raise PenstockError(f"the service was not ready within {seconds:.0f} s", hint=self.said())

    def post(self, path: str, body: bytes, *, content_type: str = "application/json") -> bytes:
        """The body of the answer. Raises `PenstockError` unless it is 200."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            token = read_token(self._environment)
            authorization = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request("POST", path, body, {"Content-Type": content_type, **authorization})
            answer = connection.getresponse()
            text = answer.read()
        except OSError as error:
            raise PenstockError(f"the service does not answer: {error}", hint=self.said()) from None
        finally:
            connection.close()
        if answer.status != 200:
            raise PenstockError(
                f"POST {path} was answered {answer.status}", hint=text[:500].decode()
            )
        return text

    def stop(self) -> int:
        """End the service in order; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def said(self) -> str:
        """The last lines of the service's diagnostics."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(["the service said:", *lines[-LOG_LINES:]]) if lines else "it said nothing"

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(*self.address, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
