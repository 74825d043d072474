//! The callers and their door: what they send, what they are told, and whether they may be told so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value as Json;

use super::Broken;
use super::expression::Row;
use super::history::{History, Id, Past, ensure, fallback_body, id_of};
use super::pipeline::{AHEAD_US, Pipeline};
use crate::gate::{Answer, Kind, REPEAT, Request, Told};

/// A request that has not been answered.
pub struct Flight {
    pub kind: Kind,
    /// A policy or a topic.
    pub target: usize,
    pub lines: Vec<Line>,
    /// Of a retry, the dead letter that each line is sent in the place of.
    pub letters: Vec<i64>,
    /// The clock's range since it was sent.
    pub clock_us: (i64, i64),
    /// The disk was full meanwhile.
    pub full: bool,
    /// A call to read may have failed meanwhile.
    pub unreadable: bool,
    /// Files of ids that a bit was flipped in, when it was sent.
    pub rotten: Vec<String>,
    /// The log's first commit then.
    pub first_sequence: u64,
    /// The caller was told the fallback at the deadline.
    pub told: bool,
    /// What a dry run must be told.
    pub expected: Option<Json>,
    /// The first attempt of its event, with no other under way when it was sent.
    pub first: bool,
    /// And none has been sent since: of two under way either may be the first.
    pub alone: bool,
}

impl Flight {
    /// Whether this may be said of what cannot be read: a call failed, or a rotten file is named.
    fn may_be_unread(&self, said: &[u8]) -> bool {
        self.unreadable || self.rotten.iter().any(|path| text(said).contains(path))
    }
}

/// An offset that no dead letter ever has.
pub const NO_LETTER: i64 = 1 << 40;

pub struct Line {
    pub id: Id,
    /// Absent for poison.
    pub row: Option<Row>,
    pub json: bool,
}

#[derive(Default)]
pub struct Door {
    pub inbox: VecDeque<Request>,
    pub flights: BTreeMap<u64, Flight>,
    pub outbox: Vec<Answer>,
    pub told: Told,
    next_handle: u64,
    /// By policy and offset: the decision that callers were told.
    answered: BTreeMap<(String, i64), Json>,
    /// Told the fallback by this gate, and the newest request at that time: whoever asks later is told it too.
    promised: BTreeMap<Id, u64>,
    /// As far as this gate knows of it: the log may follow with a later commit.
    told_here: BTreeSet<Id>,
    /// Of those, the lines of bodies to a policy.
    told_lines: Vec<(usize, Id, Row)>,
    /// What was acknowledged, for retries: a policy or a topic, and the event.
    pub known: Vec<(Kind, usize, Id, Row)>,
    /// What the disk had no space for, as its callers were told.
    pub untaken: Vec<(Kind, usize, Id, Row)>,
    pub acknowledged: u64,
    pub answers: u64,
}

impl Door {
    pub fn send(&mut self, flight: Flight, body: Vec<u8>, target: usize) -> u64 {
        self.next_handle += 1;
        let handle = self.next_handle;
        self.inbox.push_back(Request { handle, kind: flight.kind, target, body, held_ns: 0 });
        for other in self.flights.values_mut() {
            let same = |line: &Line| flight.lines.iter().any(|sent| sent.id == line.id);
            other.alone &= !other.lines.iter().any(same);
        }
        self.flights.insert(handle, flight);
        handle
    }

    pub fn next_requests(&mut self, count: usize) -> (Vec<Request>, Told) {
        let requests: Vec<Request> = self.inbox.drain(..count).collect();
        let waits = |handle: &u64| self.inbox.iter().any(|request| request.handle == *handle);
        let told = std::mem::take(&mut self.told);
        let (told, later) = told.split(waits);
        self.told = later;
        (requests, told)
    }

