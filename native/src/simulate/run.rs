//! One run: a service, its callers, and what happens to both.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::Broken;
use super::chance::Chance;
use super::clock::SimulatedClock;
use super::controls::{Safeguard, is_off};
use super::disk::{Fault, Loss, SimulatedDisk};
use super::door::{Door, Flight, Line, id_text, line};
use super::event;
use super::expression::{Row, Value};
use super::history::{History, Id, ensure, id_of};
use super::pipeline::{Pipeline, SECOND};
use super::summary::Summary;
use crate::conform::{read_ipc, write_ipc};
use crate::disk::Disk;
use crate::follower::Follower;
use crate::gate::{Answer, Clock, Core, Kind, MODEL, Request, Settings, Told};
use crate::ids;
use crate::log::{self, Reader};
use crate::plan::Plan;

const BEGIN_US: i64 = 1_793_600_000 * SECOND;
/// What a cycle's single requests may take of a segment.
const CYCLE_BYTES: usize = 6 << 10;

/// What is drawn once for a run, so that runs differ in kind.
struct Odds {
    ticks: usize,
    /// In percent of ticks.
    crash: u32,
    poison: u32,
    repeat: u32,
    deadline: u32,
    follow: u32,
    jump: u32,
    full: u32,
    power: u32,
    change: u32,
    flip: u32,
}

