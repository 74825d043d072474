"""What fuzz tests share: how many examples there are, and how bytes and texts that were right are made wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# A few in each run, the same ones always; others, and many, where there is time.
EXAMPLES = pytest.mark.parametrize("examples", ["few", pytest.param("many", marks=pytest.mark.long)])

EXTREME = (b"0", b"-1", b"1e400", b"9" * 26, b"\xff\xfe", b"\x00", b'"', b"{", b"[", b"\n", b"\\u0000")


def fuzz(examples: str, few: int) -> Callable[[Any], Any]:
    """Settings of a fuzz test: so many examples, or twenty times as many."""
    return settings(
        max_examples=few if examples == "few" else 20 * few,
        derandomize=examples == "few",
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@st.composite
def mutated(draw: st.DrawFn, right: bytes, pieces: tuple[bytes, ...] = EXTREME, *, least: int = 0) -> bytes:
    """These bytes with some of them changed, taken out, doubled or put in; at the end they may be cut."""
    wrong = bytearray(right)
    for _ in range(draw(st.integers(least, 4))):
        start = draw(st.integers(0, len(wrong)))
        end = min(start + draw(st.integers(0, 40)), len(wrong))
        match draw(st.sampled_from(("replace", "remove", "repeat", "insert", "insert", "cut"))):
            case "replace" if start < len(wrong):
                wrong[start] = draw(st.integers(0, 255))
            case "remove":
                del wrong[start:end]
            case "repeat":
                wrong[start:start] = wrong[start:end]
            case "insert":
                wrong[start:start] = draw(st.sampled_from(pieces) | st.binary(max_size=6))
            case "cut" if draw(st.booleans()):
                del wrong[start:]
    return bytes(wrong)
