"""What each function gives, what each mistake is told, and what never goes wrong."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from contextlib import suppress
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import DefinitionError, PenstockError
from penstock.process.expressions import parse_expression
from penstock.schema import BOOL, FLOAT64, INT64, TEXT, TIMESTAMP, Type, decimal_type
from process.evaluation import (
    Columns,
    evaluate,
    evaluate_plans,
    faults_of,
    parse,
    query_duckdb,
    value_of,
)

TYPES: dict[str, Type] = {
    "amount": decimal_type(12, 2),
    "wide": decimal_type(38, 20),
    "visits": INT64,
    "mean": FLOAT64,
    "country": TEXT,
    "paid_at": TIMESTAMP,
    "known": BOOL,
    "order": INT64,
}


def type_of(text: str) -> str:
    return str(parse_expression(text, TYPES, subject="test").type)


# What an expression is


def test_an_expression_has_its_type_and_the_columns_in_order_of_first_use() -> None:
    text = "mean > 4 * amount and (visits > 3 or amount > 2)"
    expression = parse_expression(text, TYPES, wanted=BOOL, subject="test")
    assert expression.text == text
    assert expression.type == BOOL
    assert expression.columns == ("mean", "amount", "visits")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", "int64"),
        ("1.50", "decimal(3, 2)"),
        (".5", "decimal(2, 1)"),
        ("1e3", "float64"),
        ("0." + "1" * 40, "float64"),
        ("'a'", "text"),
        ("null", "int64"),
        ("timestamp '2024-01-01'", "timestamp"),
        ("visits + 1", "int64"),
        ("visits + amount", "decimal(22, 2)"),
        ("amount + 1", "decimal(13, 2)"),
        ("amount * amount", "decimal(24, 4)"),
        ("amount * visits", "decimal(31, 2)"),
        ("wide + 1", "decimal(38, 20)"),
        ("wide * amount", "decimal(38, 22)"),
        ("amount % 0.3", "decimal(12, 2)"),
        ("amount + mean", "float64"),
        ("visits / 2", "float64"),
        ("-amount", "decimal(12, 2)"),
        ("abs(visits)", "int64"),
        ("round(amount)", "decimal(12, 0)"),
        ("round(amount, 1)", "decimal(12, 1)"),
        ("round(amount, 5)", "decimal(12, 2)"),
        ("round(visits, -2)", "int64"),
        ("floor(amount)", "decimal(12, 0)"),
        ("ceil(visits)", "float64"),
        ("coalesce(visits, 1.5)", "decimal(20, 1)"),
        ("coalesce(amount, mean)", "float64"),
        ("least(1, 2.25)", "decimal(3, 2)"),
        ("nullif(visits, 1.0)", "int64"),
        ("case when known then 1 else amount end", "decimal(12, 2)"),
        ("case when known then null else 'x' end", "text"),
        ("coalesce(paid_at, '2024-01-01')", "timestamp"),
        ("length(country)", "int64"),
        ("extract(epoch from paid_at)", "float64"),
        ("extract(year from paid_at)", "int64"),
        ("date_trunc('week', paid_at)", "timestamp"),
    ],
)
def test_an_expression_has_the_type_that_duckdb_gives_it(text: str, expected: str) -> None:
    assert type_of(text) == expected


def test_what_is_wanted_as_a_float_may_be_any_number() -> None:
    for text in ("1", "amount", "mean", "null"):
        assert parse_expression(text, TYPES, wanted=FLOAT64, subject="test").type == FLOAT64


def test_a_null_is_of_the_type_that_is_wanted() -> None:
    assert parse_expression("null", TYPES, wanted=BOOL, subject="test").type == BOOL


def test_a_column_whose_name_is_a_word_of_sql_is_written_in_double_quotes() -> None:
    columns = {"group": INT64, "two words": INT64}
    expression = parse_expression('"group" + "two words"', columns, subject="test")
    assert expression.columns == ("group", "two words")
    with pytest.raises(DefinitionError, match='write "from" in double quotes'):
        parse_expression("1 + from", {"from": INT64}, subject="test")


def test_a_long_chain_of_conditions_is_one_operation() -> None:
    text = " or ".join(f"visits = {number}" for number in range(5000))
    plan = parse_expression(text, TYPES, wanted=BOOL, subject="test").plan
    assert plan[-1]["op"] == "or"
    assert len(plan[-1]["args"]) == 5000


def test_an_operation_that_occurs_twice_is_in_the_plan_once() -> None:
    plan = parse_expression("visits * 2 > 4 or visits * 2 < 1", TYPES, subject="test").plan
    assert [row["op"] for row in plan].count("multiply") == 1


def test_nothing_heavy_is_imported_before_an_expression_is_parsed() -> None:
    code = "import sys, penstock.process.expressions as e; assert 'sqlglot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# What a mistake is told

WHAT_THERE_IS = "there are + - * / %"

MISTAKES = [
    ("amout > 4", 'there is no column "amout"', "amout", 'did you mean "amount"?'),
    ("Country = 'FR'", 'there is no column "Country"', "Country", 'did you mean "country"?'),
    ("zzz > 4", 'there is no column "zzz"', "zzz", "there are amount, wide"),
    ("visits > zzz", 'there is no column "zzz"', "zzz", "there are amount"),
    ("substrr(country, 1)", "there is no function substrr", "substrr", "did you mean substr?"),
    ("pow(mean, 2)", "there is no function pow", "pow", "did you mean power?"),
    ("ceiling(mean)", "there is no function ceiling", "ceiling", WHAT_THERE_IS),
    ("if(known, 1, 2)", "there is no function if", "if", WHAT_THERE_IS),
    ("cast(visits as double)", "there is no function cast", "cast", WHAT_THERE_IS),
    ("sum(visits) > 1", "sum is an aggregate", "sum", "aggregates are methods"),
    ("count(*) > 1", "count is an aggregate", "count", "aggregates are methods"),
    ("abs(visits) over ()", "a window function is not part", "abs", WHAT_THERE_IS),
    ("abs(visits) filter (where known)", "an aggregate is not part", "abs", WHAT_THERE_IS),
    ("visits in (select 1)", "a subquery is not part", "1", WHAT_THERE_IS),
    ("(select 1)", "a subquery is not part", "1", WHAT_THERE_IS),
    ("lower(distinct country)", "`distinct` is not part", "country", WHAT_THERE_IS),
    ("visits::double", ":: is not an operator", "::", WHAT_THERE_IS),
    ("country || 'a'", "|| is not an operator", "||", WHAT_THERE_IS),
    ("visits ** 2", "** is not an operator", "**", WHAT_THERE_IS),
    ("visits // 2", "// is not an operator", "//", WHAT_THERE_IS),
    ("visits > $1", "$ is not an operator", "$", WHAT_THERE_IS),
    ("1; 2", "; is not an operator", ";", WHAT_THERE_IS),
    ("country ilike 'a'", "ilike is not part", "country ilike 'a'", WHAT_THERE_IS),
    ("t.visits > 1", "a qualified name is not written so", "t.visits", WHAT_THERE_IS),
    ("*", "* is not part", "*", WHAT_THERE_IS),
    ("known is true", "is tests for null only", "known", "a bool is a condition itself"),
    ("date '2024-01-01'", "only TIMESTAMP '…'", "'2024-01-01'", WHAT_THERE_IS),
    ("visits and known", "and takes bool, not int64", "visits", None),
    ("known or visits", "or takes bool, not int64", "visits", None),
    ("not visits", "not takes bool, not int64", "visits", None),
    ("case when visits then 1 end", "case when takes bool, not int64", "visits", None),
    ("country + 1", "+ takes numbers, not text and int64", "country + 1", None),
    ("known * 2", "* takes numbers, not bool and int64", "known * 2", None),
    ("-country", "- takes numbers, not text", "country", None),
    ("paid_at - paid_at", "- takes numbers, not timestamp and", "paid_at - paid_at", "seconds"),
    ("visits = 'a'", "cannot compare int64 with text", "visits = 'a'", None),
    ("known = 1", "cannot compare bool with int64", "known = 1", None),
    ("amount > country", "cannot compare decimal(12, 2) with text", "amount > country", None),
    ("visits in (1, 'a')", "cannot compare int64 with text", "visits in (1, 'a')", None),
    ("visits between 1 and 'a'", "cannot compare int64 with text", None, None),
    ("nullif(visits, 'a')", "cannot compare int64 with text", None, None),
    ("coalesce(visits, 'a')", "coalesce cannot join int64 with text", None, None),
    ("least(known, 1)", "least cannot join bool with int64", None, None),
    ("case when known then 1 else 'a' end", "case cannot join int64 with text", None, None),
    ("lower(visits)", "lower takes (text), not (int64)", None, None),
    ("substr(country, 'a')", "substr takes (text, int64), not (text, text)", None, None),
    ("ln(country)", "ln takes (float64), not (text)", None, None),
    ("abs(country)", "abs takes numbers, not text", None, None),
    ("round(country, 1)", "round takes numbers, not text", None, None),
    ("round(mean, visits)", "the second argument of round", None, "round(x, 2)"),
    ("country like visits", "like takes text, not int64", None, None),
    ("country like 'a$' escape '$'", "ends with its escape character", None, None),
    ("country like 'a' escape 'ab'", "escape takes one character", None, None),
    ("extract(year from country)", "extract(year from …) takes timestamp, not text", None, None),
    ("extract(century from paid_at)", "extract knows no 'century'", None, "it knows year"),
    ("date_trunc('dow', paid_at)", "date_trunc knows no 'dow'", None, "it knows year"),
    ("date_trunc(country, paid_at)", "the first argument of date_trunc", None, None),
    ("substr(country)", "substr takes 2 or 3 arguments, not 1", None, None),
    ("abs(1, 2)", "abs takes 1 argument, not 2", None, None),
    ("power(1)", "power takes 2 arguments, not 1", None, None),
    ("coalesce()", "coalesce takes at least 1 argument, not 0", None, None),
    ("visits in ()", "in takes a list", None, None),
    ("visits = 1 = known", "comparisons cannot be chained", "visits = 1", "parentheses"),
    ("wide * wide", "needs 40 decimal places, and 38 is the most", "wide * wide", "round"),
    ("9223372036854775808", "an integer has 64 bits", "9223372036854775808", ".0"),
    ("1" * 10_000, "an integer has 64 bits", None, ".0"),
    ("1e400", "beyond what a float64 can hold", "1e400", None),
    ("1e > 0", "1e is not a number", "1e", None),
    ("paid_at > 'soon'", "'soon' is not a timestamp", None, "2026-11-01"),
    ("paid_at > '2024-02-30'", "'2024-02-30' is not a timestamp", None, None),
    ("paid_at > '2024-01-01 00:00:00.1234567'", "is not a timestamp", None, None),
    ("visits +", "something is missing after +", "+", None),
    ("(visits", ") is wanted after visits", "visits", None),
    ("case when known then 1", "end after case is wanted", "1", None),
    ("visits mean", "mean is not expected here", "mean", None),
    ("visits > 'abc", "a quote is not closed", None, "'single quotes'"),
    ("", "there is no expression here", None, None),
    (" -- nothing", "there is no expression here", None, None),
]


@pytest.mark.parametrize(("text", "message", "place", "hint"), MISTAKES)
def test_a_mistake_is_told_with_its_place_and_a_hint(
    text: str, message: str, place: str | None, hint: str | None
) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_expression(text, TYPES, subject='rule "r"')
    error = caught.value
    assert error.message.startswith('rule "r": ')
    assert message in error.message
    assert hint is None or hint in (error.hint or "")
    if place is not None:
        assert _marked(error.message).startswith(place)


def _marked(message: str) -> str:
    """What the carets stand under, to the end of its line."""
    *_, line, carets = message.split("\n")
    return line[carets.index("^") :]


def test_a_mistake_on_a_later_line_shows_that_line() -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_expression("visits > 1\n\tand foo > 2", TYPES, subject='rule "r"')
    assert caught.value.message == (
        'rule "r": there is no column "foo" (line 2, character 6)\n    \tand foo > 2\n    \t    ^^^'
    )


def test_another_type_than_wanted_is_told() -> None:
    with pytest.raises(DefinitionError, match="this is int64, and bool is wanted"):
        parse_expression("visits + 1", TYPES, wanted=BOOL, subject="test")


def test_an_expression_nested_too_deeply_is_told() -> None:
    with pytest.raises(DefinitionError, match="nested too deeply"):
        parse_expression("(" * 2000 + "1" + ")" * 2000, TYPES, subject="test")


WORDS = """and or not is null in between like escape case when then else end 1.5 1e3 'a'
timestamp extract year from abs coalesce select over distinct cast as interval :: || x -> exists
( ) + - * / % = < > , . ' " [ ] { } : ; $ ? @ ! | & ^ ~ # é 1 --""".split()  # noqa: SIM905


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*TYPES, *WORDS]), max_size=12))
def test_any_text_is_an_expression_or_a_definition_error(words: list[str]) -> None:
    try:
        parse_expression(" ".join(words), TYPES, subject="test")
    except DefinitionError as error:
        assert error.message.startswith("test: ")


