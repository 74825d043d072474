//! A disk in memory that a test can stop at any call, and that then keeps as little as a real one may.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use penstock_native::disk::{Disk, File, Mode};

#[derive(Clone, Default)]
pub struct TestDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    steps: usize,
    stop_at: Option<usize>,
    full: bool,
    names: BTreeMap<String, Content>,
    durable_names: BTreeMap<String, Content>,
    /// Changes of names since the folder was last synced.
    changes: Vec<(String, Option<Content>)>,
}

type Content = Arc<Mutex<Bytes>>;

#[derive(Default)]
struct Bytes {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync.
    writes: Vec<(usize, Vec<u8>)>,
}

/// What a crash leaves of that which was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    Everything,
    Nothing,
    /// Any subset of the writes, whole or torn, and any subset of the changes of names.
    Some(u64),
}

impl TestDisk {
    /// Stop after so many steps. Every call is two: before the first it has done nothing, after it everything, though
    /// the caller is told of a failure. Stopped again, it goes on first, with what was not synced still there.
    pub fn stop_at(&self, step: usize) {
        let mut state = self.state();
        (state.stop_at, state.steps) = (Some(step), 0);
    }

    pub fn steps(&self) -> usize {
        self.state().steps
    }

    /// While full, every write fails.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    pub fn content(&self, path: &str) -> Vec<u8> {
        self.state().names[path].lock().unwrap().current.clone()
    }

    pub fn set_content(&self, path: &str, bytes: Vec<u8>) {
        let content = Bytes { durable: bytes.clone(), current: bytes, writes: Vec::new() };
        let content = Arc::new(Mutex::new(content));
        let mut state = self.state();
        state.names.insert(path.into(), content.clone());
        state.durable_names.insert(path.into(), content);
    }

    pub fn paths(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// The disk after a crash, in new memory.
    pub fn after_crash(&self, left: Left) -> TestDisk {
        let mut random = Random(if let Left::Some(seed) = left { seed } else { 0 });
        let mut keeps = move || match left {
            Left::Everything => 2,
            Left::Nothing => 0,
            Left::Some(_) => random.below(3),
        };
        let state = self.state();
        let mut names = state.durable_names.clone();
        for (path, content) in &state.changes {
            match content {
                _ if keeps() == 0 => None,
                Some(content) => names.insert(path.clone(), content.clone()),
                None => names.remove(path),
            };
        }
        let after = TestDisk::default();
        for (path, content) in names {
            after.set_content(&path, content.lock().unwrap().after_crash(&mut keeps));
        }
        after
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn begin(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.step()?;
        Ok(state)
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        let stopped = self.stop_at.is_some_and(|step| self.steps >= step);
        self.steps += 1;
        if stopped { Err(io::Error::other("the disk has stopped")) } else { Ok(()) }
    }
}

impl Bytes {
    fn after_crash(&self, keeps: &mut impl FnMut() -> u64) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (offset, written) in &self.writes {
            let kept = written.len() * keeps() as usize / 2;
            put(&mut bytes, *offset, &written[..kept]);
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    bytes.resize(bytes.len().max(offset + written.len()), 0);
    bytes[offset..offset + written.len()].copy_from_slice(written);
}

impl Disk for TestDisk {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn File>> {
        let mut state = self.begin()?;
        let content = match (state.names.get(path), mode) {
            (Some(_), Mode::Create) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(content), _) => content.clone(),
            (None, Mode::Read) => return Err(ErrorKind::NotFound.into()),
            (None, _) => {
                let content = Content::default();
                state.names.insert(path.into(), content.clone());
                state.changes.push((path.into(), Some(content.clone())));
                content
            }
        };
        state.step()?;
        Ok(Arc::new(TestFile { disk: self.clone(), content }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        let content = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.into(), content.clone());
        // A journal may hold the two halves in different pages.
        state.changes.push((to.into(), Some(content)));
        state.changes.push((from.into(), None));
        state.step()
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        state.names.remove(path).ok_or(ErrorKind::NotFound)?;
        state.changes.push((path.into(), None));
        state.step()
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let mut state = self.begin()?;
        state.step()?;
        let prefix = format!("{folder}/");
        let size = |content: &Content| content.lock().unwrap().current.len() as u64;
        let files = state
            .names
            .iter()
            .filter_map(|(path, content)| Some((path.strip_prefix(&prefix)?, size(content))));
        Ok(files.map(|(name, bytes)| (name.to_string(), bytes)).collect())
    }

    fn sync_folder(&self, _folder: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        state.durable_names = state.names.clone();
        state.changes.clear();
        state.step()
    }
}

struct TestFile {
    disk: TestDisk,
    content: Content,
}

impl File for TestFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.disk.begin()?.step()?;
        let bytes = self.content.lock().unwrap();
        let rest = bytes.current.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.begin()?;
        if state.full {
            return Err(ErrorKind::StorageFull.into());
        }
        let mut content = self.content.lock().unwrap();
        put(&mut content.current, offset as usize, bytes);
        content.writes.push((offset as usize, bytes.to_vec()));
        state.step()
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.begin()?;
        let mut content = self.content.lock().unwrap();
        content.durable = content.current.clone();
        content.writes.clear();
        state.step()
    }

    fn allocate(&self, bytes: u64, _piece: &dyn Fn() -> io::Result<usize>) -> io::Result<()> {
        let mut state = self.disk.begin()?;
        let mut content = self.content.lock().unwrap();
        let longer = content.current.len().max(bytes as usize);
        content.current.resize(longer, 0);
        content.durable = content.current.clone();
        content.writes.clear();
        state.step()
    }
}

/// SplitMix64: the same numbers for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
