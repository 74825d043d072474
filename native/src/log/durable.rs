//! How far the log was known to be on disk: a small file of two slots.
//!
//! A slot is written after each sync and not synced itself, in turns with the other, so that one of them is always
//! whole. It never claims too much. It may be behind after a power loss; then the frames themselves, each of which
//! says what was durable when it was written, claim the rest.
//!
//! ```text
//! 0 magic u32   4 checksum u32   8 sequence u64   16 address u64   24 the commit's checksum u32   28 zero
//! ```

use std::io;
use std::sync::Arc;

use super::frame::{u32_at, u64_at};
use super::place::Address;
use crate::disk::{Disk, File, LARGE_PIECE, Mode};
use crate::error::{Error, Result};

const PATH: &str = "log/durable";
const MAGIC: &[u8; 4] = b"pdur";
const SLOT_BYTES: usize = 32;
/// Each slot in a sector of its own: a write torn by power loss cannot reach the other.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
const FILE_BYTES: u64 = 8192;

pub(super) struct DurableFile {
    file: Arc<dyn File>,
    next_slot: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub sequence: u64,
    pub address: Address,
    pub checksum: u32,
}

impl DurableFile {
    pub fn open(disk: &dyn Disk) -> Result<DurableFile> {
        let file = disk
            .open(PATH, Mode::Write)
            .map_err(|error| Error::io(format!("could not open {PATH}"), error))?;
        let allocated = file.allocate(FILE_BYTES, &|| Ok(LARGE_PIECE));
        allocated.map_err(|error| Error::io(format!("could not allocate {PATH}"), error))?;
        let slots = read_slots(file.as_ref())?;
        let next_slot =
            if slots[0].map(|slot| slot.sequence) > slots[1].map(|slot| slot.sequence) { 1 } else { 0 };
        Ok(DurableFile { file, next_slot })
    }

    pub fn write(&mut self, slot: Slot) -> Result<()> {
        let offset = SLOT_OFFSETS[self.next_slot];
        self.next_slot = 1 - self.next_slot;
        self.file
            .write(offset, &slot.to_bytes())
            .map_err(|error| Error::io(format!("could not write {PATH}"), error))
    }

    /// Both slots say the same, on disk: after a clean shutdown no single damage can hide where the log ends.
    pub fn close(mut self, slot: Slot) -> Result<()> {
        self.write(slot)?;
        self.write(slot)?;
        self.file.sync().map_err(|error| Error::io(format!("could not sync {PATH}"), error))
    }
}

/// The file as others read it. The writer may not have made it yet.
#[derive(Default)]
pub(super) struct DurableReader(Option<Arc<dyn File>>);

impl DurableReader {
    /// The newest valid slot.
    pub fn read(&mut self, disk: &dyn Disk) -> Result<Option<Slot>> {
        if self.0.is_none() {
            self.0 = match disk.open(PATH, Mode::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => Some(file.map_err(|error| Error::io(format!("could not open {PATH}"), error))?),
            };
        }
        let slots = self.0.as_deref().map(read_slots).transpose()?;
        Ok(slots.into_iter().flatten().flatten().max_by_key(|slot| slot.sequence))
    }
}

fn read_slots(file: &dyn File) -> Result<[Option<Slot>; 2]> {
    let mut slots = [None, None];
    for (slot, offset) in slots.iter_mut().zip(SLOT_OFFSETS) {
        let mut bytes = [0; SLOT_BYTES];
        file.read(offset, &mut bytes).map_err(|error| Error::io(format!("could not read {PATH}"), error))?;
        *slot = Slot::parse(&bytes);
    }
    Ok(slots)
}

impl Slot {
    fn to_bytes(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[0..4].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.address.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.checksum.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; SLOT_BYTES]) -> Option<Slot> {
        let valid = bytes.starts_with(MAGIC) && u32_at(bytes, 4) == crc32c::crc32c(&bytes[8..]);
        valid.then(|| Slot {
            sequence: u64_at(bytes, 8),
            address: Address(u64_at(bytes, 16)),
            checksum: u32_at(bytes, 24),
        })
    }
}
