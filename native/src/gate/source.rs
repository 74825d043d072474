//! The events of a large request as lines, and how many of them a cycle takes.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};

use super::core::refusal_body;
use super::weight::{Sum, Weight};
use super::{Kind, error_body};
use crate::conform::{Unknown, conform, read_ipc};
use crate::decode::{Limits, check_json};
use crate::schema::Schema;

/// Where the events of a request are, each a line.
pub(super) enum Source {
    Text {
        body: Vec<u8>,
        lines: Vec<Range<usize>>,
        /// The dead letter that each line was, where they are tried again.
        letters: Vec<i64>,
    },
    Arrow(RecordBatch),
}

/// More events are not taken from one body: each has a result, which may be much longer than the event.
const EVENTS_MAX: usize = 500_000;
/// More are not decided in one body: what each is told at the body's deadline is recorded, and looked up by who asks again.
const DECISIONS_MAX: usize = 50_000;

impl Source {
    pub fn text(kind: Kind, lines: Vec<Range<usize>>, body: Vec<u8>) -> std::result::Result<Source, Vec<u8>> {
        check_count(kind, lines.len())?;
        check_readable(lines.iter().map(|line| &body[line.clone()]))?;
        Ok(Source::Text { body, lines, letters: Vec::new() })
    }

    pub fn len(&self) -> usize {
        match self {
            Source::Text { lines, .. } => lines.len(),
            Source::Arrow(batch) => batch.num_rows(),
        }
    }

    /// From this line on as many as the slice has left.
    pub fn take(
        &self,
        first: usize,
        slice: &mut Slice,
        each: usize,
        weight: Weight,
        limits: &Limits,
    ) -> Range<usize> {
        match self {
            Source::Text { lines, .. } => {
                let mut end = first;
                while end < lines.len() && slice.has_left() {
                    slice.take(lines[end].len() + each);
                    slice.most.add(weight, lines[end].len(), limits);
                    end += 1;
                }
                first..end
            }
            Source::Arrow(batch) => {
                let each = batch.get_array_memory_size() / batch.num_rows().max(1) + 1;
                let count = slice.left.div_ceil(each).min(batch.num_rows() - first);
                slice.take(count * each);
                first..first + count
            }
        }
    }
}

/// What one cycle takes of large requests: about one commit of the bytes that are likely, and never more than fit.
pub(super) struct Slice {
    pub left: usize,
    pub most: Sum,
    pub bytes_max: usize,
    pub longest_text: usize,
}

impl Slice {
    pub fn has_left(&self) -> bool {
        self.left > 0 && self.most.bytes(self.longest_text) < self.bytes_max
    }

    pub fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

pub(super) fn read_arrow(body: &[u8], schema: &Schema) -> std::result::Result<Source, Vec<u8>> {
    let wrong = |error: &dyn std::fmt::Display| error_body("not_arrow", &error.to_string(), None);
    let batches = read_ipc(body).map_err(|error| wrong(&error))?;
    let Some(first) = batches.first() else {
        return Err(error_body("empty", "given a stream without rows, wanted events", None));
    };
    check_count(Kind::EventsArrow, batches.iter().map(RecordBatch::num_rows).sum())?;
    // Whether the columns fit is a matter of the whole stream; whether the values do, of each row.
    conform(&first.slice(0, 0), schema, &Limits::default(), Unknown::Refuse)
        .map_err(|error| wrong(&error))?;
    let batch =
        arrow_select::concat::concat_batches(&first.schema(), &batches).map_err(|error| wrong(&error))?;
    if batch.num_rows() == 0 {
        return Err(error_body("empty", "given a stream without rows, wanted events", None));
    }
    Ok(Source::Arrow(batch))
}

fn check_count(kind: Kind, count: usize) -> std::result::Result<(), Vec<u8>> {
    let most = if matches!(kind, Kind::DecideMany | Kind::DryRunMany) { DECISIONS_MAX } else { EVENTS_MAX };
    match count <= most {
        true => Ok(()),
        false => {
            let message = format!("given {count} events in one body, wanted at most {most}");
            Err(error_body("too_many_events", &message, None))
        }
    }
}

/// A body without events, or with no line that is JSON, cannot be read; else each line has a result of its own.
fn check_readable<'a>(lines: impl Iterator<Item = &'a [u8]> + Clone) -> std::result::Result<(), Vec<u8>> {
    if lines.clone().all(|line| line.trim_ascii().is_empty()) {
        return Err(error_body("empty", "given a body without events, wanted at least one", None));
    }
    let mut refusals = lines.map(|line| check_json(line).err());
    match refusals.next().flatten() {
        Some(first) if refusals.all(|refusal| refusal.is_some()) => Err(refusal_body(&first)),
        _ => Ok(()),
    }
}

pub(super) fn text_bytes(batch: &RecordBatch) -> usize {
    let texts = batch.columns().iter().filter_map(|column| column.as_string_opt::<i32>());
    texts.map(|text| (text.offsets()[text.len()] - text.offsets()[0]) as usize).sum()
}