/// A run's parts, each in its own field so that the story reads as sentences.
pub struct Run {
    pub(super) chance: Chance,
    odds: Odds,
    pub(super) clock: Arc<SimulatedClock>,
    pub(super) disk: SimulatedDisk,
    pub(super) settings: (Settings, log::Settings, ids::Settings),
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) history: History,
    pub(super) door: Door,
    core: Option<Core>,
    reader: Option<Reader>,
    follower: Option<Follower>,
    models: Vec<(u64, Vec<Id>)>,
    /// Requests whose callers had no answer when the gate ended, and ask again.
    unanswered: Vec<Flight>,
    positions: BTreeMap<(String, String), Vec<u64>>,
    next_id: u64,
    limited: bool,
    /// A call to read may fail.
    unreadable: bool,
    pub(super) ids_damaged: bool,
    /// The gate has ended by itself, and all that it wrote is there.
    settled: bool,
    hash: Xxh3,
    pub trace: Vec<String>,
    pub summary: Summary,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let mut chance = Chance::new(seed);
        let pipeline = Arc::new(Pipeline::draw(&mut chance));
        let retain_us = pipeline.topics.iter().map(|topic| topic.retain_us).max().unwrap_or(0);
        let odds = Odds {
            ticks: 60 + chance.below(120),
            crash: *chance.pick(&[3, 10, 30]),
            poison: *chance.pick(&[0, 5, 20]),
            repeat: *chance.pick(&[5, 20, 40]),
            deadline: *chance.pick(&[0, 5, 30]),
            follow: *chance.pick(&[0, 10, 40]),
            jump: *chance.pick(&[0, 0, 5]),
            full: *chance.pick(&[0, 0, 5]),
            power: *chance.pick(&[20, 50, 90]),
            change: *chance.pick(&[0, 20, 50]),
            flip: *chance.pick(&[0, 40, 100]),
        };
        let settings = Settings {
            state_bytes_max: *chance.pick(&[usize::MAX, usize::MAX, usize::MAX, 6_000]),
            commit_bytes: *chance.pick(&[256, 1024]),
            threads: 1,
        };
        let segment_bytes = *chance.pick(&[24 << 10, 24 << 10, 64 << 10]);
        let log_settings = log::Settings {
            segment_bytes,
            compress_above: *chance.pick(&[64, 1000, usize::MAX]),
            retention_us: chance.percent(30).then_some(60 * SECOND),
            retention_bytes: chance.percent(50).then_some(3 * segment_bytes),
            background: false,
            sync: !is_off(Safeguard::Sync),
        };
        let ids_settings =
            ids::Settings { memory_ids: *chance.pick(&[4, 32, 100_000]), retain_us, background: false };
        Run {
            chance,
            odds,
            clock: Arc::new(SimulatedClock::new(BEGIN_US)),
            disk: SimulatedDisk::new(),
            settings: (settings, log_settings, ids_settings),
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
            ids_damaged: false,
            settled: false,
            hash: Xxh3::new(),
            trace: Vec::new(),
            summary: Summary { seeds: 1, ..Summary::default() },
        }
    }

    /// The story; what it hashes to, of all that was answered and is in the log.
    pub fn run(&mut self) -> Result<u64, Broken> {
        self.history.define(&self.pipeline);
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
        self.history.commits.values().for_each(|digest| self.hash.update(&digest.to_le_bytes()));
        Ok(self.hash.digest())
    }

    fn tick(&mut self) -> Result<(), Broken> {
        self.clock.advance(self.chance.between(0, 3 * SECOND));
        if self.chance.percent(self.odds.jump) {
            let by = self.chance.between(-7200, 7200) * SECOND;
            self.clock.advance(by);
            self.note("the clock jumps", format!("by {} s", by / SECOND));
        }
        if self.chance.percent(if self.limited { 30 } else { self.odds.full }) {
            self.fill_or_free();
        }
        self.see_clock();
        for _ in 0..self.chance.below(4) {
            self.send();
        }
        self.pass_deadlines();
        self.answer_models();
        self.cycle()?;
        self.pass_deadlines();
        self.deliver();
        if self.chance.percent(self.odds.follow) {
            self.follow()?;
        }
        Ok(())
    }

    /// No more faults: everything comes back.
    fn heal(&mut self) -> Result<(), Broken> {
        self.disk.disarm();
        self.disk.limit(None);
        self.limited = false;
        self.odds = Odds { deadline: 0, flip: 0, change: 0, ..self.odds };
        self.trace.push("healing".into());
        self.end_gate(false);
        self.recover()?;
        for flight in std::mem::take(&mut self.unanswered) {
            self.send_again(flight);
        }
        let known: Vec<_> = self.door.known.iter().rev().take(30).cloned().collect();
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
        let report = log::verify(self.spared()).map_err(|error| error.to_string())?;
        ensure(report.sound, || format!("the log is damaged: {:?}", report.damages))?;
        self.check_whole_log()?;
        self.check_state()
    }

    // Callers.

    fn send(&mut self) {
        if let Some(flight) = (!self.unanswered.is_empty()).then(|| self.unanswered.remove(0)) {
            if self.chance.percent(70) {
                self.send_again(flight);
            }
            return;
        }
        match self.chance.below(20) {
            0..=9 => self.send_events(Kind::Decide, 1),
            10..=11 => {
                let count = 1 + self.chance.below(12);
                self.send_events(Kind::DecideMany, count);
            }
            12..=14 => {
                let kind = *self.chance.pick(&[Kind::EventsJson, Kind::EventsNdjson, Kind::EventsArrow]);
                let count = 1 + self.chance.below(12);
                self.send_events(kind, count);
            }
            15..=16 => self.send_events(Kind::DryRun, 1),
            17..=18 => self.send_lookup(),
            _ => self.send_position(),
        }
    }

    fn send_events(&mut self, kind: Kind, count: usize) {
        let decides = matches!(kind, Kind::Decide | Kind::DecideMany | Kind::DryRun);
        let targets = if decides { self.pipeline.policies.len() } else { self.pipeline.topics.len() };
        let target = self.chance.below(targets);
        let lines: Vec<Line> = (0..count).map(|_| self.draw_line(kind, target)).collect();
        self.send_lines(kind, target, lines);
    }

    /// A new event, one that came before, the like of one, or poison.
    fn draw_line(&mut self, kind: Kind, target: usize) -> Line {
        let pipeline = self.pipeline.clone();
        let topic = topic_of(&pipeline, kind, target);
        let topic = &pipeline.topics[topic];
        let now_us = self.clock.now_us();
        if self.chance.percent(self.odds.repeat) && !self.door.known.is_empty() {
            let recent = self.door.known.len().min(40);
            let (.., id, row) = &self.door.known[self.door.known.len() - 1 - self.chance.below(recent)];
            if id.0 == topic.name {
                let altered = self.chance.percent(20);
                let row = if altered { event::alter(topic, row, &mut self.chance) } else { row.clone() };
                return line(topic.name, topic.id, &row);
            }
        }
        self.next_id += 1;
        let row = event::draw(topic, self.next_id, now_us, &mut self.chance);
        let mut line = line(topic.name, topic.id, &row);
        if kind != Kind::EventsArrow && self.chance.percent(self.odds.poison) {
            (line.row, line.json) = (None, false);
            line.id.1 = format!("poison {}", self.next_id);
        }
        line
    }

    fn send_lines(&mut self, kind: Kind, target: usize, mut lines: Vec<Line>) {
        let pipeline = self.pipeline.clone();
        let topic = &pipeline.topics[topic_of(&pipeline, kind, target)];
        let rows: Vec<Row> = lines.iter().filter_map(|line| line.row.clone()).collect();
        let mut texts = Vec::new();
        for line in &mut lines {
            texts.push(match &line.row {
                Some(row) => event::to_json(topic, row, &mut self.chance),
                None => {
                    let row = event::draw(topic, self.next_id, BEGIN_US, &mut self.chance);
                    let poison = event::draw_poison(topic, &row, &mut self.chance);
                    line.json = serde_json::from_str::<serde_json::Value>(&poison).is_ok();
                    self.summary.count("poison");
                    poison
                }
            });
        }
        let body = match kind {
            Kind::EventsArrow => write_ipc(&event::to_batch(topic, &rows)).expect("a batch can be written"),
            Kind::EventsJson => format!("[{}]", texts.join(",")).into_bytes(),
            _ => texts.join("\n").into_bytes(),
        };
        for line in &lines {
            if let Some(row) = &line.row {
                self.history.sent.entry(line.id.clone()).or_default().push(row.clone());
            }
        }
        let first = self.is_first(&lines);
        let ids: Vec<&str> = lines.iter().map(|line| line.id.1.as_str()).collect();
        let what = format!("{kind:?} {target} of {}", ids.join(" "));
        let flight = self.flight(kind, target, lines, first);
        let handle = self.door.send(flight, body, target);
        self.trace.push(format!("request {handle}: {what}"));
    }

    /// Whether nobody has sent any of these events before, as far as it matters to what is told.
    fn is_first(&self, lines: &[Line]) -> bool {
        let under_way =
            |id: &Id| self.door.flights.values().any(|flight| flight.lines.iter().any(|l| l.id == *id));
        let twice = |index: usize| lines[..index].iter().any(|line| line.id == lines[index].id);
        (0..lines.len()).all(|index| {
            let id = &lines[index].id;
            !twice(index) && !under_way(id) && !self.history.ids.contains_key(id)
        })
    }

    pub(super) fn flight(&self, kind: Kind, target: usize, lines: Vec<Line>, first: bool) -> Flight {
        let now_us = self.clock.now_us();
        let clock_us = (now_us, now_us);
        let (full, unreadable) = (self.limited, self.unreadable || self.ids_damaged);
        Flight { kind, target, lines, clock_us, full, unreadable, told: false, expected: None, first }
    }

    fn send_again(&mut self, flight: Flight) {
        match flight.kind {
            Kind::Lookup | Kind::Position => {}
            kind => self.send_lines(kind, flight.target, flight.lines),
        }
    }

    fn send_known(&mut self, kind: Kind, target: usize, id: Id, row: &Row) {
        let pipeline = self.pipeline.clone();
        let topic = &pipeline.topics[topic_of(&pipeline, kind, target)];
        debug_assert_eq!(id, id_of(topic.name, &row[topic.id]));
        self.send_lines(kind, target, vec![line(topic.name, topic.id, row)]);
    }

    fn send_lookup(&mut self) {
        let target = self.chance.below(self.pipeline.policies.len());
        let topic = &self.pipeline.topics[self.pipeline.policies[target].topic];
        let id = (
            topic.name.to_string(),
            match topic.fields[0].kind {
                crate::schema::Type::Int64 => self.chance.below(self.next_id as usize + 1).to_string(),
                _ => format!("p-{}", self.chance.below(self.next_id as usize + 1)),
            },
        );
        let flight =
            self.flight(Kind::Lookup, target, vec![Line { id: id.clone(), row: None, json: true }], false);
        self.door.send(flight, id_text(&id), target);
    }

    fn send_position(&mut self) {
        let topic = self.chance.pick(&self.pipeline.topics).name.to_string();
        let offset = self.chance.below(self.history.offsets.get(&topic).map_or(0, Vec::len) + 1) as u64;
        let consumer = format!("c{}", self.chance.below(2));
        let body = serde_json::json!({"consumer": consumer, "topic": topic, "offset": offset}).to_string();
        let id = (topic.clone(), format!("{consumer} {offset}"));
        self.positions.entry((consumer, topic)).or_default().push(offset);
        let flight = self.flight(Kind::Position, 0, vec![Line { id, row: None, json: true }], false);
        self.door.send(flight, body.into_bytes(), 0);
    }

    fn pass_deadlines(&mut self) {
        let handles: Vec<u64> = self.door.flights.keys().copied().collect();
        for handle in handles {
            if !self.chance.percent(self.odds.deadline) {
                continue;
            }
            let ids: Vec<Id> = self.door.flights[&handle].lines.iter().map(|line| line.id.clone()).collect();
            if let Some(what) = self.door.tell(handle) {
                self.history.told.extend(ids);
                self.note("deadline passed", what);
            }
        }
    }

    // Models.

    fn answer_models(&mut self) {
        let mut index = 0;
        while index < self.models.len() {
            if self.chance.percent(50) {
                let (number, ids) = self.models.remove(index);
                let garbled = if self.chance.percent(10) { 1 + self.chance.below(3) } else { 0 };
                // Some never come.
                if self.chance.percent(95) {
                    self.score(number, ids, garbled);
                }
            } else {
                index += 1;
            }
        }
    }

    fn score(&mut self, number: u64, ids: Vec<Id>, garbled: usize) {
        let mut body = Vec::new();
        for id in ids {
            let score = match self.chance.below(8) {
                0 => f64::NAN,
                score => score as f64 / 4.0,
            };
            body.extend_from_slice(&score.to_le_bytes());
            let said = Some(score).filter(|score| score.is_finite());
            self.history.scores.entry(id).or_default().push(said);
        }
        if garbled > 0 {
            body.truncate(body.len().saturating_sub(garbled * 3));
            self.note("garbled scores", String::new());
        }
        let request = Request { handle: 0, kind: Kind::Scores, target: number as usize, body, held_ns: 0 };
        self.door.inbox.push_back(request);
    }

    // The gate.

    fn cycle(&mut self) -> Result<(), Broken> {
        let count = 1 + self.chance.below(8);
        let (requests, told) = self.door.next_requests(count, CYCLE_BYTES);
        self.expect_dry_runs(&requests);
        self.trace.push(format!("cycle of {} requests", requests.len()));
        if let Err(error) = self.step(requests, told) {
            return self.stopped(error);
        }
        let mut rounds = 0;
        while self.core.as_ref().is_some_and(Core::busy) && rounds < 1 + self.chance.below(4) {
            rounds += 1;
            if let Err(error) = self.step(Vec::new(), Told::default()) {
                return self.stopped(error);
            }
        }
        Ok(())
    }

    fn step(&mut self, requests: Vec<Request>, told: Told) -> Result<(), Stop> {
        let Some(core) = self.core.as_mut() else { return Ok(()) };
        let answers = core.step(requests, told).and_then(|answers| core.tend().map(|()| answers));
        let answers = answers.map_err(|error| Stop::Gate(error.to_string()))?;
        self.read_log().map_err(Stop::Broken)?;
        for answer in answers {
            self.take(answer).map_err(Stop::Broken)?;
        }
        Ok(())
    }

    /// The gate has refused to go on: only a fault may make it.
    fn stopped(&mut self, stop: Stop) -> Result<(), Broken> {
        match stop {
            Stop::Broken(broken) => Err(broken),
            Stop::Gate(error) => {
                let fault = self.disk.disarm();
                let rotten = self.ids_damaged && error.contains("ids/");
                ensure(fault.is_some() || self.limited || rotten, || {
                    format!("the gate has stopped: {error}")
                })?;
                let class = match fault {
                    Some(fault) => format!("{fault:?}: the gate stopped"),
                    None if rotten => "a rotten file of ids: the gate stopped".into(),
                    None => "a full disk: the gate stopped".into(),
                };
                self.note(&class, error);
                let power = self.chance.percent(self.odds.power);
                self.end_gate(power);
                self.recover()
            }
        }
    }

    fn take(&mut self, answer: Answer) -> Result<(), Broken> {
        if answer.flags & MODEL != 0 {
            self.models.push((answer.handle, self.ids_of(&answer)?));
            return Ok(());
        }
        let body = String::from_utf8_lossy(&answer.body);
        let body = body.split(",\"took_ms\"").next().unwrap_or_default();
        self.hash.update(format!("{} {} {body}", answer.handle, answer.status).as_bytes());
        self.door.check(&answer, &self.history, &self.pipeline)?;
        self.door.outbox.push(answer);
        Ok(())
    }

    fn ids_of(&self, answer: &Answer) -> Result<Vec<Id>, Broken> {
        let batches = read_ipc(&answer.body).map_err(|error| error.to_string())?;
        let batch = batches.first().ok_or("a model is asked about nothing")?;
        let topic = self.pipeline.topics.iter().find(|topic| batch.column_by_name(topic.id).is_some());
        let topic = topic.ok_or("a model is asked about no event")?;
        let (column, kind) = (batch.column_by_name(topic.id).expect("it was found"), topic.fields[0].kind);
        let ids = (0..batch.num_rows()).map(|row| event::cell(column, kind, row).expect("an id"));
        Ok(ids.map(|id| id_of(topic.name, &id)).collect())
    }

    fn expect_dry_runs(&mut self, requests: &[Request]) {
        for request in requests.iter().filter(|request| request.kind == Kind::DryRun) {
            let flight = self.door.flights.get_mut(&request.handle).expect("it is under way");
            let policy = &self.pipeline.policies[flight.target];
            let topic = &self.pipeline.topics[policy.topic];
            if policy.model {
                continue;
            }
            let Some(row) = &flight.lines[0].row else { continue };
            let Value::Whole(time) = row[topic.time] else { continue };
            let next = self.history.next(topic.name, row.clone(), time as i64, topic.lateness_us);
            flight.expected = self.history.dry_run(&self.pipeline, flight.target, &next);
        }
    }

    fn deliver(&mut self) {
        for answer in std::mem::take(&mut self.door.outbox) {
            if self.chance.percent(80) {
                self.door.flights.remove(&answer.handle);
            } else {
                self.door.outbox.push(answer);
            }
        }
    }

    fn see_clock(&mut self) {
        let now_us = self.clock.now_us();
        self.history.forgotten_us = self.history.forgotten_us.max(now_us);
        for flight in self.door.flights.values_mut() {
            flight.clock_us = (flight.clock_us.0.min(now_us), flight.clock_us.1.max(now_us));
        }
    }

    // The disk.

    fn fill_or_free(&mut self) {
        self.limited = !self.limited;
        if self.limited {
            let space = self.disk.used() + self.chance.below(80 << 10) as u64;
            self.disk.limit(Some(space));
            self.door.flights.values_mut().for_each(|flight| flight.full = true);
            self.note("disk full", String::new());
        } else {
            self.disk.limit(None);
            self.trace.push("the disk has space again".into());
        }
    }

    fn read_log(&mut self) -> Result<(), Broken> {
        let shared = self.spared();
        let mut read = || -> crate::error::Result<Result<(), Broken>> {
            if self.reader.is_none() {
                self.reader = Some(Reader::open(shared.clone(), None)?);
            }
            let reader = self.reader.as_mut().expect("it was just opened");
            while let Some(commit) = reader.next()? {
                if let Err(broken) = self.history.take(&commit, reader.catalog()) {
                    return Ok(Err(broken));
                }
            }
            self.history.first_sequence = log::first_sequence(shared.as_ref())?;
            Ok(Ok(()))
        };
        read().map_err(|error| format!("the log cannot be read: {error}"))?
    }

    /// Read again all that is kept: what was there is there.
    fn check_whole_log(&mut self) -> Result<(), Broken> {
        self.reader = None;
        self.read_log()?;
        let kept = self.history.commits.range(self.history.first_sequence..).count();
        let mut reader = Reader::open(self.spared(), None).map_err(|error| error.to_string())?;
        let mut found = 0;
        while reader.next().map_err(|error| error.to_string())?.is_some() {
            found += 1;
        }
        ensure(found == kept, || format!("the log has {found} commits of {kept}"))
    }

    fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    fn spared(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.spared())
    }

    // The follower.

    fn follow(&mut self) -> Result<(), Broken> {
        let armed = self.chance.percent(15);
        if armed {
            let fault =
                *self.chance.pick(&[Fault::Stop, Fault::StopAfter, Fault::FailedSync, Fault::ShortWrite]);
            self.disk.arm(fault, 1 + self.chance.below(8) as u64);
        }
        let followed = self.follow_on();
        let fault = self.disk.disarm();
        match followed {
            Ok(()) => Ok(()),
            Err(error) => {
                self.follower = None;
                let overtaken = error.contains("not kept any more") || error.contains("not there any more");
                ensure(fault.is_some() || self.limited || overtaken, || {
                    format!("the follower has stopped: {error}")
                })?;
                self.note("follower stopped", format!("{fault:?}: {error}"));
                Ok(())
            }
        }
    }

    fn follow_on(&mut self) -> Result<(), Broken> {
        let words = |error: crate::error::Error| error.to_string();
        if self.follower.is_none() {
            let plan = Arc::new(self.pipeline.plan());
            let follower = Follower::open(plan, self.shared(), 1, &mut |_, _, _| {}).map_err(words)?;
            self.follower = Some(follower);
        }
        let commits = 1 + self.chance.below(60);
        let snapshot = self.chance.percent(50);
        let follower = self.follower.as_mut().expect("it was just opened");
        follower.advance(commits, |_| Ok(())).map_err(words)?;
        ensure(follower.mismatches == 0, || "the follower came to other features".into())?;
        if snapshot && follower.sequence > 0 {
            let sequence = follower.write_snapshot().map_err(words)?;
            self.summary.snapshots += 1;
            self.trace.push(format!("snapshot of commit {sequence}"));
        }
        Ok(())
    }

    /// The state as a start would have it, and as it comes from the whole log, are the same bytes.
    fn check_state(&mut self) -> Result<(), Broken> {
        let plan = Arc::new(self.pipeline.plan());
        let (restored, lacking) =
            state(&plan, self.spared()).map_err(|error| format!("restoring: {error}"))?;
        let whole: Arc<dyn Disk> = Arc::new(self.disk.whole_log());
        let (computed, _) = state(&plan, whole).map_err(|error| format!("recomputing: {error}"))?;
        if lacking {
            self.summary.count("(state not compared: retention had removed a part)");
            return Ok(());
        }
        self.summary.states += 1;
        for (index, (restored, computed)) in restored.iter().zip(&computed).enumerate() {
            ensure(restored == computed, || {
                format!("store {index} is restored as {} bytes, computed {}", restored.len(), computed.len())
            })?;
        }
        Ok(())
    }

    // Ends and starts.

    /// The gate ends: killed, stopped, in the middle of a call, or with the machine.
    fn crash(&mut self) -> Result<(), Broken> {
        let power = self.chance.percent(self.odds.power);
        match self.chance.below(10) {
            0 => {
                self.note("orderly end", String::new());
                if let Some(core) = self.core.take() {
                    core.close().map_err(|error| format!("the gate does not close: {error}"))?;
                }
                self.end_gate(power);
                self.settled = !power;
            }
            1..=3 => {
                self.note("killed", String::new());
                self.end_gate(power);
                self.settled = !power;
            }
            _ => {
                let fault = *self.chance.pick(&[
                    Fault::Stop,
                    Fault::StopAfter,
                    Fault::FailedWrite,
                    Fault::ShortWrite,
                    Fault::FailedSync,
                    Fault::FailedAllocate,
                    Fault::FailedRead,
                ]);
                self.disk.arm(fault, 1 + self.chance.below(6) as u64);
                self.trace.push(format!("armed {fault:?}"));
                self.unreadable = fault == Fault::FailedRead;
                self.door
                    .flights
                    .values_mut()
                    .for_each(|flight| flight.unreadable |= fault == Fault::FailedRead);
                for _ in 0..3 {
                    self.send();
                    self.cycle()?;
                    self.deliver();
                }
                if let Some(fault) = self.disk.disarm() {
                    self.note(&format!("{fault:?}: the gate went on"), String::new());
                }
                self.end_gate(power);
            }
        }
        Ok(())
    }

    fn end_gate(&mut self, power: bool) {
        self.core = None;
        self.unreadable = false;
        self.reader = None;
        self.models.clear();
        self.unanswered.extend(self.door.lose_gate());
        if power {
            let loss = *self.chance.pick(&[Loss::Everything, Loss::Writes, Loss::Sectors, Loss::Bytes]);
            self.disk = self.disk.lose_power(&mut self.chance, loss);
            self.follower = None;
            self.note(&format!("power loss: {loss:?}"), String::new());
        } else if self.chance.percent(50) {
            self.follower = None;
        }
    }

    fn recover(&mut self) -> Result<(), Broken> {
        if std::mem::take(&mut self.settled) && self.chance.percent(self.odds.flip) {
            self.damage()?;
        }
        if self.chance.percent(self.odds.change) && self.summary.starts < 40 {
            let mut changed = (*self.pipeline).clone();
            let what = changed.change(&mut self.chance);
            self.pipeline = Arc::new(changed);
            self.follower = None;
            self.note("pipeline changed", what.into());
            self.history.define(&self.pipeline);
        }
        self.start()
    }

    /// Until it succeeds: without a fault it must.
    fn start(&mut self) -> Result<(), Broken> {
        for attempt in 0..20 {
            if self.chance.percent(20) && attempt < 10 && self.history.sequence > 0 {
                let fault =
                    *self.chance.pick(&[Fault::Stop, Fault::StopAfter, Fault::ShortWrite, Fault::FailedSync]);
                self.disk.arm(fault, 1 + self.chance.below(30) as u64);
            }
            self.summary.starts += 1;
            let opened = self.open();
            let fault = self.disk.disarm();
            match opened {
                Ok(()) => {
                    let Some(fault) = fault else { break };
                    self.core = None;
                    self.note(&format!("{fault:?} in a start"), String::new());
                }
                Err(error) if fault.is_some() => {
                    self.note(&format!("{:?} in a start", fault.expect("it struck")), error)
                }
                Err(error) if self.limited => {
                    self.note("no start on a full disk", error);
                    self.disk.limit(None);
                    self.limited = false;
                }
                // The file is marked, and the next start does without it.
                Err(error) if self.ids_damaged && error.starts_with("ids/") => {
                    self.note("a rotten file of ids: no start", error);
                }
                Err(error) => return Err(format!("no start: {error}")),
            }
            if self.chance.percent(self.odds.power) {
                self.disk = self.disk.lose_power(&mut self.chance, Loss::Bytes);
                self.follower = None;
            }
        }
        self.check_whole_log()?;
        self.check_positions()?;
        ensure(self.history.open().is_empty(), || {
            format!("undecided after a start: {:?}", self.history.open())
        })?;
        if self.chance.percent(30) { self.check_state() } else { Ok(()) }
    }

    fn open(&mut self) -> Result<(), String> {
        let (settings, log_settings, ids_settings) = self.settings.clone();
        let (plan, clock) = (self.pipeline.plan(), self.clock.clone());
        let shared = self.shared();
        let opened = Core::open(plan, shared, clock, settings, log_settings, ids_settings, &mut |_, _, _| {});
        let (core, started) = opened.map_err(|error| error.to_string())?;
        self.trace.push(format!(
            "started at commit {}: {} commits read, {} undecided, {} bytes cut, lacking {:?}",
            started.recovery.last_sequence,
            started.commits,
            started.undecided,
            started.recovery.cut_bytes,
            started.incomplete
        ));
        self.history.lacks(&started.incomplete);
        self.core = Some(core);
        Ok(())
    }

    /// But for those that retention has removed undecided.
    fn check_all_decided(&mut self) -> Result<(), Broken> {
        let open = self.history.open();
        ensure(open.is_empty(), || format!("undecided: {open:?}"))
    }

    fn check_positions(&mut self) -> Result<(), Broken> {
        let catalog = log::newest_catalog(self.spared()).map_err(|error| error.to_string())?;
        for ((consumer, topic), sent) in &self.positions {
            let found = catalog.position(consumer, topic);
            ensure(found.is_none_or(|found| sent.contains(&found)), || {
                format!("{consumer} {topic}: {found:?}")
            })?;
        }
        Ok(())
    }

    pub(super) fn note(&mut self, class: &str, what: String) {
        self.summary.count(class);
        self.trace.push(if what.is_empty() { class.to_string() } else { format!("{class}: {what}") });
    }
}

/// Why a step has no answers.
enum Stop {
    Gate(String),
    Broken(Broken),
}

pub fn topic_of(pipeline: &Pipeline, kind: Kind, target: usize) -> usize {
    match kind {
        Kind::Decide | Kind::DecideMany | Kind::DryRun => pipeline.policies[target].topic,
        _ => target,
    }
}

/// Every store's bytes at the log's end, and whether some lack what retention has removed.
fn state(plan: &Arc<Plan>, disk: Arc<dyn Disk>) -> crate::error::Result<(Vec<Vec<u8>>, bool)> {
    let mut follower = Follower::open(plan.clone(), disk, 1, &mut |_, _, _| {})?;
    while follower.advance(1024, |_| Ok(()))? > 0 {}
    let lacking = !follower.incomplete().is_empty();
    follower.engine.settle();
    let save = |index| {
        let mut bytes = Vec::new();
        follower.engine.save_store(index, &mut bytes).map(|()| bytes)
    };
    Ok(((0..plan.stores.len()).map(save).collect::<crate::error::Result<_>>()?, lacking))
}
