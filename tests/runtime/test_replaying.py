"""Replay as its users run it: files of each kind, several topics, a log, and a load that a service goes on from."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import DefinitionError, InputError
from penstock.runtime import history
from penstock.runtime.replaying import ReplayOptions, Source, run_replay
from penstock.settings import read_settings
from processes import EVENTS, FIRST, JSON, NDJSON, PATIENCE_S, fail, payment, running, succeed

APP = '''
from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str
    country: str | None
    amount: Decimal = ps.decimal(12, 2)
    weight: float | None
    items: int | None
    online: bool | None
    paid_at: datetime = ps.event_time()


class Report(ps.Event):
    report_id: int = ps.id()
    card: str
    reported_at: datetime = ps.event_time()


pipeline = ps.Pipeline("cards")
payments = pipeline.topic("payments", Payment)
reports = pipeline.topic("reports", Report)
card = payments.by("card")
scored = payments.features(
    n=card.past("1h").count(),
    spent=card.past("30d").sum("amount"),
    usual=card.past("30d").mean("amount"),
    countries=card.past("1d").n_unique("country"),
    idle=card.past("30d").since_last(),
    online_n=card.past(None).count(where="online"),
    weight=payments.by("card", "country").past(None).max("weight"),
    reports=reports.by("card").past("7d").count(),
).derive(share="amount / spent")
pipeline.policy("authorise", scored, rules="rules.toml", within="30s", fallback="approve")
'''.replace("weight=payments", "heaviest=payments")

RULES = """
default = "approve"
outcomes = ["decline", "review", "approve"]

[[rule]]
name = "reported"
when = "reports > 0"
outcome = "decline"
code = "D1"

[[rule]]
name = "often"
when = "n > 2"
outcome = "review"
"""

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
COLUMNS = ("payment_id", "card", "country", "amount", "weight", "items", "online", "paid_at")
COUNTRIES = ("NA", "DE", None, "", "null", 'say "hi", you', "two\nlines", "ä€𝄞", "nan")


def paid(number: int, seconds: float, **changed: Any) -> JSON:
    """One payment as its values; the time is so many seconds after noon."""
    event = {
        "payment_id": f"p{number}",
        "card": f"c{number % 3}",
        "country": COUNTRIES[number % len(COUNTRIES)],
        "amount": Decimal(number * 37 % 1000) / 100,
        "weight": None if number % 5 == 0 else number / 7,
        "items": None if number % 4 == 0 else number - 20,
        "online": None if number % 6 == 0 else number % 2 == 0,
        "paid_at": NOON + timedelta(seconds=seconds),
    }
    return {**event, **changed}


PAYMENTS = [paid(number, number * 40 + (number % 3) * 0.000001) for number in range(60)]
REPORTS = [
    {"report_id": number, "card": f"c{number % 2}", "reported_at": NOON + timedelta(seconds=300 * number + 1)}
    for number in range(8)
]

TYPES = {"amount": pa.decimal128(12, 2), "weight": pa.float64(), "items": pa.int64(), "online": pa.bool_()}


def write_parquet(path: Path, events: list[JSON]) -> None:
    times = {name: pa.timestamp("us", "UTC") for name in ("paid_at", "reported_at")}
    types = {"payment_id": pa.string(), "report_id": pa.int64(), "card": pa.string(), "country": pa.string()}
    schema = pa.schema([(name, {**types, **times, **TYPES}[name]) for name in events[0]])
    pq.write_table(pa.Table.from_pylist(events, schema), path)


def write_ndjson(path: Path, events: list[JSON]) -> None:
    path.write_text("".join(json_line(event) + "\n" for event in events))


def json_line(event: JSON) -> str:
    plain = {name: str(value) if isinstance(value, Decimal) else value for name, value in event.items()}
    return json.dumps(plain, default=lambda time: time.isoformat())


def write_csv(path: Path, events: list[JSON]) -> None:
    """Text in quotes, null as nothing, and times without a zone."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return '"' + value.replace('"', '""') + '"'
        if isinstance(value, datetime):
            return value.replace(tzinfo=None).isoformat(sep=" ")
        return str(value).lower() if isinstance(value, bool) else str(value)

    lines = [",".join(events[0]), *(",".join(map(cell, event.values())) for event in events)]
    path.write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path, list[JSON]], None]] = {
    "parquet": write_parquet, "ndjson": write_ndjson, "jsonl": write_ndjson, "csv": write_csv,
}  # fmt: skip


