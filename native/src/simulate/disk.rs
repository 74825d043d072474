//! A disk that a run owns: what was not synced is lost as real disks lose it, and any call can fail.
//!
//! ```text
//! write ──▶ cached ──sync──▶ durable          a process that ends leaves both
//!              │
//!              └─ power loss: of each write since the sync nothing, all, or any of its bytes
//! ```
//!
//! After a failed sync the cache still shows what was written, and no later sync will write it: so Linux does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::chance::Chance;
use crate::disk::{Disk, File, Mode};

const SECTOR_BYTES: usize = 512;

#[derive(Clone)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
    /// No fault strikes who looks on.
    spared: bool,
}

/// What a call does that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// This call and all later ones do nothing: the process has ended.
    Stop,
    /// This call still does its work, and its caller never learns of it.
    StopAfter,
    FailedWrite,
    ShortWrite,
    FailedSync,
    FailedAllocate,
    FailedRead,
}

/// What a power loss leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing that was not synced.
    Everything,
    /// Of the writes any, whole.
    Writes,
    /// Of each write any sectors.
    Sectors,
    /// Of each write any bytes.
    Bytes,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    contents: BTreeMap<u64, Content>,
    next_content: u64,
    space: Option<u64>,
    armed: Option<(Fault, u64)>,
    stopped: bool,
    fired: Option<Fault>,
    /// Segments of the log that retention has removed, as they were.
    archive: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Default)]
struct Content {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync, in order.
    writes: Vec<(usize, Vec<u8>)>,
}

impl SimulatedDisk {
    pub fn new() -> SimulatedDisk {
        SimulatedDisk::of(State::default())
    }

    fn of(state: State) -> SimulatedDisk {
        SimulatedDisk { state: Arc::new(Mutex::new(state)), spared: false }
    }

    /// The same disk for who only looks on.
    pub fn spared(&self) -> SimulatedDisk {
        SimulatedDisk { spared: true, ..self.clone() }
    }

    /// The n-th next call that the fault can strike fails (1 is the next).
    pub fn arm(&self, fault: Fault, nth: u64) {
        self.state().armed = Some((fault, nth));
    }

    /// No fault is to come; the one that struck, if one did.
    pub fn disarm(&self) -> Option<Fault> {
        let mut state = self.state();
        (state.armed, state.stopped) = (None, false);
        state.fired.take()
    }

    /// Whether the process has ended within a call.
    pub fn stopped(&self) -> bool {
        self.state().stopped
    }

    /// The files may have so many bytes together.
    pub fn limit(&self, space: Option<u64>) {
        self.state().space = space;
    }

    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// The disk as it is found when the power is back. Files that were open before are of another machine.
    pub fn lose_power(&self, chance: &mut Chance, loss: Loss) -> SimulatedDisk {
        let state = self.state();
        let mut after = State {
            next_content: state.next_content,
            space: state.space,
            archive: state.archive.clone(),
            ..State::default()
        };
        let names: BTreeSet<&String> = state.names.keys().chain(state.durable_names.keys()).collect();
        for name in names {
            let (now, before) = (state.names.get(name), state.durable_names.get(name));
            let kept = loss != Loss::Everything && chance.percent(50);
            if let Some(&content) = if now == before || kept { now } else { before } {
                after.names.insert(name.clone(), content);
                after.contents.entry(content).or_insert_with(|| state.contents[&content].lose(chance, loss));
            }
        }
        after.durable_names = after.names.clone();
        SimulatedDisk::of(after)
    }

