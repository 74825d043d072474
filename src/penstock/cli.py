"""The command line. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from penstock.errors import PenstockError
from penstock.settings import FILE, SETTINGS, Settings, read_settings, url


def main() -> None:
    """The entry point: an error of ours is a message and exit status 1."""
    # What is imported and compiled stays: looking through it again and again would be a tenth of a start.
    gc.set_threshold(50_000, 20, 100)
    try:
        commands(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PenstockError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        click.echo(f"error: could not use{place}: {error.strerror or error}", err=True)
        sys.exit(1)
    finally:
        # Nor is it looked through at the end, for another tenth of a second.
        gc.freeze()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="penstock")
def commands() -> None:
    """Decide on events while their sender waits, from a durable log."""


Command = Callable[..., Any]


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Options for these settings, or for all of them, and for the file with settings."""

    def decorate(command: Command) -> Command:
        for setting in reversed(SETTINGS):
            if not names or setting.name in names:
                command = click.option(setting.option, setting.name, help=setting.about + ".")(command)
        about = f"A file with settings (default: {FILE} where there is one)."
        return click.option("--settings", "settings_file", type=click.Path(path_type=Path), help=about)(command)

    return decorate


def read_options(options: dict[str, Any]) -> Settings:
    file = options.pop("settings_file")
    return read_settings(options, file=file)


app_argument = click.argument("app", type=click.Path(path_type=Path))


@commands.command("run")
@app_argument
@settings_options()
def run_command(app: Path, **options: Any) -> None:
    """Serve APP's pipeline over HTTP until SIGTERM or Ctrl-C."""
    from penstock.runtime.diagnostics import start_diagnostics
    from penstock.serve.service import Service

    settings = read_options(options)
    start_diagnostics(settings["diagnostics"], settings["level"])
    service = Service.load(app, settings)
    with StartProgress() as progress:
        service.run(say=progress.say, progress=progress.show)


@commands.command("replay")
@app_argument
@click.option("--from", "sources", multiple=True, required=True, help="A file, or log:DIR. Several may be given.")
@click.option("--topic", "topics", multiple=True, type=(str, str), help="A topic and a file with its events.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--select", help="The columns to write, with commas between them (default: all).")
@click.option("--policy", help="The policy, where there are several.")
@click.option("--as-arrived", is_flag=True, help="Keep the files' own order.")
@click.option("--skip-invalid", is_flag=True, help="Leave out rows that do not fit, instead of stopping.")
@click.option("--load", is_flag=True, help="Also append the events to the log in --data.")
@settings_options("data", "threads", "state_bytes", "segment_bytes", "commit_bytes")
def replay_command(app: Path, **options: Any) -> None:
    """Compute features and decisions over history."""
    from penstock.runtime.replaying import ReplayOptions, run_replay

    names = ("sources", "topics", "target", "select", "policy", "as_arrived", "skip_invalid", "load")
    chosen = {name: options.pop(name) for name in names}
    run_replay(app, ReplayOptions(**chosen), read_options(options))


@commands.command("topics")
@settings_options("data")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def topics_command(as_json: bool, **options: Any) -> None:
    """The topics of a data directory, their events and their fields."""
    from penstock.runtime.logs import read_catalog

    catalog = read_catalog(read_options(options)["data"])
    if as_json:
        click.echo(json.dumps(catalog["topics"], indent=2))
        return
    for topic in catalog["topics"]:
        fields = ", ".join(field["name"] for field in topic["fields"])
        click.echo(f"{topic['name']:<24} {topic['next_offset']:>14,}  {fields}")


