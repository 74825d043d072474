//! What follows a log or a history: the snapshotter's engine, and a replay's.

use std::io;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{Field as ArrowField, Schema as ArrowSchema};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrow::{Batch, import_batch};
use super::{disk, raise};
use crate::decide::{Case, Decider, no_score};
use crate::disk::{LARGE_PIECE, SMALL_PIECE};
use crate::engine::Engine;
use crate::error::Error;
use crate::follower::Follower as CoreFollower;
use crate::plan::Plan;

/// The state from the log, in a process beside the gate: writes snapshots.
#[pyclass]
pub(super) struct Follower(CoreFollower);

#[pymethods]
impl Follower {
    #[new]
    fn new(py: Python<'_>, plan: &str, data: &Bound<'_, PyAny>) -> PyResult<Follower> {
        let plan = Arc::new(Plan::from_json(plan).map_err(raise)?);
        let disk = disk(data)?;
        py.detach(|| CoreFollower::open(plan, disk, 1, &mut |_, _, _| {})).map(Follower).map_err(raise)
    }

    /// Apply at most so many new durable commits; how many there were.
    fn advance(&mut self, py: Python<'_>, commits_max: usize) -> PyResult<usize> {
        py.detach(|| self.0.advance(commits_max, |_| Ok(()))).map_err(raise)
    }

    /// Write the state, and call `pause` after each small piece of it, until it says that there is no time for more; the
    /// sequence of the commit that it is as of. What `pause` raises ends it.
    #[pyo3(signature = (pause=None))]
    fn snapshot(&mut self, py: Python<'_>, pause: Option<Py<PyAny>>) -> PyResult<u64> {
        let (mut pause, mut raised) = (pause, None);
        let mut piece = || {
            let Some(call) = &pause else { return Ok(LARGE_PIECE) };
            match Python::attach(|py| call.call0(py)?.is_truthy(py)) {
                Ok(false) => Ok(SMALL_PIECE),
                Ok(true) => {
                    pause = None;
                    Ok(LARGE_PIECE)
                }
                Err(error) => {
                    raised = Some(error);
                    Err(io::Error::other("its pause has failed"))
                }
            }
        };
        let written = py.detach(|| self.0.write_snapshot(&mut piece));
        raised.map_or_else(|| written.map_err(raise), Err)
    }

    #[getter]
    fn sequence(&self) -> u64 {
        self.0.sequence
    }

    /// Whether the log is of this plan's state at the last commit that was read.
    fn is_current(&mut self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.0.is_current()).map_err(raise)
    }

    /// Decisions whose features were computed a second time, and batches of them that came out otherwise.
    #[getter]
    fn compared(&self) -> (u64, u64) {
        (self.0.compared, self.0.mismatches)
    }

    /// The bytes of each store's state, for tests that compare them.
    fn state(&mut self, py: Python<'_>) -> PyResult<Vec<Py<PyBytes>>> {
        self.0.engine.settle();
        let stores = self.0.plan.stores.len();
        let save = |index| {
            let mut bytes = Vec::new();
            self.0.engine.save_store(index, &mut bytes).map_err(raise)?;
            Ok(PyBytes::new(py, &bytes).unbind())
        };
        (0..stores).map(save).collect()
    }
}

/// The operators over history: batches in, features and what the policy says of them out.
#[pyclass]
pub(super) struct Replayer {
    engine: Engine,
    decider: Option<Decider>,
    topic: Option<usize>,
    set: usize,
    model: bool,
    offset: i64,
    /// Of the rows that were processed last: `decide` concludes them.
    marks: Vec<u8>,
    /// The columns that are wanted, in their order.
    select: Vec<String>,
}

/// What a policy adds to an event's fields and features.
const DECIDED: [&str; 3] = ["score", "outcome", "reasons"];

#[pymethods]
impl Replayer {
    /// `policy` or, without one, the set of features whose rows are wanted; with neither, events are only remembered.
    /// `select` names the wanted columns: of the event, of the features, and `score`, `outcome` and `reasons`.
    #[new]
    #[pyo3(signature = (plan, *, policy=None, features=None, select, threads=2))]
    fn new(
        plan: &str,
        policy: Option<usize>,
        features: Option<usize>,
        select: Vec<String>,
        threads: usize,
    ) -> PyResult<Replayer> {
        let plan = Arc::new(Plan::from_json(plan).map_err(raise)?);
        let set = policy.map(|policy| plan.policies[policy].features).or(features);
        let policy = policy.filter(|_| select.iter().any(|name| DECIDED.contains(&name.as_str())));
        Ok(Replayer {
            decider: policy.map(|policy| Decider::new(&plan, policy)).transpose().map_err(raise)?,
            topic: set.map(|set| plan.features[set].topic),
            set: set.unwrap_or_default(),
            model: policy.is_some_and(|policy| plan.policies[policy].model.is_some()),
            engine: Engine::new(plan, threads).map_err(raise)?,
            offset: 0,
            marks: Vec::new(),
            select,
        })
    }

