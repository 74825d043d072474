//! Events as callers send them: well formed in many shapes, and poison.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, types};
use arrow_array::{
    ArrayRef, Decimal128Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};

use super::chance::Chance;
use super::expression::{Row, Value, decimal_text};
use super::pipeline::{SECOND, Topic};
use crate::decode::Limits;
use crate::schema::{Field, Type};

/// An event at about this time; `long` percent of its texts have so many bytes.
pub fn draw(topic: &Topic, id: u64, now_us: i64, long: (u32, usize), chance: &mut Chance) -> Row {
    let mut row = Row::new();
    for field in &topic.fields {
        let value = match field.name.as_str() {
            name if name == topic.id => match field.kind {
                Type::Int64 => Value::Whole(id.into()),
                _ => Value::Text(format!("p-{id}")),
            },
            name if name == topic.time => Value::Whole(draw_time(topic, now_us, chance).into()),
            _ if field.optional && chance.percent(20) => continue,
            "card" => Value::Text(format!("c{}", chance.below(4))),
            "shop" => Value::Whole(chance.below(3) as i128),
            "amount" | "tip" => Value::Whole(chance.between(-1000, 90_000).into()),
            "items" => Value::Whole(chance.between(-2, 6).into()),
            _ if chance.percent(long.0) => Value::Text(draw_long(long.1, chance)),
            _ if chance.percent(3) => Value::Text("é\"\\\n".repeat(chance.below(120))),
            _ => Value::Text(chance.pick(&["red", "green", "blue", ""]).to_string()),
        };
        row.insert(field.name.clone(), value);
    }
    row
}

/// A text that no compression makes short.
fn draw_long(bytes: usize, chance: &mut Chance) -> String {
    (0..bytes).map(|_| char::from(b'!' + chance.below(90) as u8)).collect()
}

fn draw_time(topic: &Topic, now_us: i64, chance: &mut Chance) -> i64 {
    let time = match chance.below(20) {
        0..=10 => now_us - chance.between(0, SECOND),
        // Out of order, and often at the same time as others.
        11..=15 => now_us - SECOND * chance.between(0, topic.lateness_us / SECOND),
        16..=17 => now_us - topic.lateness_us - SECOND * chance.between(1, 600),
        18 => now_us + SECOND * chance.between(0, 300),
        // Ahead of the gate's clock by more than is allowed.
        _ => now_us + SECOND * chance.between(590, 4000),
    };
    if chance.percent(50) { time / SECOND * SECOND } else { time }
}

/// The same event with one value changed.
pub fn alter(topic: &Topic, row: &Row, chance: &mut Chance) -> Row {
    let mut other = row.clone();
    match chance.below(2) {
        0 => {
            let amount = match row.get("amount") {
                Some(Value::Whole(amount)) => amount + 1,
                _ => 1,
            };
            other.insert("amount".into(), Value::Whole(amount));
        }
        _ => {
            let text =
                if row.get("note") == Some(&Value::Text("other".into())) { "another" } else { "other" };
            other.insert("note".into(), Value::Text(text.into()));
        }
    }
    debug_assert!(topic.fields.iter().any(|field| field.name == "note"));
    other
}

/// JSON in one of the shapes that mean the same.
pub fn to_json(topic: &Topic, row: &Row, chance: &mut Chance) -> String {
    let mut members: Vec<String> = Vec::new();
    for field in &topic.fields {
        let value = match row.get(&field.name) {
            None if chance.percent(50) => continue,
            None => "null".to_string(),
            Some(value) => json_value(field, value, chance),
        };
        let space = if chance.percent(20) { " " } else { "" };
        members.push(format!("\"{}\":{space}{value}", field.name));
    }
    if chance.percent(30) {
        chance.shuffle(&mut members);
    }
    format!("{{{}}}", members.join(","))
}

fn json_value(field: &Field, value: &Value, chance: &mut Chance) -> String {
    match (field.kind, value) {
        (Type::Decimal(..), Value::Whole(unscaled)) if chance.percent(50) => {
            format!("\"{}\"", decimal_text(*unscaled))
        }
        (Type::Decimal(..), Value::Whole(unscaled)) => decimal_text(*unscaled),
        (Type::Timestamp, Value::Whole(time)) => format!("\"{}\"", time_text(*time as i64)),
        (_, Value::Whole(whole)) => whole.to_string(),
        (_, Value::Text(text)) => serde_json::Value::from(text.as_str()).to_string(),
        (_, Value::Bool(bool)) => bool.to_string(),
        (_, Value::Float(float)) => format!("{float:?}"),
    }
}

