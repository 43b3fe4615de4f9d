//! How long a joiner takes to hold what the others hold.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    check::Check,
    cluster::{Cluster, READY_LIMIT, Shape},
    interrupt,
    member::Member,
    population,
};

const FLOWS: u32 = 100_000;
const READY_MAX_MS: f64 = 2_000.0;
/// TCP's state ESTABLISHED in /proc/net/tcp, and the default port of the cluster there.
const ESTABLISHED: &str = "01";
const CLUSTER_PORT: &str = ":1CE8";

pub(super) fn run() -> Result<Vec<Check>> {
    let mut cluster = Cluster::start(Shape { balancers: 2, servers: 4, naive: false }, |_| ())?;
    population::fill(&cluster.members[0], FLOWS)?;
    population::wait(&cluster.members[1], FLOWS).context("before anybody joined")?;

    cluster.add_balancer(3)?;
    cluster.reconfigure()?;
    let joiner = cluster.member(3)?;
    joiner.start()?;
    let session = first_session(joiner)?;
    while !joiner.is_ready() {
        if session.elapsed() > READY_LIMIT {
            joiner.wait_ready(Duration::ZERO)?;
        }
        interrupt::pause(Duration::from_millis(1))?;
    }
    let took = session.elapsed().as_secs_f64() * 1e3;
    let held = population::flows_of(joiner)?;
    Ok(vec![
        Check::ms_at_most("first session to ready", Some(took), READY_MAX_MS),
        Check::count_at_least("flows in its table when ready", held, u64::from(FLOWS)),
    ])
}

/// When the member's first TCP connection with a peer is there.
fn first_session(member: &Member) -> Result<Instant> {
    let pid = member.pid().context("the joiner's agent does not run")?;
    let sockets = format!("/proc/{pid}/net/tcp");
    let connected = || {
        let is_session = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = |at: usize| fields.get(at).is_some_and(|address| address.ends_with(CLUSTER_PORT));
            (port(1) || port(2)) && fields.get(3) == Some(&ESTABLISHED)
        };
        fs::read_to_string(&sockets).is_ok_and(|table| table.lines().any(is_session))
    };
    if !interrupt::wait_until(READY_LIMIT, Duration::from_millis(1), connected)? {
        bail!("{} has no session with a peer; its agent's log:\n{}", member.name(), member.log());
    }
    Ok(Instant::now())
}
