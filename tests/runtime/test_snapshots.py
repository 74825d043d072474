"""A snapshotter that has stopped writing is seen, and one that has nothing to write is not."""

from __future__ import annotations

import json

from penstock.runtime.snapshots import Snapshots


def written(sequence: int, at: float) -> str:
    return json.dumps({"result": "written", "sequence": sequence, "written_at": at})


def test_a_log_that_goes_on_without_snapshots_is_warned_of() -> None:
    snapshots = Snapshots(30.0, clock=lambda: 1_000.0)

    def warned(log_sequence: int, now_s: float) -> list[str]:
        return list(snapshots.warnings(log_sequence, now_s=now_s))

    assert snapshots.age_s() is None
    snapshots.hear(json.dumps({"result": "found", "sequence": 5, "written_at": 400.0}))
    assert (snapshots.starts, snapshots.age_s()) == (1, 600.0)
    # An old one is as good as any while nothing is new.
    assert warned(5, 0.0) == warned(5, 5_000.0) == []
    # Then the time counts from when there was something to write.
    assert warned(6, 6_000.0) == warned(90, 6_300.0) == []
    assert warned(105, 6_301.0) == ["no snapshot for 301 s: a start would read 100 commits"]
    # One that is written, though the log is ahead again, begins it anew.
    snapshots.hear(written(100, 990.0))
    assert warned(105, 6_302.0) == warned(105, 6_602.0) == []
    assert warned(105, 6_603.0) == ["no snapshot for 301 s: a start would read 5 commits"]
    assert (snapshots.sequence, snapshots.age_s()) == (100, 10.0)


def test_what_became_of_snapshots_is_counted() -> None:
    snapshots = Snapshots(30.0)
    for result in ["failed", "mismatched", "mismatched"]:
        snapshots.hear(json.dumps({"result": result}))
    snapshots.hear(written(1, 1.0))
    assert snapshots.results == {"written": 1, "failed": 1, "mismatched": 2}
