//! What callers are told without a decision: at their deadline, or where the queue has no room.

use std::time::Instant;

use arrow_array::RecordBatch;

use super::error_body;
use crate::answer;
use crate::decode::{Decoder, Refusal, split_lines};
use crate::plan::PolicyPlan;

/// So many lines are decoded together: what they take in memory is small beside the body.
const SLICE_LINES: usize = 4_096;

/// One policy's fallback, for one cause. Only an event gets it: what is none is told why.
pub(super) struct Fallbacks<'a> {
    policy: &'a PolicyPlan,
    decoder: &'a Decoder,
    cause: &'a str,
    /// How long the caller has waited until `began`.
    took_ns: u64,
    began: Instant,
}

impl<'a> Fallbacks<'a> {
    pub fn new(policy: &'a PolicyPlan, decoder: &'a Decoder, cause: &'a str, took_ns: u64) -> Fallbacks<'a> {
        Fallbacks { policy, decoder, cause, took_ns, began: Instant::now() }
    }

    /// The answer to one event.
    pub fn one(&self, body: &[u8]) -> (u16, Vec<u8>) {
        let decoded = self.decoder.decode(std::iter::once(body));
        let mut out = Vec::with_capacity(256);
        match decoded.refused.first() {
            Some((_, refusal)) => {
                write_refusal(&mut out, refusal);
                (422, out)
            }
            None => {
                self.write(&mut out, &decoded.batch, 0);
                (200, out)
            }
        }
    }

    /// A line for each line of the body.
    pub fn lines(&self, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(body.len());
        for lines in split_lines(body).chunks(SLICE_LINES) {
            let decoded = self.decoder.decode(lines.iter().copied());
            let mut refused = decoded.refused.iter().peekable();
            let mut row = 0;
            for index in 0..lines.len() {
                match refused.next_if(|(refused, _)| *refused as usize == index) {
                    Some((_, refusal)) => write_refusal(&mut out, refusal),
                    None => {
                        self.write(&mut out, &decoded.batch, row);
                        row += 1;
                    }
                }
                out.push(b'\n');
            }
        }
        out
    }

    fn write(&self, out: &mut Vec<u8>, batch: &RecordBatch, row: usize) {
        let id = self.decoder.id_text(batch, row);
        let took_ns = self.took_ns.saturating_add(self.began.elapsed().as_nanos() as u64);
        answer::write_fallback(out, &id, &self.policy.fallback, &self.policy.version, self.cause);
        answer::finish(out, took_ns);
    }
}

fn write_refusal(out: &mut Vec<u8>, refusal: &Refusal) {
    out.extend(error_body(refusal.code, &refusal.to_string(), refusal.field.as_deref()));
}
