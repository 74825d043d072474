//! Deadlines that passed: what their callers were told is recorded, and whoever waits with them is told it too.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt32Array};

use super::Tell;
use super::admit::{id_hash, id_value};
use super::core::{Core, Cycle, Waiter, section};
use super::weight::timeout_bytes;
use super::words::Finished;
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

    pub(super) fn tell_pending(&mut self, cycle: &mut Cycle, told: &HashSet<u64>) {
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