def written(path: Path, events: Iterable[JSON]) -> Path:
    WRITERS[path.suffix[1:]](path, list(events))
    return path


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "app.py"


def replay(
    app: Path, *sources: object, topics: Iterable[tuple[str, Path]] = (), threads: int = 2, **options: Any
) -> pa.Table:
    """What `penstock replay` writes about these sources."""
    target = app.parent / "out.parquet"
    chosen: dict[str, Any] = {
        "select": None, "policy": None, "as_arrived": False, "skip_invalid": False, "load": False, **options,
    }  # fmt: skip
    named = [Source(str(source)) for source in sources] + [Source(str(path), topic) for topic, path in topics]
    settings = read_settings({"data": app.parent / "data", "threads": threads}, environment={})
    run_replay(app, ReplayOptions(tuple(named), target, **chosen), settings)
    return pq.read_table(target)


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table.column(name).to_pylist()
    return values


@pytest.mark.parametrize("kind", ["csv", "ndjson", "jsonl"])
def test_files_of_each_kind_give_the_same(app: Path, tmp_path: Path, kind: str) -> None:
    expected = replay(app, written(tmp_path / "payments.parquet", PAYMENTS))
    assert expected.select(COLUMNS).to_pylist() == PAYMENTS
    assert replay(app, written(tmp_path / f"payments.{kind}", PAYMENTS)).equals(expected)


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
@pytest.mark.parametrize("size", [180, 1000])
def test_however_a_file_is_cut_into_blocks_its_rows_are_the_same(
    app: Path, tmp_path: Path, kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / f"payments.{kind}", PAYMENTS)
    monkeypatch.setattr(history, "TEXT_BYTES", size)
    assert replay(app, file).select(COLUMNS).to_pylist() == PAYMENTS


def test_every_column_is_written_under_its_name(app: Path, tmp_path: Path) -> None:
    table = replay(app, written(tmp_path / "payments.parquet", PAYMENTS[:3]))
    features = ["n", "spent", "usual", "countries", "idle", "online_n", "heaviest", "reports", "share"]
    assert table.column_names == [*COLUMNS, *features, "score", "outcome", "reasons"]
    assert column(table, "outcome") == ["approve"] * 3
    chosen = replay(app, tmp_path / "payments.parquet", select="n, payment_id ,spent")
    assert chosen.equals(table.select(["n", "payment_id", "spent"]))
    with pytest.raises(DefinitionError, match='no column "m" to select'):
        replay(app, tmp_path / "payments.parquet", select="n,m")


def test_topics_are_merged_by_time_then_by_the_order_of_files_then_by_row(app: Path, tmp_path: Path) -> None:
    """A report of the same instant counts where its file stands before the payments' row in the order."""
    first = [paid(1, 0, card="c"), paid(2, 10, card="c"), paid(3, 20, card="c")]
    second = [paid(4, 10, card="c"), paid(5, 10, card="c")]
    report = [{"report_id": 1, "card": "c", "reported_at": NOON + timedelta(seconds=10)}]
    files = [written(tmp_path / "first.ndjson", first), written(tmp_path / "second.csv", second)]
    table = replay(app, *files, topics=[("reports", written(tmp_path / "reports.parquet", report))])
    assert column(table, "payment_id") == ["p1", "p2", "p4", "p5", "p3"]
    assert column(table, "n") == [1, 2, 3, 4, 5]
    assert column(table, "reports") == [0, 0, 0, 0, 1]
    assert column(table, "reasons") == [[], [], ["often"], ["often"], ["reported", "often"]]
    turned = replay(app, *reversed(files))
    assert column(turned, "payment_id") == ["p1", "p4", "p5", "p2", "p3"]


