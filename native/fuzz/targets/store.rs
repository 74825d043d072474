#![no_main]

use penstock_fuzz::checks::{seal_sections, store};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut sealed = bytes.to_vec();
    seal_sections(&mut sealed);
    store(&sealed);
});
