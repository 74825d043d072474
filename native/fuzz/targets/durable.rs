#![no_main]

use std::sync::LazyLock;

use penstock_fuzz::checks::{SEGMENT, durable, sound_log};

static LOG: LazyLock<Vec<u8>> = LazyLock::new(|| sound_log().contents(SEGMENT).expect("a log has a segment"));

libfuzzer_sys::fuzz_target!(|slots: &[u8]| {
    durable(&LOG, slots);
});