@pytest.mark.parametrize("as_arrived", [False, True])
def test_the_order_of_files_is_that_of_the_command_line_whatever_names_them(
    app: Path, tmp_path: Path, as_arrived: bool
) -> None:
    """Two payments and a report of one instant: the payment that stands behind the report sees it."""
    first = ("--from", written(tmp_path / "first.parquet", [paid(1, 0, card="c")]))
    report = [{"report_id": 1, "card": "c", "reported_at": NOON}]
    reports = ("--topic", "reports", written(tmp_path / "reports.parquet", report))
    more = ("--topic", "payments", written(tmp_path / "more.parquet", [paid(2, 0, card="c")]))
    target = tmp_path / "out.parquet"
    for files, ids, seen in (
        ((first, reports, more), ["p1", "p2"], [0, 1]),
        ((reports, first, more), ["p1", "p2"], [1, 1]),
        ((more, reports, first), ["p2", "p1"], [0, 1]),
        ((more, first, reports), ["p2", "p1"], [0, 0]),
    ):
        arguments = [argument for file in files for argument in file]
        succeed("replay", app, *arguments, "--to", target, *(["--as-arrived"] if as_arrived else []))
        table = pq.read_table(target)
        assert (column(table, "payment_id"), column(table, "reports")) == (ids, seen)
    succeed("replay", app, *more, "--to", target)
    assert column(pq.read_table(target), "payment_id") == ["p2"]
    assert 'no topic "others"' in fail("replay", app, "--topic", "others", more[2], "--to", target)
    assert "nothing to read" in fail("replay", app, "--to", target)


def test_the_bar_counts_the_events_of_all_topics(app: Path, tmp_path: Path) -> None:
    payments = written(tmp_path / "payments.ndjson", PAYMENTS)
    reports = written(tmp_path / "reports.parquet", REPORTS)
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "replay", str(app), "--from", str(payments), "--topic", "reports",
         str(reports), "--to", str(tmp_path / "out.parquet")],
        stderr=terminal, env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    said = b""
    with suppress(OSError):  # A terminal's other side has closed.
        while part := os.read(main, 65_536):
            said += part
    os.close(main)
    assert process.wait(PATIENCE_S) == 0
    assert b"68/68" in said and b"replayed 60 events" in re.sub(rb"\x1b\[[\d;]*m", b"", said)


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_an_unsorted_file_is_sorted_unless_it_is_taken_as_it_arrived(app: Path, tmp_path: Path, kind: str) -> None:
    # The last is three hours late, two more than the default lateness.
    arrived = [paid(1, 10, card="c"), paid(2, 0, card="c"), paid(3, 10_800, card="c"), paid(4, 0, card="c")]
    file = written(tmp_path / f"payments.{kind}", arrived)
    table = replay(app, file)
    assert column(table, "payment_id") == ["p2", "p4", "p1", "p3"]
    assert column(table, "n") == [1, 2, 3, 1]
    kept = replay(app, file, as_arrived=True)
    assert column(kept, "payment_id") == ["p1", "p2", "p3", "p4"]
    # The late one is moved up to an hour before the newest, which is after the first two and before the third.
    assert column(kept, "n") == [1, 1, 1, 1]
    assert column(kept, "idle") == [None, None, 10_790.0, 7_190.0]
    assert column(kept, "paid_at")[3] == NOON


def test_rows_that_do_not_fit_stop_a_replay_unless_they_may_be_left_out(app: Path, tmp_path: Path) -> None:
    file = tmp_path / "payments.ndjson"
    good = [json_line(paid(number, number)) for number in range(3)]
    bad = json_line(paid(9, 9)).replace('"c0"', "7")
    file.write_text("\n".join([good[0], bad, good[1], "{", good[2]]))
    (tmp_path / "out.parquet").write_bytes(b"before")
    with pytest.raises(InputError) as stopped:
        replay(app, file)
    assert 'payments.ndjson, row 2: field "card": given a number, wanted text' in stopped.value.message
    assert "--skip-invalid" in str(stopped.value)
    assert (tmp_path / "out.parquet").read_bytes() == b"before"
    assert column(replay(app, file, skip_invalid=True), "payment_id") == ["p0", "p1", "p2"]
    told = succeed_replay_words(app, file, "--skip-invalid")
    assert "left out 2 rows that do not fit" in told and "payments.ndjson, row 4: " in told
    file.write_text("\n".join([good[0], bad]))
    told = succeed_replay_words(app, file, "--skip-invalid")
    assert "replayed 1 event to" in told and "left out 1 row that does not fit:" in told


