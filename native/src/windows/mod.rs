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

mod base;
mod change;
mod entity;
mod evaluate;
mod exact;
mod frame;
mod keys;
mod layout;
mod load;
mod objects;
mod output;
mod plan;
mod prefetch;
mod quick;
mod ring;
mod save;
mod shard;
mod slab;
mod sums;
mod texts;
mod values;

#[cfg(test)]
mod changes;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod tests;

use std::ops::Range;

use arrow_array::{Array, ArrayRef, BooleanArray};

use crate::error::{Error, Result};
use crate::schema::Type;
use crate::threads::side_by_side;

pub use change::Gap;
use change::Since;
pub use frame::check_saved;
use keys::{KeyRef, Keys};
use layout::Layout;
use output::{Answers, Output, Shape};
pub use plan::{Aggregate, Read, StorePlan, output_type};
use shard::{Hashed, Job, Shard};
use texts::Texts;
use values::Column;

/// Fixed, so that results never depend on the number of threads.
const SHARDS: usize = 4;
/// Rows that are worked on and answered before the next ones: what they need stays in the cache.
const SLAB: usize = 1 << 14;
/// Fewer rows than this are not worth a thread.
pub const THREAD_ROWS: usize = 1 << 12;
/// For so many rows that pass, the sweep visits one key in each shard.
const ROWS_PER_VISIT: usize = 8;

/// The state of one source topic by one key.
pub struct Store {
    plan: StorePlan,
    layout: Layout,
    shards: Vec<Shard>,
    /// No query to come is at an earlier time.
    evict_before: i64,
    since: Since,
    /// Rows that passed since the sweep's last visit.
    passed: usize,
    /// For each shard its rows of a slab, and its answers; kept from pass to pass for their memory alone.
    rows: Vec<Vec<Hashed>>,
    answers: Vec<Answers>,
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
        let (rows, answers) = (vec![Vec::new(); SHARDS], (0..SHARDS).map(|_| Answers::default()).collect());
        let since = Since::default();
        Ok(Store { plan, layout, shards, evict_before: i64::MIN, since, passed: 0, rows, answers })
    }

    /// Lets a batch pass: one array for each wanted read, in their order.
    pub fn pass(&mut self, pass: &Pass) -> Result<Vec<ArrayRef>> {
        let keys = Keys::new(pass.keys, &self.plan.key, pass.times.len())?;
        let columns = columns(&self.plan, pass)?;
        let job = job(&self.layout, pass, &keys, &columns, self.evict_before);
        let mut outputs = outputs(&self.layout, pass);
        for start in (0..pass.times.len()).step_by(SLAB) {
            let rows = start..(start + SLAB).min(pass.times.len());
            let threads = if rows.len() < THREAD_ROWS { 1 } else { pass.threads };
            share(&mut self.rows, pass, &keys, rows.clone());
            self.passed += rows.len();
            let visits = self.passed / ROWS_PER_VISIT;
            self.passed %= ROWS_PER_VISIT;
            let sweep = Sweep { visits, evict_before: self.evict_before };
            work(&job, &mut self.shards, &self.rows, &mut self.answers, &sweep, threads);
            let texts: Vec<&Texts> = self.shards.iter().map(|shard| &shard.texts).collect();
            gather(&job.shape, &mut outputs, &self.answers, &texts, rows, threads)?;
            self.shards.iter_mut().for_each(|shard| shard.texts.sweep());
        }
        self.evict_before = self.evict_before.max(pass.evict_before);
        Ok(outputs.into_iter().map(Output::finish).collect())
    }

    /// What `pass` would give for each row if it alone came next. Nothing moves.
    pub fn peek(&self, pass: &Pass) -> Result<Vec<ArrayRef>> {
        let keys = Keys::new(pass.keys, &self.plan.key, pass.times.len())?;
        let columns = columns(&self.plan, pass)?;
        let job = job(&self.layout, pass, &keys, &columns, self.evict_before);
        let (mut copies, mut answers) = (Shard::default(), Answers::default());
        for (row, key) in present(pass, &keys, 0..pass.times.len()) {
            let hash = key.hash();
            copies.peek_row(&job, &self.shards[shard_of(hash)], (row as u32, hash), key, &mut answers);
        }
        let mut outputs = outputs(&self.layout, pass);
        gather(&job.shape, &mut outputs, &[answers], &[&copies.texts], 0..pass.times.len(), 1)?;
        Ok(outputs.into_iter().map(Output::finish).collect())
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

    /// No text in the state is longer, in bytes.
    pub fn longest_text(&self) -> usize {
        self.shards.iter().map(|shard| shard.texts.longest()).max().unwrap_or(0)
    }

    /// How many sums did not fit their type and came out null.
    pub fn faults(&self) -> u64 {
        self.shards.iter().map(|shard| shard.faults).sum()
    }
}

fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

fn job<'a>(
    layout: &'a Layout,
    pass: &Pass<'a>,
    keys: &'a Keys<'a>,
    columns: &'a [Column<'a>],
    evict_before: i64,
) -> Job<'a> {
    let steps = || pass.wanted.iter().map(|wanted| &layout.steps[*wanted]).enumerate();
    let kinds: Vec<Type> = steps().map(|(_, step)| step.output).collect();
    // The rows of this batch are queries too.
    let oldest = pass.times.iter().copied().min().unwrap_or(i64::MAX);
    Job {
        layout,
        times: pass.times,
        keys,
        columns,
        filters: pass.filters,
        insert: pass.insert,
        before: steps().filter(|(_, step)| !step.after).collect(),
        after: steps().filter(|(_, step)| step.after).collect(),
        shape: Shape::new(&kinds),
        boundary: evict_before.max(pass.evict_before.min(oldest)).saturating_sub(layout.span),
    }
}

fn outputs(layout: &Layout, pass: &Pass) -> Vec<Output> {
    let kinds = pass.wanted.iter().map(|wanted| layout.steps[*wanted].output);
    kinds.enumerate().map(|(read, kind)| Output::new(read, kind, pass.times.len())).collect()
}

/// The rows that belong to an entity and are not skipped.
fn present<'a>(
    pass: &Pass,
    keys: &'a Keys<'a>,
    rows: Range<usize>,
) -> impl Iterator<Item = (usize, KeyRef<'a>)> {
    let skipped = |row| pass.skip.is_some_and(|skip| skip.is_valid(row) && skip.value(row));
    rows.filter(move |row| !skipped(*row)).filter_map(|row| Some((row, keys.get(row)?)))
}

/// Gives each shard its rows, with their keys' hashes.
fn share(shares: &mut [Vec<Hashed>], pass: &Pass, keys: &Keys, rows: Range<usize>) {
    shares.iter_mut().for_each(Vec::clear);
    for (row, key) in present(pass, keys, rows) {
        let hash = key.hash();
        shares[shard_of(hash)].push((row as u32, hash));
    }
}

struct Sweep {
    visits: usize,
    evict_before: i64,
}

/// Lets every shard's rows pass, on so many threads.
fn work(
    job: &Job,
    shards: &mut [Shard],
    rows: &[Vec<Hashed>],
    answers: &mut [Answers],
    sweep: &Sweep,
    threads: usize,
) {
    let items = shards.iter_mut().zip(rows).zip(answers).collect();
    side_by_side(items, threads, |((shard, rows), answers)| {
        shard.sweep(job.layout, sweep.visits, sweep.evict_before);
        answers.clear();
        shard.pass(job, rows, answers);
    });
}

/// Puts the shards' answers into the wanted columns.
fn gather(
    shape: &Shape,
    outputs: &mut [Output],
    answers: &[Answers],
    texts: &[&Texts],
    rows: Range<usize>,
    threads: usize,
) -> Result<()> {
    let outputs = outputs.iter_mut().collect();
    let taken = side_by_side(outputs, threads, |output| output.take(shape, answers, texts, rows.clone()));
    taken.into_iter().collect()
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
