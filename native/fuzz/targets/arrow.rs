#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| penstock_fuzz::checks::arrow(body));
