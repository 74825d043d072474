//! The heart of the gate: one cycle takes what waited, decides it in order, makes it durable and gives the answers.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array};
use hashbrown::HashTable;

use super::admit::{Fresh, Group, Id, Seen, SeenEvent, Taken, ahead, find_id, id_hash, id_hashes, id_value};
use super::bulk::{Bulk, check_readable};
use super::stats::Stats;
use super::stored::Commits;
use super::words::{Body, Decided, Finished, Worded, Words};
use super::{Answer, Clock, Kind, MODEL, REPEAT, Request, Tell, Tells, Told, error_body};
use crate::answer::{self, DecisionWriter, Extra};
use crate::conform::write_ipc;
use crate::decide::{Case, Decider, Verdicts, no_score};
use crate::decode::{Decoder, Refusal, split_lines};
use crate::disk::Disk;
use crate::engine::{Engine, LATE, STATELESS, event_times};
use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::log::{Address, Flush, Log, Section};
use crate::plan::Plan;
use crate::schema::{Schema, Type};
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

/// How often `tend` has something to do.
/// What a timeout takes in the log beside a text of an id, about.
const TIMEOUT_BYTES: usize = 64;
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
    pub(super) settings: Settings,
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
    /// Those of `bulk` that still have rows to take, in order.
    pub(super) bulk_queue: VecDeque<u64>,
    pub(super) bulk_turn: bool,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Models' answers that are to be taken.
    pub(super) scored: VecDeque<Request>,
    /// By policy and offset: who was told the fallback, and it is not in the log yet.
    pub(super) untold: BTreeMap<(usize, i64), Tell>,
    pub(super) next_number: u64,
    /// The answers of the cycle before: their callers may have been told the fallback while it ran.
    pub(super) last: Vec<(u64, Tells)>,
    /// Kept from cycle to cycle for its memory.
    pub(super) worded: Worded,
    pub stats: Stats,
}

/// Rows that wait for their model.
pub(super) struct Pending {
    policy: usize,
    batch: Batch,
    waiters: Queue,
    told: Vec<bool>,
    started_ns: u64,
    dry_run: bool,
}

/// Who waits for which row of a batch: each row's first waiter in the order of the rows, and after it any others.
type Queue = Vec<(usize, Waiter)>;

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
    told: HashSet<u64>,
    pub tells: Vec<Tell>,
}

impl Core {
    /// Whether `step` has work left that no new request has to bring.
    pub fn busy(&self) -> bool {
        !self.bulk_queue.is_empty() || !self.untold.is_empty() || !self.scored.is_empty()
    }

    /// One cycle.
    ///
    /// An error means that the log or the state cannot go on; nothing of this cycle was answered.
    pub fn step(&mut self, requests: Vec<Request>, told: Told) -> Result<Vec<Answer>> {
        let started = self.clock.monotonic_ns();
        let mut cycle = Cycle::new(self.clock.now_us(), told);
        self.stats.beat += 1;
        self.stats.full = self.room(&requests);
        self.recall_told(&mut cycle);
        let mut decides: Vec<Vec<Request>> = Vec::new();
        decides.resize_with(self.plan.policies.len(), Vec::new);
        let mut lookups = Vec::new();
        for request in requests {
            match request.kind {
                Kind::Decide if self.stats.full.is_some() => {
                    cycle.answers.push(self.full_answer(request.handle))
                }
                Kind::Decide => decides[request.target].push(request),
                Kind::Lookup => lookups.push(request),
                Kind::DryRun | Kind::DryRunMany => self.dry_run(&mut cycle, request)?,
                Kind::Scores => self.scored.push_back(request),
                _ if self.stats.full.is_some() => cycle.answers.push(self.full_answer(request.handle)),
                Kind::Position => self.note_position(&mut cycle, request),
                _ => self.queue_bulk(&mut cycle, request)?,
            }
        }
        // A bulk slice and waiting decisions take turns: neither is held back by more than one commit of the other.
        let waiting = decides.iter().any(|requests| !requests.is_empty());
        for (policy, requests) in decides.into_iter().enumerate() {
            if !requests.is_empty() {
                self.decide_singles(&mut cycle, policy, requests)?;
            }
        }
        if !waiting || self.bulk_turn {
            self.take_bulk(&mut cycle)?;
        }
        self.bulk_turn = waiting;
        self.stage_tells(&mut cycle)?;
        // Last, so that a retry in this cycle still finds its first attempt waiting, and who was told is known; and no
        // more than about a commit of them.
        while cycle.decided_bytes() < self.settings.commit_bytes
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
            self.stats.full = self.room(&[]);
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

    // Decisions, one event a request.

    fn decide_singles(&mut self, cycle: &mut Cycle, policy: usize, requests: Vec<Request>) -> Result<()> {
        let topic = self.plan.policy_topic(policy);
        let decoded = self.decoders[topic].decode(requests.iter().map(|request| request.body.as_slice()));
        for (index, refusal) in &decoded.refused {
            self.stats.refused += 1;
            cycle.answers.push(refused_answer(requests[*index as usize].handle, refusal));
        }
        let waiters: Vec<Waiter> = decoded
            .rows
            .iter()
            .map(|&index| &requests[index as usize])
            .map(|request| Waiter::One { handle: request.handle, held_ns: request.held_ns, repeat: false })
            .collect();
        self.decide_rows(cycle, policy, decoded.batch, waiters)
    }

    /// Decide about the new rows of a batch, and find for the others what was said before.
    pub(super) fn decide_rows(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        batch: RecordBatch,
        waiters: Vec<Waiter>,
    ) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let topic = self.plan.policy_topic(policy);
        let origin = self.policies[policy].origin;
        let seen = self.admit(cycle, topic, origin, &batch)?;
        let group = cycle.groups.len() - 1;
        let mut queue: Queue = Vec::with_capacity(seen.len());
        let mut again = Vec::new();
        for (seen, waiter) in seen.iter().zip(waiters) {
            match seen {
                Seen::New => queue.push((queue.len(), waiter)),
                Seen::InCycle(group, row) => again.push((*group, *row, waiter.repeated())),
                Seen::Before(event) => self.repeat(cycle, policy, event, waiter.repeated())?,
                Seen::Refused(status, code, message) => {
                    self.stats.refused += 1;
                    self.refuse(cycle, &waiter, *status, code, message);
                }
            }
        }
        let events = take_new(&batch, &seen)?;
        if events.num_rows() > 0 {
            let set = self.plan.policies[policy].features;
            let batch = self.remember(cycle, topic, origin, events, &[set])?;
            cycle.groups[group].taken = match self.plan.policies[policy].model {
                None => self.decide_now(cycle, policy, batch, queue)?,
                Some(model) => self.ask_model(cycle, policy, model, batch, queue, false)?,
            };
        }
        for (group, row, waiter) in again {
            self.join(cycle, policy, group, row, waiter);
        }
        Ok(())
    }

