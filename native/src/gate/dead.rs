//! Dead letters: rows that a topic's door rejected, kept in a topic of the log of their own until they are put right.
//!
//! They are staged with the commit of the rows that were accepted. Where there are very many, the rest waits for the
//! next cycles, and the answer with them: who is told where a letter is kept finds it there.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampNanosecondType;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, TimeUnit};
use serde::Deserialize;

use super::core::{Core, Cycle, section};
use super::weight::Weights;
use super::{Kind, error_body};
use crate::answer::write_value;
use crate::conform::convert;
use crate::error::{Error, Result};
use crate::schema::{Field, Schema, Type};

/// Of one request no more are kept: its sender has the wrong schema, and the file.
const LETTERS_MAX: usize = 10_000;
/// What a letter takes in the log beside its texts, at most, its field's name included.
pub(super) const LETTER_BYTES: usize = 512;
/// What the definitions of a topic's letters and of their marks take in the catalog, at most.
pub(super) const LETTER_TOPIC_BYTES: usize = 1536;
/// What the mark takes that a letter is put right.
pub(super) const MARK_BYTES: usize = 9;
/// A message names the fields of a schema, which may be many; nor is it longer than an event's text may be.
const MESSAGE_BYTES: usize = 2048;

/// A row that was rejected: what its caller is told.
pub(super) struct Rejected {
    pub line: usize,
    /// `{"error":{…}}`
    error: Vec<u8>,
    /// The offset of its dead letter, where it is kept.
    letter: Option<u64>,
}

/// A dead letter that was taken after all.
pub(super) struct Retried {
    pub topic: usize,
    pub letter: i64,
}

/// Those that no commit has yet.
#[derive(Default)]
pub(super) struct Letters {
    waiting: VecDeque<Letter>,
    bytes: usize,
}

struct Letter {
    topic: usize,
    /// The request that it came with, and which of its rejected rows it is.
    bulk: u64,
    rejected: usize,
    source: &'static str,
    received_us: i64,
    request: i64,
    index: i64,
    error: Problem,
    body: Body,
}

#[derive(Deserialize)]
struct Told {
    error: Problem,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    #[serde(default)]
    field: Option<String>,
    message: String,
}

struct Body {
    text: String,
    encoding: &'static str,
    bytes: i64,
    cut: bool,
}

impl Core {
    /// Keep the row that was rejected last; what it holds is known until its request is answered.
    pub(super) fn keep_letter(&mut self, number: u64, error: &[u8]) {
        let Some(bulk) = self.bulk.get_mut(&number) else { return };
        let Some(topic) = bulk.topic().filter(|&topic| self.plan.topics[topic].dead_letters) else { return };
        if bulk.letters == LETTERS_MAX {
            self.stats.dead_letters[topic].1.dropped += 1;
            return;
        }
        let rejected = bulk.rejected.len() - 1;
        let line = bulk.rejected[rejected].line;
        let Told { mut error } = serde_json::from_slice(error).expect("it was written here");
        let most = self.weights.limits.text_bytes;
        error.message.truncate(cut_text(&error.message, most.min(MESSAGE_BYTES)).len());
        let original = bulk.original(line, &self.plan.topics[topic].schema());
        self.letters.push(Letter {
            topic,
            bulk: number,
            rejected,
            source: source_name(bulk.kind),
            received_us: bulk.received_us,
            request: bulk.handle as i64,
            index: line as i64,
            error,
            body: Body::new(&original, most),
        });
        bulk.letters += 1;
        bulk.letters_open += 1;
    }

    /// As many as a cycle takes, and the marks of those that are put right.
    pub(super) fn stage_letters(&mut self, cycle: &mut Cycle) -> Result<()> {
        let mut taken: Vec<Vec<Letter>> = Vec::new();
        taken.resize_with(self.plan.topics.len(), Vec::new);
        let mut bytes = 0;
        while bytes < self.weights.letter_bytes
            && let Some(letter) = self.letters.pop()
        {
            bytes += letter.bytes();
            taken[letter.topic].push(letter);
        }
        for (topic, letters) in taken.into_iter().enumerate().filter(|(_, letters)| !letters.is_empty()) {
            // Rows were taken before the disk was full: they are told that nobody keeps them.
            if self.stats.full.is_some() {
                self.stats.dead_letters[topic].1.dropped += letters.len() as u64;
                letters.iter().for_each(|letter| self.settle_letter(letter, None));
            } else {
                self.stage_topic_letters(cycle, topic, &letters)?;
            }
        }
        self.stage_marks(cycle)
    }

