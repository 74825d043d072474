//! Features that were computed a second time, until the decisions come by that they are compared with.

use std::collections::VecDeque;

use arrow_array::{Array, ArrayRef};

/// Events at most whose features wait for their decision; a model may be slow, or never answer.
const AWAITED_ROWS: usize = 1 << 16;

/// Features that were computed here, until the decision about their events comes by.
#[derive(Default)]
pub(super) struct AwaitedRows {
    batches: VecDeque<Awaited>,
    rows: usize,
}

pub(super) struct Awaited {
    pub policy: usize,
    pub base: i64,
    pub rows: usize,
    /// Rows without a decision yet.
    pub left: usize,
    /// None where a column is not compared.
    pub features: Vec<Option<ArrayRef>>,
}

impl AwaitedRows {
    pub fn add(&mut self, batch: Awaited) {
        self.rows += batch.rows;
        self.batches.push_back(batch);
        while self.rows > AWAITED_ROWS && self.batches.len() > 1 {
            self.rows -= self.batches.pop_front().map_or(0, |batch| batch.rows);
        }
    }

    /// The features of the first of these offsets and of those that follow it without a gap, in one batch.
    pub fn run(&self, policy: usize, offsets: &[i64]) -> Option<(Vec<Option<ArrayRef>>, usize)> {
        let batch = self.batches.iter().find(|batch| batch.policy == policy && batch.holds(offsets[0]))?;
        let first = (offsets[0] - batch.base) as usize;
        let following = offsets.iter().zip(offsets[0]..).take_while(|(offset, next)| *offset == next).count();
        let rows = following.min(batch.rows - first);
        let slice = |column: &Option<ArrayRef>| column.as_ref().map(|column| column.slice(first, rows));
        Some((batch.features.iter().map(slice).collect(), rows))
    }

    /// What was decided is not decided again.
    pub fn forget(&mut self, policy: usize, offsets: &[i64]) {
        for batch in self.batches.iter_mut().filter(|batch| batch.policy == policy) {
            let decided = offsets.iter().filter(|&&offset| batch.holds(offset)).count();
            batch.left = batch.left.saturating_sub(decided);
        }
        self.batches.retain(|batch| batch.left > 0);
        self.rows = self.batches.iter().map(|batch| batch.rows).sum();
    }
}

impl Awaited {
    fn holds(&self, offset: i64) -> bool {
        (self.base..self.base + self.rows as i64).contains(&offset)
    }
}
