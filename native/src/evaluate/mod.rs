//! Expressions over columns: derived features, `where=` filters and rules.
//!
//! The one idea: a plan is a list of operations whose types are settled before it gets here, so
//! evaluating is one pass over that list, each operation a tight loop over a chunk of rows. Nothing
//! that a row holds can stop the pass: an operation that overflows, divides by zero or leaves the
//! finite numbers gives null there, and is counted if its value was asked for (`faults.rs`).

mod arithmetic;
mod column;
mod comparison;
mod conditional;
mod decimal;
mod faults;
mod plan;
#[cfg(test)]
mod tests;
mod text;
mod time;

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_buffer::BooleanBuffer;
use arrow_schema::DataType;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::schema::{Field, Type};
use crate::threads::side_by_side;
use column::{Args, Column, Outcome, Scalar};
use plan::{Node, Operation};

/// Rows evaluated at a time: what an operation leaves is still in the cache for the next one.
const CHUNK: usize = 2048;

/// Several expressions evaluated together; what they have in common is computed once.
pub struct Program {
    nodes: Vec<Node>,
    /// For each expression, the node that is its result.
    outputs: Vec<usize>,
    columns: Vec<usize>,
    fields: Vec<Field>,
    /// The fields' types in Arrow's words, made once: making them costs more than an operation.
    arrow_types: Vec<DataType>,
}

impl Program {
    /// Bind named plans to these columns.
    ///
    /// A plan's column that is not among `columns` is the result of an earlier plan of that name.
    pub fn new(plans: &[(String, Value)], columns: &[Field]) -> Result<Program> {
        let plan::Bound { nodes, outputs, columns: used } = plan::bind(plans, columns)?;
        let arrow_types = columns.iter().map(|field| field.kind.arrow()).collect();
        Ok(Program { nodes, outputs, columns: used, fields: columns.to_vec(), arrow_types })
    }

    /// The positions of the columns that are read, ascending.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The type of each expression, in the order of the plans.
    pub fn types(&self) -> Vec<Type> {
        self.outputs.iter().map(|&node| self.nodes[node].kind).collect()
    }

    /// One array per expression, and the number of faults.
    ///
    /// `columns` are all those that the program was bound to, in their order; only those that
    /// `columns()` names are looked at.
    pub fn evaluate(&self, columns: &[ArrayRef], rows: usize) -> Result<(Vec<ArrayRef>, u64)> {
        self.evaluate_on(1, columns, rows)
    }

    /// The same on several threads, where the rows are many.
    pub fn evaluate_on(
        &self,
        threads: usize,
        columns: &[ArrayRef],
        rows: usize,
    ) -> Result<(Vec<ArrayRef>, u64)> {
        self.check(columns, rows)?;
        if rows <= CHUNK {
            return self.evaluate_chunk(columns, 0, rows);
        }
        let starts = (0..rows).step_by(CHUNK).collect();
        let chunk = |start| self.evaluate_chunk(columns, start, CHUNK.min(rows - start));
        let chunks = side_by_side(starts, threads, chunk).into_iter().collect::<Result<Vec<_>>>()?;
        let faults = chunks.iter().map(|(_, faults)| faults).sum();
        Ok((self.join(&chunks)?, faults))
    }

    fn check(&self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        if columns.len() != self.fields.len() {
            let (given, wanted) = (columns.len(), self.fields.len());
            return Err(Error::invalid(format!("{given} columns were given, {wanted} are wanted")));
        }
        for &position in &self.columns {
            let (field, array) = (&self.fields[position], &columns[position]);
            if *array.data_type() != self.arrow_types[position] {
                let (name, given) = (&field.name, array.data_type());
                return Err(Error::invalid(format!(
                    "column \"{name}\" is {}, and {given} was given",
                    field.kind
                )));
            }
            if array.len() != rows {
                let (name, given) = (&field.name, array.len());
                return Err(Error::invalid(format!("column \"{name}\" has {given} rows, not {rows}")));
            }
        }
        Ok(())
    }

    fn evaluate_chunk(
        &self,
        columns: &[ArrayRef],
        start: usize,
        rows: usize,
    ) -> Result<(Vec<ArrayRef>, u64)> {
        let mut slots = Vec::with_capacity(self.nodes.len());
        let mut faulted = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            let outcome = compute(node, columns, &slots, start, rows)?;
            faulted.extend(outcome.faults.map(|rows| (place, rows)));
            slots.push(outcome.column);
        }
        let found = faults::count(&self.nodes, &slots, &self.outputs, faulted, rows);
        let arrays = self.outputs.iter().map(|&place| slots[place].to_array(self.nodes[place].kind, rows));
        Ok((arrays.collect::<Result<_>>()?, found))
    }

    fn join(&self, chunks: &[(Vec<ArrayRef>, u64)]) -> Result<Vec<ArrayRef>> {
        let column =
            |place: usize| chunks.iter().map(|(arrays, _)| arrays[place].as_ref()).collect::<Vec<_>>();
        (0..self.outputs.len())
            .map(|place| {
                arrow_select::concat::concat(&column(place))
                    .map_err(|error| Error::invalid(format!("could not join an expression's rows: {error}")))
            })
            .collect()
    }
}

fn compute(
    node: &Node,
    columns: &[ArrayRef],
    slots: &[Column],
    start: usize,
    rows: usize,
) -> Result<Outcome> {
    if let Some(constant) = &node.constant {
        let faults = constant.fault.then(|| BooleanBuffer::new_set(rows));
        return Ok(Outcome { column: Column::One(constant.value.clone()), faults });
    }
    if let Operation::Column = node.operation {
        let column = Column::from_array(&columns[node.position], start, rows);
        return Ok(Outcome { column, faults: None });
    }
    apply(&Args { node, slots, rows })
}

/// What one operation makes of its arguments.
fn apply(args: &Args) -> Result<Outcome> {
    use Operation::*;
    match args.node.operation {
        Column | Literal => unreachable!("a leaf takes no arguments"),
        Cast => Ok(decimal::cast(args)),
        Add | Subtract | Multiply | Divide | Modulo => Ok(arithmetic::binary(args)),
        Negate | Absolute | Round | Floor | Ceil => Ok(arithmetic::unary(args)),
        Ln | Exp | Sqrt | Power => Ok(arithmetic::transcendental(args)),
        Equal | NotEqual | Less | LessEqual | Greater | GreaterEqual => Ok(comparison::compare(args)),
        In => Ok(comparison::among(args)),
        And | Or => Ok(conditional::logic(args)),
        Not => Ok(conditional::negation(args)),
        IsNull => Ok(conditional::null_test(args)),
        Case => conditional::case(args),
        Coalesce => conditional::coalesce(args),
        Least | Greatest => conditional::extreme(args),
        Lower | Upper => text::change_case(args),
        Length => Ok(text::length(args)),
        Substr => text::substr(args),
        StartsWith => Ok(text::starts_with(args)),
        Like => Ok(text::like(args)),
        Extract => Ok(time::extract(args)),
        DateTrunc => Ok(time::truncate(args)),
    }
}

/// The value and fault of an operation whose arguments are all constant: computed once, at binding.
fn fold(node: &Node, slots: &[Column]) -> Result<plan::Constant> {
    let outcome = apply(&Args { node, slots, rows: 1 })?;
    let fault = outcome.faults.is_some();
    let value = match outcome.column {
        Column::One(value) => value,
        rows => rows.scalar(0),
    };
    Ok(plan::Constant { value, fault })
}

impl From<&str> for Scalar {
    fn from(text: &str) -> Scalar {
        Scalar::Text(Arc::from(text.as_bytes()))
    }
}
