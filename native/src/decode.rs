//! JSON bodies in, columns out: strictly, so that what enters the log means one thing only.
//!
//! Values go straight into the columns: a decimal from the digits that were sent and never through a float. An event
//! that is refused half way takes its values back out again.

mod columns;
mod object;
pub mod scalars;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::BufRead;
use std::ops::Range;
use std::str::Utf8Error;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use serde_json::value::RawValue;

use self::columns::Column;
use self::object::{Broken, Reader, Value};
use crate::answer::write_value;
use crate::schema::{Schema, Type};

/// How large an event may be: with its decision it is one commit, which has to fit into a segment of the log.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of its JSON, or of its texts together.
    pub event_bytes: usize,
    /// Of one text, as UTF-8: it comes back in the features of later events.
    pub text_bytes: usize,
}

impl Limits {
    /// Smaller ones only where segments are smaller than a service has them.
    pub fn of_segments(segment_bytes: u64) -> Limits {
        let most = Limits::default();
        let segment_bytes = segment_bytes as usize;
        Limits {
            event_bytes: most.event_bytes.min(segment_bytes / 16),
            text_bytes: most.text_bytes.min(segment_bytes / 64),
        }
    }

    pub fn check_text(&self, bytes: usize) -> Result<(), Wrong> {
        if bytes <= self.text_bytes { Ok(()) } else { Err(self.long_text(bytes)) }
    }

    #[cold]
    fn long_text(&self, bytes: usize) -> Wrong {
        Wrong::new("too_large", format!("{bytes} bytes of text where {} are the most", self.text_bytes))
    }

    pub fn check_event(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes <= self.event_bytes { Ok(()) } else { Err(self.large_event(bytes)) }
    }

    #[cold]
    fn large_event(&self, bytes: usize) -> Refusal {
        let wanted = format!("at most {}", self.event_bytes);
        Wrong::new("too_large", format!("an event of {bytes} bytes")).of_body(&wanted)
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { event_bytes: 1 << 20, text_bytes: 64 << 10 }
    }
}

/// Decodes events of one schema.
///
/// Refused are: anything but one flat JSON object (as UTF-8, with nothing after it); unknown, repeated and missing
/// fields; null where the field is required; a value of another kind than the field's. See `scalars` for what numbers
/// and times may look like. Text may hold any character, U+0000 too.
pub struct Decoder {
    schema: Schema,
    arrow: SchemaRef,
    limits: Limits,
    id: usize,
    index: HashMap<String, usize>,
    /// Each field's name as JSON writes it.
    quoted: Vec<String>,
}

/// The events that were good, as columns in the order of their bodies, and what was wrong with the others.
pub struct Decoded {
    pub batch: RecordBatch,
    /// Which body each row of the batch came from.
    pub rows: Vec<u32>,
    /// By the body's index, rising.
    pub refused: Vec<(u32, Refusal)>,
}

/// Why an event is refused. It never holds a value of the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub field: Option<String>,
    pub given: Cow<'static, str>,
    pub wanted: String,
    /// `empty`, `not_json`, `not_object`, `not_array`, `unknown_field`, `repeated_field`, `missing_field`, `null`,
    /// `wrong_type`, `out_of_range`, `too_precise` or `too_large`.
    pub code: &'static str,
}

/// What is wrong with one value, before it is known whose it is.
pub struct Wrong {
    code: &'static str,
    given: Cow<'static, str>,
}

impl Wrong {
    pub fn new(code: &'static str, given: impl Into<Cow<'static, str>>) -> Wrong {
        Wrong { code, given: given.into() }
    }

    pub fn of(self, field: &str, kind: Type) -> Refusal {
        Refusal { field: Some(field.to_owned()), given: self.given, wanted: wanted(kind), code: self.code }
    }

    fn of_body(self, wanted: &str) -> Refusal {
        Refusal { field: None, given: self.given, wanted: wanted.to_owned(), code: self.code }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.field {
            Some(field) => write!(f, "field {field:?}: given {}, wanted {}", self.given, self.wanted),
            None => write!(f, "given {}, wanted {}", self.given, self.wanted),
        }
    }
}

fn wanted(kind: Type) -> String {
    match kind {
        Type::Timestamp => "timestamp, as 2026-11-01T12:00:00.123456Z".to_owned(),
        _ => kind.to_string(),
    }
}

