"""A model in a process of its own: whatever it does, its batches are answered and nothing waits."""

from __future__ import annotations

import asyncio
import io
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import polars as pl
import pytest

from penstock.runtime import models
from penstock.runtime.frames import FAILED, ROWS, SCORES, decode, encode, frame_length
from penstock.runtime.model_worker import WrongAnswerError, describe, score, score_parts
from penstock.runtime.models import ModelLimits, Models, ModelSpec, Worker

PATIENCE_S = 60.0

APP = """
import os, sys, time
import penstock as ps
import polars as pl

pipeline = ps.Pipeline("test")

@pipeline.model(version="1")
def risk(batch: pl.DataFrame) -> pl.Series:
    print("a word on the standard output")
    amounts = batch["amount"]
    if (amounts == -1).any():
        raise ValueError("secret 4711")
    if (amounts == -2).any():
        time.sleep(1000)
    if (amounts == -3).any():
        os._exit(7)
    if (amounts == -4).any():
        return pl.Series([1.0])
    return pl.select(pl.when(amounts > 0).then(amounts * 0.5)).to_series()
"""


def rows(*amounts: float | None) -> bytes:
    """An Arrow stream with these amounts."""
    out = io.BytesIO()
    pl.DataFrame({"amount": amounts}, schema={"amount": pl.Float64}).write_ipc_stream(out)
    return out.getvalue()


def numbers(scores: bytes) -> list[float | None]:
    found = struct.unpack(f"<{len(scores) // 8}d", scores)
    return [None if math.isnan(number) else number for number in found]


class Scored:
    """What a model answered, by batch."""

    def __init__(self) -> None:
        self.batches: dict[int, bytes] = {}

    def __call__(self, number: int, scores: bytes) -> None:
        assert number not in self.batches, "a batch is answered once"
        self.batches[number] = scores


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


NO_LIMITS = ModelLimits()


@asynccontextmanager
async def running(
    tmp_path: Path, app: str = APP, *, warm_up: bytes = b"", limits: ModelLimits = NO_LIMITS
) -> AsyncIterator[tuple[Models, Worker, Scored]]:
    path = tmp_path / "app.py"
    path.write_text(dedent(app))
    scored = Scored()
    running = Models([ModelSpec("risk", path, 0.05, warm_up)], limits, scored=scored)
    running.start()
    try:
        yield running, running.workers[0], scored
    finally:
        running.stop()


def test_batches_are_scored(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, warm_up=rows()) as (models, worker, scored):
            assert not worker.ready
            await eventually(lambda: worker.ready)
            for number in range(20):
                models.score(0, number, rows(1.0, None, float(number)))
            await eventually(lambda: len(scored.batches) == 20)
            for number in range(20):
                wanted = number * 0.5 if number else None
                assert numbers(scored.batches[number]) == [0.5, None, wanted]
            assert (worker.scored, worker.failed, worker.starts) == (20, 0, 1)
            assert worker.busy_s > 0

    asyncio.run(main())


def test_a_batch_that_raises_fails_alone_and_the_process_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running(tmp_path) as (models, worker, scored):
            await eventually(lambda: worker.ready)
            for number, amount in enumerate([1.0, -1.0, 2.0, -4.0, 3.0]):
                models.score(0, number, rows(amount, 1.0))
            await eventually(lambda: len(scored.batches) == 5)
            assert [bool(scored.batches[number]) for number in range(5)] == [1, 0, 1, 0, 1]
            assert worker.starts == 1

    asyncio.run(main())
    assert "ValueError at" in caplog.text
    assert "app.py" in caplog.text
    assert "4711" not in caplog.text


SLOW = APP.replace("    amounts =", "    time.sleep(0.1)\n    amounts =")


