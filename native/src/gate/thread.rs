//! The gate's thread, and the boxes between it and the door.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::core::{Core, TEND_US};
use super::fallbacks::Fallbacks;
use super::stats::Stats;
use super::{Answer, MODEL, Request, Told};
use crate::decode::Decoder;
use crate::error::{Error, Result};
use crate::memory;
use crate::plan::Plan;

/// A core on a thread of its own. `submit` and `take` never wait for it.
pub struct Gate {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    outbox: Mutex<Vec<Answer>>,
    /// Readable while the outbox has something new.
    ready: OwnedFd,
    stats: Mutex<Stats>,
    queued: AtomicU64,
    plan: Arc<Plan>,
    decoders: Arc<Vec<Decoder>>,
}

/// A thread without work looks up this often.
const IDLE: Duration = Duration::from_micros(TEND_US as u64);
/// And where the disk is full.
const FULL: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Inbox {
    requests: VecDeque<Request>,
    told: Told,
    stop: bool,
}

impl Gate {
    pub fn start(core: Core) -> Result<Gate> {
        memory::keep_large();
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("could not make an eventfd", error.into()))?;
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            outbox: Mutex::default(),
            ready,
            stats: Mutex::new(core.stats.clone()),
            queued: AtomicU64::new(0),
            plan: core.plan.clone(),
            decoders: core.decoders.clone(),
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("penstock-gate".into())
            .spawn(move || run(core, &theirs))
            .map_err(|error| Error::io("could not start the gate's thread", error))?;
        Ok(Gate { shared, thread: Mutex::new(Some(thread)) })
    }

    pub fn ready(&self) -> &OwnedFd {
        &self.shared.ready
    }

    pub fn submit(&self, requests: Vec<Request>) {
        self.shared.queued.fetch_add(requests.len() as u64, Ordering::Relaxed);
        lock(&self.shared.inbox).requests.extend(requests);
        self.shared.wake.notify_one();
    }

    pub fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *lock(&self.shared.outbox))
    }

    /// The door has told this request's caller the fallback.
    ///
    /// Where the answer is still in the outbox the core may have forgotten the request, so what was decided goes back to
    /// it. Both boxes are locked: an answer cannot slip out of sight between them.
    pub fn told(&self, handle: u64) {
        let mut outbox = lock(&self.shared.outbox);
        let mut inbox = lock(&self.shared.inbox);
        match outbox.iter_mut().find(|answer| answer.handle == handle && answer.flags & MODEL == 0) {
            Some(answer) => inbox.told.tells.extend(std::mem::take(&mut answer.tells).iter().cloned()),
            None => inbox.told.handles.push(handle),
        }
        self.shared.wake.notify_one();
    }

    /// The answer at a deadline or an overload: the policy's fallback, or why the body is no event.
    pub fn fallback(&self, policy: usize, body: &[u8], cause: &str, took_ns: u64) -> (u16, Vec<u8>) {
        self.fallbacks_of(policy, cause, took_ns).one(body)
    }

    /// The same for each line of a body.
    pub fn fallbacks(&self, policy: usize, body: &[u8], cause: &str, took_ns: u64) -> Vec<u8> {
        self.fallbacks_of(policy, cause, took_ns).lines(body)
    }

    fn fallbacks_of<'a>(&'a self, policy: usize, cause: &'a str, took_ns: u64) -> Fallbacks<'a> {
        let plan = &self.shared.plan;
        let decoder = &self.shared.decoders[plan.policy_topic(policy)];
        Fallbacks::new(&plan.policies[policy], decoder, cause, took_ns)
    }

    pub fn stats(&self) -> Stats {
        let mut stats = lock(&self.shared.stats).clone();
        stats.queued += self.shared.queued.load(Ordering::Relaxed);
        stats
    }

    /// Finish what was submitted and close the log. What was answered last is still to be taken.
    pub fn stop(&self) -> Result<()> {
        lock(&self.shared.inbox).stop = true;
        self.shared.wake.notify_one();
        let Some(thread) = lock(&self.thread).take() else { return Ok(()) };
        let ended = thread.join();
        if ended.is_err() {
            return Err(Error::invalid("the gate's thread has panicked"));
        }
        match self.stats().failed {
            Some(reason) => Err(Error::invalid(reason)),
            None => Ok(()),
        }
    }
}

fn run(mut core: Core, shared: &Shared) {
    // A broken invariant ends the gate like any other failure: the door must learn of it, and stop.
    let ended = catch_unwind(AssertUnwindSafe(|| cycles(&mut core, shared).and_then(|()| core.close())));
    let failed = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("an invariant of the core is broken; its place is on standard error".to_string()),
    };
    lock(&shared.stats).failed = failed;
    signal(shared);
}

fn cycles(core: &mut Core, shared: &Shared) -> Result<()> {
    loop {
        let (requests, told, stop) = wait(core, shared);
        let count = requests.len() as u64;
        if requests.is_empty() && told.is_empty() && !core.busy() {
            if stop {
                return Ok(());
            }
            core.tend()?;
            *lock(&shared.stats) = core.stats.clone();
            continue;
        }
        let answers = core.step(requests, told)?;
        shared.queued.fetch_sub(count, Ordering::Relaxed);
        *lock(&shared.stats) = core.stats.clone();
        if !answers.is_empty() {
            lock(&shared.outbox).extend(answers);
            signal(shared);
        }
        core.tend()?;
    }
}

fn wait(core: &Core, shared: &Shared) -> (Vec<Request>, Told, bool) {
    let mut inbox = lock(&shared.inbox);
    let mut idle = false;
    let wait = if core.stats.full.is_some() { FULL } else { IDLE };
    while inbox.requests.is_empty() && inbox.told.is_empty() && !core.busy() && !inbox.stop && !idle {
        let waited = shared.wake.wait_timeout(inbox, wait).unwrap_or_else(PoisonError::into_inner);
        (inbox, idle) = (waited.0, waited.1.timed_out());
    }
    let count = core.fitting(inbox.requests.iter());
    let requests = inbox.requests.drain(..count).collect();
    (requests, inbox.next_told(), inbox.stop)
}

impl Inbox {
    /// What was told of requests that still wait here is told when they are taken.
    fn next_told(&mut self) -> Told {
        if self.told.is_empty() {
            return Told::default();
        }
        let waiting: HashSet<u64> = self.requests.iter().map(|request| request.handle).collect();
        let told = std::mem::take(&mut self.told);
        let (later, now) = told.handles.into_iter().partition(|handle| waiting.contains(handle));
        self.told.handles = later;
        Told { handles: now, tells: told.tells }
    }
}

fn signal(shared: &Shared) {
    // A full counter means that the door has been signalled already.
    let _ = rustix::io::write(&shared.ready, &1u64.to_ne_bytes());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
