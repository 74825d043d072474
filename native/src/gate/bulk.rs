//! Requests with many events: taken in slices of one commit each, so that no decision waits behind all of one.

use std::collections::HashSet;
use std::ops::Range;

use arrow_array::RecordBatch;

use super::admit::Seen;
use super::admit::Taken;
use super::core::{CLOSING_BYTES, Core, Cycle, Waiter, refusal_body, take_new};
use super::words::Finished;
use super::{Answer, Kind, Request, Tell, Tells, error_body};
use crate::answer;
use crate::conform::{Unknown, conform, keep_rows, read_ipc};
use crate::decode::{Decoded, check_json, read_one, split_array, split_lines};
use crate::error::{Error, Result};
use crate::schema::Schema;

/// Memory is made for the answers of so many lines at a time.
const LINES_AHEAD: usize = 4096;
/// What a slice takes in the log beside its lines.
const SLICE_BYTES: usize = 128;

pub(super) struct Bulk {
    pub handle: u64,
    pub held_ns: u64,
    purpose: Purpose,
    source: Source,
    /// The first line that has not been taken.
    next: usize,
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
    rejected: Vec<(usize, Vec<u8>)>,
    repeated: usize,
    tells: Vec<Tell>,
    pub told: bool,
}

#[derive(Clone, Copy)]
enum Purpose {
    Decide(usize),
    Events(usize),
}

/// Where the events of a request are, each a line.
enum Source {
    Text { body: Vec<u8>, lines: Vec<Range<usize>> },
    Arrow(RecordBatch),
}

/// More lines are not read: each has a result, which may be much longer than the line.
const LINES_MAX: usize = 500_000;

impl Source {
    fn len(&self) -> usize {
        match self {
            Source::Text { lines, .. } => lines.len(),
            Source::Arrow(batch) => batch.num_rows(),
        }
    }

    /// From this line on as many as make so many bytes in the log, and how many bytes they are about.
    fn take(&self, first: usize, bytes_max: usize, decision_bytes: usize) -> (Range<usize>, usize) {
        match self {
            Source::Text { lines, .. } => {
                let (mut end, mut bytes) = (first, 0);
                while end < lines.len() && bytes < bytes_max {
                    bytes += lines[end].len() + decision_bytes;
                    end += 1;
                }
                (first..end, bytes)
            }
            Source::Arrow(batch) => {
                let each = batch.get_array_memory_size() / batch.num_rows().max(1) + 1 + decision_bytes;
                let count = bytes_max.div_ceil(each).min(batch.num_rows() - first);
                (first..first + count, count * each)
            }
        }
    }
}

impl Core {
    /// Read a request's outline; one that cannot be read is refused whole and takes nothing.
    pub(super) fn queue_bulk(&mut self, cycle: &mut Cycle, request: Request) -> Result<()> {
        let handle = request.handle;
        let purpose = match request.kind {
            Kind::DecideMany => Purpose::Decide(request.target),
            _ => Purpose::Events(request.target),
        };
        let held_ns = request.held_ns;
        let source = match self.read_source(request) {
            Ok(source) => source,
            Err(body) => {
                self.stats.refused += 1;
                cycle.answers.push(Answer::plain(handle, 422, body));
                return Ok(());
            }
        };
        let number = self.insert_bulk(Bulk::new(handle, held_ns, purpose, source));
        self.bulk_queue.push_back(number);
        Ok(())
    }

    /// A place to gather the lines of a dry run, which takes nothing.
    pub(super) fn open_dry_run(&mut self, request: &Request, lines: usize) -> u64 {
        let nothing = Source::Text { body: Vec::new(), lines: vec![0..0; lines] };
        let mut bulk = Bulk::new(request.handle, request.held_ns, Purpose::Decide(request.target), nothing);
        bulk.next = lines;
        self.insert_bulk(bulk)
    }

