//! Bytes that nobody vouches for: valid ones, changed at random, through every reader that meets such bytes.
//!
//! A seed gives its case again: `PENSTOCK_FUZZ_SEED=17 make test-core TEST=fuzz`. `PENSTOCK_FUZZ_CASES` says how many
//! seeds each reader gets. `make fuzz` lets libFuzzer, which sees what is reached, look for bytes that fail the same
//! checks.

mod checks;
mod ids;
mod ipc;
mod json;
mod log;
mod store;
#[path = "../log/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "../log/values.rs"]
mod values;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use support::Chance;

/// Run a case for each seed, and name the seed of one that fails.
fn every_seed(cases: u64, case: impl Fn(&mut Chance)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seeds = match number("PENSTOCK_FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PENSTOCK_FUZZ_CASES").unwrap_or(cases),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&mut Chance(seed)))) {
            eprintln!("PENSTOCK_FUZZ_SEED={seed} fails");
            resume_unwind(panic);
        }
    }
}

/// What libFuzzer begins with: some bytes that are sound, by target.
#[test]
#[ignore = "make fuzz asks for it"]
fn write_corpus() {
    type Draw = fn(&mut Chance) -> Vec<u8>;
    let folder =
        std::path::PathBuf::from(std::env::var("PENSTOCK_CORPUS").expect("PENSTOCK_CORPUS=a folder"));
    let targets: [(&str, Draw); 8] = [
        ("json", json::draw),
        ("array", json::draw_array),
        ("arrow", ipc::draw),
        ("segment", log::draw),
        ("durable", log::draw_slots),
        ("ids", ids::draw),
        ("snapshot", store::draw_snapshot),
        ("store", store::draw),
    ];
    for (target, draw) in targets {
        std::fs::create_dir_all(folder.join(target)).unwrap();
        for seed in 0..40 {
            std::fs::write(folder.join(target).join(format!("sound-{seed}")), draw(&mut Chance(seed)))
                .unwrap();
        }
    }
}

/// With its checksums made right: of sound bytes nothing changes.
fn sealed(bytes: &[u8], seal: fn(&mut [u8])) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    sealed
}

/// A few changes: a byte, a bit, an extreme number, a piece gone, doubled or moved.
fn mutate(bytes: &mut Vec<u8>, chance: &mut Chance) {
    for _ in 0..=chance.below(4) {
        let place = |chance: &mut Chance, bytes: &[u8]| chance.below(bytes.len() as u64 + 1) as usize;
        let (at, length) = (place(chance, bytes), chance.below(12) as usize);
        let end = (at + length).min(bytes.len());
        match chance.below(7) {
            0 if at < bytes.len() => bytes[at] = chance.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            2 if at + 8 <= bytes.len() => {
                let extreme = [0, 1, -1, i64::MAX, i64::MIN, i64::from(i32::MAX), 1 << 32, 255];
                let number = extreme[chance.below(8) as usize].to_le_bytes();
                let width = 1 << chance.below(4);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = place(chance, bytes);
                bytes.splice(to..to, piece);
            }
            5 => bytes.insert(at, b"{}[]\",:\\u0e-.\xff\x00 \n"[chance.below(17) as usize]),
            _ => bytes.truncate(at.max(bytes.len().saturating_sub(16))),
        }
    }
}
