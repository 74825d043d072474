//! The one writer of a log.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::begin::{Begun, begin_segment};
use super::catalog::{self, Catalog, Changes, StoredSchema};
use super::commit::{self, Commit, Section};
use super::durable::{DurableFile, DurableReader, Slot};
use super::files::Files;
use super::flush::{Flush, Flushed, Health};
use super::frame::{self, Draft};
use super::place::{Address, Position};
use super::recovery::{self, Recovered, Witness};
use super::segment::{self, FOLDER};
use super::settings::Settings;
use super::spare::Spare;
use super::walk::{Link, Walk};
use crate::disk::{Disk, File};
use crate::error::{Error, Result};
use crate::schema::Schema;

/// Kept free at a segment's end for the epochs of restarts, so that a full disk does not prevent one.
const RESERVE_BYTES: u64 = 4096;
const FLUSHES_TIMED: usize = 5;
/// Positions of consumers at most: each segment begins with all of them, and they must leave it its room for rows.
pub const POSITIONS_MAX: usize = 1_000;
/// What a position takes in the catalog beside its key, at most: its offset and the marks of JSON.
const POSITION_BYTES: usize = 32;

/// What `open` found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The bytes of a torn end that was cut off; none of it had been acknowledged.
    pub cut_bytes: u64,
    /// The oldest commit that is kept.
    pub first_sequence: u64,
    /// The newest commit that was found: 0 in a new log.
    pub last_sequence: u64,
    /// The epoch that began now.
    pub epoch: u32,
    /// How long this disk takes to make a small commit durable: the median of a few.
    pub flush_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub sequence: u64,
    pub address: Address,
    /// The offset of each section's first row.
    pub base_offsets: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    pub segments: u64,
    pub bytes: u64,
}

/// The writer. It promises:
///
/// - An append is there as a whole or not at all, in the order of appends, across topics.
/// - What `sync` has returned for is found by every later `open`, or `open` (or the reader that meets it) says where it
///   is damaged. It never disappears.
/// - An append either has its space already or is refused before anything is written.
/// - After a failed write or sync nothing is tried again: every call is an error until the log is opened anew.
///
/// It does not promise that what was appended and not synced is gone after a crash.
pub struct Log {
    disk: Arc<dyn Disk>,
    settings: Settings,
    health: Arc<Health>,
    /// The first sequence and the length of each segment, oldest first; the last one is written.
    segments: Vec<(u64, u64)>,
    file: Arc<dyn File>,
    segment: segment::Header,
    /// Where the next frame goes.
    offset: u64,
    last: Position,
    link: Link,
    durable: u64,
    durable_file: DurableFile,
    spare: Spare,
    /// The offset from which the next segment is to be allocated.
    spare_due: u64,
    catalog: Catalog,
    pending: Changes,
    draft: Draft,
    files: Files,
}

