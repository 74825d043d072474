"""The typed plan of an expression: what each node takes, and the type that comes out.

The one idea: every coercion is decided here, once, so that the core only ever sees operations
whose arguments already have the right types. The rules are DuckDB's, with the exceptions that
`docs/` lists: text never turns into a number, decimals keep their scale, integers have 64 bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any

from penstock.schema import BOOL, FLOAT64, INT64, TEXT, TIMESTAMP, Type, decimal_type

DIGITS_MAX = 38
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

TRUNCATIONS = ("year", "quarter", "month", "week", "day", "hour", "minute", "second")
DATE_PARTS = (*TRUNCATIONS, "dow", "isodow", "doy", "epoch")


class ExpressionError(Exception):
    """What is wrong with one part of an expression; the reader adds the place."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Node:
    """One operation. Only the literal `null` has no type, until it meets one."""

    op: str
    type: Type | None
    args: tuple[Node, ...] = ()
    value: Any = None
    detail: tuple[str, Any] | None = None

    @property
    def literal(self) -> bool:
        return self.op == "literal"

    @property
    def typename(self) -> str:
        return "null" if self.type is None else str(self.type)


def flatten(root: Node) -> list[dict[str, Any]]:
    """The plan as the core reads it: each distinct operation once, after its arguments."""
    rows: list[dict[str, Any]] = []
    places: dict[tuple[Any, ...], int] = {}

    def place(node: Node) -> int:
        args = tuple(place(arg) for arg in node.args)
        key = (node.op, node.type, args, type(node.value), repr(node.value), node.detail)
        if key not in places:
            places[key] = len(rows)
            rows.append(_to_json(node, args))
        return places[key]

    place(root)
    return rows


def _to_json(node: Node, args: tuple[int, ...]) -> dict[str, Any]:
    assert node.type is not None, "every null has met its type before the plan is written"
    row: dict[str, Any] = {"op": node.op, "type": node.type.to_json()}
    if args:
        row["args"] = list(args)
    if node.literal:
        row["value"] = _literal_to_json(node.value)
    if node.detail is not None:
        row[node.detail[0]] = node.detail[1]
    return row


def _literal_to_json(value: Any) -> Any:
    # As text, because a JSON parser may round a float and cannot hold a decimal.
    if isinstance(value, float):
        return repr(value)
    return format(value, "f") if isinstance(value, Decimal) else value


# Leaves


def column(name: str, kind: Type) -> Node:
    return Node("column", kind, detail=("name", name))


def literal(value: Any, kind: Type | None) -> Node:
    return Node("literal", kind, value=value)


NULL = literal(None, None)


def number(text: str) -> Node:
    """A numeric literal: `5` is int64, `0.5` a decimal, `1e3` float64, as in DuckDB."""
    if re.fullmatch(r"-?\d+", text):
        return _integer(text)
    if re.fullmatch(r"-?(\d+\.\d*|\.\d+)", text):
        return _decimal(text)
    if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", text):
        return _float(text)
    raise ExpressionError(f"{text} is not a number")


def _integer(text: str) -> Node:
    # The length first: Python itself refuses to read integers of thousands of digits.
    digits = text.lstrip("-").lstrip("0")
    if len(digits) > 19 or not INT64_MIN <= int(text) <= INT64_MAX:
        raise ExpressionError(
            "an integer has 64 bits, and this one needs more",
            f"write {text}.0 for a decimal or {text}e0 for a float",
        )
    return literal(int(text), INT64)


def _decimal(text: str) -> Node:
    whole, _, fraction = text.lstrip("-").partition(".")
    precision = len(whole) + len(fraction)
    if precision > DIGITS_MAX:
        return _float(text)
    return literal(Decimal(text), decimal_type(precision, len(fraction)))


def _float(text: str) -> Node:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ExpressionError(f"{text} is beyond what a float64 can hold")
    return literal(value, FLOAT64)


