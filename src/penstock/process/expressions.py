"""SQL scalar expressions: text in, a typed plan for the core's evaluator out.

The one idea: sqlglot reads the text as DuckDB would, and everything of what it read that is not
on this page is an error with its place, so that no part of an expression is ever ignored.
sqlglot is imported on first use, because importing it takes longer than `import penstock` may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from penstock.errors import DefinitionError
from penstock.process import plan
from penstock.process.plan import ExpressionError, Node
from penstock.schema import BOOL, FLOAT64, INT64, TEXT, Type

if TYPE_CHECKING:
    from sqlglot import exp
    from sqlglot.tokenizer_core import Token


@dataclass(frozen=True)
class Expression:
    """An expression that has a meaning: its text, its type and its plan.

    `plan` is JSON for the core: a list of operations, each after its arguments, the last of them
    the result. `columns` are those that the text names, in order of first use.
    """

    text: str
    type: Type
    plan: Any
    columns: tuple[str, ...]


def parse_expression(
    text: str, columns: Mapping[str, Type], *, wanted: Type | None = None, subject: str
) -> Expression:
    """Read one expression over these columns.

    `wanted` is the type that it must have; `subject` says whose it is, as in `rule "far_away"`.
    Raises `DefinitionError` with the subject, the place and a hint.
    """
    reader = _Reader(columns)
    try:
        node = _as_wanted(reader.read(_read_syntax(text, columns)), wanted)
        rows = plan.flatten(node)
    except ExpressionError as mistake:
        raise DefinitionError(
            f"{subject}: {mistake.message}{_show(text, mistake.span)}", hint=mistake.hint
        ) from None
    except RecursionError:
        raise DefinitionError(
            f"{subject}: the expression is nested too deeply",
            hint="name a part of it in derive() and use that name here",
        ) from None
    assert node.type is not None
    return Expression(text, node.type, rows, tuple(reader.used))


def _as_wanted(node: Node, wanted: Type | None) -> Node:
    if wanted is None:
        return plan.coerce(node, node.type or INT64)
    if node.type in (None, wanted) or (wanted == FLOAT64 and node.type and node.type.numeric):
        return plan.coerce(node, wanted)
    hint = "compare it with something: `x > 0`" if wanted == BOOL else None
    raise ExpressionError(f"this is {node.typename}, and {wanted} is wanted", hint)


def _show(text: str, span: tuple[int, int] | None) -> str:
    """The line with the mistake, and carets under it."""
    if span is None:
        return f"\n    {text}" if text.strip() else ""
    start, end = span
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", start)
    line = text[line_start : line_end if line_end >= 0 else len(text)]
    column = start - line_start
    carets = max(1, min(end, line_start + len(line)) - start)
    # A tab stays a tab, so that the carets stand under what they mean.
    margin = "".join("\t" if char == "\t" else " " for char in line[:column])
    where = f"line {text.count(chr(10), 0, start) + 1}, " if "\n" in text else ""
    return f" ({where}character {column + 1})\n    {line}\n    {margin}{'^' * carets}"


# Text to syntax


def _read_syntax(text: str, columns: Mapping[str, Type]) -> exp.Expr:
    from sqlglot.errors import ParseError, TokenError

    dialect, parser, condition = _grammar()
    try:
        tokens = dialect.tokenize(text)
        _check_tokens(tokens)
        (syntax,) = parser(dialect=dialect).parse_into(condition, tokens, text) or [None]
    except TokenError:
        raise ExpressionError("a quote is not closed", "a text is in 'single quotes'") from None
    except ParseError as error:
        raise _misread(text, error, columns) from None
    if syntax is None:
        raise ExpressionError("there is no expression here")
    return syntax  # type: ignore[no-any-return]


@cache
def _grammar() -> tuple[Any, Any, Any]:
    """DuckDB's grammar, with function names kept as they are written."""
    from sqlglot import exp
    from sqlglot.dialects.dialect import Dialect

    dialect = Dialect.get_or_raise("duckdb")
    duckdb: Any = dialect.parser_class

    # Known functions would lose their names: `pow`, `power` and `^` become one node.
    names = {
        "FUNCTIONS": {},
        "FUNCTION_PARSERS": {"EXTRACT": duckdb.FUNCTION_PARSERS["EXTRACT"]},
        "NO_PAREN_FUNCTIONS": {},
        "NO_PAREN_FUNCTION_PARSERS": {"CASE": duckdb.NO_PAREN_FUNCTION_PARSERS["CASE"]},
    }
    return dialect, type(duckdb)("Parser", (duckdb,), names), exp.Condition


