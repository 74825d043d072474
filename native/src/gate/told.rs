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
                self.untold.extend(tells.iter().map(|tell| ((tell.policy, tell.offset), tell.clone())));
            }
        }
    }

    /// Know who was told the fallback before anybody in this cycle asks again.
    pub(super) fn hear_told(&mut self, cycle: &mut Cycle) {
        if cycle.told.is_empty() {
            return;
        }
        self.find_told_lines(cycle);
        for bulk in self.bulk.values_mut() {
            bulk.told |= cycle.told.contains(&bulk.handle);
        }
        self.tell_pending(cycle);
    }

    /// Lines that still wait to be taken when their caller is told the fallback: whoever asks about one alone meanwhile
    /// is told the same.
    fn find_told_lines(&mut self, cycle: &Cycle) {
        let told = |bulk: &Bulk| !bulk.told && cycle.told.contains(&bulk.handle);
        for (&number, bulk) in self.bulk.iter().filter(|(_, bulk)| told(bulk)) {
            let (Purpose::Decide(policy), Source::Text { body, lines, .. }) = (bulk.purpose, &bulk.source)
            else {
                continue;
            };
            let topic = self.plan.policy_topic(policy);
            let waiting = lines[bulk.next..].iter().map(|line| &body[line.clone()]);
            let decoded = self.decoders[topic].decode(waiting);
            let about = &self.plan.topics[topic];
            let hashes = id_hashes(&about.name, decoded.batch.column(about.id));
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
        let about = &self.plan.topics[self.plan.policy_topic(policy)];
        let hashes = id_hashes(&about.name, batch.column(about.id));
        let mut told = Vec::with_capacity(hashes.len());
        let mut new = HashSet::new();
        for (row, hash) in hashes.into_iter().enumerate() {
            let is_told = !new.contains(&hash) && self.is_told_line(cycle, policy, &batch, (row, hash))?;
            // What a full disk keeps out comes before nothing.
            if !is_told && self.stats.full.is_none() {
                new.insert(hash);
            }
            told.push(is_told);
        }
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

    /// Whether an event is such a line: the very same, and nothing came before it under its id, in this cycle either.
    fn is_told_line(
        &self,
        cycle: &mut Cycle,
        policy: usize,
        batch: &RecordBatch,
        (row, hash): (usize, u64),
    ) -> Result<bool> {
        let Some((number, line)) = self.told_lines.get(&(policy, hash)) else { return Ok(false) };
        if cycle.fresh.find(hash, |fresh| fresh.hash == hash).is_some() {
            return Ok(false);
        }
        let Source::Text { body, lines, .. } = &self.bulk[number].source else { return Ok(false) };
        let topic = self.plan.policy_topic(policy);
        let line = self.decoders[topic].decode(std::iter::once(&body[lines[*line].clone()]));
        Ok(content_equal(batch, row, &line.batch, 0)
            && !self.is_in_log(cycle, topic, self.policies[policy].origin, batch, (row, hash))?)
    }

    /// What a caller was told at the deadline of a body that is still in work.
    pub(super) fn told_in_bulk(&self, policy: usize, offset: i64) -> Option<&Tell> {
        self.bulk.values().filter(|bulk| bulk.told).find_map(|bulk| bulk.tells.find(policy, offset))
    }

    /// Record for every request whose caller was told the fallback what it was told, if its event was taken.
    pub(super) fn stage_tells(&mut self, cycle: &mut Cycle) -> Result<()> {
        self.tell_pending(cycle);
        for Finished { waiter, tell, .. } in &cycle.finished {
            let told = match *waiter {
                Waiter::One { handle, repeat, .. } => !repeat && cycle.told.contains(&handle),
                Waiter::Line { bulk, .. } => self.bulk.get(&bulk).is_some_and(|bulk| bulk.told),
            };
            cycle.tells.extend(tell.iter().filter(|_| told).cloned());
        }
        let tells = std::mem::take(&mut cycle.tells);
        self.untold.extend(tells.into_iter().map(|tell| ((tell.policy, tell.offset), tell)));
        // As many as a commit takes; the rest is the next cycles' work.
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while !self.holding
            && bytes < self.weights.commit_bytes
            && let Some(tell) = self.next_untold()
        {
            bytes += self.timeout_bytes(&tell);
            taken.push(tell);
        }
        (0..self.plan.policies.len()).try_for_each(|policy| self.stage_timeouts(cycle, policy, &taken))
    }

    /// The next of those whose telling is not in the log yet.
    fn next_untold(&mut self) -> Option<Tell> {
        let first = self.untold.pop_first().map(|(_, tell)| tell);
        first.or_else(|| self.bulk.values_mut().filter(|bulk| bulk.told).find_map(|bulk| bulk.tells.pop()))
    }

    /// Whether there are any.
    pub(super) fn has_untold(&self) -> bool {
        !self.untold.is_empty() || self.bulk.values().any(|bulk| bulk.told && !bulk.tells.is_empty())
    }

    fn tell_pending(&mut self, cycle: &mut Cycle) {
        if cycle.told.is_empty() && !self.bulk.values().any(|bulk| bulk.told) {
            return;
        }
        let Cycle { told, tells, .. } = cycle;
        for pending in self.pending.values_mut().filter(|pending| !pending.dry_run) {
            for &(row, ref waiter) in &pending.waiters {
                let waits = match waiter {
                    Waiter::One { handle, repeat, .. } => !repeat && told.contains(handle),
                    Waiter::Line { bulk, .. } => self.bulk.get(bulk).is_some_and(|bulk| bulk.told),
                };
                if waits && !pending.told[row] {
                    pending.told[row] = true;
                    let (events, offset) = (pending.batch.events.clone(), pending.batch.offsets[row]);
                    tells.push(Tell { policy: pending.policy, events, row, offset });
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
        cycle.hashes.extend(rows.map(|row| id_hash(&topic.name, &id_value(ids, row))));
    }
}

fn take(column: &ArrayRef, rows: &UInt32Array) -> Result<ArrayRef> {
    arrow_select::take::take(column, rows, None)
        .map_err(|error| Error::invalid(format!("could not take rows: {error}")))
}
