//! What the core counts about itself, for `/metrics` and `/readyz`.

use serde::Serialize;

/// Upper bounds of the histograms' buckets, in seconds.
pub const BOUNDS: [f64; 14] =
    [50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0];

#[derive(Clone, Debug, Default, Serialize)]
pub struct Histogram {
    pub bounds: &'static [f64],
    /// One more than `bounds`: the last is everything above.
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { bounds: &BOUNDS, counts: vec![0; BOUNDS.len() + 1], sum: 0.0 }
    }

    pub fn observe(&mut self, seconds: f64) {
        let bucket = BOUNDS.iter().position(|&bound| seconds <= bound).unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct DeadLetters {
    pub kept: u64,
    /// For more than one request may keep, or for want of space.
    pub dropped: u64,
    pub retried: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// Rises with every cycle: a gate that has work and does not beat is stuck.
    pub beat: u64,
    pub queued: u64,
    pub commits: u64,
    pub events: u64,
    pub late: u64,
    pub repeats: u64,
    pub refused: u64,
    pub timeouts: u64,
    pub faults: u64,
    /// Decisions by policy and outcome.
    pub decisions: Vec<(String, String, u64)>,
    /// By topic: dead letters that were kept, that were not, and that were put right.
    pub dead_letters: Vec<(String, DeadLetters)>,
    pub model_failures: u64,
    pub core_seconds: Histogram,
    pub sync_seconds: Histogram,
    pub model_seconds: Histogram,
    pub state_bytes: u64,
    pub state_bytes_max: u64,
    pub state_keys: u64,
    pub retained_events: u64,
    pub state_full: u64,
    /// Events whose callers were told that the disk is full, or the fallback for that.
    pub disk_full: u64,
    /// For each topic that reads events which others keep or read too, how far it is behind them, in seconds; without a
    /// value where it has had no event yet.
    pub reader_lags: Vec<(String, Option<f64>)>,
    pub ids: u64,
    pub ids_memory_bytes: u64,
    /// Why some ids may be unknown until the next start, where that is so.
    pub ids_damaged: Option<String>,
    /// Why files of ids are not merged for now, where that is so.
    pub ids_unmerged: Option<String>,
    pub pending: u64,
    pub log_sequence: u64,
    pub flush_us: u64,
    pub removal_failures: u64,
    /// Why old files could not be removed the last time, where that is so.
    pub removal_failed: Option<String>,
    /// Why nothing is taken at present, where that is so.
    pub full: Option<String>,
    /// Why the gate has stopped, where it has.
    pub failed: Option<String>,
}

impl Stats {
    pub fn new() -> Stats {
        Stats {
            core_seconds: Histogram::new(),
            sync_seconds: Histogram::new(),
            model_seconds: Histogram::new(),
            ..Stats::default()
        }
    }
}
