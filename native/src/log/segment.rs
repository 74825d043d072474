//! A segment: one preallocated file of the log, named by its first sequence.
//!
//! ```text
//!  0 magic "penstock"   8 version u32    12 checksum u32   16 salt u32      20 number u32
//! 24 first sequence u64 32 previous u32  36 epoch u32      40 time µs i64   48 bytes u64     56 zero
//! 64 the catalog's frame, then the commits' frames, then zeros
//! ```
//!
//! A segment gets its name only when header and catalog are on disk, and only after all of the segment before it is:
//! so whatever has a later segment is whole, or damaged.

use std::io;

use super::frame::{u32_at, u64_at};
use super::place::{SEGMENT_BYTES_MAX, SEGMENTS_MAX};

use crate::disk::{Disk, File, Mode};
use crate::error::{Error, Result};

pub(super) const FOLDER: &str = "log";
pub(super) const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"penstock";
const VERSION: u32 = 1;
const SUFFIX: &str = ".segment";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub salt: u32,
    /// Counts the segments of a log from 0, without gaps.
    pub number: u32,
    pub first_sequence: u64,
    /// The checksum of the commit before the first.
    pub previous: u32,
    /// The epoch that the commit before the first belongs to.
    pub epoch: u32,
    pub time_us: i64,
    /// How long the file is.
    pub bytes: u64,
}

impl Header {
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.salt.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.previous.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.time_us.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.bytes.to_le_bytes());
        let checksum = checksum(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn parse(file: &str, bytes: &[u8]) -> Result<Header> {
        if bytes.len() < HEADER_BYTES {
            return Err(damaged(file, bytes.len() as u64, "it ends within its header"));
        }
        if checksum(bytes) != u32_at(bytes, 12) {
            return Err(match bytes.starts_with(MAGIC) {
                true => damaged(file, 0, "the checksum of its header does not match"),
                false => damaged(file, 0, "it does not begin as a segment of a log does"),
            });
        }
        match u32_at(bytes, 8) {
            // Start makes a file that was cut as long as its header says.
            VERSION if u64_at(bytes, 48) > SEGMENT_BYTES_MAX => {
                Err(damaged(file, 48, "its header says that it is longer than a segment can be"))
            }
            VERSION if u32_at(bytes, 20) >= SEGMENTS_MAX => {
                Err(damaged(file, 20, "its header counts more segments than a log can have"))
            }
            VERSION => Ok(Header {
                salt: u32_at(bytes, 16),
                number: u32_at(bytes, 20),
                first_sequence: u64_at(bytes, 24),
                previous: u32_at(bytes, 32),
                epoch: u32_at(bytes, 36),
                time_us: u64_at(bytes, 40) as i64,
                bytes: u64_at(bytes, 48),
            }),
            version => Err(Error::invalid_with(
                format!("{file} has format version {version}, this release reads version {VERSION}"),
                "use the release that wrote it",
            )),
        }
    }
}

fn checksum(header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..HEADER_BYTES])
}

/// Read and check a segment's header.
pub(super) fn read_header(file: &dyn File, first_sequence: u64) -> Result<Header> {
    let name = path(first_sequence);
    let mut bytes = [0; HEADER_BYTES];
    let count = file
        .read(0, &mut bytes)
        .map_err(|error| Error::io(format!("could not read {name} at byte 0"), error))?;
    let header = Header::parse(&name, &bytes[..count])?;
    if header.first_sequence != first_sequence {
        let what = format!("it was written as {}", path(header.first_sequence));
        return Err(damaged(&name, 24, &what));
    }
    Ok(header)
}

pub(super) fn open(disk: &dyn Disk, first_sequence: u64, mode: Mode) -> Result<std::sync::Arc<dyn File>> {
    let name = path(first_sequence);
    disk.open(&name, mode).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::invalid_with(
            format!("{name} is not there any more"),
            "retention has removed it: begin at the oldest commit, or keep the log for longer",
        ),
        _ => Error::io(format!("could not open {name}"), error),
    })
}

/// The segments in the folder, oldest first, with the length of each file.
pub(super) fn list(disk: &dyn Disk) -> Result<Vec<(u64, u64)>> {
    let files = disk.list(FOLDER).map_err(|error| Error::io(format!("could not list {FOLDER}/"), error))?;
    let segments = files.into_iter().filter(|(name, _)| name.ends_with(SUFFIX) && !name.starts_with('.'));
    segments.map(|(name, bytes)| Ok((first_sequence(&name)?, bytes))).collect()
}

fn first_sequence(name: &str) -> Result<u64> {
    let digits = name.strip_suffix(SUFFIX).unwrap_or(name);
    match u64::from_str_radix(digits, 16) {
        Ok(sequence @ 1..) if format!("{sequence:016x}") == digits => Ok(sequence),
        _ => Err(Error::invalid_with(
            format!(
                "{FOLDER}/{name} is not a segment of this log: a segment's name is 16 hexadecimal digits"
            ),
            "move it elsewhere",
        )),
    }
}

pub(super) fn path(first_sequence: u64) -> String {
    format!("{FOLDER}/{first_sequence:016x}{SUFFIX}")
}

/// The number of the segment after one.
pub(super) fn number_after(number: u32) -> Result<u32> {
    match number + 1 {
        next if next < SEGMENTS_MAX => Ok(next),
        _ => Err(Error::invalid_with(
            format!("the log has used up its {SEGMENTS_MAX} segments"),
            "begin a new data directory, with larger segments",
        )),
    }
}

/// Damage, with what to do about it.
pub(super) fn damaged(file: &str, offset: u64, what: &str) -> Error {
    let hint = "`penstock log verify` lists all that is damaged; restore the file from a copy";
    Error::damaged(file, offset, format!("{what}\nhint: {hint}"))
}
