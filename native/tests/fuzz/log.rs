use std::sync::Arc;

use penstock_native::disk::{Disk, MemoryDisk};
use penstock_native::log::{Log, Section};

use crate::checks::{FRAME, HEADER, SEGMENT, frames, log_settings, seal, seal_all};
use crate::support::{Chance, NOW_US};
use crate::{checks, every_seed, mutate, values};

/// A segment of a few commits.
pub fn draw(chance: &mut Chance) -> Vec<u8> {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let settings = log_settings([64, usize::MAX][chance.below(2) as usize]);
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
    memory.contents(SEGMENT).unwrap()
}

/// Change one frame's header or payload, keep its length, and seal it again; or the segment's header.
fn change(bytes: &mut [u8], chance: &mut Chance) {
    let frames = frames(bytes);
    let frame = frames.get(chance.below(frames.len() as u64 + 1) as usize).copied();
    match frame {
        Some((at, length)) => {
            let from = if chance.below(4) == 0 { at + 12 } else { at + FRAME };
            replace(&mut bytes[from..at + length], chance);
        }
        None => replace(&mut bytes[16..HEADER], chance),
    }
    // With the chain of those behind it, or without.
    if chance.below(2) == 0 { seal_all(bytes) } else { seal(bytes, frame) }
}

fn replace(bytes: &mut [u8], chance: &mut Chance) {
    let mut changed = bytes.to_vec();
    mutate(&mut changed, chance);
    changed.resize(bytes.len(), 0);
    bytes.copy_from_slice(&changed);
}

#[test]
fn test_fuzz_a_changed_segment_is_read_or_refused_with_the_place() {
    every_seed(4_000, |chance| {
        let mut bytes = draw(chance);
        change(&mut bytes, chance);
        checks::segment(&bytes);
    });
}

#[test]
fn a_segment_whose_header_says_what_cannot_be_is_refused() {
    for (place, impossible) in [(20, "more segments than a log can have"), (36, "epoch"), (48, "longer than")]
    {
        let mut bytes = draw(&mut Chance(1));
        bytes[place..place + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes[place + 4..place + 8].copy_from_slice(&u32::MAX.to_le_bytes());
        seal(&mut bytes, None);
        checks::segment(&bytes);
        let memory = MemoryDisk::new();
        memory.put(SEGMENT, &bytes);
        let error = Log::open(Arc::new(memory), log_settings(64), NOW_US).err().expect("it is refused");
        assert!(error.to_string().contains(impossible), "{error}");
    }
}
