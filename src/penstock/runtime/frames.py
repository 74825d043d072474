"""Frames on the socket between the gate and a model's process: parts, each of one batch.

┌────────────┐  ┌──────────┬───────┬─────────┬─────────┐
│ length u32 │  │ number   │ state │ length  │ payload │  … more parts
└────────────┘  │ u64      │ u8    │ u32     │         │
                └──────────┴───────┴─────────┴─────────┘
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

# The state of a part: rows to score, scores, a reason why there are none.
ROWS, SCORES, FAILED = 0, 1, 2

# The number of the rows that only warm a model up, and of the word that it is loaded.
WARM_UP = (1 << 64) - 1

FRAME_BYTES_MAX = 256 << 20

Part = tuple[int, int, bytes]

_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<QBI")
LENGTH_BYTES = _LENGTH.size


def encode(parts: Iterable[Part]) -> bytes:
    """One frame of these parts."""
    rest = b"".join(_HEAD.pack(number, state, len(load)) + load for number, state, load in parts)
    return _LENGTH.pack(len(rest)) + rest


def frame_length(head: bytes | bytearray) -> int:
    """How many bytes follow the first four. Raises `ValueError` for more than a frame may have."""
    (length,) = _LENGTH.unpack_from(head)
    if length > FRAME_BYTES_MAX:
        raise ValueError("the frame is too long")
    return int(length)


def decode(rest: bytes) -> Iterator[Part]:
    """The parts of what follows a frame's length. Raises `ValueError` where that is none."""
    start = 0
    while start < len(rest):
        if len(rest) - start < _HEAD.size:
            raise ValueError("the frame is cut off")
        number, state, length = _HEAD.unpack_from(rest, start)
        start += _HEAD.size
        if len(rest) - start < length:
            raise ValueError("the frame is cut off")
        yield number, state, rest[start : start + length]
        start += length
