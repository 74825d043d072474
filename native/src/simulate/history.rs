//! The ledger: what the log holds, row by row, and whether each row may be there and says what it must.
//!
//! It reads the log as any follower does and recomputes everything else: nothing of the engine, the ids or the decider
//! is used here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use serde_json::json;
use xxhash_rust::xxh3::Xxh3;

use super::Broken;
use super::event::cell;
use super::expression::{Row, Value, decimal_text};
use super::letters::Letters;
use super::pipeline::{OUTCOMES, Pipeline, Policy, Topic};
use super::recompute::{agrees, feature};
use crate::engine::{LATE, STATELESS};
use crate::follower::{Incomplete, STATE_NOTE, fingerprint};
use crate::log::{Catalog, Commit, StoredSection};
use crate::schema::{Field, Type};

/// An id of a topic, as text.
pub type Id = (String, String);

/// An event that the log holds.
#[derive(Clone, Debug)]
pub struct Past {
    pub topic: String,
    pub offset: i64,
    pub row: Row,
    /// Its own time, and the newest of its topic before it.
    times: (i64, Option<i64>),
    /// The effective time, as the topic's lateness is at present.
    pub time: i64,
    pub late: bool,
    /// The policy that it entered by.
    pub origin: Option<String>,
    pub sequence: u64,
    pub commit_us: i64,
    pub remembered: bool,
    /// Older than any topic of an earlier pipeline remembered its ids: that one may have removed it.
    forgotten: bool,
}

#[derive(Default)]
pub struct History {
    pub past: Vec<Past>,
    /// By topic, then offset: places in `past`.
    pub offsets: BTreeMap<String, Vec<usize>>,
    pub ids: BTreeMap<Id, Vec<usize>>,
    /// By policy and offset: what the caller is told, without the time that it took.
    pub decisions: BTreeMap<(String, i64), serde_json::Value>,
    pub timeouts: BTreeMap<(String, i64), String>,
    pub letters: Letters,
    /// The commits as they were, for a second reading.
    pub commits: BTreeMap<u64, u64>,
    /// When each was made.
    pub times: BTreeMap<u64, i64>,
    pub sequence: u64,
    newest: BTreeMap<String, i64>,
    versions: BTreeMap<(String, String), (Arc<Pipeline>, usize)>,
    /// Pipelines by what the log notes of their state, and that of the last commit.
    states: BTreeMap<String, Arc<Pipeline>>,
    state: Option<Arc<Pipeline>>,
    /// Features that the newest start has said lack something.
    incomplete: Vec<Incomplete>,
    /// What was sent under an id.
    pub sent: BTreeMap<Id, Vec<Row>>,
    /// What models have said about an id, and where they said something else.
    pub scores: BTreeMap<Id, Vec<Option<f64>>>,
    /// Whose callers were told the fallback at a deadline.
    pub told: BTreeSet<Id>,
    /// Ids are remembered at least from this commit time on.
    pub forgotten_us: i64,
    /// Pipelines that ended since the log was last read: commits that come to be read may be theirs.
    pub ended: Vec<Arc<Pipeline>>,
    /// The first commit that retention has left.
    pub first_sequence: u64,
    pub checked: u64,
    pub unchecked: u64,
}

impl History {
    pub fn new(now_us: i64) -> History {
        History { forgotten_us: now_us, ..History::default() }
    }

    pub fn define(&mut self, pipeline: &Arc<Pipeline>) {
        for (index, policy) in pipeline.policies.iter().enumerate() {
            let key = (policy.name.to_string(), pipeline.version(policy));
            self.versions.insert(key, (pipeline.clone(), index));
        }
        self.states.insert(fingerprint(&pipeline.plan()), pipeline.clone());
    }

    /// A start has said what it could not build: everything else is there from now on.
    pub fn lacks(&mut self, incomplete: Vec<Incomplete>) {
        self.incomplete = incomplete;
    }

    /// A pipeline ends that has removed ids of this age.
    pub fn forget(&mut self, retain_us: i64) {
        let since = self.forgotten_us.saturating_sub(retain_us);
        for past in self.past.iter_mut().filter(|past| past.commit_us <= since) {
            past.forgotten = true;
        }
    }

