//! The JSON decoder, with serde_json as the second reader.

use std::collections::HashMap;

use penstock_native::answer::write_row;
use penstock_native::decode::{ArrayCut, Decoder, Limits, content_equal, split_lines};
use penstock_native::schema::{Field, Schema, Type};

use serde_json::value::RawValue;

use crate::{every_seed, mutate};

const EVENTS: [&str; 6] = [
    r#"{"id":"p1","count":-7,"mean":1.5e3,"amount":"12.50","online":true,"paid_at":"2026-11-01T12:00:00.5Z"}"#,
    r#"{"id": "\u00e9\ud83d\ude00\n", "count": 9223372036854775807, "mean": -0.0, "amount": 1e2}"#,
    r#"{"paid_at":"0001-01-01T00:00:00+23:59","id":"","amount":-0.01,"count":null,"online":null}"#,
    r#"{"id":"\"\\\/\b\f\n\r\t","mean":4.9e-324,"amount":"99999999.99"}"#,
    r#"{"id":"ä😀","mean":1.7976931348623157e308,"paid_at":"9999-12-31T23:59:59.999999Z"}"#,
    r#"  {"id" : "x" , "count" : 0 }  "#,
];

fn schema() -> Schema {
    let field = |name: &str, kind, optional| Field { name: name.into(), kind, optional };
    Schema {
        fields: vec![
            field("id", Type::Text, false),
            field("count", Type::Int64, true),
            field("mean", Type::Float64, true),
            field("amount", Type::Decimal(12, 2), true),
            field("online", Type::Bool, true),
            field("paid_at", Type::Timestamp, true),
        ],
    }
}

#[test]
fn test_fuzz_what_the_decoder_takes_is_json_and_comes_back_the_same() {
    let schema = schema();
    let decoder = Decoder::new(&schema, 0, Limits::default());
    every_seed(60_000, |chance| {
        let mut body = EVENTS[chance.below(6) as usize].as_bytes().to_vec();
        mutate(&mut body, chance);
        let decoded = decoder.decode(std::iter::once(&body[..]));
        assert_eq!(decoded.rows.len() + decoded.refused.len(), 1);
        if decoded.rows.is_empty() {
            let (_, refusal) = &decoded.refused[0];
            assert!(refusal.to_string().len() < 400);
            return;
        }
        // Values as text: a decimal may have an exponent that no float has.
        let object: HashMap<String, Box<RawValue>> =
            serde_json::from_slice(&body).expect("what was taken is a JSON object");
        assert!(object.keys().all(|name| schema.index(name).is_some()));
        let mut written = Vec::new();
        write_row(&mut written, &decoded.batch, &schema.fields, &[], 0);
        let again = decoder.decode(std::iter::once(&written[..]));
        assert!(content_equal(&decoded.batch, 0, &again.batch, 0), "{}", String::from_utf8_lossy(&written));
    });
}

#[test]
fn test_fuzz_what_is_cut_from_an_array_are_its_values() {
    every_seed(20_000, |chance| {
        let events: Vec<&str> = (0..chance.below(5)).map(|_| EVENTS[chance.below(6) as usize]).collect();
        let mut body = format!("[{}]", events.join(",")).into_bytes();
        mutate(&mut body, chance);
        let Ok(mut cut) = ArrayCut::new(body.clone()) else { return };
        let step = 1 + chance.below(64) as usize;
        let done = loop {
            match cut.advance(step) {
                Ok(true) => break true,
                Ok(false) => {}
                Err(_) => break false,
            }
        };
        let whole: Result<Vec<serde_json::Value>, _> = serde_json::from_slice(&body);
        if let Ok(whole) = whole {
            assert!(done, "an array of JSON is cut");
            let (body, places) = cut.finish();
            let values: Vec<serde_json::Value> =
                places.iter().map(|place| serde_json::from_slice(&body[place.clone()]).unwrap()).collect();
            assert_eq!(values, whole);
        }
        split_lines(&body);
    });
}
