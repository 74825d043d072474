//! The definitions, word for word and as slow as can be: a list of all events, looked through for every read.

use super::{Aggregate, Read};
use crate::schema::Type;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i128),
    Float(f64),
    Text(String),
    Bool(bool),
}

#[derive(Clone, Debug)]
pub struct Event {
    pub time: i64,
    pub key: Option<Vec<Value>>,
    pub values: Vec<Option<Value>>,
    pub filters: Vec<bool>,
}

#[derive(Default)]
pub struct Oracle {
    pub types: Vec<Type>,
    pub events: Vec<Event>,
}

/// A value, or a float with the absolute sum that its tolerance comes from.
pub type Answer = Option<Value>;

impl Oracle {
    pub fn read(&self, read: &Read, row: &Event, inserted: bool) -> Answer {
        row.key.as_ref()?;
        let high = row.time - read.delay_us;
        let low = read.length_us.map(|length| high - length);
        let inside = |event: &&Event| event.time <= high && low.is_none_or(|low| event.time > low);
        let mut seen: Vec<&Event> = self.events.iter().filter(|e| e.key == row.key).filter(inside).collect();
        seen.sort_by_key(|event| event.time);
        let behind = matches!(read.aggregate, Aggregate::Lag(_) | Aggregate::SinceLast);
        if inserted && read.include_current && read.delay_us == 0 && !behind {
            seen.push(row);
        }
        seen.retain(|event| read.filter.is_none_or(|filter| event.filters[filter]));
        if let Some(column) = read.column {
            seen.retain(|event| event.values[column].is_some());
        }
        self.aggregate(read, row, &seen)
    }

    fn aggregate(&self, read: &Read, row: &Event, seen: &[&Event]) -> Answer {
        let values = || seen.iter().map(|event| event.values[read.column.unwrap()].clone().unwrap());
        match read.aggregate {
            Aggregate::Count => Some(Value::Int(seen.len() as i128)),
            Aggregate::First => values().next(),
            Aggregate::Last => values().next_back(),
            Aggregate::Lag(back) => values().rev().nth(back as usize - 1),
            Aggregate::SinceLast => {
                seen.last().map(|event| Value::Float((row.time - event.time) as f64 / 1e6))
            }
            Aggregate::Min => values().min_by(compare),
            Aggregate::Max => values().max_by(compare),
            Aggregate::NUnique => {
                let mut unique: Vec<Value> = Vec::new();
                values().for_each(|value| {
                    if !unique.contains(&value) {
                        unique.push(value);
                    }
                });
                Some(Value::Int(unique.len() as i128))
            }
            _ => self.moments(read, &values().collect::<Vec<_>>()),
        }
    }

    fn moments(&self, read: &Read, values: &[Value]) -> Answer {
        if values.is_empty() {
            return None;
        }
        let kind = self.types[read.column.unwrap()];
        let numbers: Vec<f64> = values.iter().map(|value| number(value, kind)).collect();
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        match read.aggregate {
            Aggregate::Sum if kind != Type::Float64 => {
                let sum = values.iter().try_fold(0i128, |sum, value| match value {
                    Value::Int(int) => sum.checked_add(*int),
                    _ => unreachable!(),
                })?;
                let limit = if kind == Type::Int64 { i64::MAX as i128 } else { 10i128.pow(38) - 1 };
                (-limit - (kind == Type::Int64) as i128..=limit).contains(&sum).then_some(Value::Int(sum))
            }
            Aggregate::Sum => Some(Value::Float(numbers.iter().sum())),
            Aggregate::Mean => Some(Value::Float(mean)),
            _ if numbers.len() < 2 => None,
            _ => {
                let spread: f64 =
                    numbers.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (count - 1.0);
                Some(Value::Float(if read.aggregate == Aggregate::Var { spread } else { spread.sqrt() }))
            }
        }
    }
}

fn number(value: &Value, kind: Type) -> f64 {
    match (value, kind) {
        (Value::Int(int), Type::Decimal(_, scale)) => *int as f64 / 10f64.powi(scale as i32),
        (Value::Int(int), _) => *int as f64,
        (Value::Float(float), _) => *float,
        _ => unreachable!(),
    }
}

fn compare(a: &Value, b: &Value) -> std::cmp::Ordering {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ => unreachable!(),
    }
}