    /// Rows of a topic in order, with the marks that they have in a log. For the wanted topic the selected columns;
    /// where a model is to be asked, the features.
    #[pyo3(signature = (topic, batch, marks=None))]
    fn process(
        &mut self,
        py: Python<'_>,
        topic: usize,
        batch: &Bound<'_, PyAny>,
        marks: Option<&[u8]>,
    ) -> PyResult<Option<Batch>> {
        let batch = import_batch(batch)?;
        py.detach(|| self.run(topic, &batch, marks)).map(|output| output.map(Batch)).map_err(raise)
    }

    /// With a model: the selected columns of the rows that `process` gave the features of last.
    fn decide(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
        features: &Bound<'_, PyAny>,
        scores: &Bound<'_, PyAny>,
    ) -> PyResult<Batch> {
        let (events, features) = (import_batch(events)?, import_batch(features)?);
        let score = import_batch(scores)?.column(0).clone();
        py.detach(|| self.conclude(&events, features.columns(), &score)).map(Batch).map_err(raise)
    }

    #[getter]
    fn state_bytes(&self) -> usize {
        self.engine.state_bytes()
    }

    #[getter]
    fn retained_events(&self) -> usize {
        self.engine.retained_events()
    }

    #[getter]
    fn state_keys(&self) -> usize {
        self.engine.state_keys()
    }
}

impl Replayer {
    fn run(
        &mut self,
        topic: usize,
        batch: &RecordBatch,
        marks: Option<&[u8]>,
    ) -> crate::error::Result<Option<RecordBatch>> {
        if self.topic != Some(topic) {
            self.engine.process(topic, batch, marks, &[])?;
            return Ok(None);
        }
        let mut processed = self.engine.process(topic, batch, marks, &[self.set])?;
        self.marks = processed.marks;
        let features = processed.features.swap_remove(0);
        match (&self.decider, self.model) {
            (None, _) => self.table(batch, &features, Vec::new()),
            (Some(_), false) => self.conclude(batch, &features, &no_score(batch.num_rows())),
            (Some(_), true) => named_batch(self.feature_columns(&features)),
        }
        .map(Some)
    }

    fn conclude(
        &mut self,
        events: &RecordBatch,
        features: &[ArrayRef],
        score: &ArrayRef,
    ) -> crate::error::Result<RecordBatch> {
        let rows = events.num_rows();
        let decider =
            self.decider.as_ref().ok_or_else(|| Error::invalid("there is no policy to decide by"))?;
        let offsets: Vec<i64> = (self.offset..self.offset + rows as i64).collect();
        self.offset += rows as i64;
        let case = Case { events, features, score, marks: &self.marks, offsets: &offsets };
        let verdicts = decider.decide(&case)?;
        let decided = vec![score.clone(), decider.outcome_column(&verdicts), decider.rule_column(&verdicts)];
        self.table(events, features, decided)
    }

    fn feature_columns(&self, features: &[ArrayRef]) -> Vec<(ArrowField, ArrayRef)> {
        let fields = self.engine.plan.features[self.set].columns.iter();
        fields.zip(features).map(|(field, column)| named(&field.name, column)).collect()
    }

    /// The selected ones of all columns. An event's fields keep what they say of nulls.
    fn table(
        &self,
        events: &RecordBatch,
        features: &[ArrayRef],
        decided: Vec<ArrayRef>,
    ) -> crate::error::Result<RecordBatch> {
        let fields = events.schema_ref().fields().iter().map(|field| ArrowField::clone(field));
        let mut columns: Vec<_> = fields.zip(events.columns().iter().cloned()).collect();
        columns.extend(self.feature_columns(features));
        columns.extend(DECIDED.iter().zip(&decided).map(|(name, column)| named(name, column)));
        let find = |name: &String| columns.iter().find(|(field, _)| field.name() == name).cloned();
        let selected: Option<Vec<_>> = self.select.iter().map(find).collect();
        named_batch(selected.ok_or_else(|| Error::invalid("a column is selected that there is not"))?)
    }
}

pub(super) fn named(name: &str, column: &ArrayRef) -> (ArrowField, ArrayRef) {
    (ArrowField::new(name, column.data_type().clone(), true), column.clone())
}

pub(super) fn named_batch(columns: Vec<(ArrowField, ArrayRef)>) -> crate::error::Result<RecordBatch> {
    let (fields, columns): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), columns)
        .map_err(|error| Error::invalid(format!("the results do not fit their table: {error}")))
}
