//! The columns that operations work on: Arrow's buffers without Arrow's arrays around them.
//!
//! An array costs two allocations and a type beside its values. A batch is often one event, and
//! twenty expressions are some eighty operations, so only the results become arrays.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, PrimitiveArray, StringArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::DataType;

use super::plan::Node;
use crate::error::{Error, Result};
use crate::schema::Type;

#[derive(Clone, Debug)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Decimal(i128),
    Text(Arc<[u8]>),
}

/// The values of a column; those of null rows mean nothing. Timestamps are integers here.
#[derive(Clone, Debug)]
pub(super) enum Values {
    Bool(BooleanBuffer),
    Int(ScalarBuffer<i64>),
    Float(ScalarBuffer<f64>),
    Decimal(ScalarBuffer<i128>),
    Text(Text),
}

/// UTF-8 texts, one after the other. They are checked when they become an array.
#[derive(Clone, Debug)]
pub(super) struct Text {
    offsets: OffsetBuffer<i32>,
    bytes: Buffer,
}

#[derive(Clone, Debug)]
pub(super) enum Column {
    /// The same in every row.
    One(Scalar),
    Rows(Values, Option<NullBuffer>),
}

/// What an operation leaves: its column, and the rows in which it could not be done.
pub(super) struct Outcome {
    pub column: Column,
    pub faults: Option<BooleanBuffer>,
}

impl Outcome {
    /// Values that are null where an argument was, and where the operation could not be done.
    pub fn new(
        values: impl Into<Values>,
        nulls: Option<NullBuffer>,
        faults: Option<BooleanBuffer>,
    ) -> Outcome {
        let faults = match (&nulls, faults) {
            (Some(nulls), Some(faults)) => Some(&faults & nulls.inner()),
            (_, faults) => faults,
        };
        let faults = faults.filter(|faults| faults.count_set_bits() > 0);
        let nulls = match &faults {
            Some(faults) => NullBuffer::union(nulls.as_ref(), Some(&NullBuffer::new(!faults))),
            None => nulls,
        };
        Outcome { column: Column::Rows(values.into(), nulls), faults }
    }

    /// Values of an operation that can always be done.
    pub fn whole(values: impl Into<Values>, nulls: Option<NullBuffer>) -> Outcome {
        Outcome { column: Column::Rows(values.into(), nulls), faults: None }
    }
}

impl From<BooleanBuffer> for Values {
    fn from(values: BooleanBuffer) -> Values {
        Values::Bool(values)
    }
}

impl From<Vec<i64>> for Values {
    fn from(values: Vec<i64>) -> Values {
        Values::Int(values.into())
    }
}

impl From<Vec<f64>> for Values {
    fn from(values: Vec<f64>) -> Values {
        Values::Float(values.into())
    }
}

impl From<Vec<i128>> for Values {
    fn from(values: Vec<i128>) -> Values {
        Values::Decimal(values.into())
    }
}

impl From<Text> for Values {
    fn from(values: Text) -> Values {
        Values::Text(values)
    }
}

// Between arrays and columns

impl Column {
    /// Rows `start..start + rows` of an array whose type was checked.
    pub fn from_array(array: &ArrayRef, start: usize, rows: usize) -> Column {
        let values = match array.data_type() {
            DataType::Boolean => Values::Bool(array.as_boolean().values().slice(start, rows)),
            DataType::Int64 => Values::Int(array.as_primitive::<Int64Type>().values().slice(start, rows)),
            DataType::Float64 => {
                Values::Float(array.as_primitive::<Float64Type>().values().slice(start, rows))
            }
            DataType::Decimal128(..) => {
                Values::Decimal(array.as_primitive::<Decimal128Type>().values().slice(start, rows))
            }
            DataType::Timestamp(..) => {
                Values::Int(array.as_primitive::<TimestampMicrosecondType>().values().slice(start, rows))
            }
            _ => {
                let texts = array.as_string::<i32>();
                let offsets = texts.offsets().slice(start, rows);
                Values::Text(Text { offsets, bytes: texts.values().clone() })
            }
        };
        let nulls = array.nulls().map(|nulls| nulls.slice(start, rows));
        Column::Rows(values, nulls.filter(|nulls| nulls.null_count() > 0))
    }

