"""Every command as a process of its own, on real directories."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from processes import (
    EVENTS,
    FIRST,
    JSON,
    NDJSON,
    PATIENCE_S,
    eventually,
    fail,
    payment,
    penstock,
    running,
    succeed,
)

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
AMOUNTS = ("0.01", "9999999999.99", "-3.10", "12.50", "100.00")

APP = """
from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    payment_id: str = ps.id()
    card: str
    amount: Decimal = ps.decimal(12, 2)
    paid_at: datetime = ps.event_time()


pipeline = ps.Pipeline("cards")
payments = pipeline.topic("payments", Payment)
scored = payments.features(usual=payments.by("card").past("30d").mean("amount"))
pipeline.policy("authorise", scored, rules="rules.toml", fallback="approve")
"""

RULES = """
default = "approve"
outcomes = ["decline", "approve"]

[[rule]]
name = "far_above_usual"
when = "amount > 4 * usual"
outcome = "decline"
"""


def events() -> list[JSON]:
    """Five payments, a microsecond apart, with amounts at the ends of their type."""
    return [
        payment(number, amount=amount, paid_at=(NOON + timedelta(microseconds=number)).isoformat())
        for number, amount in enumerate(AMOUNTS)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that a service has left: five payments through the topic, two decided."""
    data = tmp_path_factory.mktemp("cli") / "data"
    with running(data) as service:
        body = "\n".join(json.dumps(event) for event in events()).encode()
        assert service.call("POST", EVENTS, body, NDJSON).json()["offsets"] == [0, 1, 2, 3, 4]
        for number in (5, 6):
            assert service.decide(payment(number))["offset"] == number
        assert service.end() == 0
    return data


def test_topics_are_listed_with_their_events_and_fields(data: Path) -> None:
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in succeed("topics", "--data", data).splitlines()}
    assert lines["payments"] == ["7", "payment_id, card, amount, paid_at"]
    assert lines["authorise.decisions"][0] == "2"
    assert lines["authorise.timeouts"][0] == "0"
    listed = json.loads(succeed("topics", "--data", data, "--json"))
    assert [(each["name"], each["next_offset"]) for each in listed] == [
        ("payments", 7), ("authorise.decisions", 2), ("authorise.timeouts", 0),
    ]  # fmt: skip
    assert listed[0]["fields"][2] == {"name": "amount", "type": {"decimal": [12, 2]}, "optional": False}


def tail(data: Path, *arguments: object) -> list[JSON]:
    return [json.loads(line) for line in succeed("tail", *arguments, "--data", data).splitlines()]


def test_tail_shows_the_newest_rows_or_those_from_an_offset_on(data: Path) -> None:
    everything = tail(data, "payments")
    assert [row["payment_id"] for row in everything] == [f"p{number}" for number in range(7)]
    assert [row["amount"] for row in everything[:5]] == list(AMOUNTS)
    assert everything[1]["paid_at"] == "2026-11-01T12:00:00.000001Z"
    assert tail(data, "payments", "-n", 3) == everything[-3:]
    assert tail(data, "payments", "-n", 0) == []
    assert tail(data, "payments", "--offset", 2) == everything[2:]
    assert tail(data, "payments", "--offset", 7) == []
    assert [row["_offset"] for row in everything] == list(range(7))
    assert tail(data, "payments", "--offset", 2, "-n", 4) == everything[2:6]
    assert tail(data, "payments", "--offset", 5, "-n", 4) == everything[5:]
    assert tail(data, "payments", "--offset", 2, "-n", 0) == []
    assert "there are: payments" in fail("tail", "paymnts", "--data", data)
    beyond = fail("tail", "payments", "--offset", 8, "--data", data)
    assert 'topic "payments" has no offset 8 yet: its next one is 7' in beyond