    fn insert_bulk(&mut self, bulk: Bulk) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.bulk.insert(number, bulk);
        number
    }

    /// Take the next lines of large requests, the oldest first, about one commit of them.
    pub(super) fn take_bulk(&mut self, cycle: &mut Cycle) -> Result<()> {
        let mut left = self.settings.commit_bytes;
        while left > 0
            && let Some(&number) = self.bulk_queue.front()
        {
            let bulk = self.bulk.get_mut(&number).expect("what is queued is there");
            let (lines, bytes) = bulk.source.take(bulk.next, left, decision_bytes(&self.plan, bulk.purpose));
            left = left.saturating_sub(bytes + SLICE_BYTES);
            bulk.next = lines.end;
            if bulk.next == bulk.source.len() {
                self.bulk_queue.pop_front();
            }
            self.take_slice(cycle, number, lines)?;
        }
        Ok(())
    }

    fn take_slice(&mut self, cycle: &mut Cycle, number: u64, lines: Range<usize>) -> Result<()> {
        let purpose = self.bulk[&number].purpose;
        if let Some(reason) = self.stats.full.clone() {
            let body = error_body("disk_full", &reason, None);
            lines.for_each(|line| self.refuse_line(number, line, &body));
            return Ok(());
        }
        let decoded = match self.decode_lines(number, purpose, lines.clone()) {
            // Only a look at the values shows some of what a whole slice lacks.
            Err(error @ Error::Invalid { .. }) => {
                self.stats.refused += lines.len() as u64;
                let body = error_body("not_arrow", &error.to_string(), None);
                lines.for_each(|line| self.refuse_line(number, line, &body));
                return Ok(());
            }
            decoded => decoded?,
        };
        for (index, refusal) in &decoded.refused {
            self.stats.refused += 1;
            self.refuse_line(number, lines.start + *index as usize, &refusal_body(refusal));
        }
        let lines: Vec<usize> = decoded.rows.iter().map(|&index| lines.start + index as usize).collect();
        match purpose {
            Purpose::Decide(policy) => {
                let waiters = lines.iter().map(|&line| Waiter::Line { bulk: number, line }).collect();
                self.decide_rows(cycle, policy, decoded.batch, waiters)
            }
            Purpose::Events(topic) => self.take_events(cycle, number, topic, decoded.batch, &lines),
        }
    }

    fn read_source(&self, request: Request) -> std::result::Result<Source, Vec<u8>> {
        match request.kind {
            Kind::EventsArrow => read_arrow(&request.body, &self.plan.topics[request.target].schema()),
            _ => read_text(request),
        }
    }

    fn decode_lines(&self, number: u64, purpose: Purpose, lines: Range<usize>) -> Result<Decoded> {
        let topic = match purpose {
            Purpose::Decide(policy) => self.plan.policy_topic(policy),
            Purpose::Events(topic) => topic,
        };
        match &self.bulk[&number].source {
            Source::Text { body, lines: ranges } => {
                Ok(self.decoders[topic].decode(ranges[lines].iter().map(|range| &body[range.clone()])))
            }
            Source::Arrow(batch) => {
                let slice = batch.slice(lines.start, lines.len());
                let (batch, refused) = conform(&slice, &self.plan.topics[topic].schema(), Unknown::Refuse)?;
                let wrong: HashSet<u32> = refused.iter().map(|(row, _)| *row).collect();
                let rows = (0..lines.len() as u32).filter(|row| !wrong.contains(row)).collect();
                Ok(Decoded { batch: keep_rows(&batch, &refused), rows, refused })
            }
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
                Seen::Refused(_, code, message) => {
                    self.stats.refused += 1;
                    self.refuse_line(number, line, &error_body(code, message, None));
                    continue;
                }
            };
            let repeated = !matches!(seen, Seen::New);
            self.stats.repeats += repeated as u64;
            let bulk = self.bulk.get_mut(&number).expect("it is being taken");
            bulk.offsets[line] = Some(offset);
            bulk.repeated += repeated as usize;
            bulk.open -= 1;
        }
        Ok(())
    }

    pub(super) fn refuse_line(&mut self, number: u64, line: usize, body: &[u8]) {
        let Some(bulk) = self.bulk.get_mut(&number) else { return };
        match bulk.purpose {
            Purpose::Decide(_) => bulk.answer(line, |text| text.extend_from_slice(body)),
            Purpose::Events(_) => bulk.rejected.push((line, body.to_vec())),
        }
        bulk.open -= 1;
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
        let took_ns = now_ns.saturating_sub(bulk.held_ns);
        if bulk.text.capacity() - bulk.text.len() < open.len() + CLOSING_BYTES {
            // About as long as this one: growing by doubling would copy and touch twice the memory.
            bulk.text.reserve((open.len() + CLOSING_BYTES) * bulk.open.min(LINES_AHEAD));
        }
        bulk.answer(line, |text| {
            text.extend_from_slice(open);
            answer::finish(text, took_ns);
        });
        bulk.open -= 1;
        // What is told from here on has been staged with this very commit.
        bulk.tells.extend(tell.filter(|_| !bulk.told));
    }

    /// The answers of those requests whose lines all have their result.
    pub(super) fn finish_bulk(&mut self, answers: &mut Vec<Answer>) {
        let done: Vec<u64> =
            self.bulk.iter().filter(|(_, bulk)| bulk.done()).map(|(&number, _)| number).collect();
        for number in done {
            let mut bulk = self.bulk.remove(&number).expect("it was just found");
            let (handle, body) = (bulk.handle, bulk.body().into());
            let tells = Tells::Many(std::mem::take(&mut bulk.tells).into());
            self.last.push((handle, tells.clone()));
            answers.push(Answer { handle, status: 200, body, flags: 0, tells });
        }
    }

    /// Large requests that were told the fallback: every line that was decided, and those that will be.
    pub(super) fn tell_bulk(&mut self, cycle: &mut Cycle, told: &HashSet<u64>) {
        for bulk in self.bulk.values_mut() {
            if told.contains(&bulk.handle) && !bulk.told {
                bulk.told = true;
                cycle.tells.append(&mut bulk.tells);
            }
        }
        for Finished { waiter, tell, .. } in &cycle.finished {
            if let (Waiter::Line { bulk, .. }, Some(tell)) = (waiter, tell)
                && self.bulk.get(bulk).is_some_and(|bulk| bulk.told)
            {
                cycle.tells.push(tell.clone());
            }
        }
    }
}

