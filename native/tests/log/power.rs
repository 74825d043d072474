//! Power loss: of what was not synced, any sectors and names are gone. What was acknowledged is there.

use std::sync::Arc;

use penstock_native::disk::{Crash, Disk, MemoryDisk};
use penstock_native::log::{Log, Settings, verify};

use crate::support::*;

#[derive(Default, Debug)]
struct Outcome {
    crashes: u64,
    acknowledged: u64,
    /// Acknowledged and not there, or the log does not open.
    lost: u64,
    /// Not acknowledged, and gone.
    dropped: u64,
    cut: u64,
    trace: u64,
}

/// Work, lose power, recover, and compare, several times on one disk.
fn run(seed: u64, sync: bool) -> Outcome {
    let chance = &mut Chance(seed);
    let mut outcome = Outcome::default();
    let mut disk = MemoryDisk::new();
    // What the next recovery must find first, and what it may find after that.
    let (mut kept, mut trimmed): (Vec<i64>, usize) = (Vec::new(), 0);
    let settings = Settings {
        segment_bytes: [4096, 8192, 32768][chance.below(3) as usize],
        compress_above: [64, 1000, usize::MAX][chance.below(3) as usize],
        retention_bytes: chance.one_in(3).then_some(3 * 8192),
        sync,
        ..small()
    };
    for _ in 0..1 + chance.below(5) {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let Ok((mut log, recovery)) = Log::open(shared.clone(), settings.clone(), NOW_US) else {
            outcome.lost += 1;
            break;
        };
        outcome.cut += u64::from(recovery.cut_bytes > 0);
        let (found, error) = try_read_ids(&shared, None);
        if error.is_some() || !verify(shared.clone()).unwrap().sound {
            outcome.lost += 1;
            break;
        }
        // Offsets tell what retention removed; ids count up from the first.
        trimmed = trimmed.max(log.next_offset("events") as usize - found.len());
        let expected: Vec<i64> = (trimmed as i64..(trimmed + found.len()) as i64).collect();
        assert_eq!(found, expected, "seed {seed}: neither gaps nor repeats");
        let there = trimmed + found.len();
        outcome.lost += (kept.len() as u64).saturating_sub(there as u64);
        let mut appended = there as i64;
        kept = (0..there as i64).collect();
        for _ in 0..chance.below(120) {
            match chance.below(12) {
                0..=6 => {
                    let rows = 1 + chance.below(8) as i64;
                    append(&mut log, "events", &(appended..appended + rows).collect::<Vec<_>>());
                    appended += rows;
                }
                7..=9 => {
                    log.sync().unwrap();
                    kept = (0..appended).collect();
                }
                10 => {
                    log.note("position/x", Some(&appended.to_string()));
                    let flush = log.begin_sync();
                    log.append(&[], NOW_US).unwrap();
                    log.finish_sync(flush.run().unwrap()).unwrap();
                    kept = (0..appended).collect();
                }
                _ => {
                    log.trim(NOW_US, log.durable()).unwrap();
                    trimmed =
                        trimmed.max(try_read_ids(&shared, None).0.first().map_or(0, |first| *first as usize));
                }
            }
        }
        outcome.crashes += 1;
        outcome.acknowledged += kept.len() as u64;
        outcome.dropped += appended as u64 - kept.len() as u64;
        let crash = [Crash::Random, Crash::Random, Crash::DropAll, Crash::KeepAll][chance.below(4) as usize];
        disk = disk.crash(chance.next(), crash);
        outcome.trace ^= chance.next().rotate_left(7) ^ appended as u64 ^ log.end().checksum as u64;
    }
    outcome
}

#[test]
fn test_nothing_acknowledged_is_lost_with_the_power() {
    let mut total = Outcome::default();
    for seed in 0..1500 {
        let outcome = run(seed, true);
        assert_eq!(outcome.lost, 0, "seed {seed}");
        total.crashes += outcome.crashes;
        total.acknowledged += outcome.acknowledged;
        total.dropped += outcome.dropped;
        total.cut += outcome.cut;
    }
    println!("{total:?}");
    assert!(total.dropped > 1000 && total.cut > 100, "the crashes took something: {total:?}");
}

#[test]
fn test_without_sync_acknowledged_events_are_lost_so_the_test_above_can_fail() {
    let lost: u64 = (0..200).map(|seed| run(seed, false).lost).sum();
    assert!(lost > 20, "lost {lost}");
}

#[test]
fn test_the_simulation_itself_is_deterministic() {
    for seed in 0..20 {
        assert_eq!(run(seed, true).trace, run(seed, true).trace, "seed {seed}");
    }
}
