//! Many seeds; one seed again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::controls::{Safeguard, without};
use super::run::Run;
use super::summary::Summary;

const STEPS_TOLD: usize = 30;
/// What each change has to pass.
const SEEDS: u64 = 200;
/// One seed of so many is run twice.
const AGAIN: u64 = 20;

/// Numbers that the make targets pass on.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    let digits = text.strip_prefix("0x");
    let parsed = match digits {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// One seed, to its end or to what must not be.
fn outcome(seed: u64) -> Result<(u64, Summary), String> {
    let mut run = Run::new(seed);
    let ended = catch_unwind(AssertUnwindSafe(|| run.run()));
    let broken = match ended {
        Ok(Ok(hash)) => return Ok((hash, run.summary)),
        Ok(Err(broken)) => broken,
        Err(_) => "an invariant is broken; its place is above".into(),
    };
    let last = run.trace.len().saturating_sub(STEPS_TOLD);
    let steps = run.trace[last..].join("\n  ");
    Err(format!("seed {seed:#x}: {broken}\n  {steps}\nreplay it: make simulate SEED={seed:#x}"))
}

/// A seed that has run is the same run again: all that was told and counted, in its order.
fn same_again(seed: u64, ran: (u64, Summary)) -> Result<(u64, Summary), String> {
    let again = outcome(seed)?;
    if again == ran { Ok(ran) } else { Err(format!("seed {seed:#x}: run again it is another run")) }
}

#[test]
fn whatever_happens_to_the_service_nothing_acknowledged_is_lost_or_told_otherwise() {
    let (first, count) = (number("FROM").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let (mut total, mut broken) = (Summary::default(), Vec::new());
    for seed in first..first + count {
        let again = seed % AGAIN == 0;
        match outcome(seed).and_then(|ran| if again { same_again(seed, ran) } else { Ok(ran) }) {
            Ok((_, summary)) => total.add(&summary),
            Err(found) => {
                // At once: the others may take hours.
                println!("{found}");
                broken.push(found);
            }
        }
        if count > SEEDS && (seed - first + 1) % 500 == 0 {
            println!("{} of {count} seeds, {} broken", seed - first + 1, broken.len());
        }
    }
    println!("{total}");
    assert!(broken.is_empty(), "{} of {count} seeds are broken, the first: {}", broken.len(), broken[0]);
}

/// Without a safeguard the same runs must find that something is lost or wrong: else they would find nothing. And the
/// history itself must: that the core, with its other safeguards, refuses to go on says nothing about the history.
fn finds_the_lack_of(safeguard: Safeguard, seeds: u64, words: &str) {
    let broken: Vec<_> =
        (0..seeds).filter_map(|seed| without(safeguard, || outcome(seed)).map(drop).err()).collect();
    let found = broken.iter().filter(|broken| broken.lines().next().unwrap_or_default().contains(words));
    let found = found.count();
    println!("{} of {seeds} seeds find the lack of {safeguard:?}, {found} that {words:?}", broken.len());
    assert!(found > 0, "{seeds} runs without {safeguard:?}: the simulation cannot find that {words:?}");
}

#[test]
fn without_sync_something_is_lost_and_found_to_be() {
    finds_the_lack_of(Safeguard::Sync, 30, "is not what it was");
}

#[test]
fn without_checksums_something_is_wrong_and_found_to_be() {
    finds_the_lack_of(Safeguard::Checksums, 40, "is not what it was");
}

#[test]
fn without_the_chain_something_is_wrong_and_found_to_be() {
    finds_the_lack_of(Safeguard::Chain, 100, "and no error");
}

#[test]
fn without_the_ids_of_the_log_something_is_there_twice_and_found_to_be() {
    finds_the_lack_of(Safeguard::Ids, 20, "has one event twice");
}

#[test]
#[ignore = "make simulate SEED=… runs one seed and tells its steps"]
fn one_seed() {
    let seed = number("SEED").expect("SEED=0x…");
    let mut run = Run::new(seed);
    let outcome = run.run();
    run.trace.iter().for_each(|step| println!("{step}"));
    println!("{}", run.summary);
    println!("the run's hash: {:016x}", outcome.unwrap());
}
