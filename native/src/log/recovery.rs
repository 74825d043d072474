//! Where the log ends, found at each open; and whether what stands there is a torn tail or damage.
//!
//! A power loss may tear what was not yet synced, so the first commit that is not as written ends the log: unless it
//! was durable. It was if its sequence is not above one that is known to have been: by the two-slot file, or by any
//! valid frame, before it or after it, which says what was durable when it was written. Then nothing is cut, and the
//! log is refused with the place.
//!
//! Only the last segment is read: its header continues the chain, its catalog is whole, and it was begun only when all
//! before it was on disk.

use std::sync::Arc;

use super::catalog::Catalog;
use super::commit;
use super::durable::{DurableReader, Slot};
use super::segment::{self, damaged};
use super::walk::{Step, Walk};
use crate::disk::{Disk, File, LARGE_PIECE, Mode};
use crate::error::{Error, Result};

const PIECE_BYTES: u64 = 1 << 20;

pub(super) struct Recovered {
    /// The first sequence and the length of each segment, oldest first.
    pub segments: Vec<(u64, u64)>,
    /// The last segment's.
    pub file: Arc<dyn File>,
    /// After the last commit.
    pub end: Walk,
    /// Where the last commit begins.
    pub last_offset: u64,
    pub catalog: Catalog,
    pub cut_bytes: u64,
}

/// A file that is made of durable commits, beside the log: a log that ends before its commit is not the one that it is of,
/// but an older copy, or has lost something.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    /// The newest commit that it is of; 0 where there is no such file.
    pub sequence: u64,
    pub file: String,
}

impl Witness {
    pub(super) fn contradicts(&self, missing: u64) -> bool {
        missing <= self.sequence
    }

    /// What is wrong with a log that ends before this commit.
    pub(super) fn words(&self, missing: u64) -> String {
        let Witness { sequence, file } = self;
        format!(
            "commit {missing} was durable, as {file} is of commit {sequence}, but it is missing from here on"
        )
    }

    fn refusal(&self, file: &str, offset: u64, missing: u64) -> Error {
        let hint = "the log is an older copy than what is beside it, or another directory's: bring back the whole \
                    directory as it was at one time; `penstock log repair --quarantine` goes on without what is missing";
        Error::damaged(file, offset, format!("{}\nhint: {hint}", self.words(missing)))
    }
}

/// Find the end of the log, and cut a torn tail off; nothing where there is no log yet.
pub(super) fn recover(disk: &dyn Disk, slot: Option<Slot>, witness: &Witness) -> Result<Option<Recovered>> {
    let segments = segment::list(disk)?;
    let Some(&(last, _)) = segments.last() else { return refuse_lost_segments(slot, witness) };
    check_no_segment_is_missing(disk, &segments)?;
    let file = segment::open(disk, last, Mode::Write)?;
    // What a crashed process wrote may be in memory only: make it durable before anything is decided on it.
    file.sync().map_err(|error| Error::io(format!("could not sync {}", segment::path(last)), error))?;
    let mut walk = Walk::over(file.clone(), last)?;
    let mut tail = walk_to_tail(&mut walk, slot)?;
    let end_of_content = refuse_damage(&mut walk, &mut tail, witness)?;
    write_again(&walk, file.as_ref(), slot)?;
    cut(&walk, file.as_ref(), end_of_content)?;
    let cut_bytes = end_of_content - walk.offset;
    let Tail { catalog, last_offset, .. } = tail;
    Ok(Some(Recovered { segments, file, end: walk, last_offset, catalog, cut_bytes }))
}

/// The last commit that a start would keep.
#[derive(Clone, Debug)]
pub struct End {
    pub sequence: u64,
    /// Its segment's path, and where in that it ends.
    pub segment: String,
    pub offset: u64,
}

/// Find the end of the log as a start would, and change nothing; `None` where there is no log.
pub fn end(disk: &dyn Disk, witness: &Witness) -> Result<Option<End>> {
    let slot = DurableReader::default().read(disk)?;
    let segments = segment::list(disk)?;
    let Some(&(last, _)) = segments.last() else {
        refuse_lost_segments(slot, witness)?;
        return Ok(None);
    };
    loop {
        let mut walk = Walk::open(disk, last)?;
        let mut tail = walk_to_tail(&mut walk, slot)?;
        match refuse_damage(&mut walk, &mut tail, witness) {
            Ok(_) => {
                let Walk { name, offset, link, .. } = walk;
                return Ok(Some(End { sequence: link.sequence, segment: name, offset }));
            }
            // What is missing may have been written since it was looked for.
            Err(error) => {
                walk.forget();
                let Step::Frame(_) = walk.step()? else { return Err(error) };
            }
        }
    }
}

fn refuse_lost_segments(slot: Option<Slot>, witness: &Witness) -> Result<Option<Recovered>> {
    match slot {
        Some(slot) => Err(damaged(segment::FOLDER, 0, &no_segment(slot.sequence))),
        None if witness.contradicts(1) => Err(witness.refusal(segment::FOLDER, 0, 1)),
        None => Ok(None),
    }
}

