use std::sync::Arc;

use penstock_native::disk::{Disk, MemoryDisk};
use penstock_native::ids::{Ids, Settings};

use crate::checks::seal_ids;
use crate::support::Chance;
use crate::{checks, every_seed, mutate, sealed};

/// A file of up to three blocks.
pub fn draw(chance: &mut Chance) -> Vec<u8> {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let memory_ids = 1 + chance.below(800) as usize;
    let settings = Settings { memory_ids, retain_us: 1000, background: false };
    let mut ids = Ids::open(disk.clone(), settings).unwrap();
    let mut sequence = 0;
    // A table becomes a file once it is full and another commit comes.
    while ids.stats().generations == 0 {
        sequence += 1;
        let hashes: Vec<u64> = (0..=chance.below(300)).map(|_| chance.next()).collect();
        ids.insert_batch(&hashes, chance.below(1 << 48), sequence, sequence as i64);
        ids.flushable(sequence).unwrap();
    }
    let (name, _) = disk.list("ids").unwrap().remove(0);
    memory.contents(&format!("ids/{name}")).unwrap()
}

#[test]
fn test_fuzz_a_changed_file_of_ids_is_done_without_or_read_to_its_end() {
    every_seed(4_000, |chance| {
        let mut bytes = draw(chance);
        assert!(checks::ids_file(&bytes), "a sound file is taken");
        assert_eq!(sealed(&bytes, seal_ids), bytes);
        mutate(&mut bytes, chance);
        seal_ids(&mut bytes);
        checks::ids_file(&bytes);
    });
}
