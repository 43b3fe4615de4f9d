//! `tandem-demo`
fn main() {}
