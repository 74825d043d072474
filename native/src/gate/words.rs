//! How a cycle's answers are worded: after its append, beside its sync, all in one piece of memory.

use std::ops::{Deref, Range};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;

use super::Tell;
use super::core::{Cycle, Waiter};
use crate::answer::Extra;

/// An answer's bytes: a part of memory that a cycle's answers share, so that none is allocated and freed alone.
#[derive(Clone, Debug)]
pub struct Body {
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Body {
    pub(super) fn part(bytes: &Arc<Vec<u8>>, range: Range<usize>) -> Body {
        Body { bytes: bytes.clone(), range }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body { range: 0..bytes.len(), bytes: Arc::new(bytes) }
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

/// A waiter who is answered once the commit is durable.
pub(super) struct Finished {
    pub waiter: Waiter,
    pub words: Words,
    pub tell: Option<Tell>,
}

pub(super) enum Words {
    /// Worded before, and open at the end.
    Made(Vec<u8>),
    /// A row of one of the cycle's tables of decisions.
    Row { table: usize, row: usize },
}

/// Decisions that this cycle has made.
pub(super) struct Decided {
    pub schema: u32,
    pub table: RecordBatch,
    pub extra: Extra,
}

impl Decided {
    /// The offset of a row's event: a decision's second column.
    pub fn offset(&self, row: usize) -> i64 {
        self.table.column(1).as_primitive::<Int64Type>().value(row)
    }
}

/// The answers of `Cycle::finished` in their order, open at their ends.
#[derive(Default)]
pub(super) struct Worded {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Worded {
    pub fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    pub fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    pub fn bodies(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.text[std::mem::replace(&mut start, end)..end])
    }
}

impl Cycle {
    pub fn finish(&mut self, waiter: Waiter, words: Words, tell: Option<Tell>) {
        self.finished.push(Finished { waiter, words, tell });
    }
}
