//! Streams of every kind through a store, against the definitions word for word.

use arrow_array::{ArrayRef, BooleanArray};

use super::oracle::{Event, Oracle, Value};
use super::streams::{Batch, Random, event, kind, plan, value};
use super::{Pass, Read, Store, StorePlan};
use crate::schema::Type;

const LATENESS: i64 = 12;

/// A store and the oracle of all that passed it.
struct Trial {
    plan: StorePlan,
    store: Store,
    oracle: Oracle,
    random: Random,
    clock: i64,
    threads: usize,
}

impl Trial {
    fn new(seed: u64) -> Trial {
        let mut random = Random(seed);
        let plan = plan(&mut random, 40);
        Trial::with(plan, random)
    }

    fn with(plan: StorePlan, random: Random) -> Trial {
        let types = plan.columns.iter().map(|(_, kind)| *kind).collect();
        let store = Store::new(plan.clone()).unwrap();
        Trial { plan, store, oracle: Oracle { types, events: vec![] }, random, clock: 1000, threads: 1 }
    }

    fn events(&mut self, count: i64, keys: i64) -> Vec<Event> {
        let rows = 0..count;
        rows.map(|_| {
            self.clock += if self.random.chance(2) { self.random.below(60) } else { self.random.below(3) };
            let late = if self.random.chance(30) { self.random.below(LATENESS) } else { 0 };
            let time = self.clock - late;
            event(&mut self.random, &self.plan, time, keys)
        })
        .collect()
    }

    fn step(&mut self) {
        let count = 1 + self.random.below(12);
        let events = self.events(count, 6);
        let insert = self.random.chance(80);
        let wanted: Vec<usize> = (0..self.plan.reads.len()).filter(|_| self.random.chance(80)).collect();
        let skip: BooleanArray = events.iter().map(|_| Some(self.random.chance(5))).collect();
        let batch = Batch::new(&self.plan, &events);
        let pass = Pass {
            times: &batch.times,
            keys: &batch.keys,
            insert,
            columns: &batch.columns,
            filters: &batch.filters,
            skip: Some(&skip),
            wanted: &wanted,
            evict_before: self.clock - LATENESS,
            threads: self.threads,
        };
        let peeked = self.store.peek(&pass).unwrap();
        self.check(&events, insert, &skip, &wanted, &peeked, false);
        let passed = self.store.pass(&pass).unwrap();
        self.check(&events, insert, &skip, &wanted, &passed, true);
    }

    /// Events of a topic that is behind the topics that read it: older than all that can still be asked for, or nearly.
    fn fall_behind(&mut self) {
        let count = 1 + self.random.below(8);
        let mut events = self.events(count, 6);
        events.iter_mut().for_each(|event| event.time -= self.random.below(150));
        let batch = Batch::new(&self.plan, &events);
        let pass = Pass {
            times: &batch.times,
            keys: &batch.keys,
            insert: true,
            columns: &batch.columns,
            filters: &batch.filters,
            skip: None,
            wanted: &[],
            evict_before: self.clock - LATENESS,
            threads: self.threads,
        };
        self.store.pass(&pass).unwrap();
        self.oracle.events.extend(events);
    }

    fn ask(&mut self) {
        let count = 1 + self.random.below(8);
        let events = self.events(count, 7);
        let batch = Batch::new(&self.plan, &events);
        let wanted: Vec<usize> = (0..self.plan.reads.len()).collect();
        let skip: BooleanArray = events.iter().map(|_| Some(false)).collect();
        let pass = Pass {
            times: &batch.times,
            keys: &batch.keys,
            insert: false,
            columns: &[],
            filters: &[],
            skip: None,
            wanted: &wanted,
            evict_before: self.clock - LATENESS,
            threads: self.threads,
        };
        let peeked = self.store.peek(&pass).unwrap();
        self.check(&events, false, &skip, &wanted, &peeked, false);
        let passed = self.store.pass(&pass).unwrap();
        self.check(&events, false, &skip, &wanted, &passed, true);
    }

