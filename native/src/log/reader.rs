//! Reading the log from another thread or process, commit by commit, only what is durable.

use std::sync::Arc;

use super::catalog::Catalog;
use super::commit::{self, Commit};
use super::durable::DurableReader;
use super::frame;
use super::place::Position;
use super::recovery::durable_ahead;
use super::segment::{self, damaged};
use super::walk::{Frame, Step, Walk};
use crate::disk::Disk;
use crate::error::{Error, Result};

/// Follows the log. It returns commits in order, none twice and none left out, each only when it is durable; what is
/// durable and not as it was written is an error with the place.
pub struct Reader {
    disk: Arc<dyn Disk>,
    walk: Walk,
    catalog: Catalog,
    position: Position,
    durable: u64,
    durable_file: DurableReader,
    /// The sequence for which frames were asked what is durable: once is enough.
    asked: u64,
}

impl Reader {
    /// Read on after a position, or from the oldest commit that is kept.
    pub fn open(disk: Arc<dyn Disk>, from: Option<Position>) -> Result<Reader> {
        let first = match from {
            Some(position) => position.segment,
            None => oldest(disk.as_ref())?,
        };
        let mut reader = Reader::at(disk, first)?;
        if let Some(position) = from {
            reader.skip_to(position)?;
        }
        Ok(reader)
    }

    /// The next commit; `None` when nothing more is durable for now.
    // Not an iterator's: after `None` there may be more.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Commit>> {
        while self.more()? {
            match self.walk.step()? {
                // A segment's catalog repeats what was read before it.
                Step::Frame(found) if found.header.flags & frame::CATALOG != 0 => _ = self.take(&found)?,
                Step::Frame(found) => return Ok(Some(self.take(&found)?)),
                Step::End => self.next_segment("it is missing from here on")?,
                Step::Bad(what) => self.next_segment(what)?,
            }
        }
        Ok(None)
    }

    /// Of the last commit that was read: where reading can go on.
    pub fn position(&self) -> Position {
        self.position
    }

    /// As of the last commit that was read.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The newest sequence that is known to be durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// At the beginning of a segment, its catalog read.
    fn at(disk: Arc<dyn Disk>, first_sequence: u64) -> Result<Reader> {
        let mut walk = Walk::open(disk.as_ref(), first_sequence)?;
        let (name, offset) = (walk.name.clone(), walk.offset);
        let found = match walk.step()? {
            Step::Frame(found) if found.header.flags & frame::CATALOG != 0 => found,
            Step::Frame(_) | Step::End => return Err(damaged(&name, offset, "the catalog is missing")),
            Step::Bad(what) => return Err(damaged(&name, offset, what)),
        };
        let mut reader = Reader {
            disk,
            walk,
            catalog: Catalog::default(),
            position: Position { segment: first_sequence, offset, sequence: first_sequence, checksum: 0 },
            durable: first_sequence,
            durable_file: DurableReader::default(),
            asked: 0,
        };
        reader.take(&found)?;
        Ok(reader)
    }

    fn take(&mut self, found: &Frame) -> Result<Commit> {
        let commit = commit::advance(found, &self.walk.segment, &mut self.catalog)?;
        let segment = self.walk.segment.first_sequence;
        let frame::Header { sequence, checksum, .. } = found.header;
        self.position = Position { segment, offset: found.offset, sequence, checksum };
        Ok(commit)
    }

    /// Whether the next commit is durable.
    fn more(&mut self) -> Result<bool> {
        let next = self.walk.link.sequence + 1;
        if next > self.durable {
            self.refresh(next)?;
        }
        Ok(next <= self.durable)
    }

    fn refresh(&mut self, next: u64) -> Result<()> {
        let slot = self.durable_file.read(self.disk.as_ref())?;
        let mut durable = slot.map_or(0, |slot| slot.sequence);
        self.walk.forget();
        // The file is written without a sync: after a power loss, or damage to it, the frames know better.
        if next > durable && self.asked < next {
            self.asked = next;
            durable = durable_ahead(&self.walk)?.max(self.later_segment(next)?);
        }
        self.durable = self.durable.max(durable);
        Ok(())
    }

    /// The first sequence of a segment that begins at a commit or after it: what is before a segment is durable.
    fn later_segment(&self, next: u64) -> Result<u64> {
        let segments = segment::list(self.disk.as_ref())?;
        let Some((first, _)) = segments.into_iter().find(|(first, _)| *first >= next) else { return Ok(0) };
        // The writer may not have come to making the name durable, and a position in the segment relies on it.
        let synced = self.disk.sync_folder(segment::FOLDER);
        synced.map_err(|error| Error::io(format!("could not sync {}/", segment::FOLDER), error))?;
        Ok(first)
    }

    /// The next commit is durable and not here: so it begins the next segment, or it is damaged.
    fn next_segment(&mut self, what: &'static str) -> Result<()> {
        let next = self.walk.link.sequence + 1;
        let segments = segment::list(self.disk.as_ref())?;
        if segments.first().is_some_and(|(first, _)| *first > next) {
            return Err(Error::invalid_with(
                format!("commit {next} is not kept any more: the oldest is {}", segments[0].0),
                "retention has overtaken this reader: keep the log for longer",
            ));
        }
        if !segments.iter().any(|(first, _)| *first == next) {
            let what = format!("commit {next} was durable (as all up to {} were), but {what}", self.durable);
            return Err(damaged(&self.walk.name, self.walk.offset, &what));
        }
        let walk = Walk::open(self.disk.as_ref(), next)?;
        if walk.segment.number != self.walk.segment.number + 1 || walk.link != self.walk.link {
            return Err(damaged(&walk.name, 0, "it does not follow the segment before it"));
        }
        self.walk = walk;
        Ok(())
    }

    /// Go over the segment's commits up to a position: they bring the catalog to where it was then.
    fn skip_to(&mut self, position: Position) -> Result<()> {
        while self.walk.link.sequence < position.sequence {
            match self.walk.step()? {
                Step::Frame(found) => _ = self.take(&found)?,
                Step::End | Step::Bad(_) => return self.next().and_then(|_| self.refuse(position)),
            }
        }
        if self.position == position { Ok(()) } else { self.refuse(position) }
    }

    fn refuse(&self, position: Position) -> Result<()> {
        Err(Error::invalid_with(
            format!("commit {} is not where the position says in {}", position.sequence, self.walk.name),
            "the position was taken from another log, or the log is an older copy",
        ))
    }
}

