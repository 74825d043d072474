//! The operators that run a pipeline: effective times, filters, windows, derived columns, in the order of events.
//!
//! ```text
//! a topic's rows ─▶ effective times ─▶ filters ─▶ every store that the topic feeds or reads ─▶ derived columns
//! ```
//!
//! The same engine runs in the gate, in the snapshotter and in replay. What it remembers is a pure function of the
//! rows that passed and of their marks.

use std::io;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{ArrayRef, BooleanArray, RecordBatch, new_null_array};

use crate::error::{Error, Result};
use crate::evaluate::Program;
use crate::plan::{FeaturesPlan, KeyedPlan, Plan};
use crate::schema::Field;
use crate::threads::side_by_side;
use crate::windows::{Pass, Store, THREAD_ROWS};

/// A row that was moved up because it came later than its topic's lateness allows.
pub const LATE: u8 = 1;
/// A row that the state had no room for: it was not remembered, and has no features.
pub const STATELESS: u8 = 2;

pub struct Engine {
    pub plan: Arc<Plan>,
    topics: Vec<TopicState>,
    stores: Vec<KeyedState>,
    derived: Vec<Program>,
    threads: usize,
    faults: u64,
}

struct TopicState {
    /// The greatest event time accepted so far.
    newest: Option<i64>,
    /// The stores that its rows pass: what they feed, and what they read.
    passes: Vec<usize>,
}

struct KeyedState {
    store: Store,
    filters: Program,
    /// Columns of the source that the store keeps.
    columns: Vec<usize>,
    /// For each topic that passes, where its key's fields are.
    keys: Vec<Option<Vec<usize>>>,
    /// The topics that read it: what none of them can reach is free.
    readers: Vec<usize>,
}

/// What passing gave for each row.
pub struct Processed {
    pub marks: Vec<u8>,
    /// For each wanted set its columns; null where a row was not remembered.
    pub features: Vec<Vec<ArrayRef>>,
}

impl Engine {
    pub fn new(plan: Arc<Plan>, threads: usize) -> Result<Engine> {
        let stores =
            plan.stores.iter().map(|keyed| KeyedState::new(&plan, keyed)).collect::<Result<Vec<_>>>()?;
        let derived = plan.features.iter().map(|set| derived_program(&plan, set)).collect::<Result<_>>()?;
        let topics = (0..plan.topics.len())
            .map(|topic| TopicState {
                newest: None,
                passes: (0..stores.len()).filter(|&store| stores[store].keys[topic].is_some()).collect(),
            })
            .collect();
        Ok(Engine { plan, topics, stores, derived, threads, faults: 0 })
    }

    /// Take rows of a topic in: they are remembered, and the wanted sets of features are computed as of each.
    ///
    /// `given` says which rows are `STATELESS`: the gate decides that once, and the log remembers it.
    pub fn process(
        &mut self,
        topic: usize,
        batch: &RecordBatch,
        given: Option<&[u8]>,
        wanted: &[usize],
    ) -> Result<Processed> {
        let (times, mut marks) = self.effective_times(topic, batch);
        for (mark, given) in marks.iter_mut().zip(given.unwrap_or_default()) {
            *mark |= given & STATELESS;
        }
        let skip = stateless_rows(&marks);
        let reads = self.pass(topic, batch, &times, skip.as_ref(), wanted)?;
        self.advance(topic, batch);
        let features = self.finish_features(batch, wanted, reads)?;
        Ok(Processed { marks, features })
    }

