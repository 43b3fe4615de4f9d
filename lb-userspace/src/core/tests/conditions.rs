//! Checks and operators take backends out at all members together, and bring them back.

use lb_common::target::{TARGET_DOWN, TARGET_DRAINING, TARGET_SERVING};

use super::{
    configuration::{backends, configure, ring},
    versions::mixed,
    *,
};
use crate::core::view::AllDown;

fn checked(view: &mut View, all_down: AllDown) {
    view.services[0].checked = Some(all_down);
}

/// A cluster whose backends are checked.
fn cluster(members: u8, all_down: AllDown) -> Net {
    let mut net = Net::idle();
    for id in 1..=members {
        let mut view = view(id, members);
        checked(&mut view, all_down);
        net.add(view);
        net.start(id);
    }
    net.run(4 * S);
    net
}

fn says(net: &mut Net, id: u8, last: u8, is_up: bool) {
    net.input(id, Input::Checked { service: vip(), backend: server(last), is_up });
}

/// The servers that get new flows at a member.
fn servers(net: &Net, id: u8) -> BTreeSet<Address> {
    let backends = backends(net, id);
    ring(net, id).iter().filter(|slot| **slot != 0).map(|slot| backends[slot].0).collect()
}

fn state(net: &Net, id: u8, last: u8) -> u8 {
    let tables = net.hosts[&id].tables.as_ref().expect("tables");
    let backend = tables.backends.values().find(|backend| backend.address == server(last));
    backend.expect("a backend").state
}

/// What every one of `ids` uses.
fn all_use(net: &Net, ids: std::ops::RangeInclusive<u8>, lasts: &[u8]) -> bool {
    let wanted: BTreeSet<Address> = lasts.iter().map(|last| server(*last)).collect();
    ids.into_iter().all(|id| servers(net, id) == wanted)
}

#[test]
fn a_backend_leaves_when_most_members_say_so_and_returns_when_most_do() {
    let mut net = cluster(3, AllDown::Keep);
    says(&mut net, 2, 1, false);
    net.run(S);
    assert!(all_use(&net, 1..=3, &[1, 2]), "one member's broken path");
    says(&mut net, 3, 1, false);
    net.run(200 * MS);
    assert!(all_use(&net, 1..=3, &[2]));
    assert!((1..=3).all(|id| state(&net, id, 1) == TARGET_DOWN && net.hosts[&id].liveness.eligible == 0b111));
    says(&mut net, 2, 1, true);
    net.run(S);
    assert!(all_use(&net, 1..=3, &[2]), "one up, one down, one without an opinion");
    says(&mut net, 1, 1, true);
    net.run(200 * MS);
    assert!(all_use(&net, 1..=3, &[1, 2]));
    assert_eq!(net.reports(2, |event| matches!(event, Event::Backend { is_down: true, .. })), 1);
    assert_eq!(net.reports(2, |event| matches!(event, Event::Backend { is_down: false, .. })), 1);
}

#[test]
fn two_members_must_agree_and_one_decides_alone() {
    let mut net = cluster(2, AllDown::Keep);
    says(&mut net, 1, 1, false);
    says(&mut net, 2, 1, true);
    net.run(S);
    assert!(all_use(&net, 1..=2, &[1, 2]));
    net.kill(2);
    net.run(S);
    assert!(all_use(&net, 1..=1, &[2]), "the other's agent is gone, and its opinion with it");
    net.start(2);
    net.run(4 * S);
    assert!(all_use(&net, 1..=2, &[2]), "who comes back has no opinion, and learns what is");
}

#[test]
fn the_last_backend_stays_or_goes_as_configured() {
    for (all_down, left) in [(AllDown::Keep, vec![2]), (AllDown::Drop, vec![])] {
        let mut net = cluster(1, all_down);
        says(&mut net, 1, 1, false);
        net.run(S);
        says(&mut net, 1, 2, false);
        net.run(S);
        assert!(all_use(&net, 1..=1, &left), "{all_down:?}");
        says(&mut net, 1, 1, true);
        net.run(S);
        assert!(all_use(&net, 1..=1, &[1]), "{all_down:?}: the one that was kept goes as soon as another is back");
    }
}

