"""The command line. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from penstock.errors import PenstockError, SettingsError
from penstock.settings import FILE, SETTINGS, Setting, Settings, read_settings
from penstock.wording import number_of


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
        complain(error.message, error.hint)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        complain(f"could not use{place}: {error.strerror or error}")
    finally:
        # Nor is it looked through at the end, for another tenth of a second.
        gc.freeze()


def complain(message: str, hint: str | None = None) -> None:
    """Say what is wrong, and end."""
    import logging

    from penstock.runtime.diagnostics import say

    say(f"error: {message}", hint=hint, level=logging.ERROR)
    sys.exit(1)


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
                command = click.option(setting.option, setting.name, help=setting_help(setting))(command)
        about = f"A file with settings (default: {FILE} where there is one)."
        return click.option("--settings", "settings_file", type=click.Path(path_type=Path), help=about)(command)

    return decorate


def setting_help(setting: Setting) -> str:
    about = setting.about[0].upper() + setting.about[1:]
    choices = f": {' or '.join(setting.choices)}" if setting.choices else ""
    default = "" if setting.default is None else f" (default: {setting.default})"
    return f"{about}{choices}{default}."


def read_options(options: dict[str, Any]) -> Settings:
    file = options.pop("settings_file")
    return read_settings(options, file=file)


url_option = click.option("--url", help="Where the service answers (default: http:// or https:// with host and port).")
app_argument = click.argument("app", type=click.Path(path_type=Path))


@commands.command("run")
@app_argument
@settings_options()
def run_command(app: Path, **options: Any) -> None:
    """Serve APP's pipeline over HTTP until SIGTERM or Ctrl-C."""
    from penstock.runtime.diagnostics import say, start_diagnostics
    from penstock.serve.service import Service

    # For what may be wrong with the other settings.
    if (options["diagnostics"] or os.environ.get("PENSTOCK_DIAGNOSTICS")) == "json":
        start_diagnostics("json", "info")
    settings = read_options(options)
    start_diagnostics(settings["diagnostics"], settings["level"])
    service = Service.load(app, settings)
    service.run(say=say, progress=StartProgress(say).show)


def part_files(args: list[str]) -> list[str]:
    """Several files after one `--from`, as a shell's pattern gives them, each behind a `--from` of its own.

    A file of Python is none of them but the app.

    >>> part_files(["app.py", "--from", "a.csv", "b.csv", "--to", "c.parquet"])
    ['app.py', '--from', 'a.csv', '--from', 'b.csv', '--to', 'c.parquet']
    """
    parted: list[str] = []
    more = False  # whether a file was the last, or is about to come
    for arg in args:
        if arg.startswith("-"):
            more = arg == "--from" or arg.startswith("--from=")
        elif more and parted[-1] != "--from":
            if arg.endswith(".py"):
                more = False
            else:
                parted.append("--from")
        parted.append(arg)
    return parted


