//! The gate's clock, moved by the run.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::gate::Clock;

pub struct SimulatedClock {
    now_us: AtomicI64,
    ticks: AtomicU64,
}

impl SimulatedClock {
    pub fn new(now_us: i64) -> SimulatedClock {
        SimulatedClock { now_us: now_us.into(), ticks: 0.into() }
    }

    /// Forward, or back.
    pub fn advance(&self, us: i64) {
        self.now_us.fetch_add(us, Ordering::SeqCst);
    }
}

impl Clock for SimulatedClock {
    fn now_us(&self) -> i64 {
        self.now_us.load(Ordering::SeqCst)
    }

    /// A microsecond later each time that it is asked.
    fn monotonic_ns(&self) -> u64 {
        1_000 * self.ticks.fetch_add(1, Ordering::SeqCst)
    }
}
