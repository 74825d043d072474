//! The index of ids against a plain map: at random, through crashes, damage, expiry and merges.

mod disk;
mod measure;

use std::collections::BTreeMap;
use std::sync::Arc;

use disk::{Left, Random, TestDisk};
use penstock_native::error::{Error, Result};
use penstock_native::ids::{Ids, Settings, Stats};

#[derive(Clone)]
struct Commit {
    hashes: Vec<u64>,
    time_us: i64,
}

/// The log, as far as the index knows it: commit n has sequence n + 1 and the address 10 × sequence.
#[derive(Clone, Default)]
struct Log {
    commits: Vec<Commit>,
    /// Every commit before this time may be forgotten.
    expired_us: i64,
}

impl Log {
    fn sequence(&self) -> u64 {
        self.commits.len() as u64
    }

    fn append(&mut self, ids: &mut Ids, commit: Commit) {
        self.commits.push(commit);
        self.insert(ids, self.sequence());
    }

    fn insert(&self, ids: &mut Ids, sequence: u64) {
        let commit = &self.commits[sequence as usize - 1];
        if commit.hashes.is_empty() {
            return;
        }
        ids.insert_batch(&commit.hashes, sequence * 10, sequence, commit.time_us);
    }

    /// Open the index and insert what its files do not cover.
    fn open(&self, disk: &TestDisk, settings: Settings) -> Result<Ids> {
        let mut ids = Ids::open(Arc::new(disk.clone()), settings)?;
        assert!(ids.covered() <= self.sequence());
        for sequence in ids.covered() + 1..=self.sequence() {
            self.insert(&mut ids, sequence);
        }
        Ok(ids)
    }

    /// For each hash the (address, time) of its commits, newest first.
    fn addresses(&self) -> BTreeMap<u64, Vec<(u64, i64)>> {
        let mut addresses = BTreeMap::<u64, Vec<(u64, i64)>>::new();
        for (position, commit) in self.commits.iter().enumerate().rev() {
            let address = (position as u64 + 1) * 10;
            for hash in &commit.hashes {
                addresses.entry(*hash).or_default().push((address, commit.time_us));
            }
        }
        addresses
    }

    /// Everything that has not expired is found; what has expired may be; nothing else is, and all in its order.
    fn check(&self, ids: &Ids) {
        let addresses = self.addresses();
        let new = [0, 1, u64::MAX, u64::MAX / 2].into_iter().filter(|hash| !addresses.contains_key(hash));
        let hashes: Vec<u64> = addresses.keys().copied().chain(new).collect();
        let mut batch = Vec::new();
        assert!(ids.find_batch(&hashes, &mut batch).is_empty());
        let mut singles = Vec::new();
        for (position, hash) in hashes.iter().enumerate() {
            let found = find(ids, *hash).unwrap();
            assert_found(&found, addresses.get(hash).map_or(&[], |known| known), self.expired_us);
            singles.extend(found.iter().map(|address| (position, *address)));
        }
        assert_eq!(batch, singles);
    }
}

fn assert_found(found: &[u64], known: &[(u64, i64)], expired_us: i64) {
    let mut rest = found.iter().peekable();
    for (address, time_us) in known {
        let present = rest.next_if_eq(&address).is_some();
        assert!(present || *time_us < expired_us, "address {address} is missing in {found:?} of {known:?}");
    }
    assert!(rest.next().is_none(), "found {found:?} of {known:?}");
}

fn find(ids: &Ids, hash: u64) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    ids.find(hash, &mut found).map(|()| found)
}

fn settings(memory_ids: usize) -> Settings {
    Settings { memory_ids, retain_us: 800, background: false }
}

/// Hashes of a small stock, so that many come again; some differ in their last bits only.
fn random_hash(random: &mut Random, stock: u64) -> u64 {
    let number = random.below(stock);
    match number % 5 {
        0 => ((number / 50) << 56) | (number % 7),
        1 => u64::MAX - number,
        _ => Random(number).next(),
    }
}

