//! Columns that grow by one value at a time and can give the last row back.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow_buffer::{BooleanBufferBuilder, NullBufferBuilder, OffsetBuffer, ScalarBuffer};

use super::object::Value;
use super::scalars::{read_decimal, read_float64, read_int64, read_time};
use super::{Limits, Wrong};
use crate::schema::{Field, Type};

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::Array => "an array",
            Value::Object => "an object",
        }
    }
}

pub struct Column {
    optional: bool,
    len: usize,
    cells: Cells,
    /// Left empty for required columns.
    nulls: NullBufferBuilder,
}

enum Cells {
    Bool(BooleanBufferBuilder),
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Text { ends: Vec<i32>, bytes: Vec<u8> },
    Timestamp(Vec<i64>),
    Decimal { unscaled: Vec<i128>, precision: u8, scale: i8 },
}

impl Column {
    pub fn new(field: &Field, rows: usize) -> Column {
        let cells = match field.kind {
            Type::Bool => Cells::Bool(BooleanBufferBuilder::new(rows)),
            Type::Int64 => Cells::Int64(Vec::with_capacity(rows)),
            Type::Float64 => Cells::Float64(Vec::with_capacity(rows)),
            Type::Timestamp => Cells::Timestamp(Vec::with_capacity(rows)),
            Type::Decimal(precision, scale) => {
                Cells::Decimal { unscaled: Vec::with_capacity(rows), precision, scale }
            }
            Type::Text => {
                let mut ends = Vec::with_capacity(rows + 1);
                ends.push(0);
                Cells::Text { ends, bytes: Vec::with_capacity(rows * 16) }
            }
        };
        Column { optional: field.optional, len: 0, cells, nulls: NullBufferBuilder::new(rows) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Append a value, or nothing at all where it is refused.
    #[inline]
    pub fn push(&mut self, value: Value, limits: &Limits) -> Result<(), Wrong> {
        match (&mut self.cells, value) {
            (_, Value::Null) => return self.push_null(),
            (Cells::Text { ends, bytes }, Value::Text(text)) => {
                limits.check_text(text.len())?;
                push_text(ends, bytes, &text)?;
            }
            (Cells::Int64(values), Value::Number(text)) => values.push(read_int64(text)?),
            (Cells::Float64(values), Value::Number(text)) => values.push(read_float64(text)?),
            (Cells::Timestamp(values), Value::Text(text)) => values.push(read_time(&text)?),
            (Cells::Bool(values), Value::Bool(value)) => values.append(value),
            (Cells::Decimal { unscaled, precision, scale }, Value::Number(text)) => {
                unscaled.push(read_decimal(text, *precision, *scale)?);
            }
            (Cells::Decimal { unscaled, precision, scale }, Value::Text(text)) => {
                unscaled.push(read_decimal(&text, *precision, *scale)?);
            }
            (_, other) => return Err(Wrong::new("wrong_type", other.kind())),
        }
        self.len += 1;
        if self.optional {
            self.nulls.append_non_null();
        }
        Ok(())
    }

    pub fn push_null(&mut self) -> Result<(), Wrong> {
        if !self.optional {
            return Err(Wrong::new("null", "null"));
        }
        match &mut self.cells {
            Cells::Bool(values) => values.append(false),
            Cells::Int64(values) | Cells::Timestamp(values) => values.push(0),
            Cells::Float64(values) => values.push(0.0),
            Cells::Text { ends, bytes } => ends.push(bytes.len() as i32),
            Cells::Decimal { unscaled, .. } => unscaled.push(0),
        }
        self.len += 1;
        self.nulls.append_null();
        Ok(())
    }

    pub fn truncate(&mut self, len: usize) {
        if self.len <= len {
            return;
        }
        match &mut self.cells {
            Cells::Bool(values) => values.truncate(len),
            Cells::Int64(values) | Cells::Timestamp(values) => values.truncate(len),
            Cells::Float64(values) => values.truncate(len),
            Cells::Text { ends, bytes } => {
                ends.truncate(len + 1);
                bytes.truncate(ends[len] as usize);
            }
            Cells::Decimal { unscaled, .. } => unscaled.truncate(len),
        }
        self.len = len;
        if self.optional {
            self.nulls.truncate(len);
        }
    }

    pub fn finish(mut self) -> ArrayRef {
        let nulls = self.nulls.finish();
        match self.cells {
            Cells::Bool(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Cells::Int64(values) => Arc::new(Int64Array::new(values.into(), nulls)),
            Cells::Float64(values) => Arc::new(Float64Array::new(values.into(), nulls)),
            Cells::Timestamp(values) => {
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone("UTC"))
            }
            Cells::Text { ends, bytes } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
                Arc::new(StringArray::new(offsets, bytes.into(), nulls))
            }
            Cells::Decimal { unscaled, precision, scale } => {
                let values = Decimal128Array::new(unscaled.into(), nulls);
                let values = values.with_precision_and_scale(precision, scale);
                Arc::new(values.expect("a schema's precision and scale are valid"))
            }
        }
    }
}

/// Arrow's text offsets are 32-bit: what does not fit is refused, so that it can come in a later batch.
fn push_text(ends: &mut Vec<i32>, bytes: &mut Vec<u8>, text: &str) -> Result<(), Wrong> {
    let end = i32::try_from(bytes.len() + text.len());
    let end = end.map_err(|_| Wrong::new("too_large", "text beyond the 2 GiB that one batch can hold"))?;
    bytes.extend_from_slice(text.as_bytes());
    ends.push(end);
    Ok(())
}
