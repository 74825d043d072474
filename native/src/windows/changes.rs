//! Changed plans on saved state and a cut log, against the definitions word for word.

use arrow_array::ArrayRef;

use super::oracle::{Event, Oracle, Value};
use super::streams::{Batch, Random, event, kind, plan, value};
use super::{Pass, Read, Store, StorePlan};

const LATENESS: i64 = 12;

/// A log of one store's events, each with the effective time and the clock that it had.
struct History {
    plan: StorePlan,
    events: Vec<Event>,
    clocks: Vec<i64>,
    /// How far queries look behind the clock.
    lateness: i64,
    random: Random,
}

impl History {
    fn new(seed: u64) -> History {
        let mut random = Random(seed);
        let mut plan = plan(&mut random, 60);
        let endless = random.chance(50);
        // As the compiler does: a store of its own for each delay of endless reads.
        for read in &mut plan.reads {
            (read.length_us, read.delay_us) = match (endless, read.length_us) {
                (true, _) => (None, 5),
                (false, length) => (length.or(Some(33)), read.delay_us),
            };
        }
        History { plan, events: Vec::new(), clocks: Vec::new(), lateness: LATENESS, random }
    }

    fn go_on(&mut self, count: usize) {
        let mut clock = self.clocks.last().copied().unwrap_or(1000);
        for _ in 0..count {
            let late = if self.random.chance(30) { self.random.below(LATENESS) } else { 0 };
            clock += if self.random.chance(4) { self.random.below(40) } else { self.random.below(2) };
            self.events.push(event(&mut self.random, &self.plan, clock - late, 4));
            self.clocks.push(clock);
        }
    }

    /// Some of the reads, with the columns and filters that these need, in another order.
    fn some(&mut self) -> StorePlan {
        let mut some = StorePlan { columns: vec![], filters: vec![], reads: vec![], ..self.plan.clone() };
        while some.reads.is_empty() {
            for read in self.plan.reads.iter().rev() {
                if self.random.chance(30) {
                    let column =
                        read.column.map(|column| place(&mut some.columns, &self.plan.columns[column]));
                    let filter =
                        read.filter.map(|filter| place(&mut some.filters, &self.plan.filters[filter]));
                    some.reads.push(Read { column, filter, ..read.clone() });
                }
            }
        }
        some
    }

    /// What a plan's store is sent of an event.
    fn of_plan(&self, plan: &StorePlan, event: &Event) -> Event {
        let column = |name: &String| self.plan.columns.iter().position(|(known, _)| known == name).unwrap();
        let filter = |text: &String| self.plan.filters.iter().position(|known| known == text).unwrap();
        Event {
            values: plan.columns.iter().map(|(name, _)| event.values[column(name)].clone()).collect(),
            filters: plan.filters.iter().map(|text| event.filters[filter(text)]).collect(),
            ..event.clone()
        }
    }

    /// Events of the log pass; each read's values where they are wanted.
    fn pass(
        &self,
        store: &mut Store,
        plan: &StorePlan,
        from: usize,
        to: usize,
        wanted: &[usize],
    ) -> Vec<ArrayRef> {
        let events: Vec<Event> =
            self.events[from..to].iter().map(|event| self.of_plan(plan, event)).collect();
        let batch = Batch::new(plan, &events);
        let pass = Pass {
            times: &batch.times,
            keys: &batch.keys,
            insert: true,
            columns: &batch.columns,
            filters: &batch.filters,
            skip: None,
            wanted,
            evict_before: if to == 0 { i64::MIN } else { self.floor(to) },
            threads: 1,
        };
        store.pass(&pass).unwrap()
    }

    fn floor(&self, to: usize) -> i64 {
        self.clocks[to - 1] - self.lateness
    }

    /// All events up to a cut have effective times up to this one.
    fn begin(&self, cut: usize) -> i64 {
        if cut == 0 { i64::MIN } else { self.clocks[cut - 1] }
    }

    fn built(&self, plan: &StorePlan, from: usize, to: usize) -> Store {
        let mut store = Store::new(plan.clone()).unwrap();
        if from > 0 {
            store.begin_after(self.begin(from));
        }
        self.pass(&mut store, plan, from, to, &[]);
        store.settle(self.floor(to));
        store
    }

