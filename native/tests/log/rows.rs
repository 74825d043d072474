//! Every type goes through the log unchanged, whatever buffers it comes in.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use penstock_native::disk::{Disk, MemoryDisk};
use penstock_native::log::{Log, Reader, Section, Settings};
use penstock_native::schema::{Field, Schema, Type};

use crate::support::{Chance, NOW_US};
use crate::values::{batch, schema};

fn read_back(batches: &[RecordBatch], settings: &Settings) -> Vec<RecordBatch> {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let (mut log, _) = Log::open(disk.clone(), settings.clone(), NOW_US).unwrap();
    let id = log.define("events", &schema()).unwrap();
    for (index, batch) in batches.iter().enumerate() {
        let marks = (index % 2 == 0).then(|| (0..batch.num_rows()).map(|row| row as u8).collect());
        let section = Section { schema: id, origin: 7, before: -5, marks, batch: batch.clone() };
        log.append(&[section], NOW_US).unwrap();
        log.note("end", Some("of the commit before"));
        log.append(&[], NOW_US).unwrap();
    }
    log.sync().unwrap();
    let mut reader = Reader::open(disk, None).unwrap();
    let mut found = Vec::new();
    while let Some(commit) = reader.next().unwrap() {
        for section in commit.sections {
            assert_eq!((section.origin, section.before, &*section.topic), (7, -5, "events"));
            let marks =
                (found.len() % 2 == 0 && section.rows > 0).then(|| (0..section.rows).map(|row| row as u8));
            assert_eq!(section.marks.as_deref().map(<[u8]>::to_vec), marks.map(Iterator::collect));
            found.push(section.batch().unwrap());
        }
    }
    found
}

#[test]
fn test_every_type_is_read_as_it_was_written_also_sliced_and_empty() {
    for seed in 0..40 {
        let chance = &mut Chance(seed);
        let compress_above = if seed % 2 == 0 { 100 } else { usize::MAX };
        let mut batches = Vec::new();
        for _ in 0..12 {
            let whole = batch([0, 1, 7, 8, 9, 64, 100, 300][chance.below(8) as usize], chance);
            let start = chance.below(whole.num_rows() as u64 + 1) as usize;
            let rows = chance.below((whole.num_rows() - start) as u64 + 1) as usize;
            batches.push(whole.slice(start, rows));
            batches.push(whole);
        }
        let settings =
            Settings { segment_bytes: 256 << 10, compress_above, background: false, ..Settings::default() };
        assert_eq!(read_back(&batches, &settings), batches, "seed {seed}");
    }
}

#[test]
fn test_equal_rows_are_equal_bytes_whatever_they_were_sliced_from() {
    let chance = &mut Chance(3);
    let whole = batch(100, chance);
    let bytes = |batch: RecordBatch| {
        let disk = MemoryDisk::new();
        let (mut log, _) = Log::open(
            Arc::new(disk.clone()),
            Settings { background: false, segment_bytes: 65536, ..Settings::default() },
            NOW_US,
        )
        .unwrap();
        let schema = log.define("events", &schema()).unwrap();
        log.append(&[Section { schema, origin: 0, before: 0, marks: None, batch }], NOW_US).unwrap();
        disk.contents("log/0000000000000001.segment").unwrap()
    };
    for (start, rows) in [(0, 13), (3, 13), (8, 16), (50, 50)] {
        let sliced = whole.slice(start, rows);
        let indices = arrow_array::UInt32Array::from_iter_values(start as u32..(start + rows) as u32);
        let columns = sliced.columns().iter().zip(whole.columns());
        let copied =
            columns.map(|(_, column)| arrow_select::take::take(column, &indices, None).unwrap()).collect();
        let copied = RecordBatch::try_new(sliced.schema(), copied).unwrap();
        assert_eq!(copied, sliced);
        assert!(bytes(copied) == bytes(sliced), "rows {start} to {}", start + rows);
    }
}

#[test]
fn test_a_null_where_none_may_be_is_refused() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let (mut log, _) =
        Log::open(disk, Settings { background: false, segment_bytes: 65536, ..Settings::default() }, NOW_US)
            .unwrap();
    let fields = |optional| Schema { fields: vec![Field { name: "a".into(), kind: Type::Int64, optional }] };
    let strict = log.define("strict", &fields(false)).unwrap();
    let column: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let batch = RecordBatch::try_new(fields(true).arrow(), vec![column]).unwrap();
    let section = |schema, batch| Section { schema, origin: 0, before: 0, marks: None, batch };
    let error = log.append(&[section(strict, batch.clone())], NOW_US).unwrap_err().to_string();
    assert!(error.contains("\"a\" is not optional"), "{error}");
    // The null is outside of the slice.
    log.append(&[section(strict, batch.slice(0, 1))], NOW_US).unwrap();
}

#[test]
fn test_a_lone_event_costs_about_what_its_json_does() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let (mut log, _) =
        Log::open(disk, Settings { background: false, segment_bytes: 65536, ..Settings::default() }, NOW_US)
            .unwrap();
    let payments = crate::speed::payments_schema();
    let schema = log.define("payments", &payments).unwrap();
    let section =
        |rows| Section { schema, origin: 0, before: 0, marks: None, batch: crate::speed::payments(rows) };
    log.append(&[section(1)], NOW_US).unwrap();
    let before = log.end().offset;
    log.append(&[section(1)], NOW_US).unwrap();
    // The distance of two frames is the length of the first, and both are of one event.
    let first = log.end().offset - before;
    log.append(&[section(1)], NOW_US).unwrap();
    let bytes = log.end().offset - before - first;
    assert!(bytes <= 300, "{bytes} bytes");
}
