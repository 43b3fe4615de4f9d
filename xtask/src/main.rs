//! `cargo xtask`: builds, runs, tests and measures Tandem.
fn main() {}
