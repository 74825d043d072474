//! The heart of the gate: one cycle takes what waited, decides it in order, makes it durable and gives the answers.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt32Array};
use hashbrown::HashTable;

use super::admit::{Fresh, Group, Seen};
use super::bulk::Bulk;
use super::dead::{Letters, Retried};
use super::models::Pending;
use super::stats::Stats;
use super::stored::Commits;
use super::weight::{Sum, Weights};
use super::words::{Body, Decided, Finished, Worded, Words};
use super::{Answer, Clock, Kind, REPEAT, Request, Tell, Tells, Told, error_body};
use crate::answer::{self, DecisionWriter};
use crate::decide::{Case, Decider};
use crate::decode::{ArrayCut, Decoder, Refusal};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::log::{Flush, Log, Section};
use crate::plan::{OnFull, Plan};
use crate::schema::Schema;
use crate::snapshot;

/// So many answers take longer to word than a thread to start, which then syncs meanwhile.
const WORDED_ASIDE: usize = 256;
/// `,"took_ms":12.345}`
pub(super) const CLOSING_BYTES: usize = 24;

#[derive(Clone, Debug)]
pub struct Settings {
    /// At this many bytes of state, events with new keys get the fallback.
    pub state_bytes_max: usize,
    /// Bulk appends are cut into commits of about this many bytes.
    pub commit_bytes: usize,
    pub threads: usize,
}

/// About what the log takes of one who was told the fallback.
const TOLD_BYTES: usize = 256;
/// One cycle takes at most so many requests.
const CYCLE_REQUESTS: usize = 1_024;
/// How often `tend` has something to do.
pub const TEND_US: i64 = 60_000_000;

/// What a policy keeps in the log beside its topic's events.
pub(super) struct PolicyLog {
    pub decisions: u32,
    pub decisions_topic: String,
    pub timeouts: u32,
    pub timeouts_topic: String,
    /// What its events are marked with; it stays when a pipeline's policies change their order.
    pub origin: u16,
}

pub struct Core {
    pub plan: Arc<Plan>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Engine,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) log: Log,
    /// The log's segment that the newest commit is in.
    pub(super) segment: u64,
    /// Nothing is removed from the log before every snapshot is of this sequence or a later one: an older one lacks what
    /// a changed pipeline needs from the log.
    pub(super) trim_from: u64,
    pub(super) tended_us: i64,
    pub(super) ids: Ids,
    pub(super) decoders: Arc<Vec<Decoder>>,
    pub(super) deciders: Vec<Decider>,
    /// Schema ids of the topics.
    pub(super) topics: Vec<u32>,
    pub(super) policies: Vec<PolicyLog>,
    /// Each schema of decisions, by id, with its policy's writer.
    pub(super) writers: HashMap<u32, DecisionWriter>,
    pub(super) bulk: BTreeMap<u64, Bulk>,
    /// Arrays that are being cut into their events.
    pub(super) cutting: VecDeque<(Request, ArrayCut)>,
    /// Those of `bulk` that still have rows to take, in order.
    pub(super) bulk_queue: VecDeque<u64>,
    pub(super) bulk_turn: bool,
    /// By policy and hash of the id: lines whose caller was told the fallback, and they are not taken yet.
    pub(super) told_lines: HashMap<(usize, u64), (u64, usize)>,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Models' answers that are to be taken.
    pub(super) scored: VecDeque<Request>,
    pub(super) weights: Weights,
    /// So many bytes are kept free for what is in flight, beyond what a cycle takes.
    pub(super) reserve_bytes: usize,
    /// The disk is so full that what is in flight waits too.
    pub(super) holding: bool,
    /// By policy and offset: who was told the fallback, and it is not in the log yet.
    pub(super) untold: BTreeMap<(usize, i64), Tell>,
    pub(super) letters: Letters,
    pub(super) next_number: u64,
    /// The answers of the cycle before: their callers may have been told the fallback while it ran.
    pub(super) last: Vec<(u64, Tells)>,
    /// Kept from cycle to cycle for its memory.
    pub(super) worded: Worded,
    pub stats: Stats,
}

/// Who waits for which row of a batch: each row's first waiter in the order of the rows, and after it any others.
pub(super) type Queue = Vec<(usize, Waiter)>;

/// Events with all that is known of them.
#[derive(Clone)]
pub(super) struct Batch {
    pub events: Arc<RecordBatch>,
    pub features: Vec<ArrayRef>,
    pub marks: Vec<u8>,
    pub offsets: Vec<i64>,
}