/// Times here are of November and December 2026.
fn time_text(time_us: i64) -> String {
    const NOVEMBER: i64 = 1_793_491_200;
    let seconds = time_us.div_euclid(SECOND) - NOVEMBER;
    let (mut day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let months = [(10, 31), (11, 30), (12, 31)];
    let mut month = 1;
    if day < 0 {
        (month, day) = (0, day + 31);
    }
    while day >= months[month].1 {
        day -= months[month].1;
        month += 1;
    }
    format!(
        "2026-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        months[month].0,
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60,
        time_us.rem_euclid(SECOND),
    )
}

/// The event of a row of columns, as a dead letter has it.
pub fn arrow_json(topic: &Topic, row: &Row) -> String {
    let members = topic.fields.iter().map(|field| {
        let value = match row.get(&field.name) {
            Some(Value::Whole(time)) if field.kind == Type::Timestamp => {
                format!("\"{}\"", time_text(*time as i64).replace(".000000", ""))
            }
            value => super::history::to_json(value, field.kind).to_string(),
        };
        format!("\"{}\":{value}", field.name)
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// An event with a text that is too long.
pub fn lengthen(row: &Row, limits: &Limits, chance: &mut Chance) -> Row {
    let mut other = row.clone();
    other.insert("note".into(), Value::Text("é".repeat(limits.text_bytes / 2 + 1 + chance.below(200))));
    other
}

/// A body that is no event of the topic.
pub fn draw_poison(topic: &Topic, row: &Row, limits: &Limits, chance: &mut Chance) -> Vec<u8> {
    let good = to_json(topic, row, chance);
    let with = |name: &str, text: &str| {
        let mut rest = row.clone();
        rest.remove(name);
        let members = to_json(topic, &rest, &mut Chance::new(0));
        // The generator may have written a null for it.
        let members =
            members.replace(&format!("\"{name}\":null,"), "").replace(&format!(",\"{name}\":null"), "");
        let members =
            members.replace(&format!("\"{name}\": null,"), "").replace(&format!(",\"{name}\": null"), "");
        format!("{{\"{name}\":{text},{}", &members[1..])
    };
    let text = match chance.below(14) {
        0 => {
            let end = good.len() - 1 - chance.below(good.len() / 2);
            String::from_utf8_lossy(&good.as_bytes()[..end]).trim_end().into()
        }
        1 => with(topic.id, "null"),
        2 => with("amount", "1.005"),
        3 => with("amount", "\"12345678901234.00\""),
        4 => with("note", "17"),
        5 => with("unheard_of", "1"),
        6 => with(topic.time, "\"2026-11-01T12:00:00\""),
        7 => with("amount", "NaN"),
        8 => "[1, 2".into(),
        9 => {
            let mut bytes = with("note", "\"?\"").into_bytes();
            let place = bytes.iter().position(|&byte| byte == b'?').expect("it was written");
            bytes[place] = 0xff;
            return bytes;
        }
        10 => to_json(topic, &lengthen(row, limits, chance), chance),
        11 => with(topic.id, &format!("\"{}\"", "i".repeat(limits.text_bytes + 1))),
        // Short texts, long JSON.
        12 => with("note", &format!("\"{}\"", "\\u0078".repeat(limits.event_bytes / 6 + 1))),
        _ => good.replacen('{', &format!("{{{}", " ".repeat(limits.event_bytes)), 1),
    };
    text.into_bytes()
}

/// The same events as a batch of columns.
pub fn to_batch(topic: &Topic, rows: &[Row]) -> RecordBatch {
    let columns = topic.fields.iter().map(|field| to_column(field, rows)).collect();
    let schema = crate::schema::Schema { fields: topic.fields.clone() };
    RecordBatch::try_new(schema.arrow(), columns).expect("rows have the topic's fields")
}

fn to_column(field: &Field, rows: &[Row]) -> ArrayRef {
    let values = || rows.iter().map(|row| row.get(&field.name));
    let wholes = || {
        values().map(|value| match value {
            Some(Value::Whole(whole)) => Some(*whole),
            _ => None,
        })
    };
    match field.kind {
        Type::Int64 => {
            Arc::new(wholes().map(|value| value.map(|value| value as i64)).collect::<Int64Array>())
        }
        Type::Timestamp => {
            let times: TimestampMicrosecondArray =
                wholes().map(|value| value.map(|value| value as i64)).collect();
            Arc::new(times.with_timezone("UTC"))
        }
        Type::Decimal(precision, scale) => {
            let decimals: Decimal128Array = wholes().collect();
            Arc::new(decimals.with_precision_and_scale(precision, scale).expect("a decimal's type"))
        }
        _ => {
            let texts = values().map(|value| match value {
                Some(Value::Text(text)) => Some(text.as_str()),
                _ => None,
            });
            Arc::new(texts.collect::<StringArray>())
        }
    }
}

/// The value of a cell as it is in the log.
pub fn cell(column: &dyn Array, kind: Type, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    Some(match kind {
        Type::Bool => Value::Bool(column.as_boolean().value(row)),
        Type::Int64 => Value::Whole(column.as_primitive::<types::Int64Type>().value(row).into()),
        Type::Float64 => Value::Float(column.as_primitive::<types::Float64Type>().value(row)),
        Type::Text => Value::Text(column.as_string::<i32>().value(row).into()),
        Type::Timestamp => {
            Value::Whole(column.as_primitive::<types::TimestampMicrosecondType>().value(row).into())
        }
        Type::Decimal(..) => Value::Whole(column.as_primitive::<types::Decimal128Type>().value(row)),
    })
}
