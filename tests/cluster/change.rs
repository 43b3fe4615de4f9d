//! Members and servers come and go by configuration, under traffic.

use std::{thread, time::Duration};

use lb_common::reason::{Action, Reason};
use tests::{
    cluster::{Cluster, READY_LIMIT, tcp_flow},
    interrupt::wait_until,
    tables::sees_forwarding,
    traffic::{
        caller::Caller,
        load::{Load, Plan},
    },
};

use crate::{cluster_with, entries_everywhere, ports};

/// A goodbye, and detaching, take a fraction of it.
const STOP_LIMIT: Duration = Duration::from_secs(5);

in_both_modes! {
    a_member_joins_under_load_and_knows_every_flow,
    draining_a_server_keeps_its_established_connections,
    servers_change_and_a_member_dies_in_the_same_second,
}

fn loaded(cluster: &Cluster, plan: Plan) -> Load {
    let load = Load::start(&cluster.topology.client, plan).unwrap();
    load.wait_open(Duration::from_secs(15)).unwrap();
    thread::sleep(Duration::from_millis(700));
    load
}

fn a_member_joins_under_load_and_knows_every_flow(handoff: &'static str) {
    let mut cluster = cluster_with(2, handoff);
    let load = loaded(&cluster, Plan { shorts_per_second: 30, ..Plan::mixed(60) });
    cluster.add_balancer(3).unwrap();
    cluster.reconfigure().unwrap();
    let newcomer = cluster.member(3).unwrap();
    newcomer.start().unwrap();
    newcomer.wait_ready(READY_LIMIT).unwrap();
    crate::maps::assert_own_maps(&cluster);
    for record in load.ledger().long() {
        entries_everywhere(&cluster, &tcp_flow(record.facts().port));
    }
    cluster.announce(3).unwrap();
    load.wake_idle();
    thread::sleep(Duration::from_millis(500));
    let ledger = load.finish();
    assert!(ledger.broken().is_empty(), "{:#?}", ledger.broken());
    assert_eq!(ledger.shorts().handshakes_failed, 0);
}

fn draining_a_server_keeps_its_established_connections(handoff: &'static str) {
    let mut cluster = cluster_with(2, handoff);
    let mut callers: Vec<Caller> =
        (42_000..42_030).map(|port| Caller::open(&cluster.topology.client, port).unwrap()).collect();
    for _ in 0..3 {
        callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    }
    let on_drained = callers.iter().filter(|caller| caller.server() == 1).count();
    assert!(on_drained > 0, "30 connections, none on the server that will be drained");
    for caller in &callers {
        entries_everywhere(&cluster, &tcp_flow(caller.port()));
    }
    let name = cluster.servers[0].name().to_owned();
    cluster.config.drain(&name);
    cluster.reconfigure().unwrap();
    thread::sleep(Duration::from_secs(1));
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    for port in 43_000..43_040 {
        let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
        caller.ask().unwrap();
        assert_ne!(caller.server(), 1, "a new connection went to the drained server");
    }
}

fn servers_change_and_a_member_dies_in_the_same_second(handoff: &'static str) {
    let mut cluster = cluster_with(3, handoff);
    let added = cluster.add_server(4).unwrap();
    let load = loaded(&cluster, Plan::mixed(60));
    cluster.cut(3).unwrap();
    cluster.config.add_backend(&cluster.servers[added].host);
    let drained = cluster.servers[1].name().to_owned();
    cluster.config.drain(&drained);
    cluster.reconfigure().unwrap();
    thread::sleep(Duration::from_millis(800));
    load.wake_idle();
    cluster.revive(3).unwrap();
    cluster.member(3).unwrap().wait_ready(READY_LIMIT).unwrap();
    cluster.announce(3).unwrap();
    thread::sleep(Duration::from_millis(500));
    let ledger = load.finish();
    let what: Vec<_> = ledger.broken().iter().map(|record| (record.kind, record.facts())).collect();
    assert!(what.is_empty(), "{what:#?}");
}

#[test]
fn a_member_that_replaces_another_at_its_address_belongs_to_the_cluster() {
    let mut cluster = crate::started(3, |config| config.on_stop = Some("detach"));
    cluster.member(3).unwrap().stop(STOP_LIMIT).unwrap();
    cluster.config.members.iter_mut().filter(|member| member.id == 3).for_each(|member| member.id = 4);
    cluster.reconfigure().unwrap();
    let newcomer = cluster.member(3).unwrap();
    newcomer.id = 4;
    newcomer.start().unwrap();
    newcomer.wait_ready(READY_LIMIT).unwrap();
    for id in [1, 2] {
        let map = cluster.member(id).unwrap().tables().liveness_map().unwrap();
        let sees = || sees_forwarding(&map, 4).unwrap();
        assert!(wait_until(READY_LIMIT, Duration::from_millis(5), sees).unwrap(), "member {id} does not see it");
    }
    cluster.receive_at(&[1, 2]).unwrap();
    let owned: Vec<u16> = ports(&cluster, tcp_flow, |ranked| ranked[0] == 4).take(10).collect();
    for port in owned {
        Caller::open(&cluster.topology.client, port).unwrap().ask().unwrap();
    }
    let packets = cluster.member(4).unwrap().tables().packets().unwrap();
    assert!(packets.ended_in(Action::Deliver) > 0);
    assert_eq!(packets.of(Reason::DropStranger), 0);
}

#[test]
fn an_agent_that_adopted_its_datapath_can_take_it_off() {
    let mut cluster = crate::started(2, |config| config.on_stop = Some("detach"));
    let member = cluster.member(2).unwrap();
    member.kill().unwrap();
    member.start().unwrap();
    member.wait_ready(READY_LIMIT).unwrap();
    member.stop(STOP_LIMIT).unwrap();
    let left: Vec<_> = std::fs::read_dir(member.pins()).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
