//! Answers: written row by row as words, then turned into Arrow's columns.

use std::sync::Arc;

use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{ArrayRef, BooleanArray, PrimitiveArray, StringArray};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, NullBuffer};

use crate::error::Result;
use crate::schema::Type;

use super::layout::Step;
use super::texts::Texts;

/// The rows that one shard, or all, have answered: three words for each wanted read (valid, low, high).
pub struct Answers {
    width: usize,
    pub rows: Vec<u32>,
    words: Vec<u64>,
}

const WORDS: usize = 3;

impl Answers {
    pub fn new(wanted: usize, rows: usize) -> Answers {
        let width = wanted * WORDS;
        Answers { width, rows: Vec::with_capacity(rows), words: Vec::with_capacity(rows * width) }
    }

    /// Begins a row: all its values are null until set.
    pub fn begin(&mut self, row: usize) {
        self.rows.push(row as u32);
        self.words.resize(self.words.len() + self.width, 0);
    }

    pub fn set(&mut self, read: usize, value: Option<i128>) {
        if let Some(value) = value {
            let at = self.words.len() - self.width + read * WORDS;
            self.words[at..at + WORDS].copy_from_slice(&[1, value as u64, (value >> 64) as u64]);
        }
    }

    fn values(&self, read: usize) -> impl Iterator<Item = (usize, i128)> {
        let at = read * WORDS;
        let rows = self.rows.iter().zip(self.words.chunks_exact(self.width));
        rows.filter(move |(_, words)| words[at] == 1).map(move |(row, words)| {
            (*row as usize, (words[at + 2] as i64 as i128) << 64 | words[at + 1] as i128)
        })
    }
}

/// The column of one read, from what each shard answered.
pub fn column(step: &Step, read: usize, rows: usize, parts: &[(&Answers, &Texts)]) -> Result<ArrayRef> {
    Ok(match step.output {
        Type::Int64 => Arc::new(primitive::<Int64Type>(read, rows, parts, |value| value as i64)),
        Type::Float64 => {
            Arc::new(primitive::<Float64Type>(read, rows, parts, |value| f64::from_bits(value as u64)))
        }
        Type::Timestamp => {
            let array = primitive::<TimestampMicrosecondType>(read, rows, parts, |value| value as i64);
            Arc::new(array.with_timezone("UTC"))
        }
        Type::Decimal(precision, scale) => {
            let array = primitive::<Decimal128Type>(read, rows, parts, |value| value);
            Arc::new(array.with_data_type(Type::Decimal(precision, scale).arrow()))
        }
        Type::Bool => Arc::new(booleans(read, rows, parts)),
        Type::Text => Arc::new(texts(read, rows, parts)),
    })
}

fn primitive<T: arrow_array::ArrowPrimitiveType>(
    read: usize,
    rows: usize,
    parts: &[(&Answers, &Texts)],
    from: impl Fn(i128) -> T::Native,
) -> PrimitiveArray<T> {
    let mut values = vec![T::Native::default(); rows];
    let nulls = scatter(read, rows, parts, |row, value| values[row] = from(value));
    PrimitiveArray::new(values.into(), nulls)
}

fn booleans(read: usize, rows: usize, parts: &[(&Answers, &Texts)]) -> BooleanArray {
    let mut values = vec![false; rows];
    let nulls = scatter(read, rows, parts, |row, value| values[row] = value != 0);
    BooleanArray::new(BooleanBuffer::from(values), nulls)
}

fn texts(read: usize, rows: usize, parts: &[(&Answers, &Texts)]) -> StringArray {
    let mut values: Vec<Option<&str>> = vec![None; rows];
    for (answers, texts) in parts {
        answers.values(read).for_each(|(row, id)| values[row] = Some(texts.get(id as u64)));
    }
    StringArray::from(values)
}

fn scatter(
    read: usize,
    rows: usize,
    parts: &[(&Answers, &Texts)],
    mut put: impl FnMut(usize, i128),
) -> Option<NullBuffer> {
    let mut valid = BooleanBufferBuilder::new(rows);
    valid.append_n(rows, false);
    for (answers, _) in parts {
        answers.values(read).for_each(|(row, value)| {
            put(row, value);
            valid.set_bit(row, true);
        });
    }
    Some(NullBuffer::new(valid.finish())).filter(|nulls| nulls.null_count() > 0)
}
