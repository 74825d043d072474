"""The gate's promises to its callers: one order, one answer for one id, and no half-taken event."""

from __future__ import annotations

import json
import re
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from penstock import _native, testing
from penstock.errors import InputError
from penstock.runtime import gate as gate_interface
from penstock.runtime.app import load_app
from penstock.runtime.gate import DECIDE, DECIDE_MANY, EVENTS_NDJSON, MODEL, REPEAT, SCORES
from penstock.runtime.plan import compile_plan
from penstock.serve.service import core_settings
from penstock.settings import read_settings

FIRST = Path(__file__).resolve().parents[2] / "examples" / "first.py"
NOON = "2026-11-01T12:00:00Z"


def payment(number: int, **changed: Any) -> dict[str, Any]:
    return {"payment_id": f"p{number}", "card": "c1", "amount": "12.50", "paid_at": NOON, **changed}


def test_the_numbers_of_requests_and_flags_are_the_core_s() -> None:
    core = (Path(__file__).resolve().parents[2] / "native" / "src" / "gate" / "mod.rs").read_text()
    kinds = re.findall(r"^    (\w+) = (\d+),$", core, re.MULTILINE)
    flags = re.findall(r"^pub const (\w+): u8 = (\d+);$", core, re.MULTILINE)
    names = [(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper(), int(number)) for name, number in kinds + flags]
    assert names == [(name, number) for name, number in vars(gate_interface).items() if name.isupper()]


def test_events_of_one_card_in_one_body_are_counted_in_order() -> None:
    with testing.run(FIRST, now=NOON) as service:
        answers = service.decide_many("authorise", [payment(number) for number in range(50)])
        assert [answer["features"]["card_count_1h"] for answer in answers] == list(range(1, 51))


@pytest.mark.parametrize("between", ["nothing", "crash", "restart", "snapshot"])
def test_a_retry_is_answered_the_same_and_moves_nothing(between: str) -> None:
    with testing.run(FIRST, now=NOON) as service:
        first = service.decide("authorise", payment(1))
        if between == "snapshot":
            service.snapshot()
        if between == "crash":
            service.crash()
        elif between != "nothing":
            service.restart()
        assert service.decide("authorise", payment(1)) == first
        with pytest.raises(testing.Refused) as refused:
            service.decide("authorise", payment(1, amount="1"))
        assert (refused.value.status, refused.value.code) == (409, "id_conflict")
        assert service.dry_run("authorise", payment(2))["features"]["card_count_1h"] == 2
        assert service.decide("authorise", payment(3))["features"]["card_count_1h"] == 2


def test_an_event_of_the_topics_door_or_too_far_ahead_is_refused() -> None:
    with testing.run(FIRST, now=NOON) as service:
        service.append("payments", [payment(1)])
        for event, code in [
            (payment(1), (409, "entered_elsewhere")),
            (payment(2, paid_at="2026-11-01T12:11:00Z"), (422, "ahead_of_clock")),
        ]:
            with pytest.raises(testing.Refused) as refused:
                service.decide("authorise", event)
            assert (refused.value.status, refused.value.code) == code


def step(gate: _native.ManualGate, *requests: tuple[int, int, list[dict[str, Any]]]) -> dict[int, list[Any]]:
    """One cycle over (handle, kind, events); the lines of each answer."""
    raw = [
        (handle, kind, 0, b"\n".join(json.dumps(event).encode() for event in events), 0)
        for handle, kind, events in requests
    ]
    return {handle: [json.loads(line) for line in body.splitlines()] for handle, _, body, _ in gate.step(raw, [])}


