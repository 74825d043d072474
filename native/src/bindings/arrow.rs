//! Batches across the border: Arrow's C data, by its capsules.

// The Arrow C data interface hands over raw pointers; each use says why it is sound.
#![allow(unsafe_code)]

use std::ffi::CStr;

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use arrow_array::{Array, RecordBatch, StructArray};
use arrow_schema::DataType;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

use super::raise;
use crate::error::Error;

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";

/// Columns on their way to Python: any Arrow library takes them by `__arrow_c_array__`.
#[pyclass(frozen)]
pub(super) struct Batch(pub(super) RecordBatch);

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

pub(super) fn import_batch(object: &Bound<'_, PyAny>) -> PyResult<RecordBatch> {
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
