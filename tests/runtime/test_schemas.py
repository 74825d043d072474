"""What happens to stored events when an event class changes between starts, through `penstock run` itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from processes import EVENTS, JSON, fail, payment, running, succeed, without_time

FIELDS = """
    payment_id: str = ps.id()
    card: str
    country: str | None
    items: int
    amount: Decimal = ps.decimal(12, 2)
    seen_at: datetime
    paid_at: datetime = ps.event_time()
"""

APP = '''
from datetime import datetime
from decimal import Decimal

import penstock as ps


class Payment(ps.Event):
    FIELDS

pipeline = ps.Pipeline("cards")
payments = pipeline.topic("payments", Payment)
scored = payments.features(FEATURES)
pipeline.policy("authorise", scored, rules="rules.toml", within="30s", fallback="approve")
'''
FEATURES = 'n=payments.by("card").past("1h").count()'
RULES = 'default = "approve"\noutcomes = ["approve"]\n'

FEE = "    fee: Decimal | None = ps.decimal(9, 3)\n"
ADDED = FIELDS.replace("    items: int\n", "    channel: str | None\n    items: int\n" + FEE)


def write_app(folder: Path, fields: str = FIELDS, features: str = FEATURES) -> Path:
    (folder / "rules.toml").write_text(RULES)
    app = folder / "app.py"
    app.write_text(APP.replace("    FIELDS", fields).replace("FEATURES", features))
    return app


def event(number: int, **changed: object) -> JSON:
    return payment(number, country=None, items=number, seen_at="2026-11-01T11:59:00Z", **changed)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[JSON]]:
    """A directory with two decisions and a payment that was appended, and what was told."""
    folder = tmp_path_factory.mktemp("schemas")
    with running(folder / "data", app=write_app(folder)) as service:
        told = [service.decide(event(number)) for number in (1, 2)]
        assert service.call("POST", EVENTS, json.dumps(event(3)).encode()).status == 200
        service.end()
    return folder / "data", told


@pytest.fixture
def data(stored: tuple[Path, list[JSON]], tmp_path: Path) -> Path:
    shutil.copytree(stored[0], tmp_path / "data")
    return tmp_path / "data"


def topics(data: Path) -> dict[str, JSON]:
    return {each["name"]: each for each in json.loads(succeed("topics", "--data", data, "--json"))}


def test_added_optional_fields_are_null_in_older_events(stored: tuple[Path, list[JSON]], data: Path) -> None:
    features = f'{FEATURES}, channels=payments.by("card").past("1h").n_unique("channel")'
    features += ', fees=payments.by("card").past("1h").sum("fee")'
    app = write_app(data.parent, ADDED, features)
    with running(data, app=app) as service:
        # The retry of an old event is told the same: what it does not say is null, as it was.
        for number, answer in zip((1, 2), stored[1], strict=True):
            assert without_time(service.decide(event(number))) == without_time(answer)
            assert without_time(service.decide(event(number, channel=None))) == without_time(answer)
        changed = service.decide(event(1, channel="shop"))
        assert changed["error"]["code"] == "id_conflict"
        told = service.decide(event(4, channel="shop", fee="0.125"))
        assert told["features"] == {"n": 4, "channels": 1, "fees": "0.125"}
        assert service.end() == 0
    names = [field["name"] for field in topics(data)["payments"]["fields"]]
    assert names == ["payment_id", "card", "country", "channel", "items", "fee", "amount", "seen_at", "paid_at"]
    target = data.parent / "out.parquet"
    for command in (["export", "payments", "--data", data], ["replay", app, "--from", f"log:{data}"]):
        succeed(*command, "--to", target)
        rows = pq.read_table(target).to_pylist()
        assert [row["channel"] for row in rows] == [None, None, None, "shop"]
        assert [row["items"] for row in rows] == [1, 2, 3, 4]
    assert pq.read_table(target).column("n").to_pylist() == [1, 2, 3, 4]
    rows = [json.loads(line) for line in succeed("tail", "payments", "--data", data).splitlines()]
    assert [row["payment_id"] for row in rows] == ["p1", "p2", "p3", "p4"]
    assert rows[3]["fee"] == "0.125"
    # Every version is kept: the log can be read from its beginning, and decisions of both features with it.
    assert '"channels":1' in succeed("tail", "authorise.decisions", "--data", data, "-n", 1)
    succeed("export", "authorise.decisions", "--data", data, "--to", target)
    assert pq.read_table(target).column("channels").to_pylist() == [None, None, 1]
    assert succeed("log", "verify", "--data", data).startswith("sound")


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS.replace("card: str", "card: str | None"),
        FIELDS.replace("    card: str\n", "") + "    card: str\n",
        FIELDS.replace("ps.id()", 'ps.id(retain="1h")'),
    ],
)
def test_a_change_that_misreads_nothing_is_allowed(data: Path, fields: str) -> None:
    with running(data, app=write_app(data.parent, fields)) as service:
        assert service.decide(event(4))["features"]["n"] == 4


def test_ids_are_found_wherever_their_field_stands_by_now(stored: tuple[Path, list[JSON]], data: Path) -> None:
    """What one start finds of them, the next one reads from files: both places are looked at."""
    id_field = "    payment_id: str = ps.id()\n"
    moved = "    note: str | None\n    noted_at: datetime | None\n" + FIELDS.replace(id_field, "") + id_field
    for _ in range(2):
        with running(data, app=write_app(data.parent, moved)) as service:
            for number, answer in zip((1, 2), stored[1], strict=True):
                assert without_time(service.decide(event(number))) == without_time(answer)
            again = service.call("POST", EVENTS, json.dumps(event(3)).encode()).json()
            assert (again["repeated"], again["offsets"]) == (1, [2])
            assert service.end() == 0


REFUSED = {
    "a field removed": (
        FIELDS.replace("    country: str | None\n", ""),
        'the log has a field "country" (text, optional), the pipeline none',
    ),
    "a field of another type": (
        FIELDS.replace("items: int", "items: float"),
        'the log has "items" (int64), the pipeline "items" (float64)',
    ),
    "a decimal of another scale": (
        FIELDS.replace("ps.decimal(12, 2)", "ps.decimal(12, 3)"),
        'the log has "amount" (decimal(12, 2)), the pipeline "amount" (decimal(12, 3))',
    ),
    "a required field added": (
        FIELDS.replace("items: int", "items: int\n    shop: str"),
        'the pipeline has a new field "shop" (text) that stored events lack',
    ),
    "an optional field made required": (
        FIELDS.replace("country: str | None", "country: str"),
        'the log has "country" (text, optional), the pipeline "country" (text)',
    ),
    "a field renamed": (
        FIELDS.replace("country:", "land:"),
        'the log has a field "country" (text, optional), the pipeline none',
    ),
    "another id": (
        FIELDS.replace("payment_id: str = ps.id()", "payment_id: str").replace("card: str", "card: str = ps.id()"),
        "the log has id=payment_id time=paid_at, the pipeline id=card time=paid_at",
    ),
    "another time": (
        FIELDS.replace("seen_at: datetime", "seen_at: datetime = ps.event_time()").replace(
            "paid_at: datetime = ps.event_time()", "paid_at: datetime"
        ),
        "the log has id=payment_id time=paid_at, the pipeline id=payment_id time=seen_at",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_change_that_would_misread_stored_events_is_refused_with_the_difference(data: Path, case: str) -> None:
    fields, difference = REFUSED[case]
    before = topics(data)
    refused = fail("run", write_app(data.parent, fields), "--data", data, "--port", 0)
    assert 'topic "payments" would be misread: ' in refused
    assert difference in refused
    assert "optional fields may be added" in refused
    assert topics(data) == before
    with running(data, app=write_app(data.parent)) as service:
        assert service.decide(event(4))["features"]["n"] == 4