pub(super) fn no_segment(durable: u64) -> String {
    format!("commit {durable} was durable, but there is no segment")
}

/// The segments are numbered without gaps, so the first and the last tell how many there are.
fn check_no_segment_is_missing(disk: &dyn Disk, segments: &[(u64, u64)]) -> Result<()> {
    let number = |index: usize| -> Result<u64> {
        let (first_sequence, _) = segments[index];
        let file = segment::open(disk, first_sequence, Mode::Read)?;
        Ok(segment::read_header(file.as_ref(), first_sequence)?.number.into())
    };
    let (first, last) = (number(0)?, number(segments.len() - 1)?);
    if last.checked_sub(first) == Some(segments.len() as u64 - 1) {
        return Ok(());
    }
    for index in 1..segments.len() {
        if number(index)? != number(index - 1)? + 1 {
            let file = segment::path(segments[index - 1].0);
            return Err(damaged(&file, segments[index - 1].1, "the segment after it is missing"));
        }
    }
    Ok(())
}

/// What the walk to the first bad frame tells.
struct Tail {
    catalog: Catalog,
    last_offset: u64,
    /// The highest sequence that is known to have been durable.
    durable: u64,
    /// What is wrong with the first frame that does not count.
    what: &'static str,
}

fn walk_to_tail(walk: &mut Walk, slot: Option<Slot>) -> Result<Tail> {
    // A segment gets its name after its first commit is on disk.
    let first = walk.segment.first_sequence;
    let durable = slot.map_or(first, |slot| slot.sequence.max(first));
    let mut tail = Tail { catalog: Catalog::default(), last_offset: walk.offset, durable, what: "" };
    loop {
        let found = match walk.step()? {
            Step::Frame(found) => found,
            Step::Bad(what) => return Ok(Tail { what, ..tail }),
            Step::End => return Ok(Tail { what: "it is missing from here on", ..tail }),
        };
        if slot.is_some_and(|slot| slot.sequence == walk.link.sequence && slot.checksum != walk.link.checksum)
        {
            return Err(damaged(&walk.name, found.offset, "log/durable is of another log"));
        }
        commit::advance(&found, &walk.segment, &mut tail.catalog)?;
        tail.durable = tail.durable.max(found.header.durable);
        tail.last_offset = found.offset;
    }
}

/// Refuse the log if a durable commit is not where it belongs. Returns where the torn bytes end.
fn refuse_damage(walk: &mut Walk, tail: &mut Tail, witness: &Witness) -> Result<u64> {
    let end_of_content = walk.end_of_content(walk.offset)?;
    if end_of_content > walk.offset {
        tail.durable = tail.durable.max(walk.durable_beyond()?);
    }
    let missing = walk.link.sequence + 1;
    if missing <= tail.durable {
        let what =
            format!("commit {missing} was durable (as all up to {} were), but {}", tail.durable, tail.what);
        return Err(damaged(&walk.name, walk.offset, &what));
    }
    if witness.contradicts(missing) {
        return Err(witness.refusal(&walk.name, walk.offset, missing));
    }
    Ok(end_of_content)
}

/// Write what is beyond the last commit that a sync was seen to succeed for, as it is. After a sync that failed the system
/// shows pages that are not on disk, takes them for clean, and another sync does nothing for them.
fn write_again(walk: &Walk, file: &dyn File, slot: Option<Slot>) -> Result<()> {
    let slot = slot.filter(|slot| slot.address.segment() == u64::from(walk.segment.number));
    let mut offset = slot.map_or(0, |slot| slot.address.offset().min(walk.offset));
    let mut write = || {
        let mut piece = vec![0; PIECE_BYTES.min(walk.offset - offset) as usize];
        while offset < walk.offset {
            let count = PIECE_BYTES.min(walk.offset - offset) as usize;
            let read = file.read(offset, &mut piece[..count])?;
            file.write(offset, &piece[..read])?;
            offset += count as u64;
        }
        Ok(())
    };
    write().map_err(|error| Error::io(format!("could not write {} again", walk.name), error))
}

/// Make everything after the last commit zeros, and the file as long as it was.
fn cut(walk: &Walk, file: &dyn File, end_of_content: u64) -> Result<()> {
    let zeros = vec![0; PIECE_BYTES.min(end_of_content - walk.offset) as usize];
    let mut offset = walk.offset;
    let mut cut = || {
        while offset < end_of_content {
            let count = PIECE_BYTES.min(end_of_content - offset);
            file.write(offset, &zeros[..count as usize])?;
            offset += count;
        }
        file.allocate(walk.segment.bytes, &|| Ok(LARGE_PIECE))?;
        file.sync()
    };
    cut().map_err(|error| Error::io(format!("could not cut the torn end off {}", walk.name), error))
}

/// The highest sequence that the frames from here on say is durable.
pub(super) fn durable_ahead(walk: &Walk) -> Result<u64> {
    let mut ahead = walk.clone();
    let mut durable = 0;
    while let Step::Frame(found) = ahead.step()? {
        durable = durable.max(found.header.durable);
    }
    Ok(durable)
}