_SYMBOLS = frozenset(
    ("+", "-", "*", "/", "%", "=", "==", "!=", "<>", "<", "<=", ">", ">=", "(", ")", ",", ".")
)


def _check_tokens(tokens: Sequence[Token]) -> None:
    """Refuse operators that the grammar knows and the evaluator does not, at their own place."""
    for token in tokens:
        word = token.text.replace("_", "a").replace(" ", "a").isalnum()
        quoted = token.token_type.name in ("STRING", "IDENTIFIER", "NUMBER")
        if not (word or quoted or token.text in _SYMBOLS):
            mistake = ExpressionError(f"{token.text} is not an operator here", _what_there_is())
            mistake.span = (token.start, token.end + 1)
            raise mistake


def _misread(text: str, error: Any, columns: Mapping[str, Type]) -> ExpressionError:
    """What sqlglot says of the text, in our words."""
    if not error.errors:
        return ExpressionError("this is not an expression")
    found = error.errors[0]
    word, what = found["highlight"], found["description"]
    mistake = ExpressionError(_reason(what, word))
    if word in columns and _grammar()[0].tokenize(word)[0].token_type.name != "VAR":
        mistake.hint = f'write "{word}" in double quotes: it is a word of SQL too'
    lines = text.split("\n")
    end = sum(len(line) + 1 for line in lines[: found["line"] - 1]) + found["col"]
    mistake.span = (max(0, end - len(word)), end)
    return mistake


def _reason(description: str, word: str) -> str:
    if description.startswith("Required keyword"):
        return f"something is missing after {word}"
    if description.startswith("Expect"):
        wanted = description.removeprefix("Expecting ").removeprefix("Expected ")
        return f"{wanted.lower()} is wanted after {word}"
    return f"{word} is not expected here"


# Syntax to plan


