//! B: faults of the network between members. Clients and servers are reached all the while.

use std::time::Duration;

use lb_common::rank::bit;
use tests::{cluster::READY_LIMIT, interrupt, member};

use super::Scene;

/// Packets from each of `from` to each of `to` are lost.
fn lost(scene: &Scene, from: &[u8], to: &[u8]) -> Vec<String> {
    let address = |id: u8| scene.cluster.members[usize::from(id) - 1].host.address;
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))).filter(|(from, to)| from != to);
    pairs.map(|(from, to)| format!("ip saddr {} ip daddr {} drop", address(from), address(to))).collect()
}

fn lost_both_ways(scene: &Scene, some: &[u8], others: &[u8]) -> Vec<String> {
    [lost(scene, some, others), lost(scene, others, some)].concat()
}

/// Whether a member misses another.
fn sees_not_all(scene: &Scene) -> bool {
    let members = &scene.cluster.members;
    let all = members.iter().fold(0, |mask, member| mask | bit(member.id));
    members.iter().any(|member| member.tables().liveness().unwrap().forwarding != all)
}

/// The network does this for so long; then it heals, and all know the same.
#[track_caller]
fn survives(scene: Scene, rules: &[String], milliseconds: u64) {
    scene.cluster.topology.disturb(rules).unwrap();
    scene.pause(milliseconds);
    assert!(sees_not_all(&scene), "nobody noticed");
    scene.cluster.topology.disturb(&[]).unwrap();
    scene.tables_agree();
    scene.nothing_broke();
}

#[test]
fn b13_halves_do_not_hear_each_other() {
    let scene = Scene::of_long_ones(4);
    let rules = lost_both_ways(&scene, &[1, 2], &[3, 4]);
    survives(scene, &rules, 3000);
}

#[test]
fn b14_one_member_hears_another_that_does_not_hear_it() {
    let scene = Scene::of_long_ones(3);
    let rules = lost(&scene, &[1], &[2]);
    survives(scene, &rules, 3000);
}

/// Who does not hear whom is told by the two of them to everybody, in their probes.
#[test]
fn b14_status_says_which_link_carries_one_direction_only() {
    let scene = Scene::of_long_ones(3);
    scene.cluster.topology.disturb(&lost(&scene, &[1], &[2])).unwrap();
    let says = |of: u8, about: u8, field: &str| {
        let members = status(&scene, of)["members"].take();
        members[usize::from(about) - 1][field].clone()
    };
    let lists = |of: u8, about: u8| -> Vec<String> { serde_json::from_value(says(of, about, "not_seen_by")).unwrap() };
    // The echoes of 2's probes go the way that is broken, too.
    let is_told = || lists(3, 1) == ["lb2"] && lists(3, 2) == ["lb1"] && lists(3, 3).is_empty();
    assert!(interrupt::wait_until(READY_LIMIT, Duration::from_millis(100), is_told).unwrap(), "{}", status(&scene, 3));
    assert_eq!((says(1, 2, "forwarding"), says(2, 1, "forwarding")), (false.into(), false.into()));
    assert_eq!((says(3, 1, "forwarding"), says(3, 2, "forwarding")), (true.into(), true.into()));
    let problems = |of| status(&scene, of)["problems"].to_string();
    assert!(problems(3).contains("is not seen by lb2, and is from here"), "{}", problems(3));
    let one_way = "while its probes arrive: the link carries one direction only";
    let is_clear = || problems(1).contains(one_way) && problems(2).contains("lb1 is not forwarding: last echo");
    let is_clear = interrupt::wait_until(READY_LIMIT, Duration::from_millis(100), is_clear).unwrap();
    assert!(is_clear && !problems(2).contains(one_way), "{} {}", problems(1), problems(2));
    assert!(problems(2).contains("lb3 can see it"), "{}", problems(2));
    scene.cluster.topology.disturb(&[]).unwrap();
    let is_whole = || (1..=3).all(|about| lists(3, about).is_empty());
    assert!(interrupt::wait_until(READY_LIMIT, Duration::from_millis(100), is_whole).unwrap());
    scene.nothing_broke();
}

/// `tandem status -o json` on a member's host.
fn status(scene: &Scene, id: u8) -> serde_json::Value {
    let member = &scene.cluster.members[usize::from(id) - 1];
    let mut command = member.host.namespace.command(member::binary().unwrap());
    let command = command.args(["status", "-o", "json", "--pin-dir"]).arg(member.pins());
    let said = command.arg("--config").arg(member.config()).output().unwrap();
    serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"))
}

#[test]
fn b15_two_members_hear_each_other_through_a_third_only() {
    let scene = Scene::of_long_ones(3);
    let rules = lost_both_ways(&scene, &[1], &[3]);
    survives(scene, &rules, 3000);
}

#[test]
fn b16_one_member_is_alone() {
    let scene = Scene::of_long_ones(3);
    let rules = lost_both_ways(&scene, &[2], &[1, 3]);
    survives(scene, &rules, 3000);
}

#[test]
fn b17_a_partition_heals_after_a_second_five_times() {
    let scene = Scene::of_long_ones(3);
    let rules = lost_both_ways(&scene, &[1], &[2, 3]);
    for _ in 0..4 {
        scene.cluster.topology.disturb(&rules).unwrap();
        scene.pause(1000);
        scene.cluster.topology.disturb(&[]).unwrap();
        scene.pause(1000);
    }
    survives(scene, &rules, 1000);
}

/// Hand-offs are lost as well as what members say to each other: connections are slowed down, none breaks.
#[test]
fn b18_the_network_between_members_loses_1_5_and_20_percent() {
    let scene = Scene::of_long_ones(3);
    let members = "ip saddr 10.0.1.0/24 ip daddr 10.0.1.0/24";
    for percent in [1, 5] {
        scene.cluster.topology.disturb(&[format!("{members} numgen random mod 100 < {percent} drop")]).unwrap();
        scene.pause(2000);
    }
    scene.cluster.topology.disturb(&[format!("{members} numgen random mod 100 < 20 drop")]).unwrap();
    scene.pause(2000);
    scene.cluster.topology.disturb(&[]).unwrap();
    scene.tables_agree();
    scene.nothing_broke();
}

#[test]
fn b22_the_router_sends_all_flows_elsewhere_each_second() {
    let mut scene = Scene::of(3);
    for round in 0..6 {
        scene.cluster.receive_at(&[round % 3 + 1]).unwrap();
        scene.pause(1000);
    }
    scene.cluster.receive_at(&[1, 2, 3]).unwrap();
    scene.nothing_broke();
}