    /// Let a retry wait with the first attempt, which came in the same cycle.
    fn join(&mut self, cycle: &mut Cycle, policy: usize, group: usize, row: usize, waiter: Waiter) {
        self.stats.repeats += 1;
        let row = cycle.groups[group].places[row];
        match cycle.groups[group].taken {
            Taken::Decided(table) => {
                let offset = cycle.decided[table].offset(row);
                let told = self.told_now(cycle, policy, offset).map(Words::Made);
                cycle.finish(waiter, told.unwrap_or(Words::Row { table, row }), None);
            }
            Taken::Pending(number) => {
                let pending = self.pending.get_mut(&number).expect("it was asked in this cycle");
                pending.waiters.push((row, waiter));
            }
            Taken::Nothing | Taken::Events(_) => unreachable!("the first attempt was to be decided"),
        }
    }

    fn decide_now(&mut self, cycle: &mut Cycle, policy: usize, batch: Batch, queue: Queue) -> Result<Taken> {
        let rows = batch.events.num_rows();
        let score = no_score(rows);
        let verdicts = self.deciders[policy].decide(&batch.case(&score))?;
        let mut told = vec![false; rows];
        for (row, waiter) in &queue {
            told[*row] |= self.told_first(cycle, waiter);
        }
        for row in (0..rows).filter(|&row| told[row]) {
            let (events, offset) = (batch.events.clone(), batch.offsets[row]);
            cycle.tells.push(Tell { policy, events, row, offset });
        }
        self.conclude(cycle, policy, &batch, &score, verdicts, queue, &told)?;
        Ok(Taken::Decided(cycle.decided.len() - 1))
    }

    /// Whether a first attempt was told the fallback before it was decided: alone, or with all of its body.
    fn told_first(&self, cycle: &Cycle, waiter: &Waiter) -> bool {
        match waiter {
            Waiter::One { handle, repeat, .. } => !repeat && cycle.told.contains(handle),
            Waiter::Line { bulk, .. } => {
                self.bulk.get(bulk).is_some_and(|bulk| bulk.told || cycle.told.contains(&bulk.handle))
            }
        }
    }

