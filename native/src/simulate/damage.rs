//! Rot: one bit of one file is another than was written; or a commit is gone from the log and those behind it have
//! closed up, which only the chain between them tells.
//!
//! In the log's acknowledged bytes it is refused where it is met, with the place; never is an answer another or missing.
//! That is looked at on a copy of the disk, as who restores the file from a copy would have it. Snapshots, files of ids and the
//! two slots can be done without: there the service goes on.

use std::sync::Arc;

use super::Broken;
use super::callers::{has_target, topic_of};
use super::disk::SimulatedDisk;
use super::door::{Line, check_lookup, id_text};
use super::expression::Row;
use super::history::{Id, ensure};
use super::run::Run;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::gate::{Answer, Core, Kind, MODEL, Request, Told};
use crate::log::{self, Reader};
use crate::witness;

const SEGMENT_HEADER_BYTES: usize = 64;
const FRAME_HEADER_BYTES: usize = 52;
/// Of a frame's header: what, from where, how many bytes.
const FRAME_FIELDS: [(&str, usize, usize); 5] = [
    ("magic", 0, 4),
    ("checksum", 4, 4),
    ("length", 8, 8),
    ("sequence", 16, 8),
    ("rest of the header", 24, 28),
];
const LOOKED_UP: usize = 12;

struct Place {
    class: String,
    path: String,
    offset: usize,
    /// So many bytes are gone from there on; where there are none, a bit is another.
    gone: usize,
}

impl Run {
    /// Between an end of the process and the next start, when all that was written is there.
    pub(super) fn damage(&mut self) -> std::result::Result<(), Broken> {
        for _ in 0..self.chance.below(4) {
            self.damage_log()?;
        }
        if self.chance.percent(40) {
            // Last: two faults at once may be more than can be recovered from.
            self.damage_beside_the_log();
        }
        Ok(())
    }

    fn damage_log(&mut self) -> std::result::Result<(), Broken> {
        let mask = 1 << self.chance.below(8);
        let Some(place) = self.draw_place_in_log() else { return Ok(()) };
        self.note(&place.class, format!("{} at {}", place.path, place.offset));
        let damaged = self.disk.copy();
        match place.gone {
            0 => damaged.flip(&place.path, place.offset, mask),
            gone => damaged.close_up(&place.path, place.offset, gone),
        }
        self.check_damaged_log(&damaged, &place)
    }

    fn damage_beside_the_log(&mut self) {
        let mask = 1 << self.chance.below(8);
        let Some(place) = self.draw_place_beside_the_log() else { return };
        self.note(&place.class, format!("{} at {}", place.path, place.offset));
        self.disk.flip(&place.path, place.offset, mask);
        if place.path.starts_with("ids/") {
            let bytes = self.disk.contents(&place.path);
            self.rotten.push((place.path, bytes));
        }
    }

    /// Files of ids that a bit was flipped in and that are still there, under their names or marked as damaged.
    pub(super) fn rotten_files(&self) -> Vec<String> {
        let paths = self.disk.paths();
        let is = |path: &String, bytes: &[u8]| paths.contains(path) && self.disk.contents(path) == bytes;
        let still =
            |(path, bytes): &&(String, Vec<u8>)| is(path, bytes) || is(&format!("{path}.damaged"), bytes);
        self.rotten.iter().filter(still).map(|(path, _)| path.clone()).collect()
    }

