//! The checks of `native/tests/fuzz`, for libFuzzer.

#[path = "../../tests/fuzz/checks.rs"]
pub mod checks;
#[path = "../../tests/log/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "../../tests/log/values.rs"]
#[allow(dead_code)]
mod values;
