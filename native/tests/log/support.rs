//! Small logs, and disks to put them on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use penstock_native::disk::{Disk, MemoryDisk, RealDisk};
use penstock_native::log::{Commit, Committed, Log, Position, Reader, Recovery, Section, Settings};
use penstock_native::schema::{Field, Schema, Type};

pub const NOW_US: i64 = 1_790_000_000_000_000;

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("penstock-log-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Run a test of what every disk must allow, on each.
pub fn on_every_disk(test: impl Fn(Arc<dyn Disk>)) {
    let folder = Folder::new();
    test(Arc::new(RealDisk::new(folder.path())));
    test(Arc::new(MemoryDisk::new()));
}

/// Segments of 8 KiB, everything in line.
pub fn small() -> Settings {
    Settings { segment_bytes: 8192, background: false, ..Settings::default() }
}

pub fn open(disk: &Arc<dyn Disk>, settings: &Settings) -> (Log, Recovery) {
    Log::open(disk.clone(), settings.clone(), NOW_US).unwrap()
}

/// An id and, so that commits differ in length, a text.
pub fn schema() -> Schema {
    let field = |name: &str, kind| Field { name: name.into(), kind, optional: false };
    Schema { fields: vec![field("id", Type::Int64), field("text", Type::Text)] }
}

pub fn batch(ids: &[i64]) -> RecordBatch {
    let texts = ids.iter().map(|id| "x".repeat(id.rem_euclid(37) as usize));
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(ids.to_vec())), Arc::new(StringArray::from_iter_values(texts))];
    RecordBatch::try_new(schema().arrow(), columns).unwrap()
}

pub fn section(schema: u32, ids: &[i64]) -> Section {
    Section { schema, origin: 0, before: 0, marks: None, batch: batch(ids) }
}

pub fn append(log: &mut Log, topic: &str, ids: &[i64]) -> Committed {
    let schema = log.define(topic, &schema()).unwrap();
    log.append(&[section(schema, ids)], NOW_US).unwrap()
}

pub fn ids(commit: &Commit) -> Vec<i64> {
    let batches = commit.sections.iter().map(|section| section.batch().unwrap());
    batches.flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

/// The ids of all that a reader finds, up to the first error.
pub fn try_read_ids(disk: &Arc<dyn Disk>, from: Option<Position>) -> (Vec<i64>, Option<String>) {
    let mut found = Vec::new();
    let mut read = || -> penstock_native::error::Result<()> {
        let mut reader = Reader::open(disk.clone(), from)?;
        while let Some(commit) = reader.next()? {
            found.extend(ids(&commit));
        }
        Ok(())
    };
    let error = read().err().map(|error| error.to_string());
    (found, error)
}

pub fn read_ids(disk: &Arc<dyn Disk>, from: Option<Position>) -> Vec<i64> {
    let (found, error) = try_read_ids(disk, from);
    assert_eq!(error, None);
    found
}

/// SplitMix64: every number from one printed seed.
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}
