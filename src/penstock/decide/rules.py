"""The rules file of a policy: outcomes, strongest first, and conditions in SQL.

    default  = "approve"
    outcomes = ["decline", "review", "approve"]
    [[rule]]
    name = "far_above_usual"
    when = "amount > 4 * card_mean_30d"
    outcome = "review"
    code = "R01"
    priority = 10

All rules are evaluated. Among those that fire the lowest priority decides, then the stronger outcome, then the order
in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from penstock.errors import DefinitionError
from penstock.process.expressions import Expression, parse_expression
from penstock.schema import BOOL, Type
from penstock.toml import parse_toml

PRIORITY = 100
OUTCOMES_MAX = 64
RULES_MAX = 10_000


@dataclass(frozen=True)
class Rule:
    name: str
    when: Expression
    outcome: str
    code: str
    priority: int


@dataclass(frozen=True)
class Rules:
    """A checked rules file; `rules` stand in the order in which they decide."""

    text: str
    outcomes: tuple[str, ...]
    default: str
    rules: tuple[Rule, ...]


def read_rules(path: Path, columns: Mapping[str, Type]) -> Rules:
    """Read and check a rules file against the columns that its policy has.

    Raises `DefinitionError`, naming the file, the line and the rule, for everything that could not be meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DefinitionError(f"could not read the rules file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DefinitionError(f"the rules file {path} is not UTF-8 text") from None
    return parse_rules(text, columns, name=path.name)


def parse_rules(text: str, columns: Mapping[str, Type], *, name: str = "rules") -> Rules:
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise DefinitionError(f"{name} is not TOML: {error}") from None
    _check_keys(table, {"default", "outcomes", "rule"}, name)
    outcomes = _read_outcomes(table, _key_place(text, "outcomes", name))
    default = table.get("default")
    if default not in outcomes:
        raise DefinitionError(f"{_key_place(text, 'default', name)}: default must be one of {_quoted(outcomes)}")
    lines = _rule_lines(text)
    entries = table.get("rule", [])
    if not isinstance(entries, list) or len(entries) > RULES_MAX:
        raise DefinitionError(f"{name}: rules are written as [[rule]], at most {RULES_MAX:,} of them")
    places = [f"rule {index}" for index in range(1, len(entries) + 1)]
    if len(lines) == len(entries):  # Rules may also be written in line, or a text hold what looks like one.
        places = [f"line {line}" for line in lines]
    rules = [
        _read_rule(entry, f"{name}, {place}", outcomes, columns)
        for entry, place in zip(entries, places, strict=True)
    ]
    _check_names(rules, places, name)
    strength = {outcome: rank for rank, outcome in enumerate(outcomes)}
    ordered = sorted(rules, key=lambda rule: (rule.priority, strength[rule.outcome]))
    return Rules(text, outcomes, default, tuple(ordered))


def _read_outcomes(table: dict[str, Any], place: str) -> tuple[str, ...]:
    outcomes = table.get("outcomes")
    if (
        not isinstance(outcomes, list)
        or not 1 <= len(outcomes) <= OUTCOMES_MAX
        or not all(isinstance(each, str) and each for each in outcomes)
        or len(set(outcomes)) != len(outcomes)
    ):
        raise DefinitionError(
            f"{place}: outcomes must be a list of different names, strongest first",
            hint='write for example outcomes = ["decline", "review", "approve"]',
        )
    return tuple(outcomes)


def _read_rule(
    entry: Any, place: str, outcomes: tuple[str, ...], columns: Mapping[str, Type]
) -> Rule:
    if not isinstance(entry, dict):
        raise DefinitionError(f"{place}: a rule is a table, written as [[rule]]")
    rule = entry.get("name")
    if not isinstance(rule, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", rule):
        raise DefinitionError(
            f"{place}: a rule needs a name", hint="1 to 100 letters, digits, or any of _ . : -"
        )
    place = f'{place}, rule "{rule}"'
    _check_keys(entry, {"name", "when", "outcome", "code", "priority"}, place)
    outcome, code, priority = entry.get("outcome"), entry.get("code", rule), entry.get("priority", PRIORITY)
    if outcome not in outcomes:
        raise DefinitionError(f"{place}: outcome must be one of {_quoted(outcomes)}")
    if not isinstance(code, str) or not code:
        raise DefinitionError(f"{place}: code must be text")
    if type(priority) is not int or not -(2**31) <= priority < 2**31:
        raise DefinitionError(f"{place}: priority must be a whole number")
    if not isinstance(entry.get("when"), str):
        raise DefinitionError(f"{place}: when must be SQL text")
    when = parse_expression(entry["when"], columns, wanted=BOOL, subject=place)
    return Rule(rule, when, outcome, code, priority)


def _check_keys(table: dict[str, Any], known: set[str], place: str) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f'did you mean "{close[0]}"?' if close else "there are: " + ", ".join(sorted(known))
            raise DefinitionError(f'{place}: "{key}" is unknown', hint=hint)


def _check_names(rules: list[Rule], places: list[str], name: str) -> None:
    first: dict[str, str] = {}
    for rule, place in zip(rules, places, strict=True):
        if rule.name in first:
            raise DefinitionError(f'{name}, {place}, rule "{rule.name}": {first[rule.name]} has a rule of this name')
        first[rule.name] = place


def _rule_lines(text: str) -> list[int]:
    """The lines on which rules begin; TOML's reader does not tell them."""
    lines = enumerate(text.splitlines(), start=1)
    return [number for number, line in lines if re.match(r"""\s*\[\[\s*(["']?)rule\1\s*\]\]""", line)]


def _key_place(text: str, key: str, name: str) -> str:
    """The file and, where this key of it begins a line before the rules, its line."""
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*\[", line):
            break
        if re.match(rf"""\s*(["']?){key}\1\s*=""", line):
            return f"{name}, line {number}"
    return name


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)