# What each function gives

VALUES = [
    ("7 + 2", 9),
    ("7 - 9", -2),
    ("7 * 2", 14),
    ("7 / 2", 3.5),
    ("-7 % 3", -1),
    ("7.5 % 2", (Decimal("1.5"), -1)),
    ("5.5e0 % 2", 1.5),
    ("- -3", 3),
    (
        "-(123456789012345678901234567890123456.78)",
        (Decimal("-123456789012345678901234567890123456.78"), -2),
    ),
    ("-9223372036854775808", -(2**63)),
    ("1.10 + 2", (Decimal("3.10"), -2)),
    ("1.5 * 1.5", (Decimal("2.25"), -2)),
    ("1.5 + 1e0", 2.5),
    ("1 == 1", True),
    ("1 = 1.0", True),
    ("1 != 1", False),
    ("1 <> 2", True),
    ("'b' > 'a'", True),
    ("'é' > 'z'", True),
    ("true > false", True),
    ("timestamp '2024-01-01 00:00:00+02:00' < '2023-12-31T23:00:00Z'", True),
    ("9007199254740993 = 9007199254740992e0", True),
    ("9007199254740993 = 9007199254740992.0", False),
    ("not null", None),
    ("null is null", True),
    ("1 is not null", True),
    ("null = null", None),
    ("2 in (1, 2)", True),
    ("3 in (1, null)", None),
    ("3 not in (1, 2)", True),
    ("'a' in ('a', 'b')", True),
    ("true in (false, true)", True),
    ("2 between 1 and 3", True),
    ("2 between null and 1", False),
    ("2 not between 1 and null", None),
    ("'50%' like '50$%' escape '$'", True),
    ("'50x' like '50$%' escape '$'", False),
    ("'héllo' like 'h_l%'", True),
    ("'abcbcd' like '%bcd'", True),
    ("'a' not like 'b%'", True),
    ("'A' like 'a'", False),
    ("case when false then 1 when true then 2 end", 2),
    ("case when null then 1 end", None),
    ("case 2 when 1 then 'a' when 2 then 'b' else 'c' end", "b"),
    ("case null when null then 'a' else 'b' end", "b"),
    ("abs(-1.5)", (Decimal("1.5"), -1)),
    ("round(2.5e0)", 3.0),
    ("round(-2.5)", (Decimal("-3"), 0)),
    ("round(2.345, 2)", (Decimal("2.35"), -2)),
    ("round(15, -1)", 20),
    ("round(-14, -1)", -10),
    ("round(1234.5e0, -2)", 1200.0),
    ("floor(-1.5)", (Decimal("-2"), 0)),
    ("ceil(-1.5)", (Decimal("-1"), 0)),
    ("floor(1)", 1.0),
    ("least(3, null, 2)", 2),
    ("greatest('a', 'b', null)", "b"),
    ("least(null, null)", None),
    ("coalesce(null, 2, 3)", 2),
    ("nullif(1, 1.0)", None),
    ("nullif(1, 2)", 1),
    ("nullif(null, 2)", None),
    ("ln(1)", 0.0),
    ("exp(0)", 1.0),
    ("sqrt(16)", 4.0),
    ("power(2, 10)", 1024.0),
    ("lower('ÀB')", "àb"),
    ("upper('straße')", "STRAẞE"),
    ("length('é👍')", 2),
    ("substr('héllo', 2, 3)", "éll"),
    ("substr('héllo', -3, 2)", "ll"),
    ("substr('héllo', 0, 2)", "h"),
    ("substr('héllo', 4, -2)", "él"),
    ("substr('héllo', 2)", "éllo"),
    ("starts_with('abc', 'ab')", True),
    ("extract(year from timestamp '2024-12-30 12:34:56.789')", 2024),
    ("extract(quarter from timestamp '2024-12-30 12:34:56.789')", 4),
    ("extract(month from timestamp '2024-12-30 12:34:56.789')", 12),
    ("extract(day from timestamp '2024-12-30 12:34:56.789')", 30),
    ("extract(hour from timestamp '2024-12-30 12:34:56.789')", 12),
    ("extract(minute from timestamp '2024-12-30 12:34:56.789')", 34),
    ("extract(second from timestamp '2024-12-30 12:34:56.789')", 56),
    ("extract(week from timestamp '2024-12-30')", 1),
    ("extract(dow from timestamp '2024-12-29')", 0),
    ("extract(isodow from timestamp '2024-12-29')", 7),
    ("extract(doy from timestamp '2024-12-31')", 366),
    ("extract(epoch from timestamp '1970-01-01 00:00:01.5')", 1.5),
    ("date_trunc('month', timestamp '1970-01-31 05:00')", 0),
    ("date_trunc('week', timestamp '1970-01-01')", -259_200_000_000),
]


