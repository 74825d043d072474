//! Arrow from elsewhere: what becomes a schema's columns, what is refused by row and what is refused whole.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::*;
use arrow_buffer::i256;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_schema::{DataType, Field as ArrowField, Schema as ArrowSchema, TimeUnit};
use penstock_native::answer::write_value;
use penstock_native::conform::{Unknown, conform, conform_cells, keep_rows, read_ipc};
use penstock_native::decode::Limits;
use penstock_native::schema::{Field, Schema, Type};

fn field(name: &str, kind: Type, optional: bool) -> Field {
    Field { name: name.to_owned(), kind, optional }
}

fn one(kind: Type, optional: bool) -> Schema {
    Schema { fields: vec![field("value", kind, optional)] }
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<ArrowField> = columns
        .iter()
        .map(|(name, column)| ArrowField::new(*name, column.data_type().clone(), true))
        .collect();
    let rows = columns.first().map_or(0, |(_, column)| column.len());
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new_with_options(Arc::new(ArrowSchema::new(fields)), columns, &options).unwrap()
}

/// Each row as JSON text, or the words it is refused with.
fn rows(column: ArrayRef, kind: Type) -> Vec<String> {
    let schema = one(kind, true);
    let given = batch(vec![("value", column)]);
    let (batch, refused) = conform(&given, &schema, &Limits::default(), Unknown::Refuse).unwrap();
    assert_eq!(batch.schema(), schema.arrow());
    assert!(refused.is_sorted_by(|a, b| a.0 < b.0));
    let mut rows: Vec<String> = (0..batch.num_rows())
        .map(|row| {
            let mut out = Vec::new();
            write_value(&mut out, batch.column(0), kind, row);
            String::from_utf8(out).unwrap()
        })
        .collect();
    for (row, refusal) in &refused {
        assert_eq!(refusal.field.as_deref(), Some("value"));
        rows[*row as usize] = refusal.given.to_string();
    }
    // A slice gives what its rows give.
    if given.num_rows() > 2 {
        let (sliced, _) =
            conform(&given.slice(1, given.num_rows() - 2), &schema, &Limits::default(), Unknown::Refuse)
                .unwrap();
        for row in
            (1..given.num_rows() - 1).filter(|row| refused.iter().all(|(bad, _)| *bad as usize != *row))
        {
            let mut out = Vec::new();
            write_value(&mut out, sliced.column(0), kind, row - 1);
            assert_eq!(String::from_utf8(out).unwrap(), rows[row]);
        }
    }
    rows
}

fn error(column: ArrayRef, kind: Type) -> String {
    conform(&batch(vec![("value", column)]), &one(kind, true), &Limits::default(), Unknown::Refuse)
        .unwrap_err()
        .to_string()
}

fn array<A: Array + 'static>(array: A) -> ArrayRef {
    Arc::new(array)
}

#[test]
fn every_integer_type_widens_to_int64() {
    assert_eq!(
        rows(array(Int8Array::from(vec![Some(-128), None, Some(127)])), Type::Int64),
        ["-128", "null", "127"]
    );
    assert_eq!(rows(array(Int16Array::from(vec![i16::MIN, i16::MAX])), Type::Int64), ["-32768", "32767"]);
    assert_eq!(
        rows(array(Int32Array::from(vec![i32::MIN, i32::MAX])), Type::Int64),
        ["-2147483648", "2147483647"]
    );
    assert_eq!(
        rows(array(Int64Array::from(vec![i64::MIN, i64::MAX])), Type::Int64),
        ["-9223372036854775808", "9223372036854775807"]
    );
    assert_eq!(rows(array(UInt8Array::from(vec![0, 255])), Type::Int64), ["0", "255"]);
    assert_eq!(rows(array(UInt16Array::from(vec![65535])), Type::Int64), ["65535"]);
    assert_eq!(rows(array(UInt32Array::from(vec![u32::MAX])), Type::Int64), ["4294967295"]);
    assert_eq!(
        rows(array(UInt64Array::from(vec![Some(1), Some(1 << 63), None, Some((1 << 63) - 1)])), Type::Int64),
        ["1", "an integer beyond 64 bits", "null", "9223372036854775807"]
    );
}

