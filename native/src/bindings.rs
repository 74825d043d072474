//! Everything that Python sees of the core, in one file. Batches cross as Arrow's C data, events as bytes; whatever
//! takes longer than a lock releases the GIL.

// The Arrow C data interface hands over raw pointers; each use says why it is sound.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock};

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::{DataType, Field as ArrowField, Schema as ArrowSchema};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyTuple};
use serde::{Deserialize, Serialize};

use crate::answer::{self, DEADLINE, OVERLOAD};
use crate::conform::{Unknown, conform as conform_batch, conform_cells as conform_cell_batch, keep_rows};
use crate::decide::{Case, Decider, no_score};
use crate::decode::{Decoder, Limits, split_lines};
use crate::disk::{Call, Crash, Disk, LARGE_PIECE, MemoryDisk, RealDisk, SMALL_PIECE};
use crate::engine::Engine;
use crate::error::Error;
use crate::evaluate::Program;
use crate::follower::Follower as CoreFollower;
use crate::gate::{self, Clock, Core, Kind, ManualClock, RealClock, Request, Started, Told};
use crate::ids;
use crate::log::{self, Reader};
use crate::plan::Plan;
use crate::schema::{Field, Schema, Type};
use crate::snapshot;
use crate::witness;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Batch>()?;
    module.add_class::<Gate>()?;
    module.add_class::<ManualGate>()?;
    module.add_class::<Memory>()?;
    module.add_class::<Follower>()?;
    module.add_class::<Replayer>()?;
    module.add_class::<LogReader>()?;
    module.add_class::<LogRuns>()?;
    module.add_class::<Lock>()?;
    module.add_class::<Evaluator>()?;
    module.add_class::<JsonDecoder>()?;
    module.add_function(wrap_pyfunction!(conform, module)?)?;
    module.add_function(wrap_pyfunction!(conform_cells, module)?)?;
    module.add_function(wrap_pyfunction!(commit_position, module)?)?;
    module.add_function(wrap_pyfunction!(catalog, module)?)?;
    module.add_function(wrap_pyfunction!(verify, module)?)?;
    module.add_function(wrap_pyfunction!(log_end, module)?)?;
    module.add_function(wrap_pyfunction!(verify_ids, module)?)?;
    module.add_function(wrap_pyfunction!(verify_snapshot, module)?)?;
    module.add_function(wrap_pyfunction!(rows_json, module)?)?;
    Ok(())
}

/// The error's Python exception, from `penstock.errors`, with its hint.
fn raise(error: Error) -> PyErr {
    let class = match &error {
        Error::Io { .. } => "LogError",
        Error::Damaged { .. } => "DamagedError",
        Error::Full { .. } => "FullError",
        Error::Locked { .. } => "LockedError",
        Error::Invalid { .. } => "DefinitionError",
    };
    let hint = match &error {
        Error::Invalid { hint, .. } => hint.clone(),
        Error::Damaged { .. } => Some("`penstock log verify` shows all that is damaged".into()),
        Error::Locked { pid: Some(pid), stopped: true } => Some(format!(
            "`kill -CONT {pid}` lets it go on, `kill -9 {pid}` ends it: nothing acknowledged is lost"
        )),
        _ => None,
    };
    let message = match error {
        Error::Invalid { what, .. } => what,
        other => other.to_string(),
    };
    // Damage of the log says itself what to do about it.
    let (message, hint) = match message.split_once("\nhint: ") {
        Some((message, hint)) => (message.to_string(), Some(hint.to_string())),
        None => (message, hint),
    };
    Python::attach(|py| {
        let raised = (|| {
            let keywords = pyo3::types::PyDict::new(py);
            keywords.set_item("hint", hint)?;
            let class = py.import("penstock.errors")?.getattr(class)?;
            class.call((message.clone(),), Some(&keywords))
        })();
        raised.map_or_else(|_| PyRuntimeError::new_err(message), PyErr::from_value)
    })
}

fn from_json<'a, T: Deserialize<'a>>(text: &'a str, what: &str) -> PyResult<T> {
    serde_json::from_str(text)
        .map_err(|error| raise(Error::invalid(format!("could not read {what}: {error}"))))
}

// Arrow.

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";

/// Columns on their way to Python: any Arrow library takes them by `__arrow_c_array__`.
#[pyclass(frozen)]
struct Batch(RecordBatch);