    /// Stage the decisions for the log, and who is told of them.
    #[allow(clippy::too_many_arguments)]
    fn conclude(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        batch: &Batch,
        score: &ArrayRef,
        verdicts: Verdicts,
        queue: Queue,
        told: &[bool],
    ) -> Result<()> {
        let table = self.deciders[policy].table(&batch.case(score), &verdicts)?;
        self.count_decisions(policy, &verdicts);
        let number = cycle.decided.len();
        let mut rows = 0;
        for (row, waiter) in queue {
            // Rows rise with their first waiters; whoever comes later to a row waits for a second telling.
            let first = row == rows;
            rows += usize::from(first);
            if told[row] {
                // Whoever still waits is a retry, and must be told what the first attempt was told.
                let body = fallback_body(&self.plan, policy, &batch.events, row);
                cycle.finish(waiter, Words::Made(body), None);
                continue;
            }
            let offset = batch.offsets[row];
            let tell = first.then(|| Tell { policy, events: batch.events.clone(), row, offset });
            cycle.finish(waiter, Words::Row { table: number, row }, tell);
        }
        let schema = self.policies[policy].decisions;
        cycle.decided.push(Decided { schema, table: table.clone(), extra: Extra::default() });
        cycle.sections.push(section(schema, table));
        Ok(())
    }

    /// Let new rows into the log and the state, and compute their features.
    pub(super) fn remember(
        &mut self,
        cycle: &mut Cycle,
        topic: usize,
        origin: u16,
        events: RecordBatch,
        wanted: &[usize],
    ) -> Result<Batch> {
        let rows = events.num_rows();
        let before = self.engine.newest(topic).unwrap_or(i64::MIN);
        let stateless = self.stateless(topic, &events);
        let mut processed = self.engine.process(topic, &events, stateless.as_deref(), wanted)?;
        let base = self.next_offset(cycle, topic);
        *cycle.staged.entry(topic).or_default() += rows as i64;
        let about = &self.plan.topics[topic];
        cycle.hashes.extend(id_hashes(about, events.column(about.id)));
        self.stats.events += rows as u64;
        self.stats.late += processed.marks.iter().filter(|&&mark| mark & LATE != 0).count() as u64;
        let marks = processed.marks.iter().any(|&mark| mark != 0).then(|| processed.marks.clone());
        cycle.sections.push(Section {
            schema: self.topics[topic],
            origin,
            before,
            marks,
            batch: events.clone(),
        });
        Ok(Batch {
            events: Arc::new(events),
            features: if wanted.is_empty() { Vec::new() } else { processed.features.swap_remove(0) },
            marks: processed.marks,
            offsets: (base..base + rows as i64).collect(),
        })
    }

    /// The offset of the next event that this cycle lets into a topic.
    pub(super) fn next_offset(&self, cycle: &Cycle, topic: usize) -> i64 {
        let staged = cycle.staged.get(&topic).copied().unwrap_or_default();
        self.log.next_offset(&self.plan.topics[topic].name) as i64 + staged
    }

    /// Where the state has reached its limit, the rows with a key that it does not know.
    fn stateless(&mut self, topic: usize, events: &RecordBatch) -> Option<Vec<u8>> {
        let bytes = self.engine.state_bytes();
        self.stats.state_bytes = bytes as u64;
        if bytes < self.settings.state_bytes_max {
            return None;
        }
        let marks: Vec<u8> =
            self.engine.new_keys(topic, events).iter().map(|&new| if new { STATELESS } else { 0 }).collect();
        self.stats.state_full += marks.iter().filter(|&&mark| mark != 0).count() as u64;
        Some(marks)
    }

    // Models.

    fn ask_model(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        model: usize,
        batch: Batch,
        waiters: Queue,
        dry_run: bool,
    ) -> Result<Taken> {
        let number = self.next_number;
        self.next_number += 1;
        let body = write_ipc(&self.model_input(policy, &batch)?)?;
        cycle.answers.push(Answer {
            handle: number,
            status: model as u16,
            body: body.into(),
            flags: MODEL,
            tells: Tells::None,
        });
        let told = vec![false; batch.events.num_rows()];
        let started_ns = self.clock.monotonic_ns();
        self.pending.insert(number, Pending { policy, batch, waiters, told, started_ns, dry_run });
        Ok(Taken::Pending(number))
    }

    /// A model sees the event's fields and the features.
    fn model_input(&self, policy: usize, batch: &Batch) -> Result<RecordBatch> {
        let set = &self.plan.features[self.plan.policies[policy].features];
        let mut fields = self.plan.topics[set.topic].fields.clone();
        fields.extend(set.columns.iter().cloned());
        let mut columns = batch.events.columns().to_vec();
        columns.extend(batch.features.iter().cloned());
        RecordBatch::try_new(Schema { fields }.arrow(), columns)
            .map_err(|error| Error::invalid(format!("a model's input does not fit its schema: {error}")))
    }

