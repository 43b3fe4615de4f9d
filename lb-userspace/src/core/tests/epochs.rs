//! Changes of servers: all members together, one reload after the other, whoever dies in between.

use lb_common::{flow::STATE_YOUNG, maps::PREVIOUS_RINGS, ring::RING_SLOTS, target::TARGET_REMOVED};

use super::{
    configuration::{backends, configure, configure_all, ring},
    versions::mixed,
    *,
};
use crate::core::epochs::fingerprint;

fn only_third(view: &mut View) {
    view.services = vec![web(vec![backend(3)])];
}

/// The servers that get new flows at a member.
fn servers(net: &Net, id: u8) -> BTreeSet<Address> {
    let backends = backends(net, id);
    ring(net, id).iter().map(|slot| backends[slot].0).collect()
}

fn old_servers() -> BTreeSet<Address> {
    [server(1), server(2)].into()
}

fn number(net: &Net, id: u8) -> u32 {
    net.core(id).status().epoch.number
}

#[test]
fn members_that_start_with_one_set_agree_on_the_first_epoch() {
    let net = Net::new(3);
    assert!((1..=3).all(|id| number(&net, id) == 1 && net.hosts[&id].liveness.eligible == 0b111));
    assert!((1..=3).all(|id| !net.core(id).status().epoch.is_pending));
}

#[test]
fn a_rolling_reload_in_any_order_changes_all_members_at_its_end() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3], [2, 3, 1], [1, 3, 2], [3, 1, 2]] {
        let mut net = Net::new(3);
        for (done, id) in order.into_iter().enumerate() {
            assert!((1..=3).all(|id| servers(&net, id) == old_servers()), "{order:?} after {done}");
            configure(&mut net, id, only_third);
            net.run(20 * S);
            assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111), "{order:?} after {done}");
        }
        assert!((1..=3).all(|id| servers(&net, id) == [server(3)].into() && number(&net, id) == 2), "{order:?}");
        assert!((1..=3).all(|id| net.core(id).status().peers.iter().all(|peer| peer.connected)), "{order:?}");
        assert_eq!(net.reports(1, |event| matches!(event, Event::SessionEnded { .. })), 0);
    }
}

#[test]
fn one_member_that_is_not_reloaded_does_not_hold_the_others_up_for_ever() {
    let mut net = Net::new(3);
    for id in [1, 3] {
        configure(&mut net, id, only_third);
    }
    net.run(50 * S);
    assert!((1..=3).all(|id| servers(&net, id) == old_servers()));
    assert_eq!(net.core(1).status().epoch.awaited, bit(2));
    net.run(20 * S);
    // The others have changed, and own the new flows of the one that has not.
    for id in [1, 3] {
        assert_eq!((servers(&net, id), net.hosts[&id].liveness.eligible), ([server(3)].into(), 0b101));
    }
    assert_eq!((servers(&net, 2), net.hosts[&2].liveness.eligible), (old_servers(), 0b101));
    assert!(net.core(2).status().epoch.is_behind);
    assert_eq!(net.hosts[&2].liveness.forwarding, 0b111);
    configure(&mut net, 2, only_third);
    net.run(100 * MS);
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111 && servers(&net, id) == [server(3)].into()));
}

#[test]
fn half_of_the_members_change_nothing() {
    let mut net = Net::new(2);
    configure(&mut net, 1, only_third);
    net.run(300 * S);
    assert!((1..=2).all(|id| servers(&net, id) == old_servers() && net.hosts[&id].liveness.eligible == 0b11));
    assert_eq!(net.core(1).status().epoch.awaited, 0b10);
    // The operator thinks better of it.
    configure(&mut net, 1, |view| view.services = vec![web(vec![backend(1), backend(2)])]);
    net.run(S);
    assert!((1..=2).all(|id| number(&net, id) == 1 && !net.core(id).status().epoch.is_pending));
}

#[test]
fn alone_a_change_takes_effect_at_once() {
    let mut net = Net::new(2);
    net.kill(2);
    net.run(S);
    configure(&mut net, 1, only_third);
    assert_eq!(servers(&net, 1), [server(3)].into());
    let mut net = Net::new(1);
    configure(&mut net, 1, only_third);
    assert_eq!(servers(&net, 1), [server(3)].into());
}

#[test]
fn members_of_version_1_are_not_waited_for() {
    let mut net = mixed(1);
    configure(&mut net, 1, only_third);
    assert_eq!(servers(&net, 1), [server(3)].into());
    net.run(S);
    assert_eq!(net.hosts[&1].liveness.eligible, 0b11);
    assert_eq!(net.hosts[&2].liveness.eligible, 0b11);
}