impl Decoder {
    /// `id` is the index of the field that identifies an event.
    pub fn new(schema: &Schema, id: usize, limits: Limits) -> Decoder {
        let names = || schema.fields.iter().map(|field| field.name.as_str());
        let index = names().enumerate().map(|(index, name)| (name.to_owned(), index)).collect();
        let quoted = names().map(|name| serde_json::Value::from(name).to_string()).collect();
        Decoder { arrow: schema.arrow(), schema: schema.clone(), limits, id, index, quoted }
    }

    /// Decode bodies of one event each; the good ones become the batch, in order.
    pub fn decode<'a>(&self, bodies: impl Iterator<Item = &'a [u8]>) -> Decoded {
        let mut events = Events::new(self, bodies.size_hint().0);
        let (mut rows, mut refused) = (Vec::with_capacity(bodies.size_hint().0), Vec::new());
        for (index, body) in bodies.enumerate() {
            match events.push(body) {
                Ok(()) => rows.push(index as u32),
                Err(refusal) => refused.push((index as u32, refusal)),
            }
        }
        Decoded { batch: events.finish(), rows, refused }
    }

    /// The id of a decoded event as JSON text.
    pub fn id_text(&self, batch: &RecordBatch, row: usize) -> Vec<u8> {
        let mut text = Vec::new();
        write_value(&mut text, batch.column(self.id), self.schema.fields[self.id].kind, row);
        text
    }
}

/// The batch that is forming.
struct Events<'s> {
    decoder: &'s Decoder,
    columns: Vec<Column>,
    rows: usize,
    /// The field that last followed each field; the last slot is for an object's first field. Senders write their
    /// keys in one order, so the guess saves nearly every look-up by name.
    followers: Vec<usize>,
}

