//! The frame of a saved state: sections, each with its length before it and its CRC-32C behind it.

use std::io::{Read, Write};

use crate::error::{Error, Result};

const CHUNK: usize = 1 << 16;

/// Writes one section; its length must be known before.
pub struct Section<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    crc: u32,
    left: u64,
}

impl<'a> Section<'a> {
    pub fn begin(out: &'a mut dyn Write, length: u64) -> Result<Section<'a>> {
        out.write_all(&length.to_le_bytes()).map_err(cannot_write)?;
        Ok(Section { out, buffer: Vec::with_capacity(CHUNK + 64), crc: 0, left: length })
    }

    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    pub fn end(mut self) -> Result<()> {
        self.flush()?;
        assert_eq!(self.left, 0, "a section has the length that was announced");
        self.out.write_all(&self.crc.to_le_bytes()).map_err(cannot_write)
    }

    fn flush(&mut self) -> Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
        self.left -= self.buffer.len() as u64;
        self.out.write_all(&self.buffer).map_err(cannot_write)?;
        self.buffer.clear();
        Ok(())
    }
}

pub fn write_section(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    let mut section = Section::begin(out, bytes.len() as u64)?;
    section.put(bytes)?;
    section.end()
}

/// Reads a saved state of a known length to its end and compares its checksums; what it says is not looked at.
pub fn check_saved(input: &mut dyn Read, length: u64) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let section = u64::from_le_bytes(read_array(input)?);
        // With its length before it and its checksum behind it.
        left = left.checked_sub(12).and_then(|left| left.checked_sub(section)).ok_or_else(too_long)?;
        Pieces { input, piece: Vec::new(), at: 0, left: section, crc: 0 }.end()?;
    }
    Ok(())
}

/// Reads the next section whole; `limit` bounds what a damaged length can ask for.
pub fn read_section(input: &mut dyn Read, limit: u64) -> Result<Vec<u8>> {
    let length = u64::from_le_bytes(read_array(input)?);
    if length > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 != length {
        return Err(damaged("it ends within a section"));
    }
    if crc32c::crc32c(&bytes) != u32::from_le_bytes(read_array(input)?) {
        return Err(damaged("a section's checksum does not match"));
    }
    Ok(bytes)
}

/// Reads one section of a known length piece by piece, so that a large one never lies in memory whole. What it gives
/// is not to be trusted before `end` has compared the checksum.
pub struct Pieces<'a> {
    input: &'a mut dyn Read,
    piece: Vec<u8>,
    at: usize,
    left: u64,
    crc: u32,
}

impl<'a> Pieces<'a> {
    pub fn begin(input: &'a mut dyn Read, length: u64) -> Result<Pieces<'a>> {
        if u64::from_le_bytes(read_array(input)?) != length {
            return Err(damaged("a section has another length than its events"));
        }
        Ok(Pieces { input, piece: Vec::new(), at: 0, left: length, crc: 0 })
    }

    /// The next bytes; a piece must hold a whole number of them.
    #[inline]
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        if self.at == self.piece.len() {
            self.refill()?;
        }
        let bytes = self.piece[self.at..].first_chunk().ok_or_else(|| damaged("a section is too short"))?;
        self.at += N;
        Ok(*bytes)
    }

    /// Passes over what was not taken.
    pub fn end(mut self) -> Result<()> {
        while self.left > 0 {
            self.refill()?;
        }
        if self.crc != u32::from_le_bytes(read_array(self.input)?) {
            return Err(damaged("a section's checksum does not match"));
        }
        Ok(())
    }

    fn refill(&mut self) -> Result<()> {
        self.piece.resize(self.left.min(CHUNK as u64) as usize, 0);
        fill(self.input, &mut self.piece)?;
        self.crc = crc32c::crc32c_append(self.crc, &self.piece);
        self.left -= self.piece.len() as u64;
        self.at = 0;
        Ok(())
    }
}

fn read_array<const N: usize>(input: &mut dyn Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(input, &mut bytes)?;
    Ok(bytes)
}

fn fill(input: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    input.read_exact(bytes).map_err(unreadable)
}

fn unreadable(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => Error::io("could not read the saved state", error),
    }
}

fn too_long() -> Error {
    damaged("a section is longer than it can be")
}

pub fn damaged(what: &str) -> Error {
    Error::damaged("the saved state", 0, what)
}

fn cannot_write(error: std::io::Error) -> Error {
    Error::io("could not write the saved state", error)
}