    /// Deadlines: the caller is told the fallback, wherever its request is. As the gate's own boxes do it.
    pub fn tell(&mut self, handle: u64) -> Option<String> {
        let flight = self.flights.get_mut(&handle)?;
        if flight.told || !matches!(flight.kind, Kind::Decide | Kind::DecideMany) {
            return None;
        }
        flight.told = true;
        let first = flight.first;
        let ids: Vec<Id> =
            flight.lines.iter().filter(|line| line.row.is_some()).map(|line| line.id.clone()).collect();
        let waiting = self.outbox.iter().position(|answer| answer.handle == handle && answer.flags & 2 == 0);
        self.told_here.extend(ids.iter().cloned());
        if flight.kind == Kind::DecideMany {
            let told = flight
                .lines
                .iter()
                .filter_map(|line| Some((flight.target, line.id.clone(), line.row.clone()?)));
            self.told_lines.extend(told);
        }
        if first {
            self.promised.extend(ids.into_iter().map(|id| (id, self.next_handle)));
        }
        match waiting {
            Some(place) => {
                let answer = self.outbox.remove(place);
                self.void_promises(&answer);
                self.told.recall(answer);
                self.flights.remove(&handle);
            }
            None => self.told.add(handle),
        }
        Some(format!("told request {handle} the fallback"))
    }

    /// What was not taken is promised nothing: its retry is a first attempt.
    fn void_promises(&mut self, answer: &Answer) {
        let Some(flight) = self.flights.get(&answer.handle).filter(|flight| flight.first) else { return };
        let lines: Vec<&[u8]> = answer.body.split(|&byte| byte == b'\n').collect();
        for (index, line) in flight.lines.iter().enumerate() {
            let refused = lines
                .get(index)
                .is_none_or(|line| line.starts_with(b"{\"error\":") || for_want_of_space(line));
            if answer.status != 200 || refused {
                self.promised.remove(&line.id);
            }
        }
    }

    /// The gate has ended: what it had not answered will never be answered.
    pub fn lose_gate(&mut self) -> Vec<Flight> {
        let lost = std::mem::take(&mut self.flights);
        self.inbox.clear();
        self.outbox.clear();
        self.told = Told::default();
        // Where the fallback was told and is not in the log, the decision may follow.
        self.promised.clear();
        self.told_here.clear();
        self.told_lines.clear();
        lost.into_values().collect()
    }

    /// An answer has left the gate: whether it may say what it says.
    pub fn check(&mut self, answer: &Answer, history: &History, pipeline: &Pipeline) -> Result<(), Broken> {
        let Some(flight) = self.flights.get(&answer.handle) else {
            return Err(format!("request {} is answered twice", answer.handle));
        };
        self.answers += 1;
        let flight_kind = flight.kind;
        let what = format!("request {} ({flight_kind:?})", answer.handle);
        let body = &answer.body[..];
        if flight.told {
            // Nobody hears it any more.
            let may = answer.status != 500 || flight.may_be_unread(body);
            self.void_promises(answer);
            return ensure(may, || format!("{what}: {}", text(body)));
        }
        let repeat = answer.flags & REPEAT != 0;
        ensure(!(repeat && flight.alone), || format!("{what}: the first attempt is told as a repeat"))?;
        match flight.kind {
            Kind::Decide if answer.status == 200 => {
                self.check_told(&what, answer.handle, 0, body, history, pipeline)
            }
            Kind::Decide => {
                check_refused(&what, flight, &flight.lines[0], answer.status, body, history, pipeline)
            }
            Kind::DecideMany | Kind::EventsJson | Kind::EventsNdjson | Kind::EventsArrow | Kind::Retry
                if answer.status != 200 =>
            {
                let full = answer.status == 503 && flight.full;
                let unreadable = match flight.kind {
                    Kind::Retry => flight.letters.contains(&NO_LETTER),
                    _ => flight.lines.iter().any(|line| !line.json),
                };
                ensure(full || unreadable && answer.status == 422, || {
                    format!("{what}: {} {}", answer.status, text(body))
                })
            }
            Kind::DecideMany => {
                let lines: Vec<Vec<u8>> = body
                    .split_inclusive(|&byte| byte == b'\n')
                    .map(|line| line.trim_ascii().to_vec())
                    .collect();
                ensure(lines.len() == flight.lines.len(), || format!("{what}: {} lines", lines.len()))?;
                for (index, line) in lines.iter().enumerate() {
                    if line.starts_with(b"{\"error\":") {
                        let flight = &self.flights[&answer.handle];
                        check_refused(&what, flight, &flight.lines[index], 0, line, history, pipeline)?;
                    } else {
                        self.check_told(&what, answer.handle, index, line, history, pipeline)?;
                    }
                }
                Ok(())
            }
            Kind::EventsJson | Kind::EventsNdjson | Kind::EventsArrow | Kind::Retry => {
                self.check_events(&what, answer.handle, body, history, pipeline)
            }
            Kind::DryRun => check_dry_run(&what, flight, answer.status, body),
            Kind::Lookup => {
                let told_here = self.told_here.contains(&flight.lines[0].id);
                check_lookup(&what, flight, told_here, answer.status, body, history, pipeline)
            }
            Kind::Position => {
                let full = answer.status == 503 && flight.full;
                ensure(answer.status == 200 || full, || format!("{what}: {} {}", answer.status, text(body)))
            }
            other => Err(format!("{what}: {other:?} is not simulated")),
        }
    }

