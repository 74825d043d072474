//! Rows out as JSON text: the bytes that callers, `tail` and exports read.
//!
//! A value is written so that decoding it gives the same value back: integers in full, floats as the shortest text
//! that reads back to the same bits, decimals as a string at full scale, times in UTC with all their microseconds.
//! `took_ms` is written last and apart, because it is known only once the answer is durable.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};

use crate::decode::scalars::power_of_ten;
use crate::schema::{Field, Schema, Type};

/// Writes answers from batches of decisions, whose columns are: the event's id, offset, outcome, reasons, score, the
/// features, policy_version, cause, late.
///
/// An answer is left open after its last field: `finish` adds `took_ms` and closes it, `close` closes it without.
pub struct DecisionWriter {
    id: Type,
    /// Each feature's `"name":`, its column and its type.
    features: Vec<(Vec<u8>, usize, Type)>,
    policy_version: usize,
}

/// What an answer says that its row does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra {
    /// What would be decided: the event has no offset.
    pub dry_run: bool,
}

/// The cause of a fallback that was told because the deadline passed first.
pub const DEADLINE: &str = "deadline";
/// And of one that was told because the queue had no room.
pub const OVERLOAD: &str = "overload";
/// The cause of a fallback that is told because the disk has no room; it is not recorded.
pub const DISK_FULL: &str = "disk_full";

const ID: usize = 0;
const OFFSET: usize = 1;
const OUTCOME: usize = 2;
const REASONS: usize = 3;
const SCORE: usize = 4;

impl DecisionWriter {
    /// `features` are the indexes of the features' columns.
    pub fn new(decisions: &Schema, features: Range<usize>) -> DecisionWriter {
        let policy_version = features.end;
        let features = features.map(|index| {
            let field = &decisions.fields[index];
            (key(&field.name), index, field.kind)
        });
        DecisionWriter { id: decisions.fields[ID].kind, features: features.collect(), policy_version }
    }

    /// The rows of a table, ready to be written: what its columns are is looked at once.
    pub fn rows<'a>(&'a self, decisions: &'a RecordBatch) -> DecisionRows<'a> {
        let cells = |index: usize, kind: Type| Cells::new(decisions.column(index).as_ref(), kind);
        let text = |index: usize| decisions.column(index).as_string::<i32>();
        DecisionRows {
            id: cells(ID, self.id),
            offset: cells(OFFSET, Type::Int64),
            outcome: text(OUTCOME),
            reasons: text(REASONS),
            score: cells(SCORE, Type::Float64),
            features: self
                .features
                .iter()
                .map(|(key, index, kind)| (&key[..], cells(*index, *kind)))
                .collect(),
            policy_version: text(self.policy_version),
            cause: text(self.policy_version + 1),
            late: decisions.column(self.policy_version + 2).as_boolean(),
        }
    }
}

/// A table of decisions by its columns.
pub struct DecisionRows<'a> {
    id: Cells<'a>,
    offset: Cells<'a>,
    outcome: &'a StringArray,
    reasons: &'a StringArray,
    score: Cells<'a>,
    /// Each with its `"name":`.
    features: Vec<(&'a [u8], Cells<'a>)>,
    policy_version: &'a StringArray,
    cause: &'a StringArray,
    late: &'a BooleanArray,
}

impl DecisionRows<'_> {
    pub fn write(&self, out: &mut Vec<u8>, row: usize, extra: Extra) {
        let (outcome, policy_version) = (self.outcome.value(row), self.policy_version.value(row));
        let cause = self.cause.is_valid(row).then(|| self.cause.value(row));
        out.extend_from_slice(b"{\"id\":");
        self.id.write(out, row);
        out.extend_from_slice(b",\"outcome\":");
        write_text(out, outcome);
        out.extend_from_slice(b",\"reasons\":");
        out.extend_from_slice(self.reasons.value(row).as_bytes());
        out.extend_from_slice(b",\"score\":");
        self.score.write(out, row);
        out.extend_from_slice(b",\"features\":");
        self.write_features(out, row);
        out.extend_from_slice(b",\"policy_version\":");
        write_text(out, policy_version);
        out.extend_from_slice(b",\"offset\":");
        match extra.dry_run {
            true => out.extend_from_slice(b"null"),
            false => self.offset.write(out, row),
        }
        out.extend_from_slice(b",\"timed_out\":false");
        if self.late.is_valid(row) && self.late.value(row) {
            out.extend_from_slice(b",\"late\":true");
        }
        write_cause(out, cause);
    }

    fn write_features(&self, out: &mut Vec<u8>, row: usize) {
        out.push(b'{');
        for (position, (key, values)) in self.features.iter().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            out.extend_from_slice(key);
            values.write(out, row);
        }
        out.push(b'}');
    }
}

