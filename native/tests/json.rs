//! JSON in and out: what is accepted, what is refused and in which words, and that the two agree.

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use penstock_native::answer::{DecisionWriter, Extra, finish, write_fallback, write_row, write_value};
use penstock_native::decode::scalars::{read_decimal, read_time};
use penstock_native::decode::{ArrayCut, Decoder, Limits, Refusal, content_equal, split_lines};
use penstock_native::schema::{Field, Schema, Type};

fn field(name: &str, kind: Type, optional: bool) -> Field {
    Field { name: name.to_owned(), kind, optional }
}

fn schema_of(kind: Type) -> Schema {
    Schema { fields: vec![field("id", Type::Int64, false), field("value", kind, true)] }
}

fn every_type() -> Schema {
    let fields = vec![
        field("id", Type::Text, false),
        field("count", Type::Int64, true),
        field("mean", Type::Float64, true),
        field("amount", Type::Decimal(12, 2), true),
        field("wide", Type::Decimal(38, 10), true),
        field("online", Type::Bool, true),
        field("paid_at", Type::Timestamp, true),
        field("städte \"x\"", Type::Text, true),
    ];
    Schema { fields }
}

fn decode_one(schema: &Schema, body: &[u8]) -> Result<RecordBatch, Refusal> {
    let decoded = Decoder::new(schema, 0, Limits::default()).decode(std::iter::once(body));
    assert_eq!(decoded.rows.len() + decoded.refused.len(), 1);
    assert_eq!(decoded.batch.num_rows(), decoded.rows.len());
    match decoded.refused.into_iter().next() {
        Some((_, refusal)) => Err(refusal),
        None => Ok(decoded.batch),
    }
}

/// The value as it is written back, or the refusal's words.
fn outcome(kind: Type, value: &str) -> String {
    let schema = schema_of(kind);
    match decode_one(&schema, format!("{{\"id\":1,\"value\":{value}}}").as_bytes()) {
        Err(refusal) => refusal.to_string(),
        Ok(batch) => {
            let mut out = Vec::new();
            write_value(&mut out, batch.column(1), kind, 0);
            String::from_utf8(out).unwrap()
        }
    }
}

fn check(kind: Type, cases: &[(&str, &str)]) {
    for (given, expected) in cases {
        let expected = match expected.strip_prefix("! ") {
            Some(words) => format!("field \"value\": {words}"),
            None => (*expected).to_owned(),
        };
        assert_eq!(outcome(kind, given), expected, "given {given}");
    }
}