    /// A decision, or the fallback that the first caller was told.
    fn check_told(
        &mut self,
        what: &str,
        handle: u64,
        line: usize,
        body: &[u8],
        history: &History,
        pipeline: &Pipeline,
    ) -> Result<(), Broken> {
        let flight = &self.flights[&handle];
        let (index, line) = (line, &flight.lines[line]);
        let policy = &pipeline.policies[flight.target];
        let topic = &pipeline.topics[policy.topic];
        let row = line.row.as_ref().ok_or_else(|| format!("{what}: poison is answered {}", text(body)))?;
        let told = without_time(body)?;
        if told["cause"] == "disk_full" {
            return self.check_untaken(what, handle, index, &told, history, pipeline);
        }
        let its_own = |past: &&Past| past.row == *row && past.origin.as_deref() == Some(policy.name);
        let at = |place: &usize| &history.past[*place];
        let timed_out = |past: &&Past| {
            let noted = history.timeouts.get(&(policy.name.to_string(), past.offset)).cloned();
            let version =
                noted.or_else(|| self.told_here.contains(&line.id).then(|| pipeline.version(policy)));
            its_own(past) && version.is_some_and(|version| told["policy_version"] == version)
        };
        let mut newest_first = history.ids.get(&line.id).into_iter().flatten().rev().map(at);
        let past = match (told["offset"].as_i64(), flight.kind) {
            (Some(offset), _) => {
                history.offsets.get(topic.name).and_then(|all| all.get(offset as usize)).map(at)
            }
            // While a body was under way retention may have removed what this line was told of, and the id come again.
            (None, Kind::DecideMany) => newest_first.find(|past| {
                let since = flight.clock_us.0.saturating_sub(topic.retain_us);
                let kept = past.sequence >= flight.first_sequence && past.commit_us > since;
                kept && timed_out(past)
            }),
            (None, _) => newest_first.next().filter(timed_out),
        };
        let Some(past) = past.filter(its_own) else {
            // A line of a body that was told the fallback: it still waits, or its id was or is taken otherwise.
            let line = (flight.target, line.id.clone(), row.clone());
            let expected =
                fallback_body(topic.id_json(row), policy.fallback(), &pipeline.version(policy), "deadline");
            return ensure(self.told_lines.contains(&line) && same(&told, &expected), || {
                format!("{what}: told {told}, and {:?} is not in the log, or otherwise", line.1)
            });
        };
        let key = (policy.name.to_string(), past.offset);
        let timeout = history.timeouts.get(&key);
        if told["timed_out"] == true {
            let version = timeout.cloned().unwrap_or_else(|| pipeline.version(policy));
            let expected = fallback_body(topic.id_json(row), policy.fallback(), &version, "deadline");
            let may = timeout.is_some() || self.told_here.contains(&line.id);
            ensure(may && same(&told, &expected), || {
                format!("{what}: {told}, and no deadline passed: {expected}")
            })?;
            return Ok(());
        }
        let decision =
            history.decisions.get(&key).ok_or_else(|| format!("{what}: {key:?} is not in the log"))?;
        ensure(same(&told, decision), || format!("{what}: told {told}, decided {}", decision))?;
        // Of an event that came again after its retention, and of a body that was under way, nothing was promised.
        let promised = self.promised.get(&line.id).is_some_and(|&newest| {
            history.ids[&line.id].len() == 1 && (flight.kind == Kind::Decide || handle > newest)
        });
        ensure(!promised, || format!("{what}: its first was told the fallback, it {told}"))?;
        let known = self.answered.entry(key).or_insert_with(|| {
            self.acknowledged += 1;
            told.clone()
        });
        ensure(*known == told, || format!("{what}: told {told}, before that {known}"))?;
        if self.known.iter().all(|(.., id, _)| *id != line.id) {
            self.known.push((Kind::Decide, flight.target, line.id.clone(), row.clone()));
        }
        Ok(())
    }