@pytest.mark.parametrize(("text", "expected"), VALUES)
def test_each_function_gives_its_value(text: str, expected: Any) -> None:
    value = value_of(text)
    assert value == expected
    assert type(value) is type(expected)


FAULTS = [
    "9223372036854775807 + 1",
    "-9223372036854775808 - 1",
    "9223372036854775807 * 2",
    "-(-9223372036854775808 + 0)",
    "abs(-9223372036854775808)",
    "round(9223372036854775807, -1)",
    "1 % 0",
    "-9223372036854775808 % -1",
    "1 / 0",
    "0 / 0",
    "1.5 / 0.0",
    "1.5 % 0",
    "1e0 % 0",
    "1e308 * 10",
    "1e308 + 1e308",
    "-1e308 - 1e308",
    "ln(0)",
    "ln(-1)",
    "exp(1000)",
    "sqrt(-1)",
    "power(-2, 0.5)",
    "power(0, -1)",
    "9999999999999999999999999999999999999.0 * 1000.0",
    "9999999999999999999999999999999999999.9 + 9999999999999999999999999999999999999.9",
    "substr('a', 4294967296)",
    "substr('a', 1, -4294967297)",
]


@pytest.mark.parametrize("text", FAULTS)
def test_what_has_no_finite_value_is_null_and_counted_once_a_row(text: str) -> None:
    rows: Columns = {"n": (INT64, [1, 2, 3])}
    assert evaluate(text, rows) == [None] * 3
    assert faults_of(text, rows) == 3