    /// Take in the next commit of the log, or compare one that was taken in before.
    pub fn take(&mut self, commit: &Commit, catalog: &Catalog) -> Result<(), Broken> {
        if self.commits.contains_key(&commit.sequence) {
            return self.compare(commit);
        }
        ensure(commit.sequence > self.sequence, || {
            format!("commit {} is new, and commit {} was there before", commit.sequence, self.sequence)
        })?;
        self.commits.insert(commit.sequence, digest(commit)?);
        self.times.insert(commit.sequence, commit.time_us);
        self.sequence = commit.sequence;
        self.follow_change(catalog)?;
        let (first, mut done) = (self.past.len(), BTreeSet::new());
        for section in &commit.sections {
            let batch = section.batch().map_err(|error| error.to_string())?;
            let fields = &catalog.schema(section.schema).ok_or("a schema is missing")?.schema.fields;
            let topic = section.topic.to_string();
            if let Some(policy) = topic.strip_suffix(".decisions") {
                self.take_decisions(policy, &batch, fields)?;
            } else if let Some(policy) = topic.strip_suffix(".timeouts") {
                self.take_timeouts(policy, &batch, fields)?;
            } else if let Some(topic) = topic.strip_suffix(".deadletters") {
                self.letters.take(topic, section.base_offset, &batch, fields)?;
            } else if let Some(topic) = topic.strip_suffix(".deadletters.done") {
                done.extend(self.take_marks(topic, &batch, fields)?);
            } else {
                let origin = catalog.topic_of_origin(section.origin);
                let origin = origin.map(|name| name.trim_end_matches(".decisions").to_string());
                self.take_events(commit, section, origin, &batch, fields)?;
            }
        }
        self.check_retried(first, &done)?;
        self.letters.done.extend(done);
        Ok(())
    }

    /// Where the pipeline has changed, events have the times that they would have if it had always been so.
    fn follow_change(&mut self, catalog: &Catalog) -> Result<(), Broken> {
        // A log begins before its pipeline does.
        let Some(noted) = catalog.notes().get(STATE_NOTE) else { return Ok(()) };
        let state = self.states.get(noted).ok_or("the log is of an unknown pipeline")?.clone();
        if self.state.as_ref().is_some_and(|last| Arc::ptr_eq(last, &state)) {
            return Ok(());
        }
        for past in &mut self.past {
            // What is of a topic that was taken out is seen by nobody until it comes back.
            let Some(about) = state.topics.iter().find(|topic| topic.name == past.topic) else { continue };
            past.time = past.times.0.max(floor(past.times.1, about.lateness_us));
        }
        self.state = Some(state);
        Ok(())
    }

    /// Whether a commit is as it was when it was taken in.
    pub fn compare(&self, commit: &Commit) -> Result<(), Broken> {
        let digest = digest(commit)?;
        let known = self.commits.get(&commit.sequence);
        let same = known.map_or(commit.sequence > self.sequence, |known| *known == digest);
        ensure(same, || format!("commit {} is not what it was", commit.sequence))
    }

    // Events.

    fn take_events(
        &mut self,
        commit: &Commit,
        section: &StoredSection,
        origin: Option<String>,
        batch: &RecordBatch,
        fields: &[Field],
    ) -> Result<(), Broken> {
        let topic = section.topic.to_string();
        let about = self.topic(&topic)?.clone();
        let ended = self.ended.iter().flat_map(|pipeline| &pipeline.topics);
        let ended = ended.filter(|ended| ended.name == topic).map(|ended| ended.retain_us);
        let retain_us = ended.chain([about.retain_us]).min().expect("at least its own");
        for index in 0..batch.num_rows() {
            let row = row_of(batch, fields, index);
            let offset = section.base_offset as i64 + index as i64;
            let known = self.offsets.entry(topic.clone()).or_default();
            ensure(known.len() as i64 == offset, || {
                format!("{topic} has offset {offset} after {}", known.len())
            })?;
            let id = id_of(&topic, &row[about.id]);
            ensure(self.sent.get(&id).is_some_and(|sent| sent.contains(&row)), || {
                format!("{topic} {offset} was never sent as it is there")
            })?;
            let again = self.remembered(&id, retain_us, commit.time_us);
            ensure(again.is_none(), || format!("{topic} has one event twice: {again:?} and {offset}"))?;
            let Value::Whole(own) = row[about.time] else { return Err("a time is no time".into()) };
            let (own, newest) = (own as i64, self.newest.get(&topic).copied());
            let floor = floor(newest, about.lateness_us);
            let mark = section.marks.as_ref().map_or(0, |marks| marks[index]);
            ensure((mark & LATE != 0) == (own < floor), || format!("{topic} {offset} is marked {mark}"))?;
            self.newest.insert(topic.clone(), newest.map_or(own, |newest| newest.max(own)));
            let place = self.past.len();
            self.offsets.get_mut(&topic).expect("it was just made").push(place);
            self.ids.entry(id).or_default().push(place);
            self.past.push(Past {
                topic: topic.clone(),
                offset,
                row,
                times: (own, newest),
                time: own.max(floor),
                late: own < floor,
                origin: origin.clone(),
                sequence: commit.sequence,
                commit_us: commit.time_us,
                remembered: mark & STATELESS == 0,
                forgotten: false,
            });
        }
        Ok(())
    }