class _Reader:
    """Turns syntax into typed nodes, and remembers which columns it met."""

    def __init__(self, columns: Mapping[str, Type]) -> None:
        self.columns = columns
        self.used: dict[str, None] = {}

    def read(self, syntax: exp.Expr) -> Node:
        try:
            return self._read(syntax)
        except ExpressionError as mistake:
            mistake.span = mistake.span or _span(syntax)
            raise

    def _read(self, syntax: exp.Expr) -> Node:
        form = _FORMS.get(syntax.key)
        if form is None:
            raise ExpressionError(
                f"{_construct(syntax)} is not part of an expression", _what_there_is()
            )
        parts, build = form
        # A part that nobody reads would be ignored silently: `distinct`, `over`, `filter` …
        if any(value for name, value in syntax.args.items() if name not in parts):
            raise ExpressionError(f"{_construct(syntax)} is not written so here", _what_there_is())
        return build(self, syntax)

    def _all(self, syntax: Sequence[exp.Expr]) -> list[Node]:
        return [self.read(each) for each in syntax]

    def column(self, syntax: exp.Expr) -> Node:
        name = syntax.name
        if name not in self.columns:
            raise _unknown_column(name, self.columns)
        self.used.setdefault(name)
        return plan.column(name, self.columns[name])

    def literal(self, syntax: exp.Expr) -> Node:
        if syntax.args["is_string"]:
            return plan.literal(syntax.name, TEXT)
        return plan.number(syntax.name)

    def boolean(self, syntax: exp.Expr) -> Node:
        return plan.literal(bool(syntax.this), BOOL)

    def null(self, syntax: exp.Expr) -> Node:
        return plan.NULL

    def paren(self, syntax: exp.Expr) -> Node:
        return self.read(syntax.this)

    def timestamp(self, syntax: exp.Expr) -> Node:
        """`TIMESTAMP '…'`, which sqlglot reads as a cast."""
        kind = syntax.args["to"].this.name
        if not (syntax.this.key == "literal" and syntax.this.args["is_string"]):
            raise ExpressionError("a cast is not part of an expression", _what_there_is())
        if kind not in ("TIMESTAMP", "TIMESTAMPNTZ", "TIMESTAMPTZ"):
            raise ExpressionError("only TIMESTAMP '…' gives a literal its type", _what_there_is())
        return plan.timestamp(syntax.this.name)

    def negate(self, syntax: exp.Expr) -> Node:
        operand = syntax.this
        if operand.key == "literal" and not operand.args["is_string"]:
            # Together, because -9223372036854775808 is an int64 and 9223372036854775808 is not.
            return plan.number("-" + operand.name)
        return plan.negate(self._operand(operand))

    def logic(self, syntax: exp.Expr) -> Node:
        """A chain of `and` or of `or` is one node, however long it is."""
        parts = [self.condition(part, syntax.key) for part in syntax.flatten()]
        return plan.all_of(parts) if syntax.key == "and" else plan.any_of(parts)

    def condition(self, syntax: exp.Expr, operation: str) -> Node:
        node = self.read(syntax)
        try:
            return plan.require(node, BOOL, operation)
        except ExpressionError as mistake:
            mistake.span = _span(syntax)
            raise

    def negation(self, syntax: exp.Expr) -> Node:
        return plan.negation(self.read(syntax.this))

    def null_test(self, syntax: exp.Expr) -> Node:
        if syntax.expression.key != "null":
            raise ExpressionError(
                "is tests for null only", "a bool is a condition itself: `x`, `not x`"
            )
        return plan.null_test(self._operand(syntax.this))

    def among(self, syntax: exp.Expr) -> Node:
        items = syntax.args.get("expressions")
        if syntax.args.get("query"):
            return self.read(syntax.args["query"])
        if not items:
            raise ExpressionError("in takes a list: x in (1, 2, 3)")
        return plan.among(self._operand(syntax.this), self._all(items))

    def between(self, syntax: exp.Expr) -> Node:
        operands = (syntax.this, syntax.args["low"], syntax.args["high"])
        return plan.between(*map(self._operand, operands))

    def like(self, syntax: exp.Expr, escape: str | None = None) -> Node:
        operands = self._operand(syntax.this), self._operand(syntax.expression)
        node = plan.like(*operands, escape)
        return plan.negation(node) if syntax.args.get("negate") else node

    def like_escape(self, syntax: exp.Expr) -> Node:
        escape = syntax.expression
        one = escape.key == "literal" and escape.args["is_string"] and len(escape.name) == 1
        if syntax.this.key != "like" or not one:
            raise ExpressionError("escape takes one character: x like '50$%' escape '$'")
        return self.like(syntax.this, escape.name)

    def case(self, syntax: exp.Expr) -> Node:
        operand = syntax.this and self.read(syntax.this)
        branches = []
        for branch in syntax.args["ifs"]:
            if operand:
                condition = plan.compare("equal", operand, self.read(branch.this))
            else:
                condition = self.condition(branch.this, "case when")
            branches.append((condition, self.read(branch.args["true"])))
        default = syntax.args.get("default")
        return plan.case(branches, self.read(default) if default else plan.NULL)

    def extract(self, syntax: exp.Expr) -> Node:
        return plan.extract(syntax.this.name.lower(), self.read(syntax.expression))

    def call(self, syntax: exp.Expr) -> Node:
        name = str(syntax.name).lower()
        if name not in plan.FUNCTIONS:
            raise _unknown_function(name)
        least, most, build = plan.FUNCTIONS[name]
        args = self._all(syntax.expressions)
        if not least <= len(args) <= most:
            raise ExpressionError(f"{name} takes {_count(least, most)}, not {len(args)}")
        return build(*args)

    def _operand(self, syntax: exp.Expr) -> Node:
        """An operand of an operator: `a = b = c` or `a < b is null` must say what it means."""
        if syntax.key in _PREDICATES:
            mistake = ExpressionError(
                "comparisons cannot be chained", "put one of them in parentheses"
            )
            mistake.span = _span(syntax)
            raise mistake
        return self.read(syntax)


_Build = Callable[[_Reader, Any], Node]


def _binary(build: Callable[[Node, Node], Node]) -> tuple[set[str], _Build]:
    def read(reader: _Reader, syntax: exp.Expr) -> Node:
        return build(reader._operand(syntax.this), reader._operand(syntax.expression))

    # `typed` and `safe` say how another dialect would divide.
    return {"this", "expression", "typed", "safe"}, read


def _arithmetic(op: str, symbol: str) -> tuple[set[str], _Build]:
    return _binary(lambda left, right: plan.arithmetic(op, symbol, left, right))


def _comparison(op: str) -> tuple[set[str], _Build]:
    return _binary(lambda left, right: plan.compare(op, left, right))


