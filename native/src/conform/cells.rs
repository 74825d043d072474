//! Cells of a text file, each read as JSON's text of its type is: one that cannot be read costs its row alone.
//!
//! What files write otherwise than JSON: a cell of no text is null where text is not wanted, blanks around it do not
//! count, a time without a zone is in UTC, a date is its midnight, and true may be `TRUE` or `1`.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{ArrayRef, ArrowPrimitiveType, BooleanArray, PrimitiveArray, StringArray};

use super::columns::{Converted, Unfit, convert, note};
use crate::decode::Wrong;
use crate::decode::scalars::{read_decimal, read_float64, read_int64, read_time};
use crate::schema::Type;

/// A column of text as the wanted type; columns of anything else are converted.
pub fn read(column: &ArrayRef, kind: Type) -> Result<Converted, Unfit> {
    let Some(text) = column.as_string_opt::<i32>() else { return convert(column, kind) };
    Ok(match kind {
        Type::Text => (column.clone(), Vec::new()),
        Type::Bool => {
            let (values, wrongs) = values(text, read_bool);
            (Arc::new(BooleanArray::from(values)), wrongs)
        }
        Type::Int64 => primitives::<Int64Type>(text, kind, |cell| read_int64(number(cell)?)),
        Type::Float64 => primitives::<Float64Type>(text, kind, |cell| read_float64(number(cell)?)),
        Type::Timestamp => {
            primitives::<TimestampMicrosecondType>(text, kind, |cell| read_time(&in_full(cell)))
        }
        Type::Decimal(precision, scale) => {
            primitives::<Decimal128Type>(text, kind, |cell| read_decimal(cell, precision, scale))
        }
    })
}

fn primitives<T: ArrowPrimitiveType>(
    text: &StringArray,
    kind: Type,
    rule: impl Fn(&str) -> Result<T::Native, Wrong>,
) -> Converted {
    let (values, wrongs) = values(text, rule);
    (Arc::new(PrimitiveArray::<T>::from_iter(values).with_data_type(kind.arrow())), wrongs)
}

/// Each cell's value; a refused one becomes the type's default.
fn values<V: Default>(
    text: &StringArray,
    rule: impl Fn(&str) -> Result<V, Wrong>,
) -> (Vec<Option<V>>, Vec<(u32, Wrong)>) {
    let mut wrongs = Vec::new();
    let mut read = |(row, cell): (usize, Option<&str>)| {
        let cell = cell.map(str::trim_ascii).filter(|cell| !cell.is_empty())?;
        Some(rule(cell).unwrap_or_else(|wrong| {
            note(&mut wrongs, row, wrong);
            V::default()
        }))
    };
    (text.iter().enumerate().map(&mut read).collect(), wrongs)
}

fn read_bool(cell: &str) -> Result<bool, Wrong> {
    let is = |word: &str| cell.eq_ignore_ascii_case(word);
    match (is("true") || cell == "1", is("false") || cell == "0") {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(Wrong::new("wrong_type", "text that is neither true nor false")),
    }
}

/// What has the letters of a number; whether it is one, its reader sees.
fn number(cell: &str) -> Result<&str, Wrong> {
    let spelled = cell.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    match spelled && cell.bytes().any(|byte| byte.is_ascii_digit()) {
        true => Ok(cell),
        false => Err(Wrong::new("wrong_type", "text that is not a number")),
    }
}

/// A time with its clock and its zone.
fn in_full(cell: &str) -> Cow<'_, str> {
    match cell.as_bytes().get(11..) {
        None if cell.len() == 10 => format!("{cell}T00:00:00Z").into(),
        Some(clock) if !clock.iter().any(|byte| matches!(byte, b'Z' | b'+' | b'-')) => {
            format!("{cell}Z").into()
        }
        _ => cell.into(),
    }
}
