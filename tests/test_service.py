"""The service as its callers see it: a real process, real sockets, a real directory, and `kill -9`."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock import _native
from processes import (
    DECIDE,
    EVENTS,
    FIRST,
    JSON,
    NDJSON,
    Answer,
    lacking,
    payment,
    running,
    succeed,
    without_time,
)


def test_a_retry_is_told_the_same_and_marked(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        body = json.dumps(payment(1)).encode()
        first, again = service.call("POST", DECIDE, body), service.call("POST", DECIDE, body)
        assert first.status == again.status == 200
        assert without_time(first.json()) == without_time(again.json())
        assert "Penstock-Repeat" not in first.headers
        assert again.headers["Penstock-Repeat"] == "1"
        other = service.call("POST", DECIDE, json.dumps(payment(1, amount="13.00")).encode())
        assert (other.status, other.json()["error"]["code"]) == (409, "id_conflict")


def test_of_a_hundred_that_send_one_event_at_a_time_each_is_told_the_same_and_one_is_the_first(tmp_path: Path) -> None:
    answers: list[Answer] = []
    with running(tmp_path / "data") as service:
        together = threading.Barrier(100)

        def call() -> None:
            together.wait()
            answers.append(service.call("POST", DECIDE, json.dumps(payment(1)).encode()))

        threads = [threading.Thread(target=call) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        following = service.decide(payment(2))
    assert len(answers) == 100 and {answer.status for answer in answers} == {200}
    first = without_time(answers[0].json())
    assert all(without_time(answer.json()) == first for answer in answers)
    assert sum("Penstock-Repeat" not in answer.headers for answer in answers) == 1
    assert (following["offset"], following["features"]["card_count_1h"]) == (1, 2)


def test_a_thousand_concurrent_requests_on_one_card_see_each_count_once(tmp_path: Path) -> None:
    counts: list[int] = []

    with running(tmp_path / "data") as service:

        def call(numbers: range) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
            for number in numbers:
                connection.request("POST", DECIDE, json.dumps(payment(number)))
                counts.append(json.loads(connection.getresponse().read())["features"]["card_count_1h"])
            connection.close()

        threads = [threading.Thread(target=call, args=(range(each, 1_000, 50),)) for each in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(counts) == list(range(1, 1_001))


def test_a_refused_event_names_its_field(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        answer = service.call("POST", DECIDE, json.dumps(payment(1, amount=1.234)).encode())
        assert answer.status == 422
        assert answer.json()["error"]["field"] == "amount"
        assert "1.234" not in answer.body.decode()


def test_many_events_in_one_body_are_answered_line_by_line(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        lines = [json.dumps(payment(1)), json.dumps(payment(2, card=7)), json.dumps(payment(3))]
        answer = service.call("POST", DECIDE, "\n".join(lines).encode(), "application/x-ndjson")
        first, wrong, last = (json.loads(line) for line in answer.body.splitlines())
        assert (first["features"]["card_count_1h"], last["features"]["card_count_1h"]) == (1, 2)
        assert wrong["error"]["field"] == "card"


def test_events_through_their_topic_are_durable_and_listed_by_offset(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        body = json.dumps([payment(1), payment(2, amount="x"), payment(3)]).encode()
        answer = service.call("POST", EVENTS, body).json()
        assert answer["offsets"] == [0, None, 1]
        assert [each["index"] for each in answer["rejected"]] == [1]
        assert service.decide(payment(4))["features"]["card_count_1h"] == 3
        assert service.call("POST", DECIDE, json.dumps(payment(1)).encode()).status == 409


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    told: dict[int, JSON] = {}
    with running(tmp_path / "data") as service:

        def call() -> None:
            try:
                for number in range(100_000):
                    told[number] = service.decide(payment(number, card=f"c{number % 7}"))
            except (OSError, http.client.HTTPException):
                return

        caller = threading.Thread(target=call)
        caller.start()
        while len(told) < 200:
            caller.join(0.01)
        service.end(signal.SIGKILL)
        caller.join()
    with running(tmp_path / "data") as service:
        for number, answer in list(told.items())[-100:]:
            again = service.decide(payment(number, card=f"c{number % 7}"))
            assert without_time(again) == without_time(answer)
        looked_up = service.call("GET", "/v1/decisions/authorise/p0").json()
        assert looked_up["late_decision"] is None
        assert without_time(told[0]) == {
            name: value for name, value in looked_up.items() if name != "late_decision"
        }


def test_sigterm_ends_in_order_and_the_next_start_reads_a_snapshot(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        for number in range(10):
            service.decide(payment(number))
        assert service.end() == 0
    assert list((tmp_path / "data" / "snapshots").glob("*.snapshot"))
    with running(tmp_path / "data") as service:
        assert service.decide(payment(11))["features"]["card_count_1h"] == 11


def test_a_second_run_on_the_same_directory_is_told_the_pid(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        command = [sys.executable, "-m", "penstock", "run", str(FIRST), "--data", str(tmp_path / "data"), "--port", "0"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert f"in use by process {service.process.pid}" in second.stderr


def test_only_loopback_is_listened_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "penstock", "run", str(FIRST), "--data", str(tmp_path), "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "cannot listen on 0.0.0.0, where others can call, without tokens and" in refused.stderr


def test_health_readiness_and_metrics_answer(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        service.decide(payment(1))
        assert service.call("GET", "/healthz").status == 200
        assert service.call("GET", "/readyz").status == 200
        assert b"sync_seconds" in service.call("GET", "/metrics").body


def test_live_answers_equal_a_replay_of_the_log(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "out.parquet"
    with running(data) as service:
        late = "2026-11-01T10:30:00Z"
        events = [payment(number, card=f"c{number % 3}", amount=f"{number}.25") for number in range(40)]
        events += [payment(100, paid_at=late), payment(101, card="c2", paid_at="2026-11-01T11:30:00Z")]
        told = {event["payment_id"]: service.decide(event) for event in events}
        service.end()
    command = [sys.executable, "-m", "penstock", "replay", str(FIRST), "--from", f"log:{data}", "--to", str(target)]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "COLUMNS": "80"})
    rows = {row["payment_id"]: row for row in pq.read_table(target).to_pylist()}
    assert told["p100"]["late"] is True
    for key, answer in told.items():
        assert {name: rows[key][name] for name in answer["features"]} == answer["features"]
        assert rows[key]["outcome"] == answer["outcome"]
        assert rows[key]["reasons"] == [reason["rule"] for reason in answer["reasons"]]
    exported = subprocess.run(
        [sys.executable, "-m", "penstock", "log", "verify", "--data", str(data), "--json"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(exported.stdout)["sound"] is True


def test_live_answers_equal_a_replay_of_the_log_although_the_state_was_full(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "out.parquet"
    told: list[JSON] = []
    with running(data, "--state-bytes", "1MiB") as service:
        for turn in range(30):
            cards = range(turn * 500 - 20, turn * 500 + 500)  # some are known, if there was room for them
            lines = [json.dumps(payment(len(told) + index, card=f"c{card}")) for index, card in enumerate(cards)]
            told += service.call("POST", DECIDE, "\n".join(lines).encode(), NDJSON).lines()
        late = [json.dumps(payment(len(told), paid_at="2026-11-01T10:30:00Z"))]
        told += service.call("POST", DECIDE, "\n".join(late).encode(), NDJSON).lines()
        assert service.end() == 0
    causes = [answer.get("cause") for answer in told]
    assert 0 < causes.count("state_full") < len(told) and told[-1]["late"]
    assert None in causes[causes.index("state_full") :]
    succeed("replay", FIRST, "--from", f"log:{data}", "--to", target)
    rows = pq.read_table(target).to_pylist()
    assert [row["payment_id"] for row in rows] == [answer["id"] for answer in told]
    for row, answer in zip(rows, told, strict=True):
        assert {name: row[name] for name in answer["features"]} == answer["features"]
        assert row["outcome"] == answer["outcome"]
        assert row["reasons"] == [reason["rule"] for reason in answer["reasons"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["topics", "--data", "nowhere"], "not a data directory"),
        (["replay", str(FIRST), "--from", "nowhere.parquet", "--to", "x.parquet"], "there is no file nowhere.parquet"),
        (["rules", "check", "nowhere.py"], "there is no file nowhere.py"),
        (["run", str(FIRST), "--port", "many"], "not a whole number"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "penstock", *arguments]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_new_directory_is_small_and_may_be_in_memory() -> None:
    if not Path("/dev/shm").is_dir():
        lacking("there is no tmpfs here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        data = Path(folder) / "data"
        with running(data) as service:
            assert service.decide(payment(1))["offset"] == 0
            assert re.search(r"a flush to its disk takes \d+\.\d\d ms", service.log.read_text())
            assert service.end() == 0
        used = sum(path.stat().st_blocks * 512 for path in data.rglob("*"))
        assert used < 200_000_000
        with running(data) as service:
            assert service.decide(payment(2))["features"]["card_count_1h"] == 2
            assert service.end() == 0


def test_a_large_append_is_cut_into_commits_and_decisions_go_between_them(tmp_path: Path) -> None:
    line = json.dumps(payment(0, card="bulk")) + "\n"
    count = (20 << 20) // len(line)
    body = "".join(line.replace('"p0"', f'"b{number:08}"') for number in range(count)).encode()
    taken: list[JSON] = []
    with running(tmp_path / "data") as service:

        def append() -> None:
            taken.append(service.call("POST", EVENTS, body, NDJSON).json())

        appending = threading.Thread(target=append)
        appending.start()
        offsets: list[int] = []
        while appending.is_alive():
            offsets.append(service.decide(payment(len(offsets)))["offset"])
        appending.join()
        assert taken[0]["accepted"] == count
        last = max(offset for offset in taken[0]["offsets"])
        assert any(taken[0]["offsets"][0] < offset < last for offset in offsets)
        service.end()
    reader = _native.LogReader(str(tmp_path / "data"), "payments", 0)
    largest = 0
    while (sections := reader.next()) is not None:
        largest = max(largest, sum(pa.record_batch(section[4]).nbytes for section in sections))
    assert largest <= 1 << 20


MODELLED = FIRST.read_text().replace(
    'pipeline.policy("authorise", scored, rules="first.toml", within="50ms", fallback="approve")',
    """
