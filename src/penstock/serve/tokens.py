"""The tokens file: who may call, known by the hash of what they say.

    [tokens."checkout"]
    sha256 = "9f86d0…"        # of the token; the token itself is nowhere
    roles = ["decide"]
    created = 2026-11-25T10:00:00Z

A token is 256 random bits, so that one round of SHA-256 is enough: there is no dictionary to try, and
a wrong token costs the door a microsecond (docs/decisions/0013-tokens-and-tls.md).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock.errors import InputError, SettingsError
from penstock.toml import parse_toml

ROLES = ("ingest", "decide", "query", "admin")
# All of them are compared with each token that a caller says.
TOKENS_MAX = 256
# Scanners for leaked secrets know a token by what it begins with.
PREFIX = "pst_"
SECRET_BYTES = 32

NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
SHA256 = re.compile(r"[0-9a-f]{64}")
HEADER = "# Written by `penstock tokens`. It holds hashes and no token; comments are not kept.\n"


@dataclass(frozen=True)
class Token:
    """One caller: `digest` is the SHA-256 of its token."""

    name: str
    digest: bytes
    roles: tuple[str, ...]
    created: datetime | None = None


def digest_of(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_tokens(path: Path) -> list[Token]:
    """The tokens of a file. Raises `SettingsError`, which says what is wrong with it and never holds a hash."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            table = parse_toml(file.read().decode())
    except OSError as error:
        raise SettingsError(
            f"could not read the tokens file {path}: {error.strerror}", hint="`penstock tokens new` makes one"
        ) from None
    except ValueError as error:
        # The message of a TOML error has a place and no text of the file.
        raise SettingsError(f"the tokens file {path} is not TOML: {_place(error)}") from None
    if mode & 0o022:
        raise SettingsError(f"others may write the tokens file {path}", hint=f"chmod go-w {path}")
    return _tokens(table, path)


def new_token(path: Path, name: str, roles: Sequence[str]) -> str:
    """Make a token, write its hash, and give the token, which is nowhere else. Raises `InputError`."""
    if not NAME.fullmatch(name):
        raise InputError("a token's name has 1 to 100 letters, digits, dots, dashes and underscores")
    token = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    with _locked(path):
        tokens = read_tokens(path) if path.exists() else []
        if name in [each.name for each in tokens]:
            raise InputError(f'{path} has a token "{name}"', hint="remove it first, or take another name")
        if len(tokens) >= TOKENS_MAX:
            raise InputError(f"{path} has {TOKENS_MAX} tokens, and that is the most")
        ordered = tuple(role for role in ROLES if role in roles)
        created = datetime.now(UTC).replace(microsecond=0)
        _write(path, [*tokens, Token(name, digest_of(token.encode()), ordered, created)])
    return token


def remove_token(path: Path, name: str) -> None:
    """Take a token out of the file. Raises `InputError` where it has none of this name."""
    with _locked(path):
        tokens = read_tokens(path)
        left = [each for each in tokens if each.name != name]
        if len(left) == len(tokens):
            raise InputError(f'{path} has no token "{name}"', hint="`penstock tokens list` shows them")
        _write(path, left)


def _tokens(table: dict[str, Any], path: Path) -> list[Token]:
    entries = table.pop("tokens", {})
    if table or not isinstance(entries, dict):
        raise SettingsError(f'the tokens file {path} may hold nothing but tables [tokens."NAME"]')
    if len(entries) > TOKENS_MAX:
        raise SettingsError(f"the tokens file {path} has more than {TOKENS_MAX} tokens")
    tokens = [_token(name, entry, f'{path}, token "{name}"') for name, entry in entries.items()]
    if len({token.digest for token in tokens}) < len(tokens):
        raise SettingsError(f"the tokens file {path} has the same hash twice")
    return tokens


def _token(name: str, entry: Any, place: str) -> Token:
    if not NAME.fullmatch(name):
        raise SettingsError(f"{place}: a name has 1 to 100 letters, digits, dots, dashes and underscores")
    if not isinstance(entry, dict) or set(entry) - {"created"} != {"sha256", "roles"}:
        raise SettingsError(f"{place}: it has sha256, roles and perhaps created, and nothing else")
    digest, roles, created = entry["sha256"], entry["roles"], entry.get("created")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise SettingsError(f"{place}: sha256 is 64 hexadecimal digits, in small letters")
    if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles):
        raise SettingsError(f"{place}: roles is a list out of {', '.join(ROLES)}")
    if created is not None and not isinstance(created, datetime):
        raise SettingsError(f"{place}: created is a date and a time")
    return Token(name, bytes.fromhex(digest), tuple(roles), created)


def _place(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    found = re.search(r"\(at (.*)\)$", str(error))
    return f"see {found.group(1)}" if found else "it holds what is nested too deeply or too long"


def _write(path: Path, tokens: Sequence[Token]) -> None:
    """Put a whole new file in the old one's place, so that no reader ever sees half of one."""
    text = HEADER + "".join(map(_entry, tokens))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # for its owner alone
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if path.exists():
                _keep_owner(file.fileno(), path)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _keep_owner(handle: int, path: Path) -> None:
    """The service that reads the file may be another user than the one who changes it."""
    before = path.stat()
    os.fchmod(handle, before.st_mode & 0o777)
    with suppress(PermissionError):
        os.fchown(handle, before.st_uid, before.st_gid)


def _entry(token: Token) -> str:
    roles = ", ".join(f'"{role}"' for role in token.roles)
    created = "" if token.created is None else f"created = {token.created.isoformat()}\n"
    return f'\n[tokens."{token.name}"]\nsha256 = "{token.digest.hex()}"\nroles = [{roles}]\n{created}'


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One change at a time: the folder is locked, since the file is replaced."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
