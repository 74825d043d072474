//! A piece of work that runs in a thread of its own, or at once where a test wants every step in its place.

use std::panic::resume_unwind;
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result};

pub(super) enum Task<T> {
    Done(Result<T>),
    Running(JoinHandle<Result<T>>),
}

impl<T: Send + 'static> Task<T> {
    pub(super) fn start(
        background: bool,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Task<T>> {
        if !background {
            return Ok(Task::Done(work()));
        }
        let thread = Builder::new().name("penstock-ids".into()).spawn(|| {
            // This thread only: whoever decides goes first. Where it is not allowed, the work is still done.
            let _ = rustix::process::nice(10);
            work()
        });
        thread.map(Task::Running).map_err(|error| Error::io("could not start a thread for the ids", error))
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
