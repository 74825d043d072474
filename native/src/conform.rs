//! Columns from elsewhere made into a schema's exact columns: files, and Arrow streams over HTTP.
//!
//! What a whole column lacks (its name, a type that can become the wanted one) is an error. What a single value lacks
//! refuses its row and no other; such a row holds placeholders until `keep_rows` takes it out. Nothing is changed in
//! silence: a value that the wanted type cannot hold exactly is refused, but for doubles that become decimals.

mod cells;
mod columns;
mod stream;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, StringArray, make_array};
use arrow_schema::DataType;
use arrow_select::filter::filter_record_batch;

pub(crate) use self::columns::convert;
use self::columns::{Converted, Unfit};
pub use self::stream::{read_ipc, write_ipc};
use crate::decode::{Limits, Refusal, Wrong};
use crate::error::{Error, Result};
use crate::schema::{Field, Schema, Type};

/// What to do with a column that the schema does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Refuse,
    Ignore,
}

/// More refused rows than this are one error: whoever sent them has the wrong schema, not some wrong rows, and a
/// word for each would need far more memory than the rows themselves.
const REFUSED_MAX: usize = 100_000;

/// Make `batch` into the schema's columns, found by name; the refused rows come in rising order, each once.
pub fn conform(
    batch: &RecordBatch,
    schema: &Schema,
    limits: &Limits,
    unknown: Unknown,
) -> Result<(RecordBatch, Vec<(u32, Refusal)>)> {
    conform_by(convert, batch, schema, limits, unknown)
}

/// The same for the cells of a text file, which are all text; columns that the schema does not have are ignored.
pub fn conform_cells(batch: &RecordBatch, schema: &Schema) -> Result<(RecordBatch, Vec<(u32, Refusal)>)> {
    conform_by(cells::read, batch, schema, &Limits::default(), Unknown::Ignore)
}

type Convert = fn(&ArrayRef, Type) -> std::result::Result<Converted, Unfit>;

fn conform_by(
    convert: Convert,
    batch: &RecordBatch,
    schema: &Schema,
    limits: &Limits,
    unknown: Unknown,
) -> Result<(RecordBatch, Vec<(u32, Refusal)>)> {
    check_names(batch, schema, unknown)?;
    let mut refused = Vec::new();
    let mut columns = Vec::with_capacity(schema.fields.len());
    for field in &schema.fields {
        let (column, wrongs) = conform_column(convert, batch, field)?;
        refused.extend(wrongs.into_iter().map(|(row, wrong)| (row, wrong.of(&field.name, field.kind))));
        columns.push(column);
        check_refused(&refused)?;
    }
    refuse_large(&columns, schema, limits, &mut refused);
    // The sort is stable: of a row's refusals its first field's stays.
    refused.sort_by_key(|(row, _)| *row);
    refused.dedup_by_key(|(row, _)| *row);
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(schema.arrow(), columns, &options)
        .expect("each column was made for its field");
    Ok((batch, refused))
}

/// The rows that were not refused.
pub fn keep_rows(batch: &RecordBatch, refused: &[(u32, Refusal)]) -> RecordBatch {
    if refused.is_empty() {
        return batch.clone();
    }
    let mut kept = vec![true; batch.num_rows()];
    for (row, _) in refused {
        kept[*row as usize] = false;
    }
    filter_record_batch(batch, &BooleanArray::from(kept)).expect("the filter has the batch's length")
}

/// Texts that are too long, and events whose texts together are.
fn refuse_large(columns: &[ArrayRef], schema: &Schema, limits: &Limits, refused: &mut Vec<(u32, Refusal)>) {
    let texts = columns.iter().zip(&schema.fields);
    let texts: Vec<_> =
        texts.filter_map(|(column, field)| Some((column.as_string_opt::<i32>()?, field))).collect();
    let large = |text: &StringArray, bytes: usize| text.value_data().len() > bytes;
    if !texts.iter().any(|(text, _)| large(text, limits.text_bytes.min(limits.event_bytes / texts.len()))) {
        return;
    }
    for row in 0..columns[0].len() {
        let bytes = |text: &StringArray| text.value_length(row) as usize;
        let long =
            texts.iter().find_map(|(text, field)| Some((limits.check_text(bytes(text)).err()?, field)));
        let refusal = match long {
            Some((wrong, field)) => Some(wrong.of(&field.name, field.kind)),
            None => limits.check_event(texts.iter().map(|(text, _)| bytes(text)).sum()).err(),
        };
        refused.extend(refusal.filter(|_| refused.len() <= REFUSED_MAX).map(|refusal| (row as u32, refusal)));
    }
}

fn check_names(batch: &RecordBatch, schema: &Schema, unknown: Unknown) -> Result<()> {
    if u32::try_from(batch.num_rows()).is_err() {
        return Err(Error::invalid_with("a batch of more than 4,294,967,295 rows", "send smaller batches"));
    }
    let names: Vec<&str> = batch.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            return Err(Error::invalid(format!("column {name:?} is there twice")));
        }
        if unknown == Unknown::Refuse && schema.index(name).is_none() {
            let known: Vec<&str> = schema.fields.iter().map(|field| field.name.as_str()).collect();
            let hint = format!("the schema has {}", known.join(", "));
            return Err(Error::invalid_with(format!("column {name:?} is not in the schema"), hint));
        }
    }
    Ok(())
}

fn check_refused(refused: &[(u32, Refusal)]) -> Result<()> {
    match refused {
        [(row, first), ..] if refused.len() > REFUSED_MAX => Err(Error::invalid(format!(
            "more than {REFUSED_MAX} values do not fit; the first, in row {row}: {first}"
        ))),
        _ => Ok(()),
    }
}

fn conform_column(convert: Convert, batch: &RecordBatch, field: &Field) -> Result<Converted> {
    let Some(column) = batch.column_by_name(&field.name) else {
        return all_null(batch, field, format!("there is no column {:?}", field.name));
    };
    if *column.data_type() == DataType::Null {
        return all_null(batch, field, format!("column {:?} has only nulls", field.name));
    }
    let (column, mut wrongs) = convert(column, field.kind).map_err(|unfit| unfit.of_column(&field.name))?;
    if field.optional || column.null_count() == 0 {
        return Ok((column, wrongs));
    }
    let nulls = (0..column.len()).filter(|row| column.is_null(*row)).take(REFUSED_MAX + 1);
    wrongs.extend(nulls.map(|row| (row as u32, Wrong::new("null", "null"))));
    Ok((without_nulls(&column), wrongs))
}

fn all_null(batch: &RecordBatch, field: &Field, what: String) -> Result<Converted> {
    if !field.optional {
        return Err(Error::invalid(format!("{what}, and the schema requires it ({})", field.kind)));
    }
    Ok((arrow_array::new_null_array(&field.kind.arrow(), batch.num_rows()), Vec::new()))
}

/// Placeholders for the nulls of a required column, because Arrow does not let such a column have any.
fn without_nulls(column: &ArrayRef) -> ArrayRef {
    let data = column.to_data().into_builder().nulls(None).build();
    make_array(data.expect("the values under nulls are valid ones"))
}
