//! Rows of every type, with the extremes among them.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use penstock_native::schema::{Field, Schema, Type};

use crate::support::Chance;

const TYPES: [Type; 6] =
    [Type::Bool, Type::Int64, Type::Float64, Type::Text, Type::Timestamp, Type::Decimal(20, 4)];

pub fn schema() -> Schema {
    let fields = TYPES.iter().flat_map(|kind| {
        [true, false].map(|optional| Field { name: format!("{kind} {optional}"), kind: *kind, optional })
    });
    Schema { fields: fields.collect() }
}

/// Values with the extremes among them; nulls as often as asked.
fn column(kind: Type, rows: usize, nulls_in_ten: u64, chance: &mut Chance) -> ArrayRef {
    let null: Vec<bool> = (0..rows).map(|_| chance.below(10) < nulls_in_ten).collect();
    let mut value = |row: usize| match chance.below(10) {
        0 => i64::MIN,
        1 => i64::MAX,
        2 => 0,
        _ => chance.next() as i64 ^ row as i64,
    };
    let values: Vec<Option<i64>> = (0..rows).map(|row| (!null[row]).then(|| value(row))).collect();
    let text =
        |value: i64| "äé😀x".chars().cycle().take((value.unsigned_abs() % 23) as usize).collect::<String>();
    let each = values.iter().copied();
    match kind {
        Type::Bool => Arc::new(each.map(|value| value.map(|value| value % 2 == 0)).collect::<BooleanArray>()),
        Type::Int64 => Arc::new(Int64Array::from_iter(each)),
        Type::Float64 => {
            Arc::new(Float64Array::from_iter(each.map(|value| value.map(|value| value as f64 / 3.0))))
        }
        Type::Text => Arc::new(StringArray::from_iter(each.map(|value| value.map(text)))),
        Type::Timestamp => Arc::new(TimestampMicrosecondArray::from_iter(each).with_timezone("UTC")),
        Type::Decimal(precision, scale) => {
            let decimals =
                Decimal128Array::from_iter(each.map(|value| value.map(|value| i128::from(value) * 3)));
            Arc::new(decimals.with_precision_and_scale(precision, scale).unwrap())
        }
    }
}

pub fn batch(rows: usize, chance: &mut Chance) -> RecordBatch {
    let nulls = chance.below(4) * 3;
    let schema = schema();
    let columns = schema.fields.iter().map(|field| {
        let nulls = if field.optional { nulls } else { 0 };
        if nulls == 9 {
            new_null_array(&field.kind.arrow(), rows)
        } else {
            column(field.kind, rows, nulls, chance)
        }
    });
    RecordBatch::try_new(schema.arrow(), columns.collect()).unwrap()
}