#[pymethods]
impl Batch {
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let _ = requested_schema;
        let data = StructArray::from(self.0.clone()).into_data();
        let (array, schema) = to_ffi(&data).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        let schema = PyCapsule::new_with_value(py, schema, SCHEMA)?;
        let array = PyCapsule::new_with_value(py, array, ARRAY)?;
        PyTuple::new(py, [schema, array])
    }

    #[getter]
    fn num_rows(&self) -> usize {
        self.0.num_rows()
    }
}

fn import_batch(object: &Bound<'_, PyAny>) -> PyResult<RecordBatch> {
    let pair: (Bound<'_, PyCapsule>, Bound<'_, PyCapsule>) =
        object.call_method0("__arrow_c_array__")?.extract()?;
    let schema = pair.0.pointer_checked(Some(SCHEMA))?;
    let array = pair.1.pointer_checked(Some(ARRAY))?;
    // SAFETY: the capsules' names say what they hold, and by the Arrow C data interface the consumer may move the
    // structures out; `from_raw` leaves released ones behind, which the capsules' destructors then ignore.
    let data = unsafe {
        let schema = FFI_ArrowSchema::from_raw(schema.cast().as_ptr());
        let array = FFI_ArrowArray::from_raw(array.cast().as_ptr());
        from_ffi(array, &schema)
    };
    let mut data = data.map_err(|error| raise(Error::invalid(format!("not an Arrow batch: {error}"))))?;
    // Buffers of other libraries may be aligned less than Rust's types need.
    data.align_buffers();
    if !matches!(data.data_type(), DataType::Struct(_)) {
        return Err(raise(Error::invalid("given an Arrow array, wanted a record batch")));
    }
    Ok(RecordBatch::from(StructArray::from(data)))
}

// The gate.

#[derive(Deserialize)]
struct GateSettings {
    state_bytes: usize,
    commit_bytes: usize,
    segment_bytes: u64,
    retention_us: Option<i64>,
    retention_bytes: Option<u64>,
    threads: usize,
    /// The newest ids that are kept in memory.
    memory_ids: usize,
}

struct Parts {
    plan: Plan,
    settings: gate::Settings,
    log: log::Settings,
    ids: ids::Settings,
}

fn parts(plan: &str, settings: &str, background: bool) -> PyResult<Parts> {
    let plan = Plan::from_json(plan).map_err(raise)?;
    let settings: GateSettings = from_json(settings, "the settings")?;
    let retain_us = plan.topics.iter().map(|topic| topic.retain_us).max().unwrap_or(0);
    Ok(Parts {
        plan,
        settings: gate::Settings {
            state_bytes_max: settings.state_bytes,
            commit_bytes: settings.commit_bytes,
            threads: settings.threads,
        },
        log: log::Settings {
            segment_bytes: settings.segment_bytes,
            retention_us: settings.retention_us,
            retention_bytes: settings.retention_bytes,
            background,
            ..log::Settings::default()
        },
        ids: ids::Settings { memory_ids: settings.memory_ids, retain_us, background },
    })
}

fn open_core(
    py: Python<'_>,
    parts: Parts,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Core, Started)> {
    let mut report = |what: &str, done: u64, of: u64| {
        if let Some(progress) = &progress {
            // A progress bar that fails must not stop a start.
            Python::attach(|py| drop(progress.call1(py, (what, done, of))));
        }
    };
    let opened =
        py.detach(|| Core::open(parts.plan, disk, clock, parts.settings, parts.log, parts.ids, &mut report));
    opened.map_err(raise)
}

#[derive(Serialize)]
struct StartedJson<'a> {
    epoch: u32,
    first_sequence: u64,
    last_sequence: u64,
    flush_us: u64,
    cut_bytes: u64,
    commits: u64,
    events: u64,
    undecided: usize,
    incomplete: &'a [crate::follower::Incomplete],
    passed_over: &'a [String],
}

fn started_json(started: &Started) -> String {
    let recovery = &started.recovery;
    let json = StartedJson {
        epoch: recovery.epoch,
        first_sequence: recovery.first_sequence,
        last_sequence: recovery.last_sequence,
        flush_us: recovery.flush_us,
        cut_bytes: recovery.cut_bytes,
        commits: started.commits,
        events: started.events,
        undecided: started.undecided,
        incomplete: &started.incomplete,
        passed_over: &started.passed_over,
    };
    serde_json::to_string(&json).expect("plain data")
}

/// (handle, kind, target, body, held_ns), as the door has them.
type RawRequest<'py> = (u64, u8, usize, Bound<'py, PyBytes>, u64);
/// (handle, status, body, flags).
type RawAnswer = (u64, u16, Py<PyBytes>, u8);

