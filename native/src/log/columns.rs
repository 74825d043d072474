//! Rows as bytes: Arrow's buffers without Arrow's metadata, one after the other.
//!
//! The schema is known by its id, so nothing but values is written, and nothing is aligned:
//!
//! ```text
//! has nulls      one bit a column
//! per column     [validity, one bit a row, where it has nulls]
//!   bool         one bit a row
//!   int64, float64, timestamp: 8 bytes a row; decimal: 16
//!   text         each row's end as i32, then the bytes
//! ```
//!
//! Everything is little-endian, as Arrow is on the machines that Penstock runs on.

use std::sync::Arc;

use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType,
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, PrimitiveArray, RecordBatch, RecordBatchOptions, StringArray,
};
use arrow_buffer::{
    BooleanBuffer, Buffer, MutableBuffer, NullBuffer, OffsetBuffer, ScalarBuffer, ToByteSlice,
};
use arrow_schema::SchemaRef;

use crate::error::{Error, Result};
use crate::schema::{Schema, Type};

#[cfg(target_endian = "big")]
compile_error!("the log's bytes are Arrow's, in little-endian order");

/// What is wrong with bytes whose checksum is right; the caller knows the place.
pub(super) type Fault = String;
pub(super) type Decoded<T> = std::result::Result<T, Fault>;

/// Refuse rows that their schema could not give back.
pub(super) fn check(batch: &RecordBatch, schema: &Schema) -> Result<()> {
    if batch.num_columns() != schema.fields.len() {
        return Err(Error::invalid(format!(
            "the rows have {} columns, their schema has {} fields",
            batch.num_columns(),
            schema.fields.len()
        )));
    }
    let names = batch.schema_ref().fields().iter();
    for ((field, column), given) in schema.fields.iter().zip(batch.columns()).zip(names) {
        if given.name() != &field.name {
            return Err(Error::invalid(format!(
                "column {:?} stands where {:?} is wanted",
                given.name(),
                field.name
            )));
        }
        if column.data_type() != &field.kind.arrow() {
            let what = format!("field {:?} is {}, wanted {}", field.name, column.data_type(), field.kind);
            return Err(Error::invalid(what));
        }
        if !field.optional && column.null_count() > 0 {
            return Err(Error::invalid(format!("field {:?} is not optional and has nulls", field.name)));
        }
    }
    Ok(())
}

/// Append the rows to `out`; they have passed `check`.
pub(super) fn pack(batch: &RecordBatch, schema: &Schema, out: &mut Vec<u8>) {
    let flags = out.len();
    out.resize(flags + schema.fields.len().div_ceil(8), 0);
    for (index, (column, field)) in batch.columns().iter().zip(&schema.fields).enumerate() {
        if let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) {
            out[flags + index / 8] |= 1 << (index % 8);
            pack_bits(nulls.inner(), out);
        }
        pack_column(column.as_ref(), field.kind, out);
    }
}

fn pack_column(column: &dyn Array, kind: Type, out: &mut Vec<u8>) {
    match kind {
        Type::Bool => pack_bits(typed::<BooleanArray>(column).values(), out),
        Type::Int64 => pack_values::<Int64Type>(column, out),
        Type::Float64 => pack_values::<Float64Type>(column, out),
        Type::Timestamp => pack_values::<TimestampMicrosecondType>(column, out),
        Type::Decimal(..) => pack_values::<Decimal128Type>(column, out),
        Type::Text => pack_text(typed::<StringArray>(column), out),
    }
}

fn pack_values<T: ArrowPrimitiveType>(column: &dyn Array, out: &mut Vec<u8>) {
    out.extend_from_slice(typed::<PrimitiveArray<T>>(column).values().inner().as_slice());
}

fn pack_bits(bits: &BooleanBuffer, out: &mut Vec<u8>) {
    let bytes = bits.len().div_ceil(8);
    out.extend_from_slice(&bits.sliced().as_slice()[..bytes]);
    // What stands behind the last row is whatever the slice was cut from: equal rows are to be equal bytes.
    if let (Some(last), used @ 1..) = (out.last_mut(), bits.len() % 8) {
        *last &= (1 << used) - 1;
    }
}