    /// A topic as the pipeline has it that the log is of.
    fn topic(&self, name: &str) -> Result<&Topic, Broken> {
        let pipeline = self.state.as_ref().ok_or("no pipeline")?;
        pipeline.topics.iter().find(|topic| topic.name == name).ok_or("an unknown topic".into())
    }

    /// The offset of an event with this id that must still be known: neither expired nor cut off by retention.
    pub fn remembered(&self, id: &Id, retain_us: i64, now_us: i64) -> Option<usize> {
        let since = self.forgotten_us.max(now_us).saturating_sub(retain_us);
        let known = self.ids.get(id)?.iter().copied();
        known.rev().find(|&place| {
            let past = &self.past[place];
            past.commit_us > since && past.sequence >= self.first_sequence && !past.forgotten
        })
    }

    /// What the engine would make of an event if it came next.
    pub fn next(&self, topic: &str, row: Row, own: i64, lateness_us: i64) -> Past {
        let newest = self.newest.get(topic).copied();
        let floor = floor(newest, lateness_us);
        Past {
            topic: topic.into(),
            offset: -1,
            row,
            times: (own, newest),
            time: own.max(floor),
            late: own < floor,
            origin: None,
            sequence: 0,
            commit_us: 0,
            remembered: true,
            forgotten: false,
        }
    }

    // Dead letters.

    /// Letters that are put right: an event that was sent in the place of each is in the log.
    fn take_marks(
        &self,
        topic: &str,
        batch: &RecordBatch,
        fields: &[Field],
    ) -> Result<Vec<(String, i64)>, Broken> {
        let mut marked = Vec::new();
        for index in 0..batch.num_rows() {
            let Value::Whole(letter) = row_of(batch, fields, index)["offset"] else {
                return Err("an offset is no number".into());
            };
            let letter = (topic.to_string(), letter as i64);
            let taken = |(id, row): &(Id, Row)| {
                let places = self.ids.get(id).into_iter().flatten();
                places.map(|&place| &self.past[place]).any(|past| past.origin.is_none() && past.row == *row)
            };
            let sent = self.letters.retries.get(&letter).map_or(&[][..], |sent| sent);
            ensure(sent.iter().any(taken), || format!("{letter:?} is marked, and no retry of it was taken"))?;
            marked.push(letter);
        }
        Ok(marked)
    }

    /// An event that came by retries alone is in the log with the mark of its letter.
    fn check_retried(&self, first: usize, marked: &BTreeSet<(String, i64)>) -> Result<(), Broken> {
        for past in &self.past[first..] {
            let id = id_of(&past.topic, &past.row[self.topic(&past.topic)?.id]);
            let letters = self.letters.retried.get(&id).map_or(&[][..], |letters| letters);
            let otherwise = letters.len() < self.sent[&id].len();
            ensure(otherwise || letters.iter().any(|letter| marked.contains(letter)), || {
                format!("{} {} was a retry, and its letter is open", past.topic, past.offset)
            })?;
        }
        Ok(())
    }

    // Decisions.

    fn take_decisions(&mut self, policy: &str, batch: &RecordBatch, fields: &[Field]) -> Result<(), Broken> {
        for index in 0..batch.num_rows() {
            let row = row_of(batch, fields, index);
            let place = self.place_of(policy, &row)?;
            let Value::Whole(offset) = row["offset"] else { return Err("an offset is no number".into()) };
            let body = self.check_decision(policy, &row, fields, place)?;
            let key = (policy.to_string(), offset as i64);
            let twice = self.decisions.insert(key, body).is_some();
            ensure(!twice, || format!("{policy} has decided twice about offset {offset}"))?;
        }
        Ok(())
    }