    pub fn to_array(&self, kind: Type, rows: usize) -> Result<ArrayRef> {
        let (values, nulls) = match self {
            Column::Rows(values, nulls) => (values.clone(), nulls.clone()),
            Column::One(scalar) => (repeat(scalar, kind, rows)?, scalar.nulls(rows)),
        };
        Ok(match values {
            Values::Bool(values) => Arc::new(BooleanArray::new(values, nulls)),
            Values::Int(values) if kind == Type::Timestamp => {
                let array = PrimitiveArray::<TimestampMicrosecondType>::new(values, nulls);
                Arc::new(array.with_data_type(kind.arrow()))
            }
            Values::Int(values) => Arc::new(PrimitiveArray::<Int64Type>::new(values, nulls)),
            Values::Float(values) => Arc::new(PrimitiveArray::<Float64Type>::new(values, nulls)),
            Values::Decimal(values) => {
                let array = PrimitiveArray::<Decimal128Type>::new(values, nulls);
                Arc::new(array.with_data_type(kind.arrow()))
            }
            Values::Text(Text { offsets, bytes }) => {
                let array = StringArray::try_new(offsets, bytes, nulls);
                Arc::new(array.map_err(|error| Error::invalid(format!("a text is not UTF-8: {error}")))?)
            }
        })
    }

    pub fn scalar(&self, row: usize) -> Scalar {
        match self {
            Column::One(scalar) => scalar.clone(),
            _ if !self.valid(row) => Scalar::Null,
            Column::Rows(Values::Bool(values), _) => Scalar::Bool(values.value(row)),
            Column::Rows(Values::Int(values), _) => Scalar::Int(values[row]),
            Column::Rows(Values::Float(values), _) => Scalar::Float(values[row]),
            Column::Rows(Values::Decimal(values), _) => Scalar::Decimal(values[row]),
            Column::Rows(Values::Text(values), _) => Scalar::Text(Arc::from(values.get(row))),
        }
    }

    pub fn valid(&self, row: usize) -> bool {
        match self {
            Column::One(scalar) => !scalar.is_null(),
            Column::Rows(_, nulls) => nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)),
        }
    }

    pub fn has_nulls(&self) -> bool {
        match self {
            Column::One(scalar) => scalar.is_null(),
            Column::Rows(_, nulls) => nulls.is_some(),
        }
    }

    /// A bit for each row that is not null.
    pub fn valid_bits(&self, rows: usize) -> BooleanBuffer {
        match self {
            Column::One(scalar) if scalar.is_null() => BooleanBuffer::new_unset(rows),
            Column::Rows(_, Some(nulls)) => nulls.inner().clone(),
            _ => BooleanBuffer::new_set(rows),
        }
    }

    /// A bit for each row that is true: neither false nor null.
    pub fn true_bits(&self, rows: usize) -> BooleanBuffer {
        match self {
            Column::One(Scalar::Bool(true)) => BooleanBuffer::new_set(rows),
            Column::Rows(Values::Bool(values), None) => values.clone(),
            Column::Rows(Values::Bool(values), Some(nulls)) => values & nulls.inner(),
            _ => BooleanBuffer::new_unset(rows),
        }
    }

    /// A bit for each row that is false: neither true nor null.
    pub fn false_bits(&self, rows: usize) -> BooleanBuffer {
        match self {
            Column::One(Scalar::Bool(false)) => BooleanBuffer::new_set(rows),
            Column::Rows(Values::Bool(values), None) => !values,
            Column::Rows(Values::Bool(values), Some(nulls)) => &!values & nulls.inner(),
            _ => BooleanBuffer::new_unset(rows),
        }
    }
}

impl Scalar {
    pub fn is_null(&self) -> bool {
        matches!(self, Scalar::Null)
    }

    fn nulls(&self, rows: usize) -> Option<NullBuffer> {
        self.is_null().then(|| NullBuffer::new_null(rows))
    }
}

fn repeat(scalar: &Scalar, kind: Type, rows: usize) -> Result<Values> {
    Ok(match (scalar, kind) {
        (Scalar::Bool(value), _) => bits(rows, |_| *value).into(),
        (Scalar::Int(value), _) => vec![*value; rows].into(),
        (Scalar::Float(value), _) => vec![*value; rows].into(),
        (Scalar::Decimal(value), _) => vec![*value; rows].into(),
        (Scalar::Text(value), _) => Text::collect(rows, (0..rows).map(|_| value.as_ref()))?.into(),
        (Scalar::Null, Type::Bool) => BooleanBuffer::new_unset(rows).into(),
        (Scalar::Null, Type::Int64 | Type::Timestamp) => vec![0i64; rows].into(),
        (Scalar::Null, Type::Float64) => vec![0f64; rows].into(),
        (Scalar::Null, Type::Decimal(..)) => vec![0i128; rows].into(),
        (Scalar::Null, Type::Text) => Text::collect(rows, (0..rows).map(|_| b"".as_slice()))?.into(),
    })
}