    /// Inserts events; what they read is not looked at.
    fn pass(&mut self, events: &[Event]) {
        let batch = Batch::new(&self.plan, events);
        let wanted: Vec<usize> = (0..self.plan.reads.len()).collect();
        let pass = Pass {
            times: &batch.times,
            keys: &batch.keys,
            insert: true,
            columns: &batch.columns,
            filters: &batch.filters,
            skip: None,
            wanted: &wanted,
            evict_before: self.clock - LATENESS,
            threads: self.threads,
        };
        self.store.pass(&pass).unwrap();
    }

    /// Compares every value; the events then belong to the past, if they were inserted and `moved`.
    fn check(
        &mut self,
        events: &[Event],
        insert: bool,
        skip: &BooleanArray,
        wanted: &[usize],
        arrays: &[ArrayRef],
        moved: bool,
    ) {
        for (row, event) in events.iter().enumerate() {
            for (index, array) in wanted.iter().zip(arrays) {
                let read = &self.plan.reads[*index];
                let got = value(array, kind(&self.plan, read), row);
                let want = if skip.value(row) { None } else { self.oracle.read(read, event, insert) };
                self.compare(read, &got, &want, row);
            }
            if moved && insert && !skip.value(row) {
                self.oracle.events.push(event.clone());
            }
        }
    }

    fn compare(&self, read: &Read, got: &Option<Value>, want: &Option<Value>, row: usize) {
        let same = match (got, want) {
            (Some(Value::Float(a)), Some(Value::Float(b))) => (a - b).abs() <= 1e-9 * (1.0 + b.abs()),
            _ => got == want,
        };
        assert!(
            same,
            "row {row} of {read:?} on {:?}: got {got:?}, want {want:?}",
            read.column.map(|c| &self.plan.columns[c])
        );
    }

    fn saved(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.store.save(&mut bytes).unwrap();
        bytes
    }
}

#[test]
fn every_read_of_every_stream_is_what_the_definitions_say() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut trial = Trial::new(seed);
        (0..60).for_each(|_| trial.step());
    }
}

#[test]
fn a_restored_state_goes_on_as_if_it_had_never_stopped() {
    for seed in 100..130 {
        println!("seed {seed}");
        let (mut one, mut two) = (Trial::new(seed), Trial::new(seed));
        for _ in 0..60 {
            one.step();
            two.step();
            if one.random.chance(20) {
                let saved = two.saved();
                two.store = Store::load(two.plan.clone(), &mut &saved[..]).unwrap();
                assert!(saved == two.saved(), "loading and saving again gives other bytes");
            }
            two.random.0 = one.random.0;
            assert!(one.saved() == two.saved(), "the stopped one differs from the other");
        }
    }
}

#[test]
fn events_of_a_topic_that_is_behind_its_readers_count_as_what_they_are() {
    for seed in 200..300 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut plan = plan(&mut random, 40);
        let endless = random.chance(50).then(|| random.pick(&[0, 5, 30]));
        // As the compiler does: a store of its own for each delay of endless reads.
        for read in &mut plan.reads {
            (read.length_us, read.delay_us) = match (endless, read.length_us) {
                (Some(delay), _) => (None, delay),
                (None, length) => (length.or(Some(33)), read.delay_us),
            };
        }
        let mut trial = Trial::with(plan, random);
        for _ in 0..80 {
            match trial.random.below(10) {
                0 => {
                    let saved = trial.saved();
                    trial.store = Store::load(trial.plan.clone(), &mut &saved[..]).unwrap();
                    assert!(saved == trial.saved(), "loading and saving again gives other bytes");
                }
                1..=5 => trial.fall_behind(),
                _ => trial.ask(),
            }
        }
    }
}

