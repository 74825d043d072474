//! The index of event ids: has this id been seen, and in which commit?
//!
//! The newest ids are in a table in memory. When it is full and its commits are durable, it becomes a generation: a
//! file sorted by hash, with a filter in memory that knows nearly every new id as new. The index is derived from the
//! log: whatever is not in sound files at start is inserted again by the caller. So no insert is ever synced, and
//! damage costs time; only ids in a file that is found damaged later cannot be known until the next start.
//!
//! ```text
//!   insert ──▶ table ──▶ full tables ──▶ generation … generation ──▶ expired
//!             (newest)  (being written)       (merged, so few)
//! ```

mod filter;
mod format;
mod generation;
mod merge;
mod open;
mod table;
mod task;

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::disk::Disk;
use crate::error::{Error, Result};
pub use generation::FOLDER;
use generation::Generation;
use merge::Rank;
use table::Table;
use task::Task;

/// Full tables beyond this many are waited for: ids would otherwise come faster than the disk takes them.
const FULL_TABLES_MAX: usize = 4;
/// The places of so many hashes are touched before the first is looked at: their cache misses then overlap.
const GROUP: usize = 32;

/// Read all of the index's files: how many there are, and what is damaged of them.
pub fn verify(disk: &dyn Disk) -> Result<(u64, Vec<Error>)> {
    open::verify(disk)
}

/// The file of the newest ids: the last commit that it is of, which was durable before it was written, and its path.
pub fn newest_file(disk: &dyn Disk) -> Result<Option<(u64, String)>> {
    open::newest_file(disk)
}

/// The hash under which a topic's event id is kept; an id that is text is given as its UTF-8.
pub fn hash(topic: u16, id: &[u8]) -> u64 {
    xxh3_64_with_seed(id, topic.into())
}

pub fn hash_text(topic: u16, id: &str) -> u64 {
    hash(topic, id.as_bytes())
}

pub fn hash_int64(topic: u16, id: i64) -> u64 {
    hash(topic, &id.to_le_bytes())
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The ids of the newest table.
    pub memory_ids: usize,
    /// The longest time that a topic keeps its ids, so that no generation spans too much of it.
    pub retain_us: i64,
    /// Write and merge in threads; without it everything happens inside `flushable` and `expire`.
    pub background: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { memory_ids: 1_000_000, retain_us: 24 * 3600 * 1_000_000, background: true }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub ids: u64,
    /// Tables in memory: the newest, and those that are not yet files.
    pub tables: usize,
    pub generations: usize,
    pub merging: bool,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

/// A multimap from an id's hash to the addresses of the commits that brought it.
///
/// Promised: what was inserted is found until it expires, before and after a crash, once the caller has inserted
/// again what lies beyond `covered`. Equal inserts are kept apart.
///
/// Not promised: that an address is of the id asked for (hashes collide: read the commit), that it has not outlived
/// its retention (by up to an eighth; the newest table and the newest generation by any time), or that the log
/// still has it.
///
/// What a file cannot tell is an error of the ids that were asked for, and of no others: see `damaged`. A merge that
/// fails is tried again later: see `unmerged`. After any other error the index must be opened again, except after
/// `Error::Full`, which `flushable` tries again.
pub struct Ids {
    disk: Arc<dyn Disk>,
    settings: Settings,
    table: Table,
    /// What comes after the table, made before it is full.
    next: Option<Task<Table>>,
    /// Older than the table, from the oldest to the newest; the first may be in `flush`.
    full: VecDeque<Arc<Table>>,
    /// Older than those, from the oldest to the newest.
    generations: Vec<Arc<Generation>>,
    /// The last commit that can be in no table but the newest one.
    sealed: Option<u64>,
    damage: Vec<Error>,
    /// Why the last merge failed, where it did; the next one waits for another table to be written.
    unmerged: Option<String>,
    flush: Option<Task<Generation>>,
    merge: Option<Merge>,
    retired: Vec<Retired>,
    retire: Option<Task<()>>,
    stop: Arc<AtomicBool>,
}

struct Merge {
    sources: Vec<Arc<Generation>>,
    task: Task<Generation>,
}

/// No longer used. To free large memory or a large file takes milliseconds, which the caller must not wait for.
enum Retired {
    Table(Arc<Table>),
    Generation(Arc<Generation>),
}

/// The commits of a table or a generation: their sequences, and the extremes of their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u64,
    last: u64,
    oldest_us: i64,
    newest_us: i64,
}

