//! One column into one type, a vector at a time.

use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, Decimal128Array, PrimitiveArray, StringArray,
    TimestampMicrosecondArray,
};
use arrow_buffer::{OffsetBuffer, i256};
use arrow_schema::{DataType, TimeUnit};
use arrow_select::take::take;

use super::REFUSED_MAX;
use crate::decode::Wrong;
use crate::decode::scalars::{TIMES, power_of_ten, read_decimal, without_negative_zero};
use crate::error::Error;
use crate::schema::Type;

/// A column of the wanted type, and the rows whose value that type cannot hold.
pub type Converted = (ArrayRef, Vec<(u32, Wrong)>);

/// Why a whole column cannot become the wanted type.
pub enum Unfit {
    Kind { given: DataType, wanted: Type },
    TooMuchText,
}

/// Text that a few bytes can stand for many times (a dictionary, a view) is written out up to this size.
const TEXT_BYTES_MAX: usize = 256 << 20;

impl Unfit {
    pub fn of_column(self, name: &str) -> Error {
        match self {
            Unfit::Kind { given, wanted } => {
                Error::invalid(format!("column {name:?} holds {given}, which cannot become {wanted}"))
            }
            Unfit::TooMuchText => Error::invalid_with(
                format!("column {name:?} holds more text than one batch can"),
                "send smaller batches",
            ),
        }
    }
}

/// Nulls stay nulls; a refused value becomes a placeholder.
pub fn convert(column: &ArrayRef, kind: Type) -> Result<Converted, Unfit> {
    if let DataType::Dictionary(..) = column.data_type() {
        return convert(&written_out(column)?, kind);
    }
    let converted = match kind {
        Type::Bool => (*column.data_type() == DataType::Boolean).then(|| whole(column.clone())),
        Type::Int64 => to_int64(column),
        Type::Float64 => to_float64(column),
        Type::Text => to_text(column)?.map(|text| whole(Arc::new(text))),
        Type::Timestamp => to_timestamp(column),
        Type::Decimal(precision, scale) => to_decimal(column, precision, scale)?,
    };
    converted.ok_or_else(|| Unfit::Kind { given: column.data_type().clone(), wanted: kind })
}

fn whole(column: ArrayRef) -> Converted {
    (column, Vec::new())
}

fn to_int64(column: &ArrayRef) -> Option<Converted> {
    Some(match column.data_type() {
        DataType::Int64 => whole(column.clone()),
        DataType::Int8 => whole(widened::<Int8Type, Int64Type>(column)),
        DataType::Int16 => whole(widened::<Int16Type, Int64Type>(column)),
        DataType::Int32 => whole(widened::<Int32Type, Int64Type>(column)),
        DataType::UInt8 => whole(widened::<UInt8Type, Int64Type>(column)),
        DataType::UInt16 => whole(widened::<UInt16Type, Int64Type>(column)),
        DataType::UInt32 => whole(widened::<UInt32Type, Int64Type>(column)),
        DataType::UInt64 => checked::<UInt64Type, Int64Type>(column, |value| {
            i64::try_from(value).map_err(|_| Wrong::new("out_of_range", "an integer beyond 64 bits"))
        }),
        _ => return None,
    })
}

fn to_float64(column: &ArrayRef) -> Option<Converted> {
    Some(match column.data_type() {
        DataType::Float64 if all::<Float64Type>(column, is_plain) => whole(column.clone()),
        DataType::Float64 => checked::<Float64Type, Float64Type>(column, finite),
        DataType::Float32 => checked::<Float32Type, Float64Type>(column, |value| finite(value.into())),
        DataType::Int8 => whole(widened::<Int8Type, Float64Type>(column)),
        DataType::Int16 => whole(widened::<Int16Type, Float64Type>(column)),
        DataType::Int32 => whole(widened::<Int32Type, Float64Type>(column)),
        DataType::UInt8 => whole(widened::<UInt8Type, Float64Type>(column)),
        DataType::UInt16 => whole(widened::<UInt16Type, Float64Type>(column)),
        DataType::UInt32 => whole(widened::<UInt32Type, Float64Type>(column)),
        DataType::Int64 => {
            checked::<Int64Type, Float64Type>(column, |value| exact_float(value as f64, value.into()))
        }
        DataType::UInt64 => {
            checked::<UInt64Type, Float64Type>(column, |value| exact_float(value as f64, value.into()))
        }
        _ => return None,
    })
}

