"""Lengths of time as users write them (`"30d"`, `"50ms"`), in microseconds."""

from __future__ import annotations

import re

from penstock.errors import DefinitionError

MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}

# A thousand years: far beyond any use, and sums of a few such lengths stay within 64 bits.
LONGEST_US = 366_000 * MICROSECONDS["d"]


def duration_us(text: str, *, subject: str) -> int:
    """The microseconds of a length such as `"90d"`, `"1h"`, `"50ms"`, `"1h30m"`.

    Raises `DefinitionError`, naming `subject`, for anything else, and for lengths above 1,000 years.
    """
    parts = re.findall(r"(\d+)(us|ms|s|m|h|d|w)", text) if isinstance(text, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise DefinitionError(
            f"{subject}: {text!r} is not a length of time",
            hint="write a whole number and a unit, such as 50ms, 30s, 10m, 24h, 30d, 2w",
        )
    total = sum(int(number) * MICROSECONDS[unit] for number, unit in parts)
    if total > LONGEST_US:
        raise DefinitionError(f"{subject}: {text!r} is longer than 1,000 years")
    return total


def duration_text(microseconds: int) -> str:
    """The shortest way to write a length of time: 86,400,000,000 is `"1d"`."""
    for unit in ("d", "h", "m", "s", "ms"):
        if microseconds and microseconds % MICROSECONDS[unit] == 0:
            return f"{microseconds // MICROSECONDS[unit]}{unit}"
    return f"{microseconds}us"
