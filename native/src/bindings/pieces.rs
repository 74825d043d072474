//! Pieces that replay and tests use by themselves.

use arrow_array::RecordBatch;
use arrow_schema::DataType;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::arrow::{Batch, import_batch};
use super::{from_json, raise};
use crate::answer;
use crate::conform::{Unknown, conform as conform_batch, conform_cells as conform_cell_batch, keep_rows};
use crate::decode::{Decoder, Limits, split_lines};
use crate::error::Error;
use crate::evaluate::Program;
use crate::schema::{Field, Schema, Type};

#[pyclass(frozen)]
pub(super) struct Evaluator {
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
pub(super) type Refused = (u32, Option<String>, String);

pub(super) fn refused(refused: Vec<(u32, crate::decode::Refusal)>) -> Vec<Refused> {
    let words =
        |(row, refusal): (u32, crate::decode::Refusal)| (row, refusal.field.clone(), refusal.to_string());
    refused.into_iter().map(words).collect()
}

#[pyclass(frozen)]
pub(super) struct JsonDecoder(Decoder);

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
pub(super) fn conform(
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
pub(super) fn conform_cells(
    py: Python<'_>,
    batch: &Bound<'_, PyAny>,
    fields: &str,
) -> PyResult<(Batch, Vec<Refused>)> {
    kept(py, batch, fields, conform_cell_batch)
}

pub(super) type Conformed = crate::error::Result<(RecordBatch, Vec<(u32, crate::decode::Refusal)>)>;

pub(super) fn kept(
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
pub(super) fn rows_json(batch: &Bound<'_, PyAny>, json: Vec<String>) -> PyResult<String> {
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

pub(super) fn column_type(kind: &DataType) -> PyResult<Type> {
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