def test_a_fault_in_a_branch_that_is_not_taken_is_not_counted() -> None:
    rows: Columns = {"n": (INT64, [0, 1, None])}
    assert faults_of("case when n <> 0 then 1 / n end", rows) == 0
    assert faults_of("n <> 0 and 1 / n > 2", rows) == 0
    assert faults_of("coalesce(1 / n, 0)", rows) == 1


def test_letters_change_as_in_duckdb() -> None:
    # Later scripts are in newer editions of Unicode than DuckDB's.
    letters = [chr(code) for code in range(1, 0x2000) if chr(code) not in "\u019b\u0264Ᲊᲊ"]
    rows: Columns = {"s": (TEXT, letters)}
    for text in ("lower(s)", "upper(s)", "length(s)"):
        assert evaluate(text, rows) == query_duckdb([text], rows)[0]


# Decimals against Python's own

EXACT = Context(prec=100)


@st.composite
def decimal_columns(draw: Any) -> tuple[Type, list[Decimal]]:
    scale = draw(st.integers(0, 38))
    precision = draw(st.integers(max(1, scale), 38))
    limit = 10**precision - 1
    numbers = st.one_of(st.integers(-limit, limit), st.sampled_from([0, 1, -1, limit, -limit]))
    unscaled = [draw(numbers) for _ in range(4)]
    values = [Decimal(number).scaleb(-scale, EXACT) for number in unscaled]
    return decimal_type(precision, scale), values


