"""The process that runs one model: rows come in over a socket, scores go out.

    python -m penstock.runtime.model_worker [json] APP MODEL FD

It exists so that nothing a user's function does (sleep, raise, crash, keep the GIL) can reach an
answer's time. It ends with its parent, whichever way that ends.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import DefinitionError
from penstock.runtime.diagnostics import LoggedText, start_diagnostics
from penstock.runtime.frames import (
    FAILED,
    LENGTH_BYTES,
    SCORES,
    WARM_UP,
    Part,
    decode,
    encode,
    frame_length,
)

if TYPE_CHECKING:
    import polars as pl

Score = Callable[["pl.DataFrame"], "pl.Series"]

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    *style, app, model, descriptor = arguments
    if style == ["json"]:
        start_diagnostics("json", "info")
        sys.stdout = sys.stderr = LoggedText(logging.getLogger(f"penstock.models.{model}"))
    with socket.socket(fileno=int(descriptor)) as gate:
        live_with_parent(gate)
        try:
            function = load_function(Path(app), model)
        except Exception as error:
            # In full for who reads the diagnostics, in a line for `/readyz`.
            traceback.print_exc()
            # An error of ours is of the user's file, which has seen no event yet.
            reason = error.message if isinstance(error, DefinitionError) else describe(error)
            gate.sendall(encode([(WARM_UP, FAILED, reason.encode())]))
            sys.exit(1)
        # What is loaded by now stays: a collection that walks it would hold a batch back.
        gc.collect()
        gc.freeze()
        gate.sendall(encode([(WARM_UP, SCORES, b"")]))
        serve_batches(gate, function)


def live_with_parent(gate: socket.socket) -> None:
    """End when the gate does, and not before: a signal to the group is the gate's to handle."""
    os.set_inheritable(gate.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Whatever the function prints must not be taken for what the gate says.
    os.dup2(2, 1)


def load_function(app: Path, model: str) -> Score:
    """The function that the user's file registers under this name."""
    from penstock.runtime.app import load_app

    return load_app(app).models[model].function


def serve_batches(gate: socket.socket, function: Score) -> None:
    """Score frame after frame until the gate closes its end; a frame back for each call of the function."""
    while (rest := read_frame(gate)) is not None:
        for answered in score_parts(list(decode(rest)), function):
            gate.sendall(encode(answered))


def read_frame(gate: socket.socket) -> bytes | None:
    head = read_exactly(gate, LENGTH_BYTES)
    return None if head is None else read_exactly(gate, frame_length(head))


def read_exactly(gate: socket.socket, size: int) -> bytes | None:
    """So many bytes, or None where the gate has closed its end."""
    buffer = bytearray(size)
    view, start = memoryview(buffer), 0
    while start < size:
        count = gate.recv_into(view[start:])
        if count == 0:
            return None
        start += count
    return bytes(buffer)


def score_parts(parts: list[Part], function: Score) -> Iterator[list[Part]]:
    """Score all batches in one call; if that fails in halves, down to each alone: a bad row costs only its own.

    After each call what it answered, in order; nothing where it failed and its halves follow.
    """
    import polars as pl

    try:
        frames = [pl.read_ipc_stream(rows) for _, _, rows in parts]
        scores = score(pl.concat(frames), function)
    except BaseException as error:  # A panic of Polars is no Exception; it and `sys.exit` would print their words.
        if len(parts) == 1:
            yield [(parts[0][0], FAILED, describe(error).encode())]
            return
        yield []
        middle = len(parts) // 2
        yield from score_parts(parts[:middle], function)
        yield from score_parts(parts[middle:], function)
        return
    yield [(number, SCORES, piece) for (number, _, _), piece in zip(parts, cut(scores, frames), strict=True)]


def cut(scores: bytes, frames: list[pl.DataFrame]) -> list[bytes]:
    """The scores of each frame, at 8 bytes a row."""
    pieces, start = [], 0
    for frame in frames:
        end = start + 8 * frame.height
        pieces.append(scores[start:end])
        start = end
    return pieces


def score(frame: pl.DataFrame, function: Score) -> bytes:
    """The function's answer as little-endian float64s, NaN for null.

    Raises `WrongAnswerError` where it is not one number a row.
    """
    import numpy as np
    import polars as pl

    scores = function(frame)
    if not isinstance(scores, pl.Series):
        raise WrongAnswerError(f"the model returned {type(scores).__name__}, not a polars Series")
    if not scores.dtype.is_numeric():
        # Not the whole type: an Enum's has its categories, which are values.
        raise WrongAnswerError(f"the model returned a Series of {scores.dtype.base_type()}, not of numbers")
    if len(scores) != frame.height:
        raise WrongAnswerError(f"the model returned {len(scores)} scores for {frame.height} rows")
    numbers = scores.cast(pl.Float64).to_numpy()  # where a null is NaN; `fill_null` would plan a query
    return np.where(np.isfinite(numbers), numbers, np.nan).astype("<f8", copy=False).tobytes()


class WrongAnswerError(Exception):
    """The function returned something else than scores; the message holds no values."""


def describe(error: BaseException) -> str:
    """What went wrong and where, not in the error's own words: those may hold an event's values."""
    if isinstance(error, WrongAnswerError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


if __name__ == "__main__":
    main(sys.argv[1:])