    /// The definitions, for a read that knows some of the first events.
    fn oracle(&self, plan: &StorePlan, to: usize, knows: impl Fn(usize) -> bool) -> Oracle {
        let events = (0..to).filter(|at| knows(*at)).map(|at| self.of_plan(plan, &self.events[at])).collect();
        Oracle { types: plan.columns.iter().map(|(_, kind)| *kind).collect(), events }
    }

    /// Compares reads at each of the events from `to` on with what the definitions say of the events that each knows.
    fn check(
        &self,
        store: &mut Store,
        plan: &StorePlan,
        to: usize,
        knows: impl Fn(usize, usize) -> bool,
        right: impl Fn(usize, i64) -> bool,
    ) {
        let wanted: Vec<usize> = (0..plan.reads.len()).collect();
        let oracle = |read| self.oracle(plan, to, |at| knows(read, at));
        let mut oracles: Vec<Oracle> = wanted.iter().map(|read| oracle(*read)).collect();
        for at in to..self.events.len() {
            let event = self.of_plan(plan, &self.events[at]);
            let arrays = self.pass(store, plan, at, at + 1, &wanted);
            for (index, array) in arrays.iter().enumerate().filter(|(index, _)| right(*index, event.time)) {
                let read = &plan.reads[index];
                let (got, want) =
                    (value(array, kind(plan, read), 0), oracles[index].read(read, &event, true));
                assert!(close(&got, &want), "event {at}, {read:?}: got {got:?}, want {want:?}");
            }
            oracles.iter_mut().for_each(|oracle| oracle.events.push(event.clone()));
        }
    }
}

fn place<T: Clone + PartialEq>(all: &mut Vec<T>, one: &T) -> usize {
    all.iter().position(|known| known == one).unwrap_or_else(|| {
        all.push(one.clone());
        all.len() - 1
    })
}

fn close(got: &Option<Value>, want: &Option<Value>) -> bool {
    match (got, want) {
        (Some(Value::Float(a)), Some(Value::Float(b))) => (a - b).abs() <= 1e-9 * (1.0 + b.abs()),
        _ => got == want,
    }
}

fn saved(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.save(&mut bytes).unwrap();
    bytes
}

fn changed(history: &History, saved: &[u8], plan: &StorePlan, cut: usize, to: usize) -> Store {
    match Store::load_for(plan, &mut &saved[..], history.floor(to)).unwrap() {
        Some(store) => store,
        None => {
            Store::load_with(plan, &mut &saved[..], history.built(plan, cut, to), history.begin(cut)).unwrap()
        }
    }
}

#[test]
fn a_changed_plan_on_a_whole_log_gives_the_bytes_of_a_state_built_from_it() {
    for seed in 0..400 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        history.go_on(70);
        let (old, new) = (history.some(), history.some());
        let bytes = saved(&history.built(&old, 0, 70));
        let store = changed(&history, &bytes, &new, 0, 70);
        assert!(saved(&store) == saved(&history.built(&new, 0, 70)));
    }
}

/// The unchanged reads see the whole history. The new ones see what the log has, and say from when that is everything.
#[test]
fn after_retention_has_cut_the_log_unchanged_reads_stay_complete_and_new_ones_say_from_when() {
    let (mut gaps, mut sound) = (0, 0);
    for seed in 0..400 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        history.go_on(140);
        let (old, new) = (history.some(), history.some());
        let cut = history.random.below(70) as usize;
        let bytes = saved(&history.built(&old, 0, 70));
        let mut store = changed(&history, &bytes, &new, cut, 70);
        let again = Store::load(new.clone(), &mut &saved(&store)[..]).unwrap();
        assert!(again.gaps(history.floor(70)) == store.gaps(history.floor(70)));
        let incomplete = store.gaps(history.floor(70));
        for gap in &incomplete {
            let read = &new.reads[gap.read];
            let in_old = |known: &Read| same_read(&old, known, &new, read);
            assert!(!old.reads.iter().any(in_old), "{read:?} was complete before");
            assert!(gap.since <= history.begin(cut));
        }
        gaps += incomplete.len();
        sound += new.reads.len() - incomplete.len();
        let complete = |read: usize, time: i64| {
            let gap = incomplete.iter().find(|gap| gap.read == read);
            gap.is_none_or(|gap| gap.complete_from.is_some_and(|from| time >= from))
        };
        history.check(&mut store, &new, 70, |_, _| true, complete);
    }
    assert!(gaps > 100 && sound > 1000, "{gaps} incomplete, {sound} complete");
}