impl<'s> Events<'s> {
    fn new(decoder: &'s Decoder, capacity: usize) -> Events<'s> {
        let fields = &decoder.schema.fields;
        let mut followers: Vec<usize> = (1..=fields.len()).collect();
        followers.push(0);
        let columns = fields.iter().map(|field| Column::new(field, capacity)).collect();
        Events { decoder, columns, rows: 0, followers }
    }

    fn push(&mut self, body: &[u8]) -> Result<(), Refusal> {
        match self.read(body).and_then(|()| self.fill_absent()) {
            Ok(()) => {
                self.rows += 1;
                Ok(())
            }
            Err(refusal) => {
                self.columns.iter_mut().for_each(|column| column.truncate(self.rows));
                Err(refusal)
            }
        }
    }

    fn read(&mut self, body: &[u8]) -> Result<(), Refusal> {
        self.decoder.limits.check_event(body.len())?;
        check_first_byte(body, b'{', "not_object", EVENT)?;
        let text = read_utf8(body, EVENT)?;
        let mut reader = Reader::new(text);
        let broken = |broken: Broken| not_json(text, broken);
        let mut more = reader.open().map_err(broken)?;
        let mut before = self.columns.len();
        while more {
            before = self.read_key(&mut reader, before)?;
            let value = reader.value().map_err(broken)?;
            self.put(before, value)?;
            more = reader.more().map_err(broken)?;
        }
        Ok(())
    }

    /// The index of the next field, guessed from the one before.
    #[inline]
    fn read_key(&mut self, reader: &mut Reader, before: usize) -> Result<usize, Refusal> {
        let guess = self.followers[before];
        if self.decoder.quoted.get(guess).is_some_and(|quoted| reader.take_key(quoted)) {
            return Ok(guess);
        }
        let key = reader.key().map_err(|broken| not_json(reader.text(), broken))?;
        let found = *self.decoder.index.get(&*key).ok_or_else(|| self.unknown(&key))?;
        self.followers[before] = found;
        Ok(found)
    }

    #[inline]
    fn put(&mut self, index: usize, value: Value) -> Result<(), Refusal> {
        let column = &mut self.columns[index];
        let put = match column.len() > self.rows {
            true => Err(Wrong::new("repeated_field", "the field a second time")),
            false => column.push(value, &self.decoder.limits),
        };
        put.map_err(|wrong| {
            let field = &self.decoder.schema.fields[index];
            wrong.of(&field.name, field.kind)
        })
    }

    fn fill_absent(&mut self) -> Result<(), Refusal> {
        for (column, field) in self.columns.iter_mut().zip(&self.decoder.schema.fields) {
            if column.len() > self.rows {
                continue;
            }
            let filled = column.push_null();
            filled.map_err(|_| Wrong::new("missing_field", "nothing").of(&field.name, field.kind))?;
        }
        Ok(())
    }

    fn unknown(&self, key: &str) -> Refusal {
        let names: Vec<&str> = self.decoder.schema.fields.iter().map(|field| field.name.as_str()).collect();
        Refusal {
            field: Some(key.chars().take(64).collect()),
            given: "a field that the schema does not have".into(),
            wanted: format!("only {}", names.join(", ")),
            code: "unknown_field",
        }
    }

    fn finish(self) -> RecordBatch {
        let arrays = self.columns.into_iter().map(Column::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(self.decoder.arrow.clone(), arrays, &options)
            .expect("the columns are built from the schema")
    }
}

/// Whether a body is one event as far as its first bytes tell; what is no JSON object is refused whole.
pub fn check_one(body: &[u8]) -> Result<(), Refusal> {
    if !body.trim_ascii().is_empty() {
        check_json(body)?;
    }
    check_first_byte(body, b'{', "not_object", "one JSON object or an array of them")
}

/// A JSON array of events that is cut into the raw text of each, a piece at a time: a large one takes long. A syntax
/// error refuses the whole body.
pub struct ArrayCut {
    text: String,
    /// Before it everything is cut.
    at: usize,
    events: Vec<Range<usize>>,
}

impl ArrayCut {
    pub fn new(body: Vec<u8>) -> Result<ArrayCut, Refusal> {
        check_first_byte(&body, b'[', "not_array", ARRAY)?;
        let text = String::from_utf8(body).map_err(|error| not_utf8(error.utf8_error(), ARRAY))?;
        let at = text.find('[').expect("it was just seen") + 1;
        Ok(ArrayCut { text, at, events: Vec::new() })
    }

    /// Go on for about so many bytes; whether all of it is cut.
    pub fn advance(&mut self, bytes: usize) -> Result<bool, Refusal> {
        let until = self.at.saturating_add(bytes);
        while self.at < until {
            if self.events.is_empty() && self.next_byte() == Some(b']') {
                return self.end();
            }
            self.cut()?;
            match self.next_byte() {
                Some(b',') => self.at += 1,
                Some(b']') => return self.end(),
                _ => return Err(self.broken()),
            }
        }
        Ok(false)
    }

    /// The body, and where in it each event is.
    pub fn finish(self) -> (Vec<u8>, Vec<Range<usize>>) {
        (self.text.into_bytes(), self.events)
    }

    fn cut(&mut self) -> Result<(), Refusal> {
        let rest = &self.text[self.at..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        match values.next() {
            Some(Ok(event)) => {
                let start = self.at + (event.get().as_ptr() as usize - rest.as_ptr() as usize);
                self.at = start + event.get().len();
                self.events.push(start..self.at);
                Ok(())
            }
            Some(Err(error)) if !error.is_eof() => {
                self.at += error_offset(rest.as_bytes(), &error);
                Err(self.broken())
            }
            _ => {
                self.at = self.text.len();
                Err(self.broken())
            }
        }
    }

    /// The next byte that is no blank, where `at` is then.
    fn next_byte(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.len() - rest.trim_ascii_start().len();
        self.text.as_bytes().get(self.at).copied()
    }

    fn end(&mut self) -> Result<bool, Refusal> {
        self.at += 1;
        if self.next_byte().is_some() { Err(self.broken()) } else { Ok(true) }
    }

    #[cold]
    fn broken(&self) -> Refusal {
        let given = match self.at >= self.text.len() {
            true => format!("JSON that ends too early, after {} bytes", self.text.len()),
            false => format!("what is not JSON at byte {}", self.at),
        };
        Wrong::new("not_json", given).of_body(ARRAY)
    }
}

/// Whether the text of one event is JSON at all, whatever it says.
pub fn check_json(body: &[u8]) -> Result<(), Refusal> {
    let read = serde_json::from_str::<&RawValue>(read_utf8(body, EVENT)?);
    read.map(drop).map_err(|error| {
        let given = match error.is_eof() {
            true => format!("JSON that ends too early, after {} bytes", body.len()),
            false => format!("what is not JSON at byte {}", error_offset(body, &error)),
        };
        Wrong::new("not_json", given).of_body(EVENT)
    })
}

/// The offset of the byte where the syntax broke; `serde_json` counts lines and columns, each from 1.
fn error_offset(body: &[u8], error: &serde_json::Error) -> usize {
    let lines = body.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    (lines.map(<[u8]>::len).sum::<usize>() + error.column()).saturating_sub(1)
}

/// Cut newline-delimited JSON into its lines; blank ones are skipped, and a line may end with CR LF.
pub fn split_lines(mut body: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while !body.is_empty() {
        let rest = body;
        let length = body.skip_until(b'\n').expect("reading a slice cannot fail");
        let line = rest[..length].trim_ascii();
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines
}

const EVENT: &str = "one JSON object";
const ARRAY: &str = "a JSON array of objects";

/// Looks at the first byte before `serde_json` does: its own words for "another kind" would quote the value.
fn check_first_byte(body: &[u8], first: u8, code: &'static str, wanted: &str) -> Result<(), Refusal> {
    let body = body.trim_ascii();
    let wrong = match body.first() {
        Some(byte) if *byte == first => return Ok(()),
        None => Wrong::new("empty", "an empty body"),
        Some(_) if body == b"null" => Wrong::new(code, "null"),
        Some(_) if body == b"true" || body == b"false" => Wrong::new(code, "a boolean"),
        Some(b'{') => Wrong::new(code, "an object"),
        Some(b'[') => Wrong::new(code, "an array"),
        Some(b'"') => Wrong::new(code, "text"),
        Some(b'0'..=b'9' | b'-') => Wrong::new(code, "a number"),
        Some(_) => Wrong::new("not_json", "what is not JSON"),
    };
    Err(wrong.of_body(wanted))
}

fn read_utf8<'a>(body: &'a [u8], wanted: &str) -> Result<&'a str, Refusal> {
    std::str::from_utf8(body).map_err(|error| not_utf8(error, wanted))
}

fn not_utf8(error: Utf8Error, wanted: &str) -> Refusal {
    let given = format!("what is not UTF-8 at byte {}", error.valid_up_to());
    Wrong::new("not_json", given).of_body(wanted)
}

#[cold]
fn not_json(text: &str, broken: Broken) -> Refusal {
    let given = match broken.at >= text.len() {
        true => format!("JSON that ends too early, after {} bytes", text.len()),
        false => format!("what is not JSON at byte {}: {}", broken.at, broken.what),
    };
    Wrong::new("not_json", given).of_body(EVENT)
}

/// Whether two rows hold equal fields, by name; a field that only one of them has must be null there.
pub fn content_equal(a: &RecordBatch, a_row: usize, b: &RecordBatch, b_row: usize) -> bool {
    let one_way = |left: &RecordBatch, left_row: usize, right: &RecordBatch, right_row: usize| {
        left.schema_ref().fields().iter().zip(left.columns()).all(|(field, column)| {
            match right.column_by_name(field.name()) {
                Some(other) => value_equal(column, left_row, other, right_row),
                None => column.is_null(left_row),
            }
        })
    };
    one_way(a, a_row, b, b_row)
        && b.schema_ref()
            .fields()
            .iter()
            .zip(b.columns())
            .all(|(field, column)| a.column_by_name(field.name()).is_some() || column.is_null(b_row))
}

fn value_equal(a: &dyn Array, a_row: usize, b: &dyn Array, b_row: usize) -> bool {
    if a.data_type() != b.data_type() || a.is_null(a_row) != b.is_null(b_row) {
        return false;
    }
    if a.is_null(a_row) {
        return true;
    }
    match a.data_type() {
        DataType::Boolean => a.as_boolean().value(a_row) == b.as_boolean().value(b_row),
        DataType::Int64 => {
            a.as_primitive::<Int64Type>().value(a_row) == b.as_primitive::<Int64Type>().value(b_row)
        }
        DataType::Float64 => {
            let bits = |array: &dyn Array, row| array.as_primitive::<Float64Type>().value(row).to_bits();
            bits(a, a_row) == bits(b, b_row)
        }
        DataType::Utf8 => a.as_string::<i32>().value(a_row) == b.as_string::<i32>().value(b_row),
        DataType::Timestamp(..) => {
            let time = |array: &dyn Array, row| array.as_primitive::<TimestampMicrosecondType>().value(row);
            time(a, a_row) == time(b, b_row)
        }
        DataType::Decimal128(..) => {
            let unscaled = |array: &dyn Array, row| array.as_primitive::<Decimal128Type>().value(row);
            unscaled(a, a_row) == unscaled(b, b_row)
        }
        other => unreachable!("events have no column of type {other}"),
    }
}
