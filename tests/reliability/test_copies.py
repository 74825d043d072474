"""A copied data directory is a log of its own: both may run, and nothing of the one is ever taken for the other's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from processes import fail, patient_first, payment, running

APP = ("--segment-bytes", "16MiB")


def fork(tmp_path: Path) -> tuple[Path, Path]:
    """A directory and its copy, each with decisions that the other does not know, made by services that ran at once."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    with running(data, *APP) as service:
        service.decide(payment(1))
        assert service.end() == 0
    shutil.copytree(data, copy)
    with running(data, *APP) as one, running(copy, *APP) as other:
        for number in range(2, 30):
            assert one.decide(payment(number))["features"]["card_count_1h"] == number
        for number in range(102, 112):
            assert other.decide(payment(number))["features"]["card_count_1h"] == number - 100
        assert one.call("GET", "/v1/decisions/authorise/p102").status == 404
        assert (one.end(), other.end()) == (0, 0)
    return data, copy


def test_a_copy_and_its_original_run_apart(tmp_path: Path) -> None:
    data, copy = fork(tmp_path)
    with running(data, *APP) as one, running(copy, *APP) as other:
        assert one.decide(payment(200))["offset"] == 29
        assert other.decide(payment(200))["offset"] == 11


@pytest.mark.parametrize("file", ["segment", "durable"])
def test_a_log_with_a_file_of_its_copy_is_refused(tmp_path: Path, file: str) -> None:
    """Each run begins an epoch that its frames carry and chain on: the files of two runs do not fit together."""
    data, copy = fork(tmp_path)
    (own,) = (data / "log").glob(f"*{file}")
    shutil.copy(own, copy / "log" / own.name)
    shutil.copytree(data / "snapshots", copy / "snapshots", dirs_exist_ok=True)
    if file == "segment":
        # Whole and newer: this is the original's log, whatever else the copy has. Its own end is what is missing.
        (copy / "log" / "durable").unlink()
        with running(copy, *APP) as service:
            assert service.decide(payment(300))["offset"] == 29
            assert service.call("GET", "/v1/decisions/authorise/p102").status == 404
        return
    refused = fail("run", patient_first(tmp_path), "--data", copy, "--port", "0")
    assert "is damaged at byte" in refused and "was durable" in refused