fn read_requests(requests: Vec<RawRequest<'_>>) -> PyResult<Vec<Request>> {
    let read = |(handle, kind, target, body, held_ns): RawRequest<'_>| {
        let kind =
            Kind::from_number(kind).ok_or_else(|| PyRuntimeError::new_err("an unknown kind of request"))?;
        Ok(Request { handle, kind, target, body: body.as_bytes().to_vec(), held_ns })
    };
    requests.into_iter().map(read).collect()
}

fn write_answers(py: Python<'_>, answers: Vec<gate::Answer>) -> Vec<RawAnswer> {
    let write = |answer: gate::Answer| {
        (answer.handle, answer.status, PyBytes::new(py, &answer.body).unbind(), answer.flags)
    };
    answers.into_iter().map(write).collect()
}

/// The gate on a thread of its own: what the HTTP door talks to.
#[pyclass(frozen)]
struct Gate {
    waiting: Mutex<Option<Core>>,
    running: OnceLock<gate::Gate>,
    stopping: Mutex<()>,
    started: String,
}

#[pymethods]
impl Gate {
    /// Open the data directory: recover the log, restore the state. `progress(what, done, of)` is called now and then.
    #[new]
    #[pyo3(signature = (plan, data, settings, progress=None))]
    fn new(
        py: Python<'_>,
        plan: &str,
        data: &str,
        settings: &str,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Gate> {
        let parts = parts(plan, settings, true)?;
        let (core, started) =
            open_core(py, parts, Arc::new(RealDisk::new(data)), Arc::new(RealClock), progress)?;
        Ok(Gate {
            waiting: Mutex::new(Some(core)),
            running: OnceLock::new(),
            stopping: Mutex::new(()),
            started: started_json(&started),
        })
    }

    /// What start found and did, as JSON.
    #[getter]
    fn started(&self) -> &str {
        &self.started
    }

    /// Start the thread; the eventfd that is readable while there is something to take.
    fn start(&self) -> PyResult<i32> {
        let core = self.waiting.lock().expect("never poisoned").take();
        if let Some(core) = core {
            let gate = gate::Gate::start(core).map_err(raise)?;
            let _ = self.running.set(gate);
        }
        Ok(self.gate()?.ready().as_raw_fd())
    }

    fn submit(&self, requests: Vec<RawRequest<'_>>) -> PyResult<()> {
        self.gate()?.submit(read_requests(requests)?);
        Ok(())
    }

    fn take(&self, py: Python<'_>) -> PyResult<Vec<RawAnswer>> {
        Ok(write_answers(py, self.gate()?.take()))
    }

    fn told(&self, handle: u64) -> PyResult<()> {
        self.gate()?.told(handle);
        Ok(())
    }

    #[pyo3(signature = (target, body, took_ns=0))]
    fn fallback(
        &self,
        py: Python<'_>,
        target: usize,
        body: &[u8],
        took_ns: u64,
    ) -> PyResult<(u16, Py<PyBytes>)> {
        self.fall_back(py, target, body, DEADLINE, took_ns)
    }

    #[pyo3(signature = (target, body, took_ns=0))]
    fn overload(
        &self,
        py: Python<'_>,
        target: usize,
        body: &[u8],
        took_ns: u64,
    ) -> PyResult<(u16, Py<PyBytes>)> {
        self.fall_back(py, target, body, OVERLOAD, took_ns)
    }

    #[pyo3(signature = (target, body, took_ns=0))]
    fn fallbacks(&self, py: Python<'_>, target: usize, body: &[u8], took_ns: u64) -> PyResult<Py<PyBytes>> {
        self.fall_back_lines(py, target, body, DEADLINE, took_ns)
    }

    #[pyo3(signature = (target, body, took_ns=0))]
    fn overloads(&self, py: Python<'_>, target: usize, body: &[u8], took_ns: u64) -> PyResult<Py<PyBytes>> {
        self.fall_back_lines(py, target, body, OVERLOAD, took_ns)
    }

    /// Counters as JSON.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyBytes>> {
        Ok(stats_json(py, &self.gate()?.stats()))
    }

    /// Finish what was submitted, sync, close the log.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let gate = self.gate()?;
        py.detach(|| {
            let _one_at_a_time = self.stopping.lock().expect("never poisoned");
            gate.stop()
        })
        .map_err(raise)
    }
}