    fn take_scores(&mut self, cycle: &mut Cycle, request: Request) -> Result<()> {
        let Some(pending) = self.pending.remove(&(request.target as u64)) else { return Ok(()) };
        let took = self.clock.monotonic_ns().saturating_sub(pending.started_ns);
        self.stats.model_seconds.observe(took as f64 / 1e9);
        let rows = pending.batch.events.num_rows();
        let decider = &self.deciders[pending.policy];
        let (score, verdicts) = match read_scores(&request.body, rows) {
            Some(score) => {
                let verdicts = decider.decide(&pending.batch.case(&score))?;
                (score, verdicts)
            }
            None => {
                self.stats.model_failures += 1;
                (no_score(rows), decider.fall_back(rows, "model")?)
            }
        };
        if pending.dry_run {
            return self.conclude_dry_run(cycle, pending, &score, verdicts);
        }
        self.hash_again(cycle, pending.policy, &pending.batch.events, 0..rows);
        self.conclude(cycle, pending.policy, &pending.batch, &score, verdicts, pending.waiters, &pending.told)
    }

    // What was said before.

    /// Answer a retry as the first attempt was answered, or let it wait with the first.
    fn repeat(&mut self, cycle: &mut Cycle, policy: usize, event: &SeenEvent, waiter: Waiter) -> Result<()> {
        self.stats.repeats += 1;
        match self.first_answer(cycle, policy, event) {
            Ok(None) => {}
            Ok(Some(body)) => {
                cycle.finish(waiter, Words::Made(body), None);
                return Ok(());
            }
            Err(error) => {
                let (status, body) = unreadable(error)?;
                self.refuse_with(cycle, &waiter, status, body);
                return Ok(());
            }
        }
        for pending in
            self.pending.values_mut().filter(|pending| pending.policy == policy && !pending.dry_run)
        {
            let Some(row) = pending.batch.offsets.iter().position(|&offset| offset == event.offset) else {
                continue;
            };
            if pending.told[row] {
                let body = fallback_body(&self.plan, policy, &pending.batch.events, row);
                cycle.finish(waiter, Words::Made(body), None);
            } else {
                pending.waiters.push((row, waiter));
            }
            return Ok(());
        }
        let message = "the event is in the log, but no decision about it was found";
        self.refuse(cycle, &waiter, 500, "no_decision", message);
        Ok(())
    }

    fn first_answer(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        event: &SeenEvent,
    ) -> Result<Option<Vec<u8>>> {
        if let Some(body) = self.told_now(cycle, policy, event.offset) {
            return Ok(Some(body));
        }
        if let Some(body) = self.told_body(cycle, policy, event)? {
            return Ok(Some(body));
        }
        self.decision_body(cycle, policy, event)
    }

    /// What this cycle knows that the first caller was told, if that was the fallback.
    fn told_now(&self, cycle: &Cycle, policy: usize, offset: i64) -> Option<Vec<u8>> {
        let told = cycle.tells.iter().find(|tell| tell.policy == policy && tell.offset == offset)?;
        Some(fallback_body(&self.plan, policy, &told.events, told.row))
    }

    fn told_body(&self, cycle: &mut Cycle, policy: usize, event: &SeenEvent) -> Result<Option<Vec<u8>>> {
        if let Some(tell) = self.untold.get(&(policy, event.offset)) {
            return Ok(Some(fallback_body(&self.plan, policy, &tell.events, tell.row)));
        }
        let topic = &self.policies[policy].timeouts_topic;
        let Some((_, table, row)) = self.find_row(cycle, topic, 1, event)? else { return Ok(None) };
        let text = |column: usize| table.column(column).as_string::<i32>().value(row);
        let mut id = Vec::new();
        let kind = self.plan.timeouts_schema(policy).fields[0].kind;
        answer::write_value(&mut id, table.column(0), kind, row);
        let mut body = Vec::new();
        answer::write_fallback(&mut body, &id, text(2), text(3), text(4));
        Ok(Some(body))
    }

    fn decision_body(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        event: &SeenEvent,
    ) -> Result<Option<Vec<u8>>> {
        let topic = self.policies[policy].decisions_topic.clone();
        let Some((schema, table, row)) = self.find_row(cycle, &topic, 1, event)? else { return Ok(None) };
        let mut body = Vec::new();
        self.writer(schema)?.rows(&table).write(&mut body, row, Extra::default());
        Ok(Some(body))
    }

    /// The row about an event's offset in one of the commits that its id leads to.
    fn find_row(
        &self,
        cycle: &mut Cycle,
        topic: &str,
        offset_column: usize,
        event: &SeenEvent,
    ) -> Result<Option<(u32, RecordBatch, usize)>> {
        for &address in &event.addresses {
            let commit = self.commit(&mut cycle.commits, address)?;
            for (place, section) in commit.sections_of(topic) {
                let table = self.table(&mut cycle.commits, address, place, None)?;
                if let Some(row) = table.find_offset(offset_column, event.offset) {
                    return Ok(Some((section.schema, table.batch.clone(), row)));
                }
            }
        }
        Ok(None)
    }