#[test]
fn floats_lose_negative_zero_and_are_refused_where_they_are_not_numbers() {
    let bad = "NaN or an infinity";
    assert_eq!(
        rows(
            array(Float64Array::from(vec![Some(0.1), Some(-0.0), None, Some(f64::NAN), Some(f64::INFINITY)])),
            Type::Float64
        ),
        ["0.1", "0.0", "null", bad, bad]
    );
    assert_eq!(
        rows(array(Float32Array::from(vec![0.5, -0.0, f32::NEG_INFINITY, f32::MAX])), Type::Float64),
        ["0.5", "0.0", bad, "3.4028234663852886e+38"]
    );
    let untouched = array(Float64Array::from(vec![1.5, 0.0]));
    assert_eq!(rows(untouched, Type::Float64), ["1.5", "0.0"]);
    assert_eq!(rows(array(Int32Array::from(vec![-3])), Type::Float64), ["-3.0"]);
    let inexact = "an integer that 64-bit floating point cannot hold exactly";
    assert_eq!(
        rows(array(Int64Array::from(vec![1 << 53, (1 << 53) + 1, i64::MAX, i64::MIN])), Type::Float64),
        ["9007199254740992.0", inexact, inexact, "-9.223372036854776e+18"]
    );
    assert_eq!(rows(array(UInt64Array::from(vec![u64::MAX, 7])), Type::Float64), [inexact, "7.0"]);
}

#[test]
fn what_lies_under_a_null_refuses_nothing() {
    let hidden = Float64Array::new(vec![f64::NAN, 1.0].into(), Some(vec![false, true].into()));
    assert_eq!(rows(array(hidden.clone()), Type::Float64), ["null", "1.0"]);
    assert_eq!(rows(array(hidden), Type::Decimal(5, 1)), ["null", "\"1.0\""]);
    let hidden = TimestampNanosecondArray::new(vec![1, 1_000].into(), Some(vec![false, true].into()));
    assert_eq!(rows(array(hidden), Type::Timestamp), ["null", "\"1970-01-01T00:00:00.000001Z\""]);
}

#[test]
fn doubles_become_decimals_by_rounding_within_a_billionth() {
    let kind = Type::Decimal(12, 2);
    let far = "a number with more than 2 decimal places";
    let cases: [(f64, &str); 19] = [
        (0.1 + 0.2, "\"0.30\""),
        (-0.0, "\"0.00\""),
        (-1.005, far),
        (1.005, far),
        (57.16, "\"57.16\""),
        (1.000_000_000_9, "\"1.00\""),
        (1.000_000_001_1, far),
        (0.999_999_999_1, "\"1.00\""),
        (0.004_999, far),
        (123_456_789.12, "\"123456789.12\""),
        (9_999_999_999.99, "\"9999999999.99\""),
        (-9_999_999_999.99, "\"-9999999999.99\""),
        (10_000_000_000.0, "a number with 11 digits before the decimal point"),
        (9_999_999_999.999_999, far),
        (1e300, "a number with 301 digits before the decimal point"),
        (5e-324, "\"0.00\""),
        (f64::NAN, "NaN or an infinity"),
        (f64::INFINITY, "NaN or an infinity"),
        (f64::NEG_INFINITY, "NaN or an infinity"),
    ];
    let given = Float64Array::from(cases.map(|(value, _)| value).to_vec());
    assert_eq!(rows(array(given), kind), cases.map(|(_, expected)| expected));
    let wide = Float64Array::from(vec![0.1, 1e17, 2_251_799_813_685_249.5, 1.0 / 3.0, 1e20]);
    assert_eq!(
        rows(array(wide.clone()), Type::Decimal(38, 18)),
        [
            "\"0.100000000000000000\"",
            "\"100000000000000000.000000000000000000\"",
            "\"2251799813685249.500000000000000000\"",
            "\"0.333333333333333300\"",
            "a number with 21 digits before the decimal point",
        ]
    );
    assert_eq!(
        rows(array(wide.slice(1, 2)), Type::Decimal(20, 0)),
        ["\"100000000000000000\"", "a number with more than 0 decimal places"]
    );
    assert!(
        error(array(Float32Array::from(vec![1.0])), kind)
            .contains("holds Float32, which cannot become decimal(12, 2)")
    );
}