/// Who waits for the decision about a row.
#[derive(Clone)]
pub(super) enum Waiter {
    One { handle: u64, held_ns: u64, repeat: bool },
    Line { bulk: u64, line: usize },
}

/// What one cycle gathers before its commit.
pub(super) struct Cycle {
    pub now_us: i64,
    pub sections: Vec<Section>,
    /// Rows staged by topic, beyond what the log has.
    pub staged: HashMap<usize, i64>,
    pub groups: Vec<Group>,
    pub fresh: HashTable<Fresh>,
    pub commits: Commits,
    /// Hashes of the ids whose place is this commit.
    pub hashes: Vec<u64>,
    pub decided: Vec<Decided>,
    pub finished: Vec<Finished>,
    pub answers: Vec<Answer>,
    pub told: HashSet<u64>,
    pub tells: Vec<Tell>,
    pub retried: Vec<Retried>,
}

impl Core {
    /// Whether `step` has work left that no new request has to bring.
    pub fn busy(&self) -> bool {
        !(self.bulk_queue.is_empty() && self.cutting.is_empty() && self.letters.is_empty())
            || !(self.holding || !self.has_untold() && self.scored.is_empty())
    }

    /// How many of these requests, from the first on, one cycle takes: its commit has the space that was kept for it.
    pub fn fitting<'a>(&self, requests: impl Iterator<Item = &'a Request>) -> usize {
        let (longest, mut sum, mut bytes) = (self.engine.longest_text(), Sum::default(), 0);
        let fits = |(index, request): &(usize, &Request)| {
            match request.kind {
                Kind::Decide => {
                    sum.add(self.weights.decision(request.target), request.body.len(), &self.weights.limits)
                }
                _ => bytes += request.body.len(),
            }
            *index == 0 || sum.bytes(longest).max(bytes) <= self.weights.cycle_bytes
        };
        requests.take(CYCLE_REQUESTS).enumerate().take_while(fits).count()
    }

    /// One cycle.
    ///
    /// An error means that the log or the state cannot go on; nothing of this cycle was answered.
    pub fn step(&mut self, requests: Vec<Request>, told: Told) -> Result<Vec<Answer>> {
        let started = self.clock.monotonic_ns();
        let mut cycle = Cycle::new(self.clock.now_us(), told);
        self.stats.beat += 1;
        self.look_for_room()?;
        self.recall_told(&mut cycle);
        let mut decides: Vec<Vec<Request>> = Vec::new();
        decides.resize_with(self.plan.policies.len(), Vec::new);
        let mut lookups = Vec::new();
        for request in requests {
            match request.kind {
                Kind::Decide => decides[request.target].push(request),
                Kind::Lookup => lookups.push(request),
                Kind::DryRun => self.dry_run(&mut cycle, request)?,
                Kind::DryRunMany => self.queue_bulk(&mut cycle, request),
                Kind::Scores => self.scored.push_back(request),
                Kind::DecideMany if self.plan.policies[request.target].on_full == OnFull::Fallback => {
                    self.queue_bulk(&mut cycle, request)
                }
                _ if self.stats.full.is_some() => cycle.answers.push(self.full_answer(request.handle)),
                Kind::Position => self.note_position(&mut cycle, request),
                _ => self.queue_bulk(&mut cycle, request),
            }
        }
        // A slice of large requests and waiting decisions take turns: neither is held back by more than one commit of
        // the other.
        let waiting = decides.iter().any(|requests| !requests.is_empty());
        self.hear_told(&mut cycle);
        let turn = !waiting || self.bulk_turn;
        self.bulk_turn = !turn;
        for (policy, requests) in decides.into_iter().enumerate() {
            if !requests.is_empty() {
                self.decide_singles(&mut cycle, policy, requests)?;
            }
        }
        if turn {
            self.cut_arrays(&mut cycle);
            self.take_bulk(&mut cycle)?;
        }
        self.stage_letters(&mut cycle)?;
        self.stage_tells(&mut cycle)?;
        // Last, so that a retry in this cycle still finds its first attempt waiting, and who was told is known; and no
        // more than about a commit of them.
        while !self.holding
            && cycle.decided_bytes() < self.weights.commit_bytes
            && let Some(request) = self.scored.pop_front()
        {
            self.take_scores(&mut cycle, request)?;
        }
        let synced = self.commit_cycle(&mut cycle)?;
        // After the commit: who asks now is shown what was told and decided until now.
        for request in lookups {
            self.look_up(&mut cycle, request)?;
        }
        let answers = self.finish(cycle);
        let took = self.clock.monotonic_ns().saturating_sub(started);
        self.stats.core_seconds.observe(took.saturating_sub(synced) as f64 / 1e9);
        self.refresh_stats();
        Ok(answers)
    }

    /// What is done between cycles, once a minute: the log's retention is looked after, whether it grows or not, and
    /// the state's size is measured, which after the last of many cycles is not what it was.
    pub fn tend(&mut self) -> Result<()> {
        let now_us = self.clock.now_us();
        if self.stats.full.is_some() {
            // Who is told that the disk is full may send nothing more: that there is space again is seen without it.
            self.look_for_room()?;
        }
        if now_us.saturating_sub(self.tended_us) >= TEND_US {
            self.tended_us = now_us;
            self.remove_old(now_us)?;
            self.measure_state();
        }
        Ok(())
    }

    /// Stop taking, make everything durable, close the log.
    pub fn close(self) -> Result<()> {
        self.log.close()
    }

    /// Append what the cycle gathered, sync it and word what is said of it; the time of the sync in nanoseconds.
    fn commit_cycle(&mut self, cycle: &mut Cycle) -> Result<u64> {
        let mut worded = std::mem::take(&mut self.worded);
        if cycle.sections.is_empty() && !self.log.has_changes() {
            self.word(cycle, &mut worded);
            self.worded = worded;
            return Ok(0);
        }
        let committed = self.log.append(&cycle.sections, cycle.now_us)?;
        let clock = &*self.clock;
        let sync = move |flush: Flush| {
            let before = clock.monotonic_ns();
            (flush.run(), clock.monotonic_ns().saturating_sub(before))
        };
        let (flushed, took) = std::thread::scope(|scope| {
            let flush = self.log.begin_sync();
            let thread = std::thread::Builder::new().name("log-sync".into());
            let many = cycle.finished.len() >= WORDED_ASIDE;
            // Without a thread to be had, as with few answers: one after the other.
            let syncing = many.then(|| thread.spawn_scoped(scope, move || sync(flush)).ok()).flatten();
            self.word(cycle, &mut worded);
            match syncing {
                Some(syncing) => syncing.join().expect("a sync does not panic"),
                None => sync(self.log.begin_sync()),
            }
        });
        self.worded = worded;
        self.log.finish_sync(flushed?)?;
        self.stats.sync_seconds.observe(took as f64 / 1e9);
        self.stats.commits += 1;
        if !cycle.hashes.is_empty() {
            // An event and what was decided or told of it may be of one commit: one entry leads to it.
            cycle.hashes.sort_unstable();
            cycle.hashes.dedup();
            self.ids.insert_batch(&cycle.hashes, committed.address.0, committed.sequence, cycle.now_us);
        }
        when_there_is_room(self.ids.flushable(self.log.durable()))?;
        if committed.address.segment() != self.segment {
            self.segment = committed.address.segment();
            self.remove_old(cycle.now_us)?;
        }
        Ok(took)
    }

    /// For who compares its state.
    #[cfg(test)]
    pub(crate) fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn word(&self, cycle: &Cycle, worded: &mut Worded) {
        worded.clear();
        let tables: Vec<_> =
            cycle.decided.iter().map(|decided| self.writers[&decided.schema].rows(&decided.table)).collect();
        for finished in &cycle.finished {
            match finished.words {
                Words::Made(ref body) => worded.add(|text| text.extend_from_slice(body)),
                Words::Row { table, row } => {
                    worded.add(|text| tables[table].write(text, row, cycle.decided[table].extra));
                }
            }
        }
    }

    /// Remove what is too old. What cannot be removed now is tried again with the next file or minute: files that stay
    /// are no reason to stop, as long as the log can be written.
    fn remove_old(&mut self, now_us: i64) -> Result<()> {
        let removed = self.try_remove_old(now_us);
        self.log.check()?;
        self.stats.removal_failures += u64::from(removed.is_err());
        self.stats.removal_failed = removed.err().map(|error| error.to_string());
        Ok(())
    }

    /// What is older than its retention, as far as no state has to be made from it again and no event in it waits for
    /// its model. An id is forgotten with its event, so that the index does not hold anything back.
    fn try_remove_old(&mut self, now_us: i64) -> Result<()> {
        let snapshots = snapshot::list(self.disk.as_ref())?;
        if snapshots.len() >= snapshot::KEPT && snapshots[0] >= self.trim_from {
            let undecided = self.pending.values().map(|pending| pending.after).min().unwrap_or(u64::MAX);
            // The segment with the snapshot's own commit stays: reading goes on from there.
            self.log.trim(now_us, snapshots[0].min(undecided))?;
        }
        let retain_us = self.plan.topics.iter().map(|topic| topic.retain_us).max().unwrap_or(0);
        self.ids.expire(now_us.saturating_sub(retain_us))?;
        Ok(())
    }

    fn finish(&mut self, mut cycle: Cycle) -> Vec<Answer> {
        let now = self.clock.monotonic_ns();
        let worded = std::mem::take(&mut self.worded);
        let mut text = Vec::with_capacity(worded.bytes() + CLOSING_BYTES * cycle.finished.len());
        let mut singles = Vec::with_capacity(cycle.finished.len());
        self.last.clear();
        for (Finished { waiter, tell, .. }, open) in cycle.finished.into_iter().zip(worded.bodies()) {
            match waiter {
                Waiter::One { handle, held_ns, repeat } => {
                    let start = text.len();
                    text.extend_from_slice(open);
                    answer::finish(&mut text, now.saturating_sub(held_ns));
                    let tells = tell.map_or(Tells::None, Tells::One);
                    self.last.push((handle, tells.clone()));
                    singles.push((handle, start..text.len(), if repeat { REPEAT } else { 0 }, tells));
                }
                Waiter::Line { bulk, line } => self.finish_line(bulk, line, open, now, tell),
            }
        }
        self.worded = worded;
        let text = Arc::new(text);
        cycle.answers.extend(singles.into_iter().map(|(handle, range, flags, tells)| Answer {
            handle,
            status: 200,
            body: Body::part(&text, range),
            flags,
            tells,
        }));
        self.finish_bulk(&mut cycle.answers);
        cycle.answers
    }

    /// Say no to one waiter: an answer of its own, or its line of a larger one.
    pub(super) fn refuse(&mut self, cycle: &mut Cycle, waiter: &Waiter, status: u16, body: Vec<u8>) {
        match *waiter {
            Waiter::One { handle, .. } => {
                cycle.answers.push(Answer::plain(handle, status, body));
            }
            Waiter::Line { bulk, line } => self.refuse_line(bulk, line, &body),
        }
    }

    /// Whether there is space for a cycle, and after it for the decisions that are in flight. New events are refused
    /// before those lack it; where it is lacking all the same, they wait in memory.
    pub(super) fn look_for_room(&mut self) -> Result<()> {
        let reserve = self.in_flight_bytes().min(self.reserve_bytes);
        self.stats.full = self.full(self.weights.cycle_bytes_max() + reserve)?;
        self.holding = self.stats.full.is_some() && self.full(self.weights.held_bytes_max())?.is_some();
        Ok(())
    }

    /// Why the log has no space for so many bytes, if so.
    fn full(&mut self, bytes: usize) -> Result<Option<String>> {
        match self.log.room(bytes as u64) {
            Ok(()) => Ok(None),
            Err(error @ Error::Full { .. }) => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// About what the answers of models and who was told the fallback will take in the log.
    fn in_flight_bytes(&self) -> usize {
        let longest = self.engine.longest_text();
        let pending = self.pending.values().map(|pending| {
            let rows = if pending.dry_run { 0 } else { pending.told.len() };
            rows * self.weights.decision(pending.policy).bytes(longest)
        });
        pending.sum::<usize>() + self.untold.len() * TOLD_BYTES
    }

    pub(super) fn full_answer(&self, handle: u64) -> Answer {
        Answer::plain(handle, 503, self.full_body())
    }

    fn full_body(&self) -> Vec<u8> {
        let message = self.stats.full.as_deref().unwrap_or("no space left");
        error_body("disk_full", message, None)
    }

    /// Tell a new event's caller that the disk is full, or the fallback where the policy says so; nothing is recorded.
    pub(super) fn tell_full(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        (events, row): (&RecordBatch, usize),
        waiter: Waiter,
    ) {
        self.stats.disk_full += 1;
        match self.plan.policies[policy].on_full {
            OnFull::Refuse => self.refuse(cycle, &waiter, 503, self.full_body()),
            OnFull::Fallback => {
                let body = fallback_for(&self.plan, policy, events, row, answer::DISK_FULL);
                cycle.finish(waiter, Words::Made(body), None);
            }
        }
    }

    fn refresh_stats(&mut self) {
        self.stats.queued = (self.cutting.len() + self.bulk_queue.len()) as u64;
        self.stats.pending = self.pending.values().map(|pending| pending.told.len() as u64).sum();
        self.stats.log_sequence = self.log.last_sequence();
        self.stats.ids_damaged = self.ids.damaged().map(str::to_string);
        self.stats.ids_unmerged = self.ids.unmerged().map(str::to_string);
        // Walking what the state holds costs time, and its size changes slowly.
        if self.stats.beat % 64 == 1 {
            self.measure_state();
        }
    }

    /// How large the state and the ids are: at start too, since no cycle may come for long.
    pub(super) fn measure_state(&mut self) {
        self.stats.state_bytes = self.engine.state_bytes() as u64;
        self.stats.state_keys = self.engine.state_keys() as u64;
        self.stats.retained_events = self.engine.retained_events() as u64;
        self.stats.reader_lags = self.engine.reader_lags();
        let ids = self.ids.stats();
        self.stats.ids = ids.ids;
        self.stats.ids_memory_bytes = ids.memory_bytes;
    }
}

/// Files of ids that have no room are tried again; until then the ids stay in memory.
pub(super) fn when_there_is_room(flushed: Result<()>) -> Result<()> {
    match flushed {
        Err(Error::Full { .. }) => Ok(()),
        other => other,
    }
}

impl Cycle {
    fn new(now_us: i64, told: Told) -> Cycle {
        Cycle {
            now_us,
            sections: Vec::new(),
            staged: HashMap::new(),
            groups: Vec::new(),
            fresh: HashTable::new(),
            commits: Commits::default(),
            hashes: Vec::new(),
            decided: Vec::new(),
            finished: Vec::new(),
            answers: Vec::new(),
            told: told.handles.into_iter().collect(),
            tells: told.tells,
            retried: Vec::new(),
        }
    }

    pub fn decided_bytes(&self) -> usize {
        self.decided.iter().map(|decided| decided.table.get_array_memory_size()).sum()
    }
}

impl Batch {
    pub fn case<'a>(&'a self, score: &'a ArrayRef) -> Case<'a> {
        Case {
            events: &self.events,
            features: &self.features,
            score,
            marks: &self.marks,
            offsets: &self.offsets,
        }
    }
}

impl Waiter {
    pub fn repeated(&self) -> Waiter {
        match *self {
            Waiter::One { handle, held_ns, .. } => Waiter::One { handle, held_ns, repeat: true },
            Waiter::Line { bulk, line } => Waiter::Line { bulk, line },
        }
    }
}

pub(super) fn decision_writer(schema: &Schema) -> DecisionWriter {
    DecisionWriter::new(schema, 5..schema.fields.len() - 3)
}

pub(super) fn section(schema: u32, batch: RecordBatch) -> Section {
    Section { schema, origin: 0, before: i64::MIN, marks: None, batch }
}

/// What a caller is told whose deadline has passed.
pub(super) fn fallback_body(plan: &Plan, policy: usize, events: &RecordBatch, row: usize) -> Vec<u8> {
    fallback_for(plan, policy, events, row, answer::DEADLINE)
}

fn fallback_for(plan: &Plan, policy: usize, events: &RecordBatch, row: usize, cause: &str) -> Vec<u8> {
    let topic = &plan.topics[plan.policy_topic(policy)];
    let mut id = Vec::new();
    answer::write_value(&mut id, events.column(topic.id), topic.fields[topic.id].kind, row);
    let mut body = Vec::new();
    let about = &plan.policies[policy];
    answer::write_fallback(&mut body, &id, &about.fallback, &about.version, cause);
    body
}

/// The new rows of a batch.
pub(super) fn take_new(batch: &RecordBatch, seen: &[Seen]) -> Result<RecordBatch> {
    take_rows(batch, seen.iter().map(|seen| matches!(seen, Seen::New)))
}

/// Some of a batch's rows; all of it is the usual case, and costs nothing.
pub(super) fn take_rows(batch: &RecordBatch, taken: impl Iterator<Item = bool>) -> Result<RecordBatch> {
    let rows: Vec<u32> = (0..).zip(taken).filter_map(|(row, taken)| taken.then_some(row)).collect();
    if rows.len() == batch.num_rows() {
        return Ok(batch.clone());
    }
    arrow_select::take::take_record_batch(batch, &UInt32Array::from(rows))
        .map_err(|error| Error::invalid(format!("could not take rows: {error}")))
}

pub(super) fn refused_answer(handle: u64, refusal: &Refusal) -> Answer {
    Answer::plain(handle, 422, refusal_body(refusal))
}

pub(super) fn refusal_body(refusal: &Refusal) -> Vec<u8> {
    error_body(refusal.code, &refusal.to_string(), refusal.field.as_deref())
}
