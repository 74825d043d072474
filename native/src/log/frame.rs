//! One commit as bytes: a header of 52 bytes, a payload, zeros up to a multiple of 8.
//!
//! ```text
//!  0 magic u32        4 checksum u32     8 payload bytes u32    12 payload bytes before compression u32
//! 16 sequence u64    24 durable u64     32 time µs i64
//! 40 previous u32    44 epoch u32       48 flags u16            50 sections u16        52 payload
//! ```
//!
//! The checksum (CRC-32C) covers all that follows it and begins with the segment's salt, so that bytes of another
//! segment or of another life of this one never look valid. `previous` is the checksum of the commit before: a chain,
//! in which a lost middle shows. `durable` is the last sequence that was known to be on disk when the frame was
//! written: what makes a missing commit's loss provable.

use arrow_buffer::Buffer;
use lz4_flex::block;

use super::columns::Decoded;
use crate::error::{Error, Result};

pub(super) const HEADER_BYTES: usize = 52;
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"pcmt");
/// The checksum covers what follows it.
const COVERED_FROM: usize = 8;
const PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// A byte of LZ4 stands for no more: memory is made for what a frame says that it grows to.
const LZ4_RATIO_MAX: usize = 255;

pub(super) const COMPRESSED: u16 = 1;
/// The payload is the whole catalog: the first frame of a segment.
pub(super) const CATALOG: u16 = 2;
/// The payload begins with what this commit changes in the catalog.
pub(super) const CHANGES: u16 = 4;
/// A writer opened the log: its epoch begins.
pub(super) const EPOCH: u16 = 8;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    pub checksum: u32,
    pub bytes: u32,
    pub bytes_before: u32,
    pub sequence: u64,
    pub durable: u64,
    pub time_us: i64,
    pub previous: u32,
    pub epoch: u32,
    pub flags: u16,
    pub sections: u16,
}

impl Header {
    /// The header that the bytes begin with, if they look like one at all.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        (u32_at(bytes, 0) == MAGIC).then(|| Header {
            checksum: u32_at(bytes, 4),
            bytes: u32_at(bytes, 8),
            bytes_before: u32_at(bytes, 12),
            sequence: u64_at(bytes, 16),
            durable: u64_at(bytes, 24),
            time_us: u64_at(bytes, 32) as i64,
            previous: u32_at(bytes, 40),
            epoch: u32_at(bytes, 44),
            flags: u16_at(bytes, 48),
            sections: u16_at(bytes, 50),
        })
    }

    /// The bytes of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        frame_bytes(self.bytes as usize)
    }

    fn write(&self, frame: &mut [u8]) {
        frame[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        frame[4..8].copy_from_slice(&self.checksum.to_le_bytes());
        frame[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        frame[12..16].copy_from_slice(&self.bytes_before.to_le_bytes());
        frame[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        frame[24..32].copy_from_slice(&self.durable.to_le_bytes());
        frame[32..40].copy_from_slice(&self.time_us.to_le_bytes());
        frame[40..44].copy_from_slice(&self.previous.to_le_bytes());
        frame[44..48].copy_from_slice(&self.epoch.to_le_bytes());
        frame[48..50].copy_from_slice(&self.flags.to_le_bytes());
        frame[50..52].copy_from_slice(&self.sections.to_le_bytes());
    }
}

pub(super) fn frame_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(8)
}

pub(super) fn checksum(frame: &[u8], salt: u32) -> u32 {
    crc32c::crc32c_append(salt, &frame[COVERED_FROM..])
}

/// The frame being written: room for the header, then the payload. Kept from commit to commit for its memory.
#[derive(Default)]
pub(super) struct Draft {
    frame: Vec<u8>,
    spare: Vec<u8>,
    bytes_before: u32,
    compressed: bool,
}

impl Draft {
    /// Begin a frame; the payload is to be appended to what this returns.
    pub fn begin(&mut self) -> &mut Vec<u8> {
        self.frame.clear();
        self.frame.resize(HEADER_BYTES, 0);
        &mut self.frame
    }

    /// Finish the payload: compress it as a whole where it is large and that saves a tenth.
    pub fn finish(&mut self, compress_above: usize) -> Result<()> {
        let payload = &self.frame[HEADER_BYTES..];
        if payload.len() > PAYLOAD_BYTES_MAX {
            let what = format!("a commit of {} bytes is too large", payload.len());
            return Err(Error::invalid_with(what, "append fewer rows at a time"));
        }
        self.bytes_before = payload.len() as u32;
        self.compressed = payload.len() > compress_above && compress(payload, &mut self.spare);
        if self.compressed {
            std::mem::swap(&mut self.frame, &mut self.spare);
        }
        Ok(())
    }

    pub fn frame_bytes(&self) -> usize {
        self.frame.len().next_multiple_of(8)
    }

    /// The frame, once it is sealed.
    pub fn bytes(&self) -> &[u8] {
        &self.frame
    }

    /// Fill in the header; returns the whole frame, and its checksum.
    pub fn seal(&mut self, header: Header, salt: u32) -> (&[u8], u32) {
        let bytes = (self.frame.len() - HEADER_BYTES) as u32;
        let flags = header.flags | if self.compressed { COMPRESSED } else { 0 };
        let header = Header { bytes, bytes_before: self.bytes_before, flags, ..header };
        self.frame.resize(self.frame.len().next_multiple_of(8), 0);
        header.write(&mut self.frame);
        let checksum = checksum(&self.frame, salt);
        self.frame[4..8].copy_from_slice(&checksum.to_le_bytes());
        (&self.frame, checksum)
    }
}

fn compress(payload: &[u8], out: &mut Vec<u8>) -> bool {
    out.resize(HEADER_BYTES + block::get_maximum_output_size(payload.len()), 0);
    let Ok(bytes) = block::compress_into(payload, &mut out[HEADER_BYTES..]) else { return false };
    out.truncate(HEADER_BYTES + bytes);
    bytes <= payload.len() - payload.len() / 10
}

/// The payload of a frame whose checksum is right, as it was before compression.
pub(super) fn payload(header: &Header, frame: &Buffer) -> Decoded<Buffer> {
    let stored = frame.slice_with_length(HEADER_BYTES, header.bytes as usize);
    if header.flags & COMPRESSED == 0 {
        return Ok(stored);
    }
    if header.bytes_before as usize > stored.len().saturating_mul(LZ4_RATIO_MAX) {
        return Err("the commit says that it grows more than compressed bytes can".into());
    }
    let mut payload = vec![0; header.bytes_before as usize];
    match block::decompress_into(&stored, &mut payload) {
        Ok(bytes) if bytes == payload.len() => Ok(Buffer::from_vec(payload)),
        Ok(_) => Err("the commit is shorter than it says".into()),
        Err(error) => Err(format!("the commit cannot be decompressed: {error}")),
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
