//! Dry runs: what would be decided now. Nothing is recorded and nothing moves.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};

use super::Request;
use super::admit::{Seen, ahead};
use super::core::{Batch, Core, Cycle, Queue, Waiter, refused_answer, take_new};
use super::models::Pending;
use super::words::{Decided, Words};
use crate::answer::Extra;
use crate::decide::{Verdicts, no_score};
use crate::engine::event_times;
use crate::error::Result;

impl Core {
    pub(super) fn dry_run(&mut self, cycle: &mut Cycle, request: Request) -> Result<()> {
        let topic = self.plan.policy_topic(request.target);
        let decoded = self.decoders[topic].decode(std::iter::once(request.body.as_slice()));
        if let Some((_, refusal)) = decoded.refused.first() {
            cycle.answers.push(refused_answer(request.handle, refusal));
            return Ok(());
        }
        let waiter = Waiter::One { handle: request.handle, held_ns: request.held_ns, repeat: false };
        self.dry_run_rows(cycle, request.target, decoded.batch, vec![waiter])
    }

    /// What would be decided about each row if it alone came next.
    pub(super) fn dry_run_rows(
        &mut self,
        cycle: &mut Cycle,
        policy: usize,
        batch: RecordBatch,
        waiters: Vec<Waiter>,
    ) -> Result<()> {
        let topic = self.plan.policy_topic(policy);
        let (batch, waiters) = self.refuse_ahead(cycle, topic, batch, waiters)?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let stateless = self.stateless(topic, &batch);
        let wanted = [self.plan.policies[policy].features];
        let mut peeked = self.engine.peek(topic, &batch, stateless.as_deref(), &wanted)?;
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
        let (told, after) = (Vec::new(), u64::MAX);
        let pending = Pending { policy, batch, after, waiters, told, started_ns: 0, dry_run: true };
        self.conclude_dry_run(cycle, pending, &score, verdicts)
    }

    /// Leave out what would be refused for its time.
    pub(super) fn refuse_ahead(
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
            if let Seen::Refused(status, body) = seen {
                self.refuse(cycle, waiter, *status, body.clone());
            }
        }
        let mut kept = seen.iter().map(|seen| matches!(seen, Seen::New));
        waiters.retain(|_| kept.next().expect("each row has one who waits"));
        Ok((take_new(&batch, &seen)?, waiters))
    }

    pub(super) fn conclude_dry_run(
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
}
