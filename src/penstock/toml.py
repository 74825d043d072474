"""TOML of files that users write, and every way in which a text is none."""

from __future__ import annotations

import tomllib
from typing import Any


def parse_toml(text: str) -> dict[str, Any]:
    """The table that a text holds. Raises `ValueError`: also where the standard library's reader gives up otherwise.

    >>> parse_toml("rate = 5")
    {'rate': 5}
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Of Python's bound on an integer's digits.
        raise ValueError("it holds a number that is too long") from None
