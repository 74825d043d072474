//! How fast a file's columns become a schema's; run with `--ignored --nocapture`.

use std::hint::black_box;
use std::sync::Arc;

use arrow_array::*;
use penstock_native::conform::{Unknown, conform};
use penstock_native::decode::Limits;
use penstock_native::schema::{Field, Schema, Type};

/// The columns of the Fraud Detection Handbook's transactions.
fn transactions(rows: i32) -> RecordBatch {
    let ints = |step: i32| Int32Array::from_iter_values((0..rows).map(|i| i * step % 4_999));
    let times = TimestampMillisecondArray::from_iter_values(
        (0..rows).map(|i| 1_522_540_800_000 + i64::from(i) * 9_000),
    );
    let amounts = Float64Array::from_iter_values((0..rows).map(|i| f64::from(i * 31 % 20_000) / 100.0));
    let flags = |every| Int8Array::from_iter_values((0..rows).map(|i| i8::from(i % every == 0)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("TRANSACTION_ID", Arc::new(Int32Array::from_iter_values(0..rows))),
        ("TX_DATETIME", Arc::new(times)),
        ("CUSTOMER_ID", Arc::new(ints(7))),
        ("TERMINAL_ID", Arc::new(ints(13))),
        ("TX_AMOUNT", Arc::new(amounts)),
        ("TX_TIME_SECONDS", Arc::new(ints(9))),
        ("TX_TIME_DAYS", Arc::new(ints(1))),
        ("TX_FRAUD", Arc::new(flags(100))),
        ("TX_FRAUD_SCENARIO", Arc::new(flags(300))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[test]
#[ignore = "a measurement"]
fn measure_conforming() {
    let field = |name: &str, kind| Field { name: name.to_owned(), kind, optional: false };
    let mut fields = vec![field("TRANSACTION_ID", Type::Int64), field("TX_DATETIME", Type::Timestamp)];
    fields.extend(["CUSTOMER_ID", "TERMINAL_ID"].map(|name| field(name, Type::Int64)));
    fields.push(field("TX_AMOUNT", Type::Decimal(12, 2)));
    let rest = ["TX_TIME_SECONDS", "TX_TIME_DAYS", "TX_FRAUD", "TX_FRAUD_SCENARIO"];
    fields.extend(rest.map(|name| field(name, Type::Int64)));
    let schema = Schema { fields };
    for rows in [8_192, 65_536, 1_754_155] {
        let batch = transactions(rows);
        let mut times: Vec<f64> = (0..15)
            .map(|_| {
                let start = thread_ns();
                let (conformed, refused) =
                    black_box(conform(&batch, &schema, &Limits::default(), Unknown::Refuse)).unwrap();
                assert_eq!((conformed.num_rows(), refused.len()), (rows as usize, 0));
                thread_ns() - start
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!("{rows:>9} rows of 9 columns: {:.1} M rows/s", f64::from(rows) * 1e3 / times[7]);
    }
}

/// The thread's own time on a processor: a busy machine disturbs it less than the wall clock.
fn thread_ns() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
