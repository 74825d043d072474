//! Requests with many events: taken in slices of one commit each, so that no decision waits behind all of one.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use arrow_array::RecordBatch;

use super::admit::{Seen, Taken};
use super::core::{CLOSING_BYTES, Core, Cycle, Waiter, refusal_body, take_new};
use super::dead::{self, Rejected, Retried};
use super::source::{Slice, Source, read_arrow, text_bytes};
use super::weight::{Sum, Weight};
use super::{Answer, Kind, LineTells, Request, Tell, error_body};
use crate::answer;
use crate::conform::{Unknown, conform, keep_rows};
use crate::decode::{ArrayCut, Decoded, check_one, split_lines};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::schema::Schema;

/// So long an answer says of further lines only that they are decided: texts of the state may make each very long.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Memory is made for the answers of so many lines at a time.
const LINES_AHEAD: usize = 4096;
/// An array is cut into events so many bytes at a time.
const CUT_BYTES: usize = 2 << 20;
/// What a slice takes in the log beside its lines.
const SLICE_BYTES: usize = 128;

pub(super) struct Bulk {
    pub handle: u64,
    pub held_ns: u64,
    pub kind: Kind,
    pub received_us: i64,
    pub purpose: Purpose,
    pub source: Source,
    /// The first line that has not been taken.
    pub next: usize,
    /// Lines without a result yet.
    open: usize,
    /// For decisions, what is answered: a line each, in the order in which they were known.
    text: Vec<u8>,
    /// Where in it each line's answer is.
    answers: Vec<Range<usize>>,
    answered: usize,
    /// That order is the lines' own.
    in_order: bool,
    /// For events, the offset of each line that is in the log.
    offsets: Vec<Option<i64>>,
    pub rejected: Vec<Rejected>,
    /// Dead letters of this request, and how many of them are not in the log yet.
    pub letters: usize,
    pub letters_open: usize,
    repeated: usize,
    pub tells: LineTells,
    pub told: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Decide(usize),
    DryRun(usize),
    Events(usize),
}

impl Core {
    /// Read a request's outline; one that cannot be read is refused whole and takes nothing.
    pub(super) fn queue_bulk(&mut self, cycle: &mut Cycle, mut request: Request) {
        if request.kind == Kind::EventsJson && request.body.trim_ascii_start().first() == Some(&b'[') {
            match ArrayCut::new(std::mem::take(&mut request.body)) {
                Ok(cut) => self.cutting.push_back((request, cut)),
                Err(refusal) => self.enter(cycle, &request, Err(refusal_body(&refusal))),
            }
            return;
        }
        let body = std::mem::take(&mut request.body);
        let source = match request.kind {
            Kind::EventsArrow => read_arrow(&body, &self.plan.topics[request.target].schema()),
            Kind::EventsJson => match check_one(&body) {
                Ok(()) => Source::text(request.kind, std::iter::once(0..body.len()).collect(), body),
                Err(refusal) => Err(refusal_body(&refusal)),
            },
            Kind::Retry => self.read_retry(request.target, &body).map(|letters| {
                let lines = line_places(&body).split_off(1);
                Source::Text { body, lines, letters }
            }),
            _ => Source::text(request.kind, line_places(&body), body),
        };
        self.enter(cycle, &request, source);
    }

    /// Cut arrays into their events, the oldest first, for about as long as one slice takes.
    pub(super) fn cut_arrays(&mut self, cycle: &mut Cycle) {
        let Some((request, mut cut)) = self.cutting.pop_front() else { return };
        match cut.advance(CUT_BYTES) {
            Ok(false) => self.cutting.push_front((request, cut)),
            Ok(true) => {
                let (body, lines) = cut.finish();
                self.enter(cycle, &request, Source::text(request.kind, lines, body));
            }
            Err(refusal) => self.enter(cycle, &request, Err(refusal_body(&refusal))),
        }
    }

    fn enter(&mut self, cycle: &mut Cycle, request: &Request, source: std::result::Result<Source, Vec<u8>>) {
        let source = match source {
            Ok(source) => source,
            Err(body) => {
                self.stats.refused += 1;
                cycle.answers.push(Answer::plain(request.handle, 422, body));
                return;
            }
        };
        let purpose = match request.kind {
            Kind::DecideMany => Purpose::Decide(request.target),
            Kind::DryRunMany => Purpose::DryRun(request.target),
            _ => Purpose::Events(request.target),
        };
        let number = self.next_number;
        self.next_number += 1;
        self.bulk.insert(number, Bulk::new(request, cycle.now_us, purpose, source));
        self.bulk_queue.push_back(number);
    }

