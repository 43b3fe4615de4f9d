//! Clusters of real agents and datapaths under real traffic, in network namespaces. Needs root.
//!
//! Run with `--test-threads=1`: each test uses the whole machine.

mod change;
mod claims;
mod lab;
mod loss;
mod maps;

use std::time::Duration;

use lb_common::flow::{FlowEntry, FlowKeyV4};
use tests::{
    cluster::{Cluster, Shape},
    config::Config,
    interrupt,
    tables::ranking,
};

/// How long a record may take to reach every member; what is asserted is that it does.
const REPLICATION_LIMIT: Duration = Duration::from_secs(3);

/// A cluster as operators would have it.
fn cluster(balancers: u8) -> Cluster {
    started(balancers, |_| ())
}

/// A cluster that keeps the letter of the claims: the pair is stored everywhere at the first packet.
fn claims_cluster(balancers: u8) -> Cluster {
    started(balancers, |config| config.replicate = "first-packet")
}

fn started(balancers: u8, tune: impl FnOnce(&mut Config)) -> Cluster {
    let cluster = Cluster::start(Shape { balancers, servers: 3, naive: false }, tune).unwrap();
    maps::assert_own_maps(&cluster);
    cluster
}

/// Ports whose flows (made by `key`) have a ranking among the members of now that satisfies `wanted`.
fn ports(cluster: &Cluster, key: fn(u16) -> FlowKeyV4, wanted: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = u16> {
    let node = cluster.members[0].tables().node().unwrap();
    (20_000..60_000).filter(move |port| wanted(&ranking(&node, &key(*port))))
}

/// Waits until every member has an entry of the flow, and answers them by id.
fn entries_everywhere(cluster: &Cluster, key: &FlowKeyV4) -> Vec<(u8, FlowEntry)> {
    let mut entries = Vec::new();
    interrupt::wait_until(REPLICATION_LIMIT, Duration::from_millis(5), || {
        let held = |member: &tests::member::Member| Some((member.id, member.tables().flow(key).ok()??));
        entries = cluster.members.iter().filter_map(held).collect();
        entries.len() == cluster.members.len()
    })
    .unwrap();
    assert_eq!(entries.len(), cluster.members.len(), "not every member knows {key:?}: {entries:?}");
    entries
}
