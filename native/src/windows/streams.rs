//! Random plans and streams for the tests, from a printed seed.

use std::sync::Arc;

use arrow_array::builder::{Decimal128Builder, TimestampMicrosecondBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};

use super::oracle::{Event, Value};
use super::{Aggregate, Read, StorePlan, output_type};
use crate::schema::Type;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: i64) -> i64 {
        (self.next() % limit as u64) as i64
    }

    pub fn chance(&mut self, percent: i64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as i64) as usize].clone()
    }
}

pub fn columns() -> Vec<(String, Type)> {
    let types = [
        Type::Decimal(12, 2),
        Type::Int64,
        Type::Float64,
        Type::Text,
        Type::Bool,
        Type::Timestamp,
        Type::Decimal(30, 4),
    ];
    types.iter().enumerate().map(|(index, kind)| (format!("c{index}"), *kind)).collect()
}

pub fn plan(random: &mut Random, reads: usize) -> StorePlan {
    let keys: [&[Type]; 5] = [
        &[Type::Int64],
        &[Type::Text],
        &[Type::Int64, Type::Text],
        &[Type::Decimal(12, 2), Type::Bool, Type::Timestamp],
        &[Type::Float64],
    ];
    let mut plan = StorePlan {
        key: random.pick(&keys).to_vec(),
        columns: columns(),
        filters: vec!["a > 1".into(), "b".into()],
        reads: Vec::new(),
    };
    let endless = random.chance(50);
    while plan.reads.len() < reads {
        let read = read(random, &plan, endless);
        if plan.output_type(&read).is_ok() {
            plan.reads.push(read);
        }
    }
    plan
}

fn read(random: &mut Random, plan: &StorePlan, endless: bool) -> Read {
    use Aggregate::*;
    let lag = Lag(1 + random.below(4) as u32);
    let aggregate =
        random.pick(&[Count, Sum, Mean, Min, Max, Std, Var, NUnique, First, Last, lag, SinceLast, lag]);
    let lengths = [Some(1), Some(7), Some(20), Some(60), if endless { None } else { Some(33) }];
    let column = random.below(plan.columns.len() as i64) as usize;
    let bare = aggregate == SinceLast || (aggregate == Count && random.chance(50));
    Read {
        aggregate,
        column: (!bare).then_some(column),
        filter: random.chance(40).then(|| random.below(2) as usize),
        length_us: random.pick(&lengths),
        delay_us: random.pick(&[0, 0, 0, 5, 30]),
        include_current: random.chance(70),
    }
}

pub fn event(random: &mut Random, plan: &StorePlan, time: i64, keys: i64) -> Event {
    let whole = random.below(keys);
    let key = (!random.chance(4)).then(|| plan.key.iter().map(|kind| small(*kind, whole)).collect());
    let values = plan.columns.iter().map(|(_, kind)| any(random, *kind)).collect();
    Event { time, key, values, filters: vec![random.chance(50), random.chance(10)] }
}

fn small(kind: Type, number: i64) -> Value {
    match kind {
        Type::Float64 => Value::Float(number as f64 / 4.0),
        Type::Text => Value::Text("k".repeat(number as usize)),
        Type::Bool => Value::Bool(number % 2 == 0),
        _ => Value::Int(number as i128),
    }
}

fn any(random: &mut Random, kind: Type) -> Option<Value> {
    if random.chance(15) {
        return None;
    }
    Some(match kind {
        Type::Float64 => Value::Float(random.below(2000) as f64 / 7.0 - 100.0),
        Type::Decimal(30, _) => {
            Value::Int(random.below(1 << 40) as i128 * random.below(1 << 30) as i128 - 77)
        }
        Type::Bool => Value::Bool(random.chance(50)),
        Type::Text => Value::Text(random.pick(&["a", "b", "ab", "", "zz", "é"]).to_string()),
        _ => Value::Int(random.below(1000) as i128 - 300),
    })
}

/// One Arrow column of values.
pub fn array(kind: Type, values: &[Option<Value>]) -> ArrayRef {
    let int = |value: &Option<Value>| match value {
        Some(Value::Int(int)) => Some(*int),
        _ => None,
    };
    match kind {
        Type::Int64 => Arc::new(values.iter().map(|v| int(v).map(|i| i as i64)).collect::<Int64Array>()),
        Type::Timestamp => {
            let mut builder = TimestampMicrosecondBuilder::new().with_timezone("UTC");
            values.iter().for_each(|v| builder.append_option(int(v).map(|i| i as i64)));
            Arc::new(builder.finish())
        }
        Type::Decimal(..) => {
            let mut builder = Decimal128Builder::new().with_data_type(kind.arrow());
            values.iter().for_each(|v| builder.append_option(int(v)));
            Arc::new(builder.finish())
        }
        Type::Float64 => Arc::new(Float64Array::from_iter(values.iter().map(|v| match v {
            Some(Value::Float(float)) => Some(*float),
            _ => None,
        }))),
        Type::Text => Arc::new(StringArray::from_iter(values.iter().map(|v| match v {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }))),
        Type::Bool => Arc::new(BooleanArray::from_iter(values.iter().map(|v| match v {
            Some(Value::Bool(on)) => Some(*on),
            _ => None,
        }))),
    }
}

pub fn value(array: &ArrayRef, kind: Type, row: usize) -> Option<Value> {
    array.is_valid(row).then(|| match kind {
        Type::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row) as i128),
        Type::Timestamp => Value::Int(array.as_primitive::<TimestampMicrosecondType>().value(row) as i128),
        Type::Decimal(..) => Value::Int(array.as_primitive::<Decimal128Type>().value(row)),
        Type::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
        Type::Text => Value::Text(array.as_string::<i32>().value(row).to_string()),
        Type::Bool => Value::Bool(array.as_boolean().value(row)),
    })
}

/// The columns of a batch of events.
pub struct Batch {
    pub times: Vec<i64>,
    pub keys: Vec<ArrayRef>,
    pub columns: Vec<ArrayRef>,
    pub filters: Vec<BooleanArray>,
}

impl Batch {
    pub fn new(plan: &StorePlan, events: &[Event]) -> Batch {
        let column = |index: usize| events.iter().map(|e| e.values[index].clone()).collect::<Vec<_>>();
        let key = |index: usize| events.iter().map(move |e| e.key.as_ref().map(|k| k[index].clone()));
        Batch {
            times: events.iter().map(|event| event.time).collect(),
            keys: (0..plan.key.len()).map(|i| array(plan.key[i], &key(i).collect::<Vec<_>>())).collect(),
            columns: plan.columns.iter().enumerate().map(|(i, (_, kind))| array(*kind, &column(i))).collect(),
            filters: (0..plan.filters.len())
                .map(|index| events.iter().map(|event| Some(event.filters[index])).collect())
                .collect(),
        }
    }
}

pub fn kind(plan: &StorePlan, read: &Read) -> Type {
    output_type(read.aggregate, read.column.map(|column| plan.columns[column].1)).unwrap()
}