def test_tail_shows_decisions_as_they_were_told(data: Path) -> None:
    first, second = tail(data, "authorise.decisions")
    assert (first["id"], first["offset"], first["outcome"]) == ("p5", 5, "review")
    # The others came a microsecond or more after noon.
    assert (first["card_count_1h"], second["card_count_1h"]) == (2, 3)
    assert first["card_mean_30d"] == 0.01
    assert first["reasons"] == [{"rule": "far_above_usual", "code": "R01"}]
    assert (second["id"], second["offset"], second["_offset"]) == ("p6", 6, 1)
    assert tail(data, "authorise.timeouts") == []


def test_tail_with_a_consumer_and_a_number_goes_on_after_that_many(data: Path, tmp_path: Path) -> None:
    copied = tmp_path / "data"
    subprocess.run(["cp", "-r", "--sparse=always", str(data), str(copied)], check=True)
    seen = [tail(copied, "payments", "--consumer", "c", "-n", 3, *more) for more in ([], ["--follow"], [], [])]
    assert [[row["_offset"] for row in rows] for rows in seen] == [[0, 1, 2], [3, 4, 5], [6], []]


def test_tail_follows_what_arrives(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data) as service:
        service.decide(payment(1))
        command = [sys.executable, "-m", "penstock", "tail", "payments", "--follow", "--data", str(data)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            try:
                assert json.loads(follower.stdout.readline())["payment_id"] == "p1"
                service.decide(payment(2))
                assert json.loads(follower.stdout.readline())["payment_id"] == "p2"
            finally:
                follower.send_signal(signal.SIGINT)
            assert follower.wait(PATIENCE_S) == 130


def test_an_export_equals_what_was_posted(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "payments.parquet"
    assert "wrote 7 rows" in succeed("export", "payments", "--to", target, "--data", data)
    table = pq.read_table(target)
    assert table.schema.field("amount").type == pa.decimal128(12, 2)
    assert table.schema.field("paid_at").type == pa.timestamp("us", tz="UTC")
    rows = table.to_pylist()
    assert [row.pop("_offset") for row in rows] == list(range(7))
    committed = [row.pop("_committed_at") for row in rows]
    assert committed == sorted(committed) and committed[0] > NOON
    posted = [*events(), payment(5), payment(6)]
    assert rows == [
        {**each, "amount": Decimal(each["amount"]), "paid_at": datetime.fromisoformat(each["paid_at"])}
        for each in posted
    ]


def test_a_topic_without_rows_is_exported_with_its_columns(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "timeouts.parquet"
    assert "wrote 0 rows" in succeed("export", "authorise.timeouts", "--to", target, "--data", data)
    assert pq.read_table(target).column_names[:4] == ["_offset", "_committed_at", "id", "offset"]


def test_an_export_has_a_column_for_each_type_that_a_feature_had(tmp_path: Path) -> None:
    """A mean, then a maximum, then an integer: float64, decimal and int64 under one name."""
    data, target = tmp_path / "data", tmp_path / "decided.parquet"
    patient = APP.replace('fallback="approve"', 'within="30s", fallback="approve"')
    for number, aggregate in enumerate(('mean("amount")', 'max("amount")', "count()", "count()")):
        app = write_app(tmp_path, app=patient.replace('mean("amount")', aggregate))
        with running(data, app=app) as service:
            service.decide(payment(number))
            assert service.end() == 0
    assert "wrote 4 rows" in succeed("export", "authorise.decisions", "--to", target, "--data", data)
    table = pq.read_table(target)
    assert table.column("usual").to_pylist() == [None, None, 3, 4]
    assert table.column("usual:float64").to_pylist() == [12.5, None, None, None]
    assert table.column("usual:decimal(12, 2)").to_pylist() == [None, Decimal("12.50"), None, None]
    assert table.column("_offset").to_pylist() == table.column("offset").to_pylist() == [0, 1, 2, 3]


def test_an_export_begins_with_the_oldest_row_that_retention_has_left(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "payments.parquet"
    often = ("--retention", "1s", "--segment-bytes", "16MiB", "--snapshot-every", "100ms")
    with running(data, *often) as service:

        def cut() -> bool:
            lines = [json.dumps(payment(random.randbytes(10_000).hex())) for _ in range(100)]
            assert service.call("POST", EVENTS, "\n".join(lines).encode(), NDJSON).status == 200
            return not (data / "log" / f"{1:016x}.segment").exists()

        eventually(cut)
        assert service.end() == 0
    succeed("export", "payments", "--to", target, "--data", data)
    offsets = pq.read_table(target, columns=["_offset"])["_offset"].to_pylist()
    assert offsets[0] > 0
    assert offsets == list(range(offsets[0], offsets[-1] + 1))


def test_a_log_is_sound_until_a_byte_of_it_changes(data: Path, tmp_path: Path) -> None:
    report = succeed("log", "verify", "--data", data)
    assert report.startswith("sound: 1 segment, ") and "payments: 7 rows" in report
    segment = next((data / "log").glob("*.segment"))
    place = segment.read_bytes().index(b"p3")
    copied = tmp_path / "data"
    subprocess.run(["cp", "-r", "--sparse=always", str(data), str(copied)], check=True)
    with (copied / "log" / segment.name).open("r+b") as file:
        file.seek(place)
        file.write(b"q")
    done = penstock("log", "verify", "--data", copied)
    assert done.returncode == 1
    assert done.stdout.startswith("DAMAGED") and segment.name in done.stdout
    told = json.loads(penstock("log", "verify", "--data", copied, "--json").stdout)
    assert told["sound"] is False
    damage = told["damages"][0]
    assert damage["file"].endswith(segment.name)
    assert damage["offset"] <= place < damage["offset"] + (1 << 20)
    refused = fail("run", FIRST, "--data", copied, "--port", 0)
    assert f"{segment.name} is damaged at byte {damage['offset']}" in refused
    assert refused.count("penstock log verify") == refused.count("hint:") == 1


def test_a_port_in_use_is_said_before_the_log_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = fail("run", FIRST, "--data", tmp_path / "data", "--port", port)
    assert refused.startswith(f"error: port {port} of 127.0.0.1 is in use")
    assert not (tmp_path / "data" / "log").exists()


def test_a_rule_on_the_score_of_no_model_is_warned_of(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(FIRST.read_text())
    (tmp_path / "first.toml").write_text(
        'default = "approve"\noutcomes = ["approve"]\n[[rule]]\nname = "r"\nwhen = "score > 1"\noutcome = "approve"\n'
    )
    warning = 'policy "authorise", rule "r": score is always null, for the policy has no model'
    checked = penstock("rules", "check", app)
    assert (checked.returncode, checked.stderr) == (0, f"warning: {warning}\n")
    with running(tmp_path / "data", app=app) as service:
        assert warning in service.log.read_text()


@pytest.mark.parametrize("command", [["topics"], ["tail", "payments"], ["log", "verify"]])
def test_what_is_no_data_directory_is_said_so(tmp_path: Path, command: list[str]) -> None:
    assert "is not a data directory" in fail(*command, "--data", tmp_path)


def settings(*arguments: object, **options: Any) -> dict[str, list[str]]:
    lines = succeed("settings", *arguments, **options).splitlines()
    return {line.split()[0]: line.split() for line in lines}


def test_the_command_line_goes_before_the_environment_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text('port = 1\nqueue = 2\nretention = "7d"\nlevel = "debug"\n')
    environment = {"PENSTOCK_PORT": "3", "PENSTOCK_QUEUE": "4"}
    shown = settings("--port", 5, environment=environment, cwd=tmp_path)
    assert shown["port"][1:4] == ["5", "command", "line"]
    assert shown["queue"][1:3] == ["4", "PENSTOCK_QUEUE"]
    assert shown["level"][1:3] == ["debug", "penstock.toml"]
    assert shown["retention"][1:3] == ["7d", "penstock.toml"]
    assert shown["segment_bytes"][1:3] == ["64MiB", "default"]
    assert shown["rate"][1:3] == ["none", "default"]
    other = tmp_path / "other.toml"
    other.write_text("port = 6\n")
    assert settings("--settings", other, cwd=tmp_path)["port"][1] == "6"


@pytest.mark.parametrize(
    ("file", "environment", "arguments", "message"),
    [
        ("prot = 1", {}, [], 'there is no setting "prot"\nhint: did you mean "port"?'),
        ("port = ", {}, [], "is not TOML"),
        ("port = true", {}, [], "is not a whole number"),
        ("", {"PENSTOCK_QUEUES": "1"}, [], 'PENSTOCK_QUEUES: there is no setting "queues"'),
        ("", {"PENSTOCK_QUEUE": "many"}, [], "setting \"queue\" (PENSTOCK_QUEUE): 'many' is not a whole number"),
        ("", {}, ["--segment-bytes", "64 MB"], 'setting "segment_bytes" (command line)'),
        ("", {}, ["--segment-bytes", "1KiB"], 'setting "segment_bytes" (command line): the least is 16MiB'),
        ("port = 65536", {}, [], 'setting "port" (penstock.toml): the most is 65535'),
        ("", {"PENSTOCK_COMMIT_BYTES": "2MiB"}, [], 'setting "commit_bytes" (PENSTOCK_COMMIT_BYTES): the most is 1MiB'),
        ("", {}, ["--request-time", "2d"], 'setting "request_time" (command line): the most is 1d'),
        ("", {}, ["--snapshot-every", "soon"], "is not a length of time"),
        ("", {}, ["--level", "loud"], "is none of debug, info, warning, error"),
        ("", {}, ["--settings", "nowhere.toml"], "could not read nowhere.toml"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_with_where_it_stands(
    tmp_path: Path, file: str, environment: dict[str, str], arguments: list[str], message: str
) -> None:
    if file:
        (tmp_path / "penstock.toml").write_text(file)
    assert message in fail("settings", *arguments, environment=environment, cwd=tmp_path)


def write_app(folder: Path, rules: str = RULES, app: str = APP) -> Path:
    (folder / "app.py").write_text(app)
    (folder / "rules.toml").write_text(rules)
    return folder / "app.py"


def test_rules_that_are_good_are_counted(tmp_path: Path) -> None:
    assert succeed("rules", "check", write_app(tmp_path)).startswith("policy authorise: 1 rule, version ")


SECOND = '\n[[rule]]\nname = "second"\nwhen = "amount > 1"\noutcome = "decline"\n'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("4 * usual", "4 * usaul"), 'rules.toml, line 5, rule "far_above_usual": there is no column "usaul"'),
        (("amount > 4 * usual", "amount + 1"), 'rules.toml, line 5, rule "far_above_usual": this is decimal'),
        (("amount > 4 * usual", "card > 4"), 'rules.toml, line 5, rule "far_above_usual": '),
        (('"decline"\n', '"deny"\n'), 'rules.toml, line 5, rule "far_above_usual": outcome must be one of'),
        (('"far_above_usual"', '"second"'), 'rules.toml, line 10, rule "second": line 5 has a rule of this name'),
        (("when =", "wen ="), 'rules.toml, line 5, rule "far_above_usual": "wen" is unknown'),
        (('name = "far_above_usual"\n', ""), "rules.toml, line 5: a rule needs a name"),
        (('default = "approve"', 'default = "yes"'), "rules.toml, line 2: default must be one of"),
        (("[[rule]]", "[[rule]"), "rules.toml is not TOML"),
    ],
)
def test_a_wrong_rule_is_named_with_its_place(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    rules = (RULES + SECOND).replace(*change, 1)
    app = write_app(tmp_path, rules)
    assert message in fail("rules", "check", app)


def test_a_rules_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    app = write_app(tmp_path)
    (tmp_path / "rules.toml").unlink()
    assert "could not read the rules file" in fail("rules", "check", app)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (APP + "\n1 / 0\n", "app.py, line 20, failed when it was loaded: ZeroDivisionError"),
        (APP + "\ndef\n", "SyntaxError"),
        (APP + "\nraise SystemExit(3)\n", "app.py, line 20, failed when it was loaded: SystemExit"),
        ("import penstock as ps\n", "defines no pipeline"),
        ("import penstock as ps\na = ps.Pipeline('a')\nb = ps.Pipeline('b')\n", "defines 2 pipelines"),
        ("import nowhere\n", "app.py, line 1, failed when it was loaded: ModuleNotFoundError"),
        (APP.replace('past("30d")', 'past("30 days")'), "is not a length of time"),
    ],
)
@pytest.mark.parametrize("command", [["rules", "check"], ["run"]])
def test_an_app_that_cannot_be_loaded_says_why(tmp_path: Path, text: str, message: str, command: list[str]) -> None:
    app = write_app(tmp_path, app=text)
    arguments = ["--data", tmp_path / "data", "--port", 0] if command == ["run"] else []
    assert message in fail(*command, app, *arguments)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", [["run"], ["rules", "check"]])
def test_an_app_that_is_not_there_is_named(tmp_path: Path, command: list[str]) -> None:
    assert f"there is no file {tmp_path / 'none.py'}" in fail(*command, tmp_path / "none.py")


def test_a_load_into_a_directory_in_use_is_told_the_pid(tmp_path: Path) -> None:
    source = tmp_path / "history.ndjson"
    source.write_text(json.dumps(payment(1)))
    with running(tmp_path / "data") as service:
        for command in (
            ["run", FIRST, "--port", 0],
            ["replay", FIRST, "--from", source, "--load"],
        ):
            refused = fail(*command, "--data", tmp_path / "data")
            assert f"in use by process {service.process.pid}" in refused
        assert service.decide(payment(1))["features"]["card_count_1h"] == 1


TALKING = """

@pipeline.model(version="1")
def risk(batch):
    import sys, warnings

    print("scoring\\nrows")
    print("oh", file=sys.stderr)
    warnings.warn("old")
    return batch["amount"].cast(float) / 0


pipeline.policy("score", scored, rules="rules.toml", score=risk, within="30s", fallback="approve")
"""


def test_all_diagnostics_are_json_where_that_is_asked(tmp_path: Path) -> None:
    """What is said at start, warnings, what a model prints, and the error that ends a second service."""
    app = write_app(tmp_path, app=APP + TALKING)
    ready = r'"message": "ready after .*: (http://[^"]+)"'
    with running(tmp_path / "data", "--diagnostics", "json", "--retention", "1h", app=app, said=ready) as service:
        service.call("POST", "/v1/policies/score/decide", json.dumps(payment(1)).encode())
        refused = fail("run", app, "--port", 0, "--data", tmp_path / "data", "--diagnostics", "json")
        assert service.end() == 0
        said = [json.loads(line) for line in service.log.read_text().splitlines()]
    messages = {entry["message"]: entry for entry in said}
    warned = next(entry for text, entry in messages.items() if "the log is kept for 1h" in text)
    assert (warned["level"], warned["logger"]) == ("warning", "penstock")
    assert any(text.startswith("ready after") for text in messages)
    assert any(text.startswith("data in") for text in messages)
    assert {messages[text]["logger"] for text in ("scoring", "rows", "oh")} == {"penstock.models.risk"}
    assert any("UserWarning: old" in text for text in messages)
    error = json.loads(refused)
    assert error["level"] == "error" and "in use by process" in error["message"]


def test_an_error_before_the_start_is_json_too(tmp_path: Path) -> None:
    app = write_app(tmp_path, app=APP + "\n1 / 0\n")
    for refused, message in (
        (fail("run", app, "--diagnostics", "json"), "error: "),
        (fail("run", app, "--queue", "many", environment={"PENSTOCK_DIAGNOSTICS": "json"}), "error: setting"),
    ):
        assert json.loads(refused)["message"].startswith(message)


def test_diagnostics_are_lines_by_default(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--retention", "1h") as service:
        lines = service.log.read_text().splitlines()
    assert any(" WARNING penstock: the log is kept for 1h and the longest window needs 30d" in line for line in lines)