_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(text: str) -> Node:
    """A timestamp literal; without an offset it is UTC."""
    try:
        if not _TIMESTAMP.fullmatch(text):
            raise ValueError(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ExpressionError(
            f"'{text}' is not a timestamp",
            "write '2026-11-01', '2026-11-01 09:30:00' or '2026-11-01T09:30:00.5+01:00'",
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return literal((moment - _EPOCH) // timedelta(microseconds=1), TIMESTAMP)


# Coercion


def common_type(nodes: Sequence[Node], operation: str) -> Type:
    """The type that all of these can become without losing anything but a float's exactness."""
    types = [node.type for node in nodes if node.type is not None]
    if not types:
        return INT64
    if all(kind == types[0] for kind in types):
        return types[0]
    if all(kind.numeric for kind in types):
        return _common_number(nodes)
    if TIMESTAMP in types and all(
        node.type in (None, TIMESTAMP) or _text_literal(node) for node in nodes
    ):
        return TIMESTAMP
    other = next(node for node in nodes if node.type not in (None, types[0]))
    raise ExpressionError(f"{operation} cannot join {types[0]} with {other.typename}")


def _common_number(nodes: Sequence[Node]) -> Type:
    if any(node.type == FLOAT64 for node in nodes):
        return FLOAT64
    decimals = [_decimal_type_of(node) for node in nodes if node.type is not None]
    scale = max(kind.scale for kind in decimals)
    whole = max(kind.precision - kind.scale for kind in decimals)
    return decimal_type(min(whole + scale, DIGITS_MAX), scale)


def _decimal_type_of(node: Node) -> Type:
    """The narrowest decimal that holds this integer or decimal."""
    assert node.type is not None and node.type.kind in ("int64", "decimal")
    if node.type.kind == "decimal":
        return node.type
    if node.literal and node.value is not None:
        return decimal_type(len(str(abs(node.value))), 0)
    return decimal_type(19, 0)


def _text_literal(node: Node) -> bool:
    return node.literal and node.type == TEXT


def coerce(node: Node, kind: Type) -> Node:
    """The node as `kind`: a literal is converted now, anything else by a cast in the plan."""
    if node.type == kind:
        return node
    if node.literal:
        converted = _convert_literal(node, kind)
        if converted is not None:
            return converted
    return Node("cast", kind, (node,))


def _convert_literal(node: Node, kind: Type) -> Node | None:
    if node.value is None:
        return literal(None, kind)
    if kind == TIMESTAMP:
        return timestamp(node.value)
    if kind == FLOAT64:
        return literal(float(node.value), FLOAT64)
    if kind.kind == "decimal":
        return _rescale_literal(node, kind)
    return None


def _rescale_literal(node: Node, kind: Type) -> Node | None:
    """None where the value does not fit: then it is the cast at run time that gives null."""
    value = Decimal(node.value)
    exact = Context(prec=4 * DIGITS_MAX)
    scaled = value.quantize(Decimal(1).scaleb(-kind.scale), context=exact)
    fits = len(scaled.as_tuple().digits) <= kind.precision
    return literal(scaled, kind) if scaled == value and fits else None


def require(node: Node, kind: Type, operation: str) -> Node:
    """The node as `kind` if it is that, or null, or a number where a float is wanted."""
    widened = kind == FLOAT64 and node.type is not None and node.type.numeric
    if node.type in (None, kind) or widened:
        return coerce(node, kind)
    raise ExpressionError(f"{operation} takes {kind}, not {node.typename}")


# Arithmetic


def arithmetic(op: str, symbol: str, left: Node, right: Node) -> Node:
    """`+`, `-`, `*` and `%`: float64 with a float, exact with decimals, else int64."""
    _require_numbers(symbol, left, right)
    known = [node.type for node in (left, right) if node.type is not None] or [INT64]
    if FLOAT64 in known:
        kind = FLOAT64
    elif all(each == INT64 for each in known):
        kind = INT64
    else:
        return _decimal_arithmetic(op, symbol, left, right)
    return Node(op, kind, (coerce(left, kind), coerce(right, kind)))


def _decimal_arithmetic(op: str, symbol: str, left: Node, right: Node) -> Node:
    left, right = _as_decimal(left, right), _as_decimal(right, left)
    assert left.type is not None and right.type is not None
    kind = _decimal_result(op, symbol, left.type, right.type)
    return Node(op, kind, (left, right))


def _as_decimal(node: Node, other: Node) -> Node:
    if node.type is None:
        return coerce(node, _decimal_type_of(other))
    return coerce(node, _decimal_type_of(node))


def _decimal_result(op: str, symbol: str, left: Type, right: Type) -> Type:
    """DuckDB's result types; a precision beyond 38 is cut, and a value beyond it is null."""
    scale = max(left.scale, right.scale)
    whole = max(left.precision - left.scale, right.precision - right.scale)
    precision = whole + scale
    if op == "multiply":
        scale, precision = left.scale + right.scale, left.precision + right.precision
    elif op in ("add", "subtract"):
        precision += 1
    if scale > DIGITS_MAX:
        raise ExpressionError(
            f"{left} {symbol} {right} needs {scale} decimal places, and {DIGITS_MAX} is the most",
            "round one of them first: round(x, 2)",
        )
    return decimal_type(min(precision, DIGITS_MAX), scale)


def divide(left: Node, right: Node) -> Node:
    """`/` is float64 division, of integers and decimals too."""
    _require_numbers("/", left, right)
    return Node("divide", FLOAT64, (coerce(left, FLOAT64), coerce(right, FLOAT64)))


def negate(node: Node) -> Node:
    _require_numbers("-", node)
    if node.literal and node.value is not None and node.value != INT64_MIN:
        return literal(-node.value, node.type)
    return _same_type("negate", node)


def _require_numbers(symbol: str, *nodes: Node) -> None:
    if any(node.type is not None and not node.type.numeric for node in nodes):
        given = " and ".join(node.typename for node in nodes)
        moments = all(node.type == TIMESTAMP for node in nodes)
        hint = "seconds between: extract(epoch from a) - extract(epoch from b)" if moments else None
        raise ExpressionError(f"{symbol} takes numbers, not {given}", hint)


def _same_type(op: str, node: Node) -> Node:
    node = coerce(node, node.type or INT64)
    return Node(op, node.type, (node,))


# Comparison


def compare(op: str, left: Node, right: Node) -> Node:
    return Node(op, BOOL, _comparable(left, right))


def _comparable(left: Node, right: Node) -> tuple[Node, Node]:
    """Decimals of different scales stay as they are: the core compares them exactly."""
    kinds = {node.type.kind for node in (left, right) if node.type is not None}
    if "decimal" in kinds and kinds <= {"decimal", "int64"}:
        left, right = _as_decimal(left, right), _as_decimal(right, left)
        return _align_literal(left, right), _align_literal(right, left)
    try:
        kind = common_type((left, right), "comparison")
    except ExpressionError:
        raise ExpressionError(f"cannot compare {left.typename} with {right.typename}") from None
    return coerce(left, kind), coerce(right, kind)


def _align_literal(node: Node, other: Node) -> Node:
    """A literal `500` beside a decimal(12, 2) becomes 500.00 now, not once per row."""
    assert node.type is not None and other.type is not None
    if not node.literal or node.value is None or node.type.scale >= other.type.scale:
        return node
    precision = node.type.precision + other.type.scale - node.type.scale
    if precision > DIGITS_MAX:
        return node
    return coerce(node, decimal_type(precision, other.type.scale))


def among(node: Node, items: Sequence[Node]) -> Node:
    """`x in (…)`: a set of literals where it can be, else one comparison after the other."""
    for item in items:
        _comparable(node, item)
    kind = common_type((node, *items), "in")
    members = [coerce(item, kind) for item in items]
    if kind != BOOL and all(member.literal for member in members) and _holds(kind, node):
        return Node("in", BOOL, (coerce(node, kind), *members))
    return any_of([compare("equal", node, item) for item in items])


def _holds(kind: Type, node: Node) -> bool:
    """Whether every value of the node fits this type: a decimal's precision may have been cut."""
    if kind.kind != "decimal" or node.type is None:
        return True
    own = _decimal_type_of(node)
    return own.precision - own.scale <= kind.precision - kind.scale


def between(node: Node, low: Node, high: Node) -> Node:
    return all_of([compare("greater_equal", node, low), compare("less_equal", node, high)])


def like(node: Node, pattern: Node, escape: str | None) -> Node:
    text, pattern = require(node, TEXT, "like"), require(pattern, TEXT, "like")
    if escape and pattern.literal and _ends_escaped(pattern.value or "", escape):
        raise ExpressionError("the pattern of like ends with its escape character")
    return Node("like", BOOL, (text, pattern), detail=("escape", escape) if escape else None)


def _ends_escaped(pattern: str, escape: str) -> bool:
    trailing = len(pattern) - len(pattern.rstrip(escape))
    return trailing % 2 == 1


# Logic and choice


def all_of(nodes: Sequence[Node]) -> Node:
    return Node("and", BOOL, tuple(require(node, BOOL, "and") for node in nodes))


def any_of(nodes: Sequence[Node]) -> Node:
    return Node("or", BOOL, tuple(require(node, BOOL, "or") for node in nodes))


def negation(node: Node) -> Node:
    return Node("not", BOOL, (require(node, BOOL, "not"),))


def null_test(node: Node) -> Node:
    return Node("is_null", BOOL, (coerce(node, node.type or INT64),))


def case(branches: Sequence[tuple[Node, Node]], default: Node) -> Node:
    kind = common_type([value for _, value in branches] + [default], "case")
    args: list[Node] = []
    for condition, value in branches:
        args += [require(condition, BOOL, "case when"), coerce(value, kind)]
    return Node("case", kind, (*args, coerce(default, kind)))


def nullif(left: Node, right: Node) -> Node:
    left = coerce(left, left.type or INT64)
    return case([(compare("equal", left, right), NULL)], left)


def _joined(op: str) -> Callable[..., Node]:
    def build(*nodes: Node) -> Node:
        kind = common_type(nodes, op)
        return Node(op, kind, tuple(coerce(node, kind) for node in nodes))

    return build


# Functions of numbers


def absolute(node: Node) -> Node:
    _require_numbers("abs", node)
    return _same_type("absolute", node)


def round_to(node: Node, digits: Node | None = None) -> Node:
    _require_numbers("round", node)
    places = 0 if digits is None else _round_digits(digits)
    if node.type is None or node.type == INT64:
        return _round_integer(node, places)
    if node.type == FLOAT64:
        return Node("round", FLOAT64, (node,), detail=("digits", places))
    if places >= node.type.scale:
        return node
    kind = decimal_type(node.type.precision, max(places, 0))
    return Node("round", kind, (node,), detail=("digits", places))


def _round_digits(digits: Node) -> int:
    if not digits.literal or digits.type != INT64:
        raise ExpressionError(
            f"the second argument of round is a whole number, not {digits.typename}",
            "write it as a literal: round(x, 2)",
        )
    return int(max(-1000, min(1000, digits.value)))


def _round_integer(node: Node, places: int) -> Node:
    node = coerce(node, INT64)
    return node if places >= 0 else Node("round", INT64, (node,), detail=("digits", places))


def _rounded_to_whole(op: str) -> Callable[[Node], Node]:
    """floor and ceil: a decimal loses its scale, an integer becomes a float."""

    def build(node: Node) -> Node:
        _require_numbers(op, node)
        if node.type is None or node.type.kind != "decimal":
            return Node(op, FLOAT64, (coerce(node, FLOAT64),))
        if node.type.scale == 0:
            return node
        return Node(op, decimal_type(node.type.precision, 0), (node,))

    return build


# Functions with fixed types


def _signature(op: str, result: Type, *takes: Type) -> Callable[..., Node]:
    def build(*nodes: Node) -> Node:
        try:
            args = [require(node, kind, op) for node, kind in zip(nodes, takes, strict=False)]
        except ExpressionError:
            given = ", ".join(node.typename for node in nodes)
            wanted = ", ".join(map(str, takes[: len(nodes)]))
            raise ExpressionError(f"{op} takes ({wanted}), not ({given})") from None
        return Node(op, result, tuple(args))

    return build


def extract(part: str, node: Node) -> Node:
    unit = _unit(part, DATE_PARTS, "extract")
    moment = require(node, TIMESTAMP, f"extract({unit} from …)")
    return Node("extract", FLOAT64 if unit == "epoch" else INT64, (moment,), detail=("unit", unit))


def date_trunc(part: Node, node: Node) -> Node:
    if not _text_literal(part):
        raise ExpressionError(
            "the first argument of date_trunc is a text literal", "date_trunc('day', t)"
        )
    unit = _unit(part.value, TRUNCATIONS, "date_trunc")
    moment = require(node, TIMESTAMP, "date_trunc")
    return Node("date_trunc", TIMESTAMP, (moment,), detail=("unit", unit))


def _unit(text: str, known: Sequence[str], function: str) -> str:
    unit = text.lower()
    if unit not in known:
        raise ExpressionError(f"{function} knows no '{text}'", f"it knows {', '.join(known)}")
    return unit


MANY = 1_000_000

FUNCTIONS: dict[str, tuple[int, int, Callable[..., Node]]] = {
    "abs": (1, 1, absolute),
    "round": (1, 2, round_to),
    "floor": (1, 1, _rounded_to_whole("floor")),
    "ceil": (1, 1, _rounded_to_whole("ceil")),
    "least": (1, MANY, _joined("least")),
    "greatest": (1, MANY, _joined("greatest")),
    "coalesce": (1, MANY, _joined("coalesce")),
    "nullif": (2, 2, nullif),
    "ln": (1, 1, _signature("ln", FLOAT64, FLOAT64)),
    "exp": (1, 1, _signature("exp", FLOAT64, FLOAT64)),
    "sqrt": (1, 1, _signature("sqrt", FLOAT64, FLOAT64)),
    "power": (2, 2, _signature("power", FLOAT64, FLOAT64, FLOAT64)),
    "lower": (1, 1, _signature("lower", TEXT, TEXT)),
    "upper": (1, 1, _signature("upper", TEXT, TEXT)),
    "length": (1, 1, _signature("length", INT64, TEXT)),
    "substr": (2, 3, _signature("substr", TEXT, TEXT, INT64, INT64)),
    "starts_with": (2, 2, _signature("starts_with", BOOL, TEXT, TEXT)),
    "date_trunc": (2, 2, date_trunc),
}
"""Each function: the least and the most arguments, and what builds its node."""