def test_a_retry_among_many_in_one_cycle_with_the_first_attempt_is_told_the_same() -> None:
    """A single decision and a slice of many meet in one commit, before either's place in the log is known."""
    with testing.run(FIRST, now=NOON) as service:
        plan, settings = service.plan.to_json(), testing._core_settings({})
    gate = _native.ManualGate(plan, _native.Memory(), settings, service.clock.now_us)
    step(gate, (1, DECIDE, [payment(0)]))
    events = [payment(7), payment(8), payment(1), payment(2, amount="1"), payment(9)]
    answers = step(
        gate,
        (2, DECIDE, [payment(1)]),
        (3, DECIDE, [payment(2)]),
        (4, DECIDE_MANY, events),
    )
    first, second, (seventh, eighth, again, other, ninth) = answers[2][0], answers[3][0], answers[4]
    assert [each["offset"] for each in (first, second, seventh, eighth, ninth)] == [1, 2, 3, 4, 5]
    assert again == first
    assert other["error"]["code"] == "id_conflict"
    assert ninth["features"]["card_count_1h"] == 6
    looked_up = step(gate, (5, DECIDE, [payment(1)]))
    assert looked_up[5][0] == first
    gate.close()


@pytest.mark.parametrize("kind", [DECIDE, DECIDE_MANY])
@pytest.mark.parametrize("together", ["the first, its deadline and the retry", "its deadline and the retry"])
def test_a_retry_in_the_cycle_that_learns_of_the_deadline_is_told_the_fallback_too(together: str, kind: int) -> None:
    with testing.run(FIRST, now=NOON) as service:
        body = json.dumps(payment(1)).encode()
        first, retry = (1, DECIDE, 0, body, 0), (2, kind, 0, body, 0)
        if together.startswith("the first"):
            answers = service._gate.step([first, retry], [1])
        else:
            service._gate.step([first], [])
            answers = service._gate.step([retry], [1])
        told = next(json.loads(text) for handle, _, text, _ in answers if handle == 2)
        assert (told["cause"], told["timed_out"], told["offset"]) == ("deadline", True, None)
        service.crash()
        assert service.decide("authorise", payment(1)) | {"took_ms": 0} == told | {"took_ms": 0}
        assert service.look_up("authorise", "p1")["late_decision"]["features"]["card_count_1h"] == 1


def test_a_retry_among_many_waits_with_its_first_attempt_for_the_model(tmp_path: Path) -> None:
    """The first attempt's rows are with the model when a slice of many brings its retry, in the same cycle or later."""
    policy = 'pipeline.policy("authorise", scored, rules="first.toml", within="50ms", fallback="approve")'
    model = '@pipeline.model(version="1")\ndef risk(batch):\n    return batch["amount"].cast(float) / 100\n\n\n'
    assert policy in FIRST.read_text()
    app = FIRST.read_text().replace(policy, model + policy.replace("scored,", "scored, score=risk,"))
    (tmp_path / "app.py").write_text(app)
    (tmp_path / "first.toml").write_text(FIRST.with_suffix(".toml").read_text())
    with testing.run(tmp_path / "app.py", now=NOON) as service:
        plan, settings = service.plan.to_json(), testing._core_settings({})
    gate = _native.ManualGate(plan, _native.Memory(), settings, service.clock.now_us)

    def ask(*requests: tuple[int, int, int, bytes]) -> list[_native.Answer]:
        return gate.step([(*request, 0) for request in requests], [])

    def lines(*events: dict[str, Any]) -> bytes:
        return b"\n".join(json.dumps(event).encode() for event in events)

    one, several = lines(payment(1)), lines(payment(2, amount="7"), payment(1), payment(2, amount="7"))
    asked = ask((1, DECIDE, 0, lines(payment(0))))
    asked += ask((2, DECIDE, 0, one), (3, DECIDE_MANY, 0, several))
    asked += ask((4, DECIDE_MANY, 0, several))
    assert [flags for *_, flags in asked] == [MODEL] * 3, "each event goes to the model once"
    told: dict[int, list[Any]] = {}
    for (number, *_), amounts in reversed(list(zip(asked, ([0.0], [0.125], [0.07]), strict=True))):
        scores = struct.pack(f"<{len(amounts)}d", *amounts)
        for handle, status, body, _ in ask((number, SCORES, number, scores)):
            assert status == 200
            told[handle] = [json.loads(line) for line in body.splitlines()]
    assert [each["id"] for each in told[3]] == [each["id"] for each in told[4]] == ["p2", "p1", "p2"]
    assert told[3][1] == told[4][1] == told[2][0]
    assert [each["score"] for each in told[4]] == [0.07, 0.125, 0.07]
    gate.close()