    /// Take the next lines of large requests, the oldest first, about one commit of them.
    pub(super) fn take_bulk(&mut self, cycle: &mut Cycle) -> Result<()> {
        let mut slice = Slice {
            left: self.weights.commit_bytes,
            most: Sum::default(),
            bytes_max: self.weights.cycle_bytes,
            longest_text: self.engine.longest_text(),
        };
        while slice.has_left()
            && !self.letters.many(&self.weights)
            && let Some(&number) = self.bulk_queue.front()
        {
            let bulk = &self.bulk[&number];
            let (purpose, each) = (bulk.purpose, decision_bytes(&self.plan, bulk.purpose));
            let lines =
                bulk.source.take(bulk.next, &mut slice, each, self.weight(purpose), &self.weights.limits);
            slice.take(SLICE_BYTES);
            self.take_slice(cycle, number, purpose, lines, &mut slice)?;
        }
        Ok(())
    }

    fn weight(&self, purpose: Purpose) -> Weight {
        match purpose {
            Purpose::Decide(policy) | Purpose::DryRun(policy) => self.weights.decision(policy),
            Purpose::Events(topic) => self.weights.event(topic),
        }
    }

    /// These lines of a request are taken; a later slice takes the next.
    fn advance(&mut self, number: u64, end: usize) {
        let bulk = self.bulk.get_mut(&number).expect("it is being taken");
        bulk.next = end;
        if bulk.next == bulk.source.len() {
            self.bulk_queue.pop_front();
            self.told_lines.retain(|_, (each, _)| *each != number);
        }
    }

    fn take_slice(
        &mut self,
        cycle: &mut Cycle,
        number: u64,
        purpose: Purpose,
        mut lines: Range<usize>,
        slice: &mut Slice,
    ) -> Result<()> {
        if let Some(reason) = self.stats.full.clone()
            && matches!(purpose, Purpose::Events(_))
        {
            self.advance(number, lines.end);
            let body = error_body("disk_full", &reason, None);
            lines.for_each(|line| self.refuse_line(number, line, &body));
            return Ok(());
        }
        let decoded = self.decode_lines(number, purpose, &mut lines, slice);
        self.advance(number, lines.end);
        let decoded = match decoded {
            // Only a look at the values shows some of what a whole slice lacks.
            Err(error @ Error::Invalid { .. }) => {
                self.stats.refused += lines.len() as u64;
                let body = error_body("not_arrow", &error.to_string(), None);
                lines.for_each(|line| self.reject_line(number, line, &body));
                return Ok(());
            }
            decoded => decoded?,
        };
        for (index, refusal) in &decoded.refused {
            self.stats.refused += 1;
            self.reject_line(number, lines.start + *index as usize, &refusal_body(refusal));
        }
        let lines: Vec<usize> = decoded.rows.iter().map(|&index| lines.start + index as usize).collect();
        match purpose {
            Purpose::Decide(policy) => {
                let waiters = lines.iter().map(|&line| Waiter::Line { bulk: number, line }).collect();
                self.decide_rows(cycle, policy, decoded.batch, waiters)
            }
            Purpose::DryRun(policy) => {
                let waiters = lines.iter().map(|&line| Waiter::Line { bulk: number, line }).collect();
                self.dry_run_rows(cycle, policy, decoded.batch, waiters)
            }
            Purpose::Events(topic) => self.take_events(cycle, number, topic, decoded.batch, &lines),
        }
    }

    fn decode_lines(
        &self,
        number: u64,
        purpose: Purpose,
        lines: &mut Range<usize>,
        slice: &mut Slice,
    ) -> Result<Decoded> {
        let topic = match purpose {
            Purpose::Decide(policy) | Purpose::DryRun(policy) => self.plan.policy_topic(policy),
            Purpose::Events(topic) => topic,
        };
        match &self.bulk[&number].source {
            Source::Text { body, lines: ranges, .. } => {
                let lines = ranges[lines.clone()].iter().map(|range| &body[range.clone()]);
                Ok(self.decoders[topic].decode(lines))
            }
            Source::Arrow(batch) => self.conform_rows(topic, batch, lines, slice),
        }
    }

