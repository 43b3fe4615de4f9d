//! `tandem`.
fn main() {}