    /// The writer of a schema of decisions, which may be an earlier version of the policy's.
    fn writer(&mut self, schema: u32) -> Result<&DecisionWriter> {
        if !self.writers.contains_key(&schema) {
            let known =
                self.log.catalog().schema(schema).ok_or_else(|| Error::invalid("an unknown schema"))?;
            let writer = decision_writer(&known.schema);
            self.writers.insert(schema, writer);
        }
        Ok(&self.writers[&schema])
    }

    fn look_up(&mut self, cycle: &mut Cycle, request: Request) -> Result<()> {
        let policy = request.target;
        let (status, body) = match self.find_decision(cycle, policy, &request.body) {
            Ok(Some(found)) => found,
            Ok(None) => (404, error_body("not_found", "no decision of this policy has this id", None)),
            Err(error) => unreadable(error)?,
        };
        cycle.answers.push(Answer::plain(request.handle, status, body));
        Ok(())
    }

    fn find_decision(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        text: &[u8],
    ) -> Result<Option<(u16, Vec<u8>)>> {
        let topic = self.plan.policy_topic(policy);
        let Some(id) = parse_id(self.plan.topics[topic].fields[self.plan.topics[topic].id].kind, text) else {
            return Ok(None);
        };
        let mut addresses = Vec::new();
        self.ids.find(id_hash(&self.plan.topics[topic], &id.value()), &mut addresses)?;
        addresses.retain(|&address| self.log.keeps(Address(address)));
        let Some(event) = self.find_event(cycle, topic, &id.column(), addresses)? else { return Ok(None) };
        if event.origin != self.policies[policy].origin {
            return Ok(None);
        }
        let told = self.told_body(cycle, policy, &event)?;
        let decision = self.decision_body(cycle, policy, &event)?;
        let (mut body, late) = match (told, decision) {
            (Some(told), decision) => (told, decision),
            (None, Some(decision)) => (decision, None),
            (None, None) => return Ok(Some((404, error_body("pending", "it is not decided yet", None)))),
        };
        body.extend_from_slice(b",\"late_decision\":");
        match late {
            None => body.extend_from_slice(b"null"),
            Some(mut decision) => {
                answer::close(&mut decision);
                body.extend_from_slice(&decision);
            }
        }
        answer::close(&mut body);
        Ok(Some((200, body)))
    }

    fn find_event(
        &self,
        cycle: &mut Cycle,
        topic: usize,
        id: &ArrayRef,
        addresses: Vec<u64>,
    ) -> Result<Option<SeenEvent>> {
        let about = &self.plan.topics[topic];
        for &address in &addresses {
            let commit = self.commit(&mut cycle.commits, address)?;
            for (place, section) in commit.sections_of(&about.name) {
                let stored = self.table(&mut cycle.commits, address, place, Some(topic))?;
                if let Some(row) = find_id(stored.batch.column(about.id), id, 0) {
                    let offset = section.base_offset as i64 + row as i64;
                    return Ok(Some(SeenEvent { origin: section.origin, offset, addresses }));
                }
            }
        }
        Ok(None)
    }

    // Dry runs.

    fn dry_run(&mut self, cycle: &mut Cycle, request: Request) -> Result<()> {
        let policy = request.target;
        let topic = self.plan.policy_topic(policy);
        let Some((batch, waiters)) = self.dry_run_rows(cycle, &request)? else { return Ok(()) };
        let (batch, waiters) = self.refuse_ahead(cycle, topic, batch, waiters)?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let mut peeked = self.engine.peek(topic, &batch, &[self.plan.policies[policy].features])?;
        let batch = Batch {
            offsets: vec![-1; batch.num_rows()],
            events: Arc::new(batch),
            features: peeked.features.swap_remove(0),
            marks: peeked.marks,
        };
        let waiters: Queue = waiters.into_iter().enumerate().collect();
        if let Some(model) = self.plan.policies[policy].model {
            return self.ask_model(cycle, policy, model, batch, waiters, true).map(|_| ());
        }
        let score = no_score(batch.events.num_rows());
        let verdicts = self.deciders[policy].decide(&batch.case(&score))?;
        let pending = Pending { policy, batch, waiters, told: Vec::new(), started_ns: 0, dry_run: true };
        self.conclude_dry_run(cycle, pending, &score, verdicts)
    }

