//! From frame to frame through one segment, in large reads.
//!
//! A frame counts only if its checksum is right and it follows the one before: next sequence, the same chain, the same
//! epoch or the beginning of the next. What stands where no frame does is told apart by those who know what is durable.

use std::sync::Arc;

use arrow_buffer::Buffer;

use super::frame::{self, HEADER_BYTES, Header, u32_at};
use super::segment;
use crate::disk::{Disk, File, Mode};
use crate::error::{Error, Result};

/// A reader that has caught up looks at little; one that catches up reads more and more at a time.
const PIECE_BYTES_MIN: usize = 64 << 10;
const PIECE_BYTES_MAX: usize = 2 << 20;

/// A commit that is looked up is mostly small.
const ADDRESSED_BYTES: usize = 4 << 10;

/// The last commit, which the next one must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub sequence: u64,
    pub checksum: u32,
    pub epoch: u32,
}

/// A frame that is as it was written.
pub(super) struct Frame {
    pub header: Header,
    pub offset: u64,
    /// Header and payload.
    pub bytes: Buffer,
}

pub(super) enum Step {
    Frame(Frame),
    /// Only zeros where a frame's header would be, or the end of the file.
    End,
    /// Something, but not the next frame.
    Bad(&'static str),
}

#[derive(Clone)]
pub(super) struct Walk {
    pub name: String,
    pub segment: segment::Header,
    /// Where the next frame begins.
    pub offset: u64,
    pub link: Link,
    file: Arc<dyn File>,
    piece: Buffer,
    piece_offset: u64,
    piece_bytes: usize,
}

impl Walk {
    pub fn open(disk: &dyn Disk, first_sequence: u64) -> Result<Walk> {
        Walk::over(segment::open(disk, first_sequence, Mode::Read)?, first_sequence)
    }

    pub fn over(file: Arc<dyn File>, first_sequence: u64) -> Result<Walk> {
        let segment = segment::read_header(file.as_ref(), first_sequence)?;
        Ok(Walk::new(file, segment, PIECE_BYTES_MIN))
    }

    /// The one frame at an offset, which must be there.
    pub fn frame_at(file: Arc<dyn File>, segment: segment::Header, offset: u64) -> Result<Frame> {
        let mut walk = Walk::new(file, segment, ADDRESSED_BYTES);
        match walk.look(offset)? {
            Step::Frame(found) => Ok(found),
            Step::End => Err(segment::damaged(&walk.name, offset, "the commit that was here is missing")),
            Step::Bad(what) => Err(segment::damaged(&walk.name, offset, what)),
        }
    }

    fn new(file: Arc<dyn File>, segment: segment::Header, piece_bytes: usize) -> Walk {
        Walk {
            name: segment::path(segment.first_sequence),
            segment,
            offset: segment::HEADER_BYTES as u64,
            link: Link {
                sequence: segment.first_sequence - 1,
                checksum: segment.previous,
                epoch: segment.epoch,
            },
            file,
            piece: Buffer::from_vec(Vec::<u8>::new()),
            piece_offset: 0,
            piece_bytes,
        }
    }

    /// Go over the next frame, or stay where none is.
    pub fn step(&mut self) -> Result<Step> {
        let step = self.look(self.offset)?;
        let Step::Frame(frame) = step else { return Ok(step) };
        if let Some(what) = self.link.breaks(&frame.header) {
            return Ok(Step::Bad(what));
        }
        self.offset += frame.header.frame_bytes() as u64;
        let Header { sequence, checksum, epoch, .. } = frame.header;
        self.link = Link { sequence, checksum, epoch };
        Ok(Step::Frame(frame))
    }

    /// Take a valid frame as the next, whatever was before it.
    pub fn jump(&mut self, offset: u64, header: &Header) {
        let epoch = header.epoch - u32::from(header.flags & frame::EPOCH != 0 && header.epoch > 0);
        self.offset = offset;
        self.link = Link { sequence: header.sequence - 1, checksum: header.previous, epoch };
    }

    /// The frame at an offset, with the right checksum.
    fn look(&mut self, offset: u64) -> Result<Step> {
        let bytes = self.bytes(offset, HEADER_BYTES)?;
        if bytes.len() < HEADER_BYTES || bytes.iter().all(|byte| *byte == 0) {
            return Ok(Step::End);
        }
        let Some(header) = Header::parse(&bytes) else {
            return Ok(Step::Bad("no commit begins here"));
        };
        if offset + header.frame_bytes() as u64 > self.segment.bytes {
            return Ok(Step::Bad("a commit begins here that is longer than the segment"));
        }
        let bytes = self.bytes(offset, header.frame_bytes())?;
        if bytes.len() < header.frame_bytes() {
            return Ok(Step::Bad("the file ends within this commit"));
        }
        match frame::checksum(&bytes, self.segment.salt) == header.checksum || unchecked() {
            true => Ok(Step::Frame(Frame { header, offset, bytes })),
            false => Ok(Step::Bad("the commit's checksum does not match")),
        }
    }