impl Gate {
    fn gate(&self) -> PyResult<&gate::Gate> {
        self.running.get().ok_or_else(|| PyRuntimeError::new_err("the gate has not been started"))
    }

    fn fall_back(
        &self,
        py: Python<'_>,
        target: usize,
        body: &[u8],
        cause: &str,
        took_ns: u64,
    ) -> PyResult<(u16, Py<PyBytes>)> {
        let (status, body) = self.gate()?.fallback(target, body, cause, took_ns);
        Ok((status, PyBytes::new(py, &body).unbind()))
    }

    fn fall_back_lines(
        &self,
        py: Python<'_>,
        target: usize,
        body: &[u8],
        cause: &str,
        took_ns: u64,
    ) -> PyResult<Py<PyBytes>> {
        let gate = self.gate()?;
        let lines = py.detach(|| gate.fallbacks(target, body, cause, took_ns));
        Ok(PyBytes::new(py, &lines).unbind())
    }
}

fn stats_json(py: Python<'_>, stats: &gate::Stats) -> Py<PyBytes> {
    PyBytes::new(py, &serde_json::to_vec(stats).expect("plain data")).unbind()
}

/// A disk in memory, for tests: it survives the gate, and loses what was not synced when it crashes.
#[pyclass(frozen, from_py_object)]
#[derive(Clone)]
struct Memory(MemoryDisk);

#[pymethods]
impl Memory {
    #[new]
    fn new() -> Memory {
        Memory(MemoryDisk::new())
    }

    /// The disk as it is after a loss of power: of what was not synced, each sector and each name is kept or lost by
    /// the seed.
    fn crash(&self, seed: u64) -> Memory {
        Memory(self.0.crash(seed, Crash::Random))
    }

    /// The files may take so many bytes together; None is without limit.
    fn limit(&self, bytes: Option<u64>) {
        self.0.limit(bytes);
    }

    fn used(&self) -> u64 {
        self.0.used()
    }

    /// The next call of a kind, "list" or "remove", fails.
    fn fail(&self, call: &str) -> PyResult<()> {
        let call = match call {
            "list" => Call::List,
            "remove" => Call::Remove,
            other => return Err(PyRuntimeError::new_err(format!("no call {other:?} can fail here"))),
        };
        self.0.fail(call, 1, std::io::ErrorKind::Other);
        Ok(())
    }
}

/// The gate without a thread, a disk or a clock of its own: what `penstock.testing` drives call by call.
#[pyclass]
struct ManualGate {
    core: Option<Core>,
    clock: Arc<ManualClock>,
    started: String,
}

#[pymethods]
impl ManualGate {
    #[new]
    fn new(py: Python<'_>, plan: &str, disk: Memory, settings: &str, now_us: i64) -> PyResult<ManualGate> {
        let parts = parts(plan, settings, false)?;
        let clock = Arc::new(ManualClock::new(now_us));
        let (core, started) = open_core(py, parts, Arc::new(disk.0), clock.clone(), None)?;
        Ok(ManualGate { core: Some(core), clock, started: started_json(&started) })
    }

    #[getter]
    fn started(&self) -> &str {
        &self.started
    }

    fn set_now(&self, now_us: i64) {
        self.clock.set(now_us);
    }

    /// One cycle over these requests, or as many as they need; `told` are handles that were told the fallback.
    fn step(
        &mut self,
        py: Python<'_>,
        requests: Vec<RawRequest<'_>>,
        told: Vec<u64>,
    ) -> PyResult<Vec<RawAnswer>> {
        let mut requests = VecDeque::from(read_requests(requests)?);
        let core = self.core()?;
        let answers = py.detach(|| {
            let (mut answers, mut told) = (Vec::new(), told);
            loop {
                let cycle = requests.drain(..core.fitting(requests.iter())).collect();
                let later = |handle: &u64| requests.iter().any(|request| request.handle == *handle);
                let (later, now) = told.into_iter().partition(later);
                told = later;
                answers.extend(core.step(cycle, Told::handles(now))?);
                if requests.is_empty() {
                    break;
                }
            }
            while core.busy() {
                answers.extend(core.step(Vec::new(), Told::default())?);
            }
            core.tend()?;
            Ok(answers)
        });
        Ok(write_answers(py, answers.map_err(raise)?))
    }

    fn stats(&mut self, py: Python<'_>) -> PyResult<Py<PyBytes>> {
        Ok(stats_json(py, &self.core()?.stats))
    }