/// A column as what it is.
enum Cells<'a> {
    Bool(&'a BooleanArray),
    Int64(&'a Int64Array),
    Float64(&'a Float64Array),
    Text(&'a StringArray),
    Timestamp(&'a TimestampMicrosecondArray),
    Decimal(&'a Decimal128Array, i8),
}

impl<'a> Cells<'a> {
    fn new(column: &'a dyn Array, kind: Type) -> Cells<'a> {
        match kind {
            Type::Bool => Cells::Bool(column.as_boolean()),
            Type::Int64 => Cells::Int64(column.as_primitive()),
            Type::Float64 => Cells::Float64(column.as_primitive()),
            Type::Text => Cells::Text(column.as_string()),
            Type::Timestamp => Cells::Timestamp(column.as_primitive()),
            Type::Decimal(_, scale) => Cells::Decimal(column.as_primitive(), scale),
        }
    }

    fn write(&self, out: &mut Vec<u8>, row: usize) {
        match self {
            Cells::Bool(values) if values.is_valid(row) => {
                out.extend_from_slice(if values.value(row) { b"true" } else { b"false" })
            }
            Cells::Int64(values) if values.is_valid(row) => write_integer(out, values.value(row)),
            Cells::Float64(values) if values.is_valid(row) => write_float(out, values.value(row)),
            Cells::Text(values) if values.is_valid(row) => write_text(out, values.value(row)),
            Cells::Timestamp(values) if values.is_valid(row) => write_time(out, values.value(row)),
            Cells::Decimal(values, scale) if values.is_valid(row) => {
                write_decimal(out, values.value(row), *scale)
            }
            _ => out.extend_from_slice(b"null"),
        }
    }
}

/// The answer where there is no decision, open as `DecisionRows::write` leaves it; `id_json` is JSON text.
///
/// `timed_out` says that the deadline passed first: an overload or a full disk is told at once, and is none.
pub fn write_fallback(out: &mut Vec<u8>, id_json: &[u8], outcome: &str, policy_version: &str, cause: &str) {
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(id_json);
    out.extend_from_slice(b",\"outcome\":");
    write_text(out, outcome);
    out.extend_from_slice(b",\"reasons\":[],\"score\":null,\"features\":null,\"policy_version\":");
    write_text(out, policy_version);
    out.extend_from_slice(b",\"offset\":null,\"timed_out\":");
    out.extend_from_slice(if cause == DEADLINE { b"true" } else { b"false" });
    write_cause(out, Some(cause));
}

/// Close an answer whose time is not known: it was given long ago.
pub fn close(out: &mut Vec<u8>) {
    out.push(b'}');
}

/// Close an answer with the time it took, in milliseconds to the microsecond, rounded half up.
pub fn finish(out: &mut Vec<u8>, took_ns: u64) {
    let took_us = (took_ns.saturating_add(500)) / 1_000;
    out.extend_from_slice(b",\"took_ms\":");
    write_integer(out, took_us / 1_000);
    out.push(b'.');
    write_padded(out, took_us % 1_000, 3);
    out.push(b'}');
}

fn write_cause(out: &mut Vec<u8>, cause: Option<&str>) {
    if let Some(cause) = cause {
        out.extend_from_slice(b",\"cause\":");
        write_text(out, cause);
    }
}

/// One row as an object of all its fields; those that `json` names hold JSON already, and are never null.
pub fn write_row(out: &mut Vec<u8>, batch: &RecordBatch, fields: &[Field], json: &[String], row: usize) {
    out.push(b'{');
    for (index, field) in fields.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(out, &field.name);
        out.push(b':');
        match json.contains(&field.name) {
            true => out.extend_from_slice(batch.column(index).as_string::<i32>().value(row).as_bytes()),
            false => write_value(out, batch.column(index), field.kind, row),
        }
    }
    out.push(b'}');
}

/// One value as JSON; null where the column is null.
pub fn write_value(out: &mut Vec<u8>, column: &dyn Array, kind: Type, row: usize) {
    Cells::new(column, kind).write(out, row);
}

fn key(name: &str) -> Vec<u8> {
    let mut key = Vec::new();
    write_text(&mut key, name);
    key.push(b':');
    key
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing to memory cannot fail");
}

fn write_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// JSON has no NaN and no infinities; neither does any column of ours.
fn write_float(out: &mut Vec<u8>, value: f64) {
    match value.is_finite() {
        true => out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes()),
        false => out.extend_from_slice(b"null"),
    }
}

fn write_decimal(out: &mut Vec<u8>, unscaled: i128, scale: i8) {
    let unit = power_of_ten(scale as usize).unsigned_abs();
    let size = unscaled.unsigned_abs();
    out.push(b'"');
    if unscaled < 0 {
        out.push(b'-');
    }
    write_integer(out, size / unit);
    if scale > 0 {
        out.push(b'.');
        write_padded(out, size % unit, scale as usize);
    }
    out.push(b'"');
}

/// `2026-11-01T12:00:00.123456Z`; the fraction only where there is one, then all six digits.
fn write_time(out: &mut Vec<u8>, time_us: i64) {
    let (days, rest_us) = (time_us.div_euclid(86_400_000_000), time_us.rem_euclid(86_400_000_000));
    let (seconds, fraction_us) = (rest_us / 1_000_000, rest_us % 1_000_000);
    let (year, month, day) = date_since_1970(days);
    out.push(b'"');
    write_padded(out, year as u64, 4);
    for (separator, number) in
        [(b'-', month), (b'-', day), (b'T', seconds / 3_600), (b':', seconds / 60 % 60), (b':', seconds % 60)]
    {
        out.push(separator);
        write_padded(out, number as u64, 2);
    }
    if fraction_us != 0 {
        out.push(b'.');
        write_padded(out, fraction_us as u64, 6);
    }
    out.extend_from_slice(b"Z\"");
}

fn write_padded(out: &mut Vec<u8>, value: impl itoa::Integer, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value).as_bytes();
    out.extend(std::iter::repeat_n(b'0', width.saturating_sub(digits.len())));
    out.extend_from_slice(digits);
}

/// The date of the Gregorian calendar that lies `days` after 1970-01-01.
///
/// Counted in years that begin in March, so that a leap day is the last day of its year, century and 400 years.
fn date_since_1970(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day_of_month)
}