@pipeline.model(version="1")
def stuck(batch):
    import time

    if (batch["amount"] > 0).any():  # the warm-up's is zero
        time.sleep(1000)
    return batch["amount"]


for name, answer in (("refuses", "refuse"), ("tells", "fallback")):
    pipeline.policy(
        name, scored, rules="first.toml", score=stuck, within="3s", fallback="review", on_overload=answer
    )
""",
)


def test_a_full_queue_answers_429_or_the_fallback_where_the_policy_says_so(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text(FIRST.with_suffix(".toml").read_text())
    (tmp_path / "app.py").write_text(MODELLED)
    with running(tmp_path / "data", "--queue", "1", "--model-time", "4s", app=tmp_path / "app.py") as service:

        def decide(policy: str, number: int) -> Answer:
            return service.call("POST", f"/v1/policies/{policy}/decide", json.dumps(payment(number)).encode())

        told: list[JSON] = []
        waiting = threading.Thread(target=lambda: told.append(decide("refuses", 1).json()))
        waiting.start()
        while b"penstock_door_waiting 1\n" not in service.call("GET", "/metrics").body:
            assert waiting.is_alive()
        refused, fallback = decide("refuses", 2), decide("tells", 3)
        waiting.join()
        assert (refused.status, refused.code, refused.headers["Retry-After"]) == (429, "overloaded", "1")
        overload = {"outcome": "review", "timed_out": False, "cause": "overload", "features": None, "offset": None}
        assert {name: fallback.json()[name] for name in overload} == overload
        assert (told[0]["outcome"], told[0]["timed_out"], told[0]["cause"]) == ("review", True, "deadline")
        # The first still waits for its model, until that is killed; then the queue has room again.
        while (found := service.call("GET", "/v1/decisions/refuses/p2")).status == 429:
            assert found.code == "overloaded"
        # Neither was recorded: what comes again is a first attempt.
        assert (found.status, service.call("GET", "/v1/decisions/tells/p3").status) == (404, 404)
