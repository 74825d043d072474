use std::sync::Arc;

use penstock_native::disk::MemoryDisk;
use penstock_native::log::Log;

use crate::checks::{
    FRAME, HEADER, SEGMENT, SLOT, SLOT_PLACES, frames, log_settings, seal, seal_all, sound_log, write_log,
};
use crate::support::{Chance, NOW_US};
use crate::{checks, every_seed, mutate, sealed};

/// A segment of a few commits.
pub fn draw(chance: &mut Chance) -> Vec<u8> {
    write_log(chance).contents(SEGMENT).unwrap()
}

/// The two slots of the sound log.
pub fn draw_slots(_: &mut Chance) -> Vec<u8> {
    let bytes = sound_log().contents("log/durable").unwrap();
    SLOT_PLACES.into_iter().flat_map(|at| bytes[at..at + SLOT].to_vec()).collect()
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
        assert_eq!(sealed(&bytes, seal_all), bytes);
        change(&mut bytes, chance);
        checks::segment(&bytes);
    });
}

#[test]
fn test_fuzz_beside_changed_slots_a_log_is_refused_or_is_all_there() {
    let segment = sound_log().contents(SEGMENT).unwrap();
    assert!(checks::durable(&segment, &[]) && checks::durable(&segment, &draw_slots(&mut Chance(1))));
    every_seed(4_000, |chance| {
        let mut slots = draw_slots(chance);
        mutate(&mut slots, chance);
        checks::durable(&segment, &slots);
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