def _remainder(left: Decimal, right: Decimal) -> Decimal | None:
    return EXACT.remainder(left, right) if right else None


def _fitting(value: Decimal, kind: Type) -> Any:
    """The value at its type's scale, or null where that needs more digits than there are."""
    scaled = value.quantize(Decimal(1).scaleb(-kind.scale), context=EXACT)
    assert scaled == value
    fits = value.copy_abs() < Decimal(10) ** (kind.precision - kind.scale)
    return (scaled, -kind.scale) if fits else None


@settings(max_examples=200, deadline=None)
@given(decimal_columns(), decimal_columns(), st.sampled_from("+-*%"))
def test_decimal_arithmetic_is_exact_to_38_digits(
    left: tuple[Type, list[Decimal]], right: tuple[Type, list[Decimal]], sign: str
) -> None:
    columns: Columns = {"l": left, "r": right}
    if sign == "*" and left[0].scale + right[0].scale > 38:
        with pytest.raises(DefinitionError, match="38 is the most"):
            parse("l * r", columns)
        return
    operation = {"+": EXACT.add, "-": EXACT.subtract, "*": EXACT.multiply, "%": _remainder}[sign]
    kind = parse(f"l {sign} r", columns).type
    exact = [operation(one, other) for one, other in zip(left[1], right[1], strict=True)]
    expected = [None if value is None else _fitting(value, kind) for value in exact]
    assert evaluate(f"l {sign} r", columns) == expected
    assert faults_of(f"l {sign} r", columns) == expected.count(None)


