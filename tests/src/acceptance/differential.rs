//! The kernel's decisions against the model's.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::{check::Check, differential};

const CASES: u64 = 1_000_000;

pub(super) fn run() -> Result<Vec<Check>> {
    let seed = match std::env::var("TANDEM_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("replay with TANDEM_SEED={seed}");
    let report = differential::run(seed, CASES)?;
    for (reason, count) in &report.reasons {
        println!("{count:>9} {}", reason.name());
    }
    println!("{:.0} packets a second", report.rate());
    Ok(vec![
        // The first difference is an error.
        Check::count_at_least("packets without a difference", report.cases, CASES),
        Check::count_at_most("outcomes that no packet had", report.unseen().len() as u64, 0),
    ])
}