    fn draw_place_in_log(&mut self) -> Option<Place> {
        let paths = self.disk.paths();
        let segments: Vec<&String> = paths.iter().filter(|path| path.ends_with(".segment")).collect();
        let index =
            if self.chance.percent(50) { segments.len() - 1 } else { self.chance.below(segments.len()) };
        let path = segments.get(index)?.to_string();
        let bytes = self.disk.contents(&path);
        let which = match index + 1 == segments.len() {
            true => "the newest segment",
            false => "a full segment",
        };
        if self.chance.percent(10) {
            let offset = self.chance.below(SEGMENT_HEADER_BYTES);
            return Some(Place { class: format!("flip: segment's header, {which}"), path, offset, gone: 0 });
        }
        let frames = frames(&bytes);
        if frames.len() > 2 && self.chance.percent(10) {
            let (offset, gone) = frames[1 + self.chance.below(frames.len() - 2)];
            return Some(Place { class: format!("a commit left out of {which}"), path, offset, gone });
        }
        let number = if self.chance.percent(30) { frames.len() - 1 } else { self.chance.below(frames.len()) };
        let &(start, length) = frames.get(number)?;
        let last = if number + 1 == frames.len() { "the last commit of " } else { "" };
        if self.chance.percent(50) {
            let (what, at, count) = *self.chance.pick(&FRAME_FIELDS);
            let offset = start + at + self.chance.below(count);
            return Some(Place { class: format!("flip: {what}, {last}{which}"), path, offset, gone: 0 });
        }
        let offset = start + FRAME_HEADER_BYTES + self.chance.below(length - FRAME_HEADER_BYTES);
        Some(Place { class: format!("flip: payload, {last}{which}"), path, offset, gone: 0 })
    }

    fn draw_place_beside_the_log(&mut self) -> Option<Place> {
        let paths = self.disk.paths();
        let wanted = |path: &&String| {
            let file = path.starts_with("ids/") || path.ends_with(".snapshot");
            (file && !path.ends_with(".unfinished")) || path.as_str() == "log/durable"
        };
        let files: Vec<&String> = paths.iter().filter(wanted).collect();
        let path = files.get(self.chance.below(files.len()))?.to_string();
        let class = match path.split('/').next() {
            Some("ids") => "flip: a file of ids",
            Some("snapshots") => "flip: a snapshot",
            _ => "flip: a slot of log/durable",
        };
        let length = self.disk.contents(&path).len();
        let offset = match path.as_str() {
            "log/durable" => 4096 * self.chance.below(2) + self.chance.below(32),
            _ => self.chance.below(length),
        };
        (offset < length).then(|| Place { class: class.into(), path, offset, gone: 0 })
    }

    fn check_damaged_log(
        &mut self,
        damaged: &SimulatedDisk,
        place: &Place,
    ) -> std::result::Result<(), Broken> {
        let what = format!("after damage ({}) in {} at {}", place.class, place.path, place.offset);
        let shared: Arc<dyn Disk> = Arc::new(damaged.clone());
        let (read, error) = self.read_damaged(&shared).map_err(|broken| format!("{what}: {broken}"))?;
        let kept = self.history.commits.range(self.history.first_sequence..).count();
        match &error {
            None => ensure(read >= kept, || format!("{what}: {read} commits of {kept}, and no error"))?,
            Some(error) => {
                ensure(names(error, place), || format!("{what}: reading says {error}"))?;
                let verify = || log::verify_beside(shared.clone(), &witness::newest(shared.as_ref())?);
                let report = verify().map_err(|error| error.to_string())?;
                ensure(!report.sound, || format!("{what}: verify finds it sound"))?;
            }
        }
        match self.open_on(shared, &self.pipeline) {
            // At the address of the one that is gone another stands now: no disk does so, and a look-up cannot know.
            Ok(_) if place.gone > 0 => Ok(()),
            Ok((core, _)) => self.ask_damaged(core, place, &what),
            Err(error) => ensure(names(&error, place), || format!("{what}: no start: {error}")),
        }
    }

    /// How many commits can be read that are as they were, and why no more.
    fn read_damaged(&self, disk: &Arc<dyn Disk>) -> std::result::Result<(usize, Option<Error>), Broken> {
        let mut read = 0;
        let next = |reader: &mut Option<Reader>| -> Result<Option<log::Commit>> {
            match reader {
                Some(reader) => reader.next(),
                None => reader.insert(Reader::open(disk.clone(), None)?).next(),
            }
        };
        let mut reader = None;
        loop {
            match next(&mut reader) {
                Ok(None) => return Ok((read, None)),
                Ok(Some(commit)) => {
                    self.history.compare(&commit)?;
                    read += 1;
                }
                Err(error) => return Ok((read, Some(error))),
            }
        }
    }