#[test]
fn integers_are_taken_only_as_integer_text_within_64_bits() {
    check(
        Type::Int64,
        &[
            ("0", "0"),
            ("-0", "0"),
            ("9223372036854775807", "9223372036854775807"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("null", "null"),
            ("9223372036854775808", "! given an integer beyond 64 bits, wanted int64"),
            ("-9223372036854775809", "! given an integer beyond 64 bits, wanted int64"),
            ("1.0", "! given a number not written as an integer, wanted int64"),
            ("1e3", "! given a number not written as an integer, wanted int64"),
            ("1E400", "! given a number not written as an integer, wanted int64"),
            ("\"1\"", "! given text, wanted int64"),
            ("true", "! given a boolean, wanted int64"),
            ("[1]", "! given an array, wanted int64"),
            ("{\"a\":1}", "! given an object, wanted int64"),
        ],
    );
}

#[test]
fn floats_are_any_finite_number_and_negative_zero_is_zero() {
    check(
        Type::Float64,
        &[
            ("1", "1.0"),
            ("-0.0", "0.0"),
            ("-0", "0.0"),
            ("-1e-999", "0.0"),
            ("0.1", "0.1"),
            ("1e2", "100.0"),
            ("1E+2", "100.0"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("5e-324", "5e-324"),
            // Halfway cases that a reader with rounding errors gets wrong.
            ("9007199254740993", "9007199254740992.0"),
            ("9007199254740993.0000000000000000000000000000000000001", "9007199254740994.0"),
            ("2.2250738585072011e-308", "2.225073858507201e-308"),
            ("1e309", "! given a number beyond 64-bit floating point, wanted float64"),
            ("-1e309", "! given a number beyond 64-bit floating point, wanted float64"),
            ("\"1.5\"", "! given text, wanted float64"),
            ("\"NaN\"", "! given text, wanted float64"),
        ],
    );
}

#[test]
fn decimals_are_read_from_their_digits_and_never_lose_one() {
    check(
        Type::Decimal(12, 2),
        &[
            ("12.5", "\"12.50\""),
            ("\"12.5\"", "\"12.50\""),
            ("0.1", "\"0.10\""),
            ("-0.00", "\"0.00\""),
            ("-0.01", "\"-0.01\""),
            ("9999999999.99", "\"9999999999.99\""),
            ("-9999999999.99", "\"-9999999999.99\""),
            ("1500e-3", "\"1.50\""),
            ("1.500e0", "\"1.50\""),
            ("1.5E+3", "\"1500.00\""),
            ("\"1E+3\"", "\"1000.00\""),
            ("\"0E-10\"", "\"0.00\""),
            ("0e999999999999999999999", "\"0.00\""),
            ("100000000000000000000000000000000000000000000e-44", "\"1.00\""),
            ("1.125", "! given a number with 3 decimal places, wanted decimal(12, 2)"),
            ("1.500", "! given a number with 3 decimal places, wanted decimal(12, 2)"),
            ("\"1.125\"", "! given a number with 3 decimal places, wanted decimal(12, 2)"),
            (
                "0.00000000000000000000000000000000000000000",
                "! given a number with 41 decimal places, wanted decimal(12, 2)",
            ),
            ("1e-3", "! given a number with 3 decimal places, wanted decimal(12, 2)"),
            (
                "10000000000",
                "! given a number with 11 digits before the decimal point, wanted decimal(12, 2)",
            ),
            (
                "-10000000000.00",
                "! given a number with 11 digits before the decimal point, wanted decimal(12, 2)",
            ),
            ("1e10", "! given a number with 11 digits before the decimal point, wanted decimal(12, 2)"),
            (
                "12345678901234567890123456789012345678901234567890",
                "! given a number with 50 digits before the decimal point, wanted decimal(12, 2)",
            ),
            ("\"\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"+1\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\" 1\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\".5\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"5.\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"01\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"1,5\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"1_000\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"1e\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"NaN\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("\"٣\"", "! given text that is not a number, wanted decimal(12, 2)"),
            ("true", "! given a boolean, wanted decimal(12, 2)"),
        ],
    );
    check(
        Type::Decimal(38, 0),
        &[
            ("99999999999999999999999999999999999999", "\"99999999999999999999999999999999999999\""),
            ("1e37", "\"10000000000000000000000000000000000000\""),
            ("1.0", "! given a number with 1 decimal place, wanted decimal(38, 0)"),
            ("1e38", "! given a number with 39 digits before the decimal point, wanted decimal(38, 0)"),
        ],
    );
    check(
        Type::Decimal(38, 38),
        &[
            ("0.00000000000000000000000000000000000001", "\"0.00000000000000000000000000000000000001\""),
            ("0", "\"0.00000000000000000000000000000000000000\""),
            ("1", "! given a number with 1 digit before the decimal point, wanted decimal(38, 38)"),
            ("1e-38", "\"0.00000000000000000000000000000000000001\""),
        ],
    );
}

#[test]
fn times_are_rfc_3339_with_an_offset_and_no_finer_than_microseconds() {
    let not_a_time =
        "! given text that is not an RFC 3339 time, wanted timestamp, as 2026-11-01T12:00:00.123456Z";
    let other = |given: &str| format!("! given {given}, wanted timestamp, as 2026-11-01T12:00:00.123456Z");
    check(
        Type::Timestamp,
        &[
            ("\"2026-11-01T12:00:00Z\"", "\"2026-11-01T12:00:00Z\""),
            ("\"2026-11-01 12:00:00Z\"", "\"2026-11-01T12:00:00Z\""),
            ("\"2026-11-01T12:00:00.5Z\"", "\"2026-11-01T12:00:00.500000Z\""),
            ("\"2026-11-01T12:00:00.123456+01:00\"", "\"2026-11-01T11:00:00.123456Z\""),
            ("\"2026-11-01T00:30:00-23:59\"", "\"2026-11-02T00:29:00Z\""),
            ("\"2026-11-01T00:00:00-00:00\"", "\"2026-11-01T00:00:00Z\""),
            ("\"2024-02-29T23:59:59Z\"", "\"2024-02-29T23:59:59Z\""),
            ("\"2000-02-29T00:00:00Z\"", "\"2000-02-29T00:00:00Z\""),
            ("\"0001-01-01T00:00:00Z\"", "\"0001-01-01T00:00:00Z\""),
            ("\"9999-12-31T23:59:59.999999Z\"", "\"9999-12-31T23:59:59.999999Z\""),
            ("\"1969-12-31T23:59:59.999999Z\"", "\"1969-12-31T23:59:59.999999Z\""),
            ("\"2026-11-01t12:00:00Z\"", not_a_time),
            ("\"2026-11-01T12:00:00z\"", not_a_time),
            ("\"2026-11-01T12:00Z\"", not_a_time),
            ("\"2026-11-01\"", not_a_time),
            ("\"\"", not_a_time),
            ("\"2026-11-01T12:00:00.Z\"", not_a_time),
            ("\"2026-11-01T12:00:00,5Z\"", not_a_time),
            ("\"2026-11-01T12:00:00+0100\"", not_a_time),
            ("\"2026-11-01T12:00:00Zz\"", not_a_time),
            ("\"+026-11-01T12:00:00Z\"", not_a_time),
            ("\"2026-1x-01T12:00:00Z\"", not_a_time),
            ("\"2026-11-01T12:00:0ä0Z\"", not_a_time),
            ("\" 2026-11-01T12:00:00Z\"", not_a_time),
            ("\"2026-11-01T12:00:00\"", &other("a time without an offset from UTC")),
            ("\"2026-11-01T12:00:00.5\"", &other("a time without an offset from UTC")),
            ("\"2026-11-01T12:00:00+24:00\"", &other("a time whose offset from UTC is not valid")),
            ("\"2026-11-01T12:00:00+01:60\"", &other("a time whose offset from UTC is not valid")),
            ("\"2026-11-01T12:00:00.1234567Z\"", &other("a time with 7 fraction digits")),
            ("\"2026-11-01T12:00:00.000000000Z\"", &other("a time with 9 fraction digits")),
            ("\"2026-11-01T23:59:60Z\"", &other("a leap second")),
            ("\"2026-11-01T24:00:00Z\"", &other("a time of day that the clock does not have")),
            ("\"2026-11-01T12:60:00Z\"", &other("a time of day that the clock does not have")),
            ("\"2026-11-01T12:00:61Z\"", &other("a time of day that the clock does not have")),
            ("\"2023-02-29T00:00:00Z\"", &other("a date that the calendar does not have")),
            ("\"1900-02-29T00:00:00Z\"", &other("a date that the calendar does not have")),
            ("\"2026-04-31T00:00:00Z\"", &other("a date that the calendar does not have")),
            ("\"2026-00-01T00:00:00Z\"", &other("a date that the calendar does not have")),
            ("\"2026-13-01T00:00:00Z\"", &other("a date that the calendar does not have")),
            ("\"2026-11-00T00:00:00Z\"", &other("a date that the calendar does not have")),
            ("\"0000-01-01T00:00:00Z\"", &other("a time outside the years 1 to 9999 in UTC")),
            ("\"0001-01-01T00:00:00+00:01\"", &other("a time outside the years 1 to 9999 in UTC")),
            ("\"9999-12-31T23:59:59-00:01\"", &other("a time outside the years 1 to 9999 in UTC")),
            ("1793534400", &other("a number")),
        ],
    );
}

#[test]
fn text_is_any_unicode_and_booleans_are_only_booleans() {
    check(
        Type::Text,
        &[
            ("\"\"", "\"\""),
            ("\"plain\"", "\"plain\""),
            ("\"Bäckerei 🥐\"", "\"Bäckerei 🥐\""),
            ("\"\\u0000\"", "\"\\u0000\""),
            ("\"\\ud83e\\udd50\"", "\"🥐\""),
            ("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u001f\\u007f\"", "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u001f\u{7f}\""),
            ("7", "! given a number, wanted text"),
            ("false", "! given a boolean, wanted text"),
        ],
    );
    check(
        Type::Bool,
        &[
            ("true", "true"),
            ("false", "false"),
            ("null", "null"),
            ("0", "! given a number, wanted bool"),
            ("\"true\"", "! given text, wanted bool"),
        ],
    );
}

#[test]
fn an_event_is_one_flat_object_with_each_required_field_once() {
    let schema = Schema { fields: vec![field("id", Type::Int64, false), field("card", Type::Text, true)] };
    let whole = |given: &str| format!("given {given}, wanted one JSON object");
    let cases: &[(&str, String)] = &[
        ("", whole("an empty body")),
        (" \r\n\t", whole("an empty body")),
        ("null", whole("null")),
        ("\u{feff}{\"id\":1}", whole("what is not JSON")),
        ("5", whole("a number")),
        ("\"secret\"", whole("text")),
        ("[{\"id\":1}]", whole("an array")),
        ("{", whole("JSON that ends too early, after 1 bytes")),
        ("{\"id\":1", whole("JSON that ends too early, after 7 bytes")),
        ("{\"id\":1,", whole("JSON that ends too early, after 8 bytes")),
        ("{\"id", whole("JSON that ends too early, after 4 bytes")),
        ("{\"id\":1}}", whole("what is not JSON at byte 8: expected nothing more")),
        ("{\"id\":1} {\"id\":2}", whole("what is not JSON at byte 9: expected nothing more")),
        ("{\"id\":1}\0", whole("what is not JSON at byte 8: expected nothing more")),
        ("{} 1", whole("what is not JSON at byte 3: expected nothing more")),
        ("{\"id\":1,}", whole("what is not JSON at byte 8: expected a key in quotes")),
        ("{,\"id\":1}", whole("what is not JSON at byte 1: expected a key in quotes")),
        ("{\"id\" 1}", whole("what is not JSON at byte 6: expected `:`")),
        ("{\"id\":1 \"card\":\"a\"}", whole("what is not JSON at byte 8: expected `,` or `}`")),
        ("{id:1}", whole("what is not JSON at byte 1: expected a key in quotes")),
        ("{'id':1}", whole("what is not JSON at byte 1: expected a key in quotes")),
        ("{\"id\":01}", whole("what is not JSON at byte 6: a number with leading zeros")),
        ("{\"id\":+1}", whole("what is not JSON at byte 6: expected a value")),
        ("{\"id\":-}", whole("what is not JSON at byte 7: expected a digit")),
        ("{\"id\":1.}", whole("what is not JSON at byte 8: expected a digit")),
        ("{\"id\":1e}", whole("what is not JSON at byte 8: expected a digit")),
        ("{\"id\":NaN}", whole("what is not JSON at byte 6: expected a value")),
        ("{\"id\":Infinity}", whole("what is not JSON at byte 6: expected a value")),
        ("{\"id\":-Infinity}", whole("what is not JSON at byte 7: expected a digit")),
        ("{\"id\":nul}", whole("what is not JSON at byte 6: expected a value")),
        ("{\"id\":0x1}", whole("what is not JSON at byte 7: expected `,` or `}`")),
        ("{\"id\":1 /* c */}", whole("what is not JSON at byte 8: expected `,` or `}`")),
        ("{\"id\":1,\"card\":\"a\nb\"}", whole("what is not JSON at byte 17: a control character in text")),
        ("{\"id\":1,\"card\":\"\\x\"}", whole("what is not JSON at byte 15: text with an invalid escape")),
        (
            "{\"id\":1,\"card\":\"\\ud800\"}",
            whole("what is not JSON at byte 15: text with an invalid escape"),
        ),
        (
            "{\"id\":1,\"card\":\"\\udc00\\ud800\"}",
            whole("what is not JSON at byte 15: text with an invalid escape"),
        ),
        ("{\"id\":1,\"card\":\"\\", whole("JSON that ends too early, after 17 bytes")),
        ("{}", "field \"id\": given nothing, wanted int64".to_owned()),
        ("{\"card\":\"a\"}", "field \"id\": given nothing, wanted int64".to_owned()),
        ("{\"id\":null}", "field \"id\": given null, wanted int64".to_owned()),
        ("{\"id\":1,\"id\":1}", "field \"id\": given the field a second time, wanted int64".to_owned()),
        ("{\"id\":1,\"\\u0069d\":1}", "field \"id\": given the field a second time, wanted int64".to_owned()),
        (
            "{\"card\":null,\"id\":1,\"card\":null}",
            "field \"card\": given the field a second time, wanted text".to_owned(),
        ),
        (
            "{\"id\":1,\"cart\":\"a\"}",
            "field \"cart\": given a field that the schema does not have, wanted only id, card".to_owned(),
        ),
        (
            "{\"ID\":1}",
            "field \"ID\": given a field that the schema does not have, wanted only id, card".to_owned(),
        ),
        ("{\"id\":1,\"card\":{\"a\":1}}", "field \"card\": given an object, wanted text".to_owned()),
    ];
    for (body, expected) in cases {
        let refusal = decode_one(&schema, body.as_bytes()).expect_err(body);
        assert_eq!(&refusal.to_string(), expected, "given {body}");
    }
    for good in
        ["{\"id\":1}", " { \"card\" : \"a\" ,\r\n\t\"id\" : 1 } \n", "{\"\\u0069\\u0064\":1,\"card\":null}"]
    {
        assert!(decode_one(&schema, good.as_bytes()).is_ok(), "{good}");
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_with_their_place() {
    let refusal = decode_one(&schema_of(Type::Text), b"{\"id\":1,\"value\":\"a\xff\"}").unwrap_err();
    assert_eq!(refusal.to_string(), "given what is not UTF-8 at byte 18, wanted one JSON object");
    assert_eq!(refusal.code, "not_json");
}

#[test]
fn a_long_unknown_name_is_cut_and_its_control_characters_are_escaped() {
    let body = format!("{{\"id\":1,\"{}\\n\":1}}", "x".repeat(63));
    let refusal = decode_one(&schema_of(Type::Text), body.as_bytes()).unwrap_err();
    assert!(refusal.to_string().starts_with(&format!("field \"{}\\n\": given", "x".repeat(63))));
    let body = format!("{{\"id\":1,\"{}\":1}}", "ä".repeat(10_000));
    assert_eq!(decode_one(&schema_of(Type::Text), body.as_bytes()).unwrap_err().field, Some("ä".repeat(64)));
}

#[test]
fn a_refused_event_leaves_its_neighbours_as_they_were() {
    let schema = every_type();
    let good = |i: usize| {
        format!(
            "{{\"id\":\"e{i}\",\"count\":{i},\"mean\":{i}.5,\"amount\":{i}.25,\"online\":true,\
             \"paid_at\":\"2026-11-01T12:00:00Z\",\"städte \\\"x\\\"\":\"Köln {i}\"}}"
        )
    };
    let bad = [
        "{\"id\":\"x\",\"count\":1,\"mean\":2.5,\"online\":false,\"städte \\\"x\\\"\":\"half way\",\"amount\":\"no\"}",
        "{\"paid_at\":\"2026-11-01T12:00:00Z\",\"wide\":1,\"count\":null}",
        "{\"id\":\"x\"} ",
        "[]",
    ];
    let mut bodies = Vec::new();
    for i in 0..40 {
        bodies.push(good(i));
        bodies.push(bad[i % 4].replace("} ", "}, "));
    }
    let decoder = Decoder::new(&schema, 0, Limits::default());
    let decoded = decoder.decode(bodies.iter().map(String::as_bytes));
    let alone = decoder.decode(bodies.iter().step_by(2).map(String::as_bytes));
    assert_eq!(decoded.batch, alone.batch);
    assert_eq!(decoded.rows, (0..40).map(|i| 2 * i).collect::<Vec<u32>>());
    let refused: Vec<u32> = decoded.refused.iter().map(|(body, _)| *body).collect();
    assert_eq!(refused, (0..40).map(|i| 2 * i + 1).collect::<Vec<u32>>());
}

#[test]
fn fields_may_come_in_any_order_and_change_it() {
    let schema = every_type();
    let parts =
        ["\"id\":\"a\"", "\"count\":7", "\"mean\":1.5", "\"amount\":2", "\"online\":true", "\"wide\":\"3\""];
    let mut random = Random(11);
    let decoder = Decoder::new(&schema, 0, Limits::default());
    let first = format!("{{{}}}", parts.join(","));
    let expected = decoder.decode(std::iter::once(first.as_bytes())).batch;
    let bodies: Vec<String> = (0..200)
        .map(|_| {
            let mut order = parts.to_vec();
            for i in (1..order.len()).rev() {
                order.swap(i, random.below(i as u64 + 1) as usize);
            }
            format!("{{{}}}", order.join(" , "))
        })
        .collect();
    let decoded = decoder.decode(bodies.iter().map(String::as_bytes));
    assert_eq!(decoded.rows.len(), 200);
    assert!((0..200).all(|row| content_equal(&decoded.batch, row, &expected, 0)));
}

#[test]
fn an_id_keeps_its_type_as_json_text() {
    let bodies: [&[u8]; 2] = [br#"{"id":"b","count":11}"#, br#"{"id":"a\u00e9\"","count":12}"#];
    for (id, text) in [(0, "\"aé\\\"\""), (1, "12")] {
        let decoder = Decoder::new(&every_type(), id, Limits::default());
        assert_eq!(decoder.id_text(&decoder.decode(bodies.into_iter()).batch, 1), text.as_bytes());
    }
}

#[test]
fn content_is_equal_by_its_fields_and_not_by_its_bytes() {
    let schema = every_type();
    let batch = |body: &str| decode_one(&schema, body.as_bytes()).unwrap();
    let first =
        batch(r#"{"id":"a","mean":0.0,"amount":1.5,"paid_at":"2026-11-01T12:00:00Z","online":false}"#);
    let same = batch(
        r#"{"paid_at":"2026-11-01 13:00:00.000+01:00","amount":"1.50","mean":-0.0,"id":"\u0061","online":false}"#,
    );
    assert!(content_equal(&first, 0, &same, 0));
    for other in [
        r#"{"id":"a","mean":0.0,"amount":1.5,"paid_at":"2026-11-01T12:00:00Z"}"#,
        r#"{"id":"b","mean":0.0,"amount":1.5,"paid_at":"2026-11-01T12:00:00Z","online":false}"#,
        r#"{"id":"a","mean":5e-324,"amount":1.5,"paid_at":"2026-11-01T12:00:00Z","online":false}"#,
        r#"{"id":"a","mean":0.0,"amount":1.51,"paid_at":"2026-11-01T12:00:00Z","online":false}"#,
        r#"{"id":"a","mean":0.0,"amount":1.5,"paid_at":"2026-11-01T12:00:00.000001Z","online":false}"#,
        r#"{"id":"a","mean":0.0,"amount":1.5,"paid_at":"2026-11-01T12:00:00Z","online":true}"#,
    ] {
        assert!(!content_equal(&first, 0, &batch(other), 0), "{other}");
    }
    let mut wider = schema.clone();
    wider.fields.insert(1, field("added", Type::Text, true));
    let without = decode_one(
        &wider,
        br#"{"id":"a","mean":0.0,"amount":1.5,"paid_at":"2026-11-01T12:00:00Z","online":false}"#,
    );
    assert!(content_equal(&first, 0, &without.unwrap(), 0));
    let with = decode_one(
        &wider,
        br#"{"id":"a","added":"","mean":0.0,"amount":1.5,"paid_at":"2026-11-01T12:00:00Z","online":false}"#,
    );
    let with = with.unwrap();
    assert!(!content_equal(&first, 0, &with, 0) && !content_equal(&with, 0, &first, 0));
}

#[test]
fn an_array_is_cut_into_its_events_or_refused_whole() {
    let cut_by = |body: &[u8], bytes: usize| {
        let mut cut = ArrayCut::new(body.to_vec())?;
        while !cut.advance(bytes)? {}
        let (body, events) = cut.finish();
        Ok(events
            .into_iter()
            .map(|event| String::from_utf8(body[event].to_vec()).unwrap())
            .collect::<Vec<_>>())
    };
    let cut = |body: &str| -> Result<Vec<String>, Refusal> {
        let whole = cut_by(body.as_bytes(), usize::MAX);
        assert_eq!(cut_by(body.as_bytes(), 1), whole, "{body}");
        whole
    };
    assert_eq!(cut(" [ ] \n").unwrap(), Vec::<String>::new());
    assert_eq!(cut("[{\"a\": [1, \"]\"]} ,\n5,null]").unwrap(), ["{\"a\": [1, \"]\"]}", "5", "null"]);
    for (body, words) in [
        ("", "given an empty body, wanted a JSON array of objects"),
        ("{}", "given an object, wanted a JSON array of objects"),
        ("\"secret\"", "given text, wanted a JSON array of objects"),
        ("[{}", "given JSON that ends too early, after 3 bytes, wanted a JSON array of objects"),
        ("[{},]", "given what is not JSON at byte 4, wanted a JSON array of objects"),
        ("[{},\n{},\n;]", "given what is not JSON at byte 9, wanted a JSON array of objects"),
        ("[] []", "given what is not JSON at byte 3, wanted a JSON array of objects"),
    ] {
        assert_eq!(cut(body).unwrap_err().to_string(), words, "given {body}");
    }
    assert_eq!(
        cut_by(b"[\"\xff\"]", 1).unwrap_err().to_string(),
        "given what is not UTF-8 at byte 2, wanted a JSON array of objects"
    );
    let deep = "[".repeat(1_000_000);
    assert!(cut(&deep).is_err());
}

#[test]
fn lines_are_cut_at_newlines_and_blank_ones_are_skipped() {
    let none: [&[u8]; 0] = [];
    assert_eq!(split_lines(b""), none);
    assert_eq!(split_lines(b"\n\r\n \t\n"), none);
    assert_eq!(split_lines(b"{}\n{\"a\":1}\r\n\r\n\n [] \n"), [b"{}".as_slice(), b"{\"a\":1}", b"[]"]);
    assert_eq!(split_lines(b"{}\n{}"), [b"{}", b"{}"]);
}

#[test]
fn what_is_written_is_decoded_to_the_same_row() {
    let schema = every_type();
    let decoder = Decoder::new(&schema, 0, Limits::default());
    let mut random = Random(2026);
    for round in 0..200 {
        let bodies: Vec<String> = (0..20).map(|_| random_event(&schema, &mut random)).collect();
        let decoded = decoder.decode(bodies.iter().map(String::as_bytes));
        assert!(decoded.refused.is_empty(), "round {round}: {} in {bodies:?}", decoded.refused[0].1);
        for (row, body) in bodies.iter().enumerate() {
            let mut out = Vec::new();
            write_row(&mut out, &decoded.batch, &schema.fields, &[], row);
            let back = decode_one(&schema, &out).unwrap();
            assert!(content_equal(&decoded.batch, row, &back, 0), "round {round}: {body}");
            check_against_serde_json(&decoded.batch, row, body, &out);
        }
    }
}

/// `serde_json` is the oracle for text, integers, booleans and nulls, and the standard library for floats.
fn check_against_serde_json(batch: &RecordBatch, row: usize, body: &str, written: &[u8]) {
    let sent: serde_json::Map<String, serde_json::Value> = serde_json::from_str(body).unwrap();
    let told: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(written).unwrap();
    assert_eq!(told.len(), batch.num_columns());
    for name in ["id", "count", "online", "städte \"x\""] {
        assert_eq!(sent.get(name).unwrap_or(&serde_json::Value::Null), &told[name]);
    }
    let mean = batch.column(2).as_primitive::<Float64Type>();
    if mean.is_valid(row) {
        let text = std::str::from_utf8(written).unwrap().split("\"mean\":").nth(1).unwrap();
        let read: f64 = text.split(',').next().unwrap().parse().unwrap();
        assert_eq!(read.to_bits(), mean.value(row).to_bits());
    }
}

#[test]
fn decimals_and_times_agree_with_arithmetic_of_their_own() {
    let mut random = Random(7);
    for _ in 0..20_000 {
        let scale = random.below(39) as usize;
        let unscaled = random.wide() % 10_i128.pow(38);
        let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let sign = if unscaled < 0 { "-" } else { "" };
        let point = if scale > 0 { "." } else { "" };
        let text = format!("{sign}{whole}{point}{fraction}");
        assert_eq!(read_decimal(&text, 38, scale as i8).ok(), Some(unscaled), "{text}");
        let exponent = format!("{unscaled}e-{scale}");
        assert_eq!(read_decimal(&exponent, 38, scale as i8).ok(), Some(unscaled), "{exponent}");
    }
    // Every day of ten thousand years, counted one by one.
    let mut days = -719_162_i64;
    for year in 1..=9999 {
        for month in 1..=12 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1];
            for day in [1, length] {
                let text = format!("{year:04}-{month:02}-{day:02}T00:00:00Z");
                assert_eq!(read_time(&text).ok(), Some((days + day - 1) * 86_400_000_000), "{text}");
            }
            days += length;
        }
    }
}

#[test]
fn no_bytes_make_the_decoder_panic_and_all_it_takes_is_json() {
    let schema = every_type();
    let decoder = Decoder::new(&schema, 0, Limits::default());
    let mut random = Random(99);
    let mut accepted = 0;
    for _ in 0..60_000 {
        let mut body = random_event(&schema, &mut random).into_bytes();
        for _ in 0..=random.below(3) {
            mutate(&mut body, &mut random);
        }
        let decoded = decoder.decode(std::iter::once(body.as_slice()));
        let is_json = serde_json::from_slice::<&serde_json::value::RawValue>(&body).is_ok();
        if decoded.refused.is_empty() {
            accepted += 1;
            assert!(is_json, "took what serde_json refuses: {:?}", String::from_utf8_lossy(&body));
        } else if decoded.refused[0].1.code == "not_json" {
            let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&body);
            assert!(object.is_err(), "refused as not JSON: {:?}", String::from_utf8_lossy(&body));
        }
        let array = [b"[".as_slice(), &body, b",", &body, b"]"].concat();
        let whole = serde_json::from_slice::<Vec<&serde_json::value::RawValue>>(&array);
        let whole: Option<Vec<&str>> =
            whole.ok().map(|events| events.iter().map(|event| event.get()).collect());
        let cut =
            ArrayCut::new(array.clone()).and_then(|mut cut| cut.advance(usize::MAX).map(|_| cut.finish()));
        let cut =
            cut.ok().map(|(body, events)| events.into_iter().map(|event| body[event].to_vec()).collect());
        let cut: Option<Vec<Vec<u8>>> = cut;
        assert_eq!(
            cut.as_ref()
                .map(|events| events.iter().map(|event| std::str::from_utf8(event).unwrap()).collect()),
            whole
        );
        let _ = split_lines(&body);
    }
    assert!(accepted > 1_000, "too few mutations were harmless: {accepted}");
}

fn mutate(body: &mut Vec<u8>, random: &mut Random) {
    if body.is_empty() {
        return;
    }
    let at = random.below(body.len() as u64) as usize;
    match random.below(5) {
        0 => body[at] = random.below(256) as u8,
        1 => drop(body.remove(at)),
        2 => body.truncate(at.max(1)),
        3 => body.insert(at, b" \"\\{}[]:,.-+eE0\x00\x1f\n\xc3t"[random.below(20) as usize]),
        _ => {
            let from = random.below(body.len() as u64) as usize;
            let (from, to) = (from.min(at), from.max(at));
            let copy = body[from..to].to_vec();
            body.splice(at..at, copy);
        }
    }
}

fn random_event(schema: &Schema, random: &mut Random) -> String {
    let mut parts = Vec::new();
    for field in &schema.fields {
        if field.optional && random.below(4) == 0 {
            if random.below(2) == 0 {
                parts.push(format!("{}:null", serde_json::to_string(&field.name).unwrap()));
            }
            continue;
        }
        let value = random_value(field.kind, random);
        parts.push(format!("{}:{value}", serde_json::to_string(&field.name).unwrap()));
    }
    format!("{{{}}}", parts.join(","))
}

fn random_value(kind: Type, random: &mut Random) -> String {
    match kind {
        Type::Bool => (random.below(2) == 0).to_string(),
        Type::Int64 => ((random.next() as i64) >> random.below(64)).to_string(),
        Type::Float64 => {
            let value = f64::from_bits(random.next());
            format!("{:e}", if value.is_finite() { value } else { 0.5 })
        }
        Type::Text => {
            let characters =
                ["a", "Z", "\"", "\\", "\n", "\0", "é", "漢", "🥐", " ", "\u{7f}", "\u{2028}", "longer text"];
            let text: String = (0..random.below(12)).map(|_| characters[random.below(13) as usize]).collect();
            serde_json::to_string(&text).unwrap()
        }
        Type::Timestamp => {
            let (days, clock) = (random.below(28) + 1, random.below(24));
            format!(
                "\"{:04}-{:02}-{days:02}T{clock:02}:59:00.{:06}+0{}:30\"",
                2 + random.below(9000),
                1 + random.below(12),
                random.below(1_000_000),
                random.below(10)
            )
        }
        Type::Decimal(precision, scale) => {
            let unscaled = random.wide() % 10_i128.pow(1 + random.below(precision.into()) as u32);
            match random.below(2) {
                0 => format!("{unscaled}e-{scale}"),
                _ => format!("\"{unscaled}E-{scale}\""),
            }
        }
    }
}

/// SplitMix64: enough chance for a test, the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn wide(&mut self) -> i128 {
        (i128::from(self.next() as i64) << 63) ^ i128::from(self.next())
    }
}

fn decisions() -> Schema {
    let fields = vec![
        field("payment_id", Type::Int64, false),
        field("offset", Type::Int64, true),
        field("outcome", Type::Text, false),
        field("reasons", Type::Text, false),
        field("score", Type::Float64, true),
        field("card_count_1h", Type::Int64, true),
        field("card_sum_\"1d\"", Type::Decimal(38, 2), true),
        field("card_last", Type::Timestamp, true),
        field("policy_version", Type::Text, false),
        field("cause", Type::Text, true),
        field("late", Type::Bool, true),
    ];
    Schema { fields }
}

fn answer(row: &str, extra: Extra) -> String {
    let schema = decisions();
    let batch = decode_one(&schema, row.as_bytes()).unwrap();
    let mut out = Vec::new();
    DecisionWriter::new(&schema, 5..8).rows(&batch).write(&mut out, 0, extra);
    finish(&mut out, 411_500);
    String::from_utf8(out).unwrap()
}

#[test]
fn an_answer_has_the_decision_and_ends_with_its_time() {
    let row = r#"{"payment_id":77,"offset":123,"outcome":"review","reasons":"[{\"rule\":\"far\",\"code\":\"R01\"}]",
        "score":0.25,"card_count_1h":3,"card_sum_\"1d\"":"12.5","card_last":"2026-11-01T12:00:00Z",
        "policy_version":"7f3a"}"#;
    assert_eq!(
        answer(row, Extra::default()),
        r#"{"id":77,"outcome":"review","reasons":[{"rule":"far","code":"R01"}],"score":0.25,"features":{"card_count_1h":3,"card_sum_\"1d\"":"12.50","card_last":"2026-11-01T12:00:00Z"},"policy_version":"7f3a","offset":123,"timed_out":false,"took_ms":0.412}"#
    );
}

