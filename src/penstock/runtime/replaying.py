"""`penstock replay`: history in, a Parquet file out, and where asked a log that a service starts from."""

from __future__ import annotations

import json
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import _native
from penstock.errors import DefinitionError, InputError
from penstock.runtime.app import load_app
from penstock.runtime.gate import EVENTS_ARROW
from penstock.runtime.history import FileHistory, HistoryFile, LogHistory, Run
from penstock.runtime.plan import Plan, compile_plan
from penstock.runtime.replay import Replay, choose, in_background, write_parquet
from penstock.settings import Settings
from penstock.wording import number_of

if TYPE_CHECKING:
    import pyarrow as pa

LOAD_ROWS = 16_384
LOADS_WAITING = 4


@dataclass(frozen=True)
class Source:
    """What to read: a file of this topic, or of the policy's where it has none; or `log:DIR`."""

    path: str
    topic: str | None = None


@dataclass(frozen=True)
class ReplayOptions:
    """What the command line says, sources in its order; `select` has commas between the names."""

    sources: tuple[Source, ...]
    target: Path | None
    select: str | None
    policy: str | None
    as_arrived: bool
    skip_invalid: bool
    load: bool


def run_replay(app: Path, options: ReplayOptions, settings: Settings) -> None:
    """Raises `DefinitionError` and `InputError`; what was written before an error is removed again."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if not options.sources:
        hint = "give --from FILE, --from log:DIR or --topic TOPIC FILE"
        raise DefinitionError("replay has nothing to read", hint=hint)
    if options.target is None and not options.load:
        raise DefinitionError("replay has nowhere to write", hint="give --to FILE, --load, or both")
    if options.target is not None and not options.target.parent.is_dir():
        raise InputError(f"there is no folder {options.target.parent} to write to")
    if options.target is not None:
        check_target(options)
    plan = compile_plan(load_app(app))
    replay = choose(plan, options.policy)
    chosen = None if options.select is None else [name.strip() for name in options.select.split(",")]
    replay.check_selected(chosen)
    history = open_history(plan, replay, options)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("replaying", total=history.total)
        events: Iterator[Run] = in_background(history)
        if isinstance(history, FileHistory) and options.load:
            events = Loader(plan, settings, history).tee(events)
        shown = lambda rows: bar.update(task, completed=rows, total=history.total)  # noqa: E731 - one use, beside it
        events = counted(events, shown)
        if options.target is None:
            rows = sum(run.batch.num_rows for run in events)
        else:
            results = replay.run(events, select=chosen, threads=settings["threads"])
            rows = write_parquet(in_background(results), options.target)
    seconds = time.monotonic() - started
    target = f"to {options.target} " if options.target else ""
    rate = f"{rows / seconds:,.0f} a second"
    console.print(f"replayed {number_of(rows, 'event')} {target}in {seconds:.2f} s ({rate})", soft_wrap=True)
    if history.refusals.count:
        left_out = history.refusals.count
        which = "row that does not fit" if left_out == 1 else "rows that do not fit, the first of them"
        console.print(f"left out {left_out:,} {which}:")
        for line in history.refusals.shown or []:
            console.print("  " + line, highlight=False)


def counted(
    events: Iterator[Run], show: Callable[[int], Any]
) -> Iterator[Run]:
    """The same events; of all topics, how many have been worked on is shown on the way."""
    rows = 0
    for run in events:
        yield run
        rows += run.batch.num_rows
        show(rows)


def check_target(options: ReplayOptions) -> None:
    """What is written is Parquet, and must not replace what is read."""
    assert options.target is not None
    if options.target.suffix != ".parquet":
        message = f"replay writes Parquet, not {options.target.name}"
        raise DefinitionError(message, hint="name a file that ends in .parquet")
    if any(Path(source.path).resolve() == options.target.resolve() for source in options.sources):
        raise DefinitionError(f"replay would write over what it reads: {options.target}", hint="name another file")


def open_history(plan: Plan, replay: Replay, options: ReplayOptions) -> FileHistory | LogHistory:
    logs = [source.path for source in options.sources if source.topic is None and source.path.startswith("log:")]
    if logs:
        if len(options.sources) > 1:
            raise DefinitionError("a log is replayed by itself", hint="give one --from log:DIR and no files")
        if options.load:
            raise DefinitionError("a log is not loaded into a log", hint="point --data at it instead")
        return LogHistory(plan, Path(logs[0].removeprefix("log:")))
    files = [
        HistoryFile(replay.topic if source.topic is None else plan.topic_index(source.topic), Path(source.path))
        for source in options.sources
    ]
    for file in files:
        if not file.path.is_file():
            raise InputError(f"there is no file {file.path}")
    return FileHistory(plan, files, as_arrived=options.as_arrived, skip_invalid=options.skip_invalid)


class Loader:
    """Appends events to a log, through the very door of their topic, as they pass by."""

    def __init__(self, plan: Plan, settings: Settings, history: FileHistory) -> None:
        self.history = history
        data: Path = settings["data"]
        data.mkdir(parents=True, exist_ok=True)
        self.lock = _native.Lock(str(data))
        core = {
            name: settings[name] for name in ("state_bytes", "commit_bytes", "segment_bytes", "threads")
        }
        core |= {"retention_us": None, "retention_bytes": None, "memory_ids": 1_000_000}
        # What is rejected ends the load, and its file stays: nothing has to be kept of it.
        topics = [{**topic, "dead_letters": False} for topic in plan.document["topics"]]
        loading = Plan(plan.pipeline, {**plan.document, "topics": topics})
        self.gate = _native.Gate(loading.to_json(), str(data), json.dumps(core))
        self.ready = self.gate.start()
        self.handle = 0
        # What is under way: the topic, and the first of its events by number.
        self.waiting: dict[int, tuple[int, int]] = {}
        self.taken: Counter[int] = Counter()

    def tee(self, events: Iterator[Run]) -> Iterator[Run]:
        try:
            for run in events:
                for start in range(0, run.batch.num_rows, LOAD_ROWS):
                    self.append(run.topic, run.batch.slice(start, LOAD_ROWS))
                yield run
            while self.waiting:
                self.take()
        finally:
            self.gate.stop()
            del self.lock

    def append(self, topic: int, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self.handle += 1
        self.waiting[self.handle] = (topic, self.taken[topic])
        self.taken[topic] += batch.num_rows
        body = sink.getvalue().to_pybytes()
        self.gate.submit([(self.handle, EVENTS_ARROW, topic, body, time.monotonic_ns())])
        while len(self.waiting) >= LOADS_WAITING:
            self.take()

    def take(self) -> None:
        # Read before what it announces is taken: an answer may be there a moment before its signal.
        if select.select([self.ready], [], [], 1.0)[0]:
            os.read(self.ready, 8)
        answers = self.gate.take()
        failed: str | None = json.loads(self.gate.stats())["failed"]
        if failed:
            raise InputError(f"could not load into the log: {failed}")
        for handle, status, body, _ in answers:
            topic, first = self.waiting.pop(handle)
            answer: dict[str, Any] = json.loads(body)
            rejected = [{"index": 0, **answer}] if status != 200 else answer["rejected"]
            for each in rejected[:1]:
                place = self.history.place(topic, first + each["index"])
                raise InputError(
                    f"could not load into the log: {place}: {each['error']['message']}",
                    hint="mend it and load again: what is in the log already is not taken twice",
                )