/// The position to read a topic from an offset: the commit after it has the offset's row. `None` where there is no such
/// row yet.
pub fn seek_offset(disk: Arc<dyn Disk>, topic: &str, offset: u64) -> Result<Option<Position>> {
    let Some(mut reader) = last_reader(&disk, |reader| reader.catalog.next_offset(topic) <= offset)? else {
        let oldest = Reader::open(disk, None)?.catalog.next_offset(topic);
        return Err(Error::invalid_with(
            format!("topic {topic:?} begins at offset {oldest}, asked for {offset}"),
            "retention has removed what was before: keep the log for longer",
        ));
    };
    let mut before = reader.position;
    while let Some(commit) = reader.next()? {
        let mut sections = commit.sections.iter().filter(|section| *section.topic == *topic);
        if sections.any(|section| section.base_offset + u64::from(section.rows) > offset) {
            return Ok(Some(before));
        }
        before = reader.position;
    }
    Ok(None)
}

/// The position to read from a time: the commit after it is the first at or after the time, where clocks went forward.
/// `None` where there is no such commit yet.
pub fn seek_time(disk: Arc<dyn Disk>, time_us: i64) -> Result<Option<Position>> {
    let mut reader = match last_reader(&disk, |reader| reader.walk.segment.time_us < time_us)? {
        Some(reader) => reader,
        None => Reader::open(disk, None)?,
    };
    let mut before = reader.position;
    while let Some(commit) = reader.next()? {
        if commit.time_us >= time_us {
            return Ok(Some(before));
        }
        before = reader.position;
    }
    Ok(None)
}

/// What the log's end knows: only its newest segment is read, which begins with what was known before it.
pub fn newest_catalog(disk: Arc<dyn Disk>) -> Result<Catalog> {
    let mut reader = match last_reader(&disk, |_| true)? {
        Some(reader) => reader,
        None => Reader::open(disk, None)?,
    };
    while reader.next()?.is_some() {}
    Ok(reader.catalog)
}

/// At the last segment for which something holds that holds up to some segment and not after it.
fn last_reader(disk: &Arc<dyn Disk>, holds: impl Fn(&Reader) -> bool) -> Result<Option<Reader>> {
    let segments = segment::list(disk.as_ref())?;
    let (mut low, mut high, mut last) = (0, segments.len(), None);
    while low < high {
        let middle = (low + high) / 2;
        let reader = Reader::at(disk.clone(), segments[middle].0)?;
        if holds(&reader) {
            (low, last) = (middle + 1, Some(reader));
        } else {
            high = middle;
        }
    }
    Ok(last)
}

fn oldest(disk: &dyn Disk) -> Result<u64> {
    match segment::list(disk)?.first() {
        Some((first, _)) => Ok(*first),
        None => Err(Error::invalid_with(
            "there is no log here yet",
            "start the service, or name its data directory",
        )),
    }
}

/// The position to read from a commit: `None`, the log's beginning, where retention has removed it.
pub fn seek_sequence(disk: Arc<dyn Disk>, sequence: u64) -> Result<Option<Position>> {
    let Some(mut reader) = last_reader(&disk, |reader| reader.position.sequence < sequence)? else {
        return Ok(None);
    };
    let mut before = reader.position;
    while before.sequence + 1 < sequence && reader.next()?.is_some() {
        before = reader.position;
    }
    Ok(Some(before))
}

/// The first commit that the log still has: 1 as long as retention has removed nothing.
pub fn first_sequence(disk: &dyn Disk) -> Result<u64> {
    oldest(disk)
}
