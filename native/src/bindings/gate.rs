//! The gate as the door drives it, and one that a test drives by hand on a disk in memory.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::{Deserialize, Serialize};

use super::{from_json, raise};
use crate::answer::{DEADLINE, OVERLOAD};
use crate::disk::{Call, Crash, Disk, MemoryDisk, RealDisk};
use crate::gate::{self, Clock, Core, Kind, ManualClock, RealClock, Request, Started, Told};
use crate::ids;
use crate::log;
use crate::plan::Plan;

#[derive(Deserialize)]
pub(super) struct GateSettings {
    state_bytes: usize,
    commit_bytes: usize,
    segment_bytes: u64,
    retention_us: Option<i64>,
    retention_bytes: Option<u64>,
    threads: usize,
    /// The newest ids that are kept in memory.
    memory_ids: usize,
}

pub(super) struct Parts {
    plan: Plan,
    settings: gate::Settings,
    log: log::Settings,
    ids: ids::Settings,
}

pub(super) fn parts(plan: &str, settings: &str, background: bool) -> PyResult<Parts> {
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

pub(super) fn open_core(
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
pub(super) struct StartedJson<'a> {
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

pub(super) fn started_json(started: &Started) -> String {
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
pub(super) type RawRequest<'py> = (u64, u8, usize, Bound<'py, PyBytes>, u64);
/// (handle, status, body, flags).
pub(super) type RawAnswer = (u64, u16, Py<PyBytes>, u8);

pub(super) fn read_requests(requests: Vec<RawRequest<'_>>) -> PyResult<Vec<Request>> {
    let read = |(handle, kind, target, body, held_ns): RawRequest<'_>| {
        let kind =
            Kind::from_number(kind).ok_or_else(|| PyRuntimeError::new_err("an unknown kind of request"))?;
        Ok(Request { handle, kind, target, body: body.as_bytes().to_vec(), held_ns })
    };
    requests.into_iter().map(read).collect()
}

pub(super) fn write_answers(py: Python<'_>, answers: Vec<gate::Answer>) -> Vec<RawAnswer> {
    let write = |answer: gate::Answer| {
        (answer.handle, answer.status, PyBytes::new(py, &answer.body).unbind(), answer.flags)
    };
    answers.into_iter().map(write).collect()
}

/// The gate on a thread of its own: what the HTTP door talks to.
#[pyclass(frozen)]
pub(super) struct Gate {
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

pub(super) fn stats_json(py: Python<'_>, stats: &gate::Stats) -> Py<PyBytes> {
    PyBytes::new(py, &serde_json::to_vec(stats).expect("plain data")).unbind()
}

/// A disk in memory, for tests: it survives the gate, and loses what was not synced when it crashes.
#[pyclass(frozen, from_py_object)]
#[derive(Clone)]
pub(super) struct Memory(pub(super) MemoryDisk);

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
pub(super) struct ManualGate {
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
