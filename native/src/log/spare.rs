//! The next segment's space, taken before it is needed.
//!
//! Zeros are written long before the current segment is full, in a thread of their own, so that an append neither
//! waits for space nor finds the disk full; in small pieces with pauses until the space will soon be needed, so that
//! decisions' syncs have the disk too. The file gets its segment's name when it is put to use.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::disk::{Disk, File, LARGE_PIECE, Mode, SMALL_PIECE, is_full};
use crate::error::{Error, Result};

pub(super) const PATH: &str = "log/spare";
/// Before each small piece: at most 64 MB/s.
const PAUSE: Duration = Duration::from_millis(4);

pub(super) struct Spare {
    disk: Arc<dyn Disk>,
    bytes: u64,
    background: bool,
    state: State,
    wishes: Arc<Wishes>,
}

/// What the log wants of an allocation that is under way.
#[derive(Default)]
struct Wishes {
    soon: AtomicBool,
    /// The log is closed.
    never: AtomicBool,
}

enum State {
    Absent,
    Allocating(JoinHandle<Result<Arc<dyn File>>>),
    Ready(Arc<dyn File>),
}

impl Spare {
    /// What an earlier process left under the name may be half done: it goes.
    pub fn new(disk: Arc<dyn Disk>, bytes: u64, background: bool) -> Result<Spare> {
        remove(disk.as_ref())?;
        Ok(Spare { disk, bytes, background, state: State::Absent, wishes: Arc::default() })
    }

    /// Begin to allocate, unless that has happened. In the foreground, a failure shows when the space is needed.
    pub fn start(&mut self) {
        if let State::Absent = self.state {
            let (disk, bytes) = (self.disk.clone(), self.bytes);
            self.wishes = Arc::default();
            let wishes = self.wishes.clone();
            self.state = if self.background {
                // Without a thread, as without space: later.
                let thread = thread::Builder::new().name("log-spare".into());
                let spawned = thread.spawn(move || allocate(disk.as_ref(), bytes, &|| wishes.piece()));
                spawned.map_or(State::Absent, State::Allocating)
            } else {
                allocate(disk.as_ref(), bytes, &|| Ok(LARGE_PIECE)).map_or(State::Absent, State::Ready)
            };
        }
    }

    /// From here on as fast as it can be had.
    pub fn hurry(&self) {
        self.wishes.soon.store(true, Ordering::Relaxed);
    }

    /// Whether an allocation that was started has failed, or none was.
    pub fn absent(&mut self) -> bool {
        if matches!(&self.state, State::Allocating(thread) if thread.is_finished()) {
            // The error is found again by `wait`, if the space is needed before it can be had.
            let _ = self.wait();
        }
        matches!(self.state, State::Absent)
    }

    /// Have the space: wait for its allocation, or try now.
    pub fn wait(&mut self) -> Result<()> {
        self.hurry();
        let allocated = match std::mem::replace(&mut self.state, State::Absent) {
            State::Absent => allocate(self.disk.as_ref(), self.bytes, &|| Ok(LARGE_PIECE)),
            State::Allocating(thread) => thread.join().expect("allocating does not panic"),
            State::Ready(file) => Ok(file),
        };
        self.state = State::Ready(allocated?);
        Ok(())
    }

    /// Give the space away, to be renamed.
    pub fn take(&mut self) -> Result<Arc<dyn File>> {
        self.wait()?;
        match std::mem::replace(&mut self.state, State::Absent) {
            State::Ready(file) => Ok(file),
            State::Absent | State::Allocating(_) => unreachable!("it has been waited for"),
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let State::Allocating(thread) = std::mem::replace(&mut self.state, State::Absent) {
            // Nobody needs the space any more; only the thread must not outlive its log.
            self.wishes.never.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

impl Wishes {
    /// The bytes of the next piece, when it may be written.
    fn piece(&self) -> io::Result<usize> {
        if self.never.load(Ordering::Relaxed) {
            return Err(io::Error::other("the log is closed"));
        }
        if self.soon.load(Ordering::Relaxed) {
            return Ok(LARGE_PIECE);
        }
        thread::sleep(PAUSE);
        Ok(SMALL_PIECE)
    }
}

fn allocate(disk: &dyn Disk, bytes: u64, piece: &dyn Fn() -> io::Result<usize>) -> Result<Arc<dyn File>> {
    let what = || format!("could not allocate {PATH}");
    let file = disk.open(PATH, Mode::Write).map_err(|error| Error::io(what(), error))?;
    match file.allocate(bytes, piece) {
        Ok(()) => Ok(file),
        Err(error) if is_full(&error) => {
            Err(Error::Full { what: format!("the log needs {bytes} bytes for {PATH}") })
        }
        Err(error) => {
            remove(disk)?;
            Err(Error::io(what(), error))
        }
    }
}

fn remove(disk: &dyn Disk) -> Result<()> {
    match disk.remove(PATH) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("could not remove {PATH}"), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    /// At 64 MB/s it takes seconds.
    const BYTES: u64 = 256 << 20;

    fn started(name: &str, bytes: u64) -> (std::path::PathBuf, Arc<dyn Disk>, Spare) {
        let folder = std::env::temp_dir().join(format!("penstock-spare-{name}-{}", std::process::id()));
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&folder));
        let mut spare = Spare::new(disk.clone(), bytes, true).unwrap();
        spare.start();
        (folder, disk, spare)
    }

    #[test]
    fn a_log_that_closes_does_not_wait_for_its_next_segment() {
        let (folder, disk, spare) = started("closed", BYTES);
        drop(spare);
        assert!(disk.list("log").unwrap().is_empty(), "what was half done is gone");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn who_needs_the_next_segment_has_it_whole() {
        let (folder, disk, mut spare) = started("needed", BYTES / 16);
        thread::sleep(3 * PAUSE);
        assert!(!spare.absent(), "it is under way");
        drop(spare.take().unwrap());
        assert_eq!(disk.list("log").unwrap(), [("spare".to_string(), BYTES / 16)]);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
