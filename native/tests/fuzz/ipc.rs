use penstock_native::conform::write_ipc;

use crate::support::Chance;
use crate::{checks, every_seed, mutate, values};

pub fn draw(chance: &mut Chance) -> Vec<u8> {
    let rows = chance.below(40) as usize;
    write_ipc(&values::batch(rows, chance)).unwrap()
}

#[test]
fn test_fuzz_a_changed_stream_is_read_or_refused() {
    every_seed(6_000, |chance| {
        let mut body = draw(chance);
        mutate(&mut body, chance);
        checks::arrow(&body);
    });
}