impl Log {
    /// A log that nothing has been made of: for that of a data directory see `open_beside`.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings, now_us: i64) -> Result<(Log, Recovery)> {
        Log::open_beside(disk, settings, now_us, &Witness::default())
    }

    /// The log of a data directory, beside the newest of what was made of it. What is refused is as it was.
    pub fn open_beside(
        disk: Arc<dyn Disk>,
        settings: Settings,
        now_us: i64,
        witness: &Witness,
    ) -> Result<(Log, Recovery)> {
        settings.check()?;
        let slot = DurableReader::default().read(disk.as_ref())?;
        let recovered = recovery::recover(disk.as_ref(), slot, witness)?;
        let durable_file = DurableFile::open(disk.as_ref())?;
        for folder in ["", FOLDER] {
            disk.sync_folder(folder)
                .map_err(|error| Error::io(format!("could not sync folder {folder:?}"), error))?;
        }
        let spare = Spare::new(disk.clone(), settings.segment_bytes, settings.background)?;
        let (mut log, cut_bytes) = match recovered {
            Some(recovered) => {
                let cut_bytes = recovered.cut_bytes;
                (Log::resume(disk, settings, recovered, durable_file, spare), cut_bytes)
            }
            None => (Log::create(disk, settings, durable_file, spare, now_us)?, 0),
        };
        let last_sequence = if log.link.epoch == 0 { 0 } else { log.link.sequence };
        let flush_us = log.begin_epoch(now_us)?;
        log.allocate_ahead();
        let (first_sequence, epoch) = (log.first_sequence(), log.link.epoch);
        Ok((log, Recovery { cut_bytes, first_sequence, last_sequence, epoch, flush_us }))
    }

    fn create(
        disk: Arc<dyn Disk>,
        settings: Settings,
        durable_file: DurableFile,
        mut spare: Spare,
        now_us: i64,
    ) -> Result<Log> {
        let link = Link { sequence: 0, checksum: 0, epoch: 0 };
        let catalog = Catalog::default();
        let begun =
            begin_segment(disk.as_ref(), spare.take()?, settings.segment_bytes, 0, link, &catalog, now_us)?;
        let segments = vec![(begun.segment.first_sequence, begun.segment.bytes)];
        Ok(Log::assemble(disk, settings, segments, begun, catalog, durable_file, spare))
    }

    fn resume(
        disk: Arc<dyn Disk>,
        settings: Settings,
        recovered: Recovered,
        durable_file: DurableFile,
        spare: Spare,
    ) -> Log {
        let Recovered { segments, file, end, last_offset, catalog, .. } = recovered;
        let begun = Begun { file, segment: end.segment, last_offset, offset: end.offset, link: end.link };
        Log::assemble(disk, settings, segments, begun, catalog, durable_file, spare)
    }

    fn assemble(
        disk: Arc<dyn Disk>,
        settings: Settings,
        segments: Vec<(u64, u64)>,
        begun: Begun,
        catalog: Catalog,
        durable_file: DurableFile,
        spare: Spare,
    ) -> Log {
        let mut log = Log {
            files: Files::new(disk.clone()),
            disk,
            settings,
            health: Arc::default(),
            segments,
            file: begun.file.clone(),
            segment: begun.segment,
            offset: 0,
            last: Position { segment: 0, offset: 0, sequence: 0, checksum: 0 },
            link: begun.link,
            durable: begun.link.sequence,
            durable_file,
            spare,
            spare_due: 0,
            catalog,
            pending: Changes::default(),
            draft: Draft::default(),
        };
        log.enter(begun);
        log
    }

    /// Define a topic's schema; returns the id for its rows. The newest version again is the same id; any other schema
    /// is a new version, whose fitness is the caller's to judge. It is written with the next append.
    pub fn define(&mut self, topic: &str, schema: &Schema) -> Result<u32> {
        self.health.check()?;
        if topic.is_empty() || schema.fields.is_empty() {
            return Err(Error::invalid("a topic needs a name, and its schema at least one field"));
        }
        let pending = self.pending.schemas.iter().rev().find(|stored| &*stored.topic == topic);
        let newest = pending.or_else(|| self.catalog.newest_schema(topic));
        if let Some(same) = newest.filter(|stored| &stored.schema == schema) {
            return Ok(same.id);
        }
        let version = newest.map_or(1, |stored| stored.version + 1);
        let id = (self.catalog.schemas().len() + self.pending.schemas.len()) as u32;
        self.pending.schemas.push(StoredSchema::new(id, topic, version, schema.clone()));
        Ok(id)
    }

    /// Write a note, or remove it, with the next append.
    pub fn note(&mut self, key: &str, text: Option<&str>) {
        self.pending.notes.insert(key.into(), text.map(Into::into));
    }

    /// Whether a definition or a note waits for the next append.
    pub fn has_changes(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Remember that a consumer has seen a topic's rows before an offset, with the next append. Retention does not wait
    /// for consumers.
    pub fn note_position(&mut self, consumer: &str, topic: &str, offset: u64) {
        self.note(&catalog::position_key(consumer, topic), Some(&offset.to_string()));
    }

    /// Forget how far a consumer has come in a topic, with the next append.
    pub fn forget_position(&mut self, consumer: &str, topic: &str) {
        let key = catalog::position_key(consumer, topic);
        if self.catalog.notes().contains_key(&key) || self.pending.notes.contains_key(&key) {
            self.note(&key, None);
        }
    }

    /// Whether there is room for a consumer's position: those that are known may always move.
    pub fn check_position_room(&self, consumer: &str, topic: &str) -> Result<()> {
        let key = catalog::position_key(consumer, topic);
        let known = match self.pending.notes.get(&key) {
            Some(text) => text.is_some(),
            None => self.catalog.notes().contains_key(&key),
        };
        if known {
            return Ok(());
        }
        let count = self.positions().count();
        let bytes: usize = self.positions().chain([&key]).map(|key| key.len() + POSITION_BYTES).sum();
        let most = self.segment.bytes.min(self.settings.segment_bytes) / 8;
        match count < POSITIONS_MAX && bytes as u64 <= most {
            true => Ok(()),
            false => Err(Error::invalid_with(
                format!("the log has {count} positions of consumers, and takes no more"),
                "forget a consumer that is gone: penstock consumers --forget NAME",
            )),
        }
    }

    /// The keys of the positions, those of the next append included.
    fn positions(&self) -> impl Iterator<Item = &String> {
        let pending = &self.pending.notes;
        let kept = self.catalog.notes().keys().filter(|key| !pending.contains_key(*key));
        let coming = pending.iter().filter(|(_, text)| text.is_some()).map(|(key, _)| key);
        kept.chain(coming).filter(|key| key.starts_with(catalog::POSITION_PREFIX))
    }

    /// Whether a position can be one: a topic of this log, and no offset beyond its next.
    pub fn check_position(&self, consumer: &str, topic: &str, offset: u64) -> Result<()> {
        let allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-' | '.');
        if consumer.is_empty() || consumer.len() > 100 || !consumer.chars().all(allowed) {
            return Err(Error::invalid_with(
                "a consumer cannot have this name",
                "up to 100 letters, digits, underscores, hyphens or dots",
            ));
        }
        let Some(known) = self.catalog.topic(topic) else {
            return Err(Error::invalid("the log has no such topic"));
        };
        if offset > known.next_offset {
            return Err(Error::invalid(format!("the topic ends before offset {}", known.next_offset)));
        }
        Ok(())
    }

    /// As of the last append; what is defined or noted since comes with the next.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub fn next_offset(&self, topic: &str) -> u64 {
        self.catalog.next_offset(topic)
    }

    /// Write rows of any topics, and what is pending for the catalog, as one commit. Durable after `sync`.
    pub fn append(&mut self, sections: &[Section], now_us: i64) -> Result<Committed> {
        self.health.check()?;
        let schemas = self.schemas(sections)?;
        let base_offsets = self.encode(sections, &schemas)?;
        self.draft.finish(self.settings.compress_above)?;
        self.make_room(self.draft.frame_bytes() as u64, now_us)?;
        let flags = if self.pending.is_empty() { 0 } else { frame::CHANGES };
        self.write(flags, sections.len() as u16, self.link.epoch, now_us)?;
        self.catalog
            .apply(&std::mem::take(&mut self.pending))
            .expect("definitions are numbered as they come");
        for ((section, stored), base_offset) in sections.iter().zip(&schemas).zip(&base_offsets) {
            let advanced = self.catalog.advance(&stored.topic, *base_offset, section.batch.num_rows() as u64);
            advanced.expect("offsets are given out in order");
        }
        self.allocate_ahead();
        Ok(Committed { sequence: self.link.sequence, address: self.address(), base_offsets })
    }

    /// The largest append that a segment of its own can take.
    pub fn append_bytes_max(&self) -> u64 {
        let catalog = frame::frame_bytes(self.catalog.to_bytes().len()) + segment::HEADER_BYTES;
        let most = self.settings.segment_bytes - reserve(self.settings.segment_bytes);
        most.saturating_sub(catalog as u64)
    }

    /// Whether the next appends, of so many bytes together, have their space, before anything is taken in.
    ///
    /// `Error::Full` means not now, whatever it is that an allocation lacks: each call tries to allocate again. Waits
    /// for an allocation that is under way.
    pub fn room(&mut self, bytes: u64) -> Result<()> {
        self.health.check()?;
        self.allocate_ahead();
        let bytes = bytes + self.pending_bytes();
        if self.fits(bytes) {
            return Ok(());
        }
        self.check_fits_a_segment(bytes)?;
        self.spare.wait().map_err(|error| match error {
            full @ Error::Full { .. } => full,
            other => Error::Full { what: other.to_string() },
        })
    }

    /// Make all that was appended durable.
    pub fn sync(&mut self) -> Result<()> {
        self.health.check()?;
        if self.durable == self.link.sequence {
            return Ok(());
        }
        let flushed = self.begin_sync().run()?;
        self.finish_sync(flushed)
    }

    /// A sync of all that was appended, to be run elsewhere: appends may go on meanwhile.
    pub fn begin_sync(&self) -> Flush {
        Flush {
            file: self.file.clone(),
            slot: self.slot(),
            health: self.health.clone(),
            sync: self.settings.sync,
        }
    }

    /// What was flushed is durable; say so where readers and the next `open` look.
    pub fn finish_sync(&mut self, flushed: Flushed) -> Result<()> {
        self.health.check()?;
        if flushed.0.sequence <= self.durable {
            return Ok(());
        }
        self.durable = flushed.0.sequence;
        let written = self.durable_file.write(flushed.0);
        self.health.watch(written)
    }

    /// The newest sequence that is durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The newest sequence that was appended.
    pub fn last_sequence(&self) -> u64 {
        self.link.sequence
    }

    /// The oldest sequence that is kept.
    pub fn first_sequence(&self) -> u64 {
        self.segments[0].0
    }

    pub fn epoch(&self) -> u32 {
        self.link.epoch
    }

    /// The position of the last commit that was appended.
    pub fn end(&self) -> Position {
        self.last
    }

    /// The commit at an address, durable or not.
    pub fn read(&self, address: Address) -> Result<Commit> {
        self.health.check()?;
        let oldest = self.segment.number as u64 + 1 - self.segments.len() as u64;
        let index = address.segment().checked_sub(oldest);
        let Some((first_sequence, _)) = index.and_then(|index| self.segments.get(index as usize)) else {
            return Err(Error::invalid_with(
                format!("segment {} of the log is not kept", address.segment()),
                "retention has removed it: keep the log for longer",
            ));
        };
        let (file, segment) = self.files.get(*first_sequence)?;
        let found = Walk::frame_at(file, segment, address.offset())?;
        commit::read(&found, &segment, &self.catalog)
    }

    /// Whether retention has left a commit.
    pub fn keeps(&self, address: Address) -> bool {
        address.segment() + self.segments.len() as u64 > self.segment.number as u64
    }

    /// Whether the log can still be used: an error after a failed write or sync.
    pub fn check(&self) -> Result<()> {
        self.health.check()
    }

    /// Remove the oldest segments that retention does not keep, none with a sequence from `keep_from_sequence` on.
    ///
    /// A file that cannot be removed stays, and the log goes on: the next call tries again.
    pub fn trim(&mut self, now_us: i64, keep_from_sequence: u64) -> Result<Trimmed> {
        self.health.check()?;
        let mut trimmed = Trimmed::default();
        while let [(oldest, bytes), (next, _), ..] = self.segments[..]
            && next <= keep_from_sequence
            && (self.too_large() || self.too_old(next, now_us)?)
        {
            // One at a time, oldest first: a crash must not leave a gap.
            let failed = |error| Error::io(format!("could not remove {}", segment::path(oldest)), error);
            match self.disk.remove(&segment::path(oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => self.health.watch(self.disk.sync_folder(FOLDER).map_err(failed))?,
            }
            self.segments.remove(0);
            self.files.forget(oldest);
            trimmed.segments += 1;
            trimmed.bytes += bytes;
        }
        Ok(trimmed)
    }

    /// End in order: everything is durable, and what says so is too.
    pub fn close(mut self) -> Result<()> {
        self.sync()?;
        let slot = self.slot();
        self.durable_file.close(slot)
    }
}