def manual_gate() -> _native.ManualGate:
    plan = compile_plan(load_app(FIRST))
    now_us = int(datetime.fromisoformat(NOON).timestamp() * 1e6)
    return _native.ManualGate(plan.to_json(), _native.Memory(), core_settings(read_settings({})), now_us)


def lines(*numbers: int, **changed: Any) -> bytes:
    return b"\n".join(json.dumps(payment(number, **changed)).encode() for number in numbers)


def commits(gate: _native.ManualGate) -> int:
    return int(json.loads(gate.stats())["commits"])


def test_an_id_in_a_single_and_a_large_request_of_one_cycle_is_decided_once() -> None:
    gate = manual_gate()
    # Large requests take turns with single ones: after a cycle of these, both are taken together.
    gate.step([(1, DECIDE, 0, lines(1), 0)], [])
    before = commits(gate)
    body = lines(2, 4, 3) + b"\n" + lines(4, amount="1")
    answers = gate.step([(2, DECIDE, 0, lines(3), 0), (3, DECIDE_MANY, 0, body, 0)], [])
    assert commits(gate) == before + 1
    told = {handle: text.splitlines() for handle, _, text, _ in answers}
    second, fourth, third, conflict = told[3]
    assert third == told[2][0]
    features = [json.loads(each)["features"]["card_count_1h"] for each in (third, second, fourth)]
    assert features == [2, 3, 4]
    assert json.loads(conflict)["error"]["code"] == "id_conflict"


def test_equal_requests_of_one_cycle_are_answered_alike() -> None:
    gate = manual_gate()
    answers = gate.step([(handle, DECIDE, 0, lines(handle % 2), 0) for handle in range(6)], [])
    told = {handle: (text, flags) for handle, _, text, flags in answers}
    assert [flags for _, flags in (told[handle] for handle in range(6))] == [0, 0] + [REPEAT] * 4
    assert [told[handle][0] for handle in range(6)] == [told[0][0], told[1][0]] * 3
    assert told[0][0] != told[1][0]


def test_large_requests_that_wait_share_a_commit() -> None:
    gate = manual_gate()
    requests = [
        (1, DECIDE_MANY, 0, lines(1, 2), 0),
        (2, DECIDE_MANY, 0, lines(2, 3), 0),
        (3, EVENTS_NDJSON, 0, lines(4, 3), 0),
        (4, EVENTS_NDJSON, 0, lines(5, 4), 0),
    ]
    told = {handle: text for handle, _, text, _ in gate.step(requests, [])}
    assert commits(gate) == 1
    assert told[1].splitlines()[1] == told[2].splitlines()[0]
    third, fourth = json.loads(told[3]), json.loads(told[4])
    assert (third["accepted"], third["repeated"], third["offsets"]) == (1, 0, [3, None])
    assert third["rejected"][0]["error"]["code"] == "entered_elsewhere"
    assert (fourth["accepted"], fourth["repeated"], fourth["offsets"]) == (1, 1, [4, 3])


def test_a_large_request_over_many_commits_is_answered_in_its_order() -> None:
    gate = manual_gate()
    body = lines(*range(5_000))
    [(_, status, text, _)] = gate.step([(1, DECIDE_MANY, 0, body, 0)], [])
    assert status == 200 and commits(gate) > 1
    decisions = [json.loads(line) for line in text.splitlines()]
    assert [each["id"] for each in decisions] == [f"p{number}" for number in range(5_000)]
    assert [each["offset"] for each in decisions] == list(range(5_000))