#[test]
fn a_backend_that_was_kept_goes_when_another_is_no_longer_drained() {
    let mut net = cluster(1, AllDown::Keep);
    net.input(1, Input::DrainBackend { backend: "web-2".into(), service: None, drain: true });
    net.run(S);
    says(&mut net, 1, 1, false);
    net.run(S);
    assert!(all_use(&net, 1..=1, &[1]), "the last that takes new flows stays");
    net.input(1, Input::DrainBackend { backend: "web-2".into(), service: None, drain: false });
    net.run(S);
    assert!(all_use(&net, 1..=1, &[2]));
}

#[test]
fn a_member_that_hears_nobody_for_a_moment_takes_no_backend_out_for_good() {
    let mut net = cluster(3, AllDown::Keep);
    for id in 1..=3 {
        says(&mut net, id, 1, id != 3);
    }
    net.cut.extend([(1, 3), (2, 3)]);
    net.run(600 * MS);
    assert_eq!(
        net.reports(3, |event| matches!(event, Event::Backend { is_down: true, .. })),
        1,
        "alone it decides alone"
    );
    net.cut.clear();
    net.run(5 * S);
    assert!(all_use(&net, 1..=3, &[1, 2]));
}

#[test]
fn an_opinion_of_a_backend_that_is_not_configured_here_yet_counts_once_it_is() {
    let mut net = cluster(2, AllDown::Keep);
    let add = |view: &mut View| view.services[0].backends.push(backend(3));
    configure(&mut net, 2, add);
    says(&mut net, 2, 3, false);
    net.run(S);
    configure(&mut net, 1, add);
    says(&mut net, 1, 3, false);
    net.run(S);
    assert!(all_use(&net, 1..=2, &[1, 2]));
}

#[test]
fn an_operator_drains_a_backend_at_one_member_and_all_follow() {
    let mut net = Net::new(3);
    let order = |drain| Input::DrainBackend { backend: "web-1".into(), service: None, drain };
    net.input(3, order(true));
    net.run(200 * MS);
    assert!(all_use(&net, 1..=3, &[2]) && (1..=3).all(|id| state(&net, id, 1) == TARGET_DRAINING));
    net.input(2, order(false));
    net.run(200 * MS);
    assert!(all_use(&net, 1..=3, &[1, 2]) && (1..=3).all(|id| state(&net, id, 1) == TARGET_SERVING));
}

#[test]
fn a_joiner_and_a_restarted_member_know_what_the_others_know() {
    let mut net = cluster(3, AllDown::Keep);
    net.isolate(3);
    net.run(S);
    says(&mut net, 1, 1, false);
    says(&mut net, 2, 1, false);
    net.run(S);
    assert!(all_use(&net, 1..=2, &[2]));
    net.cut.clear();
    net.run(10 * S);
    assert!(all_use(&net, 1..=3, &[2]));
    // All agents die; the datapath has kept what they knew.
    (1..=3).for_each(|id| net.kill(id));
    net.run(S);
    (1..=3).for_each(|id| net.start(id));
    assert!(all_use(&net, 1..=3, &[2]));
    net.run(10 * S);
    assert!(all_use(&net, 1..=3, &[2]));
}

#[test]
fn a_backend_that_is_no_longer_checked_is_up() {
    let mut net = cluster(1, AllDown::Keep);
    says(&mut net, 1, 1, false);
    net.run(S);
    assert!(all_use(&net, 1..=1, &[2]));
    configure(&mut net, 1, |view| view.services[0].checked = None);
    net.run(S);
    assert!(all_use(&net, 1..=1, &[1, 2]));
}

#[test]
fn beside_a_member_that_knows_no_conditions_nothing_changes() {
    let mut net = mixed(2);
    for id in 1..=2 {
        configure(&mut net, id, |view| checked(view, AllDown::Keep));
    }
    net.run(S);
    says(&mut net, 1, 1, false);
    says(&mut net, 2, 1, false);
    net.run(S);
    assert!(all_use(&net, 1..=2, &[1, 2]));
}