#[test]
fn young_flows_are_told_at_once_while_a_change_is_pending() {
    let mut net = Net::new(3);
    net.begin_at(3, 1, STATE_YOUNG);
    net.run(10 * MS);
    assert_eq!(net.records(1), 0, "a young flow waits for 100 ms");
    configure(&mut net, 3, only_third);
    net.run(10 * MS);
    // The others hear that a change is pending, too.
    net.begin_at(2, 2, STATE_YOUNG);
    net.run(60 * MS);
    assert_eq!(net.records(1), 1);
    configure(&mut net, 2, only_third);
    configure(&mut net, 1, only_third);
    net.run(MS);
    assert!((1..=3).all(|id| net.records(id) == 2), "the flush tells of the first one");
}

#[test]
fn nobody_changes_before_it_has_the_flows_of_the_others() {
    let mut net = Net::new(3);
    net.begin_at(3, 1, STATE_YOUNG);
    net.stalled.insert(3);
    configure_all(&mut net, only_third);
    net.run(300 * MS);
    assert!((1..=2).all(|id| servers(&net, id) == old_servers()), "member 3 has told nothing yet");
    net.release(3);
    net.run(10 * MS);
    assert!((1..=3).all(|id| servers(&net, id) == [server(3)].into() && net.records(id) == 1));
}

#[test]
fn a_member_that_does_not_acknowledge_is_waited_for_no_longer_than_2_s() {
    let mut net = Net::new(3);
    for id in 2..=3 {
        configure(&mut net, id, only_third);
        net.run(10 * MS);
    }
    net.stalled.insert(3);
    configure(&mut net, 1, only_third);
    net.run(1900 * MS);
    assert!((1..=2).all(|id| servers(&net, id) == old_servers()));
    net.run(200 * MS);
    assert!((1..=2).all(|id| servers(&net, id) == [server(3)].into()));
    assert!((1..=2).all(|id| net.hosts[&id].liveness.eligible == 0b011), "it may still own flows by the old servers");
    net.release(3);
    net.run(100 * MS);
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111));
}

#[test]
fn a_change_after_the_other_does_not_make_the_wait_for_a_silent_member_longer() {
    let mut net = Net::new(3);
    net.cut.extend([(1, 3), (3, 1)]);
    net.run(5 * S);
    net.stalled.insert(3);
    let change_to = |net: &mut Net, last: u8| {
        for id in 1..=2 {
            configure(net, id, |view| view.services = vec![web(vec![backend(last)])]);
        }
    };
    change_to(&mut net, 3);
    net.run(1500 * MS);
    assert_eq!((servers(&net, 1), servers(&net, 2)), ([server(3)].into(), old_servers()), "2 hears 3, and 1 does not");
    change_to(&mut net, 4);
    net.run(400 * MS);
    assert_eq!((servers(&net, 1), servers(&net, 2)), ([server(4)].into(), old_servers()));
    net.run(200 * MS);
    assert_eq!(servers(&net, 2), [server(4)].into());
}

#[test]
fn a_change_after_the_other_does_not_wait_for_another_silent_member_with_the_first() {
    let mut net = Net::new(4);
    net.cut.extend([(1, 3), (3, 1), (4, 3), (3, 4)]);
    net.run(5 * S);
    net.stalled.insert(3);
    let change_to = |net: &mut Net, ids: &[u8], last: u8| {
        for &id in ids {
            configure(net, id, |view| view.services = vec![web(vec![backend(last)])]);
            net.run(10 * MS);
        }
    };
    change_to(&mut net, &[4, 2, 1], 3);
    net.run(1500 * MS);
    assert_eq!((servers(&net, 1), servers(&net, 2)), ([server(3)].into(), old_servers()), "2 hears 3, and 1 does not");
    change_to(&mut net, &[4, 2], 4);
    net.stalled.insert(4);
    change_to(&mut net, &[1], 4);
    net.run(300 * MS);
    assert_eq!((servers(&net, 1), servers(&net, 2)), ([server(3)].into(), old_servers()), "1 and 2 wait for 4");
    net.run(300 * MS);
    assert!((1..=2).all(|id| servers(&net, id) == [server(3)].into()), "3 has been waited for, and 4 has this one");
    net.run(1500 * MS);
    assert!((1..=2).all(|id| servers(&net, id) == [server(4)].into()));
}

#[test]
fn a_member_that_dies_in_the_change_is_not_waited_for() {
    for dies in 1..=3 {
        let mut net = Net::new(3);
        net.stalled.insert(dies);
        configure_all(&mut net, only_third);
        net.run(30 * MS);
        net.kill(dies);
        net.stalled.clear();
        net.held.clear();
        net.run(2 * S);
        for id in (1..=3).filter(|&id| id != dies) {
            assert_eq!(servers(&net, id), [server(3)].into(), "member {id} when {dies} dies");
            assert_eq!(net.hosts[&id].liveness.eligible, 0b111 & !bit(dies));
        }
        net.host(dies).view.services = vec![web(vec![backend(3)])];
        net.start(dies);
        net.run(3 * S);
        assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111), "{dies} is back");
        assert!((2..=3).all(|id| number(&net, id) == number(&net, 1)));
    }
}