def test_a_few_rows_that_raise_in_a_slow_model_fail_alone_and_the_process_lives(tmp_path: Path) -> None:
    """All calls together take longer than one may."""

    async def main() -> None:
        poison = {5, 6, 40, 63}
        async with running(tmp_path, SLOW, limits=ModelLimits(batch_s=2.0)) as (models, worker, scored):
            await eventually(lambda: worker.ready)
            models.score(0, 100, rows(1.0))  # The others wait together until this one is scored.
            for number in range(64):
                models.score(0, number, rows(-1.0 if number in poison else 1.0))
            await eventually(lambda: len(scored.batches) == 65)
            assert {number for number, scores in scored.batches.items() if not scores} == poison
            assert (worker.starts, worker.ready, worker.failed) == (1, True, len(poison))
            assert worker.busy_s > 2.0

    asyncio.run(main())


@pytest.mark.parametrize("amount", [-2.0, -3.0])
def test_a_process_that_hangs_or_ends_is_started_anew(tmp_path: Path, amount: float) -> None:
    async def main() -> None:
        limits = ModelLimits(batch_s=1.0)
        async with running(tmp_path, limits=limits) as (models, worker, scored):
            await eventually(lambda: worker.ready)
            models.score(0, 1, rows(amount))
            models.score(0, 2, rows(1.0))
            await eventually(lambda: len(scored.batches) == 2)
            assert scored.batches[1] == b""
            # While it is down, a batch fails at once.
            assert not worker.ready
            models.score(0, 3, rows(1.0))
            assert scored.batches[3] == b""
            await eventually(lambda: worker.ready)
            models.score(0, 4, rows(1.0))
            await eventually(lambda: 4 in scored.batches)
            assert numbers(scored.batches[4]) == [0.5]
            assert worker.starts == 2

    asyncio.run(main())


def test_a_stopped_process_is_killed_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, limits=ModelLimits(batch_s=0.5)) as (models, worker, scored):
            await eventually(lambda: worker.ready)
            assert worker._process is not None
            os.kill(worker._process.pid, signal.SIGSTOP)
            models.score(0, 1, rows(1.0))
            await eventually(lambda: scored.batches.get(1) == b"")
            await eventually(lambda: worker.ready)

    asyncio.run(main())


def test_signals_to_the_group_are_the_gate_s(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as (models, worker, scored):
            await eventually(lambda: worker.ready)
            assert worker._process is not None
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker._process.pid, number)
            models.score(0, 1, rows(1.0))
            await eventually(lambda: bool(scored.batches.get(1)))

    asyncio.run(main())


def test_a_file_that_cannot_be_loaded_is_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "raise RuntimeError") as (models, worker, scored):
            await eventually(lambda: worker.starts >= 3)
            assert not worker.ready
            models.score(0, 1, rows(1.0))
            assert scored.batches[1] == b""

    asyncio.run(main())


def back_offs(caplog: pytest.LogCaptureFixture) -> list[float]:
    """After how long each lost process was to be started again, as it was said and done."""
    found = [record.args[2] for record in caplog.records if isinstance(record.args, tuple) and len(record.args) == 3]
    return [each for each in found if isinstance(each, float)]


def test_starting_again_takes_longer_each_time_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models, "BACK_OFF_FIRST_S", 0.01)
    monkeypatch.setattr(models, "BACK_OFF_LAST_S", 0.07)

    async def main() -> None:
        spec = ModelSpec("risk", tmp_path / "app.py", 0.05)
        began_s = time.monotonic()
        ending = Models([spec], NO_LIMITS, scored=Scored(), program=("false",))
        ending.start()
        (worker,) = ending.workers
        await eventually(lambda: worker.starts == 7)
        ending.stop()
        assert back_offs(caplog)[:6] == [0.01, 0.02, 0.04, 0.07, 0.07, 0.07]
        assert worker.down_s >= sum(back_offs(caplog)[:6])  # They are waited for, and no start ends being down.
        assert worker.down_s <= time.monotonic() - began_s

    asyncio.run(main())


