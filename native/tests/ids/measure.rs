//! The index at its real size. Not part of the usual run:
//! `make bench-ids`, whose output `bench/ids.py` reads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_native::disk::RealDisk;
use penstock_native::ids::{Ids, Settings, Stats, hash_int64};
use rustix::time::{ClockId, clock_gettime};

const IDS: u64 = 50_000_000;
const COMMIT_IDS: u64 = 1000;
const PROBES: u64 = 4_000_000;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("penstock-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn open(&self) -> Ids {
        Ids::open(Arc::new(RealDisk::new(&self.0)), Settings::default()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
#[ignore = "takes a minute and a gigabyte"]
fn measure_fifty_million_ids() {
    let folder = Folder::new("measure");
    let mut ids = folder.open();
    let newest_million = ids.stats().memory_bytes;
    print("insert, with merges beside it", timed(|| insert_all(&mut ids)), IDS);
    print_finds("while merging", &ids);
    settle(&mut ids);
    print_stats(&ids.stats(), newest_million);
    print_finds("settled", &ids);
    drop(ids);
    let start = Instant::now();
    let mut ids = folder.open();
    println!("start: {:.3} s for {} ids", start.elapsed().as_secs_f64(), ids.stats().ids);
    let missing = ids.covered() + 1..=IDS / COMMIT_IDS;
    let count = (missing.end() + 1 - missing.start()) * COMMIT_IDS;
    print("insert again", timed(|| missing.for_each(|commit| insert_commit(&mut ids, commit))), count);
    print_finds("after the start", &ids);
}

fn insert_commit(ids: &mut Ids, sequence: u64) {
    let first = (sequence - 1) * COMMIT_IDS;
    let hashes: Vec<u64> = (first..first + COMMIT_IDS).map(|id| hash_int64(1, id as i64)).collect();
    // As it would be at 40,000 ids a second.
    ids.insert_batch(&hashes, sequence * 16384, sequence, (sequence * COMMIT_IDS * 25) as i64);
}

fn insert_all(ids: &mut Ids) {
    let mut longest = (Duration::ZERO, Duration::ZERO);
    for sequence in 1..=IDS / COMMIT_IDS {
        let commit = timed(|| {
            insert_commit(ids, sequence);
            ids.flushable(sequence).unwrap();
        });
        longest = longest.max(commit);
    }
    println!("longest commit: {:?}, {:?} of it on a core", longest.0, longest.1);
}

fn settle(ids: &mut Ids) {
    let start = Instant::now();
    while ids.stats().merging || ids.stats().tables > 1 {
        std::thread::sleep(Duration::from_millis(10));
        ids.flushable(u64::MAX).unwrap();
    }
    println!("settled after {:.1} s", start.elapsed().as_secs_f64());
}

/// The table of the newest million has its memory from the beginning.
fn print_stats(stats: &Stats, newest_million: u64) {
    println!("{stats:?}");
    let beyond = (stats.memory_bytes - newest_million) as f64 / (stats.ids - 1_000_000) as f64;
    println!("memory beyond the newest million: {beyond:.2} bytes an id");
    assert!(beyond <= 4.0);
    println!("disk: {:.2} bytes an id", stats.disk_bytes as f64 / stats.ids as f64);
}

fn print_finds(when: &str, ids: &Ids) {
    let new: Vec<u64> = (IDS..IDS + PROBES).map(|id| hash_int64(1, id as i64)).collect();
    let old: Vec<u64> = (0..PROBES / 8).map(|id| hash_int64(1, (id * 97 % IDS) as i64)).collect();
    let mut found = Vec::new();
    let alone = timed(|| new.iter().for_each(|hash| ids.find(*hash, &mut found).unwrap()));
    print(&format!("{when}: new id alone"), alone, PROBES);
    assert!(found.is_empty());
    let mut found = Vec::new();
    let batched =
        timed(|| new.chunks(1000).for_each(|hashes| assert!(ids.find_batch(hashes, &mut found).is_empty())));
    print(&format!("{when}: new id in a batch of 1000"), batched, PROBES);
    assert!(found.is_empty());
    let mut found = Vec::new();
    let seen = timed(|| old.iter().for_each(|hash| ids.find(*hash, &mut found).unwrap()));
    print(&format!("{when}: seen id"), seen, PROBES / 8);
    assert_eq!(found.len(), old.len());
}

/// The time that it took, and the time of it that this thread had a core: less, where others are at work.
fn timed(work: impl FnOnce()) -> (Duration, Duration) {
    let (start, cpu_start) = (Instant::now(), cpu_time());
    work();
    (start.elapsed(), cpu_time() - cpu_start)
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn print(what: &str, (time, cpu): (Duration, Duration), count: u64) {
    let per = |time: Duration| time.as_nanos() as f64 / count as f64;
    println!("{what}: {:.0} ns an id, {:.0} of them on a core", per(time), per(cpu));
}
