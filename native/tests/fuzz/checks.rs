//! What must be so of any bytes, reader by reader: no panic; what is taken is sound, and is what a second reader finds.
//!
//! Where checksums guard bytes they are made right again first, so that what lies behind them is reached.

use std::collections::HashMap;
use std::sync::Arc;

use penstock_native::answer::write_row;
use penstock_native::conform::{Unknown, conform, keep_rows, read_ipc};
use penstock_native::decode::{ArrayCut, Decoder, Limits, content_equal, split_lines};
use penstock_native::disk::{Disk, MemoryDisk};
use penstock_native::log::{Log, Reader, Settings, newest_catalog, verify};
use penstock_native::schema::{Field, Schema, Type};
use penstock_native::windows::{Aggregate, Read, Store, StorePlan};

use serde_json::value::RawValue;

use crate::support::NOW_US;
use crate::values;

/// Bodies.
pub fn event_schema() -> Schema {
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

/// An event as JSON, with serde_json as the second reader.
pub fn json(body: &[u8]) {
    let schema = event_schema();
    let decoder = Decoder::new(&schema, 0, Limits::default());
    let decoded = decoder.decode(std::iter::once(body));
    assert_eq!(decoded.rows.len() + decoded.refused.len(), 1);
    if decoded.rows.is_empty() {
        let (_, refusal) = &decoded.refused[0];
        // A name that nobody knows is told, escaped, up to a bound.
        assert!(refusal.to_string().len() < 1000);
        return;
    }
    // Values as text: a decimal may have an exponent that no float has.
    let object: HashMap<String, Box<RawValue>> =
        serde_json::from_slice(body).expect("what was taken is a JSON object");
    assert!(object.keys().all(|name| schema.index(name).is_some()));
    let mut written = Vec::new();
    write_row(&mut written, &decoded.batch, &schema.fields, &[], 0);
    let again = decoder.decode(std::iter::once(&written[..]));
    assert!(content_equal(&decoded.batch, 0, &again.batch, 0), "{}", String::from_utf8_lossy(&written));
}

/// An array of events, cut so many bytes at a time.
pub fn array(body: &[u8], step: usize) {
    split_lines(body);
    let Ok(mut cut) = ArrayCut::new(body.to_vec()) else { return };
    let done = loop {
        match cut.advance(step) {
            Ok(true) => break true,
            Ok(false) => {}
            Err(_) => break false,
        }
    };
    let Ok(whole) = serde_json::from_slice::<Vec<serde_json::Value>>(body) else { return };
    assert!(done, "an array of JSON is cut");
    let (body, places) = cut.finish();
    let values: Vec<serde_json::Value> =
        places.iter().map(|place| serde_json::from_slice(&body[place.clone()]).unwrap()).collect();
    assert_eq!(values, whole);
}

/// An Arrow stream: what is read has the columns that it says, and no row that its bytes cannot hold.
pub fn arrow(body: &[u8]) {
    let schema = values::schema();
    let Ok(batches) = read_ipc(body) else { return };
    for batch in batches {
        assert!(batch.num_rows() <= 8 * body.len());
        // The columns' own promises: offsets that rise, texts that are UTF-8, nulls that are counted.
        for column in batch.columns() {
            column.to_data().validate_full().expect("what was read is sound");
        }
        let Ok((conformed, refused)) = conform(&batch, &schema, &Limits::default(), Unknown::Ignore) else {
            continue;
        };
        let kept = keep_rows(&conformed, &refused);
        assert_eq!(kept.num_rows() + refused.len(), batch.num_rows());
    }
}

// The log's files.

/// The first segment of every log.
pub const SEGMENT: &str = "log/0000000000000001.segment";
pub const HEADER: usize = 64;
pub const FRAME: usize = 52;
const MOST_BYTES: u64 = 1 << 20;

pub fn log_settings(compress_above: usize) -> Settings {
    Settings { segment_bytes: 64 << 10, compress_above, background: false, ..Settings::default() }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Where the frames begin, with their bytes.
pub fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let (mut found, mut at) = (Vec::new(), HEADER);
    while at + FRAME <= bytes.len() && &bytes[at..at + 4] == b"pcmt" {
        let length = (FRAME + u32_at(bytes, at + 8) as usize).next_multiple_of(8);
        if at + length > bytes.len() {
            break;
        }
        found.push((at, length));
        at += length;
    }
    found
}

/// Make the checksum of the segment's header, or of the frame at a place, right.
pub fn seal(bytes: &mut [u8], frame: Option<(usize, usize)>) {
    let (at, checksum) = match frame {
        Some((at, length)) => (at + 4, crc32c::crc32c_append(u32_at(bytes, 16), &bytes[at + 8..at + length])),
        None => (12, crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER])),
    };
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Make all of a segment's checksums right, and the chain of its frames.
pub fn seal_all(bytes: &mut [u8]) {
    if bytes.len() < HEADER {
        return;
    }
    seal(bytes, None);
    let mut previous = None;
    for frame in frames(bytes) {
        if let Some(previous) = previous {
            bytes[frame.0 + 40..frame.0 + 44].copy_from_slice(&u32::to_le_bytes(previous));
        }
        seal(bytes, Some(frame));
        previous = Some(u32_at(bytes, frame.0 + 4));
    }
}