#[test]
fn a_double_made_from_a_decimals_text_becomes_that_decimal() {
    let mut state = 5_u64;
    for scale in 0..=15_i8 {
        let unscaled: Vec<i64> = (0..2_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state as i64 >> 1) % 10_i64.pow(1 + (state >> 40) as u32 % 15)
            })
            .collect();
        let doubles = unscaled.iter().map(|unscaled| format!("{unscaled}e-{scale}").parse::<f64>().unwrap());
        let given = batch(vec![("value", array(Float64Array::from_iter_values(doubles)))]);
        let (batch, refused) =
            conform(&given, &one(Type::Decimal(20, scale), false), &Limits::default(), Unknown::Refuse)
                .unwrap();
        assert!(refused.is_empty(), "scale {scale}: {}", refused[0].1);
        let values = batch.column(0).as_primitive::<Decimal128Type>();
        assert!(values.values().iter().zip(&unscaled).all(|(a, b)| *a == i128::from(*b)), "scale {scale}");
    }
}

#[test]
fn decimals_of_another_scale_are_taken_where_they_are_exact() {
    let kind = Type::Decimal(5, 2);
    let far = "a number with more than 2 decimal places";
    let large = "a number with too many digits before the decimal point";
    let decimal = |values: Vec<i128>, precision, scale| {
        array(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
    };
    assert_eq!(
        rows(decimal(vec![12345, 99999, -99999], 5, 2), kind),
        ["\"123.45\"", "\"999.99\"", "\"-999.99\""]
    );
    assert_eq!(rows(decimal(vec![1, 100_000, 0], 10, 2), kind), ["\"0.01\"", large, "\"0.00\""]);
    assert_eq!(rows(decimal(vec![999, 1000, -3], 10, 0), kind), ["\"999.00\"", large, "\"-3.00\""]);
    assert_eq!(rows(decimal(vec![1_2300, 1_2301, -5000], 10, 4), kind), ["\"1.23\"", far, "\"-0.50\""]);
    assert_eq!(rows(decimal(vec![3, 0, 10], 3, -2), kind), ["\"300.00\"", "\"0.00\"", large]);
    assert_eq!(
        rows(decimal(vec![0, 1], 38, 38), Type::Decimal(5, 0)),
        ["\"0\"", "a number with more than 0 decimal places"]
    );
    assert_eq!(
        rows(decimal(vec![0, 1], 38, 0), Type::Decimal(38, 38)),
        ["\"0.00000000000000000000000000000000000000\"", large]
    );
    let small = array(Decimal32Array::from(vec![12345]).with_precision_and_scale(5, 3).unwrap());
    assert_eq!(rows(small, Type::Decimal(9, 4)), ["\"12.3450\""]);
    let small = array(Decimal64Array::from(vec![12345]).with_precision_and_scale(5, 3).unwrap());
    assert_eq!(rows(small, kind), [far]);
    let ten = |power| i256::from_i128(10).wrapping_pow(power);
    let wide = Decimal256Array::from(vec![ten(70), ten(68).wrapping_neg(), ten(67), ten(73), i256::ZERO]);
    let wide = array(wide.with_precision_and_scale(76, 70).unwrap());
    assert_eq!(rows(wide, kind), ["\"1.00\"", "\"-0.01\"", far, large, "\"0.00\""]);
}

#[test]
fn integers_and_text_become_decimals() {
    let kind = Type::Decimal(5, 2);
    let large = "a number with too many digits before the decimal point";
    assert_eq!(rows(array(Int8Array::from(vec![Some(-5), None])), kind), ["\"-5.00\"", "null"]);
    assert_eq!(rows(array(Int64Array::from(vec![999, 1000, i64::MIN])), kind), ["\"999.00\"", large, large]);
    assert_eq!(
        rows(array(UInt64Array::from(vec![u64::MAX])), Type::Decimal(20, 0)),
        ["\"18446744073709551615\""]
    );
    assert_eq!(
        rows(
            array(StringArray::from(vec![
                Some("1.5"),
                None,
                Some("1.505"),
                Some("15e-1"),
                Some("1,5"),
                Some("1000")
            ])),
            kind
        ),
        [
            "\"1.50\"",
            "null",
            "a number with 3 decimal places",
            "\"1.50\"",
            "text that is not a number",
            "a number with 4 digits before the decimal point"
        ]
    );
    assert_eq!(rows(array(LargeStringArray::from(vec!["7"])), kind), ["\"7.00\""]);
}

#[test]
fn times_of_any_unit_become_microseconds_in_utc() {
    let outside = "a time outside the years 1 to 9999 in UTC";
    let second = TimestampSecondArray::from(vec![
        Some(-1),
        None,
        Some(253_402_300_799),
        Some(253_402_300_800),
        Some(i64::MAX),
    ]);
    assert_eq!(
        rows(array(second), Type::Timestamp),
        ["\"1969-12-31T23:59:59Z\"", "null", "\"9999-12-31T23:59:59Z\"", outside, outside]
    );
    let milli = TimestampMillisecondArray::from(vec![1, -62_135_596_800_000, -62_135_596_800_001])
        .with_timezone("Europe/Berlin");
    assert_eq!(
        rows(array(milli), Type::Timestamp),
        ["\"1970-01-01T00:00:00.001000Z\"", "\"0001-01-01T00:00:00Z\"", outside]
    );
    let micro = TimestampMicrosecondArray::from(vec![1, i64::MAX, i64::MIN]).with_timezone("+02:00");
    assert_eq!(rows(array(micro), Type::Timestamp), ["\"1970-01-01T00:00:00.000001Z\"", outside, outside]);
    let nano = TimestampNanosecondArray::from(vec![1_000, 1_001, -1_000, -1]);
    let finer = "a time finer than microseconds";
    assert_eq!(
        rows(array(nano), Type::Timestamp),
        ["\"1970-01-01T00:00:00.000001Z\"", finer, "\"1969-12-31T23:59:59.999999Z\"", finer]
    );
    assert_eq!(
        rows(array(Date32Array::from(vec![0, 19_000, i32::MAX])), Type::Timestamp),
        ["\"1970-01-01T00:00:00Z\"", "\"2022-01-08T00:00:00Z\"", outside]
    );
    assert_eq!(
        rows(array(Date64Array::from(vec![86_400_000])), Type::Timestamp),
        ["\"1970-01-02T00:00:00Z\""]
    );
    assert!(
        error(array(StringArray::from(vec!["2026-11-01"])), Type::Timestamp)
            .contains("cannot become timestamp")
    );
}

#[test]
fn text_comes_from_every_layout_of_text() {
    let values =
        vec![Some("a"), None, Some("Köln"), Some("a text longer than a view holds inline"), Some("")];
    let expected = ["\"a\"", "null", "\"Köln\"", "\"a text longer than a view holds inline\"", "\"\""];
    assert_eq!(rows(array(StringArray::from(values.clone())), Type::Text), expected);
    assert_eq!(rows(array(LargeStringArray::from(values.clone())), Type::Text), expected);
    assert_eq!(rows(array(StringViewArray::from(values.clone())), Type::Text), expected);
    assert_eq!(
        rows(array(values.iter().copied().collect::<DictionaryArray<Int8Type>>()), Type::Text),
        expected
    );
    assert_eq!(
        rows(array(values.into_iter().collect::<DictionaryArray<UInt32Type>>()), Type::Text),
        expected
    );
    let nothing = DictionaryArray::<Int8Type>::new(
        vec![None, None].into(),
        array(StringArray::from(Vec::<&str>::new())),
    );
    assert_eq!(rows(array(nothing), Type::Text), ["null", "null"]);
    let numbers = DictionaryArray::<Int8Type>::new(
        vec![Some(1), None, Some(0)].into(),
        array(Int32Array::from(vec![7, 8])),
    );
    assert_eq!(rows(array(numbers), Type::Int64), ["8", "null", "7"]);
    assert!(
        error(array(BinaryArray::from_vec(vec![b"a"])), Type::Text)
            .contains("holds Binary, which cannot become text")
    );
}

#[test]
fn a_dictionary_or_view_cannot_blow_a_small_body_up() {
    let megabyte = "x".repeat(1 << 20);
    let keys = Int16Array::from(vec![0; 300]);
    let dictionary = DictionaryArray::new(keys, array(StringArray::from(vec![megabyte.as_str()])));
    let words = "column \"value\" holds more text than one batch can\nhint: send smaller batches";
    assert_eq!(error(array(dictionary), Type::Text), words);
    let view = StringViewArray::from(vec![megabyte.as_str()]);
    let views = StringViewArray::new(vec![view.views()[0]; 300].into(), view.data_buffers().to_vec(), None);
    assert_eq!(error(array(views), Type::Text), words);
}

#[test]
fn booleans_come_from_booleans_only() {
    assert_eq!(
        rows(array(BooleanArray::from(vec![Some(true), None, Some(false)])), Type::Bool),
        ["true", "null", "false"]
    );
    assert!(
        error(array(Int8Array::from(vec![1])), Type::Bool).contains("holds Int8, which cannot become bool")
    );
}

#[test]
fn columns_are_found_by_name_and_the_missing_are_null_or_an_error() {
    let schema = Schema {
        fields: vec![
            field("id", Type::Int64, false),
            field("card", Type::Text, true),
            field("at", Type::Timestamp, true),
        ],
    };
    let id = array(Int32Array::from(vec![1, 2]));
    let other = array(Int32Array::from(vec![3, 4]));
    let nulls = array(NullArray::new(2));
    let (found, refused) = conform(
        &batch(vec![("at", nulls.clone()), ("id", id.clone())]),
        &schema,
        &Limits::default(),
        Unknown::Refuse,
    )
    .unwrap();
    assert!(refused.is_empty());
    assert_eq!(found.schema(), schema.arrow());
    assert_eq!((found.column(1).null_count(), found.column(2).null_count()), (2, 2));
    let unknown = batch(vec![("id", id.clone()), ("extra", other.clone())]);
    assert_eq!(
        conform(&unknown, &schema, &Limits::default(), Unknown::Refuse).unwrap_err().to_string(),
        "column \"extra\" is not in the schema\nhint: the schema has id, card, at"
    );
    assert_eq!(conform(&unknown, &schema, &Limits::default(), Unknown::Ignore).unwrap().0.num_columns(), 3);
    let missing = "there is no column \"id\", and the schema requires it (int64)";
    assert_eq!(
        conform(&batch(vec![("card", nulls.clone())]), &schema, &Limits::default(), Unknown::Refuse)
            .unwrap_err()
            .to_string(),
        missing
    );
    assert_eq!(
        conform(&batch(vec![("id", nulls)]), &schema, &Limits::default(), Unknown::Refuse)
            .unwrap_err()
            .to_string(),
        "column \"id\" has only nulls, and the schema requires it (int64)"
    );
    let twice =
        conform(&batch(vec![("id", id), ("id", other)]), &schema, &Limits::default(), Unknown::Ignore)
            .unwrap_err();
    assert_eq!(twice.to_string(), "column \"id\" is there twice");
    let empty = conform(
        &batch(vec![("id", array(Int32Array::from(Vec::<i32>::new())))]),
        &schema,
        &Limits::default(),
        Unknown::Refuse,
    );
    assert_eq!(empty.unwrap().0.num_rows(), 0);
}

#[test]
fn refused_rows_are_named_once_and_taken_out() {
    let schema = Schema {
        fields: vec![
            field("id", Type::Int64, false),
            field("card", Type::Text, false),
            field("amount", Type::Decimal(5, 2), false),
            field("online", Type::Bool, false),
        ],
    };
    let given = batch(vec![
        ("amount", array(Float64Array::from(vec![Some(1.005), Some(2.5), None, Some(3.5), Some(4.5)]))),
        ("card", array(StringArray::from(vec![Some("a"), Some("b"), None, None, Some("e")]))),
        ("id", array(UInt64Array::from(vec![Some(0), Some(1), Some(2), Some(3), None]))),
        ("online", array(BooleanArray::from(vec![Some(true), Some(true), None, None, Some(false)]))),
    ]);
    let (batch, refused) = conform(&given, &schema, &Limits::default(), Unknown::Refuse).unwrap();
    let words: Vec<String> = refused.iter().map(|(row, refusal)| format!("{row} {refusal}")).collect();
    assert_eq!(
        words,
        [
            "0 field \"amount\": given a number with more than 2 decimal places, wanted decimal(5, 2)",
            "2 field \"card\": given null, wanted text",
            "3 field \"card\": given null, wanted text",
            "4 field \"id\": given null, wanted int64",
        ]
    );
    let kept = keep_rows(&batch, &refused);
    assert_eq!(kept.num_rows(), 1);
    assert_eq!(kept.column(1).as_string::<i32>().value(0), "b");
    assert_eq!(keep_rows(&batch, &[]), batch);
}

#[test]
fn a_file_of_the_wrong_shape_is_one_error_and_not_a_million_refusals() {
    let given = batch(vec![("value", array(Float64Array::from(vec![f64::NAN; 1_000_000])))]);
    let error = conform(&given, &one(Type::Float64, true), &Limits::default(), Unknown::Refuse)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "more than 100000 values do not fit; the first, in row 0: field \"value\": given NaN or an infinity, wanted float64"
    );
    let given = batch(vec![("value", array(BooleanArray::from(vec![None; 1_000_000])))]);
    assert!(conform(&given, &one(Type::Bool, false), &Limits::default(), Unknown::Refuse).is_err());
}

