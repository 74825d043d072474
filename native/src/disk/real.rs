//! The disk of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::{Disk, File, LARGE_PIECE, Mode, is_full};

pub struct RealDisk {
    root: PathBuf,
    /// The folders that were synced, kept open: when a process has no descriptors left, its log still can.
    folders: Mutex<BTreeMap<String, fs::File>>,
}

impl RealDisk {
    pub fn new(root: impl AsRef<Path>) -> RealDisk {
        RealDisk { root: root.as_ref().to_path_buf(), folders: Mutex::default() }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn File>> {
        let path = self.root.join(path);
        if mode != Mode::Read
            && let Some(folder) = path.parent()
        {
            create_folders(folder)?;
        }
        let mut options = fs::OpenOptions::new();
        options.read(true).write(mode != Mode::Read);
        match mode {
            Mode::Read => {}
            Mode::Write => {
                options.create(true);
            }
            Mode::Create => {
                options.create_new(true);
            }
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let entries = match fs::read_dir(self.root.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Removed by its owner since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_file() {
                files.push((entry.file_name().to_string_lossy().into_owned(), metadata.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if !folders.contains_key(folder) {
            folders.insert(folder.into(), fs::File::open(self.root.join(folder))?);
        }
        folders[folder].sync_all()
    }
}

/// Make a folder and those above it that are absent; each new one's name is on disk before anything in it counts.
pub fn create_folders(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    create_folders(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::File::open(parent)?.sync_all(),
    }
}

struct RealFile(fs::File);

impl File for RealFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, bytes: u64, piece: &dyn Fn() -> io::Result<usize>) -> io::Result<()> {
        let before = self.0.metadata()?.len();
        let filled = self.reserve(before, bytes).and_then(|()| self.fill(before, bytes, piece));
        if filled.as_ref().is_err_and(is_full) {
            // Others need what is left: retention has to wait for a snapshot, which takes space of its own.
            self.0.set_len(before)?;
        }
        filled
    }
}

impl RealFile {
    /// Take the space in one call where the file system can: whether there is enough shows before any is filled.
    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::empty(), from, to.saturating_sub(from)) {
            Err(Errno::NOSPC) => Err(io::ErrorKind::StorageFull.into()),
            Err(Errno::DQUOT) => Err(io::ErrorKind::QuotaExceeded.into()),
            _ => Ok(()),
        }
    }

    fn fill(&self, from: u64, to: u64, piece: &dyn Fn() -> io::Result<usize>) -> io::Result<()> {
        let zeros = vec![0; LARGE_PIECE];
        let mut offset = from;
        while offset < to {
            let count = (to - offset).min(piece()?.min(LARGE_PIECE) as u64);
            self.0.write_all_at(&zeros[..count as usize], offset)?;
            self.0.sync_data().map_err(io::Error::other)?;
            offset += count;
        }
        // A full disk that shows only now has left pages unwritten: that is not the error to go on after.
        self.0.sync_all().map_err(io::Error::other)
    }
}
