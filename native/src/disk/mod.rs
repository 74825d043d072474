//! Everything the core does to files, in nine calls, so that a test can own the disk.
//!
//! Five belong to the disk (open, rename, remove, list, sync folder) and four to an open file (read, write, sync,
//! allocate). Paths are relative to the disk's root, with `/` between folder and name.

mod memory;
mod real;

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

pub use memory::{Call, Crash, MemoryDisk};
pub use real::RealDisk;
pub(crate) use real::create_folders;

/// What is long is written and synced in pieces: where decisions' own syncs want the disk too, in small ones with a
/// pause after each. A device that is never without a piece makes them wait for tens of milliseconds now and then.
pub const SMALL_PIECE: usize = 256 << 10;
pub const LARGE_PIECE: usize = 1 << 20;

pub trait Disk: Send + Sync {
    /// Open a file for reading and, where `mode` says so, for writing; folders on its way are created with it.
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn File>>;
    /// Give a file another name in the same folder, replacing what had it. Durable after `sync_folder`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, path: &str) -> io::Result<()>;
    /// The files of a folder with their sizes, by name; an absent folder is empty.
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>>;
    /// Make the folder's names durable: without it a new file's name can vanish in a crash.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
}

pub trait File: Send + Sync {
    /// Read into the buffer from a position; fewer bytes than asked only at the end of the file.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Write all bytes at a position. Durable after `sync`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Make everything written durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
    /// Make the file at least this long, filled with zeros for which the disk has the space; durable when it returns.
    /// A real disk asks `piece` for the bytes of each next piece that it syncs; an error of it ends the filling.
    /// Where the disk is full (`StorageFull`, `QuotaExceeded`), the file is as long as before, and a later call may
    /// succeed; after any other error the file is of no use.
    fn allocate(&self, bytes: u64, piece: &dyn Fn() -> io::Result<usize>) -> io::Result<()>;
}

/// Whether a disk, or somebody's part of it, has no space left, or a process may open no more files.
pub fn is_full(error: &io::Error) -> bool {
    let no_more_files = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || no_more_files.contains(&error.raw_os_error())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Read,
    /// Read and write; created where absent.
    Write,
    /// As `Write`, but an error where the file is there already.
    Create,
}
