//! What can be seen from outside in the members' maps.

use std::{collections::BTreeSet, process::Command, thread, time::Duration};

use lb_common::maps;
use tests::{cluster::Cluster, command, traffic::caller::Caller};

use crate::{claims_cluster, cluster, entries_everywhere};

/// Members that share a map by accident replicate without replication: every test would pass.
pub(crate) fn assert_own_maps(cluster: &Cluster) {
    for name in [maps::FLOWS, maps::PENDING, maps::LIVENESS, maps::HEARD, maps::BACKENDS, maps::NODE, maps::COUNTERS] {
        let ids: BTreeSet<u32> = cluster.members.iter().map(|member| member.tables().map_id(name).unwrap()).collect();
        assert_eq!(ids.len(), cluster.members.len(), "members share `{name}`");
    }
}

#[test]
fn members_on_one_host_have_maps_of_their_own() {
    assert_own_maps(&cluster(3));
}

#[test]
fn bpftool_prints_the_flow_table_with_named_fields() {
    let cluster = claims_cluster(2);
    let mut caller = Caller::open(&cluster.topology.client, 40_000).unwrap();
    caller.ask().unwrap();
    entries_everywhere(&cluster, &tests::cluster::tcp_flow(40_000));
    for member in &cluster.members {
        let pin = member.pins().join(maps::FLOWS);
        let printed = command::run(Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin)).unwrap();
        for field in ["source", "destination_port", "last_seen", "generation", "backend", "primary", "backup", "state"]
        {
            assert!(printed.contains(&format!("\"{field}\"")), "no field {field} in:\n{printed}");
        }
    }
}

#[test]
fn a_restarted_agent_adopts_its_maps_with_all_flows() {
    let mut cluster = claims_cluster(2);
    let mut callers: Vec<Caller> =
        (41_000..41_020).map(|port| Caller::open(&cluster.topology.client, port).unwrap()).collect();
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    for port in 41_000..41_020 {
        entries_everywhere(&cluster, &tests::cluster::tcp_flow(port));
    }
    let ids = |cluster: &Cluster| -> Vec<u32> {
        [maps::FLOWS, maps::PENDING, maps::BACKENDS, maps::COUNTERS]
            .iter()
            .map(|name| cluster.members[0].tables().map_id(name).unwrap())
            .collect()
    };
    let before = ids(&cluster);
    let member = cluster.member(1).unwrap();
    member.kill().unwrap();
    thread::sleep(Duration::from_millis(300));
    member.start().unwrap();
    member.wait_ready(tests::cluster::READY_LIMIT).unwrap();
    assert_eq!(ids(&cluster), before, "the maps were made anew");
    for port in 41_000..41_020 {
        entries_everywhere(&cluster, &tests::cluster::tcp_flow(port));
    }
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
}