@settings(max_examples=100, deadline=None)
@given(decimal_columns(), decimal_columns())
def test_decimals_of_any_scales_compare_exactly(
    left: tuple[Type, list[Decimal]], right: tuple[Type, list[Decimal]]
) -> None:
    # Beside chance, neighbours: the right column's values as near to the left's as it can.
    columns: Columns = {"l": left, "r": right}
    pairs = list(zip(left[1], right[1], strict=True))
    assert evaluate("l < r", columns) == [one < other for one, other in pairs]
    assert evaluate("l = r", columns) == [one == other for one, other in pairs]
    assert evaluate("l >= r", columns) == [one >= other for one, other in pairs]


@settings(max_examples=100, deadline=None)
@given(decimal_columns(), st.integers(-45, 45))
def test_decimals_round_half_away_from_zero(
    column: tuple[Type, list[Decimal]], digits: int
) -> None:
    columns: Columns = {"d": column}
    kind = parse(f"round(d, {digits})", columns).type
    if digits >= column[0].scale:
        expected = [_fitting(value, kind) for value in column[1]]
    else:
        expected = [_fitting(_rounded(value, digits), kind) for value in column[1]]
    assert evaluate(f"round(d, {digits})", columns) == expected


def _rounded(value: Decimal, digits: int) -> Decimal:
    unit = Decimal(1).scaleb(-digits)
    try:
        return value.quantize(unit, rounding=ROUND_HALF_UP, context=EXACT)
    except InvalidOperation:
        return Decimal(0)


