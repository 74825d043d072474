//! Features by their definitions, word for word: all events, looked through for every value.

use super::expression::{Row, Value};
use super::history::Past;
use super::pipeline::Feature;
use crate::schema::Type;
use crate::windows::Aggregate;

/// The value of a feature at an event. `before` are all events in front of it in the order, of every topic.
pub fn feature(feature: &Feature, source: &str, at: &Past, before: &[Past]) -> Option<Value> {
    let key = key_of(feature, &at.row)?;
    let high = at.time - feature.delay_us;
    let inside = |past: &&Past| {
        past.topic == source
            && past.remembered
            && past.time <= high
            && feature.length_us.is_none_or(|length| past.time > high - length)
            && key_of(feature, &past.row).as_ref() == Some(&key)
    };
    let mut seen: Vec<&Past> = before.iter().filter(inside).collect();
    // In the order of time, and of arrival where times are equal: the sort is stable.
    seen.sort_by_key(|past| past.time);
    let behind = matches!(feature.aggregate, Aggregate::Lag(_) | Aggregate::SinceLast);
    if at.topic == source && feature.include_current && feature.delay_us == 0 && !behind {
        seen.push(at);
    }
    if let Some(filter) = &feature.filter {
        seen.retain(|past| filter.evaluate(&past.row) == Some(Value::Bool(true)));
    }
    match feature.aggregate {
        Aggregate::Count => return Some(Value::Whole(seen.len() as i128)),
        Aggregate::SinceLast => {
            return seen.last().map(|past| Value::Float((at.time - past.time) as f64 / 1e6));
        }
        _ => {}
    }
    let (column, kind) = feature.column.expect("other aggregates take a column");
    let values: Vec<&Value> = seen.iter().filter_map(|past| past.row.get(column)).collect();
    aggregate(feature.aggregate, &values, kind)
}

/// `None` where a part of the key is null: the event belongs to no entity.
fn key_of(feature: &Feature, row: &Row) -> Option<Vec<Value>> {
    feature.key.iter().map(|name| row.get(*name).cloned()).collect()
}

fn aggregate(aggregate: Aggregate, values: &[&Value], kind: Type) -> Option<Value> {
    match aggregate {
        Aggregate::NUnique => {
            let mut unique: Vec<&Value> = Vec::new();
            for value in values {
                if !unique.contains(value) {
                    unique.push(value);
                }
            }
            Some(Value::Whole(unique.len() as i128))
        }
        Aggregate::First => values.first().copied().cloned(),
        Aggregate::Last => values.last().copied().cloned(),
        Aggregate::Lag(back) => values.iter().rev().nth(back as usize - 1).copied().cloned(),
        Aggregate::Min => values.iter().min_by(|one, other| order(one, other)).copied().cloned(),
        Aggregate::Max => values.iter().max_by(|one, other| order(one, other)).copied().cloned(),
        _ => moment(aggregate, values, kind),
    }
}

fn order(one: &Value, other: &Value) -> std::cmp::Ordering {
    match (one, other) {
        (Value::Whole(one), Value::Whole(other)) => one.cmp(other),
        (Value::Text(one), Value::Text(other)) => one.cmp(other),
        _ => unreachable!("numbers and texts are ordered here"),
    }
}

fn moment(aggregate: Aggregate, values: &[&Value], kind: Type) -> Option<Value> {
    let numbers: Vec<i128> = values
        .iter()
        .map(|value| match value {
            Value::Whole(whole) => *whole,
            _ => unreachable!("only numbers are added up"),
        })
        .collect();
    let sum: i128 = numbers.iter().sum();
    let unit = 10f64.powi(kind.scale() as i32);
    let count = numbers.len() as f64;
    // Both are whole numbers far below 2⁵³, so that the division rounds once.
    let mean = sum as f64 / (count * unit);
    match aggregate {
        _ if numbers.is_empty() => None,
        Aggregate::Sum => Some(Value::Whole(sum)),
        Aggregate::Mean => Some(Value::Float(mean)),
        _ if numbers.len() < 2 => None,
        _ => {
            let squares: f64 = numbers.iter().map(|&number| (number as f64 / unit - mean).powi(2)).sum();
            let variance = squares / (count - 1.0);
            Some(Value::Float(if aggregate == Aggregate::Var { variance } else { variance.sqrt() }))
        }
    }
}

/// Whether a value is the expected one. Spreads alone are computed here with rounding.
pub fn agrees(aggregate: Option<Aggregate>, expected: &Option<Value>, given: &Option<Value>) -> bool {
    match (aggregate, expected, given) {
        (Some(Aggregate::Std | Aggregate::Var), Some(Value::Float(expected)), Some(Value::Float(given))) => {
            (expected - given).abs() <= 1e-6 + expected.abs() * 1e-9
        }
        _ => expected == given,
    }
}