#[test]
fn late_and_cause_are_told_only_where_they_apply() {
    let row = |more: &str| {
        format!(
            r#"{{"payment_id":77,"offset":1,"outcome":"approve","reasons":"[]","policy_version":"7f3a"{more}}}"#
        )
    };
    let expected = |more: &str| {
        format!(
            r#"{{"id":77,"outcome":"approve","reasons":[],"score":null,"features":{{"card_count_1h":null,"card_sum_\"1d\"":null,"card_last":null}},"policy_version":"7f3a","offset":1,"timed_out":false{more},"took_ms":0.412}}"#
        )
    };
    for (given, told) in [
        ("", ""),
        (r#","late":false"#, ""),
        (r#","late":true"#, r#","late":true"#),
        (r#","cause":"state_full""#, r#","cause":"state_full""#),
        (r#","late":true,"cause":"restart""#, r#","late":true,"cause":"restart""#),
    ] {
        assert_eq!(answer(&row(given), Extra::default()), expected(told));
    }
}

#[test]
fn a_fallback_has_timed_out_where_its_cause_is_the_deadline() {
    let expected = |cause: &str, timed_out: &str| {
        format!(
            r#"{{"id":77,"outcome":"approve","reasons":[],"score":null,"features":null,"policy_version":"7f3a","offset":null,"timed_out":{timed_out},"cause":"{cause}","took_ms":0.412}}"#
        )
    };
    for (cause, timed_out) in [("deadline", "true"), ("overload", "false")] {
        let mut out = Vec::new();
        write_fallback(&mut out, b"77", "approve", "7f3a", cause);
        finish(&mut out, 411_500);
        assert_eq!(String::from_utf8(out).unwrap(), expected(cause, timed_out));
    }
}

#[test]
fn a_dry_run_has_no_offset() {
    let row = r#"{"payment_id":77,"offset":9,"outcome":"approve","reasons":"[]","policy_version":"7f3a"}"#;
    let told = answer(row, Extra { dry_run: true });
    assert_eq!(told, answer(row, Extra::default()).replace("\"offset\":9", "\"offset\":null"));
}

#[test]
fn took_ms_is_rounded_to_the_microsecond() {
    for (took_ns, text) in [
        (0, "0.000"),
        (499, "0.000"),
        (500, "0.001"),
        (999_499, "0.999"),
        (999_500, "1.000"),
        (12_034_000_000, "12034.000"),
        (u64::MAX, "18446744073709.551"),
    ] {
        let mut out = Vec::new();
        finish(&mut out, took_ns);
        assert_eq!(String::from_utf8(out).unwrap(), format!(",\"took_ms\":{text}}}"));
    }
}

#[test]
fn columns_have_the_schemas_physical_types() {
    let schema = every_type();
    let batch = decode_one(&schema, br#"{"id":"a"}"#).unwrap();
    assert_eq!(batch.schema(), schema.arrow());
    assert_eq!(batch.column(1).as_primitive::<Int64Type>().null_count(), 1);
    assert_eq!(batch.column(4).as_primitive::<Decimal128Type>().null_count(), 1);
    assert_eq!(batch.column(6).as_primitive::<TimestampMicrosecondType>().null_count(), 1);
}
