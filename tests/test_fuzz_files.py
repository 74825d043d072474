"""Files that nobody vouches for: whatever they hold, it is taken, or refused in words of ours."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import EXAMPLES, fuzz, mutated
from penstock.decide.rules import read_rules
from penstock.errors import PenstockError
from penstock.runtime.app import load_app
from penstock.runtime.deadletters import read_events
from penstock.runtime.history import FileHistory, HistoryFile
from penstock.runtime.plan import Plan, compile_plan
from penstock.runtime.replay import choose, write_parquet
from penstock.schema import Type
from penstock.serve.certificate import Certificate
from penstock.serve.tokens import new_token, read_tokens
from penstock.settings import read_settings
from processes import FIRST, payment

SETTINGS = b"""data = "data"
port = 7071
state_bytes = "1GiB"
retention = "30d"
rate = 100
tokens = "tokens.toml"
diagnostics = "json"
level = "debug"
threads = 2
"""
RULES = FIRST.with_suffix(".toml").read_bytes()
PIECES = (
    b"[" * 2_000, b"{a=" * 2_000, b"9" * 5_000, b"0x", b"1e999", b"nan", b"true", b"[]", b"{}", b'""', b'"""', b"'''",
    b"\n[[rule]]\n", b"\n[rule]\n", b"=", b".", b"2026-02-30", b"2026-01-01T00:00:00Z", b"\xff", b"\x00", b"\\u0000",
    b"(" * 2_000, b" and ", b" not " * 2_000, b" - " * 500, b"case when ", b" in (", b" like '%'", b"--",
    b"/*", b"::int", b"$$",
)  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(load_app(FIRST))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def takes_or_refuses(read: Callable[[Path], object], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with suppress(PenstockError):
        read(path)


@EXAMPLES
def test_whatever_a_settings_file_holds_is_taken_or_refused_in_words(folder: Path, examples: str) -> None:
    @fuzz(examples, 150)
    @given(mutated(SETTINGS, PIECES))
    def check(content: bytes) -> None:
        takes_or_refuses(lambda path: read_settings({}, environment={}, file=path), folder / "penstock.toml", content)

    check()


# What TOML can say of a value, each in the place of each setting.
VALUES = ('"a"', '""', "5", "-5", "1.5", "nan", "true", "[]", '["a"]', "{a=1}", "2026-01-01", "12:00:00", "1" * 50)


@pytest.mark.parametrize("value", VALUES)
def test_a_setting_of_any_type_is_taken_or_refused_in_words(folder: Path, value: str) -> None:
    for name in read_settings({}, environment={}, file=write(folder / "none.toml", "")).values:
        content = f"{name} = {value}\n".encode()
        takes_or_refuses(lambda path: read_settings({}, environment={}, file=path), folder / "penstock.toml", content)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@EXAMPLES
def test_whatever_a_rules_file_holds_is_taken_or_refused_in_words(folder: Path, plan: Plan, examples: str) -> None:
    document = plan.document
    fields = document["topics"][0]["fields"] + document["features"][0]["columns"]
    columns = {field["name"]: Type.from_json(field["type"]) for field in fields}

    @fuzz(examples, 120)
    @given(mutated(RULES, PIECES))
    def check(content: bytes) -> None:
        takes_or_refuses(lambda path: read_rules(path, columns), folder / "rules.toml", content)

    check()


@EXAMPLES
def test_whatever_a_tokens_file_holds_is_taken_or_refused_in_words(folder: Path, examples: str) -> None:
    file = folder / "tokens.toml"
    for name in ("checkout", "bank"):
        new_token(file, name, ["decide", "query"])
    right = file.read_bytes()

    @fuzz(examples, 120)
    @given(mutated(right, PIECES))
    def check(content: bytes) -> None:
        takes_or_refuses(read_tokens, file, content)

    check()


@EXAMPLES
def test_whatever_a_corrected_file_of_dead_letters_holds_is_taken_or_refused_in_words(
    folder: Path, examples: str
) -> None:
    right = b"".join(b"%d\t%b\n" % (number, json.dumps(payment(number)).encode()) for number in range(3))

    @fuzz(examples, 100)
    @given(mutated(right, (b"\t", b"\n", b"9" * 5_000, b"\xc2\xb2", b"\x00")))
    def check(content: bytes) -> None:
        takes_or_refuses(read_events, folder / "letters.txt", content)

    check()


# History.


def ndjson() -> bytes:
    return b"".join(json.dumps(payment(number)).encode() + b"\n" for number in range(4))


def csv() -> bytes:
    rows = [",".join(payment(number, card='"c,1"').values()) for number in range(4)]
    return "\n".join([",".join(payment(0)), *rows, ""]).encode()


def parquet() -> bytes:
    table = pa.table(
        {
            "payment_id": [f"p{number}" for number in range(4)],
            "card": pa.array(["c1", "c1", "c2", "c1"]).dictionary_encode(),
            "amount": pa.array([Decimal("1.50")] * 4, pa.decimal128(12, 2)),
            "paid_at": pa.array([datetime(2026, 11, 1, tzinfo=UTC)] * 4, pa.timestamp("us", "UTC")),
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


CSV_PIECES = (b",", b"\n", b"\r", b'"', b'""', b"\xff", b"\x00", b",,,,", b"\n\n", b"\xef\xbb\xbf", b"9" * 400, b"card")


@EXAMPLES
@pytest.mark.parametrize(
    ("name", "right", "pieces"),
    [
        ("history.ndjson", ndjson(), (b"[" * 2_000, b"9" * 5_000, b"\n", b"\xff", b"null", b"1e999", b'"', b"{", b"}")),
        ("history.csv", csv(), CSV_PIECES),
        ("history.parquet", parquet(), (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"PAR1")),
    ],
)
def test_whatever_a_file_of_history_holds_is_replayed_or_refused_in_words(
    folder: Path, plan: Plan, name: str, right: bytes, pieces: tuple[bytes, ...], examples: str
) -> None:
    @fuzz(examples, 80)
    @given(mutated(right, pieces), st.booleans(), st.booleans())
    def check(content: bytes, skip_invalid: bool, as_arrived: bool) -> None:
        def replayed(path: Path) -> None:
            files = [HistoryFile(0, path)]
            history = FileHistory(plan, files, as_arrived=as_arrived, skip_invalid=skip_invalid)
            write_parquet(choose(plan, None).run(history, threads=1), folder / "out.parquet")

        takes_or_refuses(replayed, folder / name, content)

    check()


# A Parquet file that is sound, with columns of types that nobody wants.
ARRAYS: tuple[Any, ...] = (
    pa.array([1, None, 3]),
    pa.array([1.5, float("nan"), float("inf")]),
    pa.array(["a", "2026-11-01T12:00:00Z", None]),
    pa.array([b"\xff", b"a", None]),
    pa.array([True, False, None]),
    pa.array([2**52, -(2**52), 0], pa.timestamp("s")),
    pa.array([2**62, -(2**62), 0], pa.timestamp("ms", "UTC")),
    pa.array([0, 1, 2], pa.timestamp("ns", "Europe/Berlin")),
    pa.array([0, 1, 2], pa.date32()),
    pa.array([0, 1, 2], pa.time64("us")),
    pa.array([Decimal("1.234"), Decimal("9" * 30), None], pa.decimal256(50, 3)),
    pa.array([[1], [], None]),
    pa.array([{"a": 1}, {"a": 2}, None]),
    pa.array(["a", "b", "a"]).dictionary_encode(),
    pa.array(["a", "b", None], pa.large_string()),
    pa.array([1, 2, 3], pa.uint64()),
    pa.nulls(3),
)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.type))
@pytest.mark.parametrize("name", payment(0))
def test_a_column_of_any_type_is_replayed_or_refused_in_words(folder: Path, plan: Plan, name: str, array: Any) -> None:
    right = pq.read_table(io.BytesIO(parquet())).slice(0, 3)
    table = right.set_column(right.schema.get_field_index(name), name, array)
    pq.write_table(table, folder / "history.parquet")
    for skip_invalid in (False, True):
        history = FileHistory(plan, [HistoryFile(0, folder / "history.parquet")], skip_invalid=skip_invalid)
        with suppress(PenstockError):
            write_parquet(choose(plan, None).run(history, threads=1), folder / "out.parquet")


@EXAMPLES
def test_whatever_a_certificate_holds_is_taken_or_refused_in_words(folder: Path, examples: str) -> None:
    from certificates import Authority

    certificate, key = folder / "door.pem", folder / "door.key"
    Authority(folder).issue(certificate, key)
    right, key_text = certificate.read_bytes(), key.read_bytes()

    @fuzz(examples, 60)
    @given(mutated(right, (b"-----BEGIN CERTIFICATE-----\n", b"\xff", b"\n\n")), mutated(key_text, (b"\xff", b"\n")))
    def check(first: bytes, second: bytes) -> None:
        key.write_bytes(second)
        takes_or_refuses(lambda path: Certificate(path, key), certificate, first)

    check()
