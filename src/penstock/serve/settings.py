"""What the door is told: what it opens onto, and every bound it keeps."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from penstock.errors import SettingsError
from penstock.runtime.models import ModelSpec
from penstock.settings import HELD_BYTES_MAX


@dataclass(frozen=True)
class PolicyDoor:
    """A policy by its name in the URL and its index in the plan; `within_s` is its deadline."""

    name: str
    index: int
    within_s: float
    on_overload: Literal["refuse", "fallback"] = "refuse"


@dataclass(frozen=True)
class TopicDoor:
    """A topic by its name in the URL and its index in the plan."""

    name: str
    index: int


@dataclass(frozen=True)
class Doors:
    """What there is behind the door. A model's index is its place here."""

    policies: tuple[PolicyDoor, ...] = ()
    topics: tuple[TopicDoor, ...] = ()
    models: tuple[ModelSpec, ...] = ()


@dataclass(frozen=True)
class DoorSettings:
    """The door's bounds; times are seconds. Raises `SettingsError` for what cannot be."""

    host: str = "127.0.0.1"
    port: int = 7070
    tokens: Path | None = None
    """The file of tokens; None lets everybody who can call ask everything."""
    tls_certificate: Path | None = None
    """A file with the certificate and those of its issuers, in PEM; None is no TLS."""
    tls_key: Path | None = None
    connections_max: int = 10_000
    requests_per_second_max: int | None = None
    """Beyond it a request is refused with 429; a second's worth may come at once."""
    queue_max: int = 20_000
    """Requests that the core has not answered; beyond it 429, or the policy's fallback."""
    held_bytes_max: int = HELD_BYTES_MAX
    """Bytes of all large bodies that are being received or answered; beyond it 429."""
    body_bytes_max: int = 32 << 20
    header_bytes_max: int = 16 << 10
    header_count_max: int = 100
    pipelined_max: int = 64
    """Unanswered requests of one connection; beyond it the connection is not read."""
    request_s: float = 10.0
    """From a request's first byte to its last; beyond it 408."""
    idle_s: float = 75.0
    """How long a connection may stay open without a request."""
    write_s: float = 10.0
    """How long a client may read nothing of its answers before its connection is closed."""
    answer_s: float = 30.0
    """How long a request without a deadline of its own waits for the core; beyond it 503."""
    stuck_s: float = 2.0
    """How long the core may stand still, with work queued, before `/readyz` says so."""
    drain_s: float = 5.0
    """How long stopping waits for what is held."""
    stop_s: float = 30.0
    """How long stopping then waits for the core to sync and close the log."""
    model_start_s: float = 60.0
    model_batch_s: float | None = None
    """The time of one call of a model before it is killed; None means 20 deadlines, at least a second."""
    model_queue_max: int = 256
    """Batches that wait for one model; beyond it they are answered as failed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least_is_zero = field.name == "port"
            if isinstance(value, int | float) and (value < 0 or (value == 0 and not least_is_zero)):
                raise SettingsError(f"{field.name} is {value}, and must be more than nothing")
        if self.port > 65_535:
            raise SettingsError(f"port is {self.port}, and must be below 65,536")


def check_address(settings: DoorSettings) -> None:
    """Refuse to listen where others could call, unless they must say a token and nobody can read along.

    Raises `SettingsError`, which says what is missing.
    """
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        other = "tls_key" if settings.tls_key is None else "tls_certificate"
        raise SettingsError(f"{other} is not set: tls_certificate and tls_key go together")
    names = ("tokens", "tls_certificate", "tls_key")
    missing = [name for name in names if getattr(settings, name) is None]
    host = settings.host
    if missing and not all(ipaddress.ip_address(address).is_loopback for address in _addresses(host)):
        raise SettingsError(
            f"cannot listen on {host}, where others can call, without {' and '.join(missing)}",
            hint="set tokens, tls_certificate and tls_key, or listen on 127.0.0.1, ::1 or localhost",
        )


def _addresses(host: str) -> set[str]:
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}: {error.strerror}", hint="use 127.0.0.1, ::1 or localhost"
        ) from None
    return {str(address[0]).partition("%")[0] for *_, address in found}
