"""What a caller is told, is told again, and can look up, wherever a crash falls around the model's answer."""

from __future__ import annotations

import itertools
import json
import struct
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import penstock as ps
from penstock import _native, testing
from penstock.decide.policy import Model
from penstock.errors import DefinitionError, InputError
from penstock.runtime import model_worker, replay
from penstock.runtime.gate import DECIDE, DECIDE_MANY, LOOKUP, MODEL, REPEAT, SCORES

NOON = "2026-11-01T12:00:00Z"
RULES = """
default = "approve"
outcomes = ["decline", "review", "approve"]
[[rule]]
name = "risky"
when = "score > 0.5"
outcome = "decline"
code = "R1"
"""
PAYMENT = {"payment_id": "p1", "card": "c1", "amount": "900.00", "paid_at": NOON}


def build(folder: Path, *, policy: bool = True) -> ps.Pipeline:
    class Payment(ps.Event):
        payment_id: str = ps.id()
        card: str
        amount: Decimal = ps.decimal(12, 2)
        paid_at: datetime = ps.event_time()

    (folder / "rules.toml").write_text(RULES)
    pipeline = ps.Pipeline("cards")
    payments = pipeline.topic("payments", Payment)

    @pipeline.model(version="1")
    def risk(batch: pl.DataFrame) -> pl.Series:
        return batch["amount"].cast(pl.Float64) / 1_000

    scored = payments.features(card_count=payments.by("card").past("1h").count())
    if policy:
        pipeline.policy("authorise", scored, rules=folder / "rules.toml", score=risk, fallback="review")
    return pipeline


# What happens to one payment, whose model is stuck, in order: each prefix of a path ends with a crash.
PATHS = [
    ["decide"],
    ["decide", "deadline"],
    ["decide", "deadline", "model"],
    ["decide", "model"],
    ["decide", "model", "deadline"],
]
BETWEEN = ["nothing", "snapshot", "another payment"]


def take(service: testing.Service, step: str) -> Any:
    if step == "decide":
        service.models_stuck = True
        with pytest.raises(testing.NoAnswer):
            service.decide("authorise", PAYMENT)
        return None
    if step == "deadline":
        return service.told_fallback()
    return service.models_answer()


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("path", PATHS, ids="-".join)
@pytest.mark.parametrize("crashes", [1, 2])
def test_a_crash_anywhere_around_the_models_answer_leaves_one_answer(
    tmp_path: Path, path: list[str], between: str, crashes: int
) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        answered: list[Any] = []
        for step in path:
            answered += take(service, step) or []
            if between == "snapshot":
                service.snapshot()
            if between == "another payment" and step == "decide":
                service.append("payments", [{**PAYMENT, "payment_id": f"{step}"}])
        for _ in range(crashes):
            service.crash()
        service.models_stuck = False
        told = service.decide("authorise", PAYMENT)
        found = service.look_up("authorise", "p1")
        late = found.pop("late_decision")
        if "deadline" in path:
            # The caller was told the fallback; what was decided after it stands beside it.
            assert (told["outcome"], told["cause"], told["timed_out"]) == ("review", "deadline", True)
            assert (told["score"], told["features"], told["offset"]) == (None, None, None)
            decided = ("decline", None) if "model" in path else ("review", "restart")
            assert (late["outcome"], late.get("cause")) == decided
        elif "model" in path:
            assert (told["outcome"], told["score"], late) == ("decline", 0.9, None)
            assert answered == [told]
        else:
            assert (told["outcome"], told["cause"], late) == ("review", "restart", None)
            assert told["timed_out"] is False
            assert told["offset"] == 0
        assert found == {key: value for key, value in told.items() if key != "took_ms"}
        assert service.started["undecided"] == 0 or crashes == 1
        # Told once, told for good.
        for _ in range(2):
            assert service.decide("authorise", PAYMENT) == told
            service.crash()
        assert service.decide("authorise", PAYMENT) == told
        assert service.decide("authorise", {**PAYMENT, "payment_id": "p9"})["outcome"] == "decline"