fn random_commit(random: &mut Random, newest_us: i64) -> Commit {
    let count = if random.below(20) == 0 { 40 } else { random.below(6) };
    let hashes = (0..count).map(|_| random_hash(random, 600)).collect();
    // Now and then the clock goes back.
    let step_us = if random.below(10) == 0 { -(random.below(30) as i64) } else { random.below(20) as i64 };
    Commit { hashes, time_us: (newest_us + step_us).max(0) }
}

#[test]
fn what_was_inserted_is_found_until_it_expires_like_in_a_plain_map() {
    for seed in 0..120 {
        for background in [false, true] {
            let mut random = Random(seed);
            let settings = Settings { background, ..settings([1, 5, 16, 60][seed as usize % 4]) };
            run_at_random(&mut random, settings);
        }
    }
}

fn run_at_random(random: &mut Random, settings: Settings) {
    let disk = TestDisk::default();
    let mut log = Log::default();
    let mut ids = log.open(&disk, settings).unwrap();
    let mut now_us = 0;
    for _ in 0..300 {
        match random.below(40) {
            0 => {
                drop(ids);
                ids = log.open(&disk, settings).unwrap();
                assert!(ids.damage().is_empty());
            }
            1 => log.check(&ids),
            2..4 => {
                log.expired_us = log.expired_us.max(now_us - settings.retain_us);
                ids.expire(log.expired_us).unwrap();
            }
            4..14 => ids.flushable(log.sequence() - random.below(4).min(log.sequence())).unwrap(),
            _ => {
                let commit = random_commit(random, now_us);
                now_us = commit.time_us;
                log.append(&mut ids, commit);
            }
        }
    }
    log.check(&ids);
    assert!(ids.stats().ids >= ids_within(&log, log.expired_us));
}

fn ids_within(log: &Log, expired_us: i64) -> u64 {
    let within = log.commits.iter().filter(|commit| commit.time_us >= expired_us);
    within.map(|commit| commit.hashes.len() as u64).sum()
}

/// Commits of a fixed course: several generations, merges of both kinds, expiry.
fn course() -> Vec<Commit> {
    let mut random = Random(7);
    let commits = (0..160).map(|number| {
        let hashes = (0..random.below(9)).map(|_| random_hash(&mut random, 2000)).collect();
        Commit { hashes, time_us: 12 * number }
    });
    commits.collect()
}

/// Go through the rest of the course until its end or an error.
fn follow(log: &mut Log, ids: &mut Ids) -> Result<()> {
    for commit in course().split_off(log.commits.len()) {
        let now_us = commit.time_us;
        log.append(ids, commit);
        ids.flushable(log.sequence())?;
        if log.sequence().is_multiple_of(10) {
            log.expired_us = now_us - 800;
            ids.expire(log.expired_us)?;
        }
    }
    Ok(())
}

#[test]
fn a_crash_at_any_call_of_the_disk_loses_nothing_and_leaves_no_damage() {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    let mut ids = log.open(&disk, settings(16)).unwrap();
    follow(&mut log, &mut ids).unwrap();
    let steps = disk.steps();
    assert!(steps > 700, "{steps} steps are too few to show anything");
    let lefts = [Left::Everything, Left::Nothing, Left::Some(1), Left::Some(2), Left::Some(3)];
    for (step, left) in (0..steps).flat_map(|step| lefts.map(|left| (step, left))) {
        crash_and_go_on(step, left);
    }
}

fn crash_and_go_on(step: usize, left: Left) {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    disk.stop_at(step);
    if let Ok(mut ids) = log.open(&disk, settings(16)) {
        follow(&mut log, &mut ids).expect_err("the disk has stopped");
    }
    let disk = disk.after_crash(left);
    let mut ids = log.open(&disk, settings(16)).unwrap();
    assert!(ids.damage().is_empty(), "step {step}, {left:?}: {:?}", ids.damage());
    log.check(&ids);
    follow(&mut log, &mut ids).unwrap();
    log.check(&ids);
    assert!(disk.paths().iter().all(|path| path.ends_with(".ids")));
}

#[test]
fn a_power_cut_while_a_crash_is_recovered_from_loses_nothing() {
    let merged = (400..).find(|step| sources_are_beside_their_merge(&crashed_at(*step).0)).unwrap();
    for step in 0..80 {
        for left in [Left::Everything, Left::Nothing, Left::Some(1), Left::Some(2), Left::Some(3)] {
            let (disk, log) = crashed_at(merged);
            disk.stop_at(step);
            let _ = log.open(&disk, settings(16));
            let ids = log.open(&disk.after_crash(left), settings(16)).unwrap();
            assert!(ids.damage().is_empty());
            log.check(&ids);
        }
    }
}