    fn place_of(&self, policy: &str, row: &Row) -> Result<usize, Broken> {
        let key = (policy.to_string(), text(row, "policy_version"));
        let (pipeline, index) = self.versions.get(&key).ok_or("a decision of no known version")?;
        let topic = &pipeline.topics[pipeline.policies[*index].topic];
        let Value::Whole(offset) = row["offset"] else { return Err("an offset is no number".into()) };
        let places = self.offsets.get(topic.name).ok_or("a decision before its event")?;
        let place = *places.get(offset as usize).ok_or("a decision before its event")?;
        let past = &self.past[place];
        ensure(past.row[topic.id] == row["id"], || format!("{policy} {offset}: the id is another event's"))?;
        ensure(past.origin.as_deref() == Some(policy), || format!("{policy} {offset} entered elsewhere"))?;
        Ok(place)
    }

    /// Whether a decision is what its version says of its event; what its caller is told.
    fn check_decision(
        &mut self,
        policy: &str,
        row: &Row,
        fields: &[Field],
        place: usize,
    ) -> Result<serde_json::Value, Broken> {
        let version = text(row, "policy_version");
        let (pipeline, index) = self.versions[&(policy.to_string(), version.clone())].clone();
        let about = &pipeline.policies[index];
        let past = self.past[place].clone();
        let what = format!("{policy} {} (version {version})", past.offset);
        let cause = row.get("cause").map(|_| text(row, "cause"));
        let columns = about.columns();
        let given: Vec<(&str, Option<Value>)> =
            columns.iter().map(|field| (field.name.as_str(), row.get(&field.name).cloned())).collect();
        let logged: Vec<&str> = fields[5..fields.len() - 3].iter().map(|field| field.name.as_str()).collect();
        ensure(logged.iter().eq(columns.iter().map(|field| &field.name)), || {
            format!("{what}: features {logged:?}")
        })?;
        let late = row.get("late") == Some(&Value::Bool(true));
        ensure(late == past.late, || format!("{what}: late is {late}"))?;
        let expected = match cause.as_deref() {
            None | Some("model") => {
                let score = self.check_score(&what, about, &pipeline, &past, row, cause.is_some())?;
                let lacking = self.check_features(&what, &pipeline, about, &past, place, &given)?;
                self.checked += !lacking as u64;
                self.unchecked += lacking as u64;
                match cause {
                    None => verdict(about, &past.row, &given, score),
                    Some(_) => (about.fallback(), Vec::new()),
                }
            }
            Some("restart" | "state_full") => {
                let restart = cause.as_deref() == Some("restart");
                // What is derived from nulls need not be null.
                let read = if restart { given.len() } else { about.features.len() };
                let null = given[..read].iter().all(|(_, value)| value.is_none());
                let unscored = !restart || !row.contains_key("score");
                let fits = null && unscored && (restart || !past.remembered);
                ensure(fits, || format!("{what}: cause {cause:?} with features {given:?}"))?;
                (about.fallback(), Vec::new())
            }
            Some(other) => return Err(format!("{what}: cause {other:?}")),
        };
        let reasons: Vec<_> = expected.1.iter().map(|name| json!({"rule": name, "code": name})).collect();
        let told: serde_json::Value =
            serde_json::from_str(&text(row, "reasons")).map_err(|e| e.to_string())?;
        ensure(text(row, "outcome") == expected.0 && told == json!(reasons), || {
            format!(
                "{what}: {} {told} is not {} {reasons:?}; features {given:?}",
                text(row, "outcome"),
                expected.0
            )
        })?;
        Ok(body(about, &pipeline, row, &past, &columns))
    }

    fn check_score(
        &self,
        what: &str,
        about: &Policy,
        pipeline: &Pipeline,
        past: &Past,
        row: &Row,
        failed: bool,
    ) -> Result<Option<f64>, Broken> {
        let score = match row.get("score") {
            Some(Value::Float(score)) => Some(*score),
            _ => None,
        };
        let id = id_of(&past.topic, &past.row[pipeline.topics[about.topic].id]);
        let said = self.scores.get(&id).map_or(&[][..], |said| said);
        let fits = match (about.model, failed) {
            (false, failed) => score.is_none() && !failed,
            (true, true) => score.is_none(),
            (true, false) => said.contains(&score),
        };
        ensure(fits, || format!("{what}: the score is {score:?}, the model said {said:?}"))?;
        Ok(score)
    }

