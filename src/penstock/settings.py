"""What a user can set: command line over environment over file over default.

`SETTINGS` is the only list: the command line's options, the environment's names, the file's keys and the documents
are made from it or checked against it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from penstock.clock import LONGEST_US, MICROSECONDS, duration_text, duration_us
from penstock.errors import DefinitionError, SettingsError
from penstock.toml import parse_toml

FILE = "penstock.toml"
# What a client of a service says: a secret, so that it is no setting, which is shown and may be an argument.
TOKEN = "PENSTOCK_TOKEN"

# Times are looked after at a quarter of the shortest of them: a shorter one would keep the door busy.
SOON = 10 * MICROSECONDS["ms"]
SECOND, DAY = MICROSECONDS["s"], MICROSECONDS["d"]
# What all large bodies together may occupy: a larger one could never be taken.
HELD_BYTES_MAX = 256 << 20

Kind = Literal["text", "path", "integer", "bytes", "duration", "choice"]


@dataclass(frozen=True)
class Setting:
    """One setting; `lowest` and `highest` bound numbers, `choices` are those of a choice, None is "not limited"."""

    name: str
    kind: Kind
    default: Any
    about: str
    lowest: int = 0
    highest: int = 0
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        return "PENSTOCK_" + self.name.upper()

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """What it may be, where that is bounded."""
        if self.kind in ("text", "path"):
            return ""
        return ", ".join(self.choices) or f"{self.text(self.lowest)} to {self.text(self.highest)}"

    def text(self, value: Any) -> str:
        """A value as a user writes it."""
        match self.kind:
            case "duration":
                return duration_text(value)
            case "bytes":
                return _bytes_text(value)
        return str(value)


SETTINGS = (
    Setting("data", "path", "data", "the data directory: log, snapshots and ids"),
    Setting("host", "text", "127.0.0.1", "the address of the doors; beyond loopback tokens and TLS must be set"),
    Setting("port", "integer", 7070, "the port of the doors; 0 takes a free one", 0, 65_535),
    Setting("tokens", "path", None, "the file of tokens that callers need; `penstock tokens new` writes it"),
    Setting("tls_certificate", "path", None, "the certificate, then its issuers', in PEM; with it the doors speak TLS"),
    Setting("tls_key", "path", None, "the certificate's private key, in PEM"),
    Setting("state_bytes", "bytes", "4GiB", "at this size of the state new keys get the fallback", 1 << 20, 1 << 40),
    Setting("segment_bytes", "bytes", "64MiB", "the size of the log's files", 16 << 20, 512 << 20),
    Setting("commit_bytes", "bytes", "512KiB", "bulk appends are cut into commits of this size", 4096, 1 << 20),
    Setting("retention", "duration", None, "remove the log's oldest files when they are older", SECOND, LONGEST_US),
    Setting("retention_bytes", "bytes", None, "remove the log's oldest files beyond this size", 1 << 20, 1 << 50),
    Setting("snapshot_every", "duration", "30s", "how often the state is written, where it changed", SOON, DAY),
    Setting("body_bytes", "bytes", "32MiB", "a larger request is refused (413)", 1024, HELD_BYTES_MAX),
    Setting("header_bytes", "bytes", "16KiB", "larger headers are refused (431)", 1024, 1 << 20),
    Setting("request_time", "duration", "10s", "a request that takes longer to arrive is refused (408)", SOON, DAY),
    Setting("idle_time", "duration", "75s", "a connection without requests is closed", SOON, DAY),
    Setting("connections", "integer", 10_000, "more connections at a time are refused", 1, 1_000_000),
    Setting("rate", "integer", None, "more requests a second are refused (429)", 1, 1_000_000_000),
    Setting("queue", "integer", 20_000, "with more requests waiting, another one is refused (429)", 1, 1_000_000),
    Setting("model_time", "duration", None, "a model that takes longer is ended; default 20 x within", SOON, DAY),
    Setting("threads", "integer", 2, "threads for batches of thousands of events", 1, 256),
    Setting("diagnostics", "choice", "lines", "how diagnostics are written", choices=("lines", "json")),
    Setting("level", "choice", "info", "which diagnostics are written", choices=("debug", "info", "warning", "error")),
)

BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True)
class Settings:
    """Values by name, each with where it came from. Bytes are counts, lengths of time are microseconds."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def url(self) -> str:
        """Where a service with these settings answers, to a caller on its machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self["host"], self["host"])
        return url(host, self["port"], tls=self["tls_certificate"] is not None)

    def text(self, name: str) -> str:
        """A value as a user writes it."""
        value = self.values[name]
        return "none" if value is None else BY_NAME[name].text(value)


def read_settings(
    options: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> Settings:
    """Put the settings together. `options` are the command line's, None where it says nothing.

    Raises `SettingsError` for unknown names and for values that do not fit.
    """
    table, file_name = _read_file(file)
    _check_environment(environment)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        value, source = setting.default, "default"
        if setting.name in table:
            value, source = table[setting.name], file_name
        if setting.variable in environment:
            value, source = environment[setting.variable], setting.variable
        if options.get(setting.name) is not None:
            value, source = options[setting.name], "command line"
        values[setting.name] = None if value is None else _parse(setting, value, source)
        sources[setting.name] = source
    return Settings(values, sources)


def _read_file(file: Path | None) -> tuple[dict[str, Any], str]:
    path = file or Path(FILE)
    if file is None and not path.exists():
        return {}, ""
    try:
        table = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"could not read {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    for name in table:
        _check_known(name, str(path))
    return table, str(path)


def _check_environment(environment: Mapping[str, str]) -> None:
    for variable in environment:
        if variable.startswith("PENSTOCK_") and variable != TOKEN:
            _check_known(variable.removeprefix("PENSTOCK_").lower(), variable)


def _check_known(name: str, place: str) -> None:
    if name not in BY_NAME:
        close = get_close_matches(name, BY_NAME, 1)
        hint = f'did you mean "{close[0]}"?' if close else "`penstock settings` lists them"
        raise SettingsError(f'{place}: there is no setting "{name}"', hint=hint)


def _parse(setting: Setting, value: Any, source: str) -> Any:
    place = f'setting "{setting.name}" ({source})'
    match setting.kind:
        case "text":
            if not isinstance(value, str):
                raise SettingsError(f"{place}: {value!r} is not text")
            return value
        case "path":
            if not isinstance(value, str | Path) or "\0" in str(value):
                raise SettingsError(f"{place}: {value!r} is not a path")
            return Path(value)
        case "choice":
            if value not in setting.choices:
                raise SettingsError(f"{place}: {value!r} is none of {', '.join(setting.choices)}")
            return value
        case "integer":
            return _within(setting, _whole(value, place), place)
        case "bytes":
            return _within(setting, _bytes(value, place), place)
        case "duration":
            try:
                return _within(setting, duration_us(value, subject=place), place)
            except DefinitionError as error:
                raise SettingsError(error.message, hint=error.hint) from None


def _whole(value: Any, place: str) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", str(value)):
        raise SettingsError(f"{place}: {value!r} is not a whole number")
    return int(value)


def _bytes(value: Any, place: str) -> int:
    found = re.fullmatch(r"(\d{1,18})\s*(KiB|MiB|GiB|TiB|B|)", str(value))
    if isinstance(value, bool) or not found:
        raise SettingsError(f"{place}: {value!r} is not a number of bytes", hint="write for example 512MiB or 4GiB")
    number, unit = found.groups()
    factor: int = 1024 ** ["", "KiB", "MiB", "GiB", "TiB"].index("" if unit == "B" else unit)
    return int(number) * factor


def _bytes_text(count: int) -> str:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count and count % 1024**power == 0:
            return f"{count // 1024**power}{unit}"
    return str(count)


def _within(setting: Setting, value: int, place: str) -> int:
    if value < setting.lowest:
        raise SettingsError(f"{place}: the least is {setting.text(setting.lowest)}")
    if value > setting.highest:
        raise SettingsError(f"{place}: the most is {setting.text(setting.highest)}")
    return value


def url(host: str, port: int, *, tls: bool = False) -> str:
    """Where a service answers.

    >>> url("127.0.0.1", 7070), url("::1", 7070)
    ('http://127.0.0.1:7070', 'http://[::1]:7070')
    """
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
