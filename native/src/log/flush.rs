//! Making appends durable, and never going on after that has failed.
//!
//! A system that could not write pages may drop them and report success the next time (Rebello et al.: Can Applications
//! Recover from fsync Failures?, USENIX ATC 2020). So the first failure is the last call.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::durable::Slot;
use crate::disk::File;
use crate::error::{Error, Result};

/// A sync that can run in another thread than the log's.
pub struct Flush {
    pub(super) file: Arc<dyn File>,
    pub(super) slot: Slot,
    pub(super) health: Arc<Health>,
    pub(super) sync: bool,
}

/// A sync that has succeeded.
pub struct Flushed(pub(super) Slot);

impl Flush {
    pub fn run(self) -> Result<Flushed> {
        if self.sync {
            self.health.sync(self.file.as_ref())?;
        }
        Ok(Flushed(self.slot))
    }
}

/// Whether the log may still be trusted, shared with syncs that run elsewhere.
#[derive(Default)]
pub(super) struct Health {
    failed: AtomicBool,
    syncing: Mutex<()>,
}

impl Health {
    pub fn check(&self) -> Result<()> {
        match self.failed.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Error::io(
                "the log has stopped after a failed write or sync",
                io::Error::other("start again: what is on disk will be read anew"),
            )),
        }
    }

    pub fn watch<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    /// One sync at a time. Of two at once, the system may report a failure to one and success to the other.
    pub fn sync(&self, file: &dyn File) -> Result<()> {
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.watch(file.sync().map_err(|error| Error::io("could not sync the log", error)))
    }
}