    /// Rows of an Arrow body as the topic's events: fewer of them where their texts are many bytes.
    fn conform_rows(
        &self,
        topic: usize,
        batch: &RecordBatch,
        lines: &mut Range<usize>,
        slice: &mut Slice,
    ) -> Result<Decoded> {
        let (schema, weight) = (self.plan.topics[topic].schema(), self.weights.event(topic));
        loop {
            let part = batch.slice(lines.start, lines.len());
            let (batch, refused) = conform(&part, &schema, &self.weights.limits, Unknown::Refuse)?;
            let mut most = slice.most;
            most.add_events(weight, lines.len(), text_bytes(&batch));
            if most.bytes(slice.longest_text) > slice.bytes_max && lines.len() > 1 {
                lines.end = lines.start + lines.len() / 2;
                continue;
            }
            slice.most = most;
            let wrong: HashSet<u32> = refused.iter().map(|(row, _)| *row).collect();
            let rows = (0..lines.len() as u32).filter(|row| !wrong.contains(row)).collect();
            return Ok(Decoded { batch: keep_rows(&batch, &refused), rows, refused });
        }
    }

    /// Events through their topic's door: they are remembered and nothing is decided about them.
    fn take_events(
        &mut self,
        cycle: &mut Cycle,
        number: u64,
        topic: usize,
        batch: RecordBatch,
        lines: &[usize],
    ) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let seen = self.admit(cycle, topic, 0, &batch)?;
        let group = cycle.groups.len() - 1;
        let events = take_new(&batch, &seen)?;
        if events.num_rows() > 0 {
            let first = self.remember(cycle, topic, 0, events, &[])?.offsets[0];
            cycle.groups[group].taken = Taken::Events(first);
        }
        for (row, (seen, &line)) in seen.iter().zip(lines).enumerate() {
            let offset = match seen {
                Seen::New => cycle.offset(group, row),
                Seen::InCycle(group, row) => cycle.offset(*group, *row),
                Seen::Before(event) => event.offset,
                Seen::Refused(status, body) => {
                    self.stats.refused += 1;
                    match status {
                        500.. => self.refuse_line(number, line, body),
                        _ => self.reject_line(number, line, body),
                    }
                    continue;
                }
            };
            let repeated = !matches!(seen, Seen::New);
            self.stats.repeats += repeated as u64;
            let bulk = self.bulk.get_mut(&number).expect("it is being taken");
            bulk.offsets[line] = Some(offset);
            if let Source::Text { letters, .. } = &bulk.source {
                cycle.retried.extend(letters.get(line).map(|&letter| Retried { topic, letter }));
            }
            bulk.repeated += repeated as usize;
            bulk.open -= 1;
        }
        Ok(())
    }

    pub(super) fn refuse_line(&mut self, number: u64, line: usize, body: &[u8]) {
        let Some(bulk) = self.bulk.get_mut(&number) else { return };
        match bulk.purpose {
            Purpose::Decide(_) | Purpose::DryRun(_) => bulk.answer(line, |text| text.extend_from_slice(body)),
            Purpose::Events(_) => bulk.rejected.push(Rejected::new(line, body)),
        }
        bulk.open -= 1;
    }

    /// A line is refused for what it holds: where it came through its topic's door, the topic keeps it.
    fn reject_line(&mut self, number: u64, line: usize, body: &[u8]) {
        self.refuse_line(number, line, body);
        self.keep_letter(number, body);
    }

    pub(super) fn finish_line(
        &mut self,
        number: u64,
        line: usize,
        open: &[u8],
        now_ns: u64,
        tell: Option<Tell>,
    ) {
        let Some(bulk) = self.bulk.get_mut(&number) else { return };
        bulk.open -= 1;
        if bulk.told {
            // Nobody hears the answer any more, and what is told from here on has been staged with this very commit.
            return;
        }
        if bulk.text.len() > ANSWER_BYTES_MAX {
            let message = "decided, but the answer to the body is too long; GET tells";
            bulk.answer(line, |text| text.extend_from_slice(&error_body("answer_too_large", message, None)));
            bulk.tells.extend(tell);
            return;
        }
        let took_ns = now_ns.saturating_sub(bulk.held_ns);
        if bulk.text.capacity() - bulk.text.len() < open.len() + CLOSING_BYTES {
            // About as long as this one: growing by doubling would copy and touch twice the memory.
            bulk.text.reserve((open.len() + CLOSING_BYTES) * bulk.open.min(LINES_AHEAD));
        }
        bulk.answer(line, |text| {
            text.extend_from_slice(open);
            answer::finish(text, took_ns);
        });
        bulk.tells.extend(tell);
    }

    /// The answers of those requests whose lines all have their result.
    pub(super) fn finish_bulk(&mut self, answers: &mut Vec<Answer>) {
        let done: Vec<u64> =
            self.bulk.iter().filter(|(_, bulk)| bulk.done()).map(|(&number, _)| number).collect();
        for number in done {
            let mut bulk = self.bulk.remove(&number).expect("it was just found");
            let (handle, body) = (bulk.handle, bulk.body().into());
            let tells = bulk.tells.take();
            self.last.push((handle, tells.clone()));
            answers.push(Answer { handle, status: 200, body, flags: 0, tells });
        }
    }
}

