//! Reads everything there is, and lists all that is not as it was written.
//!
//! A reader stops at the first damage; this goes on behind it, so that an operator sees how much is affected.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::catalog::Catalog;
use super::columns::Decoded;
use super::commit;
use super::durable::DurableReader;
use super::frame;
use super::recovery::{Witness, no_segment};
use super::segment;
use super::walk::{Frame, Link, Step, Walk};
use crate::disk::Disk;
use crate::error::{Error, Result};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing is damaged.
    pub sound: bool,
    pub segments: u64,
    /// The commits that are as they were written.
    pub commits: u64,
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// The rows that are as they were written, by topic.
    pub rows: BTreeMap<String, u64>,
    /// Bytes after the last commit, of an append that was not finished: the next start cuts them off.
    pub torn_bytes: u64,
    pub damages: Vec<Damage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub file: String,
    pub offset: u64,
    pub what: String,
}

/// Check every commit of every segment. An error means that the files could not be read at all.
pub fn verify(disk: Arc<dyn Disk>) -> Result<Report> {
    verify_beside(disk, &Witness::default())
}

/// The same for the log of a directory, beside the newest of what was made of it.
pub fn verify_beside(disk: Arc<dyn Disk>, witness: &Witness) -> Result<Report> {
    let slot = DurableReader::default().read(disk.as_ref())?;
    let segments = segment::list(disk.as_ref())?;
    let mut check = Check { durable: slot.map_or(0, |slot| slot.sequence), ..Check::default() };
    check.report.first_sequence = segments.first().map_or(0, |(first, _)| *first);
    for (index, (first_sequence, _)) in segments.iter().enumerate() {
        check.report.segments += 1;
        let next = segments.get(index + 1).map(|(first, _)| *first);
        let checked = check.segment(disk.as_ref(), *first_sequence, next);
        check.note(checked, &segment::path(*first_sequence))?;
    }
    if let (Some(slot), []) = (slot, &segments[..]) {
        check.damage(segment::FOLDER, 0, &no_segment(slot.sequence));
    }
    let missing = check.report.last_sequence + 1;
    if check.report.damages.is_empty() && witness.contradicts(missing) {
        let file = segments.last().map_or(segment::FOLDER.into(), |(first, _)| segment::path(*first));
        check.damage(&file, check.end, &witness.words(missing));
    }
    let mut report = check.report;
    report.sound = report.damages.is_empty();
    Ok(report)
}

#[derive(Default)]
struct Check {
    report: Report,
    durable: u64,
    /// The end of the segment before, if it was sound up to there.
    link: Option<Link>,
    number: Option<u32>,
    /// Where the last commit ends, in its segment.
    end: u64,
    /// After a gap, offsets go on where they are found, until a catalog tells them again.
    gap: bool,
    catalog: Catalog,
}

impl Check {
    fn segment(&mut self, disk: &dyn Disk, first_sequence: u64, next: Option<u64>) -> Result<()> {
        let (link, number) = (self.link.take(), self.number.take());
        let mut walk = Walk::open(disk, first_sequence)?;
        if number.is_some_and(|number| number + 1 != walk.segment.number) {
            self.damage(&walk.name, 0, "the segment before it is missing");
        } else if link.is_some_and(|link| link != walk.link) {
            self.damage(&walk.name, 0, "it does not follow the segment before it");
        }
        self.number = Some(walk.segment.number);
        // A segment gets its name after its first commit, and all before it, are on disk.
        self.durable = self.durable.max(next.unwrap_or(first_sequence));
        self.gap |= link.is_none();
        while let Some(found) = self.next_frame(&mut walk, next)? {
            self.frame(&walk, &found);
        }
        (self.link, self.end) = (Some(walk.link), walk.offset);
        Ok(())
    }

    /// The next frame, behind damage if there is some; `None` at the segment's end.
    fn next_frame(&mut self, walk: &mut Walk, next: Option<u64>) -> Result<Option<Frame>> {
        loop {
            let what = match walk.step()? {
                Step::Frame(found) => return Ok(Some(found)),
                Step::Bad(what) => what,
                Step::End => "it is missing from here on",
            };
            let missing = walk.link.sequence + 1;
            if next == Some(missing) {
                return self.end(walk, "what follows the last commit is not empty");
            }
            let durable = self.durable.max(walk.durable_beyond()?);
            if missing > durable {
                self.report.torn_bytes = walk.end_of_content(walk.offset)? - walk.offset;
                return Ok(None);
            }
            // Beside a service it may have been written since it was looked for.
            walk.forget();
            if let Step::Frame(found) = walk.step()? {
                return Ok(Some(found));
            }
            self.damage(&walk.name, walk.offset, &format!("commit {missing} was durable, but {what}"));
            self.gap = true;
            match walk.find(walk.offset)? {
                Some((offset, header)) => walk.jump(offset, &header),
                None => return Ok(None),
            }
        }
    }

    fn end(&mut self, walk: &mut Walk, what: &str) -> Result<Option<Frame>> {
        if walk.end_of_content(walk.offset)? > walk.offset {
            self.damage(&walk.name, walk.offset, what);
        }
        Ok(None)
    }

    fn frame(&mut self, walk: &Walk, found: &Frame) {
        self.durable = self.durable.max(found.header.durable);
        self.report.last_sequence = found.header.sequence;
        match self.content(walk, found) {
            Ok(()) => self.report.commits += 1,
            Err(fault) => self.damage(&walk.name, found.offset, &fault),
        }
    }

    /// What the frame holds fits what was before it, and can be decoded.
    fn content(&mut self, walk: &Walk, found: &Frame) -> Decoded<()> {
        let before = (!self.gap).then(|| self.catalog.to_bytes());
        let sections = commit::advance_catalog(found, &mut self.catalog)?;
        if found.header.flags & frame::CATALOG != 0 {
            self.gap = false;
            if before.is_some_and(|before| before != self.catalog.to_bytes()) {
                return Err("the catalog is not what the commits before it make it".into());
            }
        }
        let commit = commit::read_sections(found, &walk.segment, sections, &self.catalog)?;
        for section in &commit.sections {
            if self.gap {
                self.catalog.resume(&section.topic, section.base_offset);
            }
            self.catalog.advance(&section.topic, section.base_offset, section.rows.into())?;
            section.decode()?;
            *self.report.rows.entry(section.topic.to_string()).or_default() += u64::from(section.rows);
        }
        Ok(())
    }

    /// Turn what cannot be read into a damage and go on with the next segment.
    fn note(&mut self, checked: Result<()>, file: &str) -> Result<()> {
        match checked {
            Ok(()) => return Ok(()),
            Err(Error::Damaged { file, offset, what }) => self.damage(&file, offset, &what),
            Err(Error::Invalid { what, .. }) => self.damage(file, 0, &what),
            Err(error @ Error::Io { .. }) => self.damage(file, 0, &error.to_string()),
            Err(error) => return Err(error),
        }
        self.gap = true;
        Ok(())
    }

    fn damage(&mut self, file: &str, offset: u64, what: &str) {
        let what = what.split("\nhint:").next().unwrap_or_default().to_string();
        self.report.damages.push(Damage { file: file.into(), offset, what });
    }
}