    /// The features that each row would have if it alone came next; nothing moves.
    pub fn peek(
        &self,
        topic: usize,
        batch: &RecordBatch,
        given: Option<&[u8]>,
        wanted: &[usize],
    ) -> Result<Processed> {
        let floor = self.floor(topic);
        let times: Vec<i64> =
            event_times(&self.plan, topic, batch).iter().map(|&time| time.max(floor)).collect();
        let mut marks: Vec<u8> = event_times(&self.plan, topic, batch)
            .iter()
            .map(|&time| if time < floor { LATE } else { 0 })
            .collect();
        for (mark, given) in marks.iter_mut().zip(given.unwrap_or_default()) {
            *mark |= given & STATELESS;
        }
        let skip = stateless_rows(&marks);
        let mut reads: Vec<Vec<Option<ArrayRef>>> = self.empty_reads(wanted);
        for &index in &self.topics[topic].passes {
            let slots = self.store_reads(index, wanted);
            let state = &self.stores[index];
            let options = PassOptions {
                times: &times,
                skip: skip.as_ref(),
                wanted: &slots.reads,
                evict_before: i64::MIN,
                threads: 1,
            };
            let values = state.peek(&self.plan, index, topic, batch, options)?;
            slots.place(values, &mut reads);
        }
        let mut faults = 0;
        let features = self.derive(batch, wanted, reads, &mut faults)?;
        Ok(Processed { marks, features })
    }

    /// Rows whose keys the state does not know yet, in any store that the topic feeds.
    pub fn new_keys(&self, topic: usize, batch: &RecordBatch) -> Vec<bool> {
        let mut new = vec![false; batch.num_rows()];
        for &index in &self.topics[topic].passes {
            if self.plan.stores[index].source == topic {
                let state = &self.stores[index];
                let known = state.store.known(&state.key_columns(topic, batch), batch.num_rows());
                for (row, new) in new.iter_mut().enumerate() {
                    *new |= !known.value(row);
                }
            }
        }
        new
    }

    pub fn newest(&self, topic: usize) -> Option<i64> {
        self.topics[topic].newest
    }

    /// Start a topic's time where a log that begins in the middle says that it stood.
    pub fn set_newest(&mut self, topic: usize, newest: Option<i64>) {
        self.topics[topic].newest = newest;
    }

    pub fn state_bytes(&self) -> usize {
        self.stores.iter().map(|state| state.store.bytes()).sum()
    }

    pub fn state_keys(&self) -> usize {
        self.stores.iter().map(|state| state.store.keys()).sum()
    }

    pub fn retained_events(&self) -> usize {
        self.stores.iter().map(|state| state.store.retained()).sum()
    }

    /// No text that a feature may show is longer, in bytes.
    pub fn longest_text(&self) -> usize {
        self.stores.iter().map(|state| state.store.longest_text()).max().unwrap_or(0)
    }

    /// Operations on values that had no answer (overflow, division by zero) and gave null.
    pub fn faults(&self) -> u64 {
        self.faults + self.stores.iter().map(|state| state.store.faults()).sum::<u64>()
    }

    /// Pass rows only through these stores: what building some of the state from the log needs.
    pub fn limit_to(&mut self, stores: &[usize]) {
        for topic in &mut self.topics {
            topic.passes.retain(|store| stores.contains(store));
        }
    }

    pub fn save_store(&self, index: usize, out: &mut dyn io::Write) -> Result<()> {
        self.stores[index].store.save(out)
    }

    pub fn store(&self, index: usize) -> &Store {
        &self.stores[index].store
    }

    pub fn store_mut(&mut self, index: usize) -> &mut Store {
        &mut self.stores[index].store
    }

    /// Let every store know how far its queries have come: what is saved then depends on the log alone, not on which
    /// features were wanted on the way.
    pub fn settle(&mut self) {
        for index in 0..self.stores.len() {
            let evict_before = self.evict_before(index);
            self.stores[index].store.settle(evict_before);
        }
    }

    pub fn replace_store(&mut self, index: usize, store: Store) {
        self.stores[index].store = store;
    }

    pub fn take_store(&mut self, index: usize) -> Result<Store> {
        let fresh = Store::new(self.plan.stores[index].plan.clone())?;
        Ok(std::mem::replace(&mut self.stores[index].store, fresh))
    }

    fn floor(&self, topic: usize) -> i64 {
        let lateness = self.plan.topics[topic].lateness_us;
        self.topics[topic].newest.map_or(i64::MIN, |newest| newest.saturating_sub(lateness))
    }

