use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, StringArray};
use penstock_native::windows::{Pass, Store};

use crate::checks::{save, seal_sections, store_plan};
use crate::support::Chance;
use crate::{checks, every_seed, mutate};

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

#[test]
fn test_fuzz_a_changed_state_is_refused_or_is_one() {
    every_seed(10_000, |chance| {
        let mut bytes = draw(chance);
        mutate(&mut bytes, chance);
        seal_sections(&mut bytes);
        checks::store(&bytes);
    });
}