fn stream(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new_with_options(&mut out, &batches[0].schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    drop(writer);
    out
}

fn sample() -> RecordBatch {
    batch(vec![
        ("id", array(Int32Array::from(vec![1, 2, 3]))),
        ("card", array(StringArray::from(vec![Some("a"), None, Some("c")]))),
        (
            "country",
            array(vec![Some("DE"), Some("DE"), None].into_iter().collect::<DictionaryArray<Int8Type>>()),
        ),
        ("city", array(StringViewArray::from(vec!["Köln", "a city whose name is long", "Ulm"]))),
        ("amount", array(Float64Array::from(vec![1.5, 2.5, 3.5]))),
        ("online", array(BooleanArray::from(vec![true, false, true]))),
    ])
}

#[test]
fn an_arrow_stream_is_read_as_it_was_written() {
    let batches = [sample(), sample().slice(1, 1)];
    assert_eq!(read_ipc(&stream(&batches, IpcWriteOptions::default())).unwrap(), batches);
    let none = stream(&[sample().slice(0, 0)], IpcWriteOptions::default());
    assert_eq!(read_ipc(&none).unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
}

#[test]
fn a_stream_cut_at_any_byte_is_refused() {
    let whole = stream(&[sample(), sample()], IpcWriteOptions::default());
    for length in 0..whole.len() {
        let error = read_ipc(&whole[..length]).expect_err(&format!("cut at {length}")).to_string();
        assert!(error.starts_with("the body is not a whole Arrow IPC stream: "), "{error}");
    }
    let longer = [whole.as_slice(), b"\0"].concat();
    assert_eq!(
        read_ipc(&longer).unwrap_err().to_string(),
        "the body is not a whole Arrow IPC stream: bytes follow its end marker"
    );
}

#[test]
fn no_changed_byte_makes_reading_or_conforming_panic() {
    let schema = Schema {
        fields: vec![
            field("id", Type::Int64, false),
            field("card", Type::Text, true),
            field("country", Type::Text, true),
            field("city", Type::Text, true),
            field("amount", Type::Decimal(12, 2), true),
            field("online", Type::Bool, true),
        ],
    };
    let whole = stream(&[sample()], IpcWriteOptions::default());
    let (mut read, mut refused) = (0, 0);
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, whole[at] ^ 0x01, whole[at] ^ 0x20] {
            let mut changed = whole.clone();
            changed[at] = value;
            let Ok(batches) = read_ipc(&changed) else {
                refused += 1;
                continue;
            };
            read += 1;
            for batch in batches {
                let _ = conform(&batch, &schema, &Limits::default(), Unknown::Ignore)
                    .map(|(batch, refused)| keep_rows(&batch, &refused));
            }
        }
    }
    assert!(read > 1_000 && refused > 1_000, "read {read}, refused {refused}");
}

