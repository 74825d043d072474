//! The bytes of a generation's file.
//!
//! ```text
//! byte 0         4096                       4096 × (1 + blocks)
//! │ header │ block │ block │ … │ block │ fences │ filter │
//!
//! header   "penstids", version (4), 0 (4), first and last sequence, oldest and newest commit time, ids, filter
//!          lines (8 each), CRC of the fences, CRC of the filter (4 each), zeros; its own CRC in the last four bytes
//! block    CRC (4), entries in it (4), up to 292 entries of 14 bytes: hash (8), address (6); zeros
//! fences   the first hash of every block (8 each)
//! filter   lines (64 each)
//! ```
//! Integers are little-endian, CRCs are CRC-32C. A block's CRC begins with the file's range and the block's number,
//! so that a block which belongs elsewhere does not pass.

use crc32c::{crc32c, crc32c_append};

use super::Span;
use super::filter::LINE_BYTES;

pub(super) const BLOCK_BYTES: usize = 4096;
pub(super) const BLOCK_ENTRIES: u64 = 292;
const BLOCK_HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 14;
const MAGIC: &[u8; 8] = b"penstids";
const VERSION: u32 = 1;
/// No file has more ids or lines of a filter, and no log more commits, so that lengths and places can be reckoned.
const MOST: u64 = 1 << 48;

pub(super) struct Header {
    pub(super) span: Span,
    pub(super) ids: u64,
    pub(super) lines: u64,
    pub(super) fences_crc: u32,
    pub(super) filter_crc: u32,
}

impl Header {
    pub(super) fn to_bytes(&self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        put(&mut bytes, 8, VERSION.to_le_bytes());
        put(&mut bytes, 16, self.span.first.to_le_bytes());
        put(&mut bytes, 24, self.span.last.to_le_bytes());
        put(&mut bytes, 32, self.span.oldest_us.to_le_bytes());
        put(&mut bytes, 40, self.span.newest_us.to_le_bytes());
        put(&mut bytes, 48, self.ids.to_le_bytes());
        put(&mut bytes, 56, self.lines.to_le_bytes());
        put(&mut bytes, 64, self.fences_crc.to_le_bytes());
        put(&mut bytes, 68, self.filter_crc.to_le_bytes());
        let crc = crc32c(&bytes[..BLOCK_BYTES - 4]);
        put(&mut bytes, BLOCK_BYTES - 4, crc.to_le_bytes());
        bytes
    }

    /// An error says in words what is wrong with the bytes.
    pub(super) fn from_bytes(bytes: &[u8; BLOCK_BYTES]) -> Result<Header, &'static str> {
        if take(bytes, BLOCK_BYTES - 4) != crc32c(&bytes[..BLOCK_BYTES - 4]).to_le_bytes() {
            return Err("the header's checksum is wrong");
        }
        if bytes[..8] != *MAGIC || take(bytes, 8) != VERSION.to_le_bytes() {
            return Err("the header is not one that this release reads");
        }
        let span = Span {
            first: u64::from_le_bytes(take(bytes, 16)),
            last: u64::from_le_bytes(take(bytes, 24)),
            oldest_us: i64::from_le_bytes(take(bytes, 32)),
            newest_us: i64::from_le_bytes(take(bytes, 40)),
        };
        let (ids, lines) = (u64::from_le_bytes(take(bytes, 48)), u64::from_le_bytes(take(bytes, 56)));
        if span.first > span.last || ids.min(lines) == 0 || span.last.max(ids).max(lines) > MOST {
            return Err("the header tells of what no file can hold");
        }
        Ok(Header {
            span,
            ids,
            lines,
            fences_crc: u32::from_le_bytes(take(bytes, 64)),
            filter_crc: u32::from_le_bytes(take(bytes, 68)),
        })
    }

    pub(super) fn blocks(&self) -> u64 {
        blocks_for(self.ids)
    }

    pub(super) fn fences_offset(&self) -> u64 {
        block_offset(self.blocks())
    }

    pub(super) fn filter_offset(&self) -> u64 {
        self.fences_offset() + 8 * self.blocks()
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.filter_offset() + LINE_BYTES as u64 * self.lines
    }
}

pub(super) fn blocks_for(ids: u64) -> u64 {
    ids.div_ceil(BLOCK_ENTRIES)
}

pub(super) fn block_offset(number: u64) -> u64 {
    (1 + number) * BLOCK_BYTES as u64
}

/// A block of at most 292 entries that grows until it is sealed.
pub(super) struct Block {
    bytes: Vec<u8>,
}

impl Block {
    pub(super) fn new() -> Block {
        let mut bytes = Vec::with_capacity(BLOCK_BYTES);
        bytes.resize(BLOCK_HEADER_BYTES, 0);
        Block { bytes }
    }

