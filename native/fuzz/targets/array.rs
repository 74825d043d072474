#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    for step in [1, 7, 4096] {
        penstock_fuzz::checks::array(body, step);
    }
});