    /// End in order. Without it the gate ends as a process does that is killed.
    fn close(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.core.take() {
            Some(core) => py.detach(|| core.close()).map_err(raise),
            None => Ok(()),
        }
    }
}

impl ManualGate {
    fn core(&mut self) -> PyResult<&mut Core> {
        self.core.as_mut().ok_or_else(|| PyRuntimeError::new_err("the gate has been closed"))
    }
}

// Followers.

fn disk(data: &Bound<'_, PyAny>) -> PyResult<Arc<dyn Disk>> {
    if let Ok(memory) = data.extract::<Memory>() {
        return Ok(Arc::new(memory.0));
    }
    Ok(Arc::new(RealDisk::new(data.extract::<String>()?)))
}

/// The state from the log, in a process beside the gate: writes snapshots.
#[pyclass]
struct Follower(CoreFollower);

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
struct Replayer {
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

fn named(name: &str, column: &ArrayRef) -> (ArrowField, ArrayRef) {
    (ArrowField::new(name, column.data_type().clone(), true), column.clone())
}

fn named_batch(columns: Vec<(ArrowField, ArrayRef)>) -> crate::error::Result<RecordBatch> {
    let (fields, columns): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), columns)
        .map_err(|error| Error::invalid(format!("the results do not fit their table: {error}")))
}

// The log's files.