    pub fn paths(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    pub fn contents(&self, path: &str) -> Vec<u8> {
        let state = self.state();
        state.contents[&state.names[path]].cached.clone()
    }

    /// Take bytes out of a file; those behind them move up, and zeros follow.
    pub fn close_up(&self, path: &str, offset: usize, gone: usize) {
        let mut state = self.state();
        let id = state.names[path];
        let content = &mut state.content(id).cached;
        let length = content.len();
        content.drain(offset..offset + gone);
        content.resize(length, 0);
    }

    /// Change a byte where it lies, for every reader and for good.
    pub fn flip(&self, path: &str, offset: usize, mask: u8) {
        let mut state = self.state();
        let id = state.names[path];
        let content = state.content(id);
        content.cached[offset] ^= mask;
        if let Some(byte) = content.durable.get_mut(offset) {
            *byte ^= mask;
        }
        for (start, bytes) in &mut content.writes {
            if let Some(byte) = offset.checked_sub(*start).and_then(|at| bytes.get_mut(at)) {
                *byte ^= mask;
            }
        }
    }

    /// Another disk with the same files, all of them durable.
    pub fn copy(&self) -> SimulatedDisk {
        let state = self.state();
        let mut copy = State::default();
        for (path, id) in &state.names {
            copy.add(path, state.contents[id].cached.clone());
        }
        SimulatedDisk::of(copy)
    }

    /// The whole log from its first commit on, with what retention has removed, and nothing beside it.
    pub fn whole_log(&self) -> SimulatedDisk {
        let state = self.state();
        let mut whole = State::default();
        let now = state.names.iter().filter(|(path, _)| path.starts_with("log/"));
        let now = now.map(|(path, id)| (path.clone(), state.contents[id].cached.clone()));
        for (path, bytes) in state.archive.clone().into_iter().chain(now) {
            whole.add(&path, bytes);
        }
        SimulatedDisk::of(whole)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, and the fault that strikes this call.
    fn begin(&self, call: Call) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.state();
        let struck = if self.spared { None } else { state.begin(call)? };
        Ok((state, struck))
    }
}

/// Which faults can strike a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Write,
    Sync,
    Allocate,
    Read,
    Other,
}

impl Fault {
    fn strikes(self, call: Call) -> bool {
        match self {
            Fault::Stop | Fault::StopAfter => call != Call::Read,
            Fault::FailedWrite | Fault::ShortWrite => call == Call::Write,
            Fault::FailedSync => call == Call::Sync,
            Fault::FailedAllocate => call == Call::Allocate,
            Fault::FailedRead => call == Call::Read,
        }
    }
}

fn failure() -> io::Error {
    io::Error::other("the disk failed")
}

impl State {
    /// Whether this call is struck, and how; an error where the process has ended.
    fn begin(&mut self, call: Call) -> io::Result<Option<Fault>> {
        if self.stopped {
            return Err(failure());
        }
        let Some((fault, nth)) = self.armed.filter(|(fault, _)| fault.strikes(call)) else { return Ok(None) };
        if nth > 1 {
            self.armed = Some((fault, nth - 1));
            return Ok(None);
        }
        self.armed = None;
        self.fired = Some(fault);
        self.stopped = matches!(fault, Fault::Stop | Fault::StopAfter);
        if fault == Fault::Stop { Err(failure()) } else { Ok(Some(fault)) }
    }

    fn new_content(&mut self, content: Content) -> u64 {
        self.next_content += 1;
        self.contents.insert(self.next_content, content);
        self.next_content
    }

    fn add(&mut self, path: &str, bytes: Vec<u8>) {
        let id = self.new_content(Content { cached: bytes.clone(), durable: bytes, writes: Vec::new() });
        self.names.insert(path.into(), id);
        self.durable_names.insert(path.into(), id);
    }

    fn content(&mut self, id: u64) -> &mut Content {
        self.contents.get_mut(&id).expect("contents are kept as long as the disk")
    }

    fn used(&self) -> u64 {
        self.names.values().map(|id| self.contents[id].cached.len() as u64).sum()
    }

    fn write(&mut self, id: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let grows = (offset + bytes.len()).saturating_sub(self.contents[&id].cached.len()) as u64;
        if grows > 0 && self.space.is_some_and(|space| self.used() + grows > space) {
            return Err(ErrorKind::StorageFull.into());
        }
        let content = self.content(id);
        put(&mut content.cached, offset, bytes);
        content.writes.push((offset, bytes.to_vec()));
        Ok(())
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Content {
    fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.writes) {
            put(&mut self.durable, offset, &bytes);
        }
    }

