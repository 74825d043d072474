//! Answers: written row by row as words, then gathered into Arrow's columns.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType,
};
use arrow_array::{ArrayRef, BooleanArray, PrimitiveArray, StringArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

use crate::error::{Error, Result};
use crate::schema::Type;

use super::texts::Texts;

/// Where each wanted read's value lies in a row of answers: bits that say which are null come first.
#[derive(Debug, Default)]
pub struct Shape {
    places: Vec<(usize, bool)>,
    width: usize,
}

impl Shape {
    pub fn new(types: &[Type]) -> Shape {
        let mut width = types.len().div_ceil(64);
        let mut place = |kind: &Type| {
            let wide = matches!(kind, Type::Decimal(..));
            width += 1 + wide as usize;
            (width - 1 - wide as usize, wide)
        };
        let places = types.iter().map(&mut place).collect();
        Shape { places, width }
    }
}

/// What one shard answered: its rows, and a line of words for each.
#[derive(Debug, Default)]
pub struct Answers {
    rows: Vec<u32>,
    words: Vec<u64>,
}

impl Answers {
    pub fn clear(&mut self) {
        self.rows.clear();
        self.words.clear();
    }

    /// A new row's line, all zero.
    #[inline]
    pub fn line(&mut self, row: u32, shape: &Shape) -> &mut [u64] {
        self.rows.push(row);
        let start = self.words.len();
        self.words.resize(start + shape.width, 0);
        &mut self.words[start..]
    }
}

impl Shape {
    #[inline(always)]
    pub fn set(&self, line: &mut [u64], read: usize, value: Option<i128>) {
        let Some(value) = value else { return line[read / 64] |= 1 << (read % 64) };
        let (at, wide) = self.places[read];
        line[at] = value as u64;
        if wide {
            line[at + 1] = (value >> 64) as u64;
        }
    }

    #[inline(always)]
    fn get(&self, line: &[u64], read: usize) -> Option<i128> {
        let (at, wide) = self.places[read];
        let high = if wide { (line[at + 1] as i64 as i128) << 64 } else { 0 };
        (line[read / 64] >> (read % 64) & 1 == 0).then(|| high | line[at] as i128)
    }
}

/// A wanted read's column, being filled slab by slab.
pub struct Output {
    read: usize,
    kind: Type,
    values: Values,
    valid: Vec<u8>,
    nulls: usize,
}

enum Values {
    Words(Vec<i64>),
    Floats(Vec<f64>),
    Decimals(Vec<i128>),
    Bools(Vec<bool>),
    Texts { ends: Vec<i32>, bytes: Vec<u8> },
}

impl Output {
    pub fn new(read: usize, kind: Type, rows: usize) -> Output {
        let values = match kind {
            Type::Int64 | Type::Timestamp => Values::Words(vec![0; rows]),
            Type::Float64 => Values::Floats(vec![0.0; rows]),
            Type::Decimal(..) => Values::Decimals(vec![0; rows]),
            Type::Bool => Values::Bools(vec![false; rows]),
            Type::Text => Values::Texts { ends: vec![0], bytes: Vec::new() },
        };
        Output { read, kind, values, valid: vec![0; rows.div_ceil(8)], nulls: rows }
    }

    /// Takes in what the shards answered for the next rows.
    pub fn take(
        &mut self,
        shape: &Shape,
        parts: &[Answers],
        texts: &[&Texts],
        rows: Range<usize>,
    ) -> Result<()> {
        self.mark_answered(parts, &rows);
        if let Values::Texts { .. } = self.values {
            return self.take_texts(shape, parts, texts, rows);
        }
        let (read, valid) = (self.read, &mut self.valid);
        for part in parts {
            self.nulls += match &mut self.values {
                Values::Words(values) => scatter(shape, read, part, valid, |row, v| values[row] = v as i64),
                Values::Floats(values) => {
                    scatter(shape, read, part, valid, |row, v| values[row] = f64::from_bits(v as u64))
                }
                Values::Decimals(values) => scatter(shape, read, part, valid, |row, v| values[row] = v),
                Values::Bools(values) => scatter(shape, read, part, valid, |row, v| values[row] = v != 0),
                Values::Texts { .. } => unreachable!("texts were taken"),
            };
        }
        Ok(())
    }

    /// Rows that belong to no entity have no answer, and stay null.
    fn mark_answered(&mut self, parts: &[Answers], rows: &Range<usize>) {
        let answered: usize = parts.iter().map(|part| part.rows.len()).sum();
        self.nulls -= answered;
        if answered == rows.len() && rows.start.is_multiple_of(8) {
            self.valid[rows.start / 8..rows.end.div_ceil(8)].fill(u8::MAX);
            return;
        }
        for row in parts.iter().flat_map(|part| &part.rows) {
            self.valid[*row as usize / 8] |= 1 << (row % 8);
        }
    }

    /// Texts go in the order of rows, not of shards.
    fn take_texts(
        &mut self,
        shape: &Shape,
        parts: &[Answers],
        texts: &[&Texts],
        rows: Range<usize>,
    ) -> Result<()> {
        let mut found: Vec<&str> = vec![""; rows.len()];
        for (part, texts) in parts.iter().zip(texts) {
            let put = |row: usize, id: i128| found[row - rows.start] = texts.get(id as u64);
            self.nulls += scatter(shape, self.read, part, &mut self.valid, put);
        }
        let Values::Texts { ends, bytes } = &mut self.values else { return Ok(()) };
        for text in found {
            bytes.extend_from_slice(text.as_bytes());
            ends.push(i32::try_from(bytes.len()).map_err(|_| too_long())?);
        }
        Ok(())
    }

    pub fn finish(mut self) -> ArrayRef {
        let rows = match &self.values {
            Values::Words(values) => values.len(),
            Values::Floats(values) => values.len(),
            Values::Decimals(values) => values.len(),
            Values::Bools(values) => values.len(),
            Values::Texts { ends, .. } => ends.len() - 1,
        };
        // Equal columns have equal bytes: the last one's bits beyond the rows are clear.
        if let (Some(last), 1..) = (self.valid.last_mut(), rows % 8) {
            *last &= (1 << (rows % 8)) - 1;
        }
        let valid = BooleanBuffer::new(Buffer::from_vec(self.valid), 0, rows);
        let nulls = (self.nulls > 0).then(|| NullBuffer::new(valid));
        match (self.values, self.kind) {
            (Values::Words(values), Type::Timestamp) => {
                Arc::new(primitive::<TimestampMicrosecondType>(values, nulls).with_timezone("UTC"))
            }
            (Values::Words(values), _) => Arc::new(primitive::<Int64Type>(values, nulls)),
            (Values::Floats(values), _) => Arc::new(primitive::<Float64Type>(values, nulls)),
            (Values::Decimals(values), kind) => {
                Arc::new(primitive::<Decimal128Type>(values, nulls).with_data_type(kind.arrow()))
            }
            (Values::Bools(values), _) => Arc::new(BooleanArray::new(values.into(), nulls)),
            (Values::Texts { ends, bytes }, _) => {
                let ends = OffsetBuffer::new(ScalarBuffer::from(ends));
                Arc::new(StringArray::new(ends, bytes.into(), nulls))
            }
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(values: Vec<T::Native>, nulls: Option<NullBuffer>) -> PrimitiveArray<T> {
    PrimitiveArray::new(values.into(), nulls)
}

/// Puts one read's values in their rows; gives how many are null.
#[inline(always)]
fn scatter(
    shape: &Shape,
    read: usize,
    part: &Answers,
    valid: &mut [u8],
    mut put: impl FnMut(usize, i128),
) -> usize {
    let mut nulls = 0;
    for (row, line) in part.rows.iter().zip(part.words.chunks_exact(shape.width)) {
        match shape.get(line, read) {
            Some(value) => put(*row as usize, value),
            None => {
                valid[*row as usize / 8] &= !(1 << (row % 8));
                nulls += 1;
            }
        }
    }
    nulls
}

fn too_long() -> Error {
    Error::invalid_with("the texts of a batch's answers take more than 2 GiB", "let smaller batches pass")
}