    /// Callers ask again about what was acknowledged: they are told the same, or that it cannot be read and where.
    fn ask_damaged(&mut self, mut core: Core, place: &Place, what: &str) -> std::result::Result<(), Broken> {
        let decided = |known: &&(Kind, usize, Id, Row)| {
            known.0 == Kind::Decide && has_target(&self.pipeline, known.0, known.1)
        };
        let known: Vec<_> = self.door.known.iter().rev().filter(decided).take(LOOKED_UP).cloned().collect();
        for (_, target, id, row) in known {
            let (policy, topic) =
                (&self.pipeline.policies[target], topic_of(&self.pipeline, Kind::Decide, target));
            let topic = &self.pipeline.topics[topic];
            let newest = *self.history.ids[&id].last().expect("it is known");
            let past = &self.history.past[newest];
            let open = !self.history.decisions.contains_key(&(policy.name.to_string(), past.offset));
            if open && past.origin.as_deref() == Some(policy.name) {
                // It has come again since, and waited for its decision: a start here has given it one.
                continue;
            }
            let lookup = ask(&mut core, Kind::Lookup, target, id_text(&id), what)?;
            let refused = |answer: &Answer| {
                let text = String::from_utf8_lossy(&answer.body);
                let named = text.contains(&place.path) || text.contains("ids/");
                answer.status == 500 && text.contains("log_damaged") && named
            };
            if !refused(&lookup) {
                let lines = vec![Line { id: id.clone(), row: None, json: true }];
                let flight = self.flight(Kind::Lookup, target, lines, false);
                check_lookup(
                    what,
                    &flight,
                    false,
                    lookup.status,
                    &lookup.body,
                    &self.history,
                    &self.pipeline,
                )?;
            }
            let now_us = self.history.forgotten_us;
            let past = &self.history.past[newest];
            let remembered = self.history.remembered(&id, topic.retain_us, now_us).is_some();
            // An id may have come again since, for another event.
            if !remembered || past.origin.as_deref() != Some(policy.name) || past.row != row {
                continue;
            }
            let body = super::event::to_json(topic, &row, &mut self.chance).into_bytes();
            let again = ask(&mut core, Kind::Decide, target, body, what)?;
            let offset = self.history.past[newest].offset;
            let told: serde_json::Value = serde_json::from_slice(&again.body).unwrap_or_default();
            let same = match self.history.timeouts.contains_key(&(policy.name.to_string(), offset)) {
                true => told["timed_out"] == true,
                false => told["offset"] == offset,
            };
            ensure(refused(&again) || (again.status == 200 && same), || {
                format!("{what}: {id:?} at {offset} is told {} {told}", again.status)
            })?;
        }
        Ok(())
    }
}

fn ask(
    core: &mut Core,
    kind: Kind,
    target: usize,
    body: Vec<u8>,
    what: &str,
) -> std::result::Result<Answer, Broken> {
    let request = Request { handle: 1, kind, target, body, held_ns: 0 };
    let answers = core.step(vec![request], Told::default()).map_err(|error| format!("{what}: {error}"))?;
    let answer = answers.into_iter().find(|answer| answer.handle == 1 && answer.flags & MODEL == 0);
    answer.ok_or_else(|| format!("{what}: {kind:?} has no answer"))
}

fn names(error: &Error, place: &Place) -> bool {
    matches!(error, Error::Damaged { file, .. } if *file == place.path)
}

/// Where each frame of a segment begins, and its length.
fn frames(segment: &[u8]) -> Vec<(usize, usize)> {
    let mut frames = Vec::new();
    let mut offset = SEGMENT_HEADER_BYTES;
    while segment.get(offset..offset + 4) == Some(b"pcmt") {
        let payload = u32::from_le_bytes(segment[offset + 8..offset + 12].try_into().expect("four bytes"));
        let length = (FRAME_HEADER_BYTES + payload as usize).next_multiple_of(8);
        frames.push((offset, length));
        offset += length;
    }
    frames
}
