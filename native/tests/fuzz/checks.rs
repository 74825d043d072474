//! What must be so of any bytes, reader by reader: no panic; what is taken is sound, and is what a second reader finds.
//!
//! Where checksums guard bytes they are made right again first, so that what lies behind them is reached.

use std::collections::HashMap;
use std::sync::Arc;

use penstock_native::answer::write_row;
use penstock_native::conform::{Unknown, conform, keep_rows, read_ipc};
use penstock_native::decode::{ArrayCut, Decoder, Limits, content_equal, split_lines};
use penstock_native::disk::{Disk, MemoryDisk};
use penstock_native::error::Error;
use penstock_native::ids::{self, Ids};
use penstock_native::log::{Log, Reader, Section, Settings, newest_catalog, verify};
use penstock_native::schema::{Field, Schema, Type};
use penstock_native::snapshot;
use penstock_native::windows::{Aggregate, Read, Store, StorePlan};

use serde_json::value::RawValue;

use crate::support::{Chance, NOW_US};
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

/// Three with events, and one of each time that the log was opened.
const COMMITS: usize = 5;

/// A log of a few commits, in one segment.
pub fn write_log(chance: &mut Chance) -> MemoryDisk {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let settings = log_settings([64, usize::MAX][chance.below(2) as usize]);
    let (mut log, _) = Log::open(disk, settings, NOW_US).unwrap();
    for topic in ["one", "two", "one"] {
        let schema = log.define(topic, &values::schema()).unwrap();
        let batch = values::batch(1 + chance.below(9) as usize, chance);
        let marks = (chance.below(2) == 0).then(|| vec![1; batch.num_rows()]);
        log.note_position("reader", topic, 0);
        log.append(&[Section { schema, origin: 1, before: 0, marks, batch }], NOW_US).unwrap();
        log.sync().unwrap();
    }
    memory
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
    let named = |error: Error| {
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

/// Two slots that say how far the log was on disk, beside a sound log: it is refused, or all of it is there. Whether it
/// is there.
pub fn durable(segment: &[u8], slots: &[u8]) -> bool {
    let memory = MemoryDisk::new();
    memory.put(SEGMENT, segment);
    let mut bytes = vec![0; SLOT_PLACES[1] + SLOT];
    for (place, slot) in SLOT_PLACES.into_iter().zip(slots.chunks(SLOT)) {
        bytes[place..place + slot.len()].copy_from_slice(slot);
    }
    seal_slots(&mut bytes);
    memory.put("log/durable", &bytes);
    let disk: Arc<dyn Disk> = Arc::new(memory);
    let commits = Log::open(disk.clone(), log_settings(64), NOW_US).and_then(|_| read_all(&disk));
    match &commits {
        Ok(commits) => assert_eq!(*commits, COMMITS),
        Err(error) => assert!(matches!(error, Error::Damaged { .. }), "{error}"),
    }
    commits.is_ok()
}

/// The log that the slots are of.
pub fn sound_log() -> MemoryDisk {
    write_log(&mut Chance(1))
}

pub const SLOT: usize = 32;
pub const SLOT_PLACES: [usize; 2] = [0, 4096];

fn seal_slots(bytes: &mut [u8]) {
    for at in SLOT_PLACES {
        let checksum = crc32c::crc32c(&bytes[at + 8..at + SLOT]);
        bytes[at..at + 4].copy_from_slice(b"pdur");
        bytes[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// How many commits there are.
fn read_all(disk: &Arc<dyn Disk>) -> penstock_native::error::Result<usize> {
    let mut reader = Reader::open(disk.clone(), None)?;
    let mut commits = 0;
    while let Some(commit) = reader.next()? {
        commits += 1;
        for section in &commit.sections {
            let batch = section.batch()?;
            assert_eq!(batch.num_rows(), section.rows as usize);
            for column in batch.columns() {
                column.to_data().validate_full().expect("what was read is sound");
            }
        }
    }
    Ok(commits)
}

// Files of ids.

const BLOCK: usize = 4096;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Make the checksums right of the blocks, of what follows them, and of the header.
pub fn seal_ids(bytes: &mut [u8]) {
    if bytes.len() < BLOCK {
        return;
    }
    let blocks = u64_at(bytes, 48).div_ceil(292).min((bytes.len() / BLOCK - 1) as u64) as usize;
    let span: Vec<u8> = bytes[16..32].to_vec();
    for number in 0..blocks {
        let block = &mut bytes[(1 + number) * BLOCK..(2 + number) * BLOCK];
        let place = crc32c::crc32c_append(crc32c::crc32c(&span), &(number as u64).to_le_bytes());
        let checksum = crc32c::crc32c_append(place, &block[4..]);
        block[..4].copy_from_slice(&checksum.to_le_bytes());
    }
    let fences = (1 + blocks) * BLOCK;
    let filter = (fences + 8 * blocks).min(bytes.len());
    for (at, part) in [(64, fences..filter), (68, filter..bytes.len())] {
        let checksum = crc32c::crc32c(&bytes[part]);
        bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&bytes[..BLOCK - 4]);
    bytes[BLOCK - 4..BLOCK].copy_from_slice(&checksum.to_le_bytes());
}

/// A file of ids, under the name that its header says: it is done without, or every look-up ends. Whether all of it is sound.
pub fn ids_file(bytes: &[u8]) -> bool {
    let range = |at| bytes.get(at..at + 8).map_or(1, |_| u64_at(bytes, at));
    let memory = MemoryDisk::new();
    memory.put(&format!("ids/{:016x}-{:016x}.ids", range(16), range(24)), bytes);
    let disk: Arc<dyn Disk> = Arc::new(memory);
    let named = |error: &Error| assert!(error.to_string().contains("ids/"), "{error}");
    let damage = ids::verify(disk.as_ref()).expect("memory can be read").1;
    damage.iter().for_each(named);
    let settings = ids::Settings { memory_ids: 4, retain_us: 1, background: false };
    let ids = Ids::open(disk, settings).expect("memory can be read");
    ids.damage().iter().for_each(named);
    let first = bytes.get(BLOCK + 8..BLOCK + 16).map_or(0, |_| u64_at(bytes, BLOCK + 8));
    for hash in [0, first, first.wrapping_add(1), u64::MAX] {
        let _ = ids.find(hash, &mut Vec::new()).map_err(|error| named(&error));
    }
    damage.is_empty()
}

// Snapshots, and the state in them.

pub const SNAPSHOT: &str = "snapshots/0000000000000007.snapshot";

/// Make the checksum of the header right, and those of the stores' sections.
pub fn seal_snapshot(bytes: &mut [u8]) {
    let Some(length) = bytes.get(8..12).map(|_| u32_at(bytes, 8) as usize) else { return };
    let Some(mut at) = 12usize.checked_add(length).filter(|end| end + 4 <= bytes.len()) else { return };
    let checksum = crc32c::crc32c(&bytes[12..at]);
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    at += 4;
    while at + 8 <= bytes.len() {
        let end = usize::try_from(u64_at(bytes, at)).ok().and_then(|length| length.checked_add(at + 8));
        let Some(end) = end.filter(|end| *end <= bytes.len()) else { return };
        seal_sections(&mut bytes[at + 8..end]);
        at = end;
    }
}

/// A snapshot is refused with its name, or every store in it loads. Whether it is one.
pub fn snapshot_file(bytes: &[u8]) -> bool {
    let memory = MemoryDisk::new();
    memory.put(SNAPSHOT, bytes);
    let disk: Arc<dyn Disk> = Arc::new(memory);
    let verified = snapshot::verify(&disk, 7);
    if let Err(error) = &verified {
        assert!(error.to_string().contains(SNAPSHOT), "{error}");
    }
    verified.is_ok()
}

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
