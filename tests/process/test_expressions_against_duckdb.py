"""Generated expressions over generated rows give what DuckDB gives, but for the known exceptions.

Each expression is generated twice: as a user writes it, and as DuckDB has to be asked so that our
exceptions hold there too. `try(…)` makes null of what DuckDB refuses, `finite(…)` of NaN and
infinity, and casts give literals our types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.schema import BOOL, FLOAT64, INT64, TEXT, TIMESTAMP, Type, decimal_type
from process.evaluation import Columns, evaluate_plans, parse, query_duckdb

COLUMNS: dict[str, Type] = {
    "i": INT64,
    "j": INT64,
    "x": FLOAT64,
    "y": FLOAT64,
    "p": decimal_type(12, 2),
    "q": decimal_type(38, 10),
    "a": BOOL,
    "b": BOOL,
    "s": TEXT,
    "t": TEXT,
    "u": TIMESTAMP,
    "v": TIMESTAMP,
}


@dataclass(frozen=True)
class Pair:
    """One expression in both languages; all of its parts are in parentheses."""

    ours: str
    duckdb: str
    type: Type
    literal: bool = False


Draw = Callable[[st.SearchStrategy[Any]], Any]


# Rows

ALPHABET = "aZ09 éÉßİΣςж%_\\$'👍ﬁǅ"
TIME_MIN, TIME_MAX = -9_223_372_022_400_000_000, 9_223_372_036_854_775_806

integers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, -(2**63), 2**63 - 1, 2**53 + 1, 2**32, -(2**32) - 1]),
    st.integers(-20, 20),
    st.integers(-(2**63), 2**63 - 1),
)
floats = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 1e308, -1e308, 5e-324, 1e16, 0.1, 710.0]),
    st.floats(-1000, 1000),
    st.floats(allow_nan=False, allow_infinity=False),
)
texts = st.one_of(st.sampled_from(["", "a", "é", "%", "aa"]), st.text(ALPHABET, max_size=8))
times = st.one_of(
    st.sampled_from([0, -1, 1, TIME_MIN, TIME_MAX, 951_782_400_000_000, -62_135_596_800_000_001]),
    st.integers(-(10**16), 10**16),
    st.integers(TIME_MIN, TIME_MAX),
)


def decimals(kind: Type) -> st.SearchStrategy[Any]:
    limit = 10**kind.precision - 1
    unit = 10**kind.scale
    unscaled = st.one_of(
        st.sampled_from([0, 1, -1, 5, unit, -unit, unit // 2, limit, -limit, 5 * unit // 2]),
        st.integers(-100 * unit, 100 * unit),
        st.integers(-limit, limit),
    )
    return unscaled.map(lambda value: _exact(value, kind.scale))


def _exact(unscaled: int, scale: int) -> Any:
    from decimal import Context, Decimal

    return Decimal(unscaled).scaleb(-scale, Context(prec=60))


def values(kind: Type) -> st.SearchStrategy[Any]:
    if kind.kind == "decimal":
        return decimals(kind)
    return {
        "int64": integers,
        "float64": floats,
        "bool": st.booleans(),
        "text": texts,
        "timestamp": times,
    }[kind.kind]


@st.composite
def rows(draw: Draw) -> Columns:
    count = draw(st.integers(1, 12))
    return {
        name: (kind, [draw(st.none() | values(kind)) for _ in range(count)])
        for name, kind in COLUMNS.items()
    }


# Expressions


@st.composite
def expressions(draw: Draw) -> Pair:
    kind = draw(st.sampled_from(["bool", "int64", "float64", "decimal", "text", "timestamp"]))
    return Maker(draw).of(kind, draw(st.integers(1, 4)))


class Maker:
    """Makes an expression of a wanted kind, from the root to its leaves."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def of(self, kind: str, depth: int) -> Pair:
        if depth == 0:
            return self.leaf(kind)
        makers = {
            "bool": (self.comparison, self.comparison, self.logic, self.null_test, self.among)
            + (self.between, self.like, self.starts_with, self.negation),
            "int64": (self.integer_arithmetic, self.integer_unary, self.length, self.extract),
            "float64": (self.float_arithmetic, self.divide, self.float_unary, self.power)
            + (self.round_float, self.epoch),
            "decimal": (self.decimal_arithmetic, self.decimal_unary, self.round_decimal),
            "text": (self.change_case, self.substr),
            "timestamp": (self.truncate,),
        }[kind]
        any_kind = (self.case, self.coalesce, self.extreme, self.nullif)
        if self.pick(True, True, False):
            return self.pick(*makers)(depth - 1)  # type: ignore[no-any-return]
        return self.pick(*any_kind)(kind, depth - 1)  # type: ignore[no-any-return]

    def number(self, depth: int) -> Pair:
        return self.of(self.pick("int64", "float64", "decimal"), depth)

    # Leaves

    def leaf(self, kind: str) -> Pair:
        names = [name for name, type_ in COLUMNS.items() if type_.kind == kind]
        if self.pick(True, True, False):
            name = self.pick(*names)
            return Pair(name, name, COLUMNS[name])
        return {
            "bool": self.bool_literal,
            "int64": self.integer_literal,
            "float64": self.float_literal,
            "decimal": self.decimal_literal,
            "text": self.text_literal,
            "timestamp": self.timestamp_literal,
        }[kind]()

    def bool_literal(self) -> Pair:
        text = self.pick("true", "false")
        return Pair(text, text, BOOL, True)

    def integer_literal(self) -> Pair:
        value = self.draw(integers)
        text = f"({value})" if value < 0 else str(value)
        return Pair(text, f"cast('{value}' as bigint)", INT64, True)

    def float_literal(self) -> Pair:
        text = f"{self.draw(floats):e}"
        return Pair(f"({text})", f"cast('{text}' as double)", FLOAT64, True)

    def decimal_literal(self) -> Pair:
        scale = self.draw(st.integers(1, 6))
        value = self.draw(decimals(decimal_type(12, scale)))
        text = f"{abs(value):f}"
        kind = decimal_type(len(text) - 1, scale)
        sign = "-" if value < 0 else ""
        return Pair(f"({sign}{text})", f"cast('{sign}{text}' as {_sql(kind)})", kind, True)

    def text_literal(self) -> Pair:
        text = "'" + self.draw(texts).replace("'", "''") + "'"
        return Pair(text, text, TEXT, True)

    def timestamp_literal(self) -> Pair:
        moment = self.pick("2024-02-29 12:34:56.789", "1969-12-31", "2000-01-01 00:00:00")
        text = f"timestamp '{moment}'"
        return Pair(text, text, TIMESTAMP, True)

    # Of any kind

    def case(self, kind: str, depth: int) -> Pair:
        first, second = self.alike(kind, depth)
        condition = self.of("bool", depth)
        if self.pick(True, False):
            return _join("(case when {} then {} else {} end)", condition, first, second)
        operand, match = self.alike(self.pick("int64", "text", "timestamp"), depth)
        other = self.of("bool", depth)
        form = "(case when {} then {} when {} = {} then {} end)"
        if self.pick(True, False):
            form = "(case {} when {} then {} else {} end)"
            return _join(form, operand, match, first, second)
        pair = _join(form, other, first, operand, match, second)
        return Pair(pair.ours, pair.duckdb, first.type)

    def coalesce(self, kind: str, depth: int) -> Pair:
        first, second = self.alike(kind, depth)
        form = self.pick("coalesce({}, {})", "coalesce(null, {}, {})", "coalesce({}, {}, null)")
        return _join(form, first, second)

    def extreme(self, kind: str, depth: int) -> Pair:
        first, second = self.alike(kind, depth)
        third, _ = self.alike(kind, 0, first.type)
        name = self.pick("least", "greatest")
        return _join(name + "({}, {}, {})", first, second, third)

    def nullif(self, kind: str, depth: int) -> Pair:
        return _join("nullif({}, {})", *self.alike(kind, depth))

    def alike(self, kind: str, depth: int, wanted: Type | None = None) -> tuple[Pair, Pair]:
        """Two of one type: a wider common decimal is DuckDB's own affair."""
        first = self.of(kind, depth)
        if kind == "decimal":
            wanted = wanted or self.pick(COLUMNS["p"], COLUMNS["q"])
            names = [name for name, type_ in COLUMNS.items() if type_ == wanted]
            first = first if first.type == wanted else Pair(names[0], names[0], wanted)
            return first, Pair(names[0], names[0], wanted)
        return first, self.of(kind, depth)

    # Bools

    def comparison(self, depth: int) -> Pair:
        kind = self.pick("number", "number", "bool", "text", "timestamp")
        if kind == "number":
            left, right = self.comparable(depth)
        else:
            left, right = self.of(kind, depth), self.of(kind, depth)
        sign = self.pick("=", "<>", "<", "<=", ">", ">=")
        return _join("({} " + sign + " {})", left, right, type=BOOL)

    def comparable(self, depth: int) -> tuple[Pair, Pair]:
        left, right = self.number(depth), self.number(depth)
        if FLOAT64 in (left.type, right.type):
            return _as_float(left), _as_float(right)
        if left.type == right.type == INT64:
            return left, right
        left, right = _as_decimal(left), _as_decimal(right)
        return (left, right) if _common_digits(left, right) <= 38 else (left, left)

    def logic(self, depth: int) -> Pair:
        parts = [self.of("bool", depth) for _ in range(self.draw(st.integers(2, 4)))]
        word = self.pick(" and ", " or ")
        return _join("(" + word.join(["{}"] * len(parts)) + ")", *parts, type=BOOL)

    def negation(self, depth: int) -> Pair:
        return _join("(not {})", self.of("bool", depth), type=BOOL)

    def null_test(self, depth: int) -> Pair:
        kind = self.pick("bool", "int64", "float64", "decimal", "text", "timestamp")
        form = self.pick("({} is null)", "({} is not null)")
        return _join(form, self.of(kind, depth), type=BOOL)

    def among(self, depth: int) -> Pair:
        kind = self.pick("int64", "float64", "text", "timestamp", "bool")
        whole = self.pick(True, False)
        items = [self.leaf(kind) if whole else self.of(kind, depth) for _ in range(3)]
        form = self.pick("({} in ({}, {}, {}))", "({} not in ({}, {}, {}, null))")
        return _join(form, self.of(kind, depth), *items, type=BOOL)

    def between(self, depth: int) -> Pair:
        kind = self.pick("int64", "float64", "text", "timestamp")
        parts = [self.of(kind, depth) for _ in range(3)]
        return _join(
            self.pick("({} between {} and {})", "({} not between {} and {})"), *parts, type=BOOL
        )

    def like(self, depth: int) -> Pair:
        text = self.of("text", depth)
        if self.pick(True, False):
            return _join("({} like {})", text, self.of("text", depth), type=BOOL)
        pattern = self.draw(st.text("a%_$é", max_size=6))
        while pattern.endswith("$"):
            pattern = pattern[:-1]
        form = self.pick("({} like '", "({} not like '") + pattern + "' escape '$')"
        return _join(form, text, type=BOOL)

    def starts_with(self, depth: int) -> Pair:
        return _join("starts_with({}, {})", self.of("text", depth), self.leaf("text"), type=BOOL)

    # Numbers

    def integer_arithmetic(self, depth: int) -> Pair:
        left, right = self.of("int64", depth), self.of("int64", depth)
        return _risky(_join("({} " + self.pick(*"+-*%") + " {})", left, right))

    def integer_unary(self, depth: int) -> Pair:
        form = self.pick("(- {})", "abs({})", "round({}, -1)", "round({}, -19)", "round({}, 2)")
        pair = _risky(_join(form, self.of("int64", depth)))
        # DuckDB negates some integers into a wider type.
        return Pair(pair.ours, f"try(cast({pair.duckdb} as bigint))", INT64)

    def length(self, depth: int) -> Pair:
        return _join("length({})", self.of("text", depth), type=INT64)

    def extract(self, depth: int) -> Pair:
        part = self.pick("year", "quarter", "month", "week", "day", "hour", "minute", "second")
        part = self.pick(part, "dow", "isodow", "doy")
        return _join("extract(" + part + " from {})", self.of("timestamp", depth), type=INT64)

    def epoch(self, depth: int) -> Pair:
        return _join("extract(epoch from {})", self.of("timestamp", depth), type=FLOAT64)

    def float_arithmetic(self, depth: int) -> Pair:
        left, right = self.of("float64", depth), self.number(depth)
        if self.pick(True, False):
            left, right = right, left
        return self.float_binary(self.pick(*"+-*%"), left, right)

    def divide(self, depth: int) -> Pair:
        return self.float_binary("/", self.number(depth), self.number(depth))

    def float_binary(self, sign: str, left: Pair, right: Pair) -> Pair:
        left, right = _as_float(left), _as_float(right)
        return _finite(_join("({} " + sign + " {})", left, right))

    def float_unary(self, depth: int) -> Pair:
        name = self.pick("abs", "floor", "ceil", "round", "ln", "exp", "sqrt", "-")
        operand = self.of("float64", depth)
        if name in ("floor", "ceil", "ln", "exp", "sqrt"):
            operand = self.pick(operand, self.of("int64", depth))
        return _finite(_join("(" + name + "({}))", _as_float(operand)))

    def power(self, depth: int) -> Pair:
        base, exponent = _as_float(self.number(depth)), _as_float(self.number(0))
        return _finite(_join("power({}, {})", base, exponent))

    def round_float(self, depth: int) -> Pair:
        digits = self.pick(0, 1, 2, 5, -1, -3, 20, -20, 300, -300, 400, -400)
        form = "round({}, " + str(digits) + ")"
        return _finite(_join(form, self.of("float64", depth)))

    def decimal_arithmetic(self, depth: int) -> Pair:
        left = self.of("decimal", depth)
        right = self.of(self.pick("decimal", "int64"), depth)
        if self.pick(True, False):
            left, right = right, left
        left, right = _as_decimal(left), _as_decimal(right)
        sign = self.pick(*"+-*%")
        return self.decimal_binary(sign, left, right) or left

    def decimal_binary(self, sign: str, left: Pair, right: Pair) -> Pair | None:
        """None where DuckDB would need more than 38 digits on the way to its result."""
        whole = max(_whole(left.type), _whole(right.type))
        scale = max(left.type.scale, right.type.scale)
        if sign == "*":
            scale = left.type.scale + right.type.scale
            kind = decimal_type(min(38, left.type.precision + right.type.precision), scale)
            if scale > 38:
                return None
        elif whole + scale > 38 and (sign == "%" or left.type.scale != right.type.scale):
            return None
        else:
            kind = decimal_type(min(38, whole + scale + (sign != "%")), scale)
        return _risky(_join("({} " + sign + " {})", left, right, type=kind))

    def decimal_unary(self, depth: int) -> Pair:
        operand = self.of("decimal", depth)
        name = self.pick("abs", "-", "floor", "ceil", "round")
        kind = operand.type
        if name in ("floor", "ceil", "round"):
            kind = decimal_type(kind.precision, 0)
        return _risky(_join("(" + name + "({}))", operand, type=kind))

    def round_decimal(self, depth: int) -> Pair:
        operand, digits = self.of("decimal", depth), self.draw(st.integers(-40, 12))
        scale = min(operand.type.scale, max(0, digits))
        kind = decimal_type(operand.type.precision, scale)
        pair = _risky(_join("round({}, " + str(digits) + ")", operand, type=kind))
        # DuckDB rounds a null to 0 where there are more digits to round than the type has.
        duckdb = f"case when {operand.duckdb} is not null then {pair.duckdb} end"
        return Pair(pair.ours, f"({duckdb})", kind)

    # Texts and times

    def change_case(self, depth: int) -> Pair:
        return _join(self.pick("lower({})", "upper({})"), self.of("text", depth))

    def substr(self, depth: int) -> Pair:
        parts = [self.of("text", depth), self.of("int64", depth), self.of("int64", 0)]
        form = self.pick("substr({}, {})", "substr({}, {}, {})")
        return _risky(_join(form, *parts[: form.count("{}")]))

    def truncate(self, depth: int) -> Pair:
        unit = self.pick("second", "minute", "hour", "day", "week", "month", "quarter", "year")
        return _risky(_join("date_trunc('" + unit + "', {})", self.of("timestamp", depth)))


