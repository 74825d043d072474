//! The gate: requests in, answers out, in order, durable before they leave.
//!
//! ```text
//! door ──submit──▶ inbox ─▶ core thread: one cycle = everything that waited ─▶ outbox ──take──▶ door
//!                            decode ─▶ ids ─▶ windows ─▶ rules ─▶ log, one fdatasync ─▶ answers
//! ```
//!
//! What arrives while a cycle is in work is the next cycle: batches form by themselves, and there is no timer. The
//! heart (`Core`) is synchronous and owns no thread, so that a test can drive it call by call; only while it words many
//! answers another thread syncs.

mod admit;
mod bulk;
mod core;
mod dead;
mod decisions;
mod dry;
mod fallbacks;
mod models;
mod positions;
mod said;
mod source;
mod start;
mod stats;
mod stored;
mod thread;
mod told;
mod weight;
mod words;

pub use core::{Core, Settings};
pub use start::Started;
pub use stats::Stats;
pub use thread::Gate;
pub use words::Body;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow_array::RecordBatch;

/// What a request asks for. The numbers are the door's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Decide = 0,
    DecideMany = 1,
    EventsJson = 2,
    EventsNdjson = 3,
    EventsArrow = 4,
    Lookup = 5,
    DryRun = 6,
    DryRunMany = 7,
    Scores = 8,
    /// Remember how far a consumer has come.
    Position = 9,
    /// Dead letters once more: their offsets, and the events line by line.
    Retry = 10,
}

impl Kind {
    pub fn from_number(number: u8) -> Option<Kind> {
        use Kind::*;
        [
            Decide,
            DecideMany,
            EventsJson,
            EventsNdjson,
            EventsArrow,
            Lookup,
            DryRun,
            DryRunMany,
            Scores,
            Position,
            Retry,
        ]
        .into_iter()
        .find(|&kind| kind as u8 == number)
    }
}

pub struct Request {
    /// The door's name for it: unique and rising.
    pub handle: u64,
    pub kind: Kind,
    /// A policy, a topic, or the number of a model's batch.
    pub target: usize,
    pub body: Vec<u8>,
    /// When the door held all of it, on the monotonic clock.
    pub held_ns: u64,
}

/// The flag of an answer that repeats an earlier one.
pub const REPEAT: u8 = 1;
/// The flag of work for a model: `handle` is the batch's number, `status` the model, the body an Arrow IPC stream.
pub const MODEL: u8 = 2;

pub struct Answer {
    pub handle: u64,
    pub status: u16,
    pub body: Body,
    pub flags: u8,
    /// What to record if the caller was told the fallback before this answer could leave.
    tells: Tells,
}

impl Answer {
    /// An answer about which nothing is ever recorded.
    fn plain(handle: u64, status: u16, body: Vec<u8>) -> Answer {
        Answer { handle, status, body: body.into(), flags: 0, tells: Tells::None }
    }
}

/// A decided event whose caller may be told something else at the deadline.
#[derive(Clone)]
struct Tell {
    policy: usize,
    events: Arc<RecordBatch>,
    row: usize,
    offset: i64,
}

/// Decided events of one body, in the order in which they were known.
#[derive(Default)]
struct LineTells {
    tells: VecDeque<Tell>,
    /// Their offsets fell somewhere: answers of models may come in any order.
    mixed: bool,
}

impl LineTells {
    fn extend(&mut self, tell: Option<Tell>) {
        let Some(tell) = tell else { return };
        self.mixed |= self.tells.back().is_some_and(|last| last.offset > tell.offset);
        self.tells.push_back(tell);
    }

    fn pop(&mut self) -> Option<Tell> {
        self.tells.pop_front()
    }

    fn is_empty(&self) -> bool {
        self.tells.is_empty()
    }

    /// All of a body's are of one policy.
    fn find(&self, policy: usize, offset: i64) -> Option<&Tell> {
        self.tells.front().filter(|first| first.policy == policy)?;
        match self.mixed {
            true => self.tells.iter().find(|tell| tell.offset == offset),
            false => self.tells.get(self.tells.binary_search_by_key(&offset, |tell| tell.offset).ok()?),
        }
    }

    fn take(&mut self) -> Tells {
        Tells::Many(std::mem::take(&mut self.tells).into_iter().collect())
    }
}

/// What an answer decided: it carries this, and the core remembers it for one cycle.
#[derive(Clone, Default)]
enum Tells {
    #[default]
    None,
    One(Tell),
    Many(Arc<[Tell]>),
}

impl Tells {
    fn iter(&self) -> impl Iterator<Item = &Tell> {
        let tells = match self {
            Tells::None => &[],
            Tells::One(tell) => std::slice::from_ref(tell),
            Tells::Many(tells) => tells,
        };
        tells.iter()
    }
}

/// What callers were told at their deadline.
#[derive(Default)]
pub struct Told {
    /// Requests whose answer the core has not given, as far as the door knew.
    pub handles: Vec<u64>,
    /// What was decided for those whose answer could not leave any more.
    tells: Vec<Tell>,
}

impl Told {
    pub fn handles(handles: Vec<u64>) -> Told {
        Told { handles, tells: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.handles.is_empty() && self.tells.is_empty()
    }
}

/// What the gate's boxes do with it, for a simulation that has none.
#[cfg(test)]
impl Told {
    pub fn add(&mut self, handle: u64) {
        self.handles.push(handle);
    }

    /// An answer did not leave: what it decided is to be recorded as told otherwise.
    pub fn recall(&mut self, answer: Answer) {
        self.tells.extend(answer.tells.iter().cloned());
    }

    /// What is told now, and what is told later of requests that still wait.
    pub fn split(self, waits: impl Fn(&u64) -> bool) -> (Told, Told) {
        let (later, now) = self.handles.into_iter().partition(waits);
        (Told { handles: now, tells: self.tells }, Told { handles: later, tells: Vec::new() })
    }
}

/// The times that the gate reads, so that a test can own them.
pub trait Clock: Send + Sync {
    /// Microseconds since 1970-01-01 UTC: commit times, and the limit for events that come from the future.
    fn now_us(&self) -> i64;
    /// For lengths of time only.
    fn monotonic_ns(&self) -> u64;
}

pub struct RealClock;

impl Clock for RealClock {
    fn now_us(&self) -> i64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
    }

    fn monotonic_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

/// A clock that stands until it is told to move.
pub struct ManualClock(AtomicI64);

impl ManualClock {
    pub fn new(now_us: i64) -> ManualClock {
        ManualClock(AtomicI64::new(now_us))
    }

    pub fn set(&self, now_us: i64) {
        self.0.store(now_us, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_us(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic_ns(&self) -> u64 {
        0
    }
}

/// An error's body, in the one shape that all doors use.
fn error_body(code: &str, message: &str, field: Option<&str>) -> Vec<u8> {
    let mut error = serde_json::Map::new();
    error.insert("code".into(), code.into());
    if let Some(field) = field {
        error.insert("field".into(), field.into());
    }
    error.insert("message".into(), message.into());
    let body = serde_json::Value::Object([("error".to_string(), error.into())].into_iter().collect());
    body.to_string().into_bytes()
}