    /// True where a feature is one that start said lacks something.
    fn check_features(
        &self,
        what: &str,
        pipeline: &Pipeline,
        about: &Policy,
        past: &Past,
        place: usize,
        given: &[(&str, Option<Value>)],
    ) -> Result<bool, Broken> {
        let mut lacking = false;
        let mut columns = past.row.clone();
        for (definition, (name, value)) in about.features.iter().zip(given) {
            if let Some(value) = value {
                columns.insert(name.to_string(), value.clone());
            }
            if self.lacks_at(name, past.time) {
                lacking = true;
                continue;
            }
            let source = pipeline.topics[definition.source].name;
            let known = past.remembered.then(|| feature(definition, source, past, &self.past[..place]));
            let expected = known.flatten();
            ensure(agrees(Some(definition.aggregate), &expected, value), || {
                format!("{what}: {name} is {value:?}, wanted {expected:?}, for {definition:?} at {past:?}")
            })?;
        }
        for ((name, expression), (_, value)) in about.derived.iter().zip(&given[about.features.len()..]) {
            let expected = expression.evaluate(&columns);
            ensure(expected == *value, || format!("{what}: {name} is {value:?}, wanted {expected:?}"))?;
            columns.extend(value.clone().map(|value| (name.clone(), value)));
        }
        Ok(lacking)
    }

    /// Whether a start has said that a feature may lack something at this time.
    pub fn lacks_at(&self, name: &str, time: i64) -> bool {
        self.incomplete.iter().any(|incomplete| {
            incomplete.feature == name && incomplete.complete_from_us.is_none_or(|from| time < from)
        })
    }

    /// What a dry run of an event must be told now.
    pub fn dry_run(&self, pipeline: &Pipeline, policy: usize, past: &Past) -> Option<serde_json::Value> {
        let about = &pipeline.policies[policy];
        let mut row = Row::new();
        let mut known = past.row.clone();
        for definition in &about.features {
            if self.lacks_at(&definition.name, past.time) {
                return None;
            }
            let source = pipeline.topics[definition.source].name;
            let value = feature(definition, source, past, &self.past);
            row.extend(value.clone().map(|value| (definition.name.clone(), value)));
            known.extend(value.map(|value| (definition.name.clone(), value)));
        }
        for (name, expression) in &about.derived {
            let value = expression.evaluate(&known);
            row.extend(value.clone().map(|value| (name.clone(), value)));
            known.extend(value.map(|value| (name.clone(), value)));
        }
        let columns = about.columns();
        let given: Vec<_> =
            columns.iter().map(|field| (field.name.as_str(), row.get(&field.name).cloned())).collect();
        let (outcome, fired) = verdict(about, &past.row, &given, None);
        let reasons: Vec<_> = fired.iter().map(|name| json!({"rule": name, "code": name})).collect();
        row.insert("id".into(), past.row[pipeline.topics[about.topic].id].clone());
        row.insert("outcome".into(), Value::Text(outcome.into()));
        row.insert("reasons".into(), Value::Text(json!(reasons).to_string()));
        row.insert("policy_version".into(), Value::Text(pipeline.version(about)));
        let mut body = body(about, pipeline, &row, past, &columns);
        body["offset"] = serde_json::Value::Null;
        Some(body)
    }

    fn take_timeouts(&mut self, policy: &str, batch: &RecordBatch, fields: &[Field]) -> Result<(), Broken> {
        for index in 0..batch.num_rows() {
            let row = row_of(batch, fields, index);
            let place = self.place_of(policy, &row)?;
            let key = (policy.to_string(), self.past[place].offset);
            let about = &self.versions[&(policy.to_string(), text(&row, "policy_version"))];
            let id = id_of(&self.past[place].topic, &row["id"]);
            ensure(self.told.contains(&id), || format!("{policy} {}: nobody was told the fallback", key.1))?;
            let fallback = about.0.policies[about.1].fallback();
            let fits = text(&row, "outcome") == fallback && text(&row, "cause") == "deadline";
            ensure(fits, || format!("{policy} {}: the timeout is {row:?}", key.1))?;
            let twice = self.timeouts.insert(key.clone(), text(&row, "policy_version")).is_some();
            ensure(!twice, || format!("{policy} {} was told twice", key.1))?;
        }
        Ok(())
    }

    /// Events of these policies that the log still has, and no decision about them.
    pub fn open(&self, policies: &[Policy]) -> BTreeSet<(String, i64)> {
        let kept = self.past.iter().filter(|past| past.sequence >= self.first_sequence);
        let entered = kept.filter_map(|past| Some((past.origin.clone()?, past.offset)));
        let known = |name: &str| policies.iter().any(|policy| policy.name == name);
        entered.filter(|key| known(&key.0) && !self.decisions.contains_key(key)).collect()
    }
}