def _join(form: str, *parts: Pair, type: Type | None = None) -> Pair:
    kind = type or parts[-1].type
    ours, duckdb = (part.ours for part in parts), (part.duckdb for part in parts)
    return Pair(form.format(*ours), form.format(*duckdb), kind)


def _risky(pair: Pair) -> Pair:
    """Where DuckDB refuses, we give null."""
    return Pair(pair.ours, f"try({pair.duckdb})", pair.type)


def _finite(pair: Pair) -> Pair:
    return Pair(pair.ours, f"finite(try({pair.duckdb}))", FLOAT64)


def _as_float(pair: Pair) -> Pair:
    """A decimal becomes the nearest float; DuckDB does that only by way of its text."""
    if pair.type.kind == "decimal":
        return Pair(pair.ours, f"cast(cast({pair.duckdb} as varchar) as double)", FLOAT64)
    return Pair(pair.ours, f"cast({pair.duckdb} as double)", FLOAT64)


def _as_decimal(pair: Pair) -> Pair:
    if pair.type.kind == "decimal":
        return pair
    digits = len(pair.ours.strip("()-")) if pair.literal else 19
    kind = decimal_type(digits, 0)
    return Pair(pair.ours, f"cast({pair.duckdb} as {_sql(kind)})", kind)


def _sql(kind: Type) -> str:
    return f"decimal({kind.precision}, {kind.scale})"


def _whole(kind: Type) -> int:
    return kind.precision - kind.scale


def _common_digits(left: Pair, right: Pair) -> int:
    return max(_whole(left.type), _whole(right.type)) + max(left.type.scale, right.type.scale)


# The test


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows(), st.lists(expressions(), min_size=1, max_size=5))
def test_expressions_give_what_duckdb_gives(columns: Columns, pairs: list[Pair]) -> None:
    plans = [(f"e{n}", parse(pair.ours, columns).plan) for n, pair in enumerate(pairs)]
    ours, _ = evaluate_plans(plans, columns)
    duckdb = query_duckdb([pair.duckdb for pair in pairs], columns)
    for pair, mine, other in zip(pairs, ours, duckdb, strict=True):
        assert mine == other, pair
