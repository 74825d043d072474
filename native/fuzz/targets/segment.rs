#![no_main]

use penstock_fuzz::checks::{seal_all, segment};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut sealed = bytes.to_vec();
    seal_all(&mut sealed);
    segment(&sealed);
});