def test_a_body_told_at_its_deadline_and_its_retry_in_one_cycle_are_told_the_same() -> None:
    with testing.run(FIRST, now=NOON) as service:
        body = b"\n".join(json.dumps(payment(number)).encode() for number in range(3))
        requests = [(1_001, DECIDE_MANY, 0, body, 0), (1_002, DECIDE_MANY, 0, body, 0)]
        service._told.append(1_001)
        answers = {handle: body for handle, _, body, _ in service._step(requests)}
        again = service.decide_many("authorise", [payment(number) for number in range(3)])
        retried = [json.loads(line) for line in answers[1_002].splitlines()]
        assert [answer["timed_out"] for answer in retried] == [True] * 3
        assert [answer["timed_out"] for answer in again] == [True] * 3
        assert service.look_up("authorise", "p1")["late_decision"]["features"]["card_count_1h"] == 2


def test_a_line_that_was_decided_before_its_body_was_told_the_fallback_stays_decided() -> None:
    with testing.run(FIRST, now=NOON) as service:
        first = service.decide("authorise", payment(1))
        body = b"\n".join(json.dumps(payment(number)).encode() for number in range(3))
        alone = json.dumps(payment(1)).encode()
        service._told = [1_001]
        answers = service._step([(1_001, DECIDE_MANY, 0, body, 0), (1_002, DECIDE, 0, alone, 0)])
        told = next(json.loads(text) for handle, _, text, _ in answers if handle == 1_002)
        assert told == first
        assert service.decide("authorise", payment(1)) == first
        assert service.decide("authorise", payment(0))["timed_out"]


def test_a_line_that_waits_after_its_body_was_told_the_fallback_is_told_so_alone(tmp_path: Path) -> None:
    with testing.run(FIRST, now=NOON) as service:
        body = b"\n".join(json.dumps(payment(number)).encode() for number in range(3))
        alone = [json.dumps(each).encode() for each in (payment(1), payment(2, amount="1"), payment(9))]
        requests = [(1, DECIDE_MANY, 0, body, 0)]
        requests += [(2 + index, DECIDE, 0, each, 0) for index, each in enumerate(alone)]
        service._told = [1]
        answers = {handle: (status, text, flags) for handle, status, text, flags in service._step(requests)}
        status, text, flags = answers[2]
        told = json.loads(text)
        assert (status, told["timed_out"], told["cause"], flags & REPEAT) == (200, True, "deadline", REPEAT)
        # What came first under an id counts: here the event that was asked about alone has other content.
        assert json.loads(answers[3][1])["timed_out"] is False
        assert json.loads(answers[4][1])["features"]["card_count_1h"] == 2
        found = service.look_up("authorise", "p1")
        assert (found["timed_out"], found["late_decision"]["features"]["card_count_1h"]) == (True, 4)
        assert service.decide("authorise", payment(1)) == {**told, "took_ms": 0.0}


def test_a_line_that_waits_comes_after_another_event_of_its_id_in_the_cycle() -> None:
    with testing.run(FIRST, now=NOON) as service:
        body = b"\n".join(json.dumps(payment(number)).encode() for number in range(3))
        alone = [json.dumps(each).encode() for each in (payment(1, amount="1"), payment(1))]
        service._told = [1]
        requests = [(1, DECIDE_MANY, 0, body, 0), (2, DECIDE, 0, alone[0], 0), (3, DECIDE, 0, alone[1], 0)]
        answers = {handle: (status, json.loads(text)) for handle, status, text, _ in service._step(requests)}
        status, first = answers[2]
        assert (status, first["timed_out"]) == (200, False)
        status, second = answers[3]
        assert (status, second["error"]["code"]) == (409, "id_conflict")


@pytest.mark.parametrize(
    ("now", "words"),
    [(datetime(2026, 11, 1), "no zone"), ("2026-11-01T12:00", "no zone"), ("noon", "no time")],
)
def test_a_clock_that_no_instant_is_given_says_so(now: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"now (has|is) {words}"), testing.run(FIRST, now=now):
        pass
