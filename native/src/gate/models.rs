//! Rows that wait for their model, and its answers.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch};

use super::admit::Taken;
use super::core::{Batch, Core, Cycle, Queue};
use super::{Answer, MODEL, Request, Tells};
use crate::conform::write_ipc;
use crate::decide::no_score;
use crate::error::{Error, Result};
use crate::schema::Schema;

/// Rows that wait for their model.
pub(super) struct Pending {
    pub policy: usize,
    pub batch: Batch,
    /// The newest commit before that of the events, which a start needs to close them; the greatest for a dry run.
    pub after: u64,
    pub waiters: Queue,
    pub told: Vec<bool>,
    pub started_ns: u64,
    pub dry_run: bool,
}

impl Core {
    pub(super) fn ask_model(
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
        let after = if dry_run { u64::MAX } else { self.log.last_sequence() };
        self.pending.insert(number, Pending { policy, batch, after, waiters, told, started_ns, dry_run });
        Ok(Taken::Pending(number))
    }

    /// A model sees the event's fields and the features.
    pub(super) fn model_input(&self, policy: usize, batch: &Batch) -> Result<RecordBatch> {
        let set = &self.plan.features[self.plan.policies[policy].features];
        let mut fields = self.plan.topics[set.topic].fields.clone();
        fields.extend(set.columns.iter().cloned());
        let mut columns = batch.events.columns().to_vec();
        columns.extend(batch.features.iter().cloned());
        RecordBatch::try_new(Schema { fields }.arrow(), columns)
            .map_err(|error| Error::invalid(format!("a model's input does not fit its schema: {error}")))
    }

    pub(super) fn take_scores(&mut self, cycle: &mut Cycle, request: Request) -> Result<()> {
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
}

/// Scores as the model's process sends them: little-endian float64, NaN for null; infinite ones are no scores.
fn read_scores(body: &[u8], rows: usize) -> Option<ArrayRef> {
    if body.len() != rows * 8 {
        return None;
    }
    let scores = body.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight bytes")));
    Some(Arc::new(Float64Array::from_iter(scores.map(|score| score.is_finite().then_some(score)))))
}
