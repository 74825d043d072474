"""The shape of events: types, fields and schemas, and the Arrow schema that they map to."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["bool", "int64", "float64", "text", "timestamp", "decimal"]


@dataclass(frozen=True)
class Type:
    """What a field, a feature or an expression holds; `precision` and `scale` belong to decimals."""

    kind: Kind
    precision: int = 0
    scale: int = 0

    def __str__(self) -> str:
        if self.kind == "decimal":
            return f"decimal({self.precision}, {self.scale})"
        return self.kind

    @property
    def numeric(self) -> bool:
        return self.kind in ("int64", "float64", "decimal")

    @property
    def zero(self) -> Any:
        """Its value that stands for nothing in particular; of times the first microsecond of 1970."""
        return {"bool": False, "float64": 0.0, "text": "", "decimal": Decimal(0)}.get(self.kind, 0)

    def to_json(self) -> Any:
        """As the core reads it: `"int64"`, `{"decimal": [12, 2]}`."""
        if self.kind == "decimal":
            return {"decimal": [self.precision, self.scale]}
        return self.kind

    @staticmethod
    def from_json(value: Any) -> Type:
        if isinstance(value, dict):
            precision, scale = value["decimal"]
            return Type("decimal", precision, scale)
        return Type(value)

    @staticmethod
    def from_arrow(value: pa.DataType) -> Type:
        """The type that `to_arrow` makes into this one."""
        import pyarrow as pa

        if pa.types.is_decimal(value):
            return Type("decimal", value.precision, value.scale)
        return next(each for each in map(Type, get_args(Kind)) if each.kind != "decimal" and each.to_arrow() == value)

    def to_arrow(self) -> pa.DataType:
        import pyarrow as pa

        if self.kind == "decimal":
            return pa.decimal128(self.precision, self.scale)
        return {
            "bool": pa.bool_(),
            "int64": pa.int64(),
            "float64": pa.float64(),
            "text": pa.string(),
            "timestamp": pa.timestamp("us", tz="UTC"),
        }[self.kind]


BOOL = Type("bool")
INT64 = Type("int64")
FLOAT64 = Type("float64")
TEXT = Type("text")
TIMESTAMP = Type("timestamp")


def decimal_type(precision: int, scale: int) -> Type:
    return Type("decimal", precision, scale)


@dataclass(frozen=True)
class Field:
    """One named column; `optional` ones may be null."""

    name: str
    type: Type
    optional: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type.to_json(), "optional": self.optional}
