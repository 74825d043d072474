"""What watches the gate: whether it lives, whether it is ready, and its numbers."""

from __future__ import annotations

import math
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.runtime.gate import REPEAT
from penstock.runtime.snapshots import Snapshots
from penstock.serve.metrics import histogram
from serve.client import DECIDE, Running, eventually, get, post, running
from serve.stand_in import StandIn

Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def test_the_process_lives_and_is_ready(door: Running) -> None:
    assert door.ask(get("/healthz")).json == {"alive": True}
    answer = door.ask(get("/readyz"))
    assert (answer.status, answer.json) == (200, {"ready": True, "warnings": []})


def test_a_stuck_gate_lives_and_is_not_ready(core: StandIn) -> None:
    with running(core, stuck_s=0.2) as door:
        time.sleep(0.5)  # standing still without work is no reason
        assert door.ask(get("/readyz")).status == 200
        core.stuck.set()
        client = door.client()
        client.send(post(DECIDE))
        eventually(lambda: door.ask(get("/readyz")).status == 503)
        refused = door.ask(get("/readyz"))
        assert refused.code == "not_ready"
        assert "stood still" in refused.json["error"]["message"]
        assert "1 requests waiting" in refused.json["error"]["reasons"][0]
        assert door.ask(get("/healthz")).status == 200
        core.stuck.clear()
        assert client.answer().status == 200
        eventually(lambda: door.ask(get("/readyz")).status == 200)


def test_a_gate_that_is_slow_and_moves_is_ready(core: StandIn) -> None:
    core.stuck.set()
    with running(core, stuck_s=0.3) as door:
        door.client().send(post(DECIDE))
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            core.beat += 1
            assert door.ask(get("/readyz")).status == 200
            time.sleep(0.05)
        core.stuck.clear()


def test_a_gate_whose_requests_wait_for_a_model_does_not_stand_still(core: StandIn) -> None:
    core.script = lambda request: None
    with running(core, stuck_s=0.2) as door:
        door.client().send(post(DECIDE))
        eventually(lambda: bool(core.requests))
        time.sleep(0.5)
        assert door.ask(get("/readyz")).status == 200


def test_the_state_warns_before_it_is_full(core: StandIn) -> None:
    with running(core) as door:
        core.state_bytes = 799
        assert door.ask(get("/readyz")).json["warnings"] == []
        core.state_bytes = 800
        assert door.ask(get("/readyz")).json["warnings"] == ["the state is 80% full"]
        core.state_bytes = 1_000
        answer = door.ask(get("/readyz"))
        assert answer.status == 200  # known keys go on
        assert answer.json["warnings"] == ["the state is full: new keys get the fallback"]
        assert b"penstock_state_warning 1\n" in door.ask(get("/metrics")).body


def test_a_large_state_names_the_topics_that_keep_it_from_freeing_events(core: StandIn) -> None:
    core.reader_lags = (("reports", None), ("devices", 7_200.0), ("payments", 0.0))
    with running(core) as door:
        found = numbers(door)
        assert found["penstock_reader_lag_seconds", (("topic", "reports"),)] == math.inf
        assert found["penstock_reader_lag_seconds", (("topic", "devices"),)] == 7_200
        assert door.ask(get("/readyz")).json["warnings"] == []
        core.state_bytes = 900
        assert door.ask(get("/readyz")).json["warnings"] == [
            "the state is 90% full",
            'topic "reports" has had no event: what it reads is kept for it',
            'topic "devices" is 2.0 h behind: what it reads is kept for it',
        ]
        assert numbers(door)["penstock_state_warning", ()] == 1


def test_old_files_that_cannot_be_removed_are_warned_of(core: StandIn) -> None:
    core.removal_failed = "could not remove log/1.segment: permission denied"
    with running(core) as door:
        answer = door.ask(get("/readyz"))
        assert (answer.status, answer.json["warnings"]) == (
            200,
            ["old files stay for now: could not remove log/1.segment: permission denied"],
        )


def test_files_of_ids_that_are_damaged_or_not_merged_are_warned_of(core: StandIn) -> None:
    core.ids_damaged = "ids/1-2.ids is damaged at byte 4096: a block's checksum is wrong"
    core.ids_unmerged = "could not write ids/1-4.ids: Input/output error"
    with running(core) as door:
        answer = door.ask(get("/readyz"))
        assert (answer.status, answer.json["warnings"]) == (
            200,
            [
                f"some ids cannot be known until the next start makes their files again: {core.ids_damaged}",
                f"files of ids are not merged for now: {core.ids_unmerged}",
            ],
        )


