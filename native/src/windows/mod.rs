//! Keyed state with exact sliding windows.
//!
//! A store remembers the events of one topic by one key. Batches of any topic pass through it in order: each row
//! reads the windows of its key at its own effective time, and is inserted if the store is fed by its topic.
//!
//!     ring of a key, in order of time:   e e e e e e e e e e e e
//!     past("1d")                                       └tail  └head
//!     past("7d", delay="7d")                └tail └head
//!
//! Each window of a key is a pair of places in the key's ring. To read at another time, they move there, forwards
//! or, for a late row, backwards, adding and taking away what they pass. A late event is inserted at its place,
//! which then is the head of every window without delay. What no query to come can see is freed.

mod change;
mod evaluate;
mod exact;
mod frame;
mod keys;
mod layout;
mod output;
mod plan;
mod ring;
mod save;
mod shard;
mod texts;
mod values;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod tests;

use arrow_array::{Array, ArrayRef, BooleanArray};

use crate::error::{Error, Result};

use keys::{KeyRef, Keys};
use layout::Layout;
use output::Answers;
pub use plan::{Aggregate, Read, StorePlan, output_type};
use shard::{Job, Shard};
use texts::Texts;
use values::Column;

/// Fixed, so that results never depend on the number of threads.
const SHARDS: usize = 4;

/// The state of one source topic by one key.
pub struct Store {
    plan: StorePlan,
    layout: Layout,
    shards: Vec<Shard>,
    /// No query to come is at an earlier time.
    evict_before: i64,
}

/// A batch that passes through a store.
pub struct Pass<'a> {
    /// Effective times, in microseconds.
    pub times: &'a [i64],
    pub keys: &'a [ArrayRef],
    /// The rows are inserted, with these values and these filters' truth.
    pub insert: bool,
    pub columns: &'a [ArrayRef],
    pub filters: &'a [BooleanArray],
    /// Rows that neither read nor insert; their values are null.
    pub skip: Option<&'a BooleanArray>,
    /// Indices into the plan's reads.
    pub wanted: &'a [usize],
    /// No query after this batch, of any topic, is at an earlier effective time.
    pub evict_before: i64,
    pub threads: usize,
}

impl Store {
    pub fn new(plan: StorePlan) -> Result<Store> {
        let layout = Layout::new(&plan)?;
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Ok(Store { plan, layout, shards, evict_before: i64::MIN })
    }

    /// Lets a batch pass: one array for each wanted read, in their order.
    pub fn pass(&mut self, pass: &Pass) -> Result<Vec<ArrayRef>> {
        let keys = Keys::new(pass.keys, &self.plan.key, pass.times.len())?;
        let columns = columns(&self.plan, pass)?;
        let job = job(&self.layout, pass, &columns, self.evict_before);
        let mut answers: Vec<Answers> = (0..SHARDS).map(|_| Answers::new(pass.wanted.len(), 0)).collect();
        for (row, key) in present(pass, &keys) {
            let hash = key.hash();
            let shard = shard_of(hash);
            self.shards[shard].pass_row(&job, row, hash, key, &mut answers[shard]);
        }
        let parts: Vec<_> = answers.iter().zip(self.shards.iter().map(|shard| &shard.texts)).collect();
        let arrays = arrays(&job, &parts)?;
        self.evict_before = self.evict_before.max(pass.evict_before);
        for shard in &mut self.shards {
            shard.sweep(&self.layout, pass.times.len().div_ceil(2), self.evict_before);
        }
        Ok(arrays)
    }

    /// What `pass` would give for each row if it alone came next. Nothing moves.
    pub fn peek(&self, pass: &Pass) -> Result<Vec<ArrayRef>> {
        let keys = Keys::new(pass.keys, &self.plan.key, pass.times.len())?;
        let columns = columns(&self.plan, pass)?;
        let job = job(&self.layout, pass, &columns, self.evict_before);
        let (mut copy, mut answers) = (Shard::default(), Answers::new(pass.wanted.len(), pass.times.len()));
        for (row, key) in present(pass, &keys) {
            let from = &self.shards[shard_of(key.hash())];
            copy.peek_row(&job, from, row, key, &mut answers);
        }
        arrays(&job, &[(&answers, &copy.texts)])
    }

    /// Whether each row's key is in the state; a key with a null part counts as known.
    pub fn known(&self, keys: &[ArrayRef], rows: usize) -> BooleanArray {
        let Ok(keys) = Keys::new(keys, &self.plan.key, rows) else {
            return BooleanArray::from(vec![false; rows]);
        };
        let boundary = self.evict_before.saturating_sub(self.layout.span);
        let known = |row| {
            keys.get(row).is_none_or(|key| {
                let hash = key.hash();
                self.shards[shard_of(hash)].known(&self.layout, hash, key, boundary)
            })
        };
        (0..rows).map(|row| Some(known(row))).collect()
    }

    /// The memory that the state takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(Shard::bytes).sum()
    }

    pub fn keys(&self) -> usize {
        self.shards.iter().map(Shard::keys).sum()
    }

    /// How many events are kept.
    pub fn retained(&self) -> usize {
        self.shards.iter().map(|shard| shard.retained).sum()
    }

    /// How many sums did not fit their type and came out null.
    pub fn faults(&self) -> u64 {
        self.shards.iter().map(|shard| shard.faults).sum()
    }
}

fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

fn job<'a>(layout: &'a Layout, pass: &Pass<'a>, columns: &'a [Column<'a>], evict_before: i64) -> Job<'a> {
    let oldest = pass.times.iter().copied().min().unwrap_or(i64::MAX);
    Job {
        layout,
        times: pass.times,
        columns,
        filters: pass.filters,
        insert: pass.insert,
        wanted: pass.wanted,
        boundary: evict_before.max(pass.evict_before.min(oldest)).saturating_sub(layout.span),
    }
}

/// The rows that belong to an entity and are not skipped.
fn present<'a>(pass: &Pass, keys: &'a Keys<'a>) -> impl Iterator<Item = (usize, KeyRef<'a>)> {
    let rows = (0..pass.times.len())
        .filter(|row| !pass.skip.is_some_and(|skip| skip.is_valid(*row) && skip.value(*row)));
    rows.filter_map(|row| Some((row, keys.get(row)?)))
}

fn arrays(job: &Job, parts: &[(&Answers, &Texts)]) -> Result<Vec<ArrayRef>> {
    let steps = job.wanted.iter().map(|wanted| &job.layout.steps[*wanted]);
    steps.enumerate().map(|(read, step)| output::column(step, read, job.times.len(), parts)).collect()
}

fn columns<'a>(plan: &StorePlan, pass: &Pass<'a>) -> Result<Vec<Column<'a>>> {
    let rows = pass.times.len();
    if pass.wanted.iter().any(|wanted| *wanted >= plan.reads.len()) {
        return Err(Error::invalid("a batch wants a read that its plan does not have"));
    }
    if pass.skip.is_some_and(|skip| skip.len() != rows) {
        return Err(Error::invalid("a batch's rows to skip are not as many as its times"));
    }
    if !pass.insert {
        return Ok(Vec::new());
    }
    let lengths = pass.filters.iter().all(|filter| filter.len() == rows);
    if pass.columns.len() != plan.columns.len() || pass.filters.len() != plan.filters.len() || !lengths {
        return Err(Error::invalid("the values to keep are not those of the state's plan"));
    }
    let named = pass.columns.iter().zip(&plan.columns);
    named.map(|(array, (name, kind))| Column::new(array, name, *kind, rows)).collect()
}
