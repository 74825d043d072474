use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, StringArray};
use penstock_native::disk::{Disk, MemoryDisk};
use penstock_native::snapshot::{self, Header};
use penstock_native::windows::{Pass, Store};
use serde_json::json;

use crate::checks::{SNAPSHOT, save, seal_sections, seal_snapshot, store_plan};
use crate::support::Chance;
use crate::{checks, every_seed, mutate, sealed};

/// A store that some events have passed.
pub fn draw(chance: &mut Chance) -> Vec<u8> {
    let mut store = Store::new(store_plan()).unwrap();
    let rows = chance.below(30) as usize;
    let mut numbers = |below: u64| (0..rows).map(|_| chance.below(below) as i64).collect::<Vec<_>>();
    let cards = StringArray::from_iter(numbers(4).iter().map(|card| (*card > 0).then(|| format!("c{card}"))));
    let keys: Vec<ArrayRef> = vec![Arc::new(cards), Arc::new(Int64Array::from(numbers(3)))];
    let amounts = Decimal128Array::from_iter(numbers(900).into_iter().map(|amount| Some(amount.into())));
    let counts = Int64Array::from_iter(numbers(5).into_iter().map(|count| (count > 0).then_some(count)));
    let means = Float64Array::from_iter(numbers(9).into_iter().map(|mean| Some(mean as f64 / 4.0)));
    let shops =
        StringArray::from_iter(numbers(4).iter().map(|shop| (*shop > 0).then(|| "é".repeat(*shop as usize))));
    let online =
        BooleanArray::from_iter(numbers(3).into_iter().map(|online| (online > 0).then_some(online > 1)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(amounts.with_precision_and_scale(30, 2).unwrap()),
        Arc::new(counts),
        Arc::new(means),
        Arc::new(shops),
        Arc::new(online),
    ];
    let filters = [BooleanArray::from_iter(numbers(2).into_iter().map(|passes| Some(passes > 0)))];
    let times = numbers(100);
    let wanted: Vec<usize> = (0..store_plan().reads.len()).collect();
    let pass = Pass {
        times: &times,
        keys: &keys,
        insert: true,
        columns: &columns,
        filters: &filters,
        skip: None,
        wanted: &wanted,
        evict_before: 20,
        threads: 1,
    };
    store.pass(&pass).unwrap();
    save(&store)
}

/// A snapshot of two stores.
pub fn draw_snapshot(chance: &mut Chance) -> Vec<u8> {
    let stores = [draw(chance), draw(chance)];
    let stored = json!({"source": "one", "key": ["card", "shop"], "lateness_us": 30, "plan": store_plan()});
    let header: Header = serde_json::from_value(json!({
        "position": {"segment": 1, "offset": 64, "sequence": 7, "checksum": 11},
        "sequence": 7,
        "fingerprint": "0123456789abcdef",
        "topics": [{"name": "one", "newest": 99}, {"name": "two", "newest": null}],
        "stores": [stored, stored],
        "undecided": [["authorise", 3, 8]],
    }))
    .unwrap();
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let mut piece = || Ok(1 << 20);
    snapshot::write(&disk, &header, &mut BTreeSet::new(), &mut piece, |index, out| {
        out.write_all(&stores[index]).expect("memory takes it");
        Ok(())
    })
    .unwrap();
    memory.contents(SNAPSHOT).unwrap()
}

#[test]
fn test_fuzz_a_changed_snapshot_is_refused_by_its_name_or_is_one() {
    every_seed(4_000, |chance| {
        let mut bytes = draw_snapshot(chance);
        assert!(checks::snapshot_file(&bytes), "a sound snapshot is one");
        assert_eq!(sealed(&bytes, seal_snapshot), bytes);
        mutate(&mut bytes, chance);
        seal_snapshot(&mut bytes);
        checks::snapshot_file(&bytes);
    });
}

#[test]
fn test_fuzz_a_changed_state_is_refused_or_is_one() {
    every_seed(10_000, |chance| {
        let mut bytes = draw(chance);
        assert_eq!(sealed(&bytes, seal_sections), bytes);
        mutate(&mut bytes, chance);
        seal_sections(&mut bytes);
        checks::store(&bytes);
    });
}
