//! Decisions about new events: in one cycle with their model's absence, or once it has answered.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};

use super::admit::{Seen, Taken, id_hashes};
use super::core::{Batch, Core, Cycle, Queue, Waiter, fallback_body, refused_answer, section, take_new};
use super::words::{Decided, Words};
use super::{Request, Tell};
use crate::answer::Extra;
use crate::decide::{Verdicts, no_score};
use crate::engine::{LATE, STATELESS};
use crate::error::Result;
use crate::log::Section;

impl Core {
    pub(super) fn decide_singles(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        requests: Vec<Request>,
    ) -> Result<()> {
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
        let (batch, waiters) = self.answer_told(cycle, policy, decoded.batch, waiters)?;
        self.decide_rows(cycle, policy, batch, waiters)
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
        // What was decided before is told again all the same.
        let full = self.stats.full.is_some();
        let mut queue: Queue = Vec::with_capacity(seen.len());
        let mut again = Vec::new();
        for (row, (seen, waiter)) in seen.iter().zip(waiters).enumerate() {
            match seen {
                Seen::New if full => self.tell_full(cycle, policy, (&batch, row), waiter),
                Seen::New => queue.push((queue.len(), waiter)),
                Seen::InCycle(group, row) => again.push((*group, *row, waiter.repeated())),
                Seen::Before(event) => self.repeat(cycle, policy, event, waiter.repeated())?,
                Seen::Refused(status, body) => {
                    self.stats.refused += 1;
                    self.refuse(cycle, &waiter, *status, body.clone());
                }
            }
        }
        if !queue.is_empty() {
            let events = take_new(&batch, &seen)?;
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
    pub(super) fn join(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        group: usize,
        row: usize,
        waiter: Waiter,
    ) {
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

    pub(super) fn decide_now(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        batch: Batch,
        queue: Queue,
    ) -> Result<Taken> {
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
    pub(super) fn told_first(&self, cycle: &Cycle, waiter: &Waiter) -> bool {
        match waiter {
            Waiter::One { handle, repeat, .. } => !repeat && cycle.told.contains(handle),
            Waiter::Line { bulk, .. } => {
                self.bulk.get(bulk).is_some_and(|bulk| bulk.told || cycle.told.contains(&bulk.handle))
            }
        }
    }

    /// Stage the decisions for the log, and who is told of them.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn conclude(
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
        self.stats.state_bytes = self.engine.state_bytes() as u64;
        let stateless = self.stateless(topic, &events);
        let full = stateless.iter().flatten().filter(|&&mark| mark != 0).count();
        self.stats.state_full += full as u64;
        let mut processed = self.engine.process(topic, &events, stateless.as_deref(), wanted)?;
        let base = self.next_offset(cycle, topic);
        *cycle.staged.entry(topic).or_default() += rows as i64;
        let about = &self.plan.topics[topic];
        cycle.hashes.extend(id_hashes(&about.name, events.column(about.id)));
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
    pub(super) fn stateless(&self, topic: usize, events: &RecordBatch) -> Option<Vec<u8>> {
        (self.stats.state_bytes >= self.stats.state_bytes_max).then(|| {
            let new_keys = self.engine.new_keys(topic, events);
            new_keys.iter().map(|&new| if new { STATELESS } else { 0 }).collect()
        })
    }

    pub(super) fn count_decisions(&mut self, policy: usize, verdicts: &Verdicts) {
        self.stats.faults += verdicts.faults;
        let about = &self.plan.policies[policy];
        let first: usize = self.plan.policies[..policy].iter().map(|each| each.outcomes.len()).sum();
        debug_assert!(first + about.outcomes.len() <= self.stats.decisions.len());
        for &outcome in &verdicts.outcomes {
            self.stats.decisions[first + outcome].2 += 1;
        }
    }
}
