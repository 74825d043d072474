//! One run: a service, its callers, and what happens to both.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::Broken;
use super::chance::Chance;
use super::clock::SimulatedClock;
use super::disk::SimulatedDisk;
use super::door::{Door, Flight};
use super::history::{History, Id, ensure};
use super::pipeline::{Pipeline, SECOND};
use super::settings::Settings;
use super::summary::Summary;
use crate::decode::Limits;
use crate::disk::Disk;
use crate::follower::Follower;
use crate::gate::{Clock, Core};
use crate::log::{self, Reader};
use crate::witness;

pub(super) const BEGIN_US: i64 = 1_793_600_000 * SECOND;

/// What is drawn once for a run, so that runs differ in kind.
pub(super) struct Odds {
    pub(super) ticks: usize,
    /// In percent of ticks.
    pub(super) crash: u32,
    pub(super) poison: u32,
    pub(super) repeat: u32,
    pub(super) deadline: u32,
    pub(super) follow: u32,
    pub(super) jump: u32,
    pub(super) full: u32,
    /// In percent of ticks with a full disk: a log has space for a while.
    pub(super) space: u32,
    pub(super) power: u32,
    pub(super) change: u32,
    /// A change that a start has to refuse.
    pub(super) mistake: u32,
    /// Texts that are as long as one may be: a log of them soon comes to its retention.
    pub(super) long: u32,
    pub(super) flip: u32,
}

