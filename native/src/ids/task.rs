//! A piece of work that runs in a thread of its own, or at once where a test wants every step in its place.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use crate::error::Result;

pub(super) enum Task<T> {
    Done(Result<T>),
    Running(JoinHandle<Result<T>>),
}

impl<T: Send + 'static> Task<T> {
    pub(super) fn start(background: bool, work: impl FnOnce() -> Result<T> + Send + 'static) -> Task<T> {
        if !background {
            return Task::Done(work());
        }
        let work = Arc::new(Mutex::new(Some(work)));
        let take =
            |work: &Mutex<Option<_>>| work.lock().expect("no panic holds it").take().expect("taken once");
        let theirs = work.clone();
        let thread = Builder::new().name("penstock-ids".into()).spawn(move || {
            // This thread only: whoever decides goes first. Where it is not allowed, the work is still done.
            let _ = rustix::process::nice(10);
            take(&theirs)()
        });
        // Without a thread to be had it is done here.
        thread.map_or_else(|_| Task::Done(take(&work)()), Task::Running)
    }

    pub(super) fn finished(&self) -> bool {
        match self {
            Task::Done(_) => true,
            Task::Running(thread) => thread.is_finished(),
        }
    }

    /// Wait for the result; a panic in the thread goes on here.
    pub(super) fn join(self) -> Result<T> {
        match self {
            Task::Done(result) => result,
            Task::Running(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
        }
    }
}