    fn lose(&self, chance: &mut Chance, loss: Loss) -> Content {
        let mut bytes = self.durable.clone();
        for (offset, written) in self.writes.iter().filter(|_| loss != Loss::Everything) {
            let piece = match loss {
                Loss::Sectors => SECTOR_BYTES,
                Loss::Bytes => 1 + chance.below(40),
                Loss::Everything | Loss::Writes => written.len().max(1),
            };
            for (index, part) in written.chunks(piece).enumerate() {
                if chance.percent(50) {
                    put(&mut bytes, offset + index * piece, part);
                }
            }
        }
        Content { cached: bytes.clone(), durable: bytes, writes: Vec::new() }
    }
}

/// A struck call whose work is done: its caller learns of nothing but failure.
fn end(struck: Option<Fault>) -> io::Result<()> {
    if struck.is_some() { Err(failure()) } else { Ok(()) }
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn File>> {
        let (mut state, struck) = self.begin(if mode == Mode::Read { Call::Read } else { Call::Other })?;
        let id = match (state.names.get(path), mode) {
            (Some(_), Mode::Create) => return Err(ErrorKind::AlreadyExists.into()),
            (None, Mode::Read) => return Err(ErrorKind::NotFound.into()),
            (Some(id), _) => *id,
            (None, _) => {
                let id = state.new_content(Content::default());
                state.names.insert(path.into(), id);
                id
            }
        };
        end(struck)?;
        Ok(Arc::new(SimulatedFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut state, struck) = self.begin(Call::Other)?;
        let id = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.into(), id);
        end(struck)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (mut state, struck) = self.begin(Call::Other)?;
        let id = state.names.remove(path).ok_or(ErrorKind::NotFound)?;
        if path.ends_with(".segment") {
            let bytes = state.contents[&id].cached.clone();
            state.archive.insert(path.into(), bytes);
        }
        end(struck)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let (state, struck) = self.begin(Call::Read)?;
        end(struck)?;
        let files = state.names.iter().filter_map(|(path, id)| {
            let (within, name) = path.rsplit_once('/').unwrap_or(("", path));
            (within == folder).then(|| (name.to_string(), state.contents[id].cached.len() as u64))
        });
        Ok(files.collect())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let (mut state, struck) = self.begin(Call::Other)?;
        let within = |path: &String| path.rsplit_once('/').map_or("", |(within, _)| within) == folder;
        let State { names, durable_names, .. } = &mut *state;
        durable_names.retain(|path, _| !within(path));
        durable_names
            .extend(names.iter().filter(|(path, _)| within(path)).map(|(path, id)| (path.clone(), *id)));
        end(struck)
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    id: u64,
}

impl File for SimulatedFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let (state, struck) = self.disk.begin(Call::Read)?;
        end(struck)?;
        let rest = state.contents[&self.id].cached.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut state, struck) = self.disk.begin(Call::Write)?;
        let bytes = match struck {
            Some(Fault::FailedWrite) => &[],
            Some(Fault::ShortWrite) => &bytes[..bytes.len() / 3],
            _ => bytes,
        };
        state.write(self.id, offset as usize, bytes)?;
        end(struck)
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, struck) = self.disk.begin(Call::Sync)?;
        match struck {
            Some(Fault::FailedSync) => state.content(self.id).writes.clear(),
            _ => state.content(self.id).sync(),
        }
        end(struck)
    }

    fn allocate(&self, bytes: u64, _piece: &dyn Fn() -> io::Result<usize>) -> io::Result<()> {
        let (mut state, struck) = self.disk.begin(Call::Allocate)?;
        let mut filled = Ok(());
        while filled.is_ok() && state.content(self.id).cached.len() < bytes as usize {
            let offset = state.content(self.id).cached.len();
            let count = (4 << 10).min(bytes as usize - offset);
            filled = state.write(self.id, offset, &vec![0; count]);
            if struck == Some(Fault::FailedAllocate) {
                break;
            }
        }
        state.content(self.id).sync();
        end(struck).and(filled)
    }
}
