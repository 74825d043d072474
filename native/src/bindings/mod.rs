//! Everything that Python sees of the core. Batches cross as Arrow's C data, events as bytes; whatever takes longer than
//! a lock releases the GIL.

mod arrow;
mod files;
mod followers;
mod gate;
mod pieces;

use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use serde::Deserialize;

use crate::disk::{Disk, RealDisk};
use crate::error::Error;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<arrow::Batch>()?;
    module.add_class::<gate::Gate>()?;
    module.add_class::<gate::ManualGate>()?;
    module.add_class::<gate::Memory>()?;
    module.add_class::<followers::Follower>()?;
    module.add_class::<followers::Replayer>()?;
    module.add_class::<files::LogReader>()?;
    module.add_class::<files::LogRuns>()?;
    module.add_class::<files::Lock>()?;
    module.add_class::<pieces::Evaluator>()?;
    module.add_class::<pieces::JsonDecoder>()?;
    module.add_function(wrap_pyfunction!(pieces::conform, module)?)?;
    module.add_function(wrap_pyfunction!(pieces::conform_cells, module)?)?;
    module.add_function(wrap_pyfunction!(files::commit_position, module)?)?;
    module.add_function(wrap_pyfunction!(files::catalog, module)?)?;
    module.add_function(wrap_pyfunction!(files::verify, module)?)?;
    module.add_function(wrap_pyfunction!(files::log_end, module)?)?;
    module.add_function(wrap_pyfunction!(files::verify_ids, module)?)?;
    module.add_function(wrap_pyfunction!(files::verify_snapshot, module)?)?;
    module.add_function(wrap_pyfunction!(pieces::rows_json, module)?)?;
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

/// A data directory by its path, or a disk in memory.
fn disk(data: &Bound<'_, PyAny>) -> PyResult<Arc<dyn Disk>> {
    if let Ok(memory) = data.extract::<gate::Memory>() {
        return Ok(Arc::new(memory.0));
    }
    Ok(Arc::new(RealDisk::new(data.extract::<String>()?)))
}
