#![no_main]

use penstock_fuzz::checks::{seal_snapshot, snapshot_file};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut sealed = bytes.to_vec();
    seal_snapshot(&mut sealed);
    snapshot_file(&sealed);
});