/// The earliest effective time.
fn floor(newest: Option<i64>, lateness_us: i64) -> i64 {
    newest.map_or(i64::MIN, |newest| newest - lateness_us)
}

pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(what()) }
}

pub fn id_of(topic: &str, id: &Value) -> Id {
    let text = match id {
        Value::Whole(id) => id.to_string(),
        Value::Text(id) => id.clone(),
        other => unreachable!("{other:?} is no id"),
    };
    (topic.to_string(), text)
}

pub fn row_of(batch: &RecordBatch, fields: &[Field], row: usize) -> Row {
    let cells = fields.iter().zip(batch.columns());
    cells.filter_map(|(field, column)| Some((field.name.clone(), cell(column, field.kind, row)?))).collect()
}

pub fn text(row: &Row, name: &str) -> String {
    match row.get(name) {
        Some(Value::Text(text)) => text.clone(),
        _ => String::new(),
    }
}

/// What the rules say, in their order: the first that fires decides.
fn verdict(
    about: &Policy,
    event: &Row,
    features: &[(&str, Option<Value>)],
    score: Option<f64>,
) -> (&'static str, Vec<String>) {
    let mut row = event.clone();
    for (name, value) in features {
        row.extend(value.clone().map(|value| (name.to_string(), value)));
    }
    row.extend(score.map(|score| ("score".to_string(), Value::Float(score))));
    let fires = |rule: &&super::pipeline::Rule| rule.when.evaluate(&row) == Some(Value::Bool(true));
    let fired: Vec<_> = about.rules.iter().filter(fires).collect();
    let outcome = fired.first().map_or("approve", |rule| OUTCOMES[rule.outcome]);
    (outcome, fired.iter().map(|rule| rule.name.clone()).collect())
}

/// The answer for a row of decisions, without the time that it took.
fn body(about: &Policy, pipeline: &Pipeline, row: &Row, past: &Past, columns: &[Field]) -> serde_json::Value {
    let id_type = pipeline.topics[about.topic].id_type();
    let features: serde_json::Map<_, _> =
        columns.iter().map(|field| (field.name.clone(), to_json(row.get(&field.name), field.kind))).collect();
    let mut body = json!({
        "id": to_json(row.get("id"), id_type),
        "outcome": text(row, "outcome"),
        "reasons": serde_json::from_str::<serde_json::Value>(&text(row, "reasons")).expect("it was read before"),
        "score": to_json(row.get("score"), Type::Float64),
        "features": features,
        "policy_version": text(row, "policy_version"),
        "offset": past.offset,
        "timed_out": false,
    });
    if past.late {
        body["late"] = true.into();
    }
    if row.contains_key("cause") {
        body["cause"] = text(row, "cause").into();
    }
    body
}

/// The answer of a deadline that passed, or of a full disk, without the time that it took.
pub fn fallback_body(id: serde_json::Value, outcome: &str, version: &str, cause: &str) -> serde_json::Value {
    json!({
        "id": id, "outcome": outcome, "reasons": [], "score": null, "features": null, "policy_version": version,
        "offset": null, "timed_out": cause == "deadline", "cause": cause,
    })
}

pub fn to_json(value: Option<&Value>, kind: Type) -> serde_json::Value {
    match (value, kind) {
        (None, _) => serde_json::Value::Null,
        (Some(Value::Whole(unscaled)), Type::Decimal(..)) => decimal_text(*unscaled).into(),
        (Some(Value::Whole(whole)), _) => (*whole as i64).into(),
        (Some(Value::Float(float)), _) => (*float).into(),
        (Some(Value::Text(text)), _) => text.as_str().into(),
        (Some(Value::Bool(bool)), _) => (*bool).into(),
    }
}

/// Of all that a commit holds.
fn digest(commit: &Commit) -> Result<u64, Broken> {
    let mut digest = Xxh3::new();
    digest.update(format!("{} {} {}", commit.sequence, commit.time_us, commit.epoch).as_bytes());
    for section in &commit.sections {
        let batch = section.batch().map_err(|error| error.to_string())?;
        digest.update(format!("{} {} {}", section.topic, section.base_offset, section.origin).as_bytes());
        digest.update(section.marks.as_deref().unwrap_or_default());
        for column in batch.columns() {
            let data = column.to_data();
            data.buffers().iter().for_each(|buffer| digest.update(buffer));
            data.nulls().iter().for_each(|nulls| digest.update(nulls.validity()));
        }
    }
    Ok(digest.digest())
}