/// How an append becomes a frame.
impl Log {
    fn schemas(&self, sections: &[Section]) -> Result<Vec<Arc<StoredSchema>>> {
        if sections.len() > u16::MAX as usize {
            return Err(Error::invalid(format!("{} sections are too many for one commit", sections.len())));
        }
        sections.iter().map(|section| self.schema(section.schema).cloned()).collect()
    }

    fn schema(&self, id: u32) -> Result<&Arc<StoredSchema>> {
        let pending = || self.pending.schemas.get((id as usize).checked_sub(self.catalog.schemas().len())?);
        let stored = self.catalog.schema(id).or_else(pending);
        stored.ok_or_else(|| Error::invalid(format!("schema {id} is not defined in this log")))
    }

    /// Write the payload into the draft; returns the offset of each section's first row.
    fn encode(&mut self, sections: &[Section], schemas: &[Arc<StoredSchema>]) -> Result<Vec<u64>> {
        for (section, stored) in sections.iter().zip(schemas) {
            commit::check(section, stored)?;
        }
        if sections.is_empty() && self.pending.is_empty() {
            return Err(Error::invalid("there is nothing to append"));
        }
        let base_offsets = self.base_offsets(sections, schemas);
        let payload = self.draft.begin();
        if !self.pending.is_empty() {
            let changes = self.pending.to_bytes();
            payload.extend_from_slice(&(changes.len() as u32).to_le_bytes());
            payload.extend_from_slice(&changes);
        }
        for ((section, stored), base_offset) in sections.iter().zip(schemas).zip(&base_offsets) {
            commit::encode(section, stored, *base_offset, payload);
        }
        Ok(base_offsets)
    }

