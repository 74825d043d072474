//! A disk in memory that a test owns: it loses what was not synced, fails when told to, and can be full.
//!
//! A power loss keeps, of what was written and not synced, any 512-byte sectors; and of names given, changed and removed
//! since their folder was synced, any. That is more than real file systems lose, so what survives it survives those.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, File, Mode};

const SECTOR_BYTES: usize = 512;
const ALLOCATE_BYTES: usize = 64 << 10;

#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

/// The nine calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Open,
    Read,
    Write,
    Sync,
    Allocate,
    Rename,
    Remove,
    List,
    SyncFolder,
}

/// What a power loss leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// As when only the process ends.
    KeepAll,
    DropAll,
    /// Each sector and each name by the seed.
    Random,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, u64>,
    names_durable: BTreeMap<String, u64>,
    contents: BTreeMap<u64, Content>,
    calls: BTreeMap<Call, u64>,
    failures: Vec<(Call, u64, io::ErrorKind)>,
    space: Option<u64>,
    next_content: u64,
}

#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// The sectors written since the last sync.
    dirty: BTreeSet<usize>,
}

impl MemoryDisk {
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// The n-th next call of a kind fails (1 is the next). A write that fails has written its first half; what a failed
    /// sync was for is never written, as on a disk whose system drops the pages.
    pub fn fail(&self, call: Call, nth: u64, kind: io::ErrorKind) {
        let mut state = self.lock();
        let at = state.calls.get(&call).unwrap_or(&0) + nth;
        state.failures.push((call, at, kind));
    }

    /// How many calls of a kind there were.
    pub fn calls(&self, call: Call) -> u64 {
        *self.lock().calls.get(&call).unwrap_or(&0)
    }

    /// The files may have so many bytes together; `None` is without limit.
    pub fn limit(&self, space: Option<u64>) {
        self.lock().space = space;
    }

    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// The disk as it is found after a power loss. This one stays as it is.
    pub fn crash(&self, seed: u64, crash: Crash) -> MemoryDisk {
        let state = self.lock();
        let mut chance = Chance { state: seed, crash };
        let mut after = State { next_content: state.next_content, space: state.space, ..State::default() };
        let names: BTreeSet<&String> = state.names.keys().chain(state.names_durable.keys()).collect();
        for name in names {
            let (now, before) = (state.names.get(name), state.names_durable.get(name));
            let found = if now == before || chance.keeps() { now } else { before };
            if let Some(content) = found {
                after.names.insert(name.clone(), *content);
            }
        }
        after.names_durable = after.names.clone();
        for (id, content) in &state.contents {
            let bytes = content.survives(&mut chance);
            after.contents.insert(*id, Content { durable: bytes.clone(), bytes, dirty: BTreeSet::new() });
        }
        MemoryDisk { state: Arc::new(Mutex::new(after)) }
    }

    /// A file's bytes as a reader sees them.
    pub fn contents(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        Some(state.contents[state.names.get(path)?].bytes.clone())
    }

