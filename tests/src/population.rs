//! Established flows that a cluster holds without anybody having sent their packets.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, bail};
use lb_common::{
    flow::{FlowEntry, FlowKey, FlowKeyV4, STATE_ESTABLISHED, TCP, WITNESSED, tick},
    node::Node,
};

use crate::{
    interrupt,
    member::Member,
    tables::{monotonic_ns, ranking},
    topology::VIP,
};

/// The sweep finds what was written into a table, and peers are told.
const SPREAD_LIMIT: Duration = Duration::from_secs(60);

/// Writes `count` entries as the datapath would; the agent's sweep makes records of them.
pub fn fill(member: &Member, count: u32) -> Result<()> {
    let tables = member.tables();
    let node = tables.node()?;
    let mut flows = tables.flows()?;
    for number in 0..count {
        let key = key(number);
        flows.insert(key, entry(&node, &key), 0).context("cannot write a flow")?;
    }
    Ok(())
}

/// Waits until a member has been told of all `count`.
pub fn wait(member: &Member, count: u32) -> Result<()> {
    let all = || flows_of(member).is_ok_and(|held| held >= u64::from(count));
    if !interrupt::wait_until(SPREAD_LIMIT, Duration::from_millis(200), all)? {
        bail!("{} has {} of {count} flows after {SPREAD_LIMIT:?}", member.name(), flows_of(member)?);
    }
    Ok(())
}

/// How many of the `count` a member does not have.
pub fn missing(member: &Member, count: u32) -> Result<u64> {
    let held: HashSet<FlowKeyV4> = member.tables().flows()?.keys().flatten().collect();
    Ok((0..count).filter(|number| !held.contains(&key(*number))).count() as u64)
}

/// How many flows a member has, of whatever kind.
pub fn flows_of(member: &Member) -> Result<u64> {
    Ok(member.tables().flows()?.keys().flatten().count() as u64)
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