/// Finite and not −0.0: a float that stays as it is.
fn is_plain(value: f64) -> bool {
    value.is_finite() & (value.to_bits() != (-0.0_f64).to_bits())
}

fn finite(value: f64) -> Result<f64, Wrong> {
    match value.is_finite() {
        true => Ok(without_negative_zero(value)),
        false => Err(not_finite()),
    }
}

#[cold]
fn not_finite() -> Wrong {
    Wrong::new("out_of_range", "NaN or an infinity")
}

fn exact_float(float: f64, integer: i128) -> Result<f64, Wrong> {
    match float as i128 == integer {
        true => Ok(float),
        false => Err(Wrong::new("too_precise", "an integer that 64-bit floating point cannot hold exactly")),
    }
}

fn to_timestamp(column: &ArrayRef) -> Option<Converted> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    // With a zone or without, Arrow's numbers count from 1970 UTC: what has no zone is taken as UTC.
    let (column, wrongs) = match column.data_type() {
        DataType::Timestamp(Microsecond, _)
            if all::<TimestampMicrosecondType>(column, |time| TIMES.contains(&time)) =>
        {
            whole(column.clone())
        }
        DataType::Timestamp(Microsecond, _) => time::<TimestampMicrosecondType>(column, 1),
        DataType::Timestamp(Millisecond, _) => time::<TimestampMillisecondType>(column, 1_000),
        DataType::Timestamp(Second, _) => time::<TimestampSecondType>(column, 1_000_000),
        DataType::Timestamp(Nanosecond, _) => {
            checked::<TimestampNanosecondType, TimestampMicrosecondType>(column, |time| match time % 1_000 {
                0 => Ok(time / 1_000),
                _ => Err(Wrong::new("too_precise", "a time finer than microseconds")),
            })
        }
        DataType::Date32 => time::<Date32Type>(column, 86_400_000_000),
        DataType::Date64 => time::<Date64Type>(column, 1_000),
        _ => return None,
    };
    let times: &TimestampMicrosecondArray = column.as_primitive();
    Some((Arc::new(times.clone().with_timezone("UTC")), wrongs))
}

/// Times of a unit of `unit_us` microseconds.
fn time<F: ArrowPrimitiveType>(column: &ArrayRef, unit_us: i64) -> Converted
where
    F::Native: Into<i64>,
{
    let range = TIMES.start() / unit_us..=TIMES.end() / unit_us;
    checked::<F, TimestampMicrosecondType>(column, |time| {
        let time = time.into();
        match range.contains(&time) {
            true => Ok(time * unit_us),
            false => Err(Wrong::new("out_of_range", "a time outside the years 1 to 9999 in UTC")),
        }
    })
}

fn to_decimal(column: &ArrayRef, precision: u8, scale: i8) -> Result<Option<Converted>, Unfit> {
    let target = Target { precision, scale, limit: power_of_ten(precision.into()) };
    let converted = match column.data_type() {
        DataType::Decimal128(_, from)
            if *from == scale && all::<Decimal128Type>(column, |value| target.holds(value)) =>
        {
            whole(column.clone())
        }
        DataType::Decimal128(_, from) => target.rescaled::<Decimal128Type>(column, *from),
        DataType::Decimal64(_, from) => target.rescaled::<Decimal64Type>(column, *from),
        DataType::Decimal32(_, from) => target.rescaled::<Decimal32Type>(column, *from),
        DataType::Decimal256(_, from) => {
            checked::<Decimal256Type, Decimal128Type>(column, |value| target.rescale_wide(value, *from))
        }
        DataType::Float64 => target.rounded(column),
        DataType::UInt64 => target.rescaled::<UInt64Type>(column, 0),
        _ => match (to_int64(column), to_text(column)?) {
            (Some((integers, _)), _) => target.rescaled::<Int64Type>(&integers, 0),
            (None, Some(text)) => target.read(&text),
            (None, None) => return Ok(None),
        },
    };
    let values = converted.0.as_primitive::<Decimal128Type>().clone();
    let values =
        values.with_precision_and_scale(precision, scale).expect("a schema's precision and scale are valid");
    Ok(Some((Arc::new(values), converted.1)))
}

