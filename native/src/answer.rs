//! Rows out as JSON text: the bytes that callers, `tail` and exports read.
//!
//! A value is written so that decoding it gives the same value back: integers in full, floats as the shortest text
//! that reads back to the same bits, decimals as a string at full scale, times in UTC with all their microseconds.
//! `took_ms` is written last and apart, because it is known only once the answer is durable.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};

use crate::decode::scalars::power_of_ten;
use crate::schema::{Field, Schema, Type};

/// Writes answers from batches of decisions, whose columns are: the event's id, offset, outcome, reasons, score, the
/// features, policy_version, cause, late.
///
/// An answer is left open after its last field but one: `finish` adds `took_ms` and closes it.
pub struct DecisionWriter {
    id: Type,
    /// Each feature's `"name":`, its column and its type.
    features: Vec<(Vec<u8>, usize, Type)>,
    policy_version: usize,
}

/// What an answer says that its row does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra {
    /// The deadline passed first: the row is the fallback that the caller was told.
    pub timed_out: bool,
    /// What would be decided: the event has no offset.
    pub dry_run: bool,
}

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

    pub fn write(&self, out: &mut Vec<u8>, decisions: &RecordBatch, row: usize, extra: Extra) {
        let column = |index: usize| decisions.column(index).as_ref();
        let text = |index: usize| column(index).as_string::<i32>().value(row);
        let cause = (!column(self.policy_version + 1).is_null(row)).then(|| text(self.policy_version + 1));
        if extra.timed_out {
            let mut id = Vec::with_capacity(48);
            write_value(&mut id, column(ID), self.id, row);
            return write_fallback(out, &id, text(OUTCOME), text(self.policy_version), cause);
        }
        out.extend_from_slice(b"{\"id\":");
        write_value(out, column(ID), self.id, row);
        out.extend_from_slice(b",\"outcome\":");
        write_text(out, text(OUTCOME));
        out.extend_from_slice(b",\"reasons\":");
        out.extend_from_slice(text(REASONS).as_bytes());
        out.extend_from_slice(b",\"score\":");
        write_value(out, column(SCORE), Type::Float64, row);
        out.extend_from_slice(b",\"features\":");
        self.write_features(out, decisions, row);
        out.extend_from_slice(b",\"policy_version\":");
        write_text(out, text(self.policy_version));
        out.extend_from_slice(b",\"offset\":");
        match extra.dry_run {
            true => out.extend_from_slice(b"null"),
            false => write_value(out, column(OFFSET), Type::Int64, row),
        }
        out.extend_from_slice(b",\"timed_out\":false");
        let late = column(self.policy_version + 2).as_boolean();
        if late.is_valid(row) && late.value(row) {
            out.extend_from_slice(b",\"late\":true");
        }
        write_cause(out, cause);
    }

    fn write_features(&self, out: &mut Vec<u8>, decisions: &RecordBatch, row: usize) {
        out.push(b'{');
        for (position, (key, index, kind)) in self.features.iter().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            out.extend_from_slice(key);
            write_value(out, decisions.column(*index), *kind, row);
        }
        out.push(b'}');
    }
}

/// The answer of a deadline that passed, open as `DecisionWriter::write` leaves it; `id_json` is JSON text.
pub fn write_fallback(
    out: &mut Vec<u8>,
    id_json: &[u8],
    outcome: &str,
    policy_version: &str,
    cause: Option<&str>,
) {
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(id_json);
    out.extend_from_slice(b",\"outcome\":");
    write_text(out, outcome);
    out.extend_from_slice(b",\"reasons\":[],\"score\":null,\"features\":null,\"policy_version\":");
    write_text(out, policy_version);
    out.extend_from_slice(b",\"offset\":null,\"timed_out\":true");
    write_cause(out, cause);
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

/// One row as an object of all its fields.
pub fn write_row(out: &mut Vec<u8>, batch: &RecordBatch, fields: &[Field], row: usize) {
    out.push(b'{');
    for (index, field) in fields.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(out, &field.name);
        out.push(b':');
        write_value(out, batch.column(index), field.kind, row);
    }
    out.push(b'}');
}

/// One value as JSON; null where the column is null.
pub fn write_value(out: &mut Vec<u8>, column: &dyn Array, kind: Type, row: usize) {
    if column.is_null(row) {
        return out.extend_from_slice(b"null");
    }
    match kind {
        Type::Bool => out.extend_from_slice(if column.as_boolean().value(row) { b"true" } else { b"false" }),
        Type::Int64 => write_integer(out, column.as_primitive::<Int64Type>().value(row)),
        Type::Float64 => write_float(out, column.as_primitive::<Float64Type>().value(row)),
        Type::Text => write_text(out, column.as_string::<i32>().value(row)),
        Type::Timestamp => write_time(out, column.as_primitive::<TimestampMicrosecondType>().value(row)),
        Type::Decimal(_, scale) => {
            write_decimal(out, column.as_primitive::<Decimal128Type>().value(row), scale)
        }
    }
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
