"""`penstock replay`: history in, a Parquet file out, and where asked a log that a service starts from."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import _native
from penstock.errors import DefinitionError, InputError
from penstock.runtime.app import load_app
from penstock.runtime.gate import EVENTS_ARROW
from penstock.runtime.history import FileHistory, HistoryFile, LogHistory
from penstock.runtime.plan import Plan, compile_plan
from penstock.runtime.replay import Replay, choose, in_background, write_parquet
from penstock.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

LOAD_ROWS = 16_384
LOADS_WAITING = 4


@dataclass(frozen=True)
class ReplayOptions:
    """What the command line says; `select` has commas between the names."""

    sources: tuple[str, ...]
    topics: tuple[tuple[str, str], ...]
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
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("replaying", total=history.rows())
        events: Iterator[tuple[int, pa.RecordBatch]] = in_background(history)
        if options.load:
            events = Loader(plan, settings).tee(events)
        if options.target is None:
            rows = 0
            for _, batch in events:
                rows += batch.num_rows
                bar.update(task, completed=rows)
        else:
            results = replay.run(events, select=chosen, threads=settings["threads"])
            shown = lambda rows: bar.update(task, completed=rows)  # noqa: E731 - one use, beside it
            rows = write_parquet(in_background(results), options.target, progress=shown)
    seconds = time.monotonic() - started
    target = f"to {options.target} " if options.target else ""
    rate = f"{rows / seconds:,.0f} a second"
    console.print(f"replayed {rows:,} events {target}in {seconds:.2f} s ({rate})", soft_wrap=True)
    if history.refusals.count:
        console.print(f"left out {history.refusals.count:,} rows that do not fit, the first of them:")
        for line in history.refusals.shown or []:
            console.print("  " + line, highlight=False)


def check_target(options: ReplayOptions) -> None:
    """What is written is Parquet, and must not replace what is read."""
    assert options.target is not None
    if options.target.suffix != ".parquet":
        message = f"replay writes Parquet, not {options.target.name}"
        raise DefinitionError(message, hint="name a file that ends in .parquet")
    sources = [*options.sources, *(path for _, path in options.topics)]
    if any(Path(source).resolve() == options.target.resolve() for source in sources):
        raise DefinitionError(f"replay would write over what it reads: {options.target}", hint="name another file")


def open_history(plan: Plan, replay: Replay, options: ReplayOptions) -> FileHistory | LogHistory:
    logs = [source for source in options.sources if source.startswith("log:")]
    if logs:
        if len(options.sources) > 1 or options.topics:
            raise DefinitionError("a log is replayed by itself", hint="give one --from log:DIR and no files")
        if options.load:
            raise DefinitionError("a log is not loaded into a log", hint="point --data at it instead")
        return LogHistory(plan, Path(logs[0].removeprefix("log:")))
    files = [HistoryFile(replay.topic, Path(source)) for source in options.sources]
    files += [HistoryFile(plan.topic_index(topic), Path(path)) for topic, path in options.topics]
    for file in files:
        if not file.path.is_file():
            raise InputError(f"there is no file {file.path}")
    return FileHistory(plan, files, as_arrived=options.as_arrived, skip_invalid=options.skip_invalid)


class Loader:
    """Appends events to a log, through the very door of their topic, as they pass by."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        data: Path = settings["data"]
        data.mkdir(parents=True, exist_ok=True)
        self.lock = _native.Lock(str(data))
        core = {
            name: settings[name] for name in ("state_bytes", "commit_bytes", "segment_bytes", "threads")
        }
        core |= {"retention_us": None, "retention_bytes": None, "memory_ids": 1_000_000}
        self.gate = _native.Gate(plan.to_json(), str(data), json.dumps(core))
        self.ready = self.gate.start()
        self.handle = 0
        self.waiting = 0

    def tee(self, events: Iterator[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        try:
            for topic, batch in events:
                for start in range(0, batch.num_rows, LOAD_ROWS):
                    self.append(topic, batch.slice(start, LOAD_ROWS))
                yield topic, batch
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
        self.waiting += 1
        body = sink.getvalue().to_pybytes()
        self.gate.submit([(self.handle, EVENTS_ARROW, topic, body, time.monotonic_ns())])
        while self.waiting >= LOADS_WAITING:
            self.take()

    def take(self) -> None:
        select.select([self.ready], [], [], 1.0)
        answers = self.gate.take()
        if answers:
            os.read(self.ready, 8)
        failed: str | None = json.loads(self.gate.stats())["failed"]
        if failed:
            raise InputError(f"could not load into the log: {failed}")
        for _, status, body, _ in answers:
            self.waiting -= 1
            answer: dict[str, Any] = json.loads(body)
            if status != 200:
                raise InputError(f"could not load into the log: {answer['error']['message']}")
            if answer["rejected"]:
                raise InputError(f"could not load into the log: {answer['rejected'][0]['error']['message']}")
