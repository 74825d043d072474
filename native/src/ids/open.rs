//! What a start finds: the sound files that follow one another without a gap, and nothing else.
//!
//! A crash can leave unfinished files, and beside a merge's result its sources. Damage ends what is usable: the files
//! behind it go too, because ids are inserted again in the log's order only.

use std::io;
use std::sync::Arc;

use super::generation::{FOLDER, Generation, path_of};
use crate::disk::Disk;
use crate::error::{Error, Result};

/// What a file is called until it is durable.
pub(super) fn unfinished(path: &str) -> String {
    format!("{path}.unfinished")
}

/// What a file is called when its blocks were found damaged.
pub(super) fn damaged(path: &str) -> String {
    format!("{path}.damaged")
}

/// The generations from the oldest to the newest, and what was found unusable. What is not used is removed.
pub(super) fn open_generations(disk: &dyn Disk) -> Result<(Vec<Arc<Generation>>, Vec<Error>)> {
    let mut files = candidates(disk)?;
    files.sort_by_key(Candidate::order);
    let mut found = Found { next: files.first().map_or(0, |file| file.first), ..Found::default() };
    for file in files {
        found.take(disk, file)?;
    }
    remove_all(disk, &found.unused)?;
    Ok((found.generations, found.damage))
}

/// Read all of the files that a start would use, and change nothing: how many there are, and what is damaged of them.
pub(super) fn verify(disk: &dyn Disk) -> Result<(u64, Vec<Error>)> {
    let (mut count, mut damage) = (0, Vec::new());
    for file in candidates(disk)?.into_iter().filter(|file| file.finished) {
        match read_all(disk, &file) {
            Ok(()) => count += 1,
            // A service that runs has merged it meanwhile.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error @ Error::Damaged { .. }) => {
                count += 1;
                damage.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((count, damage))
}

pub(super) fn newest_file(disk: &dyn Disk) -> Result<Option<(u64, String)>> {
    let files = candidates(disk)?.into_iter().filter(Candidate::is_named);
    Ok(files.map(|file| (file.last, file.path)).max())
}

fn candidates(disk: &dyn Disk) -> Result<Vec<Candidate>> {
    let listed =
        disk.list(FOLDER).map_err(|error| Error::io(format!("could not list the folder {FOLDER}"), error))?;
    Ok(listed.iter().filter_map(Candidate::of).collect())
}

fn read_all(disk: &dyn Disk, file: &Candidate) -> Result<()> {
    let generation = Arc::new(file.open(disk, file.first)?);
    let mut cursor = generation.cursor()?;
    while cursor.advance()? {}
    Ok(())
}

/// Remove a file for good.
pub(super) fn remove(disk: &dyn Disk, path: &str) -> Result<()> {
    let removed = disk.remove(path).and_then(|()| disk.sync_folder(FOLDER));
    removed.map_err(|error| Error::io(format!("could not remove {path}"), error))
}

/// The same of one in use, which may have been marked as damaged.
pub(super) fn remove_used(disk: &dyn Disk, path: &str) -> Result<()> {
    match remove(disk, path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            remove(disk, &damaged(path))
        }
        removed => removed,
    }
}

fn remove_all(disk: &dyn Disk, paths: &[String]) -> Result<()> {
    if !paths.is_empty() {
        // A merge's result is here, but a crash can have come before its name was durable.
        disk.sync_folder(FOLDER)
            .map_err(|error| Error::io(format!("could not sync the folder {FOLDER}"), error))?;
    }
    // From the last: without a damaged file, a crash would leave those behind it looking sound.
    paths.iter().rev().try_for_each(|path| remove(disk, path))
}

struct Candidate {
    path: String,
    bytes: u64,
    first: u64,
    last: u64,
    finished: bool,
}

impl Candidate {
    /// Absent for a file that is not the index's.
    fn of((name, bytes): &(String, u64)) -> Option<Candidate> {
        let (range, kind) = name.split_once(".ids")?;
        let (first, last) = range.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        let finished = kind != unfinished("");
        Some(Candidate {
            path: format!("{FOLDER}/{name}"),
            bytes: *bytes,
            first: number(first)?,
            last: number(last)?,
            finished,
        })
    }

    /// Whether it has the name that a whole one gets, or the one of a whole one that is damaged.
    fn is_named(&self) -> bool {
        let path = path_of(self.first, self.last);
        self.path == path || self.path == damaged(&path)
    }

    /// A merge's result comes before its sources.
    fn order(&self) -> (u64, std::cmp::Reverse<u64>) {
        (self.first, std::cmp::Reverse(self.last))
    }

    fn open(&self, disk: &dyn Disk, next: u64) -> Result<Generation> {
        if self.first != next {
            return Err(Error::damaged(&self.path, 0, "the commits before it are in no usable file"));
        }
        if self.path == damaged(&path_of(self.first, self.last)) {
            return Err(Error::damaged(&self.path, 0, "it was found damaged when it was last used"));
        }
        Generation::open(disk, &self.path, self.bytes)
    }
}

#[derive(Default)]
struct Found {
    generations: Vec<Arc<Generation>>,
    damage: Vec<Error>,
    unused: Vec<String>,
    /// The sequence that the next file must begin with.
    next: u64,
}

impl Found {
    fn take(&mut self, disk: &dyn Disk, file: Candidate) -> Result<()> {
        let merged = file.last < self.next;
        if merged || !file.finished {
            self.unused.push(file.path);
            return Ok(());
        }
        match file.open(disk, self.next) {
            Ok(generation) => {
                self.next = file.last + 1;
                self.generations.push(Arc::new(generation));
            }
            Err(error @ Error::Damaged { .. }) => {
                self.damage.push(error);
                self.unused.push(file.path);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