    /// The fallback on a full disk: its policy says so, and nothing of the event is known.
    fn check_untaken(
        &mut self,
        what: &str,
        handle: u64,
        line: usize,
        told: &Json,
        history: &History,
        pipeline: &Pipeline,
    ) -> Result<(), Broken> {
        let flight = &self.flights[&handle];
        let line = &flight.lines[line];
        let policy = &pipeline.policies[flight.target];
        let topic = &pipeline.topics[policy.topic];
        let row = line.row.as_ref().ok_or_else(|| format!("{what}: poison is answered {told}"))?;
        let expected =
            fallback_body(topic.id_json(row), policy.fallback(), &pipeline.version(policy), "disk_full");
        // A line of a body may have been sent again, and decided, until the last one was judged.
        let known = flight.kind == Kind::Decide
            && history.remembered(&line.id, topic.retain_us, flight.clock_us.1).is_some();
        let may = policy.on_full == "fallback" && flight.full && !known;
        ensure(may && same(told, &expected), || format!("{what}: {told}, not {expected}"))?;
        self.untaken.push((flight.kind, flight.target, line.id.clone(), row.clone()));
        Ok(())
    }

    fn check_events(
        &mut self,
        what: &str,
        handle: u64,
        body: &[u8],
        history: &History,
        pipeline: &Pipeline,
    ) -> Result<(), Broken> {
        let told: Json = serde_json::from_slice(body).map_err(|error| format!("{what}: {error}"))?;
        let flight = &self.flights[&handle];
        let topic = &pipeline.topics[flight.target];
        let offsets = told["offsets"].as_array().ok_or("no offsets")?;
        let rejected = told["rejected"].as_array().ok_or("nothing of what was rejected")?;
        ensure(offsets.len() == flight.lines.len(), || format!("{what}: {} offsets", offsets.len()))?;
        let mut taken = Vec::new();
        for (index, (offset, line)) in offsets.iter().zip(&flight.lines).enumerate() {
            let Some(offset) = offset.as_i64() else {
                let error =
                    rejected.iter().find(|error| error["index"] == index).ok_or("an event is lost")?;
                let body = serde_json::json!({"error": error["error"]}).to_string();
                check_refused(what, flight, line, 0, body.as_bytes(), history, pipeline)?;
                let keeps = topic.dead_letters && flight.kind != Kind::Retry;
                let checked = history.letters.check_told(
                    topic.name,
                    (handle, index),
                    error,
                    (keeps, flight.full),
                    flight.clock_us,
                );
                checked.map_err(|broken| format!("{what}: {broken}"))?;
                continue;
            };
            let row = line.row.as_ref().ok_or_else(|| format!("{what}: poison is taken as {offset}"))?;
            let places =
                history.offsets.get(topic.name).ok_or_else(|| format!("{what}: {offset} is not there"))?;
            let place =
                *places.get(offset as usize).ok_or_else(|| format!("{what}: {offset} is not there"))?;
            let past = &history.past[place];
            let same = past.row == *row && past.origin.is_none();
            ensure(same, || format!("{what}: {offset} is {past:?}, not {row:?}"))?;
            let open = |letter: &&i64| !history.letters.done.contains(&(topic.name.to_string(), **letter));
            let open = flight.letters.get(index).filter(open);
            ensure(open.is_none(), || format!("{what}: letter {open:?} is open, and is in the log"))?;
            taken.push((line.id.clone(), row.clone()));
        }
        let target = flight.target;
        self.acknowledged += taken.len() as u64;
        for (id, row) in taken {
            if self.known.iter().all(|(.., known, _)| *known != id) {
                self.known.push((Kind::EventsNdjson, target, id, row));
            }
        }
        Ok(())
    }
}