/// Reads a data directory, whether or not a gate writes it.
#[pyclass]
struct LogReader {
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
fn catalog(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<String> {
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
struct CatalogJson<'a> {
    topics: Vec<TopicJson<'a>>,
    notes: &'a std::collections::BTreeMap<String, String>,
}

#[derive(Serialize)]
struct TopicJson<'a> {
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
struct LogRuns {
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
fn verify(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<String> {
    let disk = disk(data)?;
    // What was made of the log before it is read is of commits in it, even while it grows.
    let verify = || log::verify_beside(disk.clone(), &witness::newest(disk.as_ref())?);
    let report = py.detach(verify).map_err(raise)?;
    Ok(serde_json::to_string(&report).expect("plain data"))
}

/// Where the log ends that a start would keep: the last commit, its segment's path, and where in that it ends. Raises
/// `DamagedError` where what was durable is missing; None where there is no log.
#[pyfunction]
fn log_end(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Option<(u64, String, u64)>> {
    let disk = disk(data)?;
    let end = || log::end(disk.as_ref(), &witness::newest(disk.as_ref())?);
    let end = py.detach(end).map_err(raise)?;
    Ok(end.map(|end| (end.sequence, end.segment, end.offset)))
}

/// Read every file of the index of ids: how many there are, and what is damaged of them.
#[pyfunction]
fn verify_ids(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<(u64, Vec<(String, u64, String)>)> {
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
fn verify_snapshot(py: Python<'_>, data: &Bound<'_, PyAny>, sequence: u64) -> PyResult<String> {
    let disk = disk(data)?;
    let header = py.detach(|| snapshot::verify(&disk, sequence)).map_err(raise)?;
    Ok(serde_json::to_string(&header).expect("plain data"))
}

/// Remember in a log that no gate writes how far a consumer has come, or forget it with None; the caller holds the
/// directory's lock.
#[pyfunction]
fn commit_position(
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
struct Lock(#[allow(dead_code)] log::Lock);

#[pymethods]
impl Lock {
    #[new]
    fn new(data: &str) -> PyResult<Lock> {
        log::lock(data.as_ref()).map(Lock).map_err(raise)
    }
}

// Pieces that replay and tests use by themselves.

#[pyclass(frozen)]
struct Evaluator {
    program: Program,
    names: Vec<String>,
}

#[pymethods]
impl Evaluator {
    /// `plans` is a JSON list of [name, plan], `columns` one of fields.
    #[new]
    fn new(plans: &str, columns: &str) -> PyResult<Evaluator> {
        let plans: Vec<(String, serde_json::Value)> = from_json(plans, "the plans")?;
        let columns: Vec<Field> = from_json(columns, "the columns")?;
        let names = plans.iter().map(|(name, _)| name.clone()).collect();
        Ok(Evaluator { program: Program::new(&plans, &columns).map_err(raise)?, names })
    }

    /// The results, named as the plans, and how many operations had no answer.
    fn evaluate(&self, py: Python<'_>, batch: &Bound<'_, PyAny>) -> PyResult<(Batch, u64)> {
        let batch = import_batch(batch)?;
        let evaluated = py.detach(|| self.program.evaluate(batch.columns(), batch.num_rows()));
        let (columns, faults) = evaluated.map_err(raise)?;
        let named = self.names.iter().map(String::as_str).zip(columns);
        let result =
            RecordBatch::try_from_iter_with_nullable(named.map(|(name, column)| (name, column, true)));
        let result = result.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok((Batch(result), faults))
    }
}

/// A row that was refused: its index, the field if it is one field's, and why.
type Refused = (u32, Option<String>, String);

fn refused(refused: Vec<(u32, crate::decode::Refusal)>) -> Vec<Refused> {
    let words =
        |(row, refusal): (u32, crate::decode::Refusal)| (row, refusal.field.clone(), refusal.to_string());
    refused.into_iter().map(words).collect()
}

#[pyclass(frozen)]
struct JsonDecoder(Decoder);

#[pymethods]
impl JsonDecoder {
    #[new]
    fn new(fields: &str, id: usize) -> PyResult<JsonDecoder> {
        let fields: Vec<Field> = from_json(fields, "the fields")?;
        Ok(JsonDecoder(Decoder::new(&Schema { fields }, id, Limits::default())))
    }

    /// Newline-delimited JSON: the good events as a batch, the others by line (blank lines do not count).
    fn decode_lines(&self, py: Python<'_>, body: &[u8]) -> (Batch, Vec<Refused>) {
        let decoded = py.detach(|| self.0.decode(split_lines(body).into_iter()));
        (Batch(decoded.batch), refused(decoded.refused))
    }
}

/// Columns of any Arrow types as a schema wants them, and the rows that do not fit (which are left out).
#[pyfunction]
fn conform(
    py: Python<'_>,
    batch: &Bound<'_, PyAny>,
    fields: &str,
    ignore_unknown: bool,
) -> PyResult<(Batch, Vec<Refused>)> {
    let unknown = if ignore_unknown { Unknown::Ignore } else { Unknown::Refuse };
    kept(py, batch, fields, |batch, schema| conform_batch(batch, schema, &Limits::default(), unknown))
}

/// The same for a text file's columns of text, of which those that the schema does not have are ignored.
#[pyfunction]
fn conform_cells(py: Python<'_>, batch: &Bound<'_, PyAny>, fields: &str) -> PyResult<(Batch, Vec<Refused>)> {
    kept(py, batch, fields, conform_cell_batch)
}

type Conformed = crate::error::Result<(RecordBatch, Vec<(u32, crate::decode::Refusal)>)>;

fn kept(
    py: Python<'_>,
    batch: &Bound<'_, PyAny>,
    fields: &str,
    conform: impl Fn(&RecordBatch, &Schema) -> Conformed + Sync,
) -> PyResult<(Batch, Vec<Refused>)> {
    let batch = import_batch(batch)?;
    let fields: Vec<Field> = from_json(fields, "the fields")?;
    let conformed = py.detach(|| {
        let (batch, refused) = conform(&batch, &Schema { fields })?;
        Ok((keep_rows(&batch, &refused), refused))
    });
    let (batch, wrong) = conformed.map_err(raise)?;
    Ok((Batch(batch), refused(wrong)))
}

/// Each row as a line of JSON: what `penstock tail` shows. The columns that `json` names hold JSON already.
#[pyfunction]
fn rows_json(batch: &Bound<'_, PyAny>, json: Vec<String>) -> PyResult<String> {
    let batch = import_batch(batch)?;
    let fields: Vec<Field> = (batch.schema_ref().fields().iter())
        .map(|field| {
            Ok(Field { name: field.name().clone(), kind: column_type(field.data_type())?, optional: true })
        })
        .collect::<PyResult<_>>()?;
    let mut text = Vec::new();
    for row in 0..batch.num_rows() {
        answer::write_row(&mut text, &batch, &fields, &json, row);
        text.push(b'\n');
    }
    Ok(String::from_utf8(text).expect("JSON is UTF-8"))
}

fn column_type(kind: &DataType) -> PyResult<Type> {
    Ok(match kind {
        DataType::Boolean => Type::Bool,
        DataType::Int64 => Type::Int64,
        DataType::Float64 => Type::Float64,
        DataType::Utf8 => Type::Text,
        DataType::Timestamp(..) => Type::Timestamp,
        DataType::Decimal128(precision, scale) => Type::Decimal(*precision, *scale),
        other => {
            return Err(raise(Error::invalid(format!("a column of type {other} has no JSON form here"))));
        }
    })
}
