#![no_main]

use penstock_fuzz::checks::{ids_file, seal_ids};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut sealed = bytes.to_vec();
    seal_ids(&mut sealed);
    ids_file(&sealed);
});
