//! What runs did, for the line at their end.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub seeds: u64,
    pub starts: u64,
    pub events: u64,
    pub acknowledged: u64,
    pub answers: u64,
    pub decisions: u64,
    pub unchecked: u64,
    pub states: u64,
    pub snapshots: u64,
    pub letters: u64,
    pub retried: u64,
    /// Fallbacks for want of space.
    pub untaken: u64,
    /// What was done to the service, and what struck it, by class.
    pub faults: BTreeMap<String, u64>,
}

impl Summary {
    pub fn count(&mut self, class: impl Into<String>) {
        *self.faults.entry(class.into()).or_default() += 1;
    }

    pub fn add(&mut self, other: &Summary) {
        self.seeds += other.seeds;
        self.starts += other.starts;
        self.events += other.events;
        self.acknowledged += other.acknowledged;
        self.answers += other.answers;
        self.decisions += other.decisions;
        self.unchecked += other.unchecked;
        self.states += other.states;
        self.snapshots += other.snapshots;
        self.letters += other.letters;
        self.retried += other.retried;
        self.untaken += other.untaken;
        for (class, count) in &other.faults {
            *self.faults.entry(class.clone()).or_default() += count;
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} seeds, {} starts: {} events in the log, {} acknowledged, {} answers, {} decisions recomputed, {} not \
             (a feature lacked what retention had removed), {} snapshots, {} states recomputed, {} dead letters, {} of \
             them put right, {} fallbacks for want of space",
            self.seeds,
            self.starts,
            self.events,
            self.acknowledged,
            self.answers,
            self.decisions,
            self.unchecked,
            self.snapshots,
            self.states,
            self.letters,
            self.retried,
            self.untaken,
        )?;
        for (class, count) in &self.faults {
            writeln!(f, "  {count:>8} {class}")?;
        }
        Ok(())
    }
}
