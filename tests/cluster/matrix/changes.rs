//! C: members and servers come and go under load.

use std::time::Duration;

use tests::{cluster::READY_LIMIT, traffic::record::Fault};

use super::Scene;

const STOP_LIMIT: Duration = Duration::from_secs(5);

fn drain(scene: &mut Scene, at: usize) {
    let name = scene.cluster.servers[at].name().to_owned();
    scene.cluster.config.drain(&name);
}

#[test]
fn c25_the_cluster_grows_from_two_members_to_five_and_shrinks_again() {
    let mut scene = Scene::of(2);
    for id in 3..=5 {
        scene.cluster.add_balancer(id).unwrap();
        scene.cluster.reconfigure().unwrap();
        let member = scene.cluster.member(id).unwrap();
        member.start().unwrap();
        member.wait_ready(READY_LIMIT).unwrap();
        scene.cluster.announce(id).unwrap();
    }
    scene.pause(500);
    for (id, rest) in [(1, &[2, 3, 4, 5][..]), (2, &[3, 4, 5]), (4, &[3, 5])] {
        scene.cluster.receive_at(rest).unwrap();
        scene.pause(50);
        scene.cluster.member(id).unwrap().stop(STOP_LIMIT).unwrap();
        scene.cluster.config.members.retain(|member| member.id != id);
        scene.cluster.reconfigure().unwrap();
        scene.pause(500);
    }
    scene.nothing_broke();
}

#[test]
fn c26_a_server_is_added_one_drained_and_one_replaced() {
    let mut scene = Scene::of(3);
    let added = scene.cluster.add_server(4).unwrap();
    scene.cluster.config.add_backend(&scene.cluster.servers[added].host);
    scene.cluster.reconfigure().unwrap();
    scene.pause(500);
    drain(&mut scene, 0);
    scene.cluster.reconfigure().unwrap();
    scene.pause(500);
    let replacement = scene.cluster.add_server(5).unwrap();
    scene.cluster.config.add_backend(&scene.cluster.servers[replacement].host);
    drain(&mut scene, 1);
    scene.cluster.reconfigure().unwrap();
    scene.pause(1000);
    scene.nothing_broke();
}

#[test]
fn c26_half_of_the_servers_leave_at_once() {
    let mut scene = Scene::of(3);
    drain(&mut scene, 0);
    drain(&mut scene, 1);
    scene.cluster.reconfigure().unwrap();
    scene.pause(1500);
    scene.nothing_broke();
}

/// The headline: one of three balancers dies while one server joins and another is drained.
#[test]
fn c27_a_member_dies_while_a_server_joins_and_another_is_drained() {
    let mut scene = Scene::of_long_ones(3);
    let added = scene.cluster.add_server(4).unwrap();
    scene.cluster.config.add_backend(&scene.cluster.servers[added].host);
    drain(&mut scene, 1);
    scene.cluster.cut(3).unwrap();
    scene.cluster.reconfigure().unwrap();
    scene.pause(1500);
    scene.nothing_broke();
}

/// Nobody can answer for a dead server; nobody else notices.
#[test]
fn c28_a_server_dies_and_only_its_connections_break() {
    let mut scene = Scene::of_long_ones(3);
    let host = scene.cluster.servers[0].host.clone();
    let number = scene.cluster.servers[0].number;
    scene.cluster.topology.cut_link(&host).unwrap();
    drain(&mut scene, 0);
    scene.cluster.reconfigure().unwrap();
    scene.pause(1000);
    scene.load.wake_idle();
    let ledger = scene.load.finish();
    let broken = ledger.broken();
    assert!(!broken.is_empty(), "a dead server answers");
    for record in broken {
        let facts = record.facts();
        assert_eq!(facts.server, number, "{facts:?}");
        assert!(matches!(facts.fault, Some((Fault::Timeout | Fault::Reset, _))), "{facts:?}");
    }
}

#[test]
fn c30_members_reload_one_after_the_other_and_one_of_them_late() {
    let mut scene = Scene::of(3);
    drain(&mut scene, 0);
    scene.cluster.write_config().unwrap();
    for id in [3, 1, 2] {
        scene.cluster.member(id).unwrap().reload().unwrap();
        scene.pause(1500);
    }
    scene.nothing_broke();
}