    /// Each row's time, moved up to `newest - lateness` where it is later than that.
    fn effective_times(&self, topic: usize, batch: &RecordBatch) -> (Vec<i64>, Vec<u8>) {
        let lateness = self.plan.topics[topic].lateness_us;
        let mut newest = self.topics[topic].newest;
        let mut marks = vec![0; batch.num_rows()];
        let times = event_times(&self.plan, topic, batch)
            .iter()
            .zip(&mut marks)
            .map(|(&time, mark)| {
                let floor = newest.map_or(i64::MIN, |newest| newest.saturating_sub(lateness));
                newest = Some(newest.map_or(time, |newest| newest.max(time)));
                if time < floor {
                    *mark = LATE;
                }
                time.max(floor)
            })
            .collect();
        (times, marks)
    }

    fn advance(&mut self, topic: usize, batch: &RecordBatch) {
        let newest = event_times(&self.plan, topic, batch).iter().copied().max();
        self.topics[topic].newest = self.topics[topic].newest.max(newest);
    }

    fn pass(
        &mut self,
        topic: usize,
        batch: &RecordBatch,
        times: &[i64],
        skip: Option<&BooleanArray>,
        wanted: &[usize],
    ) -> Result<Vec<Vec<Option<ArrayRef>>>> {
        let visits: Vec<Visit> = (self.topics[topic].passes.iter())
            .map(|&index| Visit {
                index,
                slots: self.store_reads(index, wanted),
                evict_before: self.evict_before(index),
            })
            .filter(|visit| !visit.slots.reads.is_empty() || self.plan.stores[visit.index].source == topic)
            .collect();
        // Stores have nothing in common: several are worked on side by side, a single one by its shards.
        let threads = if batch.num_rows() < THREAD_ROWS { 1 } else { self.threads };
        let inside = if visits.len() < 2 { threads } else { 1 };
        let plan = &self.plan;
        let states = self.stores.iter_mut().enumerate();
        let pairs = states.filter_map(|(index, state)| {
            visits.iter().find(|visit| visit.index == index).map(|visit| (state, visit))
        });
        let passed = side_by_side(pairs.collect(), threads, |(state, visit): (&mut KeyedState, &Visit)| {
            let (wanted, evict_before) = (&visit.slots.reads[..], visit.evict_before);
            let options = PassOptions { times, skip, wanted, evict_before, threads: inside };
            state.pass(plan, visit.index, topic, batch, options).map(|passed| (visit, passed))
        });
        let mut reads = self.empty_reads(wanted);
        for passed in passed {
            let (visit, (values, faults)) = passed?;
            self.faults += faults;
            visit.slots.place(values, &mut reads);
        }
        Ok(reads)
    }

    /// Nothing that reads this store can come at or before this time any more.
    pub fn evict_before(&self, index: usize) -> i64 {
        self.stores[index].readers.iter().map(|&topic| self.floor(topic)).min().unwrap_or(i64::MIN)
    }

    /// For each topic that reads a store which others feed or read, how far its newest event is behind theirs, in seconds;
    /// `None` where it has had none. As far back, nothing in that store can be freed.
    pub fn reader_lags(&self) -> Vec<(String, Option<f64>)> {
        (0..self.topics.len())
            .filter_map(|topic| {
                let ahead = self.ahead_of(topic)?;
                let lag = |newest: i64| ahead.saturating_sub(newest).max(0) as f64 / 1e6;
                Some((self.plan.topics[topic].name.clone(), self.topics[topic].newest.map(lag)))
            })
            .collect()
    }

    /// The newest event of the topics that share a store with this reader of it, where there is one.
    fn ahead_of(&self, reader: usize) -> Option<i64> {
        let shared = (0..self.stores.len()).filter(|&index| self.stores[index].readers.contains(&reader));
        let others = shared.flat_map(|index| {
            let source = self.plan.stores[index].source;
            self.stores[index].readers.iter().copied().chain([source]).filter(|&topic| topic != reader)
        });
        others.filter_map(|topic| self.topics[topic].newest).max()
    }

    fn empty_reads(&self, wanted: &[usize]) -> Vec<Vec<Option<ArrayRef>>> {
        wanted.iter().map(|&set| vec![None; self.plan.features[set].reads.len()]).collect()
    }

