//! What it costs to look.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    check::Check,
    cluster::{Cluster, Shape},
    member::{self, Member},
    population,
};

const FLOWS: u32 = 1_000_000;
const LOOKS: usize = 9;
const LOOK_MAX_MS: f64 = 100.0;
/// An eighth of the flows is counted, and the rest extrapolated, within that.
const COUNT_ERROR_PERCENT: f64 = 1.0;

pub(super) fn status() -> Result<Vec<Check>> {
    let cluster = Cluster::start(Shape { balancers: 2, servers: 3, naive: false }, |config| {
        config.flows_max = Some(1 << 20);
    })?;
    let member = &cluster.members[0];
    population::fill(member, FLOWS)?;
    let mut checks = Vec::new();
    for (what, command) in [("`tandem status`", "status"), ("`tandem metrics`", "metrics")] {
        let mut times = Vec::new();
        for _ in 0..LOOKS {
            let began = Instant::now();
            said(member, &[command])?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        checks.push(Check::ms_at_most(&format!("{what}, median of {LOOKS}"), Some(times[LOOKS / 2]), LOOK_MAX_MS));
    }
    let status: serde_json::Value = serde_json::from_str(&said(member, &["status", "-o", "json"])?)?;
    let counted = status["flows"]["used"].as_f64().context("no count")?;
    let error = (counted - f64::from(FLOWS)).abs() * 100.0 / f64::from(FLOWS);
    let passed = error <= COUNT_ERROR_PERCENT;
    checks.push(Check::new(
        "its count of flows, off by",
        format!("{error:.2} %"),
        format!("≤ {COUNT_ERROR_PERCENT} %"),
        passed,
    ));
    Ok(checks)
}

/// What `tandem` says of the member, whatever it thinks of it.
fn said(member: &Member, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(member::binary()?);
    command.args(arguments).arg("--pin-dir").arg(member.pins()).arg("--config").arg(member.config());
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(matches!(output.status.code(), Some(0 | 5)), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