def test_several_files_may_follow_one_from_as_a_shell_s_pattern_gives_them(app: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.ndjson" for number in range(3)]
    for number, file in enumerate(files):
        file.write_text(json_line(paid(number, number)))
    reports = tmp_path / "reports.ndjson"
    reports.write_text(json_line(REPORTS[0]))
    target = tmp_path / "out.parquet"
    for arguments in (
        [app, "--from", *files, "--to", target],
        ["--topic", "reports", reports, "--from", *files, app, "--to", target],
        [f"--from={files[0]}", files[1], "--to", target, "--from", files[2], "--", app],
    ):
        succeed("replay", *arguments)
        assert column(pq.read_table(target), "payment_id") == ["p0", "p1", "p2"]


def succeed_replay_words(app: Path, file: Path, *arguments: str) -> str:
    from processes import penstock

    done = penstock("replay", app, "--from", file, "--to", app.parent / "out.parquet", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("amount", "1.234"),
        ("amount", "much"),
        ("items", "1.5"),
        ("items", "9223372036854775808"),
        ("weight", "inf"),
        ("weight", "heavy"),
        ("online", "perhaps"),
        ("paid_at", "yesterday"),
        ("paid_at", "2026-11-01 12:00:00.1234567"),
        ("card", ""),
    ],
)
def test_a_cell_of_a_csv_file_that_does_not_fit_costs_its_row_alone(
    app: Path, tmp_path: Path, name: str, wrong: str
) -> None:
    file = tmp_path / "payments.csv"
    events = [{**{key: str(value) for key, value in paid(n, n).items()}, "country": "DE"} for n in (1, 2, 3)]
    for event in events:
        event.update(online="true", items="1", weight="2.5")
    events[1][name] = wrong
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, events[0])
        writer.writeheader()
        writer.writerows(events)
    with pytest.raises(InputError) as stopped:
        replay(app, file)
    assert f'payments.csv, row 2: field "{name}"' in stopped.value.message
    assert not wrong or wrong not in stopped.value.message
    assert column(replay(app, file, skip_invalid=True), "payment_id") == ["p1", "p3"]