    /// Which of a store's reads the wanted sets need, and where the values go.
    fn store_reads(&self, index: usize, wanted: &[usize]) -> Slots {
        let mut slots = Slots { reads: Vec::new(), targets: Vec::new() };
        for (set, &features) in wanted.iter().enumerate() {
            for (column, &(store, read)) in self.plan.features[features].reads.iter().enumerate() {
                if store == index {
                    let place = slots.reads.iter().position(|&known| known == read).unwrap_or_else(|| {
                        slots.reads.push(read);
                        slots.reads.len() - 1
                    });
                    slots.targets.push((place, set, column));
                }
            }
        }
        slots
    }

    fn finish_features(
        &mut self,
        batch: &RecordBatch,
        wanted: &[usize],
        reads: Vec<Vec<Option<ArrayRef>>>,
    ) -> Result<Vec<Vec<ArrayRef>>> {
        let mut faults = 0;
        let features = self.derive(batch, wanted, reads, &mut faults)?;
        self.faults += faults;
        Ok(features)
    }

    fn derive(
        &self,
        batch: &RecordBatch,
        wanted: &[usize],
        reads: Vec<Vec<Option<ArrayRef>>>,
        faults: &mut u64,
    ) -> Result<Vec<Vec<ArrayRef>>> {
        let mut features = Vec::with_capacity(wanted.len());
        for (&set, reads) in wanted.iter().zip(reads) {
            let mut columns: Vec<ArrayRef> =
                reads.into_iter().map(|read| read.expect("every store was read")).collect();
            if !self.plan.features[set].derived.is_empty() {
                let mut inputs: Vec<ArrayRef> = batch.columns().to_vec();
                inputs.extend(columns.iter().cloned());
                let (derived, count) =
                    self.derived[set].evaluate_on(self.threads, &inputs, batch.num_rows())?;
                *faults += count;
                columns.extend(derived);
            }
            features.push(columns);
        }
        Ok(features)
    }
}

/// A store that a batch passes.
struct Visit {
    index: usize,
    slots: Slots,
    evict_before: i64,
}

/// Which reads of one store are wanted, and in which set and column each value belongs.
struct Slots {
    reads: Vec<usize>,
    targets: Vec<(usize, usize, usize)>,
}

impl Slots {
    fn place(&self, values: Vec<ArrayRef>, reads: &mut [Vec<Option<ArrayRef>>]) {
        for &(place, set, column) in &self.targets {
            reads[set][column] = Some(values[place].clone());
        }
    }
}

#[derive(Clone, Copy)]
struct PassOptions<'a> {
    times: &'a [i64],
    skip: Option<&'a BooleanArray>,
    wanted: &'a [usize],
    evict_before: i64,
    threads: usize,
}

impl<'a> PassOptions<'a> {
    fn pass(
        self,
        keys: &'a [ArrayRef],
        columns: &'a [ArrayRef],
        filters: &'a [BooleanArray],
        insert: bool,
    ) -> Pass<'a> {
        Pass {
            times: self.times,
            keys,
            insert,
            columns,
            filters,
            skip: self.skip,
            wanted: self.wanted,
            evict_before: self.evict_before,
            threads: self.threads,
        }
    }
}

struct Filtered {
    arrays: Vec<BooleanArray>,
    faults: u64,
}

