"""Data directories of earlier versions, and of later ones: what was told is told again, or a start refuses in words.

`tests/data/make.py` wrote the directories; each was left by a service that was killed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from data.make import APP, FIRST, LAST, REPORTS, payment, post, report, wrong
from processes import DECIDE, JSON, NDJSON, fail, running, succeed, without_time

KEPT = sorted(APP.parent.glob("data-*.tar.gz"))
# Python before 3.11.4 has no filters, and later ones warn where none is named.
FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, with what was told beside it."""
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, **FILTER)
    return tmp_path / "data"


def told(data: Path) -> list[JSON]:
    answers: list[JSON] = json.loads(data.with_name("told.json").read_text())
    return answers


def features(number: int) -> JSON:
    """Of a payment that follows all that are there, by its definitions."""
    card = payment(number)["card"]
    earlier = [payment(each) for each in range(LAST) if payment(each)["card"] == card]
    amounts = [float(each["amount"]) for each in [*earlier, payment(number)]]
    return {
        "n": len(amounts),
        "spent": f"{sum(amounts):.2f}",
        "spread": pytest.approx(stdev(amounts)),
        "memos": len({each["memo"] for each in [*earlier, payment(number)]} - {None}),
        "previous": earlier[-1]["amount"],
        "reported": int(card == "c2"),
    }


def test_a_directory_of_each_version_goes_on_where_it_was(data: Path) -> None:
    with running(data, app=APP) as service:
        assert "passed over" not in service.log.read_text()
        for number, first in enumerate(told(data)):
            again = service.call("POST", DECIDE, json.dumps(payment(number)).encode())
            assert (without_time(again.json()), again.headers["Penstock-Repeat"]) == (first, "1")
            assert service.call("GET", f"/v1/decisions/authorise/p{number}").json() == {**first, "late_decision": None}
        assert post(service, REPORTS, report(1)) == {"accepted": 0, "repeated": 1, "offsets": [0], "rejected": []}
        for number in range(LAST, LAST + 3):
            new = service.decide(payment(number))
            assert (new["offset"], new["features"]) == (number, features(number))
            assert new["policy_version"] == told(data)[-1]["policy_version"]
        letter = b"[0]\n" + json.dumps({**wrong(50), "amount": "1.00"}).encode()
        put_right = service.call("POST", "/v1/topics/payments/deadletters", letter, NDJSON).json()
        assert put_right["offsets"] == [LAST + 3]
        assert service.end() == 0
    (consumer,) = json.loads(succeed("consumers", "--json", "--data", data))
    assert (consumer["consumer"], consumer["offset"]) == ("warehouse", 7)
    verified = json.loads(succeed("log", "verify", "--json", "--data", data))
    assert verified["sound"] and verified["ids"]["files"] > 0 and verified["snapshots"]["files"] > 0


def test_a_directory_of_each_version_is_replayed_to_what_was_told(data: Path) -> None:
    import polars as pl

    target = data.with_name("out.parquet")
    succeed("replay", APP, "--from", f"log:{data}", "--to", target)
    replayed = pl.read_parquet(target).to_dicts()
    assert [row["payment_id"] for row in replayed] == [first["id"] for first in told(data)]
    assert [row["outcome"] for row in replayed] == [first["outcome"] for first in told(data)]
    for row, first in zip(replayed, told(data), strict=True):
        assert {**first["features"], "spent": None} == {
            **{name: row[name] for name in first["features"]}, "previous": text(row["previous"]), "spent": None,
        }  # fmt: skip
        assert text(row["spent"]) == first["features"]["spent"]
    assert len(told(data)) == LAST > FIRST


def text(value: object) -> str | None:
    return None if value is None else str(value)


# Of a later version.


def crc32c(content: bytes | bytearray) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_log_of_a_later_format_is_refused_and_says_so(data: Path) -> None:
    (segment,) = (data / "log").glob("*.segment")
    whole = bytearray(segment.read_bytes())
    header = whole[:64]
    assert int.from_bytes(header[12:16], "little") == crc32c(header[:12] + header[16:])
    header[8:12] = (2).to_bytes(4, "little")
    header[12:16] = crc32c(header[:12] + header[16:]).to_bytes(4, "little")
    whole[:64] = header
    segment.write_bytes(whole)
    said = f"log/{segment.name} has format version 2, this release reads version 1\nhint: use the release that wrote it"
    assert said in fail("run", APP, "--data", data, "--port", "0")
    assert said in fail("tail", "payments", "--data", data)
    assert segment.read_bytes() == whole


def test_snapshots_and_ids_of_a_later_format_are_made_again_from_the_log(data: Path) -> None:
    (snapshot,) = (data / "snapshots").glob("*.snapshot")
    snapshot.write_bytes(snapshot.read_bytes().replace(b"PENSNAP1", b"PENSNAP2"))
    for file in (data / "ids").glob("*.ids"):
        whole = bytearray(file.read_bytes())
        whole[8:12] = (2).to_bytes(4, "little")
        whole[4092:4096] = crc32c(whole[:4092]).to_bytes(4, "little")
        file.write_bytes(whole)
    with running(data, app=APP) as service:
        log = service.log.read_text()
        assert f"snapshots/{snapshot.name} is damaged at byte 0: it does not begin as a snapshot does" in log
        assert "the header is not one that this release reads" in log
        for number, first in enumerate(told(data)):
            assert without_time(service.decide(payment(number))) == first
        assert service.decide(payment(LAST))["features"] == features(LAST)
        assert service.end() == 0
