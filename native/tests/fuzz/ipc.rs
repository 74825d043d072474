//! Arrow streams: what is read has the columns that it says, and no row that its bytes cannot hold.

use penstock_native::conform::{Unknown, conform, keep_rows, read_ipc, write_ipc};
use penstock_native::decode::Limits;

use crate::{every_seed, mutate, values};

#[test]
fn test_fuzz_a_changed_stream_is_read_or_refused() {
    let schema = values::schema();
    every_seed(6_000, |chance| {
        let rows = chance.below(40) as usize;
        let mut body = write_ipc(&values::batch(rows, chance)).unwrap();
        mutate(&mut body, chance);
        let Ok(batches) = read_ipc(&body) else { return };
        for batch in batches {
            assert!(batch.num_rows() <= 8 * body.len());
            // The columns' own promises: offsets that rise, texts that are UTF-8, nulls that are counted.
            for column in batch.columns() {
                column.to_data().validate_full().expect("what was read is sound");
            }
            let Ok((conformed, refused)) = conform(&batch, &schema, &Limits::default(), Unknown::Ignore)
            else {
                continue;
            };
            let kept = keep_rows(&conformed, &refused);
            assert_eq!(kept.num_rows() + refused.len(), batch.num_rows());
        }
    });
}
