//! The engine's state as of one commit, in a file: start is the newest snapshot and the log's tail.
//!
//! ```text
//! snapshots/<sequence>.snapshot = magic ─ length ─ header (JSON) ─ its CRC-32C ─ each store, length first ─ magic again
//! ```
//!
//! The stores carry checksums of their own. A file gets its name only once it is whole and durable.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, File, Mode, SMALL_PIECE};
use crate::error::{Error, Result};
use crate::log::Position;
use crate::windows::{Store, StorePlan, check_saved};

const FOLDER: &str = "snapshots";
const MAGIC: &[u8; 8] = b"PENSNAP1";
const DRAFT: &str = "draft";
const WRONG_END: &str = "it does not end as a snapshot does";
/// So many that were read back whole are kept, and the log is not cut before there are so many: one may still be lost.
pub const KEPT: usize = 2;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The state holds every commit before this place in the log.
    pub position: Position,
    pub sequence: u64,
    /// Of the pipeline that the state is of (`follower::fingerprint`); without one in snapshots of earlier versions.
    #[serde(default)]
    pub fingerprint: Option<String>,
    pub topics: Vec<TopicTime>,
    pub stores: Vec<StoredStore>,
    /// Events that wait for their decision: policy, offset, and the address of their commit.
    pub undecided: Vec<(String, i64, u64)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TopicTime {
    pub name: String,
    pub newest: Option<i64>,
}

/// What identifies a store from one start to the next: never its place or a feature's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredStore {
    pub source: String,
    pub key: Vec<String>,
    /// Effective times depend on it.
    pub lateness_us: i64,
    pub plan: StorePlan,
}

impl StoredStore {
    /// Whether it remembers the same events; which of their values, and for what windows, may differ.
    pub fn same_events(&self, other: &StoredStore) -> bool {
        let of = |store: &StoredStore| (store.lateness_us, store.plan.endless_delay());
        (&self.source, &self.key, &self.plan.key) == (&other.source, &other.key, &other.plan.key)
            && of(self) == of(other)
    }
}

/// A snapshot that has been opened, its stores not yet read.
pub struct Snapshot {
    pub header: Header,
    pub path: String,
    file: Arc<dyn File>,
    /// Where the next store begins, its length first.
    next: u64,
}

/// A store's bytes in a snapshot.
#[derive(Clone, Copy)]
pub struct Place {
    offset: u64,
    length: u64,
}

/// The sequences of the snapshots that are there, oldest first.
pub fn list(disk: &dyn Disk) -> Result<Vec<u64>> {
    let files = disk.list(FOLDER).map_err(|error| Error::io("could not list the snapshots", error))?;
    let mut sequences: Vec<u64> = files
        .iter()
        .filter_map(|(name, _)| {
            let sequence = u64::from_str_radix(name.strip_suffix(".snapshot")?, 16).ok()?;
            // What is named otherwise is somebody else's.
            (format!("{FOLDER}/{name}") == path(sequence)).then_some(sequence)
        })
        .collect();
    sequences.sort_unstable();
    Ok(sequences)
}

/// The newest: the commit that it is as of, and its path.
pub fn newest_file(disk: &dyn Disk) -> Result<Option<(u64, String)>> {
    Ok(list(disk)?.last().map(|&sequence| (sequence, path(sequence))))
}

pub fn open(disk: &Arc<dyn Disk>, sequence: u64) -> Result<Snapshot> {
    open_file(disk, path(sequence))
}

fn open_file(disk: &Arc<dyn Disk>, path: String) -> Result<Snapshot> {
    let file =
        disk.open(&path, Mode::Read).map_err(|error| Error::io(format!("could not open {path}"), error))?;
    let mut input = FileInput { file, offset: 0 };
    let damaged = |what: &str| Error::damaged(&path, 0, what);
    let unread = |error| unreadable(&path, 0, error, "it ends within its header");
    let mut start = [0; 12];
    input.read_exact(&mut start).map_err(unread)?;
    let length = u32::from_le_bytes(start[8..].try_into().expect("four bytes")) as usize;
    if &start[..8] != MAGIC || length > 1 << 30 {
        return Err(damaged("it does not begin as a snapshot does"));
    }
    let mut text = vec![0; length + 4];
    input.read_exact(&mut text).map_err(unread)?;
    let crc = u32::from_le_bytes(text[length..].try_into().expect("four bytes"));
    if crc32c::crc32c(&text[..length]) != crc {
        return Err(damaged("its header's checksum does not fit"));
    }
    let header = serde_json::from_slice(&text[..length]).map_err(|_| damaged("its header cannot be read"))?;
    Ok(Snapshot { header, path, file: input.file, next: input.offset })
}