impl Ids {
    /// Open what is durable and sound, as the only user of the folder. The caller then inserts every commit later
    /// than `covered` again, with a `flushable` now and then.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings) -> Result<Ids> {
        let (generations, damage) = open::open_generations(&*disk)?;
        Ok(Ids {
            table: Table::with_capacity(settings.memory_ids),
            next: None,
            full: VecDeque::new(),
            sealed: generations.last().map(|newest| newest.span.last),
            generations,
            damage,
            unmerged: None,
            flush: None,
            merge: None,
            retired: Vec::new(),
            retire: None,
            stop: Arc::default(),
            disk,
            settings,
        })
    }

    /// Commits up to this sequence need not be inserted again; 0 where all must be. Sequences begin at 1.
    pub fn covered(&self) -> u64 {
        self.generations.last().map_or(0, |newest| newest.span.last)
    }

    /// What `open` found unusable and removed, for the diagnostics; `covered` takes it into account.
    pub fn damage(&self) -> &[Error] {
        &self.damage
    }

    /// Add an id of a commit. Commits come in the order of their sequence, each only once.
    pub fn insert(&mut self, hash: u64, address: u64, sequence: u64, time_us: i64) {
        self.insert_batch(&[hash], address, sequence, time_us);
    }

    /// Add several ids of a commit. Addresses have at most 48 bits.
    pub fn insert_batch(&mut self, hashes: &[u64], address: u64, sequence: u64, time_us: i64) {
        assert!(address < 1 << 48, "a commit's address has at most 48 bits");
        assert!(self.sealed < Some(sequence), "commits are inserted once and in their order");
        self.seal_full_table(sequence);
        // What lies between two tables has no ids, and so belongs to the later one.
        let first = self.sealed.map_or(sequence, |sealed| sealed + 1);
        self.table.insert(
            hashes,
            address,
            Span { first, last: sequence, oldest_us: time_us, newest_us: time_us },
        );
    }

    /// Append all addresses of a hash, newest first.
    pub fn find(&self, hash: u64, found: &mut Vec<u64>) -> Result<()> {
        // The places in all generations first, for their cache misses to overlap.
        black_box(self.generations.iter().fold(0, |values, generation| values ^ generation.touch(hash)));
        for table in self.tables() {
            table.find(hash, found);
        }
        for generation in self.generations.iter().rev().filter(|generation| generation.may_hold(hash)) {
            generation.find(hash, found).map_err(|error| self.mark_damaged(error))?;
        }
        Ok(())
    }

    /// Append (position in `hashes`, address) by position, and for each as `find` would; returned, by position too, is
    /// what cannot be answered.
    pub fn find_batch(&self, hashes: &[u64], found: &mut Vec<(usize, u64)>) -> Vec<(usize, Error)> {
        let (before, mut unread) = (found.len(), Vec::new());
        for table in self.tables() {
            table.find_batch(hashes, found);
        }
        for generation in self.generations.iter().rev() {
            generation.find_batch(hashes, found, &mut unread);
        }
        found[before..].sort_by_key(|(position, _)| *position);
        unread.sort_by_key(|(position, _)| *position);
        unread.into_iter().map(|(position, error)| (position, self.mark_damaged(error))).collect()
    }

    /// What is wrong with a file in use, where one was found damaged: ids in it may be unknown. The next start makes it
    /// again.
    pub fn damaged(&self) -> Option<&str> {
        self.generations.iter().find_map(|generation| generation.damage())
    }

    /// Why the last merge failed, where it did: the files stay as they are for now, and everything in them is known.
    pub fn unmerged(&self) -> Option<&str> {
        self.unmerged.as_deref()
    }

    /// To be called after each sync: writes full tables whose commits are durable, merges generations, and picks up
    /// what has been done in the background since.
    pub fn flushable(&mut self, durable_sequence: u64) -> Result<()> {
        loop {
            let progress = [
                self.end_flush()?,
                self.end_merge()?,
                self.end_retire()?,
                self.start_next(),
                self.start_flush(durable_sequence)?,
                self.start_merge()?,
                self.start_retire()?,
            ];
            if !progress.contains(&true) {
                return Ok(());
            }
        }
    }

    /// Remove generations of which every commit is older; returns how many.
    pub fn expire(&mut self, before_us: i64) -> Result<usize> {
        let count =
            self.removable().iter().take_while(|generation| generation.span.newest_us < before_us).count();
        self.retired.extend(self.generations.drain(..count).map(Retired::Generation));
        while self.end_retire()? | self.start_retire()? {}
        Ok(count)
    }

    pub fn stats(&self) -> Stats {
        let ids = |generation: &Arc<Generation>| generation.ids;
        let bytes = |generation: &Arc<Generation>| generation.memory_bytes();
        Stats {
            ids: self.tables().map(|table| table.len() as u64).chain(self.generations.iter().map(ids)).sum(),
            tables: self.tables().count(),
            generations: self.generations.len(),
            merging: self.merge.is_some(),
            memory_bytes: self
                .tables()
                .map(Table::memory_bytes)
                .chain(self.next.iter().map(|_| self.table.memory_bytes()))
                .chain(self.generations.iter().map(bytes))
                .sum(),
            disk_bytes: self.generations.iter().map(|generation| generation.disk_bytes()).sum(),
        }
    }

    /// From the newest to the oldest.
    fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.table).chain(self.full.iter().rev().map(|table| &**table))
    }

    /// A table ends with a commit, never inside it: a file's range could not say so.
    fn seal_full_table(&mut self, sequence: u64) {
        let Some(span) = self.table.span() else { return };
        assert!(span.last <= sequence, "commits are inserted in their order");
        if self.table.len() < self.settings.memory_ids || span.last == sequence {
            return;
        }
        // Where it is not there yet, which only a core that is busy otherwise explains, it is not waited for.
        let next = self.next.take_if(|next| next.finished()).and_then(|next| next.join().ok());
        let next = next.unwrap_or_else(|| Table::with_capacity(self.settings.memory_ids));
        let table = std::mem::replace(&mut self.table, next);
        self.full.push_back(Arc::new(table));
        self.sealed = Some(span.last);
    }

    /// To touch so much new memory takes tens of milliseconds, which an insert must not wait for.
    fn start_next(&mut self) -> bool {
        let memory_ids = self.settings.memory_ids;
        if self.next.is_some() || 2 * self.table.len() < memory_ids {
            return false;
        }
        self.next = Some(Task::start(self.settings.background, move || Ok(Table::touched(memory_ids))));
        true
    }

    fn start_flush(&mut self, durable_sequence: u64) -> Result<bool> {
        let durable = |table: &&Arc<Table>| table.span().is_some_and(|span| span.last <= durable_sequence);
        let (None, Some(table)) = (&self.flush, self.full.front().filter(durable)) else { return Ok(false) };
        let (disk, table) = (self.disk.clone(), table.clone());
        self.flush = Some(Task::start(self.settings.background, move || write_table(&*disk, &table)));
        Ok(true)
    }

    fn end_flush(&mut self) -> Result<bool> {
        let crowded = self.full.len() > FULL_TABLES_MAX;
        let Some(task) = self.flush.take_if(|task| task.finished() || crowded) else { return Ok(false) };
        self.generations.push(Arc::new(task.join()?));
        self.retired.extend(self.full.pop_front().map(Retired::Table));
        self.unmerged = None;
        Ok(true)
    }

    fn start_merge(&mut self) -> Result<bool> {
        if self.merge.is_some() || self.unmerged.is_some() {
            return Ok(false);
        }
        let Settings { memory_ids, retain_us, background } = self.settings;
        // What is damaged has no neighbours: it stays apart until it expires.
        let ranks = self.generations.iter().zip(0..).map(|(generation, index)| match generation.damage() {
            None => Rank::of(generation, memory_ids, retain_us),
            Some(_) => Rank { eighth: i64::MIN + index, size: 0 },
        });
        let Some(chosen) = merge::choose(&ranks.collect::<Vec<_>>()) else { return Ok(false) };
        let sources = self.generations[chosen].to_vec();
        let (disk, inputs, stop) = (self.disk.clone(), sources.clone(), self.stop.clone());
        let task = Task::start(background, move || merge::merge(&*disk, &inputs, &stop));
        self.merge = Some(Merge { sources, task });
        Ok(true)
    }

    fn end_merge(&mut self) -> Result<bool> {
        let Some(merge) = self.merge.take_if(|merge| merge.task.finished()) else { return Ok(false) };
        let merged = match merge.task.join() {
            Ok(merged) => merged,
            Err(error @ Error::Full { .. }) => return Err(error),
            // Its sources are as they were.
            Err(error) => {
                let error = self.mark_damaged(error);
                if merge.sources.iter().all(|source| source.damage().is_none()) {
                    self.unmerged = Some(error.to_string());
                }
                return Ok(true);
            }
        };
        let start = self.position(&merge.sources[0]);
        self.generations.splice(start..start + merge.sources.len(), [Arc::new(merged)]);
        self.retired.extend(merge.sources.into_iter().map(Retired::Generation));
        Ok(true)
    }

    fn start_retire(&mut self) -> Result<bool> {
        if self.retire.is_some() || self.retired.is_empty() {
            return Ok(false);
        }
        let (disk, retired) = (self.disk.clone(), std::mem::take(&mut self.retired));
        self.retire = Some(Task::start(self.settings.background, move || free(&*disk, retired)));
        Ok(true)
    }

    fn end_retire(&mut self) -> Result<bool> {
        let Some(task) = self.retire.take_if(|task| task.finished()) else { return Ok(false) };
        task.join()?;
        Ok(true)
    }

    /// What expiry may remove: not what is being merged, and not the newest, which says what is covered.
    fn removable(&self) -> &[Arc<Generation>] {
        let newest = self.generations.len().saturating_sub(1);
        &self.generations[..self.merge.as_ref().map_or(newest, |merge| self.position(&merge.sources[0]))]
    }

    fn position(&self, wanted: &Arc<Generation>) -> usize {
        let mut generations = self.generations.iter();
        generations
            .position(|generation| Arc::ptr_eq(generation, wanted))
            .expect("what is being merged stays")
    }

    /// The next start must not trust the file again. The damage itself is the error to tell, so no other replaces it.
    fn mark_damaged(&self, error: Error) -> Error {
        let Error::Damaged { file, .. } = &error else { return error };
        let first =
            |generation: &&Arc<Generation>| generation.path() == file && generation.note_damage(&error);
        if self.generations.iter().any(|generation| first(&generation)) {
            let _ = self.disk.rename(file, &open::damaged(file));
            let _ = self.disk.sync_folder(FOLDER);
        }
        error
    }
}

impl Drop for Ids {
    /// No thread outlives the index; what they leave unfinished is done again after the next start.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.next.take().map(Task::join);
        let _ = self.flush.take().map(Task::join);
        let _ = self.merge.take().map(|merge| merge.task.join());
        let _ = self.retire.take().map(Task::join);
    }
}

fn write_table(disk: &dyn Disk, table: &Table) -> Result<Generation> {
    let span = table.span().expect("a full table has commits");
    generation::write(disk, span, table.len() as u64, |writer| {
        table.sorted().iter().try_for_each(|(hash, address)| writer.push(*hash, *address))
    })
}

/// In the order of retirement, each made durable: if a later file could go before an earlier one, a crash between
/// them would leave a gap.
fn free(disk: &dyn Disk, retired: Vec<Retired>) -> Result<()> {
    for what in retired {
        match what {
            Retired::Table(table) => drop(table),
            Retired::Generation(generation) => open::remove_used(disk, generation.path())?,
        }
    }
    Ok(())
}

impl Span {
    fn join(self, other: Span) -> Span {
        Span {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            oldest_us: self.oldest_us.min(other.oldest_us),
            newest_us: self.newest_us.max(other.newest_us),
        }
    }
}