    pub(super) fn push(&mut self, hash: u64, address: u64) {
        self.bytes.extend(hash.to_le_bytes());
        self.bytes.extend(&address.to_le_bytes()[..6]);
    }

    pub(super) fn entries(&self) -> u64 {
        ((self.bytes.len() - BLOCK_HEADER_BYTES) / ENTRY_BYTES) as u64
    }

    /// The bytes as they are written, with their CRC.
    pub(super) fn seal(&mut self, span: Span, number: u64) -> &[u8] {
        let entries = self.entries() as u32;
        self.bytes.resize(BLOCK_BYTES, 0);
        put(&mut self.bytes, 4, entries.to_le_bytes());
        let crc = block_crc(span, number, &self.bytes);
        put(&mut self.bytes, 0, crc.to_le_bytes());
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.truncate(BLOCK_HEADER_BYTES);
    }
}

/// Are these the bytes of that block, with so many entries?
pub(super) fn block_sound(block: &[u8], span: Span, number: u64, entries: u64) -> bool {
    take(block, 0) == block_crc(span, number, block).to_le_bytes()
        && take(block, 4) == (entries as u32).to_le_bytes()
}

/// The entries of a block by hash, each (hash, address).
pub(super) fn block_entries(block: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    packed_entries(block).iter().map(unpack)
}

/// Append the addresses of a hash in the block's order.
pub(super) fn find_in_block(block: &[u8], hash: u64, found: &mut Vec<u64>) {
    let entries = packed_entries(block);
    let start = entries.partition_point(|entry| unpack(entry).0 < hash);
    let same = entries[start..].iter().map(unpack).take_while(|(other, _)| *other == hash);
    found.extend(same.map(|(_, address)| address));
}

fn packed_entries(block: &[u8]) -> &[[u8; ENTRY_BYTES]] {
    let count = u32::from_le_bytes(take(block, 4)) as usize;
    &block[BLOCK_HEADER_BYTES..].as_chunks().0[..count]
}

fn unpack(entry: &[u8; ENTRY_BYTES]) -> (u64, u64) {
    // The address's bytes and the two before them, which are the hash's last.
    (u64::from_le_bytes(take(entry, 0)), u64::from_le_bytes(take(entry, 6)) >> 16)
}

fn block_crc(span: Span, number: u64, block: &[u8]) -> u32 {
    let place = [span.first, span.last, number];
    let crc = place.iter().fold(0, |crc, value| crc32c_append(crc, &value.to_le_bytes()));
    crc32c_append(crc, &block[4..])
}

fn put<const N: usize>(bytes: &mut [u8], position: usize, value: [u8; N]) {
    bytes[position..position + N].copy_from_slice(&value);
}

fn take<const N: usize>(bytes: &[u8], position: usize) -> [u8; N] {
    *bytes[position..].first_chunk().expect("the layout is within the block")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { first: 3, last: 9, oldest_us: -5, newest_us: 7 };

    #[test]
    fn a_header_reads_as_it_was_written() {
        let header = Header { span: SPAN, ids: 293, lines: 10, fences_crc: 1, filter_crc: 2 };
        let copy = Header::from_bytes(&header.to_bytes()).unwrap();
        assert_eq!((copy.span, copy.ids, copy.lines), (SPAN, 293, 10));
        assert_eq!((copy.fences_crc, copy.filter_crc), (1, 2));
        assert_eq!(copy.file_bytes(), 4096 * 3 + 8 * 2 + 64 * 10);
    }

    #[test]
    fn a_header_of_what_no_file_can_hold_is_refused() {
        let backwards = Span { first: 9, last: 3, ..SPAN };
        let endless = Span { last: u64::MAX, ..SPAN };
        let cases = [
            (SPAN, u64::MAX, 1),
            (SPAN, 1, u64::MAX),
            (SPAN, 0, 1),
            (SPAN, 1, 0),
            (backwards, 1, 1),
            (endless, 1, 1),
        ];
        for (span, ids, lines) in cases {
            let header = Header { span, ids, lines, fences_crc: 1, filter_crc: 2 };
            let error = Header::from_bytes(&header.to_bytes()).err();
            assert_eq!(error, Some("the header tells of what no file can hold"));
        }
    }

    #[test]
    fn a_block_reads_as_it_was_written_and_only_in_its_place() {
        let mut block = Block::new();
        let entries = [(1, 2), (u64::MAX, (1 << 48) - 1), (u64::MAX, 0)];
        entries.iter().for_each(|(hash, address)| block.push(*hash, *address));
        let bytes = block.seal(SPAN, 4).to_vec();
        assert!(block_entries(&bytes).eq(entries));
        assert!(block_sound(&bytes, SPAN, 4, 3));
        assert!(!block_sound(&bytes, SPAN, 5, 3));
        assert!(!block_sound(&bytes, Span { last: 8, ..SPAN }, 4, 3));
        assert!(!block_sound(&bytes, SPAN, 4, 2));
    }
}