#[test]
fn lengths_that_lie_are_refused_before_they_are_believed() {
    let refused = |body: &[u8]| read_ipc(body).unwrap_err().to_string();
    assert!(refused(b"").contains("it has no end marker"));
    assert!(refused(b"{\"id\":1}").contains("does not begin with FF FF FF FF"));
    assert!(refused(b"ARROW1\0\0").contains("does not begin with FF FF FF FF"));
    assert!(refused(&[0xff; 8]).contains("it has no end marker"));
    assert!(refused(&[[0xff; 4], [0xff, 0xff, 0xff, 0x7f]].concat()).contains("it has no end marker"));
    assert!(refused(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).contains("not a whole Arrow IPC stream"));
    let nulls = batch(vec![("value", array(NullArray::new(1_000_000_000)))]);
    let words = refused(&stream(&[nulls], IpcWriteOptions::default()));
    assert!(words.contains("a batch has more rows than its bytes can hold"), "{words}");
}

#[test]
fn a_compressed_stream_is_told_that_it_is() {
    for body in [
        include_bytes!("data/compressed-lz4.arrows").as_slice(),
        include_bytes!("data/compressed-zstd.arrows"),
    ] {
        let error = read_ipc(body).unwrap_err().to_string();
        assert_eq!(error, "the Arrow IPC stream is compressed\nhint: send it without compression");
    }
}