class InOrder(click.Command):
    """Keeps which options stood in which order: the context's `meta` has their names, each as often as it stood."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = part_files(args)
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta["order"] = [each.name for each in order]
        return super().parse_args(ctx, args)


@commands.command("replay", cls=InOrder)
@app_argument
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="FILE...",
    help="Files of the policy's topic, or log:DIR. May be repeated.",
)
@click.option("--topic", "topics", multiple=True, type=(str, str), help="A topic and a file of it. May be repeated.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="The Parquet file to write.")
@click.option("--select", help="The columns to write, with commas between them (default: all).")
@click.option("--policy", help="The policy, where there are several.")
@click.option("--as-arrived", is_flag=True, help="Keep the files' own order.")
@click.option("--skip-invalid", is_flag=True, help="Leave out rows that do not fit, instead of stopping.")
@click.option("--load", is_flag=True, help="Also append the events to the log in --data.")
@settings_options("data", "threads", "state_bytes", "segment_bytes", "commit_bytes")
@click.pass_context
def replay_command(context: click.Context, /, app: Path, **options: Any) -> None:
    """Compute features and decisions over history."""
    from penstock.runtime.replaying import ReplayOptions, Source, run_replay

    named = {
        "sources": iter([Source(path) for path in options.pop("sources")]),
        "topics": iter([Source(path, topic) for topic, path in options.pop("topics")]),
    }
    sources = tuple(next(named[name]) for name in context.meta["order"] if name in named)
    names = ("target", "select", "policy", "as_arrived", "skip_invalid", "load")
    chosen = {name: options.pop(name) for name in names}
    run_replay(app, ReplayOptions(sources, **chosen), read_options(options))


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
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    help="How many of the newest rows (default: 10); with --offset or --consumer, how many from there.",
)
@click.option("--offset", type=click.IntRange(min=0), help="From this offset on instead.")
@click.option("-f", "--follow", is_flag=True, help="Go on as rows arrive.")
@click.option("--consumer", "name", help="Go on where this consumer stopped, and remember where it stops.")
@url_option
def tail_command(
    topic: str, lines: int | None, offset: int | None, follow: bool, name: str | None, url: str | None, **options: Any
) -> None:
    """The newest rows of TOPIC, as JSON lines with their offsets."""
    from penstock.runtime.logs import Consumer, tail_rows

    settings = read_options(options)
    data: Path = settings["data"]
    consumer = None if name is None else Consumer(data, name, topic, url=url or settings.url)
    for text in tail_rows(data, topic, lines=lines, offset=offset, follow=follow, sleep=time.sleep, consumer=consumer):
        sys.stdout.write(text)
        sys.stdout.flush()


@commands.command("consumers")
@settings_options("data", "host", "port")
@click.option("--forget", "name", metavar="NAME", help="Remove all positions of this consumer.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@url_option
def consumers_command(name: str | None, as_json: bool, url: str | None, **options: Any) -> None:
    """The consumers of a log: how far each has come in which topic, and how many rows it has left."""
    from penstock.runtime.logs import forget_consumer, read_catalog, read_positions

    settings = read_options(options)
    data: Path = settings["data"]
    if name is not None:
        forgotten = forget_consumer(data, name, url=url or settings.url)
        click.echo(f"forgot {forgotten:,} positions of {name}")
        return
    catalog = read_catalog(data)
    ends = {topic["name"]: topic["next_offset"] for topic in catalog["topics"]}
    positions = read_positions(catalog)
    if as_json:
        names = ("consumer", "topic", "offset", "next_offset")
        rows = [dict(zip(names, (*position, ends[position[1]]), strict=True)) for position in positions]
        click.echo(json.dumps(rows, indent=2))
        return
    for consumer, topic, offset in positions:
        click.echo(f"{consumer:<24} {topic:<24} {offset:>14,}  {ends[topic] - offset:,} left")


@commands.command("export")
@click.argument("topic")
@click.option("--to", "target", type=click.Path(path_type=Path), required=True, help="The Parquet file to write.")
@settings_options("data")
def export_command(topic: str, target: Path, **options: Any) -> None:
    """Write all rows of TOPIC to a Parquet file."""
    from penstock.runtime.logs import export_topic

    rows = export_topic(read_options(options)["data"], topic, target)
    click.echo(f"wrote {number_of(rows, 'row')} to {target}")


@commands.group("deadletters")
def deadletters_group() -> None:
    """Events that a topic's door rejected, which the log keeps until they are put right."""


@deadletters_group.command("list")
@click.argument("topic", required=False)
@settings_options("data")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def deadletters_list_command(topic: str | None, as_json: bool, **options: Any) -> None:
    """The dead letters of TOPIC, or of all: where from and why, without what they hold."""
    from penstock.runtime.deadletters import read_letters

    letters = [letter.about() for letter in read_letters(read_options(options)["data"], topic)]
    if as_json:
        click.echo(json.dumps(letters, indent=2))
        return
    for each in letters:
        click.echo(
            f"{each['topic']} {each['offset']:>9}  {each['received_at']}  {each['source']} {each['request']}, "
            f"row {each['index']}, {number_of(each['bytes'], 'byte')}  {each['code']}: {each['message']}"
        )


@deadletters_group.command("show")
@click.argument("topic")
@click.argument("offsets", type=click.IntRange(min=0), nargs=-1)
@settings_options("data")
@click.option("--to", "target", type=click.Path(path_type=Path), help="Write the events to this file, to correct them.")
def deadletters_show_command(topic: str, offsets: tuple[int, ...], target: Path | None, **options: Any) -> None:
    """The dead letters of TOPIC at these OFFSETS, or all, with the events as they came."""
    from penstock.runtime.deadletters import choose_letters, read_letters, write_events

    letters = choose_letters(read_letters(read_options(options)["data"], topic), offsets)
    if target is not None:
        write_events(letters, target)
        click.echo(f"wrote {number_of(len(letters), 'event')} to {target}")
        return
    for letter in letters:
        click.echo(json.dumps({**letter.about(), "body": letter.body, "encoding": letter.encoding}, indent=2))