/// The decimal type that is wanted.
struct Target {
    precision: u8,
    scale: i8,
    /// 10 to the power of the precision: the least unscaled integer that no longer fits.
    limit: i128,
}

impl Target {
    fn holds(&self, unscaled: i128) -> bool {
        -self.limit < unscaled && unscaled < self.limit
    }

    fn fitting(&self, unscaled: i128) -> Result<i128, Wrong> {
        if self.holds(unscaled) { Ok(unscaled) } else { Err(too_large()) }
    }

    fn rescaled<F: ArrowPrimitiveType>(&self, column: &ArrayRef, from: i8) -> Converted
    where
        F::Native: Into<i128>,
    {
        checked::<F, Decimal128Type>(column, |value| self.rescale(value.into(), from))
    }

    fn rescale(&self, value: i128, from: i8) -> Result<i128, Wrong> {
        let shift = i32::from(self.scale) - i32::from(from);
        match (value, shift) {
            (0, _) => Ok(0),
            (_, 0..=38) => {
                let scaled = value.checked_mul(power_of_ten(shift as usize)).ok_or_else(too_large)?;
                self.fitting(scaled)
            }
            (_, -38..0) if value % power_of_ten(-shift as usize) == 0 => {
                self.fitting(value / power_of_ten(-shift as usize))
            }
            (_, 39..) => Err(too_large()),
            _ => Err(self.too_precise()),
        }
    }

    fn rescale_wide(&self, value: i256, from: i8) -> Result<i128, Wrong> {
        let shift = i32::from(self.scale) - i32::from(from);
        let unit = i256::from_i128(10).checked_pow(shift.unsigned_abs());
        let scaled = match (unit, shift) {
            _ if value == i256::ZERO => Some(value),
            (Some(unit), 0..) => value.checked_mul(unit),
            (Some(unit), _) if value.wrapping_rem(unit) == i256::ZERO => Some(value.wrapping_div(unit)),
            (None, 0..) => None,
            _ => return Err(self.too_precise()),
        };
        self.fitting(scaled.and_then(i256::to_i128).ok_or_else(too_large)?)
    }

    /// Doubles become decimals by rounding, where that changes them by no more than 1e-9.
    fn rounded(&self, column: &ArrayRef) -> Converted {
        let unit = power_of_ten(self.scale as usize) as f64;
        let limit = self.limit as f64;
        checked::<Float64Type, Decimal128Type>(column, |value| {
            // Adding 1.5 · 2^52 leaves no bits for a fraction, so the sum is rounded to an integer. Up to 8 places a
            // value within 1e-9 of a decimal is within 0.1 of that integer: nothing here can tip it over.
            const ROUND: f64 = 6_755_399_441_055_744.0;
            let scaled = value * unit;
            let rounded = (scaled + ROUND) - ROUND;
            let near = (value - rounded / unit).abs() <= 1e-9;
            let safe = self.scale <= 8 && scaled.abs() < 2_251_799_813_685_248.0 && rounded.abs() < limit;
            if near & safe { Ok((rounded as i64).into()) } else { self.round(value) }
        })
    }

    /// As above for any value and scale, from the float's text.
    #[cold]
    fn round(&self, value: f64) -> Result<i128, Wrong> {
        if !value.is_finite() {
            return Err(not_finite());
        }
        // The shortest text that reads back as this float is the decimal that it was made from, if it was one.
        if let Ok(unscaled) = read_decimal(&format!("{value:e}"), self.precision, self.scale) {
            return Ok(unscaled);
        }
        let text = format!("{value:.*}", self.scale as usize);
        let rounded: f64 = text.parse().expect("a float's text is a float");
        match (value - rounded).abs() <= 1e-9 {
            true => read_decimal(&text, self.precision, self.scale),
            false => Err(self.too_precise()),
        }
    }

    fn read(&self, text: &StringArray) -> Converted {
        let mut wrongs = Vec::new();
        let mut read =
            |(row, text): (usize, Option<&str>)| match read_decimal(text?, self.precision, self.scale) {
                Ok(unscaled) => Some(unscaled),
                Err(wrong) => {
                    note(&mut wrongs, row, wrong);
                    Some(0)
                }
            };
        let unscaled: Decimal128Array = text.iter().enumerate().map(&mut read).collect();
        (Arc::new(unscaled), wrongs)
    }