/// A run's parts, each in its own field so that the story reads as sentences.
pub struct Run {
    pub(super) chance: Chance,
    pub(super) odds: Odds,
    pub(super) clock: Arc<SimulatedClock>,
    pub(super) disk: SimulatedDisk,
    pub(super) limits: Limits,
    pub(super) settings: Settings,
    /// The log's settings since it was last read: by any of them its beginning may have been removed.
    pub(super) removers: Vec<log::Settings>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) history: History,
    pub(super) door: Door,
    pub(super) core: Option<Core>,
    pub(super) reader: Option<Reader>,
    pub(super) follower: Option<Follower>,
    pub(super) models: Vec<(u64, Vec<Id>)>,
    /// Requests whose callers had no answer when the gate ended, and ask again.
    pub(super) unanswered: Vec<Flight>,
    /// By consumer and topic: whether one was acknowledged, and that one and those sent since.
    pub(super) positions: BTreeMap<(String, String), (bool, Vec<u64>)>,
    pub(super) next_id: u64,
    pub(super) limited: bool,
    /// A call to read may fail.
    pub(super) unreadable: bool,
    /// Space for the next segment may not be had.
    pub(super) unallocated: bool,
    /// Files of ids that a bit was flipped in, and their bytes then.
    pub(super) rotten: Vec<(String, Vec<u8>)>,
    /// The gate has ended by itself, and all that it wrote is there.
    pub(super) settled: bool,
    pub(super) hash: Xxh3,
    pub trace: Vec<String>,
    pub summary: Summary,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let mut chance = Chance::new(seed);
        let pipeline = Arc::new(Pipeline::draw(&mut chance));
        let mut odds = Odds {
            ticks: 60 + chance.below(120),
            crash: *chance.pick(&[3, 10, 30]),
            poison: *chance.pick(&[0, 5, 20]),
            repeat: *chance.pick(&[5, 20, 40]),
            deadline: *chance.pick(&[0, 5, 30]),
            follow: *chance.pick(&[0, 10, 40]),
            jump: *chance.pick(&[0, 0, 5]),
            full: *chance.pick(&[0, 0, 5]),
            space: *chance.pick(&[3, 30]),
            power: *chance.pick(&[20, 50, 90]),
            change: *chance.pick(&[0, 20, 50]),
            mistake: *chance.pick(&[0, 10]),
            long: *chance.pick(&[1, 1, 10, 40]),
            flip: *chance.pick(&[0, 40, 100]),
        };
        let mut settings = Settings::draw(&mut chance, &pipeline);
        if chance.percent(20) {
            // A run in which files go all the time: they fill up, and snapshots that need them no more are written.
            (odds.ticks, odds.long, odds.follow) = (180, 40, 40);
            settings.log.retention_bytes = Some(settings.log.segment_bytes * *chance.pick(&[1, 1, 2]));
        }
        Run {
            chance,
            odds,
            clock: Arc::new(SimulatedClock::new(BEGIN_US)),
            disk: SimulatedDisk::new(),
            limits: Limits::of_segments(settings.log.segment_bytes),
            removers: vec![settings.log.clone()],
            settings,
            pipeline,
            history: History::new(BEGIN_US),
            door: Door::default(),
            core: None,
            reader: None,
            follower: None,
            models: Vec::new(),
            unanswered: Vec::new(),
            positions: BTreeMap::new(),
            next_id: 0,
            limited: false,
            unreadable: false,
            unallocated: false,
            rotten: Vec::new(),
            settled: false,
            hash: Xxh3::new(),
            trace: Vec::new(),
            summary: Summary { seeds: 1, ..Summary::default() },
        }
    }

    /// The story; what it hashes to, of all that was answered and is in the log.
    pub fn run(&mut self) -> Result<u64, Broken> {
        self.history.define(&self.pipeline);
        self.history.letters.text_bytes = self.limits.text_bytes;
        self.start()?;
        for _ in 0..self.odds.ticks {
            self.tick()?;
            if self.chance.percent(self.odds.crash) {
                self.crash()?;
                self.recover()?;
            }
        }
        self.heal()?;
        self.summary.events = self.history.past.len() as u64;
        self.summary.acknowledged = self.door.acknowledged;
        self.summary.answers = self.door.answers;
        self.summary.decisions = self.history.checked;
        self.summary.unchecked = self.history.unchecked;
        self.summary.untaken = self.door.untaken.len() as u64;
        self.summary.letters = self.history.letters.total() as u64;
        self.summary.retried = self.history.letters.done.len() as u64;
        self.history.commits.values().for_each(|digest| self.hash.update(&digest.to_le_bytes()));
        Ok(self.hash.digest())
    }

    pub(super) fn tick(&mut self) -> Result<(), Broken> {
        self.clock.advance(self.chance.between(0, 3 * SECOND));
        if self.chance.percent(self.odds.jump) {
            let by = self.chance.between(-7200, 7200) * SECOND;
            self.clock.advance(by);
            self.note("the clock jumps", format!("by {} s", by / SECOND));
        }
        if self.chance.percent(if self.limited { self.odds.space } else { self.odds.full }) {
            self.fill_or_free();
        }
        self.see_clock();
        for _ in 0..self.chance.below(4) {
            self.send();
        }
        self.pass_deadlines();
        self.answer_models();
        self.cycle()?;
        if self.chance.percent(2) {
            self.check_state()?;
        }
        self.pass_deadlines();
        self.deliver();
        if self.chance.percent(self.odds.follow) {
            self.follow()?;
        }
        Ok(())
    }

    /// No more faults: everything comes back.
    pub(super) fn heal(&mut self) -> Result<(), Broken> {
        self.disk.disarm();
        self.disk.limit(None);
        self.limited = false;
        self.odds = Odds { deadline: 0, flip: 0, change: 0, mistake: 0, ..self.odds };
        self.trace.push("healing".into());
        self.end_gate(false);
        let mut whole = (*self.pipeline).clone();
        whole.restore();
        self.replace_pipeline(whole);
        self.recover()?;
        for flight in std::mem::take(&mut self.unanswered) {
            self.send_again(flight);
        }
        let known = self.door.known.clone();
        for (kind, target, id, row) in known {
            self.send_known(kind, target, id, &row);
        }
        for _ in 0..1000 {
            while let Some((number, ids)) = self.models.pop() {
                self.score(number, ids, 0);
            }
            self.cycle()?;
            self.deliver();
            if self.door.flights.is_empty() && self.models.is_empty() {
                break;
            }
        }
        ensure(self.door.flights.is_empty(), || {
            format!("{} requests have no answer", self.door.flights.len())
        })?;
        self.check_all_decided()?;
        let verify = || log::verify_beside(self.spared(), &witness::newest(self.spared().as_ref())?);
        let report = verify().map_err(|error| error.to_string())?;
        ensure(report.sound, || format!("the log is damaged: {:?}", report.damages))?;
        self.check_whole_log()?;
        self.check_state()
    }

    pub(super) fn see_clock(&mut self) {
        let now_us = self.clock.now_us();
        self.history.forgotten_us = self.history.forgotten_us.max(now_us);
        for flight in self.door.flights.values_mut() {
            flight.clock_us = (flight.clock_us.0.min(now_us), flight.clock_us.1.max(now_us));
        }
    }

    pub(super) fn fill_or_free(&mut self) {
        self.limited = !self.limited;
        if self.limited {
            let space = self.disk.used() + self.chance.below(40 << 10) as u64;
            self.disk.limit(Some(space));
            self.door.flights.values_mut().for_each(|flight| flight.full = true);
            self.note("disk full", String::new());
        } else {
            self.disk.limit(None);
            self.trace.push("the disk has space again".into());
        }
    }

    pub(super) fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    pub(super) fn spared(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.spared())
    }

    pub(super) fn note(&mut self, class: &str, what: String) {
        self.summary.count(class);
        self.trace.push(if what.is_empty() { class.to_string() } else { format!("{class}: {what}") });
    }
}