// Texts

impl Text {
    pub fn get(&self, row: usize) -> &[u8] {
        &self.bytes[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    pub fn collect<'a>(rows: usize, texts: impl Iterator<Item = &'a [u8]>) -> Result<Text> {
        let mut builder = TextBuilder::new(rows);
        for text in texts {
            builder.bytes.extend_from_slice(text);
            builder.end()?;
        }
        Ok(builder.finish())
    }
}

pub(super) struct TextBuilder {
    pub bytes: Vec<u8>,
    offsets: Vec<i32>,
}

impl TextBuilder {
    pub fn new(rows: usize) -> TextBuilder {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        TextBuilder { bytes: Vec::new(), offsets }
    }

    /// What was put into `bytes` since the last call is one row's text.
    pub fn end(&mut self) -> Result<()> {
        let end = i32::try_from(self.bytes.len())
            .map_err(|_| Error::invalid("a batch's texts are more than 2 GiB together"))?;
        self.offsets.push(end);
        Ok(())
    }

    pub fn finish(self) -> Text {
        Text { offsets: OffsetBuffer::new(self.offsets.into()), bytes: Buffer::from_vec(self.bytes) }
    }
}

// What operations see of their arguments

/// One operation with its arguments, and the rows of the chunk.
pub(super) struct Args<'a> {
    pub node: &'a Node,
    pub slots: &'a [Column],
    pub rows: usize,
}

impl<'a> Args<'a> {
    pub fn len(&self) -> usize {
        self.node.args.len()
    }

    pub fn column(&self, place: usize) -> &'a Column {
        &self.slots[self.node.args[place]]
    }

    pub fn kind(&self, place: usize) -> Type {
        self.node.arg_kinds[place]
    }

    /// Null where any argument is: what most operations are.
    pub fn nulls(&self) -> Option<NullBuffer> {
        let mut union = None;
        for &place in &self.node.args {
            match &self.slots[place] {
                Column::One(Scalar::Null) => return Some(NullBuffer::new_null(self.rows)),
                Column::Rows(_, Some(nulls)) => union = NullBuffer::union(union.as_ref(), Some(nulls)),
                _ => {}
            }
        }
        union
    }

    pub fn bools(&self, place: usize) -> Bits<'a> {
        match self.column(place) {
            Column::Rows(Values::Bool(values), _) => Bits::Rows(values),
            Column::One(Scalar::Bool(value)) => Bits::One(*value),
            other => Bits::One(other.absent()),
        }
    }

    pub fn ints(&self, place: usize) -> Side<'a, i64> {
        match self.column(place) {
            Column::Rows(Values::Int(values), _) => Side::Rows(values),
            Column::One(Scalar::Int(value)) => Side::One(*value),
            other => Side::One(other.absent()),
        }
    }

    pub fn floats(&self, place: usize) -> Side<'a, f64> {
        match self.column(place) {
            Column::Rows(Values::Float(values), _) => Side::Rows(values),
            Column::One(Scalar::Float(value)) => Side::One(*value),
            other => Side::One(other.absent()),
        }
    }

    pub fn decimals(&self, place: usize) -> Side<'a, i128> {
        match self.column(place) {
            Column::Rows(Values::Decimal(values), _) => Side::Rows(values),
            Column::One(Scalar::Decimal(value)) => Side::One(*value),
            other => Side::One(other.absent()),
        }
    }

    pub fn texts(&self, place: usize) -> Texts<'a> {
        match self.column(place) {
            Column::Rows(Values::Text(values), _) => Texts::Rows(values),
            Column::One(Scalar::Text(value)) => Texts::One(value),
            other => Texts::One(other.absent()),
        }
    }
}

impl Column {
    /// The value that stands for a constant null. Anything else here was let through by binding.
    fn absent<T: Default>(&self) -> T {
        assert!(matches!(self, Column::One(Scalar::Null)), "binding checks every argument's type");
        T::default()
    }
}

/// An argument's values by row.
pub(super) trait Source: Copy {
    type Item;
    fn get(self, row: usize) -> Self::Item;
}

#[derive(Clone, Copy)]
pub(super) enum Side<'a, T> {
    Rows(&'a [T]),
    One(T),
}

