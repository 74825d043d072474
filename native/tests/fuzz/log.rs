//! The log's files with their checksums made right again: a reader ends, with rows or with the place that is wrong.

use std::sync::Arc;

use penstock_native::disk::{Disk, MemoryDisk};
use penstock_native::log::{Log, Reader, Section, Settings, newest_catalog, verify};

use crate::support::{Chance, NOW_US};
use crate::{every_seed, mutate, values};

const HEADER: usize = 64;
const FRAME: usize = 52;

fn settings(compress_above: usize) -> Settings {
    Settings { segment_bytes: 64 << 10, compress_above, background: false, ..Settings::default() }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A segment of a few commits, and its name.
fn segment(chance: &mut Chance) -> (MemoryDisk, String) {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let settings = settings([64, usize::MAX][chance.below(2) as usize]);
    let (mut log, _) = Log::open(disk.clone(), settings, NOW_US).unwrap();
    for topic in ["one", "two", "one"] {
        let schema = log.define(topic, &values::schema()).unwrap();
        let batch = values::batch(1 + chance.below(9) as usize, chance);
        let marks = (chance.below(2) == 0).then(|| vec![1; batch.num_rows()]);
        log.note_position("reader", topic, 0);
        log.append(&[Section { schema, origin: 1, before: 0, marks, batch }], NOW_US).unwrap();
        log.sync().unwrap();
    }
    drop(log);
    let name =
        disk.list("log").unwrap().into_iter().map(|(name, _)| name).find(|name| name.ends_with(".segment"));
    (memory, format!("log/{}", name.unwrap()))
}

/// Where the frames begin, with their bytes.
fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let (mut found, mut at) = (Vec::new(), HEADER);
    while at + FRAME <= bytes.len() && &bytes[at..at + 4] == b"pcmt" {
        let length = (FRAME + u32_at(bytes, at + 8) as usize).next_multiple_of(8);
        found.push((at, length));
        at += length;
    }
    found
}

/// Change one frame's header or payload, keep its length, and seal it again; or the segment's header.
fn change(bytes: &mut [u8], chance: &mut Chance) {
    let frames = frames(bytes);
    let salt = u32_at(bytes, 16);
    let place = chance.below(frames.len() as u64 + 1) as usize;
    let Some(&(at, length)) = frames.get(place) else {
        replace(&mut bytes[16..HEADER], chance);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER]);
        return bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    };
    let from = if chance.below(4) == 0 { at + 12 } else { at + FRAME };
    replace(&mut bytes[from..at + length], chance);
    let checksum = crc32c::crc32c_append(salt, &bytes[at + 8..at + length]);
    bytes[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
}

fn replace(bytes: &mut [u8], chance: &mut Chance) {
    let mut changed = bytes.to_vec();
    mutate(&mut changed, chance);
    changed.resize(bytes.len(), 0);
    bytes.copy_from_slice(&changed);
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

#[test]
fn test_fuzz_a_changed_segment_is_read_or_refused_with_the_place() {
    every_seed(4_000, |chance| {
        let (memory, file) = segment(chance);
        let mut bytes = memory.contents(&file).unwrap();
        change(&mut bytes, chance);
        memory.put(&file, &bytes);
        let disk: Arc<dyn Disk> = Arc::new(memory);
        let named = |error: penstock_native::error::Error| {
            let text = error.to_string();
            assert!(text.contains("log/") || text.contains("format version"), "{text}");
        };
        let _ = read_all(&disk).map_err(named);
        let _ = newest_catalog(disk.clone()).map_err(named);
        let _ = verify(disk.clone()).map_err(named);
        // A start makes the file as long as its header says, which for this disk is memory.
        let length = u64::from_le_bytes(bytes[48..56].try_into().unwrap());
        if length <= 1 << 20 {
            let _ = Log::open(disk, settings(64), NOW_US).map_err(named);
        }
    });
}
