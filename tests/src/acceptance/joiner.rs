//! How long a joiner takes to hold what the others hold.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lb_common::{
    flow::{FlowEntry, FlowKey, FlowKeyV4, STATE_ESTABLISHED, TCP, WITNESSED, tick},
    node::Node,
};

use crate::{
    check::Check,
    cluster::{Cluster, READY_LIMIT, Shape},
    interrupt,
    member::Member,
    tables::{monotonic_ns, ranking},
    topology::VIP,
};

const FLOWS: u32 = 100_000;
const READY_MAX_MS: f64 = 2_000.0;
/// Peers find what was written into a table by their sweep, and send it on.
const SPREAD_LIMIT: Duration = Duration::from_secs(60);
/// TCP's state ESTABLISHED in /proc/net/tcp, and the default port of the cluster there.
const ESTABLISHED: &str = "01";
const CLUSTER_PORT: &str = ":1CE8";

pub(super) fn run() -> Result<Vec<Check>> {
    let mut cluster = Cluster::start(Shape { balancers: 2, servers: 4, naive: false }, |_| ())?;
    fill(&cluster.members[0])?;
    wait_for_flows(&cluster.members[1], SPREAD_LIMIT).context("before anybody joined")?;

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
    let held = count(joiner)?;
    Ok(vec![
        Check::ms_at_most("first session to ready", Some(took), READY_MAX_MS),
        Check::count_at_least("flows in its table when ready", held, u64::from(FLOWS)),
    ])
}

/// Writes entries as the datapath would; the agent's sweep makes records of them.
fn fill(member: &Member) -> Result<()> {
    let tables = member.tables();
    let node = tables.node()?;
    let mut flows = tables.flows()?;
    for number in 0..FLOWS {
        let key = key(number);
        flows.insert(key, entry(&node, &key), 0).context("cannot write a flow")?;
    }
    Ok(())
}

fn key(number: u32) -> FlowKeyV4 {
    let [_, _, high, low] = (number / 50_000).to_be_bytes();
    FlowKeyV4 {
        source: [10, 7, high, low],
        destination: VIP.octets(),
        source_port: (10_000 + (number % 50_000) as u16).to_be_bytes(),
        destination_port: 80_u16.to_be_bytes(),
        protocol: TCP,
        padding: [0; 3],
    }
}

fn entry(node: &Node, key: &FlowKeyV4) -> FlowEntry {
    let ranked = ranking(node, key);
    let now = tick(monotonic_ns());
    FlowEntry {
        last_seen: now,
        created: now,
        tag: key.tag(),
        creator_incarnation: node.incarnation,
        generation: 0,
        revision: 0,
        term: 0,
        backend: 1,
        state: STATE_ESTABLISHED,
        packets: 3,
        creator: node.id | WITNESSED,
        primary: ranked[0],
        backup: ranked[1],
        event: 0,
        padding: [0; 2],
    }
}

fn wait_for_flows(member: &Member, limit: Duration) -> Result<()> {
    let all = || count(member).is_ok_and(|held| held >= u64::from(FLOWS));
    if !interrupt::wait_until(limit, Duration::from_millis(200), all)? {
        bail!("{} has {} of {FLOWS} flows after {limit:?}", member.name(), count(member)?);
    }
    Ok(())
}

fn count(member: &Member) -> Result<u64> {
    Ok(member.tables().flows()?.keys().flatten().count() as u64)
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