#[derive(Clone, Copy)]
pub(super) enum Bits<'a> {
    Rows(&'a BooleanBuffer),
    One(bool),
}

#[derive(Clone, Copy)]
pub(super) enum Texts<'a> {
    Rows(&'a Text),
    One(&'a [u8]),
}

impl<T: Copy> Source for Side<'_, T> {
    type Item = T;
    fn get(self, row: usize) -> T {
        match self {
            Side::Rows(values) => values[row],
            Side::One(value) => value,
        }
    }
}

impl Source for Bits<'_> {
    type Item = bool;
    fn get(self, row: usize) -> bool {
        match self {
            Bits::Rows(values) => values.value(row),
            Bits::One(value) => value,
        }
    }
}

impl<'a> Source for Texts<'a> {
    type Item = &'a [u8];
    fn get(self, row: usize) -> &'a [u8] {
        match self {
            Texts::Rows(values) => values.get(row),
            Texts::One(value) => value,
        }
    }
}

// Loops

/// One bit per row.
pub(super) fn bits(rows: usize, bit: impl Fn(usize) -> bool) -> BooleanBuffer {
    let words = (0..rows).step_by(64).map(|start| {
        // Bytes first: that loop works on many rows at a time, and packing does on eight.
        let mut bytes = [0u8; 64];
        for (byte, row) in bytes.iter_mut().zip(start..rows.min(start + 64)) {
            *byte = bit(row) as u8;
        }
        bytes.chunks_exact(8).rev().fold(0, |word, eight| word << 8 | pack(eight))
    });
    BooleanBuffer::new(Buffer::from_vec(words.collect::<Vec<u64>>()), 0, rows)
}

/// Eight bytes of 0 or 1 as the bits of one, the first as the lowest: the product moves byte i by 56 − 7i bits.
fn pack(eight: &[u8]) -> u64 {
    let bytes = u64::from_le_bytes(eight.try_into().expect("eight of them"));
    bytes.wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// One bit per row of a pair of arguments.
pub(super) fn test<A: Copy, B: Copy>(
    rows: usize,
    left: Side<A>,
    right: Side<B>,
    holds: impl Fn(A, B) -> bool,
) -> BooleanBuffer {
    match (left, right) {
        (Side::Rows(left), Side::Rows(right)) => {
            let (left, right) = (&left[..rows], &right[..rows]);
            bits(rows, |row| holds(left[row], right[row]))
        }
        (Side::Rows(left), Side::One(right)) => bits(rows, |row| holds(left[row], right)),
        (Side::One(left), Side::Rows(right)) => bits(rows, |row| holds(left, right[row])),
        (Side::One(left), Side::One(right)) => bits(rows, |_| holds(left, right)),
    }
}

/// An operation on two arguments that always can be done.
pub(super) fn pairs<A: Copy, B: Copy, R>(
    rows: usize,
    left: Side<A>,
    right: Side<B>,
    mut of: impl FnMut(A, B) -> R,
) -> Vec<R> {
    match (left, right) {
        (Side::Rows(left), Side::Rows(right)) => {
            left.iter().zip(right).map(|(&left, &right)| of(left, right)).collect()
        }
        (Side::Rows(left), Side::One(right)) => left.iter().map(|&left| of(left, right)).collect(),
        (Side::One(left), Side::Rows(right)) => right.iter().map(|&right| of(left, right)).collect(),
        (Side::One(left), Side::One(right)) => (0..rows).map(|_| of(left, right)).collect(),
    }
}

/// An operation on two arguments that says beside its value whether it could not be done.
///
/// The first pass is free of branches; which rows faulted is asked only if one did.
pub(super) fn checked<A: Copy, B: Copy, R>(
    args: &Args,
    left: Side<A>,
    right: Side<B>,
    of: impl Fn(A, B) -> (R, bool),
) -> Outcome
where
    Values: From<Vec<R>>,
{
    let mut any = false;
    let values = pairs(args.rows, left, right, |left, right| {
        let (value, fault) = of(left, right);
        any |= fault;
        value
    });
    let faults = any.then(|| test(args.rows, left, right, |left, right| of(left, right).1));
    Outcome::new(values, args.nulls(), faults)
}

/// The same for one argument.
pub(super) fn checked_one<A: Copy, R>(args: &Args, side: Side<A>, of: impl Fn(A) -> (R, bool)) -> Outcome
where
    Values: From<Vec<R>>,
{
    checked(args, side, Side::One(()), |value, ()| of(value))
}