fn crashed_at(step: usize) -> (TestDisk, Log) {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    disk.stop_at(step);
    let mut ids = log.open(&disk, settings(16)).unwrap();
    follow(&mut log, &mut ids).expect_err("the disk has stopped");
    (disk, log)
}

fn sources_are_beside_their_merge(disk: &TestDisk) -> bool {
    let paths = disk.paths();
    let firsts: Vec<&str> = paths.iter().filter_map(|path| path.split('-').next()).collect();
    firsts.windows(2).any(|pair| pair[0] == pair[1]) && !paths.concat().contains("unfinished")
}

/// Three generations, the second of several blocks, and what they were made of.
fn three_generations() -> (TestDisk, Log, Vec<String>) {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    let mut ids = log.open(&disk, settings(20)).unwrap();
    for (count, sequence) in [20, 300, 20, 1].into_iter().zip(1..) {
        let hashes = (0..count).map(|number| Random(sequence * 1000 + number).next()).collect();
        log.append(&mut ids, Commit { hashes, time_us: 0 });
    }
    ids.flushable(log.sequence()).unwrap();
    assert_eq!(ids.stats().generations, 3);
    (disk.clone(), log, disk.paths())
}

#[test]
fn a_flip_of_any_byte_is_detected_or_harmless() {
    let (disk, log, paths) = three_generations();
    let bytes = disk.content(&paths[1]);
    for position in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1 << (position % 8);
        let disk = disk.after_crash(Left::Everything);
        disk.set_content(&paths[1], flipped);
        let (files, damage) = penstock_native::ids::verify(&disk).unwrap();
        assert_eq!((files, damage.len()), (3, 1), "the flip at {position} was not named");
        assert!(damage_is_overcome(&log, &disk, 1), "the flip at {position} was not detected");
    }
}

