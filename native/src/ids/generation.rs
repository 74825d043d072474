//! A generation: the ids of a range of commits, sorted by hash in a file that never changes.
//!
//! Its filter and its fences are in memory: most new ids cost one cache miss and no read, all others one read.

use std::fmt::Display;
use std::hint::black_box;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crc32c::crc32c_append;

use super::filter::{Filter, LINE_BYTES};
use super::format::{self, BLOCK_BYTES, BLOCK_ENTRIES, Block, Header};
use super::open::unfinished;
use super::{GROUP, Span};
use crate::disk::{Disk, File, LARGE_PIECE, Mode, SMALL_PIECE, is_full};
use crate::error::{Error, Result};

pub const FOLDER: &str = "ids";
const READ_BLOCKS: u64 = (LARGE_PIECE / BLOCK_BYTES) as u64;

pub(super) struct Generation {
    pub(super) span: Span,
    pub(super) ids: u64,
    path: String,
    file: Arc<dyn File>,
    /// The first hash of every block.
    fences: Vec<u64>,
    filter: Filter,
    /// What a block of it was found to be, where one was found damaged.
    damage: OnceLock<String>,
}

pub(super) fn path_of(first: u64, last: u64) -> String {
    format!("{FOLDER}/{first:016x}-{last:016x}.ids")
}

impl Generation {
    /// Open a complete file; its blocks are not read now, but checked whenever they are.
    pub(super) fn open(disk: &dyn Disk, path: &str, bytes: u64) -> Result<Generation> {
        let file = disk
            .open(path, Mode::Read)
            .map_err(|error| Error::io(format!("could not open {path}"), error))?;
        let header = read_header(&*file, path)?;
        if header.file_bytes() != bytes || path_of(header.span.first, header.span.last) != path {
            return Err(Error::damaged(path, 0, "its name or length is not what its header says"));
        }
        let fences = read_fences(&*file, path, &header)?;
        let filter = read_filter(&*file, path, &header)?;
        let (path, damage) = (path.to_string(), OnceLock::new());
        Ok(Generation { span: header.span, ids: header.ids, path, file, fences, filter, damage })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What was found damaged in it since it was opened.
    pub(super) fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// Whether this is the first that is found.
    pub(super) fn note_damage(&self, error: &Error) -> bool {
        self.damage.set(error.to_string()).is_ok()
    }

    /// See `Filter::touch`.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        self.filter.touch(hash)
    }

    #[inline]
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        self.filter.may_hold(hash)
    }

    /// Append the addresses of a hash, newest first.
    pub(super) fn find(&self, hash: u64, found: &mut Vec<u64>) -> Result<()> {
        let before = found.len();
        // The block before the first that begins with this hash can end with it.
        let start = self.fences.partition_point(|fence| *fence < hash).saturating_sub(1);
        let end = self.fences.partition_point(|fence| *fence <= hash);
        let mut block = [0; BLOCK_BYTES];
        for number in start..end {
            self.read_blocks(number as u64, &mut block)?;
            format::find_in_block(&block, hash, found);
        }
        found[before..].reverse();
        Ok(())
    }

    /// Append (position, address) by position, and for each newest first; and the positions that cannot be answered.
    pub(super) fn find_batch(
        &self,
        hashes: &[u64],
        found: &mut Vec<(usize, u64)>,
        unread: &mut Vec<(usize, Error)>,
    ) {
        let mut addresses = Vec::new();
        for (group, start) in hashes.chunks(GROUP).zip((0..).step_by(GROUP)) {
            black_box(group.iter().fold(0, |values, hash| values ^ self.touch(*hash)));
            for (position, hash) in (start..).zip(group).filter(|(_, hash)| self.may_hold(**hash)) {
                match self.find(*hash, &mut addresses) {
                    Ok(()) => found.extend(addresses.drain(..).map(|address| (position, address))),
                    Err(error) => unread.push((position, error)),
                }
                addresses.clear();
            }
        }
    }

    /// Stand at the first entry.
    pub(super) fn cursor(self: &Arc<Generation>) -> Result<Cursor> {
        let generation = self.clone();
        let mut cursor =
            Cursor { generation, next_block: 0, bytes: Vec::new(), entries: Vec::new(), position: 0 };
        cursor.read_piece()?;
        Ok(cursor)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.filter.memory_bytes() + 8 * self.fences.capacity() as u64
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.header(0, 0).file_bytes()
    }

    fn header(&self, fences_crc: u32, filter_crc: u32) -> Header {
        Header { span: self.span, ids: self.ids, lines: self.filter.lines(), fences_crc, filter_crc }
    }

    fn read_blocks(&self, first: u64, bytes: &mut [u8]) -> Result<()> {
        read_exactly(&*self.file, &self.path, format::block_offset(first), bytes)?;
        for (block, number) in bytes.chunks_exact(BLOCK_BYTES).zip(first..) {
            let entries = (self.ids - number * BLOCK_ENTRIES).min(BLOCK_ENTRIES);
            if !format::block_sound(block, self.span, number, entries) {
                let offset = format::block_offset(number);
                return Err(Error::damaged(&self.path, offset, "a block's checksum is wrong"));
            }
        }
        Ok(())
    }
}