#[test]
fn every_flipped_byte_of_a_saved_state_is_refused() {
    let mut trial = Trial::new(7);
    (0..10).for_each(|_| trial.step());
    let saved = trial.saved();
    for at in 0..saved.len() {
        let mut bytes = saved.clone();
        bytes[at] ^= 0x20;
        assert!(Store::load(trial.plan.clone(), &mut &bytes[..]).is_err(), "byte {at}");
        assert!(Store::load(trial.plan.clone(), &mut &saved[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn what_has_left_every_window_is_freed() {
    let mut random = Random(3);
    let mut plan = plan(&mut random, 40);
    plan.reads.retain(|read| read.length_us.is_some());
    let mut trial = Trial::with(plan, random);
    (0..50).for_each(|_| trial.step());
    assert!(trial.store.keys() > 0 && trial.store.retained() > 0);
    trial.clock += 1000;
    let nobody = trial
        .events(1, 1)
        .into_iter()
        .map(|mut e| {
            e.key = None;
            e
        })
        .collect::<Vec<_>>();
    for _ in 0..400 {
        let batch = Batch::new(&trial.plan, &nobody);
        let pass = Pass {
            times: &batch.times,
            keys: &batch.keys,
            insert: false,
            columns: &[],
            filters: &[],
            skip: None,
            wanted: &[],
            evict_before: trial.clock,
            threads: 1,
        };
        trial.store.pass(&pass).unwrap();
    }
    assert_eq!((trial.store.keys(), trial.store.retained()), (0, 0));
}

/// Twenty thousand events of four keys, each with a text of its own: of reads that reach back to the beginning only
/// numbers stay, and what late events may still need.
#[test]
fn what_endless_reads_have_counted_is_freed() {
    use super::Aggregate::*;
    let mut random = Random(11);
    let mut plan = plan(&mut random, 1);
    let text = plan.columns.iter().position(|(_, kind)| *kind == Type::Text).unwrap();
    let flag = plan.columns.iter().position(|(_, kind)| *kind == Type::Bool).unwrap();
    let wanted = [Count, Sum, Mean, Min, Max, Std, Var, First, Last, Lag(3)];
    let pairs =
        wanted.iter().flat_map(|aggregate| (0..plan.columns.len()).map(|column| (*aggregate, Some(column))));
    let pairs = pairs.chain([(Count, None), (SinceLast, None), (NUnique, Some(flag))]);
    let reads = pairs.flat_map(|(aggregate, column)| {
        [(None, 0), (Some(1), 5)].map(|(filter, delay_us)| Read {
            aggregate,
            column,
            filter,
            length_us: None,
            delay_us,
            include_current: true,
        })
    });
    plan.reads = reads.filter(|read| plan.output_type(read).is_ok()).collect();
    let mut trial = Trial::with(plan, random);
    let mut bytes = Vec::new();
    for number in 0..20_000 {
        let mut events = trial.events(1, 4);
        events[0].values[text] = Some(Value::Text(format!("the text of event {number}")));
        trial.pass(&events);
        if number % 5_000 == 4_999 {
            bytes.push(trial.store.bytes());
        }
    }
    let recent = trial.store.retained();
    assert!(recent < 100, "{recent} events are kept");
    assert!(*bytes.iter().max().unwrap() < 2 * bytes[0] && bytes[0] < 200_000, "{bytes:?} bytes");
}

#[test]
fn a_type_that_an_aggregate_cannot_take_is_refused() {
    use super::{Aggregate::*, output_type};
    assert!(output_type(Sum, Some(Type::Text)).is_err());
    assert!(output_type(Mean, Some(Type::Timestamp)).is_err());
    assert!(output_type(SinceLast, Some(Type::Int64)).is_err());
    assert!(output_type(Lag(0), Some(Type::Int64)).is_err());
    assert!(output_type(Max, None).is_err());
    assert_eq!(output_type(Sum, Some(Type::Decimal(12, 2))).unwrap(), Type::Decimal(38, 2));
}