    fn base_offsets(&self, sections: &[Section], schemas: &[Arc<StoredSchema>]) -> Vec<u64> {
        let mut base_offsets = Vec::with_capacity(sections.len());
        for (index, stored) in schemas.iter().enumerate() {
            // A topic may have several sections in one commit.
            let before = (0..index).rev().find(|before| schemas[*before].topic == stored.topic);
            base_offsets.push(match before {
                Some(before) => base_offsets[before] + sections[before].batch.num_rows() as u64,
                None => self.next_offset(&stored.topic),
            });
        }
        base_offsets
    }

    /// Put the draft where the next frame goes.
    fn write(&mut self, flags: u16, sections: u16, epoch: u32, now_us: i64) -> Result<()> {
        let header = frame::Header {
            sequence: self.link.sequence + 1,
            durable: self.durable,
            time_us: now_us,
            previous: self.link.checksum,
            epoch,
            flags,
            sections,
            ..frame::Header::default()
        };
        let (bytes, checksum) = self.draft.seal(header, self.segment.salt);
        let written = self.file.write(self.offset, bytes);
        let written = written.map_err(|error| Error::io("could not write to the log", error));
        let frame_bytes = bytes.len() as u64;
        self.health.watch(written)?;
        self.link = Link { sequence: header.sequence, checksum, epoch };
        let segment = self.segment.first_sequence;
        self.last = Position { segment, offset: self.offset, sequence: header.sequence, checksum };
        self.offset += frame_bytes;
        Ok(())
    }