@deadletters_group.command("retry")
@click.argument("topic")
@click.argument("offsets", type=click.IntRange(min=0), nargs=-1)
@settings_options("data", "host", "port")
@click.option("--from", "source", type=click.Path(path_type=Path), help="A corrected file of `show --to`.")
@url_option
def deadletters_retry_command(
    topic: str, offsets: tuple[int, ...], source: Path | None, url: str | None, **options: Any
) -> None:
    """Send the dead letters of TOPIC at these OFFSETS, or all, through the running service once more.

    Exit status 1 where some are rejected again.
    """
    from penstock.runtime.deadletters import (
        DeadLetter,
        choose_letters,
        original_events,
        read_events,
        read_letters,
        retry_letters,
    )

    settings = read_options(options)
    if source is not None and offsets:
        raise click.UsageError("give offsets or --from, not both")
    letters = read_letters(settings["data"], topic)
    skipped: list[DeadLetter] = []
    if source is not None:
        events = read_events(source)
        choose_letters(letters, events)
    else:
        events = original_events(choose_letters(letters, offsets), skipped.append)
    done = retry_letters(topic, events, url=url or settings.url)
    click.echo(f"put {number_of(done.taken, 'event')} right")
    for letter in skipped:
        click.echo(f"{topic} {letter.offset}: not kept whole, or no JSON; correct it with show --to and retry --from")
    for offset, message in done.rejected.items():
        click.echo(f"{topic} {offset}: {message}")
    if skipped or done.rejected:
        sys.exit(1)


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
    lines = [f"{state}: {number_of(report['segments'], 'segment')}, {number_of(report['commits'], 'commit')}"]
    lines += [f"  {topic}: {number_of(rows, 'row')}" for topic, rows in sorted(report["rows"].items())]
    lines += [f"  {each['file']}, byte {each['offset']:,}: {each['what']}" for each in report["damages"]]
    lines += [f"  {each['file']}, byte {each['offset']:,}: {each['what']}" for each in report["ids"]["damages"]]
    lines += [f"  {each['what']}" for each in report["snapshots"]["damages"]]
    if report["torn_bytes"]:
        torn = number_of(report["torn_bytes"], "byte")
        lines.append(f"  {torn} of an unacknowledged commit at the end: the next start cuts them off")
    return "\n".join(lines)


@log_group.command("repair")
@settings_options("data")
@click.option("--quarantine", is_flag=True, help="Let acknowledged commits leave the log, and keep them aside.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def repair_command(quarantine: bool, as_json: bool, **options: Any) -> None:
    """End a damaged log before the damage; what was there goes to quarantine/, with a report."""
    from penstock.runtime.repair import repair_log

    report = repair_log(read_options(options)["data"], quarantine=quarantine)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif not report["repaired"]:
        click.echo("the log is sound: there is nothing to repair")
    else:
        last = report["last_sequence"]
        place = f"byte {report['offset']:,} of {report['file']}"
        click.echo(f"the log ends with commit {last['after']:,} now, before {place}")
        click.echo(f"what was there, up to commit {last['before']:,}, is in {report['quarantine']}/, with report.json")


@commands.group("snapshot")
def snapshot_group() -> None:
    """The state's snapshots."""


@snapshot_group.command("list")
@settings_options("data")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def snapshot_list_command(as_json: bool, **options: Any) -> None:
    """Which there are, the oldest first: the commit each is as of, its size, when it was written."""
    from penstock.runtime.logs import check_data
    from penstock.runtime.snapshot_files import list_snapshots

    data: Path = read_options(options)["data"]
    check_data(data)
    rows = [snapshot.to_json() for snapshot in list_snapshots(data)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['sequence']:>12,}  {row['bytes']:>16,} bytes  {row['written_at']}")


@snapshot_group.command("verify")
@settings_options("data")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def snapshot_verify_command(as_json: bool, **options: Any) -> None:
    """Read each of them whole; exit status 1 where one is damaged."""
    from penstock.runtime.logs import check_data
    from penstock.runtime.snapshot_files import verify_snapshots

    data: Path = read_options(options)["data"]
    check_data(data)
    report = verify_snapshots(data)
    state = "DAMAGED" if report["damages"] else "sound"
    lines = [f"{state}: {number_of(report['files'], 'snapshot')}", *(f"  {each['what']}" for each in report["damages"])]
    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(lines))
    if report["damages"]:
        sys.exit(1)