    /// A dry run's events: one in the body, or a line each; several are gathered under a number of their own.
    fn dry_run_rows(
        &mut self,
        cycle: &mut Cycle,
        request: &Request,
    ) -> Result<Option<(RecordBatch, Vec<Waiter>)>> {
        let topic = self.plan.policy_topic(request.target);
        if request.kind == Kind::DryRun {
            let decoded = self.decoders[topic].decode(std::iter::once(request.body.as_slice()));
            if let Some((_, refusal)) = decoded.refused.first() {
                cycle.answers.push(refused_answer(request.handle, refusal));
                return Ok(None);
            }
            let waiter = Waiter::One { handle: request.handle, held_ns: request.held_ns, repeat: false };
            return Ok(Some((decoded.batch, vec![waiter])));
        }
        let lines = split_lines(&request.body);
        if let Err(body) = check_readable(&lines) {
            cycle.answers.push(Answer::plain(request.handle, 422, body));
            return Ok(None);
        }
        let decoded = self.decoders[topic].decode(lines.iter().copied());
        let number = self.open_dry_run(request, lines.len());
        for (line, refusal) in &decoded.refused {
            self.refuse_line(number, *line as usize, &refusal_body(refusal));
        }
        let waiters =
            decoded.rows.iter().map(|&line| Waiter::Line { bulk: number, line: line as usize }).collect();
        Ok(Some((decoded.batch, waiters)))
    }

    /// Leave out what would be refused for its time.
    fn refuse_ahead(
        &mut self,
        cycle: &mut Cycle,
        topic: usize,
        batch: RecordBatch,
        mut waiters: Vec<Waiter>,
    ) -> Result<(RecordBatch, Vec<Waiter>)> {
        let about = &self.plan.topics[topic];
        let times = event_times(&self.plan, topic, &batch);
        let judge = |&time: &i64| ahead(about, cycle.now_us, time).unwrap_or(Seen::New);
        let seen: Vec<Seen> = times.iter().map(judge).collect();
        for (seen, waiter) in seen.iter().zip(&waiters) {
            if let Seen::Refused(status, code, message) = seen {
                self.refuse(cycle, waiter, *status, code, message);
            }
        }
        let mut kept = seen.iter().map(|seen| matches!(seen, Seen::New));
        waiters.retain(|_| kept.next().expect("each row has one who waits"));
        Ok((take_new(&batch, &seen)?, waiters))
    }

    fn conclude_dry_run(
        &mut self,
        cycle: &mut Cycle,
        pending: Pending,
        score: &ArrayRef,
        verdicts: Verdicts,
    ) -> Result<()> {
        let table = self.deciders[pending.policy].table(&pending.batch.case(score), &verdicts)?;
        let number = cycle.decided.len();
        for (row, waiter) in pending.waiters {
            cycle.finish(waiter, Words::Row { table: number, row }, None);
        }
        let schema = self.policies[pending.policy].decisions;
        let extra = Extra { dry_run: true };
        cycle.decided.push(Decided { schema, table, extra });
        Ok(())
    }

    // Deadlines that passed.

    /// What was answered in the cycle before and told otherwise: known before a retry in this cycle is answered.
    fn recall_told(&mut self, cycle: &mut Cycle) {
        for (handle, tells) in &self.last {
            if !cycle.told.is_empty() && cycle.told.remove(handle) {
                cycle.tells.extend(tells.iter().cloned());
            }
        }
    }

    /// Record for every request whose caller was told the fallback what it was told, if its event was taken.
    fn stage_tells(&mut self, cycle: &mut Cycle) -> Result<()> {
        let told = std::mem::take(&mut cycle.told);
        self.tell_bulk(cycle, &told);
        self.tell_pending(cycle, &told);
        for Finished { waiter, tell, .. } in &cycle.finished {
            if let (Waiter::One { handle, repeat: false, .. }, Some(tell)) = (waiter, tell)
                && told.contains(handle)
            {
                cycle.tells.push(tell.clone());
            }
        }
        let tells = std::mem::take(&mut cycle.tells);
        self.untold.extend(tells.into_iter().map(|tell| ((tell.policy, tell.offset), tell)));
        // As many as a commit takes; the rest is the next cycles' work.
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < self.settings.commit_bytes
            && let Some((_, tell)) = self.untold.pop_first()
        {
            bytes += self.timeout_bytes(&tell);
            taken.push(tell);
        }
        (0..self.plan.policies.len()).try_for_each(|policy| self.stage_timeouts(cycle, policy, &taken))
    }

    fn tell_pending(&mut self, cycle: &mut Cycle, told: &HashSet<u64>) {
        for pending in self.pending.values_mut().filter(|pending| !pending.dry_run) {
            for &(row, ref waiter) in &pending.waiters {
                let waits = match waiter {
                    Waiter::One { handle, .. } => told.contains(handle),
                    Waiter::Line { bulk, .. } => self.bulk.get(bulk).is_some_and(|bulk| bulk.told),
                };
                if waits && !pending.told[row] {
                    pending.told[row] = true;
                    let (events, offset) = (pending.batch.events.clone(), pending.batch.offsets[row]);
                    cycle.tells.push(Tell { policy: pending.policy, events, row, offset });
                }
            }
        }
    }

