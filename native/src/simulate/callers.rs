//! What callers send, and what models say.

use serde_json::json;

use super::door::{Flight, Line, NO_LETTER, id_text, line};
use super::event;
use super::expression::Row;
use super::history::{Id, id_of};
use super::letters::Sent;
use super::pipeline::{Pipeline, Topic};
use super::run::{BEGIN_US, Run};
use crate::conform::write_ipc;
use crate::gate::{Clock, Kind, Request};

impl Run {
    pub(super) fn send(&mut self) {
        if let Some(flight) = (!self.unanswered.is_empty()).then(|| self.unanswered.remove(0)) {
            if self.chance.percent(70) {
                self.send_again(flight);
            }
            return;
        }
        match self.chance.below(21) {
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
            17 => self.send_retry(),
            18..=19 => self.send_lookup(),
            _ => self.send_position(),
        }
    }

    pub(super) fn send_events(&mut self, kind: Kind, count: usize) {
        let decides = matches!(kind, Kind::Decide | Kind::DecideMany | Kind::DryRun);
        let targets = if decides { self.pipeline.policies.len() } else { self.pipeline.topics.len() };
        let target = self.chance.below(targets);
        let lines: Vec<Line> = (0..count).map(|_| self.draw_line(kind, target)).collect();
        self.send_lines(kind, target, lines);
    }

    /// A new event, one that came before, the like of one, or poison.
    pub(super) fn draw_line(&mut self, kind: Kind, target: usize) -> Line {
        let pipeline = self.pipeline.clone();
        let topic = topic_of(&pipeline, kind, target);
        let topic = &pipeline.topics[topic];
        let now_us = self.clock.now_us();
        let untaken = !self.door.untaken.is_empty() && self.chance.percent(20);
        let known = if untaken { &self.door.untaken } else { &self.door.known };
        if self.chance.percent(self.odds.repeat) && !known.is_empty() {
            let recent = known.len().min(40);
            let (.., id, row) = &known[known.len() - 1 - self.chance.below(recent)];
            if id.0 == topic.name {
                let altered = self.chance.percent(20);
                let row = if altered { event::alter(topic, row, &mut self.chance) } else { row.clone() };
                return line(topic.name, topic.id, &row);
            }
        }
        self.next_id += 1;
        let row = self.draw_event(topic, now_us);
        let mut line = line(topic.name, topic.id, &row);
        if self.chance.percent(self.odds.poison) {
            line.row = None;
            line.id.1 = format!("poison {}", self.next_id);
        }
        line
    }

    fn draw_event(&mut self, topic: &Topic, now_us: i64) -> Row {
        let long = (self.odds.long, self.limits.text_bytes);
        event::draw(topic, self.next_id, now_us, long, &mut self.chance)
    }

    pub(super) fn send_lines(&mut self, kind: Kind, target: usize, lines: Vec<Line>) {
        self.send_in_place_of(Vec::new(), kind, target, lines);
    }

    /// Events; of a retry each in the place of a dead letter.
    fn send_in_place_of(&mut self, letters: Vec<i64>, kind: Kind, target: usize, mut lines: Vec<Line>) {
        let pipeline = self.pipeline.clone();
        let topic = &pipeline.topics[topic_of(&pipeline, kind, target)];
        let (body, texts) = match kind {
            Kind::EventsArrow => self.draw_batch(topic, &lines),
            _ => {
                let texts: Vec<_> = lines.iter_mut().map(|line| self.draw_text(topic, line)).collect();
                let body = match kind {
                    Kind::EventsJson => [b"[", &texts.join(&b","[..])[..], b"]"].concat(),
                    Kind::Retry => {
                        [json!(letters).to_string().as_bytes(), b"\n", &texts.join(&b"\n"[..])].concat()
                    }
                    _ => texts.join(&b"\n"[..]),
                };
                (body, texts)
            }
        };
        for (index, line) in lines.iter().enumerate() {
            let Some(row) = &line.row else { continue };
            self.history.sent.entry(line.id.clone()).or_default().push(row.clone());
            if let Some(&letter) = letters.get(index) {
                self.history.letters.retry((topic.name.into(), letter), &line.id, row);
            }
        }
        let rows = texts.into_iter().zip(lines.iter().map(|line| line.row.clone())).collect();
        let first = self.is_first(&lines);
        let ids: Vec<&str> = lines.iter().map(|line| line.id.1.as_str()).collect();
        let what = format!("{kind:?} {target} of {} {letters:?}", ids.join(" "));
        let flight = Flight { letters, ..self.flight(kind, target, lines, first) };
        let handle = self.door.send(flight, body, target);
        self.trace.push(format!("request {handle}: {what}"));
        let source = match kind {
            Kind::EventsJson => "json",
            Kind::EventsNdjson => "ndjson",
            Kind::EventsArrow => "arrow",
            _ => return,
        };
        self.history.letters.send(handle, Sent { topic: topic.name.into(), source, rows });
    }

    fn draw_text(&mut self, topic: &Topic, line: &mut Line) -> Vec<u8> {
        if let Some(row) = &line.row {
            return event::to_json(topic, row, &mut self.chance).into_bytes();
        }
        let row = self.draw_event(topic, BEGIN_US);
        let poison = event::draw_poison(topic, &row, &self.limits, &mut self.chance);
        line.json = serde_json::from_slice::<serde_json::Value>(&poison).is_ok();
        self.summary.count("poison");
        poison
    }

