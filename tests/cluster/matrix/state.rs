//! E: what becomes of the flows' state.

use std::{thread, time::Duration};

use tests::{
    cluster::tcp_flow,
    traffic::{
        caller::Caller,
        load::{Load, Plan},
    },
};

use super::{CONNECTIONS, OPEN_LIMIT, Scene};

/// A table too small for the load: those who find no room are answered like everybody, and nobody makes room for them.
#[test]
fn e43_the_table_is_full() {
    let cluster = crate::started(3, |config| config.flows_max = Some(512));
    let load = Load::start(&cluster.topology.client, Plan::mixed(CONNECTIONS)).unwrap();
    load.wait_open(OPEN_LIMIT).unwrap();
    thread::sleep(Duration::from_secs(2));
    let held = cluster.members[0].tables().all_flows().unwrap().len();
    assert!((256..=512).contains(&held), "{held} entries");
    let scene = Scene { load, cluster };
    scene.pause(1000);
    scene.nothing_broke();
}

/// A client's port is used again at once: the tuple stays with its server, or is placed anew with it.
#[test]
fn e46_a_tuple_is_used_again_within_a_second() {
    let scene = Scene::of_long_ones(3);
    let client = &scene.cluster.topology.client;
    client.sysctl("ipv4/tcp_tw_reuse", "1").unwrap();
    client.sysctl("ipv4/tcp_tw_reuse_delay", "50").unwrap();
    for round in 0..10 {
        thread::sleep(Duration::from_millis(200));
        for port in 9000..9010 {
            let mut caller = Caller::open(&scene.cluster.topology.client, port).unwrap();
            caller.ask().unwrap_or_else(|error| panic!("round {round}, port {port}: {error:#}"));
        }
    }
    scene.nothing_broke();
}

/// The owner dies while a flow is silent; its next packet finds the flow known.
#[test]
fn e48_a_silent_flow_survives_its_primary() {
    let mut scene = Scene::of_long_ones(3);
    let idle: Vec<u16> =
        scene.load.ledger().long().iter().map(|record| record.facts().port).take(CONNECTIONS).collect();
    let entries = scene.cluster.members[0].tables();
    let owned = idle.iter().filter(|port| entries.flow(&tcp_flow(**port)).unwrap().is_some_and(|e| e.primary == 1));
    assert!(owned.count() > CONNECTIONS / 5);
    scene.cluster.cut(1).unwrap();
    scene.pause(3000);
    scene.nothing_broke();
}
