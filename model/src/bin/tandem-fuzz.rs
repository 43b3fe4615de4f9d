//! The fuzzer; `cargo xtask fuzz` builds it with coverage and starts it.
//!
//! Writes seeds into the folder that `TANDEM_SEEDS` names before the engine reads its corpora.
#![no_main]

use std::{env, fs, path::PathBuf};

use libfuzzer_sys::fuzz_target;

const SEEDS: u64 = 2000;

fuzz_target!(
    init: {
        if let Some(folder) = env::var_os("TANDEM_SEEDS").map(PathBuf::from) {
            for number in 0..SEEDS {
                fs::write(folder.join(number.to_string()), model::input::seed(number)).expect("a folder for seeds");
            }
        }
    },
    |input: &[u8]| model::input::run(input)
);
