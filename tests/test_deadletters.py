"""Dead letters as an operator meets them: a running service, the command line, and the log after it has ended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import EVENTS, NDJSON, Service, fail, payment, penstock, running, succeed


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "data") as service:
        lines = [json.dumps(payment(1)), '{"payment_id": "p2", "card": "secret-7"}', "[1]", json.dumps(payment(3))]
        answer = service.call("POST", EVENTS, "\n".join(lines).encode(), NDJSON).json()
        assert [each["deadletter"] for each in answer["rejected"]] == [0, 1]
        yield service


def letters(data: Path) -> dict[int, str]:
    listed = json.loads(succeed("deadletters", "list", "--data", data, "--json"))
    return {each["offset"]: each["code"] for each in listed}


def test_they_are_listed_without_values_and_shown_with_them(service: Service, tmp_path: Path) -> None:
    data = tmp_path / "data"
    listed = succeed("deadletters", "list", "--data", data)
    assert re.search(r'payments +0 .* ndjson \d+, row 1, 40 bytes  missing_field: field "amount"', listed)
    assert "secret-7" not in listed + succeed("deadletters", "list", "payments", "--data", data, "--json")
    shown = json.loads(succeed("deadletters", "show", "payments", "0", "--data", data))
    assert (shown["body"], shown["encoding"]) == ('{"payment_id": "p2", "card": "secret-7"}', "utf-8")
    assert (
        'penstock_dead_letters_total{topic="payments",result="kept"} 2' in service.call("GET", "/metrics").body.decode()
    )
    assert service.call("GET", "/readyz").json()["warnings"] == []
    assert 'topic "payments" rejected 2 events' in service.wait_until_said('(topic "payments" rejected 2 events)')
    assert "secret-7" not in service.log.read_text()


def test_a_corrected_file_puts_them_right_and_what_is_right_is_listed_no_more(service: Service, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "wrong.txt"
    at = ("--data", data, "--port", service.port)
    assert succeed("deadletters", "show", "payments", "--data", data, "--to", file) == f"wrote 2 events to {file}\n"
    tried = penstock("deadletters", "retry", "payments", *at)
    assert tried.returncode == 1 and tried.stdout.startswith("put 0 events right\npayments 0: field")
    assert letters(data) == {0: "missing_field", 1: "not_object"}
    file.write_text(
        file.read_text().replace('"secret-7"}', '"c1", "amount": "1.00", "paid_at": "2026-11-01T12:00:00Z"}')
    )
    tried = penstock("deadletters", "retry", "payments", *at, "--from", file)
    assert (tried.returncode, tried.stdout.splitlines()[0]) == (1, "put 1 event right")
    assert letters(data) == {1: "not_object"}
    assert "there is no dead letter 0" in fail("deadletters", "retry", "payments", *at, "--from", file)
    assert [json.loads(row)["payment_id"] for row in succeed("tail", "payments", "--data", data).splitlines()] == [
        "p1", "p3", "p2",
    ]  # fmt: skip
    service.end()
    assert letters(data) == {1: "not_object"}
    assert "the service does not answer at" in fail("deadletters", "retry", "payments", *at)


@pytest.mark.parametrize(
    ("content", "words"),
    [("0 {}\n", "line 1: not a dead letter's offset"), ("0\t{}\n\n0\t{}\n", "line 3: dead letter 0 is there twice")],
)
def test_a_file_that_is_none_is_refused_with_the_line(tmp_path: Path, content: str, words: str) -> None:
    data, file = tmp_path / "data", tmp_path / "wrong.txt"
    file.write_text(content)
    (data / "log").mkdir(parents=True)
    with running(data) as service:
        service.call("POST", EVENTS, b"[1]")
        service.end()
    assert words in fail("deadletters", "retry", "payments", "--data", data, "--from", file)
    assert 'has no topic "shops"' in fail("deadletters", "list", "shops", "--data", data)