impl Bulk {
    fn new(handle: u64, held_ns: u64, purpose: Purpose, source: Source) -> Bulk {
        let lines = source.len();
        Bulk {
            handle,
            held_ns,
            purpose,
            source,
            next: 0,
            open: lines,
            text: Vec::new(),
            answers: vec![0..0; if matches!(purpose, Purpose::Decide(_)) { lines } else { 0 }],
            answered: 0,
            in_order: true,
            offsets: vec![None; if matches!(purpose, Purpose::Events(_)) { lines } else { 0 }],
            rejected: Vec::new(),
            repeated: 0,
            tells: Vec::new(),
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
        self.open == 0 && self.next == self.source.len()
    }

    fn body(&mut self) -> Vec<u8> {
        match self.purpose {
            Purpose::Decide(_) if self.in_order => std::mem::take(&mut self.text),
            Purpose::Decide(_) => {
                let answers = self.answers.iter().map(|answer| &self.text[answer.clone()]);
                answers.collect::<Vec<_>>().concat()
            }
            Purpose::Events(_) => self.events_body(),
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
        rejected.sort_by_key(|(line, _)| *line);
        for (position, (line, error)) in rejected.into_iter().enumerate() {
            if position > 0 {
                body.push(b',');
            }
            // `{"error":{…}}` with the line's index in front.
            body.extend_from_slice(format!("{{\"index\":{line},").as_bytes());
            body.extend_from_slice(&error[1..]);
        }
        body.extend_from_slice(b"]}");
        body
    }
}

fn read_arrow(body: &[u8], schema: &Schema) -> std::result::Result<Source, Vec<u8>> {
    let wrong = |error: &dyn std::fmt::Display| error_body("not_arrow", &error.to_string(), None);
    let batches = read_ipc(body).map_err(|error| wrong(&error))?;
    let Some(first) = batches.first() else {
        return Err(error_body("empty", "given a stream without rows, wanted events", None));
    };
    // Whether the columns fit is a matter of the whole stream; whether the values do, of each row.
    conform(&first.slice(0, 0), schema, Unknown::Refuse).map_err(|error| wrong(&error))?;
    let batch =
        arrow_select::concat::concat_batches(&first.schema(), &batches).map_err(|error| wrong(&error))?;
    if batch.num_rows() == 0 {
        return Err(error_body("empty", "given a stream without rows, wanted events", None));
    }
    Ok(Source::Arrow(batch))
}

fn read_text(request: Request) -> std::result::Result<Source, Vec<u8>> {
    let body = request.body;
    let array = request.kind == Kind::EventsJson && body.trim_ascii_start().first() == Some(&b'[');
    let lines = match request.kind {
        Kind::EventsJson if array => split_array(&body).map_err(|refusal| refusal_body(&refusal))?,
        Kind::EventsJson => read_one(&body).map_err(|refusal| refusal_body(&refusal))?,
        _ => split_lines(&body),
    };
    check_readable(&lines)?;
    let start = body.as_ptr() as usize;
    let lines = lines.iter().map(|line| line.as_ptr() as usize - start).zip(&lines);
    let lines = lines.map(|(at, line)| at..at + line.len()).collect();
    Ok(Source::Text { lines, body })
}

/// A body without events, or with no line that is JSON, cannot be read; else each line has a result of its own.
pub(super) fn check_readable(lines: &[&[u8]]) -> std::result::Result<(), Vec<u8>> {
    if lines.iter().all(|line| line.is_empty()) {
        return Err(error_body("empty", "given a body without events, wanted at least one", None));
    }
    if lines.len() > LINES_MAX {
        let message = format!("given {} events in one body, wanted at most {LINES_MAX}", lines.len());
        return Err(error_body("too_many_events", &message, None));
    }
    let mut refusals = lines.iter().map(|line| check_json(line).err());
    match refusals.next().flatten() {
        Some(first) if refusals.all(|refusal| refusal.is_some()) => Err(refusal_body(&first)),
        _ => Ok(()),
    }
}

fn decision_bytes(plan: &crate::plan::Plan, purpose: Purpose) -> usize {
    match purpose {
        Purpose::Events(_) => 0,
        Purpose::Decide(policy) => 96 + 9 * plan.features[plan.policies[policy].features].columns.len(),
    }
}
