//! Deadlines that passed: what their callers were told is recorded, and whoever waits with them is told it too.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt32Array};

use super::Tell;
use super::admit::{id_hash, id_hashes, id_value};
use super::bulk::{Bulk, Purpose};
use super::core::{Core, Cycle, Waiter, fallback_body, section, take_rows};
use super::source::Source;
use super::weight::timeout_bytes;
use super::words::{Finished, Words};
use crate::decode::content_equal;
use crate::error::{Error, Result};

impl Core {
    /// What was answered in the cycle before and told otherwise: known before a retry in this cycle is answered.
    pub(super) fn recall_told(&mut self, cycle: &mut Cycle) {
        for (handle, tells) in &self.last {
            if !cycle.told.is_empty() && cycle.told.remove(handle) {
                cycle.tells.extend(tells.iter().cloned());
            }
        }
    }

    /// Lines that still wait to be taken when their caller is told the fallback: whoever asks about one alone meanwhile
    /// is told the same.
    pub(super) fn find_told_lines(&mut self, cycle: &Cycle) {
        if cycle.told.is_empty() {
            return;
        }
        let told = |bulk: &Bulk| !bulk.told && cycle.told.contains(&bulk.handle);
        for (&number, bulk) in self.bulk.iter().filter(|(_, bulk)| told(bulk)) {
            let (Purpose::Decide(policy), Source::Text { body, lines }) = (bulk.purpose, &bulk.source) else {
                continue;
            };
            let topic = self.plan.policy_topic(policy);
            let waiting = lines[bulk.next..].iter().map(|line| &body[line.clone()]);
            let decoded = self.decoders[topic].decode(waiting);
            let about = &self.plan.topics[topic];
            let hashes = id_hashes(about, decoded.batch.column(about.id));
            for (hash, row) in hashes.into_iter().zip(decoded.rows) {
                // The first of equal ids is the one that will be new.
                self.told_lines.entry((policy, hash)).or_insert((number, bulk.next + row as usize));
            }
        }
    }

    /// Tell those the fallback whose event is such a line; the others remain.
    pub(super) fn answer_told(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        batch: RecordBatch,
        waiters: Vec<Waiter>,
    ) -> Result<(RecordBatch, Vec<Waiter>)> {
        if self.told_lines.is_empty() {
            return Ok((batch, waiters));
        }
        let topic = self.plan.policy_topic(policy);
        let about = &self.plan.topics[topic];
        let hashes = id_hashes(about, batch.column(about.id));
        let same = |(row, hash): (usize, &u64)| {
            let Some((number, line)) = self.told_lines.get(&(policy, *hash)) else { return false };
            let Source::Text { body, lines } = &self.bulk[number].source else { return false };
            let line = self.decoders[topic].decode(std::iter::once(&body[lines[*line].clone()]));
            content_equal(&batch, row, &line.batch, 0)
        };
        let told: Vec<bool> = hashes.iter().enumerate().map(same).collect();
        let mut kept = Vec::with_capacity(waiters.len());
        for (row, waiter) in waiters.into_iter().enumerate() {
            if told[row] {
                self.stats.repeats += 1;
                let body = fallback_body(&self.plan, policy, &batch, row);
                cycle.finish(waiter.repeated(), Words::Made(body), None);
            } else {
                kept.push(waiter);
            }
        }
        Ok((take_rows(&batch, told.iter().map(|told| !told))?, kept))
    }

    /// Record for every request whose caller was told the fallback what it was told, if its event was taken.
    pub(super) fn stage_tells(&mut self, cycle: &mut Cycle) -> Result<()> {
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
        while !self.holding
            && bytes < self.weights.commit_bytes
            && let Some((_, tell)) = self.untold.pop_first()
        {
            bytes += self.timeout_bytes(&tell);
            taken.push(tell);
        }
        (0..self.plan.policies.len()).try_for_each(|policy| self.stage_timeouts(cycle, policy, &taken))
    }

    /// Large requests that were told the fallback: every line that was decided, and those that will be.
    fn tell_bulk(&mut self, cycle: &mut Cycle, told: &HashSet<u64>) {
        for bulk in self.bulk.values_mut() {
            if told.contains(&bulk.handle) && !bulk.told {
                bulk.told = true;
                cycle.tells.append(&mut bulk.tells);
            }
        }
        for Finished { waiter, tell, .. } in &cycle.finished {
            if let (Waiter::Line { bulk, .. }, Some(tell)) = (waiter, tell)
                && self.bulk.get(bulk).is_some_and(|bulk| bulk.told)
            {
                cycle.tells.push(tell.clone());
            }
        }
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

    pub(super) fn timeout_bytes(&self, tell: &Tell) -> usize {
        let id = tell.events.column(self.plan.topics[self.plan.policy_topic(tell.policy)].id);
        let text = id.as_string_opt::<i32>().map_or(8, |ids| ids.value_length(tell.row) as usize);
        timeout_bytes(text, &self.plan, tell.policy)
    }

    /// One table, however many were told: a commit's sections are limited.
    pub(super) fn stage_timeouts(&mut self, cycle: &mut Cycle, policy: usize, tells: &[Tell]) -> Result<()> {
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
    pub(super) fn hash_again(
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
}

fn take(column: &ArrayRef, rows: &UInt32Array) -> Result<ArrayRef> {
    arrow_select::take::take(column, rows, None)
        .map_err(|error| Error::invalid(format!("could not take rows: {error}")))
}
