"""What a rules file may say, and which of its rules decides."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock import testing
from penstock.decide.rules import parse_rules
from penstock.errors import DefinitionError
from penstock.schema import FLOAT64, INT64, TEXT

NOON = "2026-11-01T12:00:00Z"
OUTCOMES = ("block", "decline", "review", "approve")
COLUMNS = {"amount": INT64, "card": TEXT, "score": FLOAT64}


class Payment(ps.Event):
    payment_id: str = ps.id()
    fires: str
    amount: int | None
    paid_at: datetime = ps.event_time()


def pipeline_of(rules: str, folder: Path) -> ps.Pipeline:
    (folder / "rules.toml").write_text(rules)
    pipeline = ps.Pipeline("rules")
    payments = pipeline.topic("payments", Payment)
    pipeline.policy("authorise", payments, rules=folder / "rules.toml", fallback="approve")
    return pipeline


def rule_text(name: str, when: str, outcome: str, priority: int | None) -> str:
    chosen = "" if priority is None else f"priority = {priority}\n"
    return f'[[rule]]\nname = "{name}"\nwhen = "{when}"\noutcome = "{outcome}"\ncode = "C-{name}"\n{chosen}'


RULES = st.lists(
    st.tuples(st.sampled_from(OUTCOMES), st.none() | st.sampled_from((-5, 0, 10, 99, 100, 101))),
    min_size=1,
    max_size=9,
)


@settings(max_examples=40, deadline=None)
@given(RULES, st.sampled_from(OUTCOMES), st.data())
def test_the_lowest_priority_decides_then_the_stronger_outcome_then_the_order(
    tmp_path_factory: pytest.TempPathFactory, rules: list[tuple[str, int | None]], default: str, data: st.DataObject
) -> None:
    names = [f"r{index}" for index in range(len(rules))]
    text = f'default = "{default}"\noutcomes = {list(OUTCOMES)}\n'.replace("'", '"') + "".join(
        rule_text(name, f"fires like '%{name}%'", outcome, priority)
        for name, (outcome, priority) in zip(names, rules, strict=True)
    )
    fired = data.draw(st.lists(st.sets(st.sampled_from(names)), min_size=1, max_size=4))
    with testing.run(pipeline_of(text, tmp_path_factory.getbasetemp()), now=NOON) as service:
        for number, chosen in enumerate(fired):
            event = {"payment_id": f"p{number}", "fires": " ".join(sorted(chosen)), "paid_at": NOON}
            answer = service.decide("authorise", event)
            place = {name: index for index, name in enumerate(names)}
            ranked = sorted(
                chosen,
                key=lambda name: (
                    100 if (priority := rules[place[name]][1]) is None else priority,
                    OUTCOMES.index(rules[place[name]][0]),
                    place[name],
                ),
            )
            assert answer["reasons"] == [{"rule": name, "code": f"C-{name}"} for name in ranked]
            assert answer["outcome"] == (rules[place[ranked[0]]][0] if ranked else default)


def test_a_rule_that_is_null_does_not_fire(tmp_path: Path) -> None:
    text = 'default = "approve"\noutcomes = ["decline", "approve"]\n' + "".join(
        rule_text(name, when, "decline", None)
        for name, when in {
            "much": "amount > 5",
            "not_much": "not (amount > 5)",
            "divided": "1 / (amount - amount) > 0",
            "unknown": "amount is null",
        }.items()
    )
    with testing.run(pipeline_of(text, tmp_path), now=NOON) as service:

        def fired(number: int, amount: int | None) -> list[str]:
            event: dict[str, Any] = {"payment_id": f"p{number}", "fires": "", "amount": amount, "paid_at": NOON}
            return [reason["rule"] for reason in service.decide("authorise", event)["reasons"]]

        assert fired(1, 6) == ["much"]
        assert fired(2, 5) == ["not_much"]
        assert fired(3, None) == ["unknown"]
        assert service.stats["faults"] == 2


GOOD = 'default = "approve"\noutcomes = ["decline", "approve"]\n' + rule_text("r1", "amount > 1", "decline", 7)


def test_a_code_is_the_rule_s_name_where_none_is_given() -> None:
    rules = parse_rules(GOOD.replace('code = "C-r1"\n', ""), COLUMNS)
    assert (rules.rules[0].code, rules.rules[0].priority) == ("r1", 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"decline", "approve"', '"approve", "approve"'), "line 2: outcomes must be a list of different names"),
        (('default = "approve"', 'default = "aprove"'), "line 1: default must be one of"),
        (('outcomes = ["decline", "approve"]\n', ""), "outcomes must be a list"),
        (('default = "approve"\n', ""), "default must be one of"),
        (("default", "defualt"), '"defualt" is unknown'),
        (('"r1"', '"r 1"'), "line 3: a rule needs a name"),
        (('"amount > 1"', '"amount >"'), 'line 3, rule "r1": '),
        (('"amount > 1"', "true"), 'line 3, rule "r1": when must be SQL text'),
        (("priority = 7", "priority = 7.5"), 'line 3, rule "r1": priority must be a whole number'),
        (("priority = 7", "priority = true"), 'line 3, rule "r1": priority must be a whole number'),
        (('code = "C-r1"', "code = 1"), 'line 3, rule "r1": code must be text'),
        (('"amount > 1"', '"median(amount) > 1"'), 'rule "r1": '),
        (("[[rule]]", "[rule]"), "rules are written as [[rule]]"),
    ],
)
def test_what_could_not_be_meant_is_refused_with_its_place(change: tuple[str, str], message: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(DefinitionError) as refused:
        parse_rules(GOOD.replace(*change, 1), COLUMNS, name="rules.toml")
    assert refused.value.message.startswith("rules.toml")
    assert message in refused.value.message


@pytest.mark.parametrize("form", ["[[rule]]", '[[ "rule" ]]', "[['rule']]", "in line"])
def test_two_rules_of_one_name_are_both_named_with_their_places(form: str) -> None:
    if form == "in line":
        entry = '{name = "r1", when = "amount > 1", outcome = "decline"}'
        text = f'default = "approve"\noutcomes = ["decline", "approve"]\nrule = [{entry}, {entry}]\n'
        message = 'rules, rule 2, rule "r1": rule 1 has a rule of this name'
    else:
        text = (GOOD + "\n" + GOOD.split("\n", 2)[2]).replace("[[rule]]", form)
        message = 'rules, line 10, rule "r1": line 3 has a rule of this name'
    with pytest.raises(DefinitionError) as refused:
        parse_rules(text, COLUMNS)
    assert message in refused.value.message


def test_a_policy_s_version_is_that_of_what_it_says(tmp_path: Path) -> None:
    """The same rules have one version in every start; another rule, another one, in each answer from there on."""
    other = GOOD.replace("amount > 1", "amount > 2")
    versions = []
    for number, text in enumerate((GOOD, GOOD, other)):
        with testing.run(pipeline_of(text, tmp_path), now=NOON) as service:
            event = {"payment_id": f"p{number}", "fires": "", "amount": 1, "paid_at": NOON}
            versions.append(service.decide("authorise", event)["policy_version"])
    assert versions[0] == versions[1] != versions[2]


def test_a_fallback_is_one_of_the_outcomes(tmp_path: Path) -> None:
    pipeline = pipeline_of(GOOD.replace('"approve"', '"accept"'), tmp_path)
    with pytest.raises(DefinitionError, match='fallback "approve" is none of the outcomes'):
        testing.Service(pipeline, now=datetime.fromisoformat(NOON))


def test_every_order_of_equal_rules_gives_all_reasons(tmp_path: Path) -> None:
    for order in itertools.permutations(("a", "b", "c")):
        text = 'default = "approve"\noutcomes = ["decline", "approve"]\n'
        text += "".join(rule_text(name, "true", "decline", None) for name in order)
        with testing.run(pipeline_of(text, tmp_path), now=NOON) as service:
            event = {"payment_id": "p", "fires": "", "paid_at": NOON}
            assert [each["rule"] for each in service.decide("authorise", event)["reasons"]] == list(order)
