"""The Handbook's features over its whole published history, against its definitions in DuckDB's SQL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from oracles.handbook import HISTORY, handbook_features

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not HISTORY.exists(), reason="no file with the Handbook's transactions; see CONTRIBUTING.md")
def test_every_feature_of_every_transaction_is_what_the_book_defines(tmp_path: Path) -> None:
    target = tmp_path / "features.parquet"
    command = [sys.executable, "-m", "penstock", "replay", str(ROOT / "examples" / "handbook.py")]
    subprocess.run([*command, "--from", str(HISTORY), "--to", str(target)], check=True, timeout=600)
    computed = pq.read_table(target).sort_by("TRANSACTION_ID")
    expected = handbook_features(HISTORY)
    assert computed.num_rows == expected.num_rows == 1_754_155
    for name in expected.column_names:
        mine, theirs = computed[name], expected[name]
        wrong = pc.sum(pc.not_equal(mine.cast(theirs.type), theirs)).as_py()
        assert wrong == 0 and mine.null_count == theirs.null_count, f"{name}: {wrong} values differ"
