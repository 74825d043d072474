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
}

impl Runs {
    /// From the log's start; a run ends at about so many rows.
    pub fn open(disk: Arc<dyn Disk>, topics: Vec<String>, rows: usize) -> Result<Runs> {
        Ok(Runs { reader: Reader::open(disk, None)?, topics, rows, waiting: VecDeque::new() })
    }

    /// The next run, of rows of one topic and one schema: the topic's index and the rows. `None` at the log's end, for now.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(usize, RecordBatch)>> {
        let Some(first) = self.take(|_| true)? else { return Ok(None) };
        let (topic, schema) = (first.topic, first.schema);
        let mut rows = first.batch.num_rows();
        let mut batches = vec![first.batch];
        while rows < self.rows
            && let Some(piece) = self.take(|piece| piece.topic == topic && piece.schema == schema)?
        {
            rows += piece.batch.num_rows();
            batches.push(piece.batch);
        }
        let run = concat_batches(&batches[0].schema(), &batches);
        let run = run.map_err(|error| Error::invalid(format!("could not join a run of rows: {error}")))?;
        Ok(Some((topic, run)))
    }

    /// The next piece, if it is wanted; else it waits.
    fn take(&mut self, wanted: impl Fn(&Piece) -> bool) -> Result<Option<Piece>> {
        while self.waiting.is_empty() {
            let Some(commit) = self.reader.next()? else { return Ok(None) };
            for section in &commit.sections {
                if let Some(topic) = self.topics.iter().position(|topic| **topic == *section.topic) {
                    self.waiting.push_back(Piece { topic, schema: section.schema, batch: section.batch()? });
                }
            }
        }
        let taken = self.waiting.front().is_some_and(wanted);
        Ok(if taken { self.waiting.pop_front() } else { None })
    }
}
