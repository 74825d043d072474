//! How fast appends and reads are: `cargo test --release --test log -- --ignored --nocapture speed`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use penstock_native::disk::{Disk, RealDisk};
use penstock_native::log::{Log, Reader, Section, Settings};
use penstock_native::schema::{Field, Schema, Type};

use crate::support::{Chance, Folder, NOW_US};

/// Twelve columns, about 300 bytes as JSON.
pub fn payments_schema() -> Schema {
    let field = |name: &str, kind| Field { name: name.into(), kind, optional: name == "country" };
    Schema {
        fields: vec![
            field("payment_id", Type::Text),
            field("card", Type::Text),
            field("terminal", Type::Text),
            field("merchant", Type::Text),
            field("country", Type::Text),
            field("currency", Type::Text),
            field("amount", Type::Decimal(12, 2)),
            field("paid_at", Type::Timestamp),
            field("category", Type::Int64),
            field("latitude", Type::Float64),
            field("longitude", Type::Float64),
            field("contactless", Type::Bool),
        ],
    }
}

pub fn payments(rows: usize) -> RecordBatch {
    let mut chance = Chance(1);
    let mut numbers = |bound: u64| (0..rows).map(|_| chance.below(bound)).collect::<Vec<u64>>();
    let text = |values: Vec<u64>, prefix: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values.iter().map(|value| format!("{prefix}{value}"))))
    };
    let amounts = Decimal128Array::from_iter_values(numbers(100_000).into_iter().map(i128::from));
    let times = numbers(1_000_000).into_iter().map(|value| NOW_US + value as i64);
    let degrees =
        |values: Vec<u64>| Float64Array::from_iter_values(values.iter().map(|value| *value as f64 / 7e3));
    let columns: Vec<ArrayRef> = vec![
        text(numbers(1 << 60), "payment-"),
        text(numbers(50_000), "4000001234"),
        text(numbers(10_000), "terminal-"),
        text(numbers(3_000), "merchant-"),
        text(numbers(10), "D"),
        text(numbers(3), "EU"),
        Arc::new(amounts.with_precision_and_scale(12, 2).unwrap()),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(numbers(9999).into_iter().map(|value| value as i64))),
        Arc::new(degrees(numbers(600_000))),
        Arc::new(degrees(numbers(600_000))),
        Arc::new(BooleanArray::from_iter(numbers(2).into_iter().map(|value| Some(value == 1)))),
    ];
    RecordBatch::try_new(payments_schema().arrow(), columns).unwrap()
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    for compress_above in [256 << 10, 32 << 10] {
        for rows in [1, 100, 1000, 5000] {
            measure(rows, compress_above);
        }
    }
}

fn measure(rows: usize, compress_above: usize) {
    let folder = Folder::new();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(folder.path()));
    let settings = Settings { compress_above, ..Settings::default() };
    let (mut log, recovery) = Log::open(disk.clone(), settings, NOW_US).unwrap();
    let schema = log.define("payments", &payments_schema()).unwrap();
    let section = Section { schema, origin: 0, before: 0, marks: None, batch: payments(rows) };
    let commits = (1_000_000 / rows).min(3000);
    let (mut appends, mut processors, mut syncs) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    for _ in 0..commits {
        log.room(1 << 20).unwrap();
        let (before, processor) = (Instant::now(), processor_time());
        log.append(std::slice::from_ref(&section), NOW_US).unwrap();
        appends.push(before.elapsed());
        processors.push(processor_time() - processor);
        let before = Instant::now();
        log.sync().unwrap();
        syncs.push(before.elapsed());
    }
    let durable = start.elapsed();
    let full = disk.list("log").unwrap().iter().filter(|(name, _)| name.ends_with(".segment")).count() - 1;
    let bytes = (log.end().offset + full as u64 * (64 << 20)) as f64 / (commits * rows) as f64;
    drop(log);
    let start = Instant::now();
    drop(Log::open(disk.clone(), Settings::default(), NOW_US).unwrap());
    let opening = start.elapsed();
    let (start, processor) = (Instant::now(), processor_time());
    let mut reader = Reader::open(disk, None).unwrap();
    let mut read = 0;
    while let Some(commit) = reader.next().unwrap() {
        read += commit.sections.iter().map(|section| section.batch().unwrap().num_rows()).sum::<usize>();
    }
    let reading = start.elapsed();
    assert_eq!(read, commits * rows);
    let per_second = |time: Duration| read as f64 / time.as_secs_f64() / 1e6;
    println!(
        "{rows} rows a commit, compressed above {compress_above} bytes: {bytes:.0} bytes an event; append {:?} (p99 {:?}; by processor time {:?}), \
         sync {:?} (p99 {:?}, at start {} µs); {:.2} M/s durable, {:.2} M/s read ({:.2} M/s by processor time); \
         opened again in {opening:?}",
        quantile(&mut appends, 50),
        quantile(&mut appends, 99),
        quantile(&mut processors, 50),
        quantile(&mut syncs, 50),
        quantile(&mut syncs, 99),
        recovery.flush_us,
        per_second(durable),
        per_second(reading),
        per_second(processor_time() - processor),
    );
}

/// This thread's, which other work on the machine does not stretch.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[times.len() * percent / 100]
}
