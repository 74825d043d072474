//! The shape of events: fields, their types, and the Arrow schema they map to.

use std::sync::Arc;

use arrow_schema::{DataType, Field as ArrowField, Schema as ArrowSchema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};

/// The types that an event's field, a feature or an expression can have.
///
/// In JSON: `"bool"`, `"int64"`, `"float64"`, `"text"`, `"timestamp"`, `{"decimal": [12, 2]}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    Bool,
    Int64,
    Float64,
    Text,
    /// Microseconds since 1970-01-01 UTC.
    Timestamp,
    /// Precision (1 to 38) and scale (0 to precision).
    Decimal(u8, i8),
}

impl Type {
    pub fn arrow(self) -> DataType {
        match self {
            Type::Bool => DataType::Boolean,
            Type::Int64 => DataType::Int64,
            Type::Float64 => DataType::Float64,
            Type::Text => DataType::Utf8,
            Type::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Type::Decimal(precision, scale) => DataType::Decimal128(precision, scale),
        }
    }

    /// Digits after the point.
    pub fn scale(self) -> u32 {
        match self {
            Type::Decimal(_, scale) => scale as u32,
            _ => 0,
        }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::Bool => f.write_str("bool"),
            Type::Int64 => f.write_str("int64"),
            Type::Float64 => f.write_str("float64"),
            Type::Text => f.write_str("text"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Decimal(precision, scale) => write!(f, "decimal({precision}, {scale})"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Type,
    #[serde(default)]
    pub optional: bool,
}

/// The fields of one topic's rows, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    pub fields: Vec<Field>,
}

impl Schema {
    pub fn arrow(&self) -> SchemaRef {
        let fields: Vec<ArrowField> = self
            .fields
            .iter()
            .map(|field| ArrowField::new(&field.name, field.kind.arrow(), field.optional))
            .collect();
        Arc::new(ArrowSchema::new(fields))
    }

    pub fn index(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }
}