#[test]
fn a_member_that_restarts_with_another_set_owns_no_new_flows() {
    let mut net = Net::new(3);
    net.kill(2);
    only_third(&mut net.host(2).view);
    net.start(2);
    net.run(5 * S);
    assert!(net.is_ready(2));
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b101), "{:?}", net.hosts[&1].liveness);
    for id in [3, 1] {
        configure(&mut net, id, only_third);
        net.run(S);
    }
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111));
    assert!((1..=3).all(|id| servers(&net, id) == [server(3)].into()));
}

#[test]
fn a_member_that_was_cut_off_from_the_change_catches_up() {
    let mut net = Net::new(3);
    net.isolate(3);
    net.run(5 * S);
    for id in 1..=2 {
        configure(&mut net, id, only_third);
    }
    net.run(5 * S);
    assert!((1..=2).all(|id| servers(&net, id) == [server(3)].into()));
    net.cut.clear();
    net.run(5 * S);
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b011), "member 3 does not have the set");
    configure(&mut net, 3, only_third);
    net.run(S);
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111));
}

#[test]
fn two_halves_that_changed_by_themselves_end_with_one_set() {
    let mut net = Net::new(2);
    net.isolate(2);
    net.run(5 * S);
    configure(&mut net, 1, only_third);
    configure(&mut net, 2, |view| view.services = vec![web(vec![backend(4)])]);
    net.run(S);
    assert_eq!((servers(&net, 1), servers(&net, 2)), ([server(3)].into(), [server(4)].into()));
    net.cut.clear();
    net.run(5 * S);
    let eligible = net.hosts[&1].liveness.eligible;
    assert!([0b01, 0b10].contains(&eligible) && net.hosts[&2].liveness.eligible == eligible);
    configure(&mut net, 2, only_third);
    net.run(S);
    assert!((1..=2).all(|id| net.hosts[&id].liveness.eligible == 0b11 && servers(&net, id) == [server(3)].into()));
}

#[test]
fn the_ring_of_before_stays_for_the_grace_time_and_so_do_its_slots() {
    let mut net = Net::new(2);
    let before = ring(&net, 1);
    configure_all(&mut net, only_third);
    net.run(2 * MS);
    let is_told = |id| servers(&net, id) == [server(3)].into() && net.hosts[&id].liveness.grace_until_ns > net.now;
    assert!((1..=2).all(is_told), "with the change, not in the next round");
    net.run(30 * S);
    let tables = net.hosts[&1].tables.as_ref().expect("tables");
    let index = tables.services[&vip()].ring;
    assert_eq!(tables.rings[&(index + PREVIOUS_RINGS)].slots[..RING_SLOTS], before);
    assert!(net.hosts[&1].liveness.grace_until_ns > net.now);
    assert!([1, 2].iter().all(|slot| backends(&net, 1)[slot].1 == TARGET_REMOVED));
    net.run(31 * S);
    let tables = net.hosts[&1].tables.as_ref().expect("tables");
    assert!(!tables.rings.contains_key(&(index + PREVIOUS_RINGS)));
    assert_eq!(net.hosts[&1].liveness.grace_until_ns, 0);
    net.run(60 * S);
    assert_eq!(backends(&net, 1).len(), 1);
}

#[test]
fn an_agent_that_has_just_started_changes_rings_with_a_grace_time_too() {
    let mut net = Net::new(3);
    net.kill(2);
    net.run(S);
    // Whoever does not answer is waited for, before the masks of before are replaced.
    net.cut.extend([(2, 3), (3, 2)]);
    net.start(2);
    while number(&net, 2) == 0 {
        net.run(MS);
    }
    let before = net.hosts[&2].liveness;
    configure_all(&mut net, only_third);
    net.run(10 * MS);
    assert_eq!(net.hosts[&2].liveness, before, "it has said nothing to the datapath yet");
    assert_eq!(servers(&net, 2), old_servers());
    net.run(200 * MS);
    assert!((1..=2).all(|id| servers(&net, id) == [server(3)].into()));
    assert!((1..=2).all(|id| net.hosts[&id].liveness.grace_until_ns > net.now + 59 * S));
}

#[test]
fn a_set_is_known_by_what_decides_where_flows_go() {
    let of = |services: &[Service]| fingerprint(services);
    let base = vec![web(vec![backend(1), backend(2)])];
    let mut same = vec![web(vec![backend(2), backend(1)])];
    (same[0].name, same[0].echo) = ("other".into(), true);
    same[0].backends[0].name = "other".into();
    assert_eq!(of(&base), of(&same));
    for change in [
        |services: &mut Vec<Service>| services[0].affinity = true,
        |services: &mut Vec<Service>| services[0].backends[0].weight = 99,
        |services: &mut Vec<Service>| services[0].backends[0].drain = true,
        |services: &mut Vec<Service>| services[0].backends[0].address = server(9),
        |services: &mut Vec<Service>| drop(services[0].backends.pop()),
        |services: &mut Vec<Service>| services[0].vips[0].port = [0, 81],
        |services: &mut Vec<Service>| services.clear(),
    ] {
        let mut other = base.clone();
        change(&mut other);
        assert_ne!(of(&base), of(&other));
    }
}