@commands.command("tail")
@click.argument("topic")
@settings_options("data", "host", "port")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=10, show_default=True, help="How many of the newest rows."
)
@click.option("--offset", type=click.IntRange(min=0), help="From this offset on instead.")
@click.option("-f", "--follow", is_flag=True, help="Go on as rows arrive.")
@click.option("--consumer", "name", help="Go on where this consumer stopped, and remember where it stops.")
def tail_command(topic: str, lines: int, offset: int | None, follow: bool, name: str | None, **options: Any) -> None:
    """The newest rows of TOPIC, as JSON lines."""
    from penstock.runtime.logs import Consumer, tail_rows

    settings = read_options(options)
    data: Path = settings["data"]
    consumer = None if name is None else Consumer(data, name, topic, url=url(settings["host"], settings["port"]))
    for text in tail_rows(data, topic, lines=lines, offset=offset, follow=follow, sleep=time.sleep, consumer=consumer):
        sys.stdout.write(text)
        sys.stdout.flush()


@commands.command("export")
@click.argument("topic")
@click.option("--to", "target", type=click.Path(path_type=Path), required=True, help="The Parquet file to write.")
@settings_options("data")
def export_command(topic: str, target: Path, **options: Any) -> None:
    """Write all rows of TOPIC to a Parquet file."""
    from penstock.runtime.logs import export_topic

    rows = export_topic(read_options(options)["data"], topic, target)
    click.echo(f"wrote {rows:,} rows to {target}")


@commands.group("log")
def log_group() -> None:
    """The log's files."""


@log_group.command("verify")
@settings_options("data")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def verify_command(as_json: bool, **options: Any) -> None:
    """Check every frame of every file; exit status 1 where something is damaged."""
    from penstock.runtime.logs import verify_log

    report = verify_log(read_options(options)["data"])
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(report_text(report))
    if not report["sound"]:
        sys.exit(1)


def report_text(report: dict[str, Any]) -> str:
    state = "sound" if report["sound"] else "DAMAGED"
    lines = [f"{state}: {report['segments']:,} segments, {report['commits']:,} commits"]
    lines += [f"  {topic}: {rows:,} rows" for topic, rows in sorted(report["rows"].items())]
    lines += [f"  {each['file']}, byte {each['offset']:,}: {each['what']}" for each in report["damages"]]
    return "\n".join(lines)


@commands.group("rules")
def rules_group() -> None:
    """The rules of policies."""


@rules_group.command("check")
@app_argument
def rules_check_command(app: Path) -> None:
    """Check APP's pipeline and the rules of all its policies."""
    from penstock.runtime.app import load_app
    from penstock.runtime.plan import compile_plan

    plan = compile_plan(load_app(app))
    for policy in plan.document["policies"]:
        count = len(policy["rules"])
        click.echo(f"policy {policy['name']}: {count} rules, version {policy['version']}")


@commands.command("settings")
@settings_options()
def settings_command(**options: Any) -> None:
    """All settings: value, where it comes from, environment variable, range, meaning."""
    settings = read_options(options)
    for setting in SETTINGS:
        click.echo(
            f"{setting.name:<16} {settings.text(setting.name):<14} {settings.sources[setting.name]:<14} "
            f"{setting.variable:<26} {setting.range:<28} {setting.about}"
        )


@commands.command("demo")
@click.option("--seconds", default=60.0, show_default=True, help="How long to run.")
@click.option("--rate", default=2000.0, show_default=True, help="Payments a second.")
@click.option("--customers", default=2000, show_default=True, help="Who pays.")
@click.option("--terminals", default=4000, show_default=True, help="Where they pay.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same payments.")
def demo_command(**options: Any) -> None:
    """Payments with fraud among them, decided while their sender waits."""
    from penstock.demo.main import run_demo

    sys.exit(run_demo(**options))


class StartProgress:
    """Lines about the start, and a bar for what takes long, both on standard error."""

    def __init__(self) -> None:
        # What is done within half a second needs no progress.
        self.shown = time.monotonic()

    def __enter__(self) -> StartProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def show(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self.shown >= 0.5:
            self.shown = now
            share = f" of {of:,}, {100 * min(done, of) / of:.0f} %" if of else ""
            click.echo(f"{what}: {done:,}{share}", err=True)


if __name__ == "__main__":
    main()