    /// Of poison, columns can hold texts that are too long.
    fn draw_batch(&mut self, topic: &Topic, lines: &[Line]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut rows = Vec::new();
        for line in lines {
            rows.push(line.row.clone().unwrap_or_else(|| {
                let row = self.draw_event(topic, BEGIN_US);
                self.summary.count("poison");
                event::lengthen(&row, &self.limits, &mut self.chance)
            }));
        }
        let body = write_ipc(&event::to_batch(topic, &rows)).expect("a batch can be written");
        (body, rows.iter().map(|row| event::arrow_json(topic, row).into_bytes()).collect())
    }

    /// Dead letters once more, as they were where they are events, or corrected.
    fn send_retry(&mut self) {
        let target = self.chance.below(self.pipeline.topics.len());
        let topic = self.pipeline.topics[target].clone();
        let count = self.history.letters.count(topic.name);
        if count == 0 {
            return;
        }
        let (mut letters, mut lines) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.chance.below(4) {
            let letter = self.chance.below(count);
            letters.push(letter as i64);
            let event = self.history.letters.event(topic.name, letter).cloned();
            lines.push(match event.filter(|_| self.chance.percent(70)) {
                Some(row) => line(topic.name, topic.id, &row),
                None => self.draw_line(Kind::Retry, target),
            });
        }
        if self.chance.percent(5) {
            letters[0] = NO_LETTER;
        }
        self.send_in_place_of(letters, Kind::Retry, target, lines);
    }

    /// Whether nobody has sent any of these events before, as far as it matters to what is told.
    pub(super) fn is_first(&self, lines: &[Line]) -> bool {
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
        let full = self.limited || self.unallocated;
        let (unreadable, rotten) = (self.unreadable, self.rotten_files());
        let first_sequence = self.history.first_sequence;
        let (letters, told, expected) = (Vec::new(), false, None);
        let alone = first;
        Flight {
            kind,
            target,
            lines,
            letters,
            clock_us,
            full,
            unreadable,
            rotten,
            first_sequence,
            told,
            expected,
            first,
            alone,
        }
    }

    pub(super) fn send_again(&mut self, flight: Flight) {
        match flight.kind {
            Kind::Lookup | Kind::Position => {}
            kind if !has_target(&self.pipeline, kind, flight.target) => {}
            kind => self.send_in_place_of(flight.letters, kind, flight.target, flight.lines),
        }
    }

    pub(super) fn send_known(&mut self, kind: Kind, target: usize, id: Id, row: &Row) {
        let pipeline = self.pipeline.clone();
        let topic = &pipeline.topics[topic_of(&pipeline, kind, target)];
        debug_assert_eq!(id, id_of(topic.name, &row[topic.id]));
        self.send_lines(kind, target, vec![line(topic.name, topic.id, row)]);
    }

    pub(super) fn send_lookup(&mut self) {
        let target = self.chance.below(self.pipeline.policies.len());
        let topic = &self.pipeline.topics[self.pipeline.policies[target].topic];
        let id = (
            topic.name.to_string(),
            match topic.id_type() {
                crate::schema::Type::Int64 => self.chance.below(self.next_id as usize + 1).to_string(),
                _ => format!("p-{}", self.chance.below(self.next_id as usize + 1)),
            },
        );
        let flight =
            self.flight(Kind::Lookup, target, vec![Line { id: id.clone(), row: None, json: true }], false);
        self.door.send(flight, id_text(&id), target);
    }

    pub(super) fn send_position(&mut self) {
        let topic = self.chance.pick(&self.pipeline.topics).name.to_string();
        let offset = self.chance.below(self.history.offsets.get(&topic).map_or(0, Vec::len) + 1) as u64;
        let consumer = format!("c{}", self.chance.below(2));
        let body = serde_json::json!({"consumer": consumer, "topic": topic, "offset": offset}).to_string();
        let id = (topic.clone(), format!("{consumer} {offset}"));
        self.positions.entry((consumer, topic)).or_default().1.push(offset);
        let flight = self.flight(Kind::Position, 0, vec![Line { id, row: None, json: true }], false);
        self.door.send(flight, body.into_bytes(), 0);
    }

    pub(super) fn pass_deadlines(&mut self) {
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

    pub(super) fn answer_models(&mut self) {
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

    pub(super) fn score(&mut self, number: u64, ids: Vec<Id>, garbled: usize) {
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
}

/// Whether the policy or topic is not removed.
pub fn has_target(pipeline: &Pipeline, kind: Kind, target: usize) -> bool {
    match kind {
        Kind::Decide | Kind::DecideMany | Kind::DryRun => target < pipeline.policies.len(),
        _ => target < pipeline.topics.len(),
    }
}

pub fn topic_of(pipeline: &Pipeline, kind: Kind, target: usize) -> usize {
    match kind {
        Kind::Decide | Kind::DecideMany | Kind::DryRun => pipeline.policies[target].topic,
        _ => target,
    }
}