def test_a_column_of_a_csv_file_that_is_no_field_may_hold_anything(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first rows look like numbers, and those of a later block do not."""
    monkeypatch.setattr(history, "TEXT_BYTES", 1_000)
    rows = [f"p{number},c1,1.00,2026-11-01T12:00:00Z,{number}" for number in range(100)]
    file = tmp_path / "payments.csv"
    head = "payment_id,card,amount,paid_at,more"
    file.write_text("\n".join([head, *rows, "p,c1,1.00,2026-11-01T12:00:00Z,secret"]))
    assert replay(app, file).num_rows == 101


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"p,c1,1.00,2026-11-01T12:00:00Z,secret", "Expected 4 columns, got 5"),
        (b"p,secret\xff,1.00,2026-11-01T12:00:00Z", "invalid UTF8 data"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_refused_without_its_text(
    app: Path, tmp_path: Path, row: bytes, why: str
) -> None:
    file = tmp_path / "payments.csv"
    file.write_bytes(b"payment_id,card,amount,paid_at\n" + row)
    with pytest.raises(InputError, match=why) as refused:
        replay(app, file)
    assert "secret" not in str(refused.value)


def test_cells_of_a_csv_file_may_be_written_in_different_ways(app: Path, tmp_path: Path) -> None:
    times = {
        "2026-11-01": -43_200,
        "2026-11-01T12:00:00Z": 0,
        "2026-11-01 12:00:01": 1,
        "2026-11-01T12:00:02.5": 2.5,
        "2026-11-01T13:00:03.000001+01:00": 3.000001,
        "2026-11-01 12:00:04.123Z": 4.123,
    }
    # A country named NA is not null, as other readers of such files take it.
    file = tmp_path / "payments.csv"
    rows = "".join(f"p{number},c,NA,1,{text}\n" for number, text in enumerate(times))
    file.write_text("payment_id,card,country,amount,paid_at\n" + rows)
    table = replay(app, file)
    assert column(table, "country") == ["NA"] * len(times)
    found = column(table, "paid_at")
    assert found == [NOON + timedelta(seconds=seconds) for seconds in times.values()]


def test_doubles_become_decimals_within_a_billionth_and_times_without_zone_are_utc(app: Path, tmp_path: Path) -> None:
    file = tmp_path / "payments.parquet"
    naive = [NOON.replace(tzinfo=None) + timedelta(seconds=number) for number in range(3)]
    doubles = {"payment_id": ["a", "b", "c"], "card": ["c"] * 3, "amount": [0.1, 2.675, 1.2300000004], "paid_at": naive}
    pq.write_table(pa.table(doubles), file)
    with pytest.raises(InputError, match='row 2: field "amount": given a number with more than 2 decimal places'):
        replay(app, file)
    table = replay(app, file, skip_invalid=True)
    assert column(table, "amount") == [Decimal("0.10"), Decimal("1.23")]
    assert column(table, "paid_at") == [NOON, NOON + timedelta(seconds=2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("payments.xlsx", b"", "cannot read files that end in '.xlsx'"),
        ("payments.parquet", b"no", "could not read"),
        ("payments.csv", b"", "could not read"),
        ("payments.csv", b"payment_id,card,paid_at\na,c,2026-11-01\n", 'no column "amount"'),
        ("payments.ndjson", b"", "the history has no events"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    app: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    refused = fail("replay", app, "--from", tmp_path / name, "--to", tmp_path / "out.parquet")
    assert message in refused and (name in refused or content == b"")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(b"secret", b"secre\xff"), (Decimal("12.34"), b"\x7f\xff")],
    ids=["text that is not UTF-8", "a decimal beyond its precision"],
)
def test_what_arrow_reads_of_a_damaged_parquet_file_is_not_taken_at_its_word(
    app: Path, tmp_path: Path, right: Any, wrong: bytes
) -> None:
    """Arrow itself does not look at what a page holds, and the core would take it for sound."""
    table = pa.table(
        {
            "payment_id": ["a", "b"],
            "card": ["secret", "c"],
            "amount": pa.array([Decimal("12.34"), Decimal("1.00")], pa.decimal128(4, 2)),
            "paid_at": [NOON, NOON],
        }
    )
    file = tmp_path / "payments.parquet"
    pq.write_table(table, file, compression="none", use_dictionary=False, write_statistics=False)
    assert replay(app, file).num_rows == 2
    there = right if isinstance(right, bytes) else (1234).to_bytes(2, "big")
    whole = file.read_bytes()
    assert whole.count(there) == 1
    file.write_bytes(whole.replace(there, wrong))
    with pytest.raises(InputError, match=r"could not read .*payments.parquet: it is damaged") as refused:
        replay(app, file)
    assert "secre" not in str(refused.value) and "327" not in str(refused.value)


def live(service: Any, order: Iterable[tuple[str, JSON]]) -> dict[str, JSON]:
    """Send events in this order; what was told about each payment."""
    told: dict[str, JSON] = {}
    for topic, event in order:
        body = json_line(event).encode()
        if topic == "payments":
            answer = service.call("POST", "/v1/policies/authorise/decide", body)
            told.setdefault(event["payment_id"], answer.json())
        else:
            answer = service.call("POST", f"/v1/topics/{topic}/events", body)
        assert answer.status == 200, answer.body
    return told


def compare(table: pa.Table, told: dict[str, JSON]) -> None:
    """Every value that callers were told stands in the table, exactly."""
    rows = {row["payment_id"]: row for row in table.to_pylist()}
    assert set(rows) == set(told)
    for key, answer in told.items():
        row = rows[key]
        features = {**answer["features"], "spent": Decimal(answer["features"]["spent"])}
        assert {name: row[name] for name in features} == features
        assert all(type(row[name]) is type(value) for name, value in features.items())
        assert (row["outcome"], row["score"]) == (answer["outcome"], answer["score"])
        assert row["reasons"] == [reason["rule"] for reason in answer["reasons"]]


def test_the_same_events_through_http_and_through_replay_give_the_same_values(app: Path, tmp_path: Path) -> None:
    """In the order in which they arrived: late ones, ties, repeats, and two topics."""
    payments = list(PAYMENTS)
    payments.insert(30, paid(100, -4000))  # late: more than an hour behind
    payments.insert(40, paid(101, 600))  # out of order, within the lateness
    payments.insert(41, paid(102, 600))
    order: list[tuple[str, JSON]] = []
    for number, event in enumerate(payments):
        order.append(("payments", event))
        if number % 7 == 3:
            order.append(("reports", REPORTS[number // 7 % len(REPORTS)]))
        if number % 5 == 4:
            order.append(("payments", payments[number // 2]))  # a retry
    with running(tmp_path / "data", app=app) as service:
        told = live(service, order)
        service.end()
    assert [key for key, answer in told.items() if answer.get("late")] == ["p100"]
    assert {answer["outcome"] for answer in told.values()} == {"decline", "review", "approve"}
    compare(replay(app, f"log:{tmp_path / 'data'}"), told)

    # The same from files, each a run of one topic's events, as they arrived and without the repeats.
    seen: set[str] = set()
    files: list[tuple[str, Path]] = []
    runs: list[tuple[str, list[JSON]]] = []
    for topic, event in order:
        name = f"{topic} {event.get('payment_id', event.get('report_id'))}"
        if name not in seen:
            seen.add(name)
            if not runs or runs[-1][0] != topic:
                runs.append((topic, []))
            runs[-1][1].append(event)
    for number, (topic, events) in enumerate(runs):
        kind = ("parquet", "csv", "ndjson")[number % 3]
        files.append((topic, written(tmp_path / f"run{number:02}.{kind}", events)))
    assert files[0][0] == "payments"
    compare(replay(app, files[0][1], topics=files[1:], as_arrived=True), told)


def test_threads_and_selection_change_no_value(app: Path, tmp_path: Path) -> None:
    """Batches of tens of thousands are worked on by several threads, which small ones never show."""
    numbers = range(30_000)
    table = pa.table(
        {
            "payment_id": [f"p{number}" for number in numbers],
            "card": [f"c{number * 7919 % 997}" for number in numbers],
            "country": [COUNTRIES[number % len(COUNTRIES)] for number in numbers],
            "amount": pa.array([Decimal(number % 9973) / 100 for number in numbers], pa.decimal128(12, 2)),
            "weight": [number % 101 / 7 for number in numbers],
            "paid_at": [NOON + timedelta(seconds=number // 3) for number in numbers],
        }
    )
    pq.write_table(table, tmp_path / "many.parquet")
    one = replay(app, tmp_path / "many.parquet", threads=1)
    assert replay(app, tmp_path / "many.parquet", threads=3).equals(one)
    names = ["payment_id", "usual", "heaviest", "outcome"]
    assert replay(app, tmp_path / "many.parquet", select=",".join(names), threads=2).equals(one.select(names))
    assert max(column(one, "n")) > 10


def test_a_service_that_starts_on_a_load_goes_on_with_its_counts(app: Path, tmp_path: Path) -> None:
    """What replay computes of the whole history is what a service says of its end, after a load of its beginning."""
    payments, reports = PAYMENTS[:40], REPORTS
    everything = replay(
        app,
        written(tmp_path / "all.parquet", PAYMENTS),
        topics=[("reports", written(tmp_path / "reports.csv", reports))],
    )
    half = written(tmp_path / "half.parquet", payments)
    table = replay(app, half, topics=[("reports", tmp_path / "reports.csv")], load=True)
    assert table.num_rows == 40
    with running(tmp_path / "data", app=app) as service:
        told: dict[str, JSON] = {}
        for event in PAYMENTS[40:]:
            answer = service.call("POST", "/v1/policies/authorise/decide", json_line(event).encode()).json()
            told[event["payment_id"]] = answer
        assert [answer["offset"] for answer in told.values()] == list(range(40, 60))
        loaded = json_line(payments[0]).encode()
        refused = service.call("POST", "/v1/policies/authorise/decide", loaded)
        assert (refused.status, refused.code) == (409, "entered_elsewhere")
        again = service.call("POST", EVENTS, loaded).json()
        assert (again["accepted"], again["repeated"], again["offsets"]) == (0, 1, [0])
        service.end()
    compare(everything.slice(40), told)


def test_a_load_alone_needs_no_file_to_write(app: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "payments.ndjson", PAYMENTS)
    succeed("replay", app, "--from", file, "--load", "--data", tmp_path / "data")
    succeed("replay", app, "--from", file, "--load", "--data", tmp_path / "data")
    listed = json.loads(succeed("topics", "--data", tmp_path / "data", "--json"))
    assert listed[0]["next_offset"] == len(PAYMENTS), "what was loaded twice is there once"
    assert json.loads(succeed("tail", "payments", "-n", 1, "--data", tmp_path / "data"))["payment_id"] == "p59"


@pytest.mark.parametrize("kind", ["parquet", "ndjson", "csv"])
@pytest.mark.parametrize("sorted_by_itself", [True, False])
def test_a_row_that_the_door_refuses_ends_a_load_with_its_file_and_row(
    app: Path, tmp_path: Path, kind: str, sorted_by_itself: bool
) -> None:
    """An id with other content, after a row that does not fit, behind another file of the topic and of another."""
    events = [paid(number, number) for number in range(30)]
    events[20] = paid(3, 20, amount=Decimal("5.00"))
    if not sorted_by_itself:
        events[0], events[1] = events[1], events[0]
    second = written(tmp_path / f"second.{kind}", events)
    wrong = [paid(number, number + 100, items=-number) for number in (100, 101)]
    first = written(tmp_path / "first.ndjson", wrong)
    first.write_text(first.read_text().replace('"c1"', "1"))
    reports = written(tmp_path / "reports.parquet", REPORTS)
    command = ("replay", app, "--from", first, "--topic", "reports", reports, "--topic", "payments", second)
    load = ("--load", "--skip-invalid", "--data", tmp_path / "data", *["--as-arrived"][:sorted_by_itself])
    refused = fail(*command, *load)
    assert f"could not load into the log: {second}, row 21: this id was used before" in refused
    alone = fail("replay", app, "--from", second, "--load", "--data", tmp_path / "alone")
    assert f"could not load into the log: {second}, row 21: this id was used before" in alone
    assert "load again" in alone and "p3" not in alone


def test_rows_are_numbered_as_in_their_file_whatever_was_left_out(app: Path, tmp_path: Path) -> None:
    events = [paid(number, number) for number in range(12)]
    events[9] = paid(8, 9, amount=Decimal("5.00"))
    file = written(tmp_path / "payments.ndjson", events)
    lines = file.read_text().splitlines()
    for row in (0, 4, 5, 11):
        lines[row] = "{"
    file.write_text("\n".join(lines))
    for more in ([], ["--as-arrived"]):
        refused = fail("replay", app, "--from", file, "--load", "--skip-invalid", "--data", tmp_path / "data", *more)
        assert f"{file}, row 10: this id was used before" in refused


def test_a_replay_of_a_log_is_in_its_own_order(tmp_path: Path) -> None:
    times = ["2026-11-01T12:00:10Z", "2026-11-01T12:00:00Z", "2026-11-01T12:00:05Z"]
    with running(tmp_path / "data") as service:
        body = "\n".join(json.dumps(payment(number, paid_at=time)) for number, time in enumerate(times))
        assert service.call("POST", EVENTS, body.encode(), NDJSON).status == 200
        target = tmp_path / "live.parquet"
        succeed("replay", FIRST, "--from", f"log:{tmp_path / 'data'}", "--to", target)
        assert column(pq.read_table(target), "card_count_1h") == [1, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "log:nowhere", "--to", "out.parquet"], "nowhere is not a data directory"),
        (["--from", "log:a", "--from", "b.csv", "--to", "out.parquet"], "a log is replayed by itself"),
        (["--from", "log:a", "--load"], "a log is not loaded into a log"),
        (["--from", "history.csv"], "nowhere to write"),
        (["--from", "history.csv", "--to", "out.parquet", "--policy", "other"], 'no policy "other"'),
        (["--from", "history.csv", "--to", "nowhere/out.parquet"], "nowhere"),
    ],
)
def test_a_replay_that_cannot_be_meant_says_so(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "history.csv").write_text("payment_id,card,amount,paid_at\na,c,1,2026-11-01\n")
    assert message in fail("replay", FIRST, *arguments, cwd=tmp_path)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("payments.parquet", "replay would write over what it reads"),
        ("decided.csv", "replay writes Parquet, not decided.csv"),
    ],
)
def test_a_target_that_would_harm_is_refused(tmp_path: Path, target: str, words: str) -> None:
    source = tmp_path / "payments.parquet"
    source.write_bytes(b"the only copy")
    assert words in fail("replay", FIRST, "--from", source, "--to", tmp_path / target)
    assert source.read_bytes() == b"the only copy"


def test_a_folder_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    assert "could not use" in fail("run", FIRST, "--data", file)