    fn stage_topic_letters(&mut self, cycle: &mut Cycle, topic: usize, letters: &[Letter]) -> Result<()> {
        let name = letters_topic(&self.plan.topics[topic].name);
        let schema = letters_schema();
        let first = self.log.next_offset(&name);
        let id = self.log.define(&name, &schema)?;
        cycle.sections.push(section(id, letters_table(&schema, letters)?));
        self.stats.dead_letters[topic].1.kept += letters.len() as u64;
        for (offset, letter) in (first..).zip(letters) {
            self.settle_letter(letter, Some(offset));
        }
        Ok(())
    }

    fn settle_letter(&mut self, letter: &Letter, offset: Option<u64>) {
        if let Some(bulk) = self.bulk.get_mut(&letter.bulk) {
            bulk.rejected[letter.rejected].letter = offset;
            bulk.letters_open -= 1;
        }
    }

    fn stage_marks(&mut self, cycle: &mut Cycle) -> Result<()> {
        let mut retried = std::mem::take(&mut cycle.retried);
        retried.sort_unstable_by_key(|retried| (retried.topic, retried.letter));
        for marks in retried.chunk_by(|one, other| one.topic == other.topic) {
            let topic = marks[0].topic;
            let schema = marks_schema();
            let id = self.log.define(&marks_topic(&self.plan.topics[topic].name), &schema)?;
            let letters = Int64Array::from_iter_values(marks.iter().map(|mark| mark.letter));
            let table = RecordBatch::try_new(schema.arrow(), vec![Arc::new(letters)]);
            cycle.sections.push(section(id, table.expect("one column of its type")));
            self.stats.dead_letters[topic].1.retried += marks.len() as u64;
        }
        Ok(())
    }

    /// The letters that a retry's first line names, one for each line that follows; or the body of its refusal.
    pub(super) fn read_retry(&self, topic: usize, body: &[u8]) -> std::result::Result<Vec<i64>, Vec<u8>> {
        let invalid = |message: &str| error_body("invalid_retry", message, None);
        let lines = crate::decode::split_lines(body);
        let (first, events) = lines.split_first().ok_or_else(|| invalid("a retry without lines"))?;
        let letters: Vec<i64> = serde_json::from_slice(first)
            .map_err(|_| invalid("a retry begins with a line of its dead letters' offsets, as [3,5]"))?;
        if letters.is_empty() || letters.len() > LETTERS_MAX || letters.len() != events.len() {
            let message = format!("a retry is 1 to {LETTERS_MAX} offsets, and a line of JSON for each");
            return Err(invalid(&message));
        }
        let kept = self.log.next_offset(&letters_topic(&self.plan.topics[topic].name)) as i64;
        match letters.iter().all(|letter| (0..kept).contains(letter)) {
            true => Ok(letters),
            false => {
                Err(invalid(&format!("the topic has dead letters up to offset {kept}, and not all of these")))
            }
        }
    }
}

impl Letters {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether they fill a commit, so that no more rows are looked at for now.
    pub fn many(&self, weights: &Weights) -> bool {
        self.bytes >= weights.letter_bytes
    }

    fn push(&mut self, letter: Letter) {
        self.bytes += letter.bytes();
        self.waiting.push_back(letter);
    }

    fn pop(&mut self) -> Option<Letter> {
        let letter = self.waiting.pop_front()?;
        self.bytes -= letter.bytes();
        Some(letter)
    }
}

impl Letter {
    fn bytes(&self) -> usize {
        LETTER_BYTES + self.error.message.len() + self.body.text.len()
    }
}

impl Rejected {
    pub fn new(line: usize, error: &[u8]) -> Rejected {
        Rejected { line, error: error.to_vec(), letter: None }
    }

    /// `{"error":{…}}` with the line's index in front, and where it is kept.
    pub fn write(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(format!("{{\"index\":{},", self.line).as_bytes());
        if let Some(letter) = self.letter {
            body.extend_from_slice(format!("\"deadletter\":{letter},").as_bytes());
        }
        body.extend_from_slice(&self.error[1..]);
    }
}

impl Body {
    fn new(original: &[u8], most: usize) -> Body {
        let bytes = original.len() as i64;
        let (text, encoding) = match std::str::from_utf8(original) {
            Ok(text) => (cut_text(text, most).to_owned(), "utf-8"),
            // A byte of more than 127 is two as text.
            Err(_) => (original.iter().take(most / 2).map(|&byte| char::from(byte)).collect(), "latin-1"),
        };
        let kept = if encoding == "utf-8" { text.len() } else { original.len().min(most / 2) };
        Body { text, encoding, bytes, cut: kept < original.len() }
    }
}

