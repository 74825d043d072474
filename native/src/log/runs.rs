//! Rows of a log by the run: what follows one another in one topic, put together from however many commits it took.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;

use super::reader::Reader;
use crate::disk::Disk;
use crate::error::{Error, Result};

/// Reads some topics of a log in its order. A live log has a commit for every few rows, which one by one would be slow.
pub struct Runs {
    reader: Reader,
    topics: Vec<String>,
    rows: usize,
    waiting: VecDeque<Piece>,
}

/// One topic's rows in one commit.
struct Piece {
    topic: usize,
    schema: u32,
    batch: RecordBatch,
    marks: Option<Vec<u8>>,
}

/// Rows of one topic and one schema, with their marks where any row has one.
pub struct Run {
    /// Its index in the topics that are read.
    pub topic: usize,
    pub batch: RecordBatch,
    pub marks: Option<Vec<u8>>,
}

impl Runs {
    /// From the log's start; a run ends at about so many rows.
    pub fn open(disk: Arc<dyn Disk>, topics: Vec<String>, rows: usize) -> Result<Runs> {
        Ok(Runs { reader: Reader::open(disk, None)?, topics, rows, waiting: VecDeque::new() })
    }

    /// The next run; `None` at the log's end, for now.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Run>> {
        let Some(first) = self.take(|_| true)? else { return Ok(None) };
        let (topic, schema) = (first.topic, first.schema);
        let mut rows = first.batch.num_rows();
        let mut marks = first.marks;
        let mut batches = vec![first.batch];
        while rows < self.rows
            && let Some(piece) = self.take(|piece| piece.topic == topic && piece.schema == schema)?
        {
            marks = join_marks(marks, rows, piece.marks, piece.batch.num_rows());
            rows += piece.batch.num_rows();
            batches.push(piece.batch);
        }
        let batch = concat_batches(&batches[0].schema(), &batches);
        let batch =
            batch.map_err(|error| Error::invalid(format!("could not join a run of rows: {error}")))?;
        Ok(Some(Run { topic, batch, marks }))
    }

    /// The next piece, if it is wanted; else it waits.
    fn take(&mut self, wanted: impl Fn(&Piece) -> bool) -> Result<Option<Piece>> {
        while self.waiting.is_empty() {
            let Some(commit) = self.reader.next()? else { return Ok(None) };
            for section in &commit.sections {
                if let Some(topic) = self.topics.iter().position(|topic| **topic == *section.topic) {
                    let marks = section.marks.as_deref().map(<[u8]>::to_vec);
                    let (schema, batch) = (section.schema, section.batch()?);
                    self.waiting.push_back(Piece { topic, schema, batch, marks });
                }
            }
        }
        let taken = self.waiting.front().is_some_and(wanted);
        Ok(if taken { self.waiting.pop_front() } else { None })
    }
}

/// Marks of rows and of those behind them; rows without any have zeros.
fn join_marks(left: Option<Vec<u8>>, rows: usize, right: Option<Vec<u8>>, more: usize) -> Option<Vec<u8>> {
    if left.is_none() && right.is_none() {
        return None;
    }
    let mut marks = left.unwrap_or_else(|| vec![0; rows]);
    marks.extend(right.unwrap_or_else(|| vec![0; more]));
    Some(marks)
}
