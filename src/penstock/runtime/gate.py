"""What the core is asked by the door, by tests and by replay: whole bodies in, whole answers out.

    door's loop                                    core's thread
    ───────────                                    ─────────────
    submit([(handle, kind, target, body, ns), …]) ──▶ decode, ids, windows, rules, log, fdatasync
    take() ◀── the eventfd turns readable ──────────  [(handle, status, answer, flags), …]

Neither side waits for the other. A `handle` is the door's name for one request: unique, rising, given
back with the answer.
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
POSITION = 9  # how far a consumer has come
RETRY = 10  # dead letters: a line of their offsets, then NDJSON; the target is a topic

# Flags of an answer.
REPEAT = 1  # told before: the answer says so in a header
MODEL = 2  # not an answer but rows for a model: (batch number, model index, Arrow stream, flags)

Request = tuple[int, int, int, bytes, int]
Answer = tuple[int, int, bytes, int]


class Gate(Protocol):
    """The core, as the door sees it.

    Guarantees: no method but `stop` blocks; every submitted request but SCORES is answered by one
    `take`, in any order; an answer can be taken only after what it promises is on disk. A status is
    an HTTP status and a body its JSON (NDJSON for the 200 of DECIDE_MANY and DRY_RUN_MANY).

    Does not promise: to answer in time, or at all while a disk or a model hangs; that is the door's
    part. A method that raises, or `failed` in the stats, says that the core is lost: the door then
    stops the process.
    """

    def start(self) -> int:
        """Start the core's thread; the eventfd that turns readable when something can be taken."""
        ...

    def submit(self, requests: list[Request], /) -> None:
        """Hand over requests: (handle, kind, target, body, when it was held by `monotonic_ns`)."""
        ...

    def take(self) -> list[Answer]:
        """Everything that is ready: (handle, status, body, flags)."""
        ...

    def told(self, handle: int, /) -> None:
        """Record with the next commit that this request was told the fallback at its deadline."""
        ...

    def fallback(self, target: int, body: bytes, took_ns: int, /) -> tuple[int, bytes]:
        """The deadline's answer for one JSON event: 200 and the fallback, or 422 if it is none."""
        ...

    def overload(self, target: int, body: bytes, took_ns: int, /) -> tuple[int, bytes]:
        """The same with cause `overload`; it is not recorded."""
        ...

    def fallbacks(self, target: int, body: bytes, took_ns: int, /) -> bytes:
        """The deadline's answer for NDJSON: a line for each line, the fallback or why it is no event.

        Any thread may call it; it holds no GIL.
        """
        ...

    def overloads(self, target: int, body: bytes, took_ns: int, /) -> bytes:
        """The same with cause `overload`."""
        ...

    def stats(self) -> bytes:
        """The core's numbers as one JSON object, from a copy that no work holds locked.

        Readiness reads `beat` (rises with each cycle), `state_bytes` of `state_bytes_max`,
        `reader_lags` (topics with seconds or null), `log_sequence`, `full` (why nothing is taken at
        present, or null), `removal_failed` (why old files stay, or null), `ids_damaged` (why some
        ids may be unknown, or null), `ids_unmerged` (why their files stay many, or null) and `failed`
        (why the core has ended, or null).
        A histogram is `{"bounds": [...], "counts": [...], "sum": x}`, one count more than bounds.
        """
        ...

    def stop(self) -> None:
        """Finish what was submitted, sync and close the log; then `take` gives what is left."""
        ...