fn unreadable(path: &str, offset: u64, error: io::Error, ended: &str) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::damaged(path, offset, ended),
        _ => Error::io(format!("could not read {path}"), error),
    }
}

/// Read all of a snapshot, as a start under the pipeline that it was written for would.
pub fn verify(disk: &Arc<dyn Disk>, sequence: u64) -> Result<Header> {
    let mut snapshot = open(disk, sequence)?;
    for stored in snapshot.header.stores.clone() {
        let place = snapshot.next_store()?;
        let loaded = Store::load(stored.plan, &mut snapshot.read(place));
        loaded.map_err(|error| snapshot.named(error))?;
    }
    snapshot.check_end()?;
    Ok(snapshot.header)
}

/// Read all of a snapshot and compare its checksums. Memory holds a piece of it at a time.
fn check(disk: &Arc<dyn Disk>, path: String) -> Result<()> {
    let mut snapshot = open_file(disk, path)?;
    for _ in 0..snapshot.header.stores.len() {
        let place = snapshot.next_store()?;
        let checked = check_saved(&mut snapshot.read(place), place.length);
        checked.map_err(|error| snapshot.named(error))?;
    }
    snapshot.check_end()
}

impl Snapshot {
    /// After the last store.
    fn check_end(&self) -> Result<()> {
        let mut end = [0; MAGIC.len()];
        let read = FileInput { file: self.file.clone(), offset: self.next }.read_exact(&mut end);
        read.map_err(|error| unreadable(&self.path, self.next, error, WRONG_END))?;
        if &end == MAGIC { Ok(()) } else { Err(Error::damaged(&self.path, self.next, WRONG_END)) }
    }

    /// Of a store in it: the error with its own name.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::Damaged { what, .. } => Error::damaged(&self.path, 0, what),
            Error::Io { source, .. } => Error::io(format!("could not read {}", self.path), source),
            other => Error::damaged(&self.path, 0, other.to_string()),
        }
    }

    /// Where the next store is, in the order of the header's stores.
    pub fn next_store(&mut self) -> Result<Place> {
        let mut length = [0; 8];
        let mut input = FileInput { file: self.file.clone(), offset: self.next };
        let read = input.read_exact(&mut length);
        read.map_err(|error| unreadable(&self.path, input.offset, error, "it ends within a store"))?;
        let place = Place { offset: input.offset, length: u64::from_le_bytes(length) };
        self.next = place.offset.saturating_add(place.length);
        Ok(place)
    }

    /// A store's bytes, from the first one on. It is read as it is needed: memory never holds it twice.
    pub fn read(&self, place: Place) -> impl io::Read + use<> {
        let file = FileInput { file: self.file.clone(), offset: place.offset };
        io::BufReader::with_capacity(SMALL_PIECE, file).take(place.length)
    }
}

/// The bytes of the next piece, asked for when one has been written and synced, and answered after any pause. Its error
/// ends the snapshot.
pub type Piece<'a> = &'a mut dyn FnMut() -> io::Result<usize>;