@settings(max_examples=100, deadline=None)
@given(decimal_columns())
def test_a_decimal_becomes_the_float_that_its_text_is(column: tuple[Type, list[Decimal]]) -> None:
    columns: Columns = {"d": column, "one": (FLOAT64, [1.0] * 4)}
    assert evaluate("d * one", columns) == [float(value) for value in column[1]]


# Plans that nobody should send


def _everything() -> Columns:
    return {
        "amount": (decimal_type(12, 2), [Decimal("1.25"), None, Decimal("-9999999999.99")]),
        "wide": (decimal_type(38, 20), [None, Decimal(0), Decimal("1e17")]),
        "visits": (INT64, [None, -(2**63), 2**63 - 1]),
        "mean": (FLOAT64, [0.0, None, 1e308]),
        "country": (TEXT, ["é", "", None]),
        "paid_at": (TIMESTAMP, [-(2**63), 2**63 - 1, None]),
        "known": (BOOL, [True, None, False]),
        "order": (INT64, [0, 1, 2]),
    }


PLANS = [
    "case when known then round(amount, 1) else least(amount * 2.5, wide) end",
    "substr(upper(country), visits, order) like '%$_' escape '$'",
    "date_trunc('year', paid_at) > '2024-01-01' or extract(week from paid_at) in (1, 2, null)",
    "coalesce(power(mean, visits) / ln(amount), floor(wide % 3), 1e3)",
    "not (visits between 1 and order) and (abs(-visits) % order) is null",
    "starts_with(lower(country), 'a') or length(country) = 1.5",
]


@pytest.mark.parametrize("text", PLANS)
def test_a_damaged_plan_is_refused_or_evaluated_and_never_a_panic(text: str) -> None:
    columns = _everything()
    plan = parse(text, columns).plan
    evaluate_plans([("value", plan)], columns)
    rng = random.Random(text)
    for _ in range(300):
        damaged = copy.deepcopy(plan)
        for _ in range(rng.randint(1, 3)):
            _damage(rng, damaged)
        with suppress(PenstockError):
            evaluate_plans([("value", damaged)], columns)


def _damage(rng: random.Random, plan: list[dict[str, Any]]) -> None:
    row, other = rng.choice(plan), rng.choice(plan)
    kinds = ["bool", "int64", "float64", "text", "timestamp", {"decimal": [38, 0]}]
    key = rng.choice(["op", "type", "args", "value", "digits", "unit", "escape", "name", "drop"])
    match key:
        case "op":
            row["op"] = other.get("op", "add")
        case "type":
            row["type"] = rng.choice([*kinds, {"decimal": [3, 2]}, {"decimal": [99, -9]}])
        case "args":
            row["args"] = [rng.randrange(len(plan) + 1) for _ in range(rng.randint(0, 4))]
        case "value":
            row["value"] = rng.choice([None, 1, "1", "x", True, 1.5, 2**63, "1" * 60, [], "-0.0"])
        case "digits":
            row["digits"] = rng.choice([0, 1, -1, 38, -40, 2**31 - 1, -(2**31)])
        case "unit":
            row["unit"] = rng.choice(["year", "epoch", "dow", "second", "era"])
        case "escape":
            row["escape"] = rng.choice(["$", "", "é", "ab"])
        case "name":
            row["name"] = rng.choice(["mean", "nobody", ""])
        case _:
            row.pop(rng.choice(list(row)))