    /// The first valid frame at or after an offset that belongs after the last one; damage may lie between.
    pub fn find(&mut self, mut offset: u64) -> Result<Option<(u64, Header)>> {
        while offset < self.segment.bytes {
            let bytes = self.bytes(offset, PIECE_BYTES_MAX)?;
            if bytes.is_empty() {
                break;
            }
            for at in
                (0..bytes.len().saturating_sub(3)).step_by(8).filter(|at| u32_at(&bytes, *at) == frame::MAGIC)
            {
                if let Some(header) = self.frame_after(offset + at as u64)? {
                    return Ok(Some((offset + at as u64, header)));
                }
            }
            offset += PIECE_BYTES_MAX as u64;
        }
        Ok(None)
    }

    /// What the valid frames say is durable that stand behind one that is not.
    pub fn durable_beyond(&mut self) -> Result<u64> {
        let (mut offset, mut durable) = (self.offset, 0);
        while let Some((found, header)) = self.find(offset)? {
            durable = durable.max(header.durable);
            offset = found + header.frame_bytes() as u64;
        }
        Ok(durable)
    }

    fn frame_after(&mut self, offset: u64) -> Result<Option<Header>> {
        let header = Header::parse(&self.bytes(offset, HEADER_BYTES)?);
        // Only what could follow is worth a checksum: rows may be full of what looks like the beginning of a frame.
        let most = self.link.sequence + self.segment.bytes / HEADER_BYTES as u64;
        let Some(header) = header else { return Ok(None) };
        // Nor can one follow anything that begins an epoch before the first: who went on with it would stay at it.
        let unfounded = header.flags & frame::EPOCH != 0 && header.epoch == 0;
        if unfounded || !(self.link.sequence + 1..=most).contains(&header.sequence) {
            return Ok(None);
        }
        match self.look(offset)? {
            Step::Frame(frame) => Ok(Some(frame.header)),
            Step::End | Step::Bad(_) => Ok(None),
        }
    }

    /// Where the last byte that is not zero ends, at or after an offset.
    pub fn end_of_content(&mut self, from: u64) -> Result<u64> {
        let (mut offset, mut end) = (from, from);
        loop {
            let bytes = self.bytes(offset, PIECE_BYTES_MAX)?;
            if bytes.is_empty() {
                return Ok(end);
            }
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                end = offset + last as u64 + 1;
            }
            offset += bytes.len() as u64;
        }
    }

    /// What was read ahead may have been written since.
    pub fn forget(&mut self) {
        self.piece = Buffer::from_vec(Vec::<u8>::new());
        self.piece_bytes = PIECE_BYTES_MIN;
    }

    /// So many bytes at an offset; fewer at the segment's end.
    fn bytes(&mut self, offset: u64, count: usize) -> Result<Buffer> {
        let count = count.min(self.segment.bytes.saturating_sub(offset) as usize);
        if !self.holds(offset, count) {
            self.read(offset, count)?;
        }
        let start = (offset - self.piece_offset) as usize;
        let count = count.min(self.piece.len().saturating_sub(start));
        Ok(self.piece.slice_with_length(start.min(self.piece.len()), count))
    }

    fn holds(&self, offset: u64, count: usize) -> bool {
        offset >= self.piece_offset && offset + count as u64 <= self.piece_offset + self.piece.len() as u64
    }

    fn read(&mut self, offset: u64, count: usize) -> Result<()> {
        let left = self.segment.bytes.saturating_sub(offset) as usize;
        let mut piece = vec![0; count.max(self.piece_bytes).min(left)];
        let read = self.file.read(offset, &mut piece);
        let count =
            read.map_err(|error| Error::io(format!("could not read {} at byte {offset}", self.name), error))?;
        piece.truncate(count);
        self.piece = Buffer::from_vec(piece);
        self.piece_offset = offset;
        self.piece_bytes = (2 * self.piece_bytes).min(PIECE_BYTES_MAX);
        Ok(())
    }
}

impl Link {
    /// Why a frame cannot be the next one.
    fn breaks(&self, next: &Header) -> Option<&'static str> {
        let epoch = self.epoch.checked_add(u32::from(next.flags & frame::EPOCH != 0));
        if unchained() {
            return None;
        }
        if next.sequence != self.sequence + 1 {
            Some("the commit here is not the next one")
        } else if next.previous != self.checksum {
            Some("the commit here does not follow the one before it")
        } else if Some(next.epoch) != epoch {
            Some("the commit here is of another writer's epoch")
        } else {
            None
        }
    }
}

/// Only the simulation's negative controls take what they find for what was written.
fn unchecked() -> bool {
    #[cfg(test)]
    return crate::simulate::controls::is_off(crate::simulate::controls::Safeguard::Checksums);
    #[cfg(not(test))]
    false
}

/// Nor do they ask whether it follows what was written before it.
fn unchained() -> bool {
    #[cfg(test)]
    return unchecked() || crate::simulate::controls::is_off(crate::simulate::controls::Safeguard::Chain);
    #[cfg(not(test))]
    false
}