    fn timeout_bytes(&self, tell: &Tell) -> usize {
        let id = tell.events.column(self.plan.topics[self.plan.policy_topic(tell.policy)].id);
        let text = id.as_string_opt::<i32>().map_or(8, |ids| ids.value_length(tell.row) as usize);
        text + TIMEOUT_BYTES
    }

    /// One table, however many were told: a commit's sections are limited.
    fn stage_timeouts(&mut self, cycle: &mut Cycle, policy: usize, tells: &[Tell]) -> Result<()> {
        let tells: Vec<&Tell> = tells.iter().filter(|tell| tell.policy == policy).collect();
        if tells.is_empty() {
            return Ok(());
        }
        let about = &self.plan.policies[policy];
        let id = self.plan.topics[self.plan.policy_topic(policy)].id;
        let mut ids = Vec::new();
        for tells in tells.chunk_by(|a, b| Arc::ptr_eq(&a.events, &b.events)) {
            let (events, rows) = (&tells[0].events, tells.iter().map(|tell| tell.row));
            ids.push(take(
                events.column(id),
                &UInt32Array::from_iter_values(rows.clone().map(|row| row as u32)),
            )?);
            self.hash_again(cycle, policy, events, rows);
        }
        let ids: Vec<_> = ids.iter().map(AsRef::as_ref).collect();
        let ids = arrow_select::concat::concat(&ids)
            .map_err(|error| Error::invalid(format!("timeouts do not join: {error}")))?;
        let text = |text: &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, tells.len())))
        };
        let columns = vec![
            ids,
            Arc::new(Int64Array::from_iter_values(tells.iter().map(|tell| tell.offset))) as ArrayRef,
            text(&about.fallback),
            text(&about.version),
            text("deadline"),
        ];
        let table = RecordBatch::try_new(self.plan.timeouts_schema(policy).arrow(), columns)
            .map_err(|error| Error::invalid(format!("a timeout does not fit its table: {error}")))?;
        cycle.sections.push(section(self.policies[policy].timeouts, table));
        self.stats.timeouts += tells.len() as u64;
        Ok(())
    }

    /// Let the ids of earlier events lead to this commit too.
    fn hash_again(
        &self,
        cycle: &mut Cycle,
        policy: usize,
        events: &RecordBatch,
        rows: impl Iterator<Item = usize>,
    ) {
        let topic = &self.plan.topics[self.plan.policy_topic(policy)];
        let ids = events.column(topic.id);
        cycle.hashes.extend(rows.map(|row| id_hash(topic, &id_value(ids, row))));
    }

    // The commit.

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

    /// What is older than its retention, as far as no state has to be made from it again. An id is forgotten with its
    /// event, so that the index does not hold anything back.
    fn remove_old(&mut self, now_us: i64) -> Result<()> {
        let oldest_snapshot = snapshot::list(self.disk.as_ref())?.first().copied();
        if let Some(sequence) = oldest_snapshot.filter(|&sequence| sequence >= self.trim_from) {
            // The segment with the snapshot's own commit stays: reading goes on from there.
            self.log.trim(now_us, sequence)?;
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
    pub(super) fn refuse(
        &mut self,
        cycle: &mut Cycle,
        waiter: &Waiter,
        status: u16,
        code: &str,
        message: &str,
    ) {
        self.refuse_with(cycle, waiter, status, error_body(code, message, None));
    }

    fn refuse_with(&mut self, cycle: &mut Cycle, waiter: &Waiter, status: u16, body: Vec<u8>) {
        match *waiter {
            Waiter::One { handle, .. } => {
                cycle.answers.push(Answer::plain(handle, status, body));
            }
            Waiter::Line { bulk, line } => self.refuse_line(bulk, line, &body),
        }
    }

    /// Why there is no space for what these requests would write, if so.
    fn room(&mut self, requests: &[Request]) -> Option<String> {
        // Large requests are taken in slices, each of about one commit.
        let singles = requests.iter().filter(|request| request.kind == Kind::Decide);
        let bytes: usize = singles.map(|request| 2 * request.body.len() + 1024).sum();
        match self.log.room((bytes + 2 * self.settings.commit_bytes) as u64) {
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    pub(super) fn full_answer(&self, handle: u64) -> Answer {
        let message = self.stats.full.as_deref().unwrap_or("no space left");
        Answer::plain(handle, 503, error_body("disk_full", message, None))
    }

    fn count_decisions(&mut self, policy: usize, verdicts: &Verdicts) {
        self.stats.faults += verdicts.faults;
        let about = &self.plan.policies[policy];
        let first: usize = self.plan.policies[..policy].iter().map(|each| each.outcomes.len()).sum();
        debug_assert!(first + about.outcomes.len() <= self.stats.decisions.len());
        for &outcome in &verdicts.outcomes {
            self.stats.decisions[first + outcome].2 += 1;
        }
    }

    fn refresh_stats(&mut self) {
        self.stats.queued = self.bulk_queue.len() as u64;
        self.stats.pending = self.pending.values().map(|pending| pending.told.len() as u64).sum();
        self.stats.log_sequence = self.log.last_sequence();
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
        let ids = self.ids.stats();
        self.stats.ids = ids.ids;
        self.stats.ids_memory_bytes = ids.memory_bytes;
    }
}

/// The answer to one caller whose event or decision cannot be read any more. Any other error is everybody's.
fn unreadable(error: Error) -> Result<(u16, Vec<u8>)> {
    match error {
        Error::Damaged { .. } | Error::Io { .. } => {
            Ok((500, error_body("log_damaged", &error.to_string(), None)))
        }
        other => Err(other),
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
        }
    }

    /// Whether a first attempt has been told the fallback: then those who wait with it are told it too.
    fn decided_bytes(&self) -> usize {
        self.decided.iter().map(|decided| decided.table.get_array_memory_size()).sum()
    }
}

impl Batch {
    fn case<'a>(&'a self, score: &'a ArrayRef) -> Case<'a> {
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
    fn repeated(&self) -> Waiter {
        match *self {
            Waiter::One { handle, held_ns, .. } => Waiter::One { handle, held_ns, repeat: true },
            Waiter::Line { bulk, line } => Waiter::Line { bulk, line },
        }
    }
}

/// An id that came as text, in a URL.
enum ParsedId {
    Int(i64),
    Text(String),
}

impl ParsedId {
    fn value(&self) -> Id<'_> {
        match self {
            ParsedId::Int(id) => Id::Int(*id),
            ParsedId::Text(id) => Id::Text(id),
        }
    }

    fn column(&self) -> ArrayRef {
        match self {
            ParsedId::Int(id) => Arc::new(Int64Array::from(vec![*id])),
            ParsedId::Text(id) => Arc::new(StringArray::from(vec![id.as_str()])),
        }
    }
}

fn parse_id(kind: Type, text: &[u8]) -> Option<ParsedId> {
    let text = std::str::from_utf8(text).ok()?;
    match kind {
        Type::Int64 => text.parse().ok().map(ParsedId::Int),
        _ => Some(ParsedId::Text(text.into())),
    }
}

pub(super) fn decision_writer(schema: &Schema) -> DecisionWriter {
    DecisionWriter::new(schema, 5..schema.fields.len() - 3)
}

pub(super) fn section(schema: u32, batch: RecordBatch) -> Section {
    Section { schema, origin: 0, before: i64::MIN, marks: None, batch }
}

pub(super) fn fallback_body(plan: &Plan, policy: usize, events: &RecordBatch, row: usize) -> Vec<u8> {
    let topic = &plan.topics[plan.policy_topic(policy)];
    let mut id = Vec::new();
    answer::write_value(&mut id, events.column(topic.id), topic.fields[topic.id].kind, row);
    let mut body = Vec::new();
    let about = &plan.policies[policy];
    answer::write_fallback(&mut body, &id, &about.fallback, &about.version, answer::DEADLINE);
    body
}

/// The new rows of a batch; all of it is the usual case, and costs nothing.
pub(super) fn take_new(batch: &RecordBatch, seen: &[Seen]) -> Result<RecordBatch> {
    let rows: Vec<u32> =
        (0..seen.len() as u32).filter(|&row| matches!(seen[row as usize], Seen::New)).collect();
    if rows.len() == seen.len() {
        return Ok(batch.clone());
    }
    arrow_select::take::take_record_batch(batch, &UInt32Array::from(rows))
        .map_err(|error| Error::invalid(format!("could not take rows: {error}")))
}

fn take(column: &ArrayRef, rows: &UInt32Array) -> Result<ArrayRef> {
    arrow_select::take::take(column, rows, None)
        .map_err(|error| Error::invalid(format!("could not take rows: {error}")))
}

/// Scores as the model's process sends them: little-endian float64, NaN for null; infinite ones are no scores.
fn read_scores(body: &[u8], rows: usize) -> Option<ArrayRef> {
    if body.len() != rows * 8 {
        return None;
    }
    let scores = body.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    Some(Arc::new(Float64Array::from_iter(scores.map(|score| score.is_finite().then_some(score)))))
}

pub(super) fn refused_answer(handle: u64, refusal: &Refusal) -> Answer {
    Answer::plain(handle, 422, refusal_body(refusal))
}

pub(super) fn refusal_body(refusal: &Refusal) -> Vec<u8> {
    error_body(refusal.code, &refusal.to_string(), refusal.field.as_deref())
}