def test_the_snapshots_are_counted_and_missed(core: StandIn) -> None:
    snapshots = Snapshots(0.0, clock=lambda: 1_000.0)
    with running(core, snapshots=snapshots) as door:
        found = numbers(door)
        assert ("penstock_snapshot_age_seconds", ()) not in found
        snapshots.hear('{"result": "found", "sequence": 7, "written_at": 900.0}')
        snapshots.hear('{"result": "failed"}')
        found = numbers(door)
        assert found["penstock_snapshot_age_seconds", ()] == 100
        assert found["penstock_snapshot_sequence", ()] == 7
        assert found["penstock_snapshots_total", (("result", "failed"),)] == 1
        assert found["penstock_snapshots_total", (("result", "mismatched"),)] == 0
        assert found["penstock_snapshotter_starts_total", ()] == 1
        core.log_sequence = 9
        eventually(lambda: door.ask(get("/readyz")).json["warnings"])
        assert door.ask(get("/readyz")).json["warnings"] == ["no snapshot for 0 s: a start would read 2 commits"]


def test_a_gate_that_takes_nothing_says_why(core: StandIn) -> None:
    core.full = "the disk is full"
    with running(core) as door:
        answer = door.ask(get("/readyz"))
        assert "nothing is taken at present: the disk is full" in answer.json["error"]["message"]


def numbers(door: Running) -> Numbers:
    answer = door.ask(get("/metrics"))
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def test_the_metrics_are_prometheus_s_and_count_what_happened(core: StandIn) -> None:
    core.script = lambda request: (200, b"{}", REPEAT if request[3] == b"again" else 0)
    with running(core) as door:
        client = door.client()
        for body in (b"a", b"b", b"again"):
            client.ask(post(DECIDE, body))
        client.ask(post("/v1/nothing"))
        client.ask(get(DECIDE))
        found = numbers(door)
    decide = (("policy", "authorise"), ("route", "decide"))
    assert found["penstock_requests_total", (*decide, ("status", "200"))] == 3
    assert found["penstock_requests_total", (*decide, ("status", "405"))] == 1
    refused = (("route", "refused"), ("status", "404"))
    assert found["penstock_requests_total", refused] == 1
    assert found["penstock_repeats_total", decide] == 1
    assert found["penstock_timed_out_total", decide] == 0
    assert found["penstock_request_seconds_count", decide] == 3
    assert found["penstock_request_seconds_sum", decide] > 0
    assert 0 < found["penstock_door_seconds_total", ()] < 10
    assert found["penstock_door_connections", ()] == 2


def test_the_core_s_numbers_are_shown(core: StandIn) -> None:
    with running(core) as door:
        found = numbers(door)
    assert found["penstock_core_cycles_total", ()] == 0
    assert found["penstock_state_bytes_max", ()] == 1_000
    assert found["penstock_sync_seconds_bucket", (("le", "0.5"),)] == 3
    assert found["penstock_sync_seconds_bucket", (("le", "+Inf"),)] == 6
    assert found["penstock_sync_seconds_sum", ()] == 4.5
    labels = (("outcome", 'a "quoted" outcome'), ("policy", "authorise"))
    assert found["penstock_decisions_total", labels] == 3


def test_the_buckets_of_a_histogram_add_up() -> None:
    found = list(histogram("", [0.1, 1.0], [2, 0, 5], 9.5))
    assert found == [
        ("_bucket", '{le="0.1"}', 2),
        ("_bucket", '{le="1.0"}', 2),
        ("_bucket", '{le="+Inf"}', 7),
        ("_sum", "", 9.5),
        ("_count", "", 7),
    ]


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
def test_a_page_does_not_wait_for_a_stuck_core(core: StandIn, path: str) -> None:
    core.stuck.set()
    with running(core, drain_s=0.1) as door:
        door.client().send(post(DECIDE))
        started = time.monotonic()
        door.ask(get(path))
        assert time.monotonic() - started < 5
        core.stuck.clear()


def test_every_metric_is_described_once(door: Running) -> None:
    door.ask(post(DECIDE))
    text = door.ask(get("/metrics")).body.decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation and family.type != "unknown" for family in families)
    assert not any(math.isnan(s.value) for family in families for s in family.samples)
