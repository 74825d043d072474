//! Small commits' rows on their way to the engine: a pass of it costs about as much for one row as for dozens.

use arrow_array::RecordBatch;

/// Small commits' events pass the engine together, up to about so many rows.
const GATHERED_ROWS: usize = 1 << 10;
/// And, with the decisions that come by meanwhile, bytes.
pub(super) const GATHERED_BYTES: usize = 4 << 20;

/// Consecutive events of one topic that entered one way, and the decisions that came by with them.
#[derive(Default)]
pub(super) struct Gathered {
    /// The topic, and the policy whose features are compared.
    pub source: Option<(usize, Option<usize>)>,
    pub base: i64,
    pub batches: Vec<RecordBatch>,
    pub marks: Vec<u8>,
    pub decisions: Vec<(usize, RecordBatch)>,
    pub bytes: usize,
}

impl Gathered {
    pub fn continues(&self, source: (usize, Option<usize>), base: i64, rows: usize) -> bool {
        match self.source {
            // What was decided is compared before anything that comes later.
            None => self.decisions.is_empty(),
            Some(known) => {
                known == source
                    && self.base + self.marks.len() as i64 == base
                    && self.marks.len() + rows <= GATHERED_ROWS
                    && self.bytes <= GATHERED_BYTES
            }
        }
    }

    pub fn add(
        &mut self,
        source: (usize, Option<usize>),
        base: i64,
        batch: RecordBatch,
        marks: Option<&[u8]>,
    ) {
        if self.source.is_none() {
            (self.source, self.base) = (Some(source), base);
        }
        let rows = self.marks.len() + batch.num_rows();
        self.bytes += batch.get_array_memory_size();
        self.marks.extend(marks.unwrap_or_default());
        self.marks.resize(rows, 0);
        self.batches.push(batch);
    }
}