    /// Replace a file, durably: how a test damages one, or copies one from another disk.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut state = self.lock();
        let id = state.new_content();
        let content = Content { bytes: bytes.into(), durable: bytes.into(), dirty: BTreeSet::new() };
        state.contents.insert(id, content);
        state.names.insert(path.into(), id);
        state.names_durable.insert(path.into(), id);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        state.count(call)?;
        Ok(state)
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn File>> {
        let mut state = self.call(Call::Open)?;
        let id = match (state.names.get(path), mode) {
            (Some(_), Mode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Mode::Read) => return Err(io::ErrorKind::NotFound.into()),
            (Some(id), _) => *id,
            (None, _) => {
                let id = state.new_content();
                state.names.insert(path.into(), id);
                id
            }
        };
        Ok(Arc::new(MemoryFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.call(Call::Rename)?;
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), id);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.call(Call::Remove)?;
        state.names.remove(path).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let state = self.call(Call::List)?;
        let files = state.names.iter().filter_map(|(path, id)| {
            let (within, name) = path.rsplit_once('/').unwrap_or(("", path));
            (within == folder).then(|| (name.to_string(), state.contents[id].bytes.len() as u64))
        });
        Ok(files.collect())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.call(Call::SyncFolder)?;
        let within = |path: &String| path.rsplit_once('/').map_or("", |(within, _)| within) == folder;
        let State { names, names_durable, .. } = &mut *state;
        names_durable.retain(|path, _| !within(path));
        names_durable
            .extend(names.iter().filter(|(path, _)| within(path)).map(|(path, id)| (path.clone(), *id)));
        Ok(())
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    id: u64,
}

impl File for MemoryFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.call(Call::Read)?;
        let bytes = &state.contents[&self.id].bytes;
        let start = bytes.len().min(offset as usize);
        let count = buffer.len().min(bytes.len() - start);
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let called = state.count(Call::Write);
        let bytes = if called.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        state.write(self.id, offset as usize, bytes)?;
        called
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let called = state.count(Call::Sync);
        state.content(self.id).sync(called.is_ok());
        called
    }

    fn allocate(&self, bytes: u64, _piece: &dyn Fn() -> io::Result<usize>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let called = state.count(Call::Allocate);
        let before = state.content(self.id).bytes.len();
        let mut filled = Ok(());
        while called.is_ok() && filled.is_ok() && state.content(self.id).bytes.len() < bytes as usize {
            let offset = state.content(self.id).bytes.len();
            let count = ALLOCATE_BYTES.min(bytes as usize - offset);
            filled = state.write(self.id, offset, &vec![0; count]);
        }
        if filled.is_err() {
            state.content(self.id).bytes.truncate(before);
        }
        state.content(self.id).sync(called.is_ok());
        called.and(filled)
    }
}

impl State {
    fn count(&mut self, call: Call) -> io::Result<()> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        let failure = self.failures.iter().find(|(failing, at, _)| *failing == call && at == count);
        failure.map_or(Ok(()), |(_, _, kind)| Err((*kind).into()))
    }

    fn new_content(&mut self) -> u64 {
        self.next_content += 1;
        self.contents.insert(self.next_content, Content::default());
        self.next_content
    }

    fn content(&mut self, id: u64) -> &mut Content {
        self.contents.get_mut(&id).expect("contents are kept as long as the disk")
    }

    fn used(&self) -> u64 {
        let contents: BTreeSet<u64> = self.names.values().copied().collect();
        contents.iter().map(|id| self.contents[id].bytes.len() as u64).sum()
    }

    fn write(&mut self, id: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len();
        let grows = end.saturating_sub(self.contents[&id].bytes.len()) as u64;
        if grows > 0 && self.space.is_some_and(|space| self.used() + grows > space) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let content = self.content(id);
        content.bytes.resize(content.bytes.len().max(end), 0);
        content.bytes[offset..end].copy_from_slice(bytes);
        content.dirty.extend(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
        Ok(())
    }
}

impl Content {
    fn sync(&mut self, succeeds: bool) {
        let dirty = std::mem::take(&mut self.dirty);
        if succeeds {
            self.durable.resize(self.bytes.len(), 0);
            dirty.into_iter().for_each(|sector| copy_sector(&self.bytes, &mut self.durable, sector));
        }
    }

    fn survives(&self, chance: &mut Chance) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        if chance.keeps() {
            bytes.resize(self.bytes.len(), 0);
        }
        for sector in &self.dirty {
            if chance.keeps() {
                copy_sector(&self.bytes, &mut bytes, *sector);
            }
        }
        bytes
    }
}

/// As far as the file reaches.
fn copy_sector(from: &[u8], to: &mut [u8], sector: usize) {
    let start = sector * SECTOR_BYTES;
    let end = (start + SECTOR_BYTES).min(from.len()).min(to.len());
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

struct Chance {
    state: u64,
    crash: Crash,
}

impl Chance {
    fn keeps(&mut self) -> bool {
        match self.crash {
            Crash::KeepAll => true,
            Crash::DropAll => false,
            Crash::Random => self.next() & 1 == 0,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