impl KeyedState {
    fn new(plan: &Plan, keyed: &KeyedPlan) -> Result<KeyedState> {
        let source = &plan.topics[keyed.source].fields;
        let filters: Vec<_> = keyed.plan.filters.iter().cloned().zip(keyed.filters.iter().cloned()).collect();
        let columns = keyed
            .plan
            .columns
            .iter()
            .map(|(name, _)| field_index(source, name))
            .collect::<Result<Vec<_>>>()?;
        let store =
            plan.stores.iter().position(|each| std::ptr::eq(each, keyed)).expect("a store of this plan");
        let readers: Vec<usize> = (0..plan.topics.len())
            .filter(|&topic| {
                plan.features
                    .iter()
                    .any(|set| set.topic == topic && set.reads.iter().any(|&(read, _)| read == store))
            })
            .collect();
        let keys = (0..plan.topics.len())
            .map(|topic| {
                if topic != keyed.source && !readers.contains(&topic) {
                    return Ok(None);
                }
                let fields = &plan.topics[topic].fields;
                keyed.key.iter().map(|name| field_index(fields, name)).collect::<Result<Vec<_>>>().map(Some)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(KeyedState {
            store: Store::new(keyed.plan.clone())?,
            filters: Program::new(&filters, source)?,
            columns,
            keys,
            readers,
        })
    }

    /// The wanted values, and how many operations of the filters had no answer.
    fn pass(
        &mut self,
        plan: &Plan,
        index: usize,
        topic: usize,
        batch: &RecordBatch,
        options: PassOptions,
    ) -> Result<(Vec<ArrayRef>, u64)> {
        let filtered = self.filtered(plan, index, topic, batch)?;
        let columns = self.value_columns(plan, index, topic, batch);
        let keys = self.key_columns(topic, batch);
        let insert = plan.stores[index].source == topic;
        let values = self.store.pass(&options.pass(&keys, &columns, &filtered.arrays, insert))?;
        Ok((values, filtered.faults))
    }

    fn peek(
        &self,
        plan: &Plan,
        index: usize,
        topic: usize,
        batch: &RecordBatch,
        options: PassOptions,
    ) -> Result<Vec<ArrayRef>> {
        let filtered = self.filtered(plan, index, topic, batch)?;
        let columns = self.value_columns(plan, index, topic, batch);
        let keys = self.key_columns(topic, batch);
        let insert = plan.stores[index].source == topic;
        self.store.peek(&options.pass(&keys, &columns, &filtered.arrays, insert))
    }

    fn filtered(&self, plan: &Plan, index: usize, topic: usize, batch: &RecordBatch) -> Result<Filtered> {
        if plan.stores[index].source != topic {
            return Ok(Filtered { arrays: Vec::new(), faults: 0 });
        }
        let (arrays, faults) = self.filters.evaluate(batch.columns(), batch.num_rows())?;
        Ok(Filtered { arrays: arrays.iter().map(|array| array.as_boolean().clone()).collect(), faults })
    }

    fn value_columns(&self, plan: &Plan, index: usize, topic: usize, batch: &RecordBatch) -> Vec<ArrayRef> {
        if plan.stores[index].source != topic {
            return Vec::new();
        }
        self.columns.iter().map(|&column| batch.column(column).clone()).collect()
    }

    fn key_columns(&self, topic: usize, batch: &RecordBatch) -> Vec<ArrayRef> {
        let places = self.keys[topic].as_ref().expect("the topic passes this store");
        places.iter().map(|&column| batch.column(column).clone()).collect()
    }
}

fn derived_program(plan: &Plan, set: &FeaturesPlan) -> Result<Program> {
    let mut columns = plan.topics[set.topic].fields.clone();
    columns.extend(set.columns[..set.reads.len()].iter().cloned());
    Program::new(&set.derived, &columns)
}

pub fn event_times<'a>(plan: &Plan, topic: usize, batch: &'a RecordBatch) -> &'a [i64] {
    batch.column(plan.topics[topic].time).as_primitive::<TimestampMicrosecondType>().values()
}

fn stateless_rows(marks: &[u8]) -> Option<BooleanArray> {
    let any = marks.iter().any(|mark| mark & STATELESS != 0);
    any.then(|| marks.iter().map(|mark| Some(mark & STATELESS != 0)).collect())
}

fn field_index(fields: &[Field], name: &str) -> Result<usize> {
    fields.iter().position(|field| field.name == name).ok_or_else(|| {
        Error::invalid(format!("the plan names a field \"{name}\" that its topic does not have"))
    })
}

/// Columns of nothing but null, for rows that have no features.
pub fn null_columns(fields: &[Field], rows: usize) -> Vec<ArrayRef> {
    fields.iter().map(|field| new_null_array(&field.kind.arrow(), rows)).collect()
}
