//! The demo as a measurement.

use anyhow::Result;

use crate::{
    check::Check,
    demo::{self, Kill, Options, Receipt, Screen},
};

const OPTIONS: Options = Options { kill: Kill::Primary, connections: 200, seconds: 12, naive: false };

pub(super) fn demo() -> Result<Vec<Check>> {
    let receipt = demo::run(OPTIONS, &mut Screen::silent())?;
    let mut checks = receipt.checks();
    checks.push(Check::count_at_least("connections protected", receipt.protected as u64, 200));
    Ok(checks)
}

pub(super) fn naive() -> Result<Vec<Check>> {
    let Receipt { broken, .. } = demo::run(Options { naive: true, ..OPTIONS }, &mut Screen::silent())?;
    Ok(vec![Check::count_at_least("known connections broken, nothing shared", broken, 1)])
}
