//! The files of a data directory, for who reads, checks or locks them.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::Serialize;

use super::arrow::Batch;
use super::{disk, from_json, raise};
use crate::conform::{Unknown, conform as conform_batch};
use crate::decode::Limits;
use crate::error::Error;
use crate::log::{self, Reader};
use crate::schema::{Field, Schema};
use crate::{ids, snapshot, witness};

/// Reads a data directory, whether or not a gate writes it.
#[pyclass]
pub(super) struct LogReader {
    reader: Reader,
    topic: Option<String>,
    offset: u64,
}

#[pymethods]
impl LogReader {
    /// Of one topic from an offset or from the oldest row that is kept, or of everything from the log's start.
    #[new]
    #[pyo3(signature = (data, topic=None, offset=None))]
    fn new(
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        topic: Option<String>,
        offset: Option<u64>,
    ) -> PyResult<LogReader> {
        let disk = disk(data)?;
        let opened = py.detach(|| {
            let from = match (&topic, offset) {
                (Some(topic), Some(offset)) => log::seek_offset(disk.clone(), topic, offset)?,
                _ => None,
            };
            Reader::open(disk, from)
        });
        Ok(LogReader { reader: opened.map_err(raise)?, topic, offset: offset.unwrap_or(0) })
    }

    /// The next section: (topic, base offset, commit time in µs, origin, rows); None at the log's end, for now.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<Vec<(String, u64, i64, u16, Batch)>>> {
        py.detach(|| self.next_commit()).map_err(raise)
    }
}

/// Topics with their next offset and their fields, and the notes, as JSON; as of the log's end.
#[pyfunction]
pub(super) fn catalog(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<String> {
    let disk = disk(data)?;
    let catalog = py.detach(|| log::newest_catalog(disk)).map_err(raise)?;
    let topics: Vec<_> = (catalog.topics().iter())
        .map(|topic| TopicJson {
            name: &topic.name,
            next_offset: topic.next_offset,
            fields: (catalog.newest_schema(&topic.name)).map_or(&[], |stored| &stored.schema.fields),
        })
        .collect();
    Ok(serde_json::to_string(&CatalogJson { topics, notes: catalog.notes() }).expect("plain data"))
}

#[derive(Serialize)]
pub(super) struct CatalogJson<'a> {
    topics: Vec<TopicJson<'a>>,
    notes: &'a std::collections::BTreeMap<String, String>,
}

#[derive(Serialize)]
pub(super) struct TopicJson<'a> {
    name: &'a str,
    next_offset: u64,
    fields: &'a [Field],
}

impl LogReader {
    fn next_commit(&mut self) -> crate::error::Result<Option<Vec<(String, u64, i64, u16, Batch)>>> {
        while let Some(commit) = self.reader.next()? {
            let mut rows = Vec::new();
            for section in &commit.sections {
                let end = section.base_offset + section.rows as u64;
                if self.topic.as_deref().is_some_and(|topic| *section.topic != *topic || end <= self.offset) {
                    continue;
                }
                let skipped =
                    if self.topic.is_some() { self.offset.saturating_sub(section.base_offset) } else { 0 };
                let batch = section.batch()?;
                let batch = batch.slice(skipped as usize, batch.num_rows() - skipped as usize);
                let base = section.base_offset + skipped;
                rows.push((section.topic.to_string(), base, commit.time_us, section.origin, Batch(batch)));
            }
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }
}

/// Reads topics from a log's start as they are defined now: fields that came later are null.
#[pyclass]
pub(super) struct LogRuns {
    runs: log::Runs,
    schemas: Vec<Schema>,
}

#[pymethods]
impl LogRuns {
    /// `topics` are names, each with its fields; `rows` is about how many one run may have.
    #[new]
    fn new(
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        topics: Vec<(String, String)>,
        rows: usize,
    ) -> PyResult<LogRuns> {
        let disk = disk(data)?;
        let schemas =
            topics.iter().map(|(_, fields)| Ok(Schema { fields: from_json(fields, "the fields")? }));
        let schemas = schemas.collect::<PyResult<_>>()?;
        let names = topics.into_iter().map(|(name, _)| name).collect();
        let runs = py.detach(|| log::Runs::open(disk, names, rows)).map_err(raise)?;
        Ok(LogRuns { runs, schemas })
    }