/// Queries look further back than before, to where events had been freed: that is told at each start until it is over.
#[test]
fn what_had_been_freed_before_queries_looked_so_far_back_is_told_again_after_each_save() {
    let mut gaps = 0;
    for seed in 0..200 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        history.go_on(70);
        let plan = history.some();
        let bytes = saved(&history.built(&plan, 0, 70));
        history.lateness += 20;
        let cut = history.random.below(70) as usize;
        let store = changed(&history, &bytes, &plan, cut, 70);
        let told = store.gaps(history.floor(70));
        gaps += told.len();
        let again = Store::load(plan, &mut &saved(&store)[..]).unwrap();
        assert!(again.gaps(history.floor(70)) == told, "{told:?}");
    }
    assert!(gaps > 50, "{gaps}");
}

/// A new endless read begins where the log does, exactly, whatever it shares with older ones.
#[test]
fn a_new_endless_read_over_a_cut_log_is_that_of_the_log() {
    let mut checked = 0;
    for seed in 0..400 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        history.go_on(140);
        let (old, new) = (history.some(), history.some());
        let cut = 1 + history.random.below(69) as usize;
        let bytes = saved(&history.built(&old, 0, 70));
        let mut store = changed(&history, &bytes, &new, cut, 70);
        let newest = |read: &Read| matches!(read.aggregate, super::Aggregate::Lag(_));
        let from_log: Vec<usize> =
            store.gaps(0).iter().filter(|gap| gap.complete_from.is_none()).map(|gap| gap.read).collect();
        checked += from_log.len();
        let kept = |read: &Read| {
            let column = read.column.is_none_or(|column| old.columns.contains(&new.columns[column]));
            column && read.filter.is_none_or(|filter| old.filters.contains(&new.filters[filter]))
        };
        // What had not been freed yet is known in any case.
        let recent = |at: usize| history.events[at].time > history.floor(70) - 5;
        let knows = |read: usize, at: usize| at >= cut || kept(&new.reads[read]) && recent(at);
        history.check(&mut store, &new, 70, knows, |read, _| {
            from_log.contains(&read) && !newest(&new.reads[read])
        });
    }
    assert!(checked > 100, "{checked}");
}

/// Changed twice, with ever less of the log: what was kept at first is still there.
#[test]
fn a_plan_that_changes_again_and_again_keeps_what_it_keeps() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut history = History::new(seed);
        history.go_on(160);
        let plans: Vec<StorePlan> = (0..4).map(|_| history.some()).collect();
        let mut store = history.built(&plans[0], 0, 50);
        let (mut cut, mut to) = (0, 50);
        for pair in plans.windows(2) {
            cut += history.random.below((to - cut) as i64) as usize;
            let before = store.gaps(i64::MIN);
            store = changed(&history, &saved(&store), &pair[1], cut, to);
            for (index, read) in pair[1].reads.iter().enumerate() {
                let known = pair[0].reads.iter().position(|known| same_read(&pair[0], known, &pair[1], read));
                let complete = known.is_some_and(|known| before.iter().all(|gap| gap.read != known));
                assert!(!complete || store.gaps(history.floor(to)).iter().all(|gap| gap.read != index));
            }
            history.pass(&mut store, &pair[1], to, to + 30, &[]);
            to += 30;
            store.settle(history.floor(to));
        }
        let incomplete = store.gaps(history.floor(to));
        let complete = |read: usize, time: i64| {
            let gap = incomplete.iter().find(|gap| gap.read == read);
            gap.is_none_or(|gap| gap.complete_from.is_some_and(|from| time >= from))
        };
        history.check(&mut store, &plans[3], to, |_, _| true, complete);
    }
}

fn same_read(old: &StorePlan, one: &Read, new: &StorePlan, other: &Read) -> bool {
    let named = |plan: &StorePlan, read: &Read| {
        let column = read.column.map(|column| plan.columns[column].clone());
        (column, read.filter.map(|filter| plan.filters[filter].clone()))
    };
    let plain = |read: &Read| Read { column: None, filter: None, ..read.clone() };
    named(old, one) == named(new, other) && plain(one) == plain(other)
}