/// A log of one segment: every reader ends, with rows or with the place that is wrong.
pub fn segment(bytes: &[u8]) {
    let memory = MemoryDisk::new();
    memory.put(SEGMENT, bytes);
    let disk: Arc<dyn Disk> = Arc::new(memory);
    let named = |error: penstock_native::error::Error| {
        let text = error.to_string();
        assert!(text.contains("log/") || text.contains("format version"), "{text}");
    };
    let _ = read_all(&disk).map_err(named);
    let _ = newest_catalog(disk.clone()).map_err(named);
    let _ = verify(disk.clone()).map_err(named);
    // A start makes the file as long as its header says, which for this disk is memory.
    let length = bytes.get(48..56).map(|length| u64::from_le_bytes(length.try_into().unwrap()));
    if length.is_none_or(|length| length <= MOST_BYTES) {
        let _ = Log::open(disk, log_settings(64), NOW_US).map_err(named);
    }
}

fn read_all(disk: &Arc<dyn Disk>) -> penstock_native::error::Result<()> {
    let mut reader = Reader::open(disk.clone(), None)?;
    while let Some(commit) = reader.next()? {
        for section in &commit.sections {
            let batch = section.batch()?;
            assert_eq!(batch.num_rows(), section.rows as usize);
            for column in batch.columns() {
                column.to_data().validate_full().expect("what was read is sound");
            }
        }
    }
    Ok(())
}

// The state in a snapshot.

pub fn store_plan() -> StorePlan {
    let read = |aggregate, column, length_us| {
        let (filter, delay_us, include_current) = (None, 0, true);
        Read { aggregate, column, filter, length_us, delay_us, include_current }
    };
    let columns = ["amount", "count", "mean", "shop", "online"].map(String::from);
    let types = [Type::Decimal(30, 2), Type::Int64, Type::Float64, Type::Text, Type::Bool];
    StorePlan {
        key: vec![Type::Text, Type::Int64],
        columns: columns.into_iter().zip(types).collect(),
        filters: vec!["a filter".into()],
        reads: vec![
            read(Aggregate::Sum, Some(0), Some(1000)),
            Read { filter: Some(0), ..read(Aggregate::Max, Some(1), Some(50)) },
            read(Aggregate::Std, Some(2), Some(1000)),
            read(Aggregate::NUnique, Some(3), Some(70)),
            read(Aggregate::Last, Some(4), Some(1000)),
        ],
    }
}

/// Make the checksum behind each section right.
pub fn seal_sections(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(length) = bytes.get(at..at + 8) {
        let length = u64::from_le_bytes(length.try_into().unwrap());
        let end = usize::try_from(length).ok().and_then(|length| (at + 8).checked_add(length));
        let Some(end) = end.filter(|end| *end <= bytes.len().saturating_sub(4)) else { return };
        let checksum = crc32c::crc32c(&bytes[at + 8..end]);
        bytes[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
        at = end + 4;
    }
}

/// A store is refused, or is one that saves as what loads as the same again.
pub fn store(bytes: &[u8]) {
    let Ok(store) = Store::load(store_plan(), &mut &bytes[..]) else { return };
    let saved = save(&store);
    let again = Store::load(store_plan(), &mut &saved[..]).expect("what was saved loads");
    assert!(saved == save(&again), "a store loads as another");
}

pub fn save(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.save(&mut bytes).expect("memory takes it");
    bytes
}