def test_only_a_score_makes_the_next_start_a_quick_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Coming up is not enough: a model that ends with its first batch would be started again and again at once."""
    monkeypatch.setattr(models, "BACK_OFF_FIRST_S", 0.01)

    async def main() -> None:
        async with running(tmp_path) as (running_models, worker, scored):
            for number, amount in enumerate([-3.0, -3.0, 1.0, -3.0, -3.0]):
                await eventually(lambda: worker.ready)
                running_models.score(0, number, rows(amount))
                await eventually(lambda number=number: number in scored.batches)  # type: ignore[misc]

    asyncio.run(main())
    assert back_offs(caplog) == [0.01, 0.02, 0.01, 0.02]


def test_a_process_that_does_not_start_in_time_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        slow = "import time; time.sleep(1000)"
        async with running(tmp_path, slow, limits=ModelLimits(start_s=0.3)) as (_, worker, _):
            await eventually(lambda: worker.starts >= 2)

    asyncio.run(main())


def test_a_model_whose_warm_up_fails_is_not_up_and_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, warm_up=rows(-1.0)) as (models, worker, scored):
            await eventually(lambda: worker.starts >= 2)
            assert not worker.ready and not worker.proven and not models.proven
            assert worker.trouble.startswith("its warm-up failed: ValueError at ")
            assert "app.py:13" in worker.trouble and "4711" not in worker.trouble
            models.score(0, 1, rows(1.0))
            assert scored.batches[1] == b""

    asyncio.run(main())


def test_a_model_that_comes_up_later_is_heard_of_and_stays_proven(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "app.py"
        path.write_text("raise RuntimeError('broken')")
        heard: list[tuple[bool, bool, str]] = []

        def hear(worker: Worker) -> None:
            heard.append((worker.ready, worker.proven, worker.trouble))
            path.write_text(APP)

        spec = ModelSpec("risk", path, 0.05, rows(0.0))
        models = Models([spec], ModelLimits(), scored=Scored(), moved=hear)
        models.start()
        try:
            await eventually(lambda: models.workers[0].ready)
            (ready, proven, trouble), (up, *_) = heard
            assert (ready, proven, up) == (False, False, True)
            assert trouble == f"it could not be loaded: {path}, line 1, failed when it was loaded: RuntimeError: broken"
            models.score(0, 1, rows(-3.0))
            await eventually(lambda: len(heard) == 3)
            assert heard[2] == (False, True, "its process ended")
            assert models.proven
        finally:
            models.stop()

    asyncio.run(main())


def test_batches_that_wait_have_a_bound(tmp_path: Path) -> None:
    async def main() -> None:
        limits = ModelLimits(batch_s=30.0, queue_max=3)
        async with running(tmp_path, limits=limits) as (models, worker, scored):
            await eventually(lambda: worker.ready)
            models.score(0, 0, rows(-2.0))
            for number in range(1, 6):
                models.score(0, number, rows(1.0))
            assert scored.batches == {4: b"", 5: b""}

    asyncio.run(main())


def test_stopping_fails_what_is_at_work_and_leaves_no_process(tmp_path: Path) -> None:
    async def main() -> int:
        async with running(tmp_path) as (models, worker, scored):
            await eventually(lambda: worker.ready)
            models.score(0, 1, rows(-2.0))
            assert worker._process is not None
            process = worker._process
        assert scored.batches == {1: b""}
        assert process.poll() == -signal.SIGKILL
        return process.pid

    pid = asyncio.run(main())
    assert not Path(f"/proc/{pid}").exists()


PARENT = """
import asyncio, os, sys
from pathlib import Path
from penstock.runtime.models import ModelLimits, Models, ModelSpec