def test_every_event_without_a_decision_gets_one_and_no_decided_event_a_second(tmp_path: Path) -> None:
    for decided, open_ in itertools.product([0, 1, 3], [0, 1, 4]):
        with testing.run(build(tmp_path), now=NOON) as service:
            for number in range(decided):
                service.decide("authorise", {**PAYMENT, "payment_id": f"d{number}"})
            service.models_stuck = True
            for number in range(open_):
                with pytest.raises(testing.NoAnswer):
                    service.decide("authorise", {**PAYMENT, "payment_id": f"o{number}"})
            service.crash()
            assert service.started["undecided"] == open_
            causes = [service.look_up("authorise", f"o{number}")["cause"] for number in range(open_)]
            assert causes == ["restart"] * open_
            service.crash()
            assert service.started["undecided"] == 0


def test_a_policy_that_left_and_comes_back_closes_what_is_open_and_tells_the_same(tmp_path: Path) -> None:
    # With few ids in memory, those of the log go to files while the policy is away.
    with testing.run(build(tmp_path), now=NOON, settings={"memory_ids": 6}) as service:
        decided = service.decide("authorise", PAYMENT)
        service.models_stuck = True
        with pytest.raises(testing.NoAnswer):
            service.decide("authorise", {**PAYMENT, "payment_id": "open"})
        service.restart(build(tmp_path, policy=False))
        for number in range(20):
            service.append("payments", [{**PAYMENT, "payment_id": f"t{number}"}])
        service.snapshot()
        service.restart(build(tmp_path))
        assert service.decide("authorise", PAYMENT) == decided
        assert service.look_up("authorise", "open")["cause"] == "restart"


def test_a_topic_that_left_and_comes_back_closes_what_is_open_and_knows_its_events(tmp_path: Path) -> None:
    class Note(ps.Event):
        note_id: int = ps.id()
        noted_at: datetime = ps.event_time()

    def with_notes(pipeline: ps.Pipeline) -> ps.Pipeline:
        pipeline.topic("notes", Note)
        return pipeline

    with testing.run(with_notes(build(tmp_path)), now=NOON, settings={"memory_ids": 6}) as service:
        decided = service.decide("authorise", PAYMENT)
        service.append("payments", [{**PAYMENT, "payment_id": "taken"}])
        service.models_stuck = True
        with pytest.raises(testing.NoAnswer):
            service.decide("authorise", {**PAYMENT, "payment_id": "open"})
        service.restart(with_notes(ps.Pipeline("cards")))
        for number in range(20):
            service.append("notes", [{"note_id": number, "noted_at": NOON}])
        service.snapshot()
        service.restart(with_notes(build(tmp_path)))
        assert service.decide("authorise", PAYMENT) == decided
        assert service.append("payments", [{**PAYMENT, "payment_id": "taken"}])["repeated"] == 1
        assert service.look_up("authorise", "open")["cause"] == "restart"
        service.models_stuck = False
        assert service.decide("authorise", {**PAYMENT, "payment_id": "p9"})["features"] == {"card_count": 4}


def test_what_was_late_is_late_for_a_topic_that_had_left_too(tmp_path: Path) -> None:
    """Its newest event is younger than any snapshot that knows the topic."""

    class Note(ps.Event):
        note_id: int = ps.id()
        noted_at: datetime = ps.event_time()

    def without_payments() -> ps.Pipeline:
        pipeline = ps.Pipeline("cards")
        pipeline.topic("notes", Note)
        return pipeline

    with testing.run(build(tmp_path), now=NOON) as service:
        service.decide("authorise", {**PAYMENT, "paid_at": "2026-11-01T10:30:00Z"})
        service.snapshot()
        service.decide("authorise", {**PAYMENT, "payment_id": "newest"})
        service.restart(without_payments())
        service.append("notes", [{"note_id": 1, "noted_at": NOON}])
        service.snapshot()
        service.restart(build(tmp_path))
        late = service.decide("authorise", {**PAYMENT, "payment_id": "late", "paid_at": "2026-11-01T10:50:00Z"})
        assert late["late"] is True