@snapshot_group.command("drop")
@click.argument("sequence", type=click.IntRange(min=1))
@settings_options("data")
def snapshot_drop_command(sequence: int, **options: Any) -> None:
    """Remove the snapshot as of commit SEQUENCE, of a directory that nothing runs on."""
    from penstock.runtime.logs import check_data
    from penstock.runtime.snapshot_files import drop_snapshot

    data: Path = read_options(options)["data"]
    check_data(data)
    dropped = drop_snapshot(data, sequence)
    click.echo(f"dropped the snapshot as of commit {dropped.sequence:,}")


@commands.command("backup")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Compare the copy in DIR with its manifest instead; 1 where it differs.")
@settings_options("data")
def backup_command(target: Path, check: bool, **options: Any) -> None:
    """Copy a data directory to the new folder DIR, whether or not a service writes it."""
    from penstock.runtime.backup import back_up, check_backup

    if check:
        manifest, wrong = check_backup(target)
        state = "DAMAGED" if wrong else "as it was copied"
        files = number_of(len(manifest["files"]), "file")
        lines = [f"{state}: {files} up to commit {manifest['sequence']:,}", *(f"  {each}" for each in wrong)]
        click.echo("\n".join(lines))
        sys.exit(1 if wrong else 0)
    manifest = back_up(read_options(options)["data"], target)
    files = number_of(len(manifest["files"]), "file")
    click.echo(f"copied {files} to {target}: everything up to commit {manifest['sequence']:,}")


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
        rules = number_of(len(policy["rules"]), "rule")
        click.echo(f"policy {policy['name']}: {rules}, version {policy['version']}")
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)


@commands.group("tokens")
def tokens_group() -> None:
    """The tokens that callers of a service need."""


token_name = click.argument("name")


@tokens_group.command("new")
@token_name
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(["ingest", "decide", "query", "admin"]),
    help="What its holder may do. May be repeated.",
)
@settings_options("tokens")
def tokens_new_command(name: str, roles: tuple[str, ...], **options: Any) -> None:
    """Make a token called NAME, write its hash, and show the token: this once, and never again."""
    from penstock.serve.tokens import new_token

    path = tokens_file(options)
    click.echo(new_token(path, name, roles))
    click.echo(f"its hash is in {path}; a running service takes it within a second", err=True)


@tokens_group.command("list")
@settings_options("tokens")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def tokens_list_command(as_json: bool, **options: Any) -> None:
    """The tokens by name: roles, and when each was made."""
    from penstock.serve.tokens import read_tokens

    tokens = read_tokens(tokens_file(options))
    rows = [(each.name, each.roles, each.created.isoformat() if each.created else None) for each in tokens]
    if as_json:
        click.echo(json.dumps([dict(zip(("name", "roles", "created"), row, strict=True)) for row in rows], indent=2))
        return
    for each, roles, created in rows:
        click.echo(f"{each:<24} {', '.join(roles):<30} {created or ''}".rstrip())


@tokens_group.command("remove")
@token_name
@settings_options("tokens")
def tokens_remove_command(name: str, **options: Any) -> None:
    """Take the token called NAME out of the file: it opens nothing any more."""
    from penstock.serve.tokens import remove_token

    path = tokens_file(options)
    remove_token(path, name)
    click.echo(f"removed {name} from {path}; a running service refuses it within a second", err=True)


def tokens_file(options: dict[str, Any]) -> Path:
    path: Path | None = read_options(options)["tokens"]
    if path is None:
        raise SettingsError("no tokens file is set", hint="give --tokens FILE, or PENSTOCK_TOKENS")
    return path


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
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="The same seed gives the same payments."
)
def demo_command(**options: Any) -> None:
    """Payments, with fraud among them, decided live."""
    from penstock.demo.main import run_demo

    sys.exit(run_demo(**options))


class StartProgress:
    """Says how far something long is, a line every half second."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        # What is done within half a second needs no progress.
        self.shown = time.monotonic()

    def show(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        # At its end there is nothing more to wait for.
        if now - self.shown >= 0.5 and (done < of or not of):
            self.shown = now
            share = f" of {of:,}, {100 * min(done, of) / of:.0f} %" if of else ""
            self.say(f"{what}: {done:,}{share}")


if __name__ == "__main__":
    main()
