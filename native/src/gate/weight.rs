//! What requests will take in the log, at most: a cycle is cut so that its commit always has a segment's space.
//!
//! Beside an event's own bytes a decision holds every feature, and a text among them may be as long as any that the
//! state remembers. So a row's weight is what is fixed by its policy, its body, and for each text feature the longest
//! text that is known.

use super::dead::{LETTER_BYTES, LETTER_TOPIC_BYTES, MARK_BYTES};
use crate::decode::Limits;
use crate::plan::Plan;
use crate::schema::{Field, Type};

/// A cause or an outcome of the core's own words.
const WORD_BYTES: usize = 16;
/// An offset, and where a text ends.
const TIMEOUT_BYTES: usize = 64;
/// Changing the case of letters can lengthen a text by half.
const DERIVED_TEXT: usize = 2;

/// Bounds, in bytes. Where segments are smaller than a service has them, as in tests, they all are.
pub(super) struct Weights {
    pub limits: Limits,
    /// A cycle takes single requests, and a slice of large ones, up to so many each; one row may be more.
    pub cycle_bytes: usize,
    /// A slice of large requests is likely to take so many, as are answers of models, and who was told the fallback.
    pub commit_bytes: usize,
    /// A cycle writes about so many of dead letters.
    pub letter_bytes: usize,
    /// Beside rows: what a commit and its sections begin with, and consumers' positions.
    pub frame_bytes: usize,
    /// By so many the catalog may grow, which every segment begins with: consumers and versions of policies.
    pub catalog_bytes: usize,
    policies: Vec<Weight>,
    /// Of an event of each topic, beside its texts.
    topics: Vec<usize>,
    /// The heaviest single row.
    row_bytes_max: usize,
}

/// A row of a policy: its event and its decision.
#[derive(Clone, Copy, Default)]
pub(super) struct Weight {
    fixed: usize,
    /// How many texts of the state it may show.
    texts: usize,
}

/// The weight of rows that are taken together.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    bytes: usize,
    texts: usize,
    longest: usize,
}

impl Weights {
    pub fn new(plan: &Plan, segment_bytes: u64, commit_bytes: usize) -> Weights {
        let limits = Limits::of_segments(segment_bytes);
        let part = |parts: usize| segment_bytes as usize / parts;
        let topics: Vec<usize> = plan.topics.iter().map(|topic| fixed_bytes(&topic.fields)).collect();
        let policies: Vec<Weight> =
            (0..plan.policies.len()).map(|policy| Weight::new(plan, policy, &topics)).collect();
        let heaviest = policies.iter().map(|weight| weight.fixed + weight.texts * limits.text_bytes).max();
        let row_bytes_max = heaviest.or(topics.iter().copied().max()).unwrap_or(0);
        let kept = plan.topics.iter().filter(|topic| topic.dead_letters).count();
        Weights {
            cycle_bytes: part(10).min(3 << 19),
            commit_bytes: part(10).min(commit_bytes),
            letter_bytes: part(32).min(1 << 20),
            catalog_bytes: part(16).min(512 << 10) + LETTER_TOPIC_BYTES * kept,
            frame_bytes: part(64).min(256 << 10),
            row_bytes_max: row_bytes_max + limits.event_bytes + limits.text_bytes,
            limits,
            policies,
            topics,
        }
    }

    pub fn decision(&self, policy: usize) -> Weight {
        self.policies[policy]
    }

    /// And, where it was a dead letter, the mark that it is none any more.
    pub fn event(&self, topic: usize) -> Weight {
        Weight { fixed: self.topics[topic] + MARK_BYTES, texts: 0 }
    }

    /// What a cycle appends at most: single requests, a slice of large ones, and what was in flight.
    pub fn cycle_bytes_max(&self) -> usize {
        let singles = self.cycle_bytes.max(self.row_bytes_max);
        let letters = self.letter_bytes + 2 * self.limits.text_bytes + LETTER_BYTES;
        singles + self.cycle_bytes + self.row_bytes_max + letters + self.held_bytes_max()
    }

    /// What a cycle appends at most of decisions whose events are in the log: models' answers, and who was told the
    /// fallback.
    pub fn held_bytes_max(&self) -> usize {
        let scores = self.commit_bytes + self.cycle_bytes.max(self.row_bytes_max);
        scores + self.commit_bytes + self.limits.text_bytes + self.frame_bytes
    }
}

impl Weight {
    fn new(plan: &Plan, policy: usize, topics: &[usize]) -> Weight {
        let about = &plan.policies[policy];
        let features = &plan.features[about.features];
        let outcome = about.outcomes.iter().map(String::len).max().unwrap_or(0).max(about.fallback.len());
        let reasons: usize =
            about.rules.iter().map(|rule| 2 * (rule.name.len() + rule.code.len()) + 24).sum();
        let decision = fixed_bytes(&plan.decisions_schema(policy).fields);
        let (reads, derived) = features.columns.split_at(features.reads.len());
        let literals = features.derived.iter().zip(derived).filter(|(_, field)| field.kind == Type::Text);
        let literals: usize = literals.map(|((_, expression), _)| expression.to_string().len()).sum();
        Weight {
            fixed: topics[features.topic]
                + decision
                + outcome
                + reasons
                + literals
                + about.version.len()
                + WORD_BYTES,
            texts: texts(reads) + DERIVED_TEXT * texts(derived),
        }
    }
}

impl Weight {
    /// Of a row whose event is in the log, where no text of the state is longer than this.
    pub fn bytes(self, longest_text: usize) -> usize {
        self.fixed + self.texts * longest_text
    }
}

impl Sum {
    /// One row more, of a body of so many bytes: its id stands in the log twice.
    pub fn add(&mut self, weight: Weight, body_bytes: usize, limits: &Limits) {
        let text_bytes = body_bytes.min(limits.text_bytes);
        self.bytes += weight.fixed + body_bytes.min(limits.event_bytes) + text_bytes;
        self.texts += weight.texts;
        self.longest = self.longest.max(text_bytes);
    }

    /// So many rows more, of events with so many bytes of text and without a decision.
    pub fn add_events(&mut self, weight: Weight, rows: usize, text_bytes: usize) {
        self.bytes += rows * weight.fixed + text_bytes;
    }

    /// Where no text of the state is longer than this.
    pub fn bytes(&self, longest_text: usize) -> usize {
        self.bytes + self.texts * self.longest.max(longest_text)
    }
}

/// What is recorded of who was told the fallback, beside a text of an id.
pub(super) fn timeout_bytes(id: usize, plan: &Plan, policy: usize) -> usize {
    let about = &plan.policies[policy];
    id + about.fallback.len() + about.version.len() + WORD_BYTES + TIMEOUT_BYTES
}

/// A row's bytes in the log but for its texts, each value with what says whether it is null.
fn fixed_bytes(fields: &[Field]) -> usize {
    let width = |field: &Field| match field.kind {
        Type::Bool => 1,
        Type::Text => 4,
        Type::Int64 | Type::Float64 | Type::Timestamp => 8,
        Type::Decimal(..) => 16,
    };
    // And a mark.
    1 + fields.iter().map(|field| width(field) + 1).sum::<usize>()
}

fn texts(fields: &[Field]) -> usize {
    fields.iter().filter(|field| field.kind == Type::Text).count()
}