/// Reads a generation's entries from front to back, a piece at a time.
pub(super) struct Cursor {
    generation: Arc<Generation>,
    next_block: u64,
    bytes: Vec<u8>,
    entries: Vec<(u64, u64)>,
    position: usize,
}

impl Cursor {
    #[inline]
    pub(super) fn hash(&self) -> u64 {
        self.entry().0
    }

    /// The (hash, address) that it stands at.
    #[inline]
    pub(super) fn entry(&self) -> (u64, u64) {
        self.entries[self.position]
    }

    /// Go to the next entry; false at the end, after which there is no entry.
    #[inline]
    pub(super) fn advance(&mut self) -> Result<bool> {
        self.position += 1;
        if self.position == self.entries.len() {
            self.read_piece()?;
        }
        Ok(!self.entries.is_empty())
    }

    fn read_piece(&mut self) -> Result<()> {
        let blocks = (self.generation.fences.len() as u64 - self.next_block).min(READ_BLOCKS);
        self.bytes.resize(blocks as usize * BLOCK_BYTES, 0);
        self.generation.read_blocks(self.next_block, &mut self.bytes)?;
        self.next_block += blocks;
        self.position = 0;
        self.entries.clear();
        for block in self.bytes.chunks_exact(BLOCK_BYTES) {
            self.entries.extend(format::block_entries(block));
        }
        Ok(())
    }
}

/// Write a generation of so many ids; `fill` pushes them. A failure gives its space back.
pub(super) fn write(
    disk: &dyn Disk,
    span: Span,
    ids: u64,
    fill: impl FnOnce(&mut Writer) -> Result<()>,
) -> Result<Generation> {
    let mut writer = Writer::create(disk, span, ids)?;
    let written = fill(&mut writer).and_then(|()| writer.finish());
    if written.is_err() {
        // The failure is the error to tell; what cannot be removed now is removed at the next start.
        let _ = disk.remove(&unfinished(&path_of(span.first, span.last)));
    }
    written
}

/// Writes a generation under another name, and gives it its own once all of it is durable.
pub(super) struct Writer<'a> {
    disk: &'a dyn Disk,
    path: String,
    span: Span,
    ids: u64,
    pieces: Pieces,
    block: Block,
    fences: Vec<u64>,
    filter: Filter,
}

impl<'a> Writer<'a> {
    /// Begin a generation of so many ids.
    pub(super) fn create(disk: &'a dyn Disk, span: Span, ids: u64) -> Result<Writer<'a>> {
        let path = path_of(span.first, span.last);
        let file = disk.open(&unfinished(&path), Mode::Create).map_err(|error| not_written(&path, error))?;
        let fences = Vec::with_capacity(format::blocks_for(ids) as usize);
        let filter = Filter::for_ids(ids);
        Ok(Writer { disk, path, span, ids, pieces: Pieces::new(file), block: Block::new(), fences, filter })
    }

    /// Add the next entry: by hash, and those of one hash in order of arrival.
    pub(super) fn push(&mut self, hash: u64, address: u64) -> Result<()> {
        if self.block.entries() == 0 {
            self.fences.push(hash);
        }
        self.block.push(hash, address);
        self.filter.insert(hash);
        if self.block.entries() == BLOCK_ENTRIES { self.end_block() } else { Ok(()) }
    }

    pub(super) fn finish(mut self) -> Result<Generation> {
        if self.block.entries() > 0 {
            self.end_block()?;
        }
        let crcs = write_index(&mut self.pieces, &self.fences, &self.filter);
        let (fences_crc, filter_crc) = crcs.map_err(|error| not_written(&self.path, error))?;
        let Writer { disk, path, span, ids, pieces, fences, filter, .. } = self;
        let damage = OnceLock::new();
        let generation = Generation { span, ids, path, file: pieces.file, fences, filter, damage };
        let header = generation.header(fences_crc, filter_crc).to_bytes();
        publish(disk, &generation, &header).map_err(|error| not_written(&generation.path, error))?;
        Ok(generation)
    }

    fn end_block(&mut self) -> Result<()> {
        let bytes = self.block.seal(self.span, self.fences.len() as u64 - 1);
        self.pieces.append(bytes).map_err(|error| not_written(&self.path, error))?;
        self.block.clear();
        Ok(())
    }
}

/// Returns the CRCs of fences and filter.
fn write_index(pieces: &mut Pieces, fences: &[u64], filter: &Filter) -> io::Result<(u32, u32)> {
    let mut crcs = (0, 0);
    for fence in fences {
        crcs.0 = pieces.append_with_crc(&fence.to_le_bytes(), crcs.0)?;
    }
    for line in filter.bytes() {
        crcs.1 = pieces.append_with_crc(&line, crcs.1)?;
    }
    pieces.write_out()?;
    Ok(crcs)
}

fn publish(disk: &dyn Disk, generation: &Generation, header: &[u8]) -> io::Result<()> {
    generation.file.write(0, header)?;
    generation.file.sync()?;
    disk.rename(&unfinished(&generation.path), &generation.path)?;
    // Without it the new name can vanish in a crash, after the files that it replaces are gone.
    disk.sync_folder(FOLDER)
}

/// Collects what is written behind the header into synced pieces.
struct Pieces {
    file: Arc<dyn File>,
    offset: u64,
    bytes: Vec<u8>,
}

impl Pieces {
    fn new(file: Arc<dyn File>) -> Pieces {
        Pieces { file, offset: format::block_offset(0), bytes: Vec::new() }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() >= SMALL_PIECE { self.write_out() } else { Ok(()) }
    }

