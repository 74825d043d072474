"""What the door asks of the core: whole bodies in, whole answers out, never waiting for either.

    door's loop                                    core's thread
    ───────────                                    ─────────────
    submit([(handle, kind, target, body, ns), …]) ──▶ decode, ids, windows, rules, log, fdatasync
    take() ◀── the eventfd turns readable ──────────  [(handle, status, answer, flags), …]

A `handle` is the door's name for one request: unique, rising, given back with the answer.
"""

from __future__ import annotations

from typing import Protocol

# Kinds of request.
DECIDE = 0  # one JSON event; the target is a policy
DECIDE_MANY = 1  # NDJSON
EVENTS_JSON = 2  # one object or an array; the target is a topic
EVENTS_NDJSON = 3
EVENTS_ARROW = 4
LOOKUP = 5  # the body is an id's text; the target is a policy
DRY_RUN = 6
DRY_RUN_MANY = 7
SCORES = 8  # a model's answer; the target is its batch number, the body float64s

# Flags of an answer.
REPEAT = 1  # told before: the answer says so in a header
MODEL = 2  # not an answer but rows for a model: (batch number, model index, Arrow stream, flags)

Request = tuple[int, int, int, bytes, int]
Answer = tuple[int, int, bytes, int]


class Gate(Protocol):
    """The core, as the door sees it.

    Guarantees: no method but `stop` blocks; every submitted request but SCORES is answered by one `take`,
    in any order; an answer is only taken after what it promises is on disk. A status is an HTTP status and a
    body its JSON (NDJSON for the 200 of DECIDE_MANY and DRY_RUN_MANY).
    Does not promise: to answer in time, or at all while a disk or a model hangs; that is the door's part.
    A method that raises has lost the core: the door stops the process.
    """

    def start(self) -> int:
        """Start the core's thread; the eventfd that turns readable when there is something to take."""
        ...

    def submit(self, requests: list[Request], /) -> None:
        """Hand over requests: (handle, kind, target, body, `time.monotonic_ns()` when it was held whole)."""
        ...

    def take(self) -> list[Answer]:
        """Everything that is ready: (handle, status, body, flags)."""
        ...

    def told(self, handle: int, /) -> None:
        """Record with the next commit that this request was told the fallback at its deadline."""
        ...

    def fallback(self, target: int, body: bytes, /) -> tuple[int, bytes]:
        """The deadline's answer for one JSON event: 200 with the fallback, or 422 where it is no event."""
        ...

    def overload(self, target: int, body: bytes, /) -> tuple[int, bytes]:
        """The same with cause `overload`; it is not recorded."""
        ...

    def stats(self) -> bytes:
        """The core's numbers as one flat JSON object, from counters that no work holds locked.

        A number under a name that ends in `_total` is a counter, another number a gauge, and an object
        `{"bounds": [...], "counts": [...], "sum": x}` a histogram (one count more than bounds). The door
        reads by name: `beat` (rises with each cycle of the core), `queued` (requests not yet taken),
        `state_bytes` and `state_bytes_limit`.
        """
        ...

    def stop(self) -> None:
        """Finish what was submitted, sync and close the log; then `take` gives what is left."""
        ...
