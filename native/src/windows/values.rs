//! Values between Arrow's columns and a ring's records.
//!
//! Inside, every value is an `i128`: an integer or a decimal's digits as they are, a float's bits, a text's id.

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, StringArray};
use arrow_buffer::NullBuffer;

use crate::error::{Error, Result};
use crate::schema::Type;

use super::layout::{Layout, Slot};
use super::texts::Texts;

pub const NULL_WORD: u64 = u64::MAX; // a NaN among the floats, no text's id
pub const NULL_NARROW: i64 = i64::MIN;
const NULL_WIDE: i128 = i128::MIN;

/// One column of a batch, ready to be read by row.
pub enum Column<'a> {
    Int(&'a [i64], Option<&'a NullBuffer>),
    Float(&'a [f64], Option<&'a NullBuffer>),
    Decimal(&'a [i128], Option<&'a NullBuffer>),
    Text(&'a StringArray),
    Bool(&'a BooleanArray),
}

impl<'a> Column<'a> {
    pub fn new(array: &'a ArrayRef, name: &str, kind: Type, rows: usize) -> Result<Column<'a>> {
        if *array.data_type() != kind.arrow() || array.len() != rows {
            return Err(Error::invalid(format!("the values of \"{name}\" are not {rows} of {kind}")));
        }
        let nulls = array.nulls();
        Ok(match kind {
            Type::Int64 => Column::Int(array.as_primitive::<Int64Type>().values(), nulls),
            Type::Timestamp => Column::Int(array.as_primitive::<TimestampMicrosecondType>().values(), nulls),
            Type::Float64 => Column::Float(array.as_primitive::<Float64Type>().values(), nulls),
            Type::Decimal(..) => Column::Decimal(array.as_primitive::<Decimal128Type>().values(), nulls),
            Type::Text => Column::Text(array.as_string()),
            Type::Bool => Column::Bool(array.as_boolean()),
        })
    }

    /// Writes one row's value into a record. A text is used once more by it.
    fn write(&self, row: usize, slot: Slot, record: &mut [u64], texts: &mut Texts) {
        match (self, slot) {
            (Column::Int(values, nulls), Slot::Int { word, bit }) => {
                let valid = valid(*nulls, row);
                record[word] = if valid { values[row] as u64 } else { 0 };
                set_flag(record, bit, valid);
            }
            (Column::Float(values, nulls), Slot::Float { word }) => {
                let value = values[row];
                record[word] =
                    if valid(*nulls, row) && !value.is_nan() { value.to_bits() } else { NULL_WORD };
            }
            (Column::Decimal(values, nulls), Slot::Narrow { word }) => {
                record[word] = if valid(*nulls, row) { values[row] as u64 } else { NULL_NARROW as u64 };
            }
            (Column::Decimal(values, nulls), Slot::Wide { word }) => {
                let value = if valid(*nulls, row) { values[row] } else { NULL_WIDE };
                (record[word], record[word + 1]) = (value as u64, (value >> 64) as u64);
            }
            (Column::Text(values), Slot::Text { word }) => {
                record[word] =
                    if values.is_valid(row) { texts.acquire(values.value(row)) } else { NULL_WORD };
            }
            (Column::Bool(values), Slot::Bool { bit }) => {
                set_flag(record, bit, values.is_valid(row));
                set_flag(record, bit + 1, values.is_valid(row) && values.value(row));
            }
            _ => unreachable!("a column's type was checked against its slot's"),
        }
    }
}

fn valid(nulls: Option<&NullBuffer>, row: usize) -> bool {
    nulls.is_none_or(|nulls| nulls.is_valid(row))
}

/// Writes a row of a batch as a record.
pub fn write_record(
    layout: &Layout,
    time: i64,
    columns: &[Column],
    filters: &[BooleanArray],
    row: usize,
    record: &mut [u64],
    texts: &mut Texts,
) {
    record[0] = time as u64;
    record[1..1 + layout.flags].fill(0);
    for (bit, filter) in filters.iter().enumerate() {
        set_flag(record, bit, filter.is_valid(row) && filter.value(row));
    }
    for (column, slot) in columns.iter().zip(&layout.slots) {
        column.write(row, *slot, record, texts);
    }
}

/// Gives back the texts that a record uses.
pub fn release_record(layout: &Layout, record: &[u64], texts: &mut Texts) {
    if !layout.texts {
        return;
    }
    for slot in &layout.slots {
        if let Slot::Text { word } = *slot
            && record[word] != NULL_WORD
        {
            texts.release(record[word]);
        }
    }
}

/// Makes a copied record use the texts of the shard that it was copied into.
pub fn move_record_texts(layout: &Layout, record: &mut [u64], from: &Texts, into: &mut Texts) {
    for slot in &layout.slots {
        if let Slot::Text { word } = *slot
            && record[word] != NULL_WORD
        {
            record[word] = into.acquire(from.get(record[word]));
        }
    }
}

/// Writes a null of a column into a record whose flags are clear.
pub fn write_null(slot: Slot, record: &mut [u64]) {
    match slot {
        Slot::Int { word, .. } => record[word] = 0,
        Slot::Float { word } | Slot::Text { word } => record[word] = NULL_WORD,
        Slot::Narrow { word } => record[word] = NULL_NARROW as u64,
        Slot::Wide { word } => {
            (record[word], record[word + 1]) = (NULL_WIDE as u64, (NULL_WIDE >> 64) as u64);
        }
        Slot::Bool { .. } => {}
    }
}

/// A column's value in a record, `None` if null.
#[inline(always)]
pub fn value(slot: Slot, record: &[u64]) -> Option<i128> {
    match slot {
        Slot::Int { word, bit } => flag(record, bit).then(|| record[word] as i64 as i128),
        Slot::Float { word } | Slot::Text { word } => {
            (record[word] != NULL_WORD).then(|| record[word] as i128)
        }
        Slot::Narrow { word } => {
            let value = record[word] as i64;
            (value != NULL_NARROW).then_some(value as i128)
        }
        Slot::Wide { word } => {
            let value = (record[word + 1] as i64 as i128) << 64 | record[word] as i128;
            (value != NULL_WIDE).then_some(value)
        }
        Slot::Bool { bit } => flag(record, bit).then(|| flag(record, bit + 1) as i128),
    }
}

#[inline]
pub fn flag(record: &[u64], bit: usize) -> bool {
    record[1 + bit / 64] >> (bit % 64) & 1 == 1
}

pub fn set_flag(record: &mut [u64], bit: usize, on: bool) {
    record[1 + bit / 64] |= (on as u64) << (bit % 64);
}

/// The order of two values of one type.
pub fn compare(kind: Type, a: i128, b: i128, texts: &Texts) -> std::cmp::Ordering {
    match kind {
        Type::Float64 => f64::from_bits(a as u64).total_cmp(&f64::from_bits(b as u64)),
        Type::Text => texts.get(a as u64).as_bytes().cmp(texts.get(b as u64).as_bytes()),
        _ => a.cmp(&b),
    }
}
