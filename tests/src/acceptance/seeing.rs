//! What it costs to look, and to have nothing to do.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    check::Check,
    cluster::{Cluster, Shape},
    interrupt,
    member::{self, Member},
    population,
    topology::VIP,
};

const SERVICES: u16 = 100;
const CHECKED: &str = r#"{ type = "tcp", port = 80, interval = "2s" }"#;
const REST: Duration = Duration::from_secs(60);
/// A hundred rings, each of which the kernel puts in place after a grace period of its own.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// The start of the checks, and the work of the first seconds, are not rest.
const SETTLING: Duration = Duration::from_secs(10);
const CPU_MAX_PERCENT: f64 = 1.0;
const MEMORY_MAX_MIB: f64 = 64.0;

const FLOWS: u32 = 1_000_000;
const LOOKS: usize = 9;
const LOOK_MAX_MS: f64 = 100.0;
/// An eighth of the flows is counted, and the rest extrapolated, within that.
const COUNT_ERROR_PERCENT: f64 = 1.0;

pub(super) fn rest() -> Result<Vec<Check>> {
    let mut cluster = Cluster::build(Shape { balancers: 3, servers: 3, naive: false }, |_| ())?;
    let of_the_lab = cluster.config.services[0].clone();
    cluster.config.services = (0..SERVICES)
        .map(|number| {
            let (name, vip) = (format!("service-{number}"), vec![format!("{VIP}:{}/tcp", 10_000 + number)]);
            crate::config::Service { name, vip, health: Some(CHECKED), ..of_the_lab.clone() }
        })
        .collect();
    cluster.reconfigure()?;
    cluster.members.iter_mut().try_for_each(Member::start)?;
    cluster.members.iter_mut().try_for_each(|member| member.wait_ready(READY_LIMIT))?;
    interrupt::pause(SETTLING)?;
    let before = cluster.members.iter().map(Usage::of).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    interrupt::pause(REST)?;
    let mut checks = Vec::new();
    for (member, before) in cluster.members.iter().zip(&before) {
        let (now, name) = (Usage::of(member)?, member.name());
        let percent = (now.cpu - before.cpu).as_secs_f64() * 100.0 / began.elapsed().as_secs_f64();
        let mib = now.resident_kib as f64 / 1024.0;
        let cpu = format!("{percent:.2} %");
        checks.push(Check::new(
            &format!("CPU of {name}, of a core"),
            cpu,
            format!("≤ {CPU_MAX_PERCENT} %"),
            percent <= CPU_MAX_PERCENT,
        ));
        let memory = format!("{mib:.1} MiB");
        checks.push(Check::new(
            &format!("memory of {name}"),
            memory,
            format!("≤ {MEMORY_MAX_MIB} MiB"),
            mib <= MEMORY_MAX_MIB,
        ));
    }
    let serving = down_backends(&cluster.members[0])?;
    checks.push(Check::count_at_most("backends whose checks fail", serving, 0));
    Ok(checks)
}

/// What a process has used.
struct Usage {
    cpu: Duration,
    resident_kib: u64,
}

impl Usage {
    fn of(member: &Member) -> Result<Self> {
        let pid = member.pid().with_context(|| format!("{} has no agent", member.name()))?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, which may hold spaces, ends with the last bracket; utime and stime are the 14th and the 15th field.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum::<u64>();
        // SAFETY: asks for a constant of the system.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / per_second),
            resident_kib: resident.context("no VmRSS")?,
        })
    }
}

fn down_backends(member: &Member) -> Result<u64> {
    let listed = said(member, &["get", "backends", "-o", "json"])?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let backends = listed.as_array().context("no list")?;
    ensure!(backends.len() == usize::from(SERVICES) * 3, "{} backends", backends.len());
    Ok(backends.iter().filter(|backend| backend["state"] != "serving").count() as u64)
}

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
