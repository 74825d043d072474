//! A whole service on one thread, from one seed: it takes events, decides, crashes, recovers and goes on.
//!
//! ```text
//! callers ──▶ door ──▶ gate's core ──▶ log, ids, engine, snapshots ──▶ simulated disk
//!    ▲                     │                     │
//!    └──── told ───────────┘                     └──▶ history: what must be there, and be told
//! ```
//!
//! The gate, the log, the ids, the engine and the follower are the real ones. The disk, the clock, every arrival and every
//! hand-over are the run's. After each cycle the *history* reads the log and recomputes it by other means.
//! Why so: `docs/decisions/0012-the-simulator.md`.

mod callers;
mod chance;
mod checks;
mod clock;
pub mod controls;
mod cycle;
mod damage;
mod disk;
mod door;
mod event;
mod expression;
mod follow;
mod history;
mod letters;
mod pipeline;
mod recompute;
mod restart;
mod run;
mod settings;
mod summary;
mod tests;

/// What a run found that must not be.
type Broken = String;