/// Whether an event may be refused so; `status` is 0 for a line of many.
fn check_refused(
    what: &str,
    flight: &Flight,
    line: &Line,
    status: u16,
    body: &[u8],
    history: &History,
    pipeline: &Pipeline,
) -> Result<(), Broken> {
    let told: Json = serde_json::from_slice(body).map_err(|error| format!("{what}: {error}"))?;
    let code = told["error"]["code"].as_str().unwrap_or_default().to_string();
    let (topic, origin) = match flight.kind {
        Kind::Decide | Kind::DecideMany | Kind::DryRun => {
            let policy = &pipeline.policies[flight.target];
            (&pipeline.topics[policy.topic], Some(policy.name))
        }
        _ => (&pipeline.topics[flight.target], None),
    };
    let same_id = || history.ids.get(&line.id).into_iter().flatten().map(|&place| &history.past[place]);
    let may = match (&line.row, code.as_str()) {
        (_, "disk_full") => flight.full,
        (Some(_), "log_damaged") => flight.may_be_unread(body) && matches!(status, 0 | 500),
        (None, "id_conflict" | "entered_elsewhere" | "log_damaged" | "no_decision") => false,
        (None, _) => matches!(status, 0 | 422),
        (Some(row), "ahead_of_clock") => match row.get(topic.time) {
            Some(super::expression::Value::Whole(time)) => *time as i64 > flight.clock_us.0 + AHEAD_US,
            _ => false,
        },
        (Some(row), "id_conflict") => same_id().any(|past| past.row != *row),
        (Some(_), "entered_elsewhere") => same_id().any(|past| past.origin.as_deref() != origin),
        (Some(_), _) => false,
    };
    ensure(may, || format!("{what}: refused with {status} {told}: {:?} {:?}", line.id, line.row))
}

fn check_dry_run(what: &str, flight: &Flight, status: u16, body: &[u8]) -> Result<(), Broken> {
    let line = &flight.lines[0];
    let ahead = text(body).contains("ahead_of_clock");
    if line.row.is_none() || ahead {
        return ensure(status == 422, || format!("{what}: {status} {}", text(body)));
    }
    let Some(expected) = &flight.expected else { return Ok(()) };
    let told = without_time(body)?;
    if told["cause"] == "state_full" {
        // When the state has no room for a key, the core alone knows.
        return Ok(());
    }
    // Spreads are computed here with rounding.
    ensure(near(&told, expected, 1e-9), || format!("{what}: told {told}, would be {expected}"))
}