fn pack_text(text: &StringArray, out: &mut Vec<u8>) {
    let offsets = text.value_offsets();
    let first = offsets[0];
    if first == 0 {
        out.extend_from_slice(offsets[1..].to_byte_slice());
    } else {
        out.extend(offsets[1..].iter().flat_map(|end| (end - first).to_le_bytes()));
    }
    let first = first as usize;
    out.extend_from_slice(&text.value_data()[first..first + text_bytes(text)]);
}

fn text_bytes(text: &StringArray) -> usize {
    let offsets = text.value_offsets();
    (offsets[text.len()] - offsets[0]) as usize
}

fn typed<T: 'static>(column: &dyn Array) -> &T {
    column.as_any().downcast_ref().expect("the column's type has been checked")
}

/// The rows that `pack` wrote.
pub(super) fn unpack(bytes: &[u8], rows: usize, schema: &Schema, arrow: &SchemaRef) -> Decoded<RecordBatch> {
    let mut rest = Bytes(bytes);
    let flags = rest.take(schema.fields.len().div_ceil(8))?;
    let mut columns = Vec::with_capacity(schema.fields.len());
    for (index, field) in schema.fields.iter().enumerate() {
        let nulls = match flags[index / 8] >> (index % 8) & 1 {
            0 => None,
            _ => Some(NullBuffer::new(rest.bits(rows)?)),
        };
        columns.push(unpack_column(&mut rest, rows, field.kind, nulls)?);
    }
    if !rest.0.is_empty() {
        return Err(format!("{} bytes follow the last column", rest.0.len()));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(arrow.clone(), columns, &options).map_err(|error| error.to_string())
}

fn unpack_column(rest: &mut Bytes, rows: usize, kind: Type, nulls: Option<NullBuffer>) -> Decoded<ArrayRef> {
    Ok(match kind {
        Type::Bool => Arc::new(BooleanArray::new(rest.bits(rows)?, nulls)),
        Type::Int64 => Arc::new(rest.values::<Int64Type>(rows, nulls)?),
        Type::Float64 => Arc::new(rest.values::<Float64Type>(rows, nulls)?),
        Type::Timestamp => {
            Arc::new(rest.values::<TimestampMicrosecondType>(rows, nulls)?.with_timezone("UTC"))
        }
        Type::Decimal(precision, scale) => {
            let values = rest.values::<Decimal128Type>(rows, nulls)?;
            Arc::new(values.with_precision_and_scale(precision, scale).map_err(|error| error.to_string())?)
        }
        Type::Text => Arc::new(rest.text(rows, nulls)?),
    })
}

/// What is left to read. Arrow wants its buffers aligned, so each is copied once.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Decoded<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("the columns end early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn bits(&mut self, rows: usize) -> Decoded<BooleanBuffer> {
        Ok(BooleanBuffer::new(Buffer::from(self.take(rows.div_ceil(8))?), 0, rows))
    }

    fn values<T: ArrowPrimitiveType>(
        &mut self,
        rows: usize,
        nulls: Option<NullBuffer>,
    ) -> Decoded<PrimitiveArray<T>> {
        let bytes = self.take(rows * size_of::<T::Native>())?;
        Ok(PrimitiveArray::new(ScalarBuffer::new(Buffer::from(bytes), 0, rows), nulls))
    }

    fn text(&mut self, rows: usize, nulls: Option<NullBuffer>) -> Decoded<StringArray> {
        let mut offsets = MutableBuffer::with_capacity(4 * (rows + 1));
        offsets.push(0i32);
        offsets.extend_from_slice(self.take(4 * rows)?);
        let offsets = ScalarBuffer::<i32>::new(offsets.into(), 0, rows + 1);
        if !offsets.is_sorted() {
            return Err("a text ends before it begins".into());
        }
        let data = self.take(offsets[rows] as usize)?;
        StringArray::try_new(OffsetBuffer::new(offsets), Buffer::from(data), nulls)
            .map_err(|error| error.to_string())
    }
}