#[test]
fn nested_columns_are_named_and_refused() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
    let given = batch(vec![("value", array(list))]);
    let read = read_ipc(&stream(&[given], IpcWriteOptions::default())).unwrap();
    let error = conform(&read[0], &one(Type::Int64, true), &Limits::default(), Unknown::Refuse)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("column \"value\" holds List("), "{error}");
    assert_eq!(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), Type::Timestamp.arrow());
}

#[test]
fn a_cell_of_text_is_read_as_its_type_or_costs_its_row() {
    let read = |kind: Type, cells: Vec<Option<&str>>| {
        let text = batch(vec![("value", array(StringArray::from(cells)))]);
        let (read, refused) = conform_cells(&text, &one(kind, true)).unwrap();
        let rows = keep_rows(&read, &refused);
        (
            rows.column(0).clone(),
            refused.iter().map(|(row, refusal)| (*row, refusal.code)).collect::<Vec<_>>(),
        )
    };
    let (ints, refused) = read(Type::Int64, vec![Some(" 7 "), Some("1.5"), None, Some(""), Some("-0x1")]);
    assert_eq!(ints.as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(7), None, None]));
    assert_eq!(refused, [(1, "wrong_type"), (4, "wrong_type")]);
    let (floats, refused) =
        read(Type::Float64, vec![Some("-0.0"), Some("1e400"), Some("nan"), Some("2.5e3")]);
    assert_eq!(floats.as_primitive::<Float64Type>().values(), &[0.0, 2500.0]);
    assert!(floats.as_primitive::<Float64Type>().value(0).is_sign_positive());
    assert_eq!(refused, [(1, "out_of_range"), (2, "wrong_type")]);
    let (bools, refused) = read(Type::Bool, vec![Some("TRUE"), Some("0"), Some("yes"), Some("False")]);
    assert_eq!(bools.as_boolean(), &BooleanArray::from(vec![true, false, false]));
    assert_eq!(refused, [(2, "wrong_type")]);
    let times = vec![
        Some("1970-01-02"),
        Some("1970-01-01 00:00:01"),
        Some("1970-01-01T01:00:00-01:00"),
        Some("1970"),
    ];
    let (times, refused) = read(Type::Timestamp, times);
    let micros = times.as_primitive::<TimestampMicrosecondType>().values();
    assert_eq!(micros, &[86_400_000_000, 1_000_000, 7_200_000_000]);
    assert_eq!(refused, [(3, "wrong_type")]);
    let (texts, refused) = read(Type::Text, vec![Some(" NA"), Some(""), None]);
    assert_eq!(texts.as_string::<i32>(), &StringArray::from(vec![Some(" NA"), Some(""), None]));
    assert!(refused.is_empty());
}