async def main():
    models = Models([ModelSpec("risk", Path(sys.argv[1]), 1.0)], ModelLimits(), scored=print)
    models.start()
    while not models.workers[0].ready:
        await asyncio.sleep(0.01)
    # The process hangs in the user's function, so that it cannot see the socket close.
    models.score(0, 1, bytes.fromhex(sys.argv[2]))
    await asyncio.sleep(0.3)
    print(models.workers[0]._process.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(app), rows(-2.0).hex()], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    until = time.monotonic() + PATIENCE_S
    while alive(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# What an answer may be.


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (pl.Series([0.5, None]), [0.5, None]),
        (pl.Series([1, 2]), [1.0, 2.0]),
        (pl.Series([0.25, 0.5], dtype=pl.Float32), [0.25, 0.5]),
        (pl.Series([math.inf, math.nan]), [None, None]),
    ],
)
def test_numbers_are_scores_and_what_is_none_is_null(
    answer: pl.Series, wanted: list[float | None]
) -> None:
    frame = pl.DataFrame({"amount": [1.0, 2.0]})
    assert numbers(score(frame, lambda _: answer)) == wanted


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([1.0, 2.0], "returned list, not a polars Series"),
        (pl.Series(["a", "b"]), "Series of String, not of numbers"),
        (pl.Series([True, False]), "Series of Boolean, not of numbers"),
        (pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])), "Series of Enum, not of numbers"),
        (pl.Series([1.0]), "returned 1 scores for 2 rows"),
    ],
)
def test_anything_else_is_a_failure_that_says_why(answer: object, reason: str) -> None:
    frame = pl.DataFrame({"amount": [1.0, 2.0]})
    with pytest.raises(WrongAnswerError, match=reason):
        score(frame, lambda _: answer)  # type: ignore[arg-type,return-value]


def test_batches_that_waited_together_are_scored_in_one_call() -> None:
    heights = []

    def function(frame: pl.DataFrame) -> pl.Series:
        heights.append(frame.height)
        return frame["amount"]

    parts = [(7, ROWS, rows(1.0)), (8, ROWS, rows(2.0, 3.0)), (9, ROWS, rows())]
    (scored,) = score_parts(parts, function)
    assert heights == [3]
    assert [(n, state, numbers(load)) for n, state, load in scored] == [
        (7, SCORES, [1.0]),
        (8, SCORES, [2.0, 3.0]),
        (9, SCORES, []),
    ]


def test_one_bad_batch_costs_no_other_its_scores() -> None:
    def function(frame: pl.DataFrame) -> pl.Series:
        assert frame["amount"].min() != -1
        return frame["amount"]

    parts = [(1, ROWS, rows(1.0)), (2, ROWS, rows(-1.0)), (3, ROWS, rows(3.0))]
    answered = [[(number, state) for number, state, _ in each] for each in score_parts(parts, function)]
    assert answered == [[], [(1, SCORES)], [], [(2, FAILED)], [(3, SCORES)]]


@pytest.mark.parametrize("kind", [SystemExit, pl.exceptions.PanicException])
def test_what_is_no_exception_fails_its_batch_too_and_is_not_printed(kind: type[BaseException]) -> None:
    def function(frame: pl.DataFrame) -> pl.Series:
        raise kind("secret 4711")

    (((number, state, reason),),) = score_parts([(1, ROWS, rows(1.0))], function)
    assert (number, state) == (1, FAILED)
    assert reason.startswith(kind.__name__.encode() + b" at ") and b"4711" not in reason


def test_a_reason_names_the_place_and_no_values() -> None:
    try:
        raise ValueError("secret 4711")
    except ValueError as error:
        reason = describe(error)
    assert reason.startswith("ValueError at ")
    assert "4711" not in reason


# Frames.


def test_a_frame_gives_its_parts_back() -> None:
    parts = [(0, ROWS, b""), ((1 << 64) - 1, FAILED, b"abc"), (5, SCORES, bytes(range(256)))]
    frame = encode(parts)
    assert frame_length(frame) == len(frame) - 4
    assert list(decode(frame[4:])) == parts


def test_a_frame_that_is_cut_off_anywhere_is_no_frame() -> None:
    rest = encode([(1, ROWS, b"abc"), (2, ROWS, b"defg")])[4:]
    whole = {0, 16}
    for end in range(len(rest)):
        if end in whole:
            continue
        with pytest.raises(ValueError, match="cut off"):
            list(decode(rest[:end]))


def test_a_frame_beyond_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        frame_length(b"\xff\xff\xff\xff")
