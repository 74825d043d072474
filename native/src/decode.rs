//! JSON bodies in, columns out: strictly, so that what enters the log means one thing only.
//!
//! `serde_json` walks the object and proves its syntax; each value comes as its raw text, because a decimal must be
//! read from the digits that were sent and never through a float. Values go straight into the columns; an event that
//! is refused half way takes its values back out again.

mod columns;
pub mod scalars;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::BufRead;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, SchemaRef};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use self::columns::{Column, Value};
use crate::answer::write_value;
use crate::schema::{Schema, Type};

/// Decodes events of one schema.
///
/// Refused are: anything but one flat JSON object (as UTF-8, with nothing after it); unknown, repeated and missing
/// fields; null where the field is required; a value of another kind than the field's. See `scalars` for what numbers
/// and times may look like. Text may hold any character, U+0000 too.
pub struct Decoder {
    schema: Schema,
    arrow: SchemaRef,
    id: usize,
    index: HashMap<String, usize>,
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
    pub fn new(schema: &Schema, id: usize) -> Decoder {
        let index = schema.fields.iter().enumerate().map(|(index, field)| (field.name.clone(), index)).collect();
        Decoder { arrow: schema.arrow(), schema: schema.clone(), id, index }
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

    /// Decode one whole event and give its id as JSON text.
    pub fn id_text(&self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let decoded = self.decode(std::iter::once(body));
        if let Some((_, refusal)) = decoded.refused.into_iter().next() {
            return Err(refusal);
        }
        let mut text = Vec::new();
        write_value(&mut text, decoded.batch.column(self.id), self.schema.fields[self.id].kind, 0);
        Ok(text)
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
        check_first_byte(body, b'{', "not_object", EVENT)?;
        let mut refusal = None;
        let mut json = serde_json::Deserializer::from_slice(body);
        let walked = json.deserialize_map(Walk { events: self, refusal: &mut refusal });
        match (refusal, walked.and_then(|()| json.end())) {
            (Some(refusal), _) => Err(refusal),
            (None, Err(error)) => Err(not_json(body, &error, EVENT)),
            (None, Ok(())) => Ok(()),
        }
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

    fn find(&mut self, before: usize, key: &str) -> Option<usize> {
        let guess = self.followers[before];
        if self.decoder.schema.fields.get(guess).is_some_and(|field| field.name == key) {
            return Some(guess);
        }
        let found = *self.decoder.index.get(key)?;
        self.followers[before] = found;
        Some(found)
    }

    fn put(&mut self, index: usize, raw: &str) -> Result<(), Refusal> {
        let field = &self.decoder.schema.fields[index];
        let column = &mut self.columns[index];
        if column.len() > self.rows {
            return Err(Wrong::new("repeated_field", "the field a second time").of(&field.name, field.kind));
        }
        read_value(raw).and_then(|value| column.push(value)).map_err(|wrong| wrong.of(&field.name, field.kind))
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

/// Walks one object. What is refused is left in `refusal`, because `serde_json`'s errors hold only text.
struct Walk<'e, 's> {
    events: &'e mut Events<'s>,
    refusal: &'e mut Option<Refusal>,
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(EVENT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut before = self.events.columns.len();
        while let Some(found) = map.next_key_seed(Key { events: self.events, before })? {
            let put = match found {
                Ok(index) => {
                    before = index;
                    self.events.put(index, map.next_value::<&RawValue>()?.get())
                }
                Err(unknown) => Err(unknown),
            };
            if let Err(refusal) = put {
                *self.refusal = Some(refusal);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

/// Reads a key into its field's index without copying it.
struct Key<'e, 's> {
    events: &'e mut Events<'s>,
    before: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Result<usize, Refusal>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = Result<usize, Refusal>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.events.find(self.before, key).ok_or_else(|| self.events.unknown(key)))
    }
}

/// `raw` is one JSON value of proven syntax.
fn read_value(raw: &str) -> Result<Value<'_>, Wrong> {
    Ok(match raw.as_bytes()[0] {
        b'"' => Value::Text(read_text(raw)?),
        b'n' => Value::Null,
        b't' => Value::Bool(true),
        b'f' => Value::Bool(false),
        b'[' => Value::Array,
        b'{' => Value::Object,
        _ => Value::Number(raw),
    })
}

fn read_text(raw: &str) -> Result<Cow<'_, str>, Wrong> {
    let inner = &raw[1..raw.len() - 1];
    if !inner.as_bytes().contains(&b'\\') {
        return Ok(Cow::Borrowed(inner));
    }
    // The syntax is proven; what can still be wrong is half of a surrogate pair.
    let text = serde_json::from_str(raw).map(Cow::Owned);
    text.map_err(|_| Wrong::new("not_json", "text with an unpaired surrogate escape"))
}

/// Cut a JSON array of events into the raw text of each; a syntax error refuses the whole body.
pub fn split_array(body: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    check_first_byte(body, b'[', "not_array", ARRAY)?;
    let events: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| not_json(body, &error, ARRAY))?;
    Ok(events.into_iter().map(|event| event.get().as_bytes()).collect())
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
    let wrong = match body.trim_ascii_start().first() {
        Some(byte) if *byte == first => return Ok(()),
        None => Wrong::new("empty", "an empty body"),
        Some(b'{') => Wrong::new(code, "an object"),
        Some(b'[') => Wrong::new(code, "an array"),
        Some(b'"') => Wrong::new(code, "text"),
        Some(b'0'..=b'9' | b'-') => Wrong::new(code, "a number"),
        Some(_) => Wrong::new("not_json", "what is not JSON"),
    };
    Err(wrong.of_body(wanted))
}

fn not_json(body: &[u8], error: &serde_json::Error, wanted: &str) -> Refusal {
    let place = error_offset(body, error);
    let words = error.to_string();
    let reason = words.split(" at line ").next().unwrap_or_default();
    let given = match error.is_eof() {
        true => format!("JSON that ends too early, after {} bytes", body.len()),
        false => format!("what is not JSON at byte {place} ({reason})"),
    };
    Wrong::new("not_json", given).of_body(wanted)
}

/// The offset of the byte where the syntax broke; `serde_json` counts lines and columns, each from 1.
fn error_offset(body: &[u8], error: &serde_json::Error) -> usize {
    let lines = body.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    (lines.map(<[u8]>::len).sum::<usize>() + error.column()).saturating_sub(1)
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
    one_way(a, a_row, b, b_row) && b.schema_ref().fields().iter().zip(b.columns()).all(|(field, column)| {
        a.column_by_name(field.name()).is_some() || column.is_null(b_row)
    })
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
        DataType::Int64 => a.as_primitive::<Int64Type>().value(a_row) == b.as_primitive::<Int64Type>().value(b_row),
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