    /// Begin this writer's epoch, on disk, and measure how long that takes.
    fn begin_epoch(&mut self, now_us: i64) -> Result<u64> {
        self.draft.begin();
        self.draft.finish(usize::MAX)?;
        if self.offset + self.draft.frame_bytes() as u64 > self.segment.bytes {
            self.spare.wait()?;
            self.roll(now_us)?;
        }
        let epoch = self.link.epoch.checked_add(1);
        let epoch = epoch.ok_or_else(|| Error::invalid("the log has had as many writers as it can"))?;
        self.write(frame::EPOCH, 0, epoch, now_us)?;
        let mut times = [0; FLUSHES_TIMED];
        for time in &mut times {
            let start = Instant::now();
            // The same bytes again: a sync of nothing new would be free.
            let (file, offset) = (self.file.as_ref(), self.last.offset);
            let written = file.write(offset, self.draft.bytes()).and_then(|()| file.sync());
            self.health.watch(written.map_err(|error| Error::io("could not write to the log", error)))?;
            *time = start.elapsed().as_micros() as u64;
        }
        self.finish_sync(Flushed(self.slot()))?;
        times.sort_unstable();
        Ok(times[FLUSHES_TIMED / 2])
    }

    fn address(&self) -> Address {
        Address::new(self.segment.number, self.last.offset)
    }