#[test]
fn an_index_with_a_damaged_file_goes_on_without_what_is_in_it_and_the_next_start_has_everything() {
    let (mut refused, mut kept_apart) = (0, 0);
    for (file, position) in (0..4).flat_map(|file| (4096..8192).step_by(397).map(move |at| (file, at))) {
        let (disk, mut log) = (TestDisk::default(), Log::default());
        let mut ids = log.open(&disk, settings(16)).unwrap();
        for commit in course().into_iter().take(80) {
            log.append(&mut ids, commit);
            ids.flushable(log.sequence()).unwrap();
        }
        drop(ids);
        let paths = disk.paths();
        let path = &paths[file % paths.len()];
        let mut bytes = disk.content(path);
        bytes[position] ^= 1 << (position % 8);
        disk.set_content(path, bytes);
        let mut ids = log.open(&disk, settings(16)).unwrap();
        assert!(ids.damage().is_empty(), "a start reads no block");
        let known = log.addresses();
        let hashes: Vec<u64> = known.keys().copied().collect();
        let (mut batch, mut singles) = (Vec::new(), Vec::new());
        let unread: Vec<usize> = ids.find_batch(&hashes, &mut batch).into_iter().map(|(at, _)| at).collect();
        for (number, hash) in hashes.iter().enumerate() {
            match find(&ids, *hash) {
                Ok(found) => {
                    assert_found(&found, &known[hash], log.expired_us);
                    singles.extend(found.into_iter().map(|address| (number, address)));
                }
                Err(Error::Damaged { file, .. }) => {
                    assert!(file == *path && unread.contains(&number));
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        batch.retain(|(number, _)| !unread.contains(number));
        assert_eq!(batch, singles);
        kept_apart += usize::from(ids.damaged().is_some());
        follow(&mut log, &mut ids).unwrap();
        drop(ids);
        let ids = log.open(&disk, settings(16)).unwrap();
        log.check(&ids);
        assert!(ids.damaged().is_none() && disk.paths().iter().all(|path| path.ends_with(".ids")));
    }
    assert!(refused > 100 && kept_apart > 10, "{refused} {kept_apart}");
}

#[test]
fn a_file_cut_or_lengthened_anywhere_is_detected() {
    let (disk, log, paths) = three_generations();
    let bytes = disk.content(&paths[1]);
    for length in (0..bytes.len()).step_by(61).chain([bytes.len() - 1, bytes.len() + 1, bytes.len() + 4096]) {
        let disk = disk.after_crash(Left::Everything);
        let mut other = bytes.clone();
        other.resize(length, 0);
        disk.set_content(&paths[1], other);
        assert!(damage_is_overcome(&log, &disk, 1));
    }
}

/// Whether damage was found; the index is then complete again, from what came before the damage and from the log.
fn damage_is_overcome(log: &Log, disk: &TestDisk, sound_before: u64) -> bool {
    let ids = log.open(disk, settings(20)).unwrap();
    if !ids.damage().is_empty() {
        log.check(&ids);
        return ids.covered() == sound_before;
    }
    let error = log.addresses().keys().find_map(|hash| find(&ids, *hash).err());
    let detected = matches!(error, Some(Error::Damaged { .. }));
    drop(ids);
    // The next start knows it without reading the blocks.
    let ids = log.open(disk, settings(20)).unwrap();
    log.check(&ids);
    detected && ids.covered() == sound_before && !ids.damage().is_empty()
}

#[test]
fn a_missing_file_is_noticed_and_only_what_came_before_it_is_used() {
    let (disk, log, paths) = three_generations();
    let without = TestDisk::default();
    without.set_content(&paths[0], disk.content(&paths[0]));
    without.set_content(&paths[2], disk.content(&paths[2]));
    assert!(damage_is_overcome(&log, &without, 1));
    assert_eq!(without.paths(), &paths[..1]);
}

#[test]
fn damage_in_the_oldest_file_leaves_nothing_covered() {
    let (disk, log, paths) = three_generations();
    disk.set_content(&paths[0], vec![0; 4096]);
    assert!(damage_is_overcome(&log, &disk, 0));
}

#[test]
fn a_crash_while_damage_is_cleared_away_does_not_make_it_forgotten() {
    let (full, log, paths) = three_generations();
    full.set_content(&paths[0], vec![0; 4096]);
    for step in 0..60 {
        for left in [Left::Everything, Left::Nothing, Left::Some(1), Left::Some(2), Left::Some(3)] {
            let disk = full.after_crash(Left::Everything);
            disk.stop_at(step);
            let _ = Ids::open(Arc::new(disk.clone()), settings(20));
            log.check(&log.open(&disk.after_crash(left), settings(20)).unwrap());
        }
    }
}

#[test]
fn a_merge_that_meets_damage_says_so_and_the_next_start_overcomes_it() {
    let (disk, mut log, paths) = three_generations();
    let mut bytes = disk.content(&paths[1]);
    bytes[5000] ^= 1;
    disk.set_content(&paths[1], bytes);
    let mut ids = log.open(&disk, settings(20)).unwrap();
    // In the next eighth of the retention time, so that the three are merged.
    for number in 0..2 {
        log.append(
            &mut ids,
            Commit { hashes: (0..20).map(|hash| Random(hash).next()).collect(), time_us: 150 + number },
        );
    }
    ids.flushable(log.sequence()).unwrap();
    let damaged = ids.damaged().unwrap();
    assert!(damaged.starts_with(&format!("{} is damaged at byte 4096", paths[1])), "{damaged}");
    assert!(ids.stats().generations >= 3, "it stays apart");
    drop(ids);
    let ids = log.open(&disk, settings(20)).unwrap();
    assert_eq!((ids.covered(), !ids.damage().is_empty()), (1, true));
    log.check(&ids);
}

#[test]
fn a_full_disk_is_told_apart_and_the_table_is_written_when_there_is_space_again() {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    let mut ids = log.open(&disk, settings(4)).unwrap();
    for hash in 0..9 {
        log.append(&mut ids, Commit { hashes: vec![hash], time_us: 0 });
    }
    disk.set_full(true);
    assert!(matches!(ids.flushable(9), Err(Error::Full { .. })));
    assert!(disk.paths().is_empty(), "a failed write gives its space back");
    log.check(&ids);
    disk.set_full(false);
    ids.flushable(9).unwrap();
    assert_eq!((ids.covered(), ids.stats().tables), (8, 1));
    log.check(&ids);
}

#[test]
fn only_a_table_of_durable_commits_is_written() {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    let mut ids = log.open(&disk, settings(2)).unwrap();
    for hash in 0..5 {
        log.append(&mut ids, Commit { hashes: vec![hash], time_us: 0 });
    }
    ids.flushable(3).unwrap();
    assert_eq!((ids.covered(), ids.stats().generations, ids.stats().tables), (2, 1, 2));
    ids.flushable(4).unwrap();
    assert_eq!((ids.covered(), ids.stats().generations, ids.stats().tables), (4, 2, 1));
}

#[test]
fn a_commit_is_never_cut_in_two() {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    let mut ids = log.open(&disk, settings(4)).unwrap();
    for number in 0..30 {
        ids.insert(number, 10, 1, 0);
    }
    log.commits.push(Commit { hashes: (0..30).collect(), time_us: 0 });
    ids.flushable(1).unwrap();
    assert_eq!(ids.stats().tables, 1);
    log.append(&mut ids, Commit { hashes: vec![5], time_us: 0 });
    ids.flushable(1).unwrap();
    assert_eq!((ids.covered(), ids.stats().generations), (1, 1));
    log.check(&ids);
}

#[test]
fn generations_expire_from_the_oldest_but_the_newest_stays_and_says_what_is_covered() {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    let mut ids = log.open(&disk, settings(2)).unwrap();
    for number in 0..11 {
        log.append(&mut ids, Commit { hashes: vec![number], time_us: 200 * number as i64 });
    }
    ids.flushable(11).unwrap();
    assert_eq!(ids.stats().generations, 5);
    assert_eq!(ids.expire(200).unwrap(), 0, "the oldest one's newest commit is not older");
    assert_eq!(ids.expire(201).unwrap(), 1);
    assert_eq!(find(&ids, 1).unwrap(), Vec::<u64>::new());
    assert_eq!(ids.expire(i64::MAX).unwrap(), 3);
    assert_eq!((ids.covered(), disk.paths().len()), (10, 1));
    drop(ids);
    let ids = log.open(&disk, settings(2)).unwrap();
    assert_eq!((ids.covered(), ids.stats().ids), (10, 3));
}

#[test]
fn many_addresses_of_one_hash_are_found_across_blocks_tables_and_generations() {
    let (disk, mut log) = (TestDisk::default(), Log::default());
    let mut ids = log.open(&disk, settings(400)).unwrap();
    for number in 0..1500 {
        let hashes = if number % 3 == 0 { vec![number] } else { vec![u64::MAX / 2, u64::MAX / 2] };
        log.append(&mut ids, Commit { hashes, time_us: number as i64 / 8 });
        ids.flushable(log.sequence()).unwrap();
    }
    assert!(ids.stats().generations >= 2);
    log.check(&ids);
}

#[test]
fn files_of_others_in_the_folder_are_left_alone() {
    let (disk, log, paths) = three_generations();
    for name in ["ids/notes.txt", "ids/x-y.ids", "ids/.ids"] {
        disk.set_content(name, vec![1]);
    }
    let ids = log.open(&disk, settings(20)).unwrap();
    assert!(ids.damage().is_empty());
    assert_eq!(disk.paths().len(), paths.len() + 3);
}

#[test]
fn an_index_that_was_never_used_covers_nothing() {
    let ids = Ids::open(Arc::new(TestDisk::default()), settings(4)).unwrap();
    assert_eq!((ids.covered(), find(&ids, 1).unwrap()), (0, vec![]));
    let Stats { ids, generations, disk_bytes, tables, .. } = ids.stats();
    assert_eq!((ids, generations, disk_bytes, tables), (0, 0, 0, 1));
}

#[test]
#[should_panic(expected = "commits are inserted once and in their order")]
fn a_commit_that_is_covered_is_not_inserted_again() {
    let (disk, log, _) = three_generations();
    let mut ids = Ids::open(Arc::new(disk), settings(20)).unwrap();
    log.insert(&mut ids, 3);
}

#[test]
fn the_index_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Ids>();
}
