//! Safeguards of the product that a test can switch off, to see that their absence is found. Only test builds have them.

use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// A commit is as it was written: its checksum, and the chain to the one before it.
    Checksums,
    /// A commit follows the one before it.
    Chain,
    /// A start finds the ids in the log again.
    Ids,
    /// What is answered is on disk.
    Sync,
}

thread_local! {
    static OFF: Cell<Option<Safeguard>> = const { Cell::new(None) };
}

pub fn is_off(safeguard: Safeguard) -> bool {
    OFF.get() == Some(safeguard)
}

/// Do something without it, on this thread.
pub fn without<T>(safeguard: Safeguard, work: impl FnOnce() -> T) -> T {
    OFF.set(Some(safeguard));
    let done = work();
    OFF.set(None);
    done
}