    /// The next run of one topic's rows: (the topic's index, rows, a byte of marks for each row or None); None at the
    /// log's end, for now.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<(usize, Batch, Option<Py<PyBytes>>)>> {
        let run = py.detach(|| {
            let Some(run) = self.runs.next()? else { return Ok(None) };
            let schema = &self.schemas[run.topic];
            let (batch, _) = conform_batch(&run.batch, schema, &Limits::default(), Unknown::Ignore)?;
            Ok(Some((run.topic, Batch(batch), run.marks)))
        });
        let run = run.map_err(raise)?;
        Ok(run.map(|(topic, batch, marks)| {
            (topic, batch, marks.map(|marks| PyBytes::new(py, &marks).unbind()))
        }))
    }
}

/// Every frame of every file checked; the report as JSON.
#[pyfunction]
pub(super) fn verify(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<String> {
    let disk = disk(data)?;
    // What was made of the log before it is read is of commits in it, even while it grows.
    let verify = || log::verify_beside(disk.clone(), &witness::newest(disk.as_ref())?);
    let report = py.detach(verify).map_err(raise)?;
    Ok(serde_json::to_string(&report).expect("plain data"))
}

/// Where the log ends that a start would keep: the last commit, its segment's path, and where in that it ends. Raises
/// `DamagedError` where what was durable is missing; None where there is no log.
#[pyfunction]
pub(super) fn log_end(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Option<(u64, String, u64)>> {
    let disk = disk(data)?;
    let end = || log::end(disk.as_ref(), &witness::newest(disk.as_ref())?);
    let end = py.detach(end).map_err(raise)?;
    Ok(end.map(|end| (end.sequence, end.segment, end.offset)))
}

/// Read every file of the index of ids: how many there are, and what is damaged of them.
#[pyfunction]
pub(super) fn verify_ids(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
) -> PyResult<(u64, Vec<(String, u64, String)>)> {
    let disk = disk(data)?;
    let (count, damage) = py.detach(|| ids::verify(disk.as_ref())).map_err(raise)?;
    let parts = |error| match error {
        Error::Damaged { file, offset, what } => Ok((file, offset, what)),
        other => Err(raise(other)),
    };
    Ok((count, damage.into_iter().map(parts).collect::<PyResult<_>>()?))
}

/// Read all of the snapshot of this sequence; its header. Raises `DamagedError`.
#[pyfunction]
pub(super) fn verify_snapshot(py: Python<'_>, data: &Bound<'_, PyAny>, sequence: u64) -> PyResult<String> {
    let disk = disk(data)?;
    let header = py.detach(|| snapshot::verify(&disk, sequence)).map_err(raise)?;
    Ok(serde_json::to_string(&header).expect("plain data"))
}

/// Remember in a log that no gate writes how far a consumer has come, or forget it with None; the caller holds the
/// directory's lock.
#[pyfunction]
pub(super) fn commit_position(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    consumer: &str,
    topic: &str,
    offset: Option<u64>,
    now_us: i64,
) -> PyResult<()> {
    let disk = disk(data)?;
    let committed = py.detach(|| {
        let witness = witness::newest(disk.as_ref())?;
        let (mut log, _) = log::Log::open_beside(disk, log::Settings::default(), now_us, &witness)?;
        match offset {
            Some(offset) => {
                log.check_position(consumer, topic, offset)?;
                log.check_position_room(consumer, topic)?;
                log.note_position(consumer, topic, offset);
            }
            None => log.forget_position(consumer, topic),
        }
        if log.has_changes() {
            log.append(&[], now_us)?;
        }
        log.close()
    });
    committed.map_err(raise)
}

/// The one writer of a data directory, as long as it lives.
#[pyclass(frozen)]
pub(super) struct Lock(#[allow(dead_code)] log::Lock);

#[pymethods]
impl Lock {
    #[new]
    fn new(data: &str) -> PyResult<Lock> {
        log::lock(data.as_ref()).map(Lock).map_err(raise)
    }
}