impl Bulk {
    fn new(request: &Request, received_us: i64, purpose: Purpose, source: Source) -> Bulk {
        let lines = source.len();
        Bulk {
            handle: request.handle,
            held_ns: request.held_ns,
            kind: request.kind,
            received_us,
            purpose,
            source,
            next: 0,
            open: lines,
            text: Vec::new(),
            answers: vec![0..0; if matches!(purpose, Purpose::Events(_)) { 0 } else { lines }],
            answered: 0,
            in_order: true,
            offsets: vec![None; if matches!(purpose, Purpose::Events(_)) { lines } else { 0 }],
            rejected: Vec::new(),
            letters: 0,
            letters_open: 0,
            repeated: 0,
            tells: LineTells::default(),
            told: false,
        }
    }

    fn answer(&mut self, line: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.text.len();
        write(&mut self.text);
        self.text.push(b'\n');
        self.answers[line] = start..self.text.len();
        self.in_order &= line == self.answered;
        self.answered += 1;
    }

    fn done(&self) -> bool {
        self.open == 0
            && self.letters_open == 0
            && self.next == self.source.len()
            && (!self.told || self.tells.is_empty())
    }

    /// The topic whose dead letters its rejected lines become, if they do.
    pub(super) fn topic(&self) -> Option<usize> {
        match self.purpose {
            Purpose::Events(topic) if self.kind != Kind::Retry => Some(topic),
            _ => None,
        }
    }

    /// A line as it came; of an Arrow body the row as JSON.
    pub(super) fn original(&self, line: usize, schema: &Schema) -> Cow<'_, [u8]> {
        match &self.source {
            Source::Text { body, lines, .. } => Cow::Borrowed(&body[lines[line].clone()]),
            Source::Arrow(batch) => Cow::Owned(dead::row_json(batch, schema, line)),
        }
    }

    fn body(&mut self) -> Vec<u8> {
        match self.purpose {
            Purpose::Events(_) => self.events_body(),
            _ if self.in_order => std::mem::take(&mut self.text),
            _ => {
                let answers = self.answers.iter().map(|answer| &self.text[answer.clone()]);
                answers.collect::<Vec<_>>().concat()
            }
        }
    }

    fn events_body(&self) -> Vec<u8> {
        let accepted = self.offsets.iter().flatten().count() - self.repeated;
        let mut body =
            format!("{{\"accepted\":{accepted},\"repeated\":{},\"offsets\":[", self.repeated).into_bytes();
        for (line, offset) in self.offsets.iter().enumerate() {
            if line > 0 {
                body.push(b',');
            }
            match offset {
                Some(offset) => body.extend_from_slice(itoa::Buffer::new().format(*offset).as_bytes()),
                None => body.extend_from_slice(b"null"),
            }
        }
        body.extend_from_slice(b"],\"rejected\":[");
        let mut rejected: Vec<_> = self.rejected.iter().collect();
        rejected.sort_by_key(|rejected| rejected.line);
        for (position, rejected) in rejected.into_iter().enumerate() {
            if position > 0 {
                body.push(b',');
            }
            rejected.write(&mut body);
        }
        body.extend_from_slice(b"]}");
        body
    }
}

/// Where in a body its lines are.
fn line_places(body: &[u8]) -> Vec<Range<usize>> {
    let start = |line: &[u8]| line.as_ptr() as usize - body.as_ptr() as usize;
    split_lines(body).into_iter().map(|line| start(line)..start(line) + line.len()).collect()
}

/// What a decision is likely to take in the log beside its event.
fn decision_bytes(plan: &Plan, purpose: Purpose) -> usize {
    match purpose {
        Purpose::Events(_) => 0,
        Purpose::Decide(policy) | Purpose::DryRun(policy) => {
            96 + 9 * plan.features[plan.policies[policy].features].columns.len()
        }
    }
}