/// What a caller may look up; `told_here` where the log may not have it yet that the fallback was told.
pub fn check_lookup(
    what: &str,
    flight: &Flight,
    told_here: bool,
    status: u16,
    body: &[u8],
    history: &History,
    pipeline: &Pipeline,
) -> Result<(), Broken> {
    let policy = &pipeline.policies[flight.target];
    let topic = &pipeline.topics[policy.topic];
    let id = &flight.lines[0].id;
    let places = history.ids.get(id).into_iter().flatten();
    let past: Vec<_> = places.map(|&place| &history.past[place]).collect();
    let code = || -> String {
        let told: Json = serde_json::from_slice(body).unwrap_or_default();
        told["error"]["code"].as_str().unwrap_or_default().into()
    };
    if status == 500 && code() == "log_damaged" && flight.may_be_unread(body) {
        return Ok(());
    }
    if status == 404 && code() == "not_found" {
        let known =
            history.remembered(id, pipeline.retain_us(), flight.clock_us.1).map(|place| &history.past[place]);
        let known = known.is_some_and(|past| past.origin.as_deref() == Some(policy.name));
        return ensure(!known, || format!("{what}: {id:?} is not found"));
    }
    let Some(newest) = past.last() else { return Err(format!("{what}: {id:?} is found: {status}")) };
    let key = (policy.name.to_string(), newest.offset);
    if status == 404 {
        let open = code() == "pending" && !history.decisions.contains_key(&key);
        return ensure(open, || format!("{what}: {id:?}: {}", text(body)));
    }
    ensure(status == 200, || format!("{what}: {id:?}: {status} {}", text(body)))?;
    // No time is measured of what was decided before.
    let mut told = json(body)?;
    let late =
        told.as_object_mut().and_then(|told| told.remove("late_decision")).ok_or("no late decision")?;
    let decision = history.decisions.get(&key);
    let told_now = (told_here && told["timed_out"] == true).then(|| pipeline.version(policy));
    match history.timeouts.get(&key).cloned().or(told_now) {
        Some(version) => {
            let expected = fallback_body(told["id"].clone(), policy.fallback(), &version, "deadline");
            let late = match late {
                Json::Null => None,
                late => Some(late),
            };
            let fits = match (&late, decision) {
                (None, None) => true,
                (Some(late), Some(decision)) => same(late, decision),
                _ => false,
            };
            ensure(fits && same(&told, &expected), || {
                format!("{what}: {told} late {late:?}, decided {decision:?}")
            })
        }
        None => {
            let decision =
                decision.ok_or_else(|| format!("{what}: {id:?} of {} is not decided", topic.name))?;
            ensure(late.is_null() && same(&told, decision), || format!("{what}: {told}, decided {decision}"))
        }
    }
}

fn json(body: &[u8]) -> Result<Json, Broken> {
    serde_json::from_slice(body).map_err(|error| format!("{error}: {}", text(body)))
}

/// Whether a caller was told the fallback because of a full disk.
fn for_want_of_space(body: &[u8]) -> bool {
    json(body).is_ok_and(|told| told["cause"] == "disk_full")
}

fn without_time(body: &[u8]) -> Result<Json, Broken> {
    let mut told = json(body)?;
    told.as_object_mut()
        .and_then(|told| told.remove("took_ms"))
        .ok_or_else(|| format!("no time: {}", text(body)))?;
    Ok(told)
}

/// Floats are read back from text to within their last digit.
fn same(one: &Json, other: &Json) -> bool {
    near(one, other, 1e-12)
}

fn near(one: &Json, other: &Json, tolerance: f64) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) => match (one.as_i64(), other.as_i64()) {
            (Some(one), Some(other)) => one == other,
            _ => {
                let (one, other) = (one.as_f64().unwrap_or(f64::NAN), other.as_f64().unwrap_or(f64::NAN));
                (one - other).abs() <= tolerance * one.abs().max(1e-3)
            }
        },
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| near(one, other, tolerance))
        }
        (Json::Object(one), Json::Object(other)) => {
            let pair = |(name, one): (&String, &Json)| {
                other.get(name).is_some_and(|other| near(one, other, tolerance))
            };
            one.len() == other.len() && one.iter().all(pair)
        }
        _ => one == other,
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into()
}

/// The id as it stands in a URL.
pub fn id_text(id: &Id) -> Vec<u8> {
    id.1.clone().into_bytes()
}

pub fn line(topic: &str, id_field: &str, row: &Row) -> Line {
    Line { id: id_of(topic, &row[id_field]), row: Some(row.clone()), json: true }
}