_FORMS: dict[str, tuple[set[str], _Build]] = {
    "column": ({"this"}, _Reader.column),
    "literal": ({"this", "is_string"}, _Reader.literal),
    "boolean": ({"this"}, _Reader.boolean),
    "null": (set(), _Reader.null),
    "paren": ({"this"}, _Reader.paren),
    "cast": ({"this", "to"}, _Reader.timestamp),
    "neg": ({"this"}, _Reader.negate),
    "add": _arithmetic("add", "+"),
    "sub": _arithmetic("subtract", "-"),
    "mul": _arithmetic("multiply", "*"),
    "mod": _arithmetic("modulo", "%"),
    "div": _binary(plan.divide),
    "eq": _comparison("equal"),
    "neq": _comparison("not_equal"),
    "lt": _comparison("less"),
    "lte": _comparison("less_equal"),
    "gt": _comparison("greater"),
    "gte": _comparison("greater_equal"),
    "and": ({"this", "expression"}, _Reader.logic),
    "or": ({"this", "expression"}, _Reader.logic),
    "not": ({"this"}, _Reader.negation),
    "is": ({"this", "expression"}, _Reader.null_test),
    "in": ({"this", "expressions", "query", "field"}, _Reader.among),
    "between": ({"this", "low", "high"}, _Reader.between),
    "like": ({"this", "expression", "negate"}, _Reader.like),
    "escape": ({"this", "expression"}, _Reader.like_escape),
    "case": ({"this", "ifs", "default"}, _Reader.case),
    "extract": ({"this", "expression"}, _Reader.extract),
    "anonymous": ({"this", "expressions"}, _Reader.call),
}
"""What sqlglot's nodes mean: the parts of each that are read, and what reads them."""

_PREDICATES = frozenset(
    ("eq", "neq", "lt", "lte", "gt", "gte", "not", "is", "in", "between", "like", "escape")
)


# Places and words


def _span(syntax: exp.Expr) -> tuple[int, int] | None:
    """From the first to the last character that a part was read from."""
    metas = [part.meta for part in syntax.walk() if "start" in part.meta]
    if not metas:
        return None
    return min(meta["start"] for meta in metas), max(meta["end"] for meta in metas) + 1


_CONSTRUCTS = {
    "select": "a subquery",
    "subquery": "a subquery",
    "exists": "a subquery",
    "window": "a window function",
    "filter": "an aggregate",
    "star": "*",
    "tuple": "a list of values",
    "dot": "a qualified name",
    "ilike": "ilike",
}


def _construct(syntax: exp.Expr) -> str:
    if syntax.key == "column":
        return "a qualified name"
    return _CONSTRUCTS.get(syntax.key, f"`{syntax.key}`")


_AGGREGATES = frozenset(
    """sum avg mean count min max std stddev var variance first last median any_value n_unique
    lag lead row_number rank quantile""".split()  # noqa: SIM905
)


def _unknown_function(name: str) -> ExpressionError:
    if name in _AGGREGATES:
        hint = 'aggregates are methods of a window, as in card.past("1h").count(); name one and use'
        return ExpressionError(
            f"{name} is an aggregate, and an expression sees one event", hint + " it here"
        )
    close = get_close_matches(name, [*plan.FUNCTIONS, "extract"], n=1, cutoff=0.7)
    guess = f"did you mean {close[0]}? " if close else ""
    return ExpressionError(f"there is no function {name}", guess + _what_there_is())


def _unknown_column(name: str, columns: Mapping[str, Type]) -> ExpressionError:
    by_lower = {known.lower(): known for known in columns}
    close = get_close_matches(name.lower(), by_lower, n=1)
    if close:
        hint = f'did you mean "{by_lower[close[0]]}"?'
    else:
        hint = f"there are {', '.join(columns)}" if columns else "there are no columns here"
    return ExpressionError(f'there is no column "{name}"', hint)


def _count(least: int, most: int) -> str:
    if most == plan.MANY:
        return f"at least {least} argument{'s' * (least > 1)}"
    if least == most:
        return f"{least} argument{'s' * (least > 1)}"
    return f"{least} or {most} arguments"


def _what_there_is() -> str:
    return (
        "there are + - * / %, = != < <= > >=, and or not, is null, in, between, like, case, and"
        f" the functions {' '.join([*plan.FUNCTIONS, 'extract'])}"
    )