def test_a_policy_that_moves_to_another_topic_is_refused(tmp_path: Path) -> None:
    class Note(ps.Event):
        note_id: int = ps.id()
        noted_at: datetime = ps.event_time()

    moved = ps.Pipeline("cards")
    notes = moved.topic("notes", Note)
    scored = notes.features(notes=notes.by("note_id").past("1h").count())
    (tmp_path / "moved.toml").write_text('default = "approve"\noutcomes = ["approve"]')
    moved.policy("authorise", scored, rules=tmp_path / "moved.toml", fallback="approve")
    with testing.run(build(tmp_path), now=NOON) as service:
        told = service.decide("authorise", PAYMENT)
        message = 'policy "authorise" decided on topic "payments" before, and now on "notes"'
        with pytest.raises(DefinitionError, match=message):
            service.restart(moved)
        service.restart(build(tmp_path))
        assert service.decide("authorise", PAYMENT) == told


def test_a_follower_compares_the_features_of_a_models_decisions_too(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        for number in range(5):
            service.decide("authorise", {**PAYMENT, "payment_id": f"d{number}"})
        service.models_stuck = True
        for number in range(7):
            with pytest.raises(testing.NoAnswer):
                service.decide("authorise", {**PAYMENT, "payment_id": f"o{number}"})
        assert service.compared == (5, 0)
        service.models_answer()
        assert service.compared == (12, 0)
        # What start says about an event has no features, and is not compared.
        service.models_stuck = True
        with pytest.raises(testing.NoAnswer):
            service.decide("authorise", {**PAYMENT, "payment_id": "x"})
        service.crash()
        assert service.compared == (12, 0)


def test_a_state_that_comes_out_otherwise_is_noticed_and_not_kept(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        for number in range(3):
            service.decide("authorise", {**PAYMENT, "payment_id": f"d{number}"})
        # The same policy's version over another window: what a broken state would look like.
        other = service.plan.to_json().replace('"include_current":true', '"include_current":false')
        follower = _native.Follower(other, service._disk)
        while follower.advance(10) == 10:
            pass
        assert follower.compared == (3, 3)
        with pytest.raises(ps.errors.PenstockError, match="otherwise than at the gate"):
            follower.snapshot()


def test_the_fallback_for_overload_is_not_recorded_and_its_retry_is_a_first_attempt(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        plan, settings = service.plan.to_json(), testing._core_settings({})
    data = tmp_path / "data"
    data.mkdir()
    gate = _native.Gate(plan, str(data), settings, lambda *_: None)
    gate.start()
    status, told = gate.overload(0, json.dumps(PAYMENT).encode(), 0)
    assert (status, json.loads(told)["cause"], json.loads(told)["offset"]) == (200, "overload", None)
    gate.submit([(101, LOOKUP, 0, b"p1", 0), (102, DECIDE, 0, json.dumps(PAYMENT).encode(), 0)])
    gate.stop()
    answers = {handle: (status, flags) for handle, status, _, flags in gate.take()}
    # Nothing was known of it; the retry is taken like a new event, and goes to the model.
    assert answers[101][0] == 404
    assert MODEL in [flags for _, flags in answers.values()]
    assert not any(flags & REPEAT for _, flags in answers.values())


def test_each_line_of_a_large_body_is_told_what_it_would_be_told_alone(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        plan, settings = service.plan.to_json(), testing._core_settings({})
    data = tmp_path / "data"
    data.mkdir()
    gate = _native.Gate(plan, str(data), settings, lambda *_: None)
    gate.start()
    lines = [json.dumps({**PAYMENT, "payment_id": f"p{number}"}).encode() for number in range(10_000)]
    for number in (0, 1, 4_095, 4_096, 9_999):
        lines[number] = b'{"payment_id": 7}' if number % 2 else b"no event"
    body = b"\r\n \n".join(lines) + b"\n"
    for one, all_lines in ((gate.fallback, gate.fallbacks), (gate.overload, gate.overloads)):
        told = [timeless(json.loads(line)) for line in all_lines(0, body, 5_000_000_000).splitlines()]
        assert told == [timeless(json.loads(one(0, line)[1])) for line in lines]
        assert json.loads(all_lines(0, lines[2], 5_000_000_000))["took_ms"] >= 5_000
        assert all_lines(0, b"\n \n", 0) == b""
    gate.stop()


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "took_ms"}


def scores_of(service: testing.Service) -> list[Any]:
    """The stuck model's answers, as requests to the gate."""
    waiting, service._unscored = service._unscored, []
    return [(number, SCORES, number, service._score(model, rows), 0) for number, model, rows in waiting]


def retry_of(handle: int) -> Any:
    return (handle, DECIDE, 0, json.dumps(PAYMENT).encode(), 0)


@pytest.mark.parametrize("first", ["scores", "retry"])
def test_a_retry_in_the_cycle_of_its_models_answer_is_told_the_decision(tmp_path: Path, first: str) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        take(service, "decide")
        scores = scores_of(service)
        requests = [*scores, retry_of(77)] if first == "scores" else [retry_of(77), *scores]
        answers = {handle: (status, json.loads(body)) for handle, status, body, _ in service._step(requests)}
        assert [status for status, _ in answers.values()] == [200, 200]
        assert answers[77][1]["outcome"] == answers[service._decided][1]["outcome"] == "decline"


def test_a_retry_waiting_with_its_first_is_told_the_fallback_that_the_first_was_told(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        take(service, "decide")
        first = service._decided
        service._step([retry_of(77)])
        service._told.append(first)
        answers = {handle: json.loads(body) for handle, _, body, _ in service._step(scores_of(service))}
        assert answers[77]["timed_out"]
        assert service.look_up("authorise", "p1")["late_decision"]["outcome"] == "decline"
        assert service.decide("authorise", PAYMENT)["timed_out"]


@pytest.mark.parametrize("kind", [DECIDE, DECIDE_MANY])
def test_who_asks_again_in_the_cycle_of_the_deadline_is_told_the_fallback_too(tmp_path: Path, kind: int) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        service.models_stuck = True
        event = json.dumps(PAYMENT).encode()
        assert service._step([(1_001, kind, 0, event, 0)]) == []
        service._told = [1_001]
        ((handle, _, text, _),) = service._step([(1_002, DECIDE, 0, event, 0)])
        told = json.loads(text)
        assert (handle, told["timed_out"]) == (1_002, True)
        service._step(scores_of(service))
        assert service.decide("authorise", PAYMENT)["timed_out"]


# More than the sections that one commit can have.
MANY = 70_000


def decide_many(service: testing.Service) -> list[int]:
    """Bodies of many payments, whose model is stuck: their handles."""
    service.models_stuck = True
    line = b'{"payment_id":"p%d","card":"c1","amount":"1.00","paid_at":"2026-11-01T12:00:00Z"}'
    handles = []
    for places in (range(MANY // 2), range(MANY // 2, MANY)):
        with pytest.raises(testing.NoAnswer):
            service._call(DECIDE_MANY, 0, b"\n".join(line % place for place in places))
        handles.append(service._handle)
    return handles


def test_more_undecided_events_than_a_commit_has_sections_are_closed_at_start(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        decide_many(service)
        service.crash()
        assert service.started["undecided"] == MANY
        for place in (0, MANY - 1):
            found = service.look_up("authorise", f"p{place}")
            assert (found["outcome"], found["cause"], found["offset"]) == ("review", "restart", place)
        service.crash()
        assert service.started["undecided"] == 0


def test_more_callers_than_a_commit_has_sections_are_told_the_fallback(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        service._told += decide_many(service)
        service._step([])
        for place in (0, MANY - 1):
            assert service.look_up("authorise", f"p{place}")["timed_out"]
        service._step(scores_of(service))
        assert service.look_up("authorise", f"p{MANY - 1}")["late_decision"]["outcome"] == "approve"


def test_a_late_event_is_late_in_what_a_restart_says_of_it(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        service.append("payments", [{**PAYMENT, "payment_id": "newest"}])
        service.models_stuck = True
        with pytest.raises(testing.NoAnswer):
            service.decide("authorise", {**PAYMENT, "paid_at": "2026-11-01T10:00:00Z"})
        service.crash()
        found = service.look_up("authorise", "p1")
        assert (found["cause"], found["late"]) == ("restart", True)


def test_what_was_told_is_shown_to_who_asks_in_the_same_cycle(tmp_path: Path) -> None:
    with testing.run(build(tmp_path), now=NOON) as service:
        take(service, "decide")
        service._told.append(service._decided)
        assert service.look_up("authorise", "p1")["timed_out"]


@pytest.mark.parametrize("answer", [[float("inf")], [float("nan")], [None], [0.75]])
def test_a_models_answer_means_the_same_in_replay_as_live(tmp_path: Path, answer: list[float | None]) -> None:
    model = Model("risk", "1", lambda batch: pl.Series(answer, dtype=pl.Float64))
    frame = pa.record_batch({"amount": [1.0]})
    live = model_worker.score(pl.DataFrame({"amount": [1.0]}), model.function)
    wanted = None if answer != [0.75] else 0.75
    assert replay.score(model, frame, pa.RecordBatch.from_arrays([], names=[])).column(0).to_pylist() == [wanted]
    assert (struct.unpack("<d", live)[0] == 0.75) == (wanted == 0.75)


def test_a_model_that_returns_no_series_is_refused_in_replay_as_live(tmp_path: Path) -> None:
    model = Model("risk", "1", lambda batch: batch["amount"].to_numpy())  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match=r'model "risk" failed: the model returned ndarray, not a polars Series'):
        replay.score(model, pa.record_batch({"amount": [1.0]}), pa.RecordBatch.from_arrays([], names=[]))


@pytest.mark.parametrize("between", ["nothing", "snapshot"])
def test_a_field_that_is_required_no_more_is_read_across_the_change(tmp_path: Path, between: str) -> None:
    """Events of both kinds are in the log that the starts read, side by side."""
    (tmp_path / "rules.toml").write_text('default = "approve"\noutcomes = ["approve"]')

    def app(memo: Any) -> ps.Pipeline:
        fields = {"payment_id": str, "card": str, "memo": memo, "paid_at": datetime}
        marked = {"payment_id": ps.id(), "paid_at": ps.event_time()}
        payment = type("Payment", (ps.Event,), {"__annotations__": fields, "__module__": __name__, **marked})
        pipeline = ps.Pipeline("cards")
        payments = pipeline.topic("payments", payment)
        card = payments.by("card")
        scored = payments.features(card_count=card.past("1h").count(), last_memo=card.past("1h").last("memo"))
        pipeline.policy("authorise", scored, rules=tmp_path / "rules.toml", fallback="approve")
        return pipeline

    def decide(number: int, memo: str | None) -> Any:
        event = {"payment_id": f"p{number}", "card": "c1", "memo": memo, "paid_at": NOON}
        return service.decide("authorise", event)["features"]

    with testing.run(app(str), now=NOON) as service:
        decide(1, "first")
        if between == "snapshot":
            service.snapshot()
        decide(2, "second")
        service.restart(app(str | None))
        assert decide(3, None) == {"card_count": 3, "last_memo": "second"}
        for count in (4, 5):
            service.crash()
            assert decide(count, "next") == {"card_count": count, "last_memo": "next"}
