//! One writer at a time: a lock on the data directory that ends with its process, whatever way that ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::disk::create_folders;
use crate::error::{Error, Result};

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Lock a data directory, which is made durably where it is absent; the error names the process that holds it.
pub fn lock(root: &Path) -> Result<Lock> {
    let path = root.join("lock");
    let failed = |error| Error::io(format!("could not lock {}", path.display()), error);
    create_folders(root).map_err(failed)?;
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = options.map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let pid = read_pid(&mut file);
            return Err(Error::Locked { pid, stopped: pid.is_some_and(stopped) });
        }
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(Lock { _file: file })
}

/// Whether a signal has stopped this process: it holds the lock and does nothing, until it is told to go on.
fn stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets and may hold some itself (proc_pid_stat(5)).
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't']))
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