/// Write a snapshot, and read it back before it has its name; `save` writes each store in turn. Older ones are removed
/// where two newer ones are sound: `sound` remembers what was read back, so that each is read once.
pub fn write(
    disk: &Arc<dyn Disk>,
    header: &Header,
    sound: &mut BTreeSet<u64>,
    piece: Piece,
    save: impl FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    // A snapshotter that outlived its gate may still write one of its own.
    let draft = format!("{FOLDER}/{DRAFT}{}", std::process::id());
    let written = write_draft(disk, &draft, header, piece, save).and_then(|()| check(disk, draft.clone()));
    if let Err(error) = written {
        // What is of no use must not keep a full disk full.
        _ = disk.remove(&draft);
        return Err(error);
    }
    let path = path(header.sequence);
    let failed = |error| Error::io(format!("could not write {path}"), error);
    disk.rename(&draft, &path).map_err(failed)?;
    disk.sync_folder(FOLDER).map_err(failed)?;
    sound.insert(header.sequence);
    remove_old(disk, sound)
}

fn write_draft(
    disk: &Arc<dyn Disk>,
    draft: &str,
    header: &Header,
    piece: Piece,
    mut save: impl FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let failed = |error| Error::io(format!("could not write {draft}"), error);
    let file = disk.open(draft, Mode::Write).map_err(failed)?;
    let mut output = Output { file, offset: 0, bytes: Vec::new(), piece, limit: SMALL_PIECE };
    let text = serde_json::to_vec(header).expect("a header is plain data");
    let mut start = MAGIC.to_vec();
    start.extend_from_slice(&(text.len() as u32).to_le_bytes());
    start.extend_from_slice(&text);
    start.extend_from_slice(&crc32c::crc32c(&text).to_le_bytes());
    output.write_all(&start).map_err(failed)?;
    let mut lengths = Vec::new();
    for index in 0..header.stores.len() {
        let begin = output.end();
        output.write_all(&[0; 8]).map_err(failed)?;
        save(index, &mut output)?;
        lengths.push((begin, output.end() - begin - 8));
    }
    output.write_all(MAGIC).map_err(failed)?;
    output.flush().map_err(failed)?;
    // A store's length is known when it has been written.
    let put = |(begin, length): (u64, u64)| output.file.write(begin, &length.to_le_bytes());
    lengths.into_iter().try_for_each(put).and_then(|()| output.file.sync()).map_err(failed)
}

/// Remove what snapshotters left half written. One that still writes finds its draft gone, and publishes nothing.
pub fn remove_drafts(disk: &dyn Disk) -> Result<()> {
    let names = disk.list(FOLDER).map_err(|error| Error::io("could not list the snapshots", error))?;
    for (name, _) in names.iter().filter(|(name, _)| name.starts_with(DRAFT)) {
        let removed = disk.remove(&format!("{FOLDER}/{name}"));
        removed.map_err(|error| Error::io("could not remove a draft of a snapshot", error))?;
    }
    Ok(())
}

fn remove_old(disk: &Arc<dyn Disk>, sound: &mut BTreeSet<u64>) -> Result<()> {
    let mut kept = 0;
    for sequence in list(disk.as_ref())?.into_iter().rev() {
        if kept == KEPT {
            // For good: it must not come back after a power loss, when those that a start had to do with are gone.
            let removed = disk.remove(&path(sequence)).and_then(|()| disk.sync_folder(FOLDER));
            removed.map_err(|error| Error::io("could not remove an old snapshot", error))?;
            sound.remove(&sequence);
        } else if sound.contains(&sequence) || check(disk, path(sequence)).is_ok() {
            sound.insert(sequence);
            kept += 1;
        }
    }
    Ok(())
}

fn path(sequence: u64) -> String {
    format!("{FOLDER}/{sequence:016x}.snapshot")
}

struct FileInput {
    file: Arc<dyn File>,
    offset: u64,
}

impl io::Read for FileInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(self.offset, buffer)?;
        self.offset += count as u64;
        Ok(count)
    }
}

struct Output<'a> {
    file: Arc<dyn File>,
    offset: u64,
    /// Not yet written: less than a piece.
    bytes: Vec<u8>,
    limit: usize,
    piece: Piece<'a>,
}

impl Output<'_> {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.limit - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..count]);
        if self.bytes.len() == self.limit {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write(self.offset, &self.bytes)?;
        self.file.sync()?;
        self.offset += self.bytes.len() as u64;
        self.bytes.clear();
        self.limit = (self.piece)()?;
        Ok(())
    }
}
