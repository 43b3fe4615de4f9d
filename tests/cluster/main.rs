//! Clusters of real agents and datapaths under real traffic, in network namespaces. Needs root.
//!
//! Run with `--test-threads=1`: each test uses the whole machine.

/// Makes two tests of each function: with `handoff = "owner"`, and with `"direct"`.
macro_rules! in_both_modes {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            #[test]
            fn owner() {
                super::$name("owner");
            }

            #[test]
            fn direct() {
                super::$name("direct");
            }
        })*
    };
}

mod announce;
mod change;
mod claims;
mod clamp;
mod configuration;
mod direct;
mod doctor;
mod families;
mod floods;
mod health;
mod identity;
mod lab;
mod links;
mod loss;
mod maps;
mod matrix;
mod operator;
mod packets;
mod seeing;
mod survival;
mod vip;

use std::time::Duration;

use lb_common::{
    flow::{FlowEntry, FlowKeyV4},
    reason::Reason,
};
use tests::{
    cluster::{Cluster, READY_LIMIT, Shape},
    command,
    config::Config,
    interrupt,
    member::Member,
    netns::Namespace,
    tables::{monotonic_ns, ranking},
    topology::CLIENT,
};

/// How long a record may take to reach every member; what is asserted is that it does.
const REPLICATION_LIMIT: Duration = Duration::from_secs(3);

/// A cluster as operators would have it.
fn cluster(balancers: u8) -> Cluster {
    started(balancers, |_| ())
}

/// The same with another mode of hand-off.
fn cluster_with(balancers: u8, handoff: &'static str) -> Cluster {
    started(balancers, |config| config.handoff = handoff)
}

/// A cluster that keeps the letter of the claims: the pair is stored everywhere at the first packet.
///
/// Its members no longer doubt that they were told of all flows: while they do, a datagram of an unknown flow visits one
/// member more (law 1), which the claims do not speak of.
fn claims_cluster(balancers: u8) -> Cluster {
    let cluster = started(balancers, |config| config.replicate = "first-packet");
    let is_sure = |member: &Member| member.tables().liveness().unwrap().doubt_until_ns < monotonic_ns();
    let all = || cluster.members.iter().all(is_sure);
    assert!(interrupt::wait_until(READY_LIMIT, Duration::from_millis(10), all).unwrap(), "the members go on doubting");
    cluster
}

fn started(balancers: u8, tune: impl FnOnce(&mut Config)) -> Cluster {
    let mut cluster = built(balancers, tune);
    cluster.start_members().unwrap();
    maps::assert_own_maps(&cluster);
    cluster
}

/// A cluster whose agents do not run yet.
fn built(balancers: u8, tune: impl FnOnce(&mut Config)) -> Cluster {
    Cluster::build(Shape { balancers, servers: 3, naive: false }, tune).unwrap()
}

/// Ports whose flows (made by `key`) have a ranking among the members of now that satisfies `wanted`.
fn ports(cluster: &Cluster, key: fn(u16) -> FlowKeyV4, wanted: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = u16> {
    let node = cluster.members[0].tables().node().unwrap();
    (20_000..60_000).filter(move |port| wanted(&ranking(&node, &key(*port))))
}

/// Packets that all members together counted for `reason`.
fn counted(cluster: &Cluster, reason: Reason) -> u64 {
    cluster.members.iter().map(|member| member.tables().packets().unwrap().of(reason)).sum()
}

/// What `program` says, run in a namespace.
fn said(namespace: &Namespace, program: &str, arguments: &[&str]) -> String {
    command::run(namespace.command(program).args(arguments)).unwrap()
}

/// What the server's socket of the client's connection from `port` says of itself.
fn server_socket(cluster: &Cluster, server: u32, port: u16) -> String {
    let server = cluster.servers.iter().find(|other| other.number == server).unwrap();
    said(&server.host.namespace, "ss", &["--tcp", "--info", "--no-header", "dst", &format!("{CLIENT}:{port}")])
}

/// Waits until every member has an entry of the flow, and answers them by id.
fn entries_everywhere(cluster: &Cluster, key: &FlowKeyV4) -> Vec<(u8, FlowEntry)> {
    let mut entries = Vec::new();
    interrupt::wait_until(REPLICATION_LIMIT, Duration::from_millis(5), || {
        let held = |member: &Member| Some((member.id, member.tables().flow(key).ok()??));
        entries = cluster.members.iter().filter_map(held).collect();
        entries.len() == cluster.members.len()
    })
    .unwrap();
    assert_eq!(entries.len(), cluster.members.len(), "not every member knows {key:?}: {entries:?}");
    entries
}