    fn slot(&self) -> Slot {
        Slot { sequence: self.last.sequence, address: self.address(), checksum: self.last.checksum }
    }
}

/// How the log gets its space, and gives it back.
impl Log {
    fn fits(&self, bytes: u64) -> bool {
        self.offset + bytes <= self.segment.bytes - reserve(self.segment.bytes)
    }

    fn check_fits_a_segment(&self, bytes: u64) -> Result<()> {
        match bytes <= self.append_bytes_max() {
            true => Ok(()),
            false => Err(Error::invalid_with(
                format!("{bytes} bytes do not fit into a segment of {}", self.settings.segment_bytes),
                "append fewer rows at a time, or use larger segments",
            )),
        }
    }

    fn pending_bytes(&self) -> u64 {
        if self.pending.is_empty() { 0 } else { self.pending.to_bytes().len() as u64 + 8 }
    }

    /// The draft's space, in a new segment if this one has too little left.
    fn make_room(&mut self, bytes: u64, now_us: i64) -> Result<()> {
        if self.fits(bytes) {
            return Ok(());
        }
        self.check_fits_a_segment(bytes)?;
        self.spare.wait()?;
        self.roll(now_us)
    }

    /// Once a quarter of the segment is used, see that there will be a next one, after a half soon; after a failure, now
    /// and then again.
    fn allocate_ahead(&mut self) {
        if self.offset >= self.spare_due && self.spare.absent() {
            self.spare.start();
            self.spare_due = self.offset + self.segment.bytes / 16;
        }
        if self.offset >= self.segment.bytes / 2 {
            self.spare.hurry();
        }
    }

    fn roll(&mut self, now_us: i64) -> Result<()> {
        // Everything before a segment is on disk before the segment has its name: recovery relies on it.
        self.sync()?;
        let number = segment::number_after(self.segment.number)?;
        let (file, bytes) = (self.spare.take()?, self.settings.segment_bytes);
        let begun = begin_segment(self.disk.as_ref(), file, bytes, number, self.link, &self.catalog, now_us);
        let begun = self.health.watch(begun)?;
        self.segments.push((begun.segment.first_sequence, begun.segment.bytes));
        self.enter(begun);
        self.finish_sync(Flushed(self.slot()))
    }

    /// Go on in a segment.
    fn enter(&mut self, begun: Begun) {
        let Begun { file, segment, last_offset, offset, link } = begun;
        self.last = Position {
            segment: segment.first_sequence,
            offset: last_offset,
            sequence: link.sequence,
            checksum: link.checksum,
        };
        self.spare_due = segment.bytes / 4;
        (self.file, self.segment, self.offset, self.link) = (file, segment, offset, link);
    }

    fn too_large(&self) -> bool {
        let bytes: u64 = self.segments.iter().map(|(_, bytes)| bytes).sum();
        self.settings.retention_bytes.is_some_and(|most| bytes > most)
    }

    /// A segment is as old as its youngest commit, which is no younger than the segment after it.
    fn too_old(&self, next: u64, now_us: i64) -> Result<bool> {
        let Some(retention_us) = self.settings.retention_us else { return Ok(false) };
        let (_, next) = self.files.get(next)?;
        Ok(next.time_us < now_us.saturating_sub(retention_us))
    }
}

fn reserve(segment_bytes: u64) -> u64 {
    RESERVE_BYTES.min(segment_bytes / 16)
}