    /// Returns the CRC continued with these bytes.
    fn append_with_crc(&mut self, bytes: &[u8], crc: u32) -> io::Result<u32> {
        self.append(bytes)?;
        Ok(crc32c_append(crc, bytes))
    }

    fn write_out(&mut self) -> io::Result<()> {
        let began = Instant::now();
        self.file.write(self.offset, &self.bytes)?;
        self.file.sync()?;
        // For as long again the disk is the decisions'. One in memory needs no pause.
        let took = began.elapsed();
        if took > Duration::from_micros(100) {
            thread::sleep(took);
        }
        self.offset += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

fn not_written(path: &str, error: io::Error) -> Error {
    match is_full(&error) {
        true => Error::Full { what: format!("could not write {path}") },
        false => Error::io(format!("could not write {path}"), error),
    }
}

fn read_header(file: &dyn File, path: &str) -> Result<Header> {
    let mut bytes = [0; BLOCK_BYTES];
    read_exactly(file, path, 0, &mut bytes)?;
    Header::from_bytes(&bytes).map_err(|what| Error::damaged(path, 0, what))
}

fn read_fences(file: &dyn File, path: &str, header: &Header) -> Result<Vec<u64>> {
    let (start, end) = (header.fences_offset(), header.filter_offset());
    let mut fences = Vec::with_capacity(header.blocks() as usize);
    let crc = read_section(file, path, start, end, |bytes| {
        fences.extend(bytes.as_chunks().0.iter().map(|fence| u64::from_le_bytes(*fence)));
    })?;
    if crc != header.fences_crc {
        return Err(Error::damaged(path, start, "the checksum of the fences is wrong"));
    }
    Ok(fences)
}

fn read_filter(file: &dyn File, path: &str, header: &Header) -> Result<Filter> {
    let (start, end) = (header.filter_offset(), header.file_bytes());
    let mut filter = Filter::with_capacity((end - start) / LINE_BYTES as u64);
    let crc = read_section(file, path, start, end, |bytes| filter.extend(bytes))?;
    if crc != header.filter_crc {
        return Err(Error::damaged(path, start, "the checksum of the filter is wrong"));
    }
    Ok(filter)
}

/// Hand a part of the file to `take` a piece at a time; returns its CRC.
fn read_section(
    file: &dyn File,
    path: &str,
    start: u64,
    end: u64,
    mut take: impl FnMut(&[u8]),
) -> Result<u32> {
    let mut bytes = vec![0; (end - start).min(LARGE_PIECE as u64) as usize];
    let mut crc = 0;
    for offset in (start..end).step_by(LARGE_PIECE) {
        let piece = &mut bytes[..(end - offset).min(LARGE_PIECE as u64) as usize];
        read_exactly(file, path, offset, piece)?;
        crc = crc32c_append(crc, piece);
        take(piece);
    }
    Ok(crc)
}

/// What the disk cannot give back is damage like any other: the index can be made again from the log.
fn read_exactly(file: &dyn File, path: impl Display, offset: u64, bytes: &mut [u8]) -> Result<()> {
    match file.read(offset, bytes) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(Error::damaged(path.to_string(), offset, "the file ends too early")),
        Err(error) => Err(Error::damaged(path.to_string(), offset, format!("could not be read: {error}"))),
    }
}