fn cut_text(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn source_name(kind: Kind) -> &'static str {
    match kind {
        Kind::EventsArrow => "arrow",
        Kind::EventsJson => "json",
        _ => "ndjson",
    }
}

fn letters_topic(topic: &str) -> String {
    format!("{topic}.deadletters")
}

fn marks_topic(topic: &str) -> String {
    format!("{topic}.deadletters.done")
}

fn letters_schema() -> Schema {
    let field = |name: &str, kind, optional| Field { name: name.into(), kind, optional };
    Schema {
        fields: vec![
            field("code", Type::Text, false),
            field("field", Type::Text, true),
            field("message", Type::Text, false),
            field("source", Type::Text, false),
            field("received_at", Type::Timestamp, false),
            field("request", Type::Int64, false),
            field("index", Type::Int64, false),
            field("body", Type::Text, false),
            field("encoding", Type::Text, false),
            field("bytes", Type::Int64, false),
            field("cut", Type::Bool, false),
        ],
    }
}

fn marks_schema() -> Schema {
    Schema { fields: vec![Field { name: "offset".into(), kind: Type::Int64, optional: false }] }
}

fn letters_table(schema: &Schema, letters: &[Letter]) -> Result<RecordBatch> {
    fn text<'a>(letters: &'a [Letter], get: impl Fn(&'a Letter) -> &'a str) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(letters.iter().map(get)))
    }
    let integers = |get: fn(&Letter) -> i64| Int64Array::from_iter_values(letters.iter().map(get));
    let times = integers(|letter| letter.received_us)
        .reinterpret_cast::<arrow_array::types::TimestampMicrosecondType>();
    let times: TimestampMicrosecondArray = times.with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        text(letters, |letter| &letter.error.code),
        Arc::new(letters.iter().map(|letter| letter.error.field.as_deref()).collect::<StringArray>()),
        text(letters, |letter| &letter.error.message),
        text(letters, |letter| letter.source),
        Arc::new(times),
        Arc::new(integers(|letter| letter.request)),
        Arc::new(integers(|letter| letter.index)),
        text(letters, |letter| &letter.body.text),
        text(letters, |letter| letter.body.encoding),
        Arc::new(integers(|letter| letter.body.bytes)),
        Arc::new(letters.iter().map(|letter| Some(letter.body.cut)).collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(schema.arrow(), columns)
        .map_err(|error| Error::invalid(format!("a dead letter does not fit its table: {error}")))
}

// Arrow rows.

/// A row as JSON, its values as its columns had them: what the topic's types can hold as those write it.
pub(super) fn row_json(batch: &RecordBatch, schema: &Schema, row: usize) -> Vec<u8> {
    let mut out = vec![b'{'];
    for field in &schema.fields {
        let Some(column) = batch.column_by_name(&field.name) else { continue };
        if out.len() > 1 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, &field.name).expect("writing to memory cannot fail");
        out.push(b':');
        write_cell(&mut out, &column.slice(row, 1), field.kind);
    }
    out.push(b'}');
    out
}

/// A column of one value, as its field's type writes it, else as the first type does that holds it.
fn write_cell(out: &mut Vec<u8>, cell: &ArrayRef, kind: Type) {
    if cell.is_null(0) || *cell.data_type() == DataType::Null {
        return out.extend_from_slice(b"null");
    }
    let fits = |kind: Type| convert(cell, kind).ok().filter(|(_, wrongs)| wrongs.is_empty());
    let other = [Type::Text, Type::Int64, Type::Timestamp, Type::Float64, Type::Decimal(38, 9)];
    for kind in [kind].into_iter().chain(other) {
        if let Some((column, _)) = fits(kind) {
            return write_value(out, column.as_ref(), kind, 0);
        }
    }
    let text = match cell.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            format!("{} ns", cell.as_primitive::<TimestampNanosecondType>().value(0))
        }
        _ => arrow_text(cell),
    };
    serde_json::to_writer(out, &text).expect("writing to memory cannot fail");
}

/// What no type of ours holds (NaN, a time in the year 12000) as Arrow itself shows it.
fn arrow_text(cell: &ArrayRef) -> String {
    let shown = format!("{cell:?}");
    let lines = shown.lines().map(str::trim).filter(|line| !line.ends_with(['[', ']', '>']));
    lines.collect::<String>().trim_end_matches(',').to_owned()
}