    #[cold]
    fn too_precise(&self) -> Wrong {
        Wrong::new("too_precise", format!("a number with more than {} decimal places", self.scale))
    }
}

#[cold]
fn too_large() -> Wrong {
    Wrong::new("out_of_range", "a number with too many digits before the decimal point")
}

fn to_text(column: &ArrayRef) -> Result<Option<StringArray>, Unfit> {
    Ok(Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().clone(),
        DataType::LargeUtf8 => {
            let text = column.as_string::<i64>();
            let (first, last) = (text.offsets()[0], text.offsets()[text.len()]);
            if last - first > i64::from(i32::MAX) {
                return Err(Unfit::TooMuchText);
            }
            let offsets: Vec<i32> = text.offsets().iter().map(|offset| (offset - first) as i32).collect();
            let values = text.values().slice_with_length(first as usize, (last - first) as usize);
            StringArray::new(OffsetBuffer::new(offsets.into()), values, text.nulls().cloned())
        }
        DataType::Utf8View => {
            let text = column.as_string_view();
            let bytes: usize = text.lengths().map(|length| length as usize).sum();
            if bytes > TEXT_BYTES_MAX {
                return Err(Unfit::TooMuchText);
            }
            let mut builder = StringBuilder::with_capacity(text.len(), bytes);
            text.iter().for_each(|value| builder.append_option(value));
            builder.finish()
        }
        _ => return Ok(None),
    }))
}

/// A dictionary's values, each as often as its keys say.
fn written_out(column: &ArrayRef) -> Result<ArrayRef, Unfit> {
    let dictionary = column.as_any_dictionary();
    let values: ArrayRef = match to_text(dictionary.values())? {
        None => dictionary.values().clone(),
        Some(text) => {
            let lengths: Vec<usize> = text.offsets().lengths().collect();
            let keys = if text.is_empty() { Vec::new() } else { dictionary.normalized_keys() };
            if keys.iter().map(|key| lengths[*key]).sum::<usize>() > TEXT_BYTES_MAX {
                return Err(Unfit::TooMuchText);
            }
            Arc::new(text)
        }
    };
    Ok(take(&values, dictionary.keys(), None).expect("a dictionary's keys lie within its values"))
}

fn widened<F, T>(column: &ArrayRef) -> ArrayRef
where
    F: ArrowPrimitiveType,
    T: ArrowPrimitiveType<Native: From<F::Native>>,
{
    Arc::new(column.as_primitive::<F>().unary::<_, T>(Into::into))
}

/// Convert each value; those of the rows that are refused become the type's default.
fn checked<F, T>(column: &ArrayRef, rule: impl Fn(F::Native) -> Result<T::Native, Wrong>) -> Converted
where
    F: ArrowPrimitiveType,
    T: ArrowPrimitiveType,
{
    let column = column.as_primitive::<F>();
    let mut complete = true;
    let values: Vec<T::Native> = column
        .values()
        .iter()
        .map(|value| {
            rule(*value).unwrap_or_else(|_| {
                complete = false;
                T::default_value()
            })
        })
        .collect();
    let mut wrongs = Vec::new();
    // What lies under a null means nothing, so the second look is only at values.
    if !complete {
        for (row, value) in column.iter().enumerate() {
            if let Some(Err(wrong)) = value.map(&rule) {
                note(&mut wrongs, row, wrong);
            }
        }
    }
    (Arc::new(PrimitiveArray::<T>::new(values.into(), column.nulls().cloned())), wrongs)
}

pub(super) fn note(wrongs: &mut Vec<(u32, Wrong)>, row: usize, wrong: Wrong) {
    if wrongs.len() <= REFUSED_MAX {
        wrongs.push((row as u32, wrong));
    }
}

/// Whether every value is as it should be, whatever lies under nulls included; without branches, to be vectorised.
fn all<F: ArrowPrimitiveType>(column: &ArrayRef, good: impl Fn(F::Native) -> bool) -> bool {
    column.as_primitive::<F>().values().iter().fold(true, |all, value| all & good(*value))
}
