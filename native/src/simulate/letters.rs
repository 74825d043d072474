//! Dead letters as they must be: a rejected row that was answered as kept is in the log once, as it came, and a letter
//! that is put right is an event of its topic.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::RecordBatch;
use serde_json::Value as Json;

use super::Broken;
use super::expression::{Row, Value};
use super::history::{Id, ensure, row_of, text};
use crate::schema::Field;

/// What a row is rejected for that is an event.
const EVENT_CODES: [&str; 3] = ["ahead_of_clock", "id_conflict", "entered_elsewhere"];
/// No letter is kept of what is to be sent again.
const UNKEPT_CODES: [&str; 2] = ["disk_full", "log_damaged"];
const MESSAGE_BYTES: usize = 2048;

#[derive(Default)]
pub struct Letters {
    /// What topics' doors were sent, by request.
    sent: BTreeMap<u64, Sent>,
    /// By topic, as in the log.
    kept: BTreeMap<String, Vec<Letter>>,
    /// Rows that the log has a letter of: a request, and which of its rows.
    places: BTreeSet<(u64, usize)>,
    /// What was sent in a letter's place, by topic and letter.
    pub retries: BTreeMap<(String, i64), Vec<(Id, Row)>>,
    /// The letters in whose place an id was sent, each time.
    pub retried: BTreeMap<Id, Vec<(String, i64)>>,
    /// Put right, by topic and letter.
    pub done: BTreeSet<(String, i64)>,
    /// No text of a letter is longer.
    pub text_bytes: usize,
}

/// The rows of a request.
pub struct Sent {
    pub topic: String,
    pub source: &'static str,
    /// As it came, and the event that it is.
    pub rows: Vec<(Vec<u8>, Option<Row>)>,
}

struct Letter {
    request: u64,
    index: usize,
    received_us: i128,
    code: String,
    field: Option<String>,
    message: String,
}

impl Letters {
    pub fn send(&mut self, request: u64, sent: Sent) {
        self.sent.insert(request, sent);
    }

    pub fn retry(&mut self, letter: (String, i64), id: &Id, row: &Row) {
        self.retried.entry(id.clone()).or_default().push(letter.clone());
        self.retries.entry(letter).or_default().push((id.clone(), row.clone()));
    }

    pub fn count(&self, topic: &str) -> usize {
        self.kept.get(topic).map_or(0, Vec::len)
    }

    pub fn total(&self) -> usize {
        self.kept.values().map(Vec::len).sum()
    }

    /// The event that a letter holds, if it is one.
    pub fn event(&self, topic: &str, letter: usize) -> Option<&Row> {
        let letter = &self.kept[topic][letter];
        self.sent[&letter.request].rows[letter.index].1.as_ref()
    }

    /// Letters that the log has: each is a row that was sent, once.
    pub fn take(
        &mut self,
        topic: &str,
        base: u64,
        batch: &RecordBatch,
        fields: &[Field],
    ) -> Result<(), Broken> {
        for index in 0..batch.num_rows() {
            let row = row_of(batch, fields, index);
            let offset = base as usize + index;
            ensure(self.count(topic) == offset, || {
                format!("letter {offset} of {topic} after {}", self.count(topic))
            })?;
            let letter = self.check(topic, &row).map_err(|broken| format!("{broken}: {row:?}"))?;
            let place = (letter.request, letter.index);
            ensure(self.places.insert(place), || format!("{topic} has a letter of {place:?} twice"))?;
            self.kept.entry(topic.into()).or_default().push(letter);
        }
        Ok(())
    }

    fn check(&self, topic: &str, row: &Row) -> Result<Letter, Broken> {
        let whole = |name: &str| match row.get(name) {
            Some(Value::Whole(whole)) => Ok(*whole),
            other => Err(format!("a letter's {name} is {other:?}")),
        };
        let (request, index) = (whole("request")? as u64, whole("index")? as usize);
        let sent = self.sent.get(&request).ok_or("a letter of no request")?;
        let (original, event) = sent.rows.get(index).ok_or("a letter of no row")?;
        ensure(sent.topic == topic && text(row, "source") == sent.source, || {
            format!("a letter of {} from {}", sent.topic, sent.source)
        })?;
        let (body, encoding, kept_bytes) = as_kept(original, self.text_bytes);
        let fits = text(row, "body") == body
            && text(row, "encoding") == encoding
            && whole("bytes")? == original.len() as i128
            && row.get("cut") == Some(&Value::Bool(kept_bytes < original.len()));
        ensure(fits, || format!("a letter of {:?}", String::from_utf8_lossy(original)))?;
        let code = text(row, "code");
        let may = EVENT_CODES.contains(&&*code) == event.is_some() && !UNKEPT_CODES.contains(&code.as_str());
        ensure(may, || format!("a letter with code {code} of {event:?}"))?;
        let field = row.get("field").map(|_| text(row, "field"));
        let (message, received_us) = (text(row, "message"), whole("received_at")?);
        Ok(Letter { request, index, received_us, code, field, message })
    }

    /// Whether a caller may be told so about the letter of a row that was rejected; where the topic keeps them, `full`
    /// says that it may lack the space.
    pub fn check_told(
        &self,
        topic: &str,
        (request, index): (u64, usize),
        told: &Json,
        (keeps, full): (bool, bool),
        clock_us: (i64, i64),
    ) -> Result<(), Broken> {
        let error = &told["error"];
        let code = error["code"].as_str().unwrap_or_default();
        let may = keeps && !UNKEPT_CODES.contains(&code);
        let Some(offset) = told["deadletter"].as_u64() else {
            let kept = self.places.contains(&(request, index));
            return ensure(!kept && (!may || full), || format!("row {index} has no letter: {told}"));
        };
        let letter = self.kept.get(topic).and_then(|kept| kept.get(offset as usize));
        let letter = letter.ok_or_else(|| format!("letter {offset} of row {index} is not there"))?;
        let message = error["message"].as_str().unwrap_or_default();
        let same = (letter.request, letter.index) == (request, index)
            && letter.code == code
            && letter.field.as_deref() == error["field"].as_str()
            && letter.message == cut_text(message, MESSAGE_BYTES.min(self.text_bytes))
            && (clock_us.0.into()..=clock_us.1.into()).contains(&letter.received_us);
        ensure(may && same, || format!("letter {offset} is not of row {index}: {told}"))
    }
}

/// A row's text in its letter, the text's encoding, and how many of the row's bytes it is.
fn as_kept(original: &[u8], most: usize) -> (String, &'static str, usize) {
    match std::str::from_utf8(original) {
        Ok(text) => {
            let text = cut_text(text, most);
            (text.to_string(), "utf-8", text.len())
        }
        Err(_) => {
            let bytes = &original[..original.len().min(most / 2)];
            (bytes.iter().copied().map(char::from).collect(), "latin-1", bytes.len())
        }
    }
}

fn cut_text(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}
