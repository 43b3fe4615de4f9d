//! The fuzzer; `cargo xtask fuzz` builds it with coverage and starts it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| model::input::run(input));
