//! Detection times, on the clock of the test; the states themselves.

use super::*;
use lb_common::{flow::EVENT_ASKED, liveness::PROBE_GOODBYE};

use crate::core::liveness::{RISE, Sign, State};

#[test]
fn the_table_is_the_diagram() {
    use Sign::{Back, Echo, Empty, Gap, Goodbye, Lost, Settled};
    use State::{Down, Left, Rising, Unknown, Up, Waiting};
    let moves = [
        (Unknown, Echo, Waiting),
        (Unknown, Settled, Up),
        (Waiting, Settled, Up),
        (Waiting, Gap, Unknown),
        (Waiting, Lost, Unknown),
        (Up, Empty, Waiting),
        (Up, Lost, Down),
        (Down, Echo, Rising),
        (Down, Settled, Rising),
        (Rising, Settled, Up),
        (Rising, Gap, Down),
        (Rising, Lost, Down),
        (Unknown, Goodbye, Left),
        (Waiting, Goodbye, Left),
        (Up, Goodbye, Left),
        (Down, Goodbye, Left),
        (Rising, Goodbye, Left),
        (Left, Back, Unknown),
    ];
    for state in State::ALL {
        for sign in Sign::ALL {
            let expected = moves.iter().find(|m| (m.0, m.1) == (state, sign)).map_or(state, |m| m.2);
            assert_eq!(state.after(sign), expected, "{state:?} after {sign:?}");
        }
    }
}

/// Cuts member 2 off after `offset` and returns how long member 1 took to clear its bit.
fn detection(offset: u64) -> u64 {
    let mut net = Net::new(2);
    net.run(offset);
    net.isolate(2);
    let from = net.now;
    while net.hosts[&1].liveness.forwarding & bit(2) != 0 {
        net.run(MS / 10);
        assert!(net.now - from < S, "not noticed");
    }
    net.now - from
}

#[test]
fn death_is_noticed_within_the_misses_and_one_interval() {
    let times: Vec<u64> = (0..40).map(|step| detection(step * MS / 2)).collect();
    let (min, max) = (times.iter().min().expect("times") / MS, times.iter().max().expect("times") / MS);
    assert!(max <= 120, "{max} ms");
    assert!(min >= 80, "four misses are not enough: {min} ms");
}

#[test]
fn four_lost_probes_are_no_death() {
    let mut net = Net::new(2);
    for _ in 0..20 {
        net.isolate(2);
        net.run(79 * MS);
        net.cut.clear();
        net.run(21 * MS);
    }
    assert_eq!(net.reports(1, |e| matches!(e, Event::PeerDown { .. })), 0);
}

#[test]
fn a_prober_that_was_asleep_missed_nothing() {
    let mut net = Net::new(2);
    // Member 1's agent does not run for two seconds; member 2's does.
    let core = net.host(1).core.take();
    net.run(2 * S);
    net.host(1).core = core;
    net.run(10 * S);
    assert_eq!(net.reports(1, |e| matches!(e, Event::PeerDown { .. } | Event::PeerAgent { .. })), 0);
}

#[test]
fn a_host_that_was_asleep_gives_its_peers_a_chance() {
    let mut net = Net::new(2);
    let core = net.host(1).core.take();
    net.host(1).is_up = false;
    net.run(2 * S);
    net.host(1).is_up = true;
    net.host(1).core = core;
    net.run(10 * S);
    assert_eq!(net.reports(1, |e| matches!(e, Event::PeerDown { .. } | Event::PeerAgent { .. })), 0);
}

#[test]
fn a_dead_peer_comes_back_after_a_second_of_clean_echoes() {
    let mut net = Net::new(2);
    net.isolate(2);
    net.run(300 * MS);
    net.cut.clear();
    net.run(900 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01);
    net.run(200 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b11);
    assert!(RISE.as_millis() == 1000);
}

#[test]
fn a_flapping_link_stays_down() {
    let mut net = Net::new(2);
    net.isolate(2);
    net.run(300 * MS);
    for _ in 0..20 {
        net.cut.clear();
        net.run(500 * MS);
        net.isolate(2);
        net.run(60 * MS);
    }
    assert_eq!(net.reports(1, |e| matches!(e, Event::PeerUp { .. })), 1, "only the first time");
}

#[test]
fn one_way_links_are_seen_by_both_ends() {
    let mut net = Net::new(3);
    net.cut.insert((2, 1));
    net.run(300 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b101, "no echo comes back");
    assert_eq!(net.hosts[&2].liveness.forwarding, 0b110, "echoes do not reach it");
    assert_eq!(net.hosts[&3].liveness.forwarding, 0b111);
    assert_eq!(net.hosts[&3].heard[&2].forwarding, 0b110, "and say so to others");
}

#[test]
fn a_peer_that_is_not_ready_is_not_eligible() {
    let mut net = Net::new(2);
    net.host(1).heard.get_mut(&2).expect("heard").flags &= !PROBE_READY;
    net.kill(2);
    net.run(20 * MS);
    assert_eq!((net.hosts[&1].liveness.forwarding, net.hosts[&1].liveness.eligible), (0b11, 0b01));
}

#[test]
fn a_returning_peer_with_empty_tables_gets_no_known_flows_before_it_is_ready() {
    let mut net = Net::new(2);
    net.begin(1, STATE_ESTABLISHED);
    net.run(60 * MS);
    // So short an absence that nobody notices it by probes.
    net.kill(2);
    net.host(2).tables = None;
    net.host(2).flows.clear();
    net.stalled.insert(1);
    net.start(2);
    net.run(21 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01, "it says that it is empty");
    net.run(2 * S);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01);
    net.release(1);
    net.run(S);
    assert!(net.hosts[&2].flows.contains_key(&key(1)));
    assert_eq!((net.hosts[&1].liveness.forwarding, net.hosts[&1].liveness.eligible), (0b11, 0b11));
}

#[test]
fn what_counts_as_empty_is_the_flow_map() {
    let mut net = Net::new(2);
    net.begin(1, STATE_ESTABLISHED);
    net.run(60 * MS);
    // The flow map is lost, the other maps are not.
    net.kill(2);
    net.host(2).flows.clear();
    net.stalled.insert(1);
    net.start(2);
    net.run(21 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01);
}

#[test]
fn a_peer_without_an_agent_is_up_after_a_second_of_echoes() {
    let mut net = Net::new(2);
    net.kill(2);
    net.run(200 * MS);
    net.kill(1);
    net.start(1);
    net.run(900 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01);
    net.run(200 * MS);
    assert_eq!((net.hosts[&1].liveness.forwarding, net.hosts[&1].liveness.eligible), (0b11, 0b01));
}

#[test]
fn a_goodbye_of_a_member_that_goes_on_does_not_put_it_out_for_ever() {
    let mut net = Net::new(2);
    net.host(1).heard.get_mut(&2).expect("heard").flags |= PROBE_GOODBYE;
    let next = net.core(1).next_look();
    net.run(next - net.now);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01, "it is believed at first");
    net.run(1200 * MS);
    assert_eq!((net.hosts[&1].liveness.forwarding, net.hosts[&1].liveness.eligible), (0b11, 0b11));
    net.input(2, Input::Stop);
    net.run(21 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01, "and so is the real one afterwards");
}

#[test]
fn a_probe_of_an_impossible_incarnation_is_nobodys() {
    let mut net = Net::new(2);
    let heard = net.host(1).heard.get_mut(&2).expect("heard");
    (heard.flags, heard.incarnation) = (PROBE_GOODBYE, u32::MAX);
    let next = net.core(1).next_look();
    net.run(next - net.now);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b11);
}

#[test]
fn an_echo_that_was_never_asked_for_is_none() {
    let mut net = Net::new(2);
    net.isolate(2);
    for _ in 0..50 {
        let heard = net.host(1).heard.get_mut(&2).expect("heard");
        heard.echo_counter = u64::MAX;
        net.run(20 * MS);
    }
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01);
}

#[test]
fn the_lease_is_renewed_every_round_and_lasts_for_the_misses() {
    let mut net = Net::new(2);
    for _ in 0..100 {
        net.run(7 * MS);
        let left = net.hosts[&1].liveness.lease_until_ns - net.now;
        assert!((80 * MS..=100 * MS).contains(&left), "{} ms", left / MS);
    }
}

#[test]
fn a_single_member_is_its_own_cluster() {
    let net = Net::new(1);
    assert!(net.is_ready(1));
    assert_eq!((net.hosts[&1].liveness.forwarding, net.hosts[&1].liveness.eligible), (1, 1));
    assert_eq!(net.core(1).node.silence_ns, 120 * MS);
    assert_eq!(Duration::from_nanos(net.core(1).node.silence_ns), Duration::from_millis(120));
}

#[test]
fn records_may_be_missing_until_some_time_after_a_member_is_ready_and_after_members_came() {
    let mut net = Net::idle();
    for id in 1..=2 {
        net.add(view(id, 2));
        net.start(id);
    }
    net.run(2 * S);
    assert!(net.hosts[&1].liveness.doubt_until_ns > net.now, "ready for less than 3 s");
    net.run(10 * S);
    assert!(net.hosts[&1].liveness.doubt_until_ns < net.now);

    net.kill(1);
    net.start(1);
    net.run(S / 2);
    assert!(net.hosts[&1].liveness.doubt_until_ns > net.now);
    assert!(net.hosts[&2].liveness.doubt_until_ns < net.now, "a peer's restart takes no records from this one");
    net.run(10 * S);
    assert!(net.hosts[&1].liveness.doubt_until_ns < net.now);

    net.input(2, Input::Configure(Box::new(view(2, 3))));
    net.run(S);
    assert!(net.hosts[&2].liveness.doubt_until_ns > net.now);
    let alone = Net::new(1);
    assert_eq!(alone.hosts[&1].liveness.doubt_until_ns, 0, "there is nobody to ask");
}

#[test]
fn a_record_that_was_asked_for_is_told_again() {
    let mut net = Net::new(2);
    net.run(100 * S);
    let owner = net.begin(1, STATE_ESTABLISHED);
    net.run(S);
    let other = 3 - owner;
    // As if it had been lost on the way.
    net.host(other).flows.remove(&key(1));
    let told = net.hosts[&other].puts;
    let mut entry = net.hosts[&owner].flows[&key(1)];
    net.input(owner, Input::Observed { key: key(1), entry });
    net.run(S / 10);
    assert_eq!(net.hosts[&other].puts, told, "no news");
    (entry.event, entry.last_seen) = (EVENT_ASKED, tick(net.now));
    net.input(owner, Input::Observed { key: key(1), entry });
    net.run(S / 10);
    assert!(net.hosts[&other].flows.contains_key(&key(1)));
}

#[test]
fn a_new_key_is_found_within_the_misses_and_the_old_one_is_good_until_it_is_dropped() {
    let mut net = Net::new(2);
    let (old, new) = (pair_keys(1, 2)[0], [77, 78]);
    let keys = |net: &mut Net, id: u8, keys| {
        let mut view = net.hosts[&id].view.clone();
        view.members[usize::from(2 - id)].probe_keys = keys;
        net.host(id).view = view.clone();
        net.input(id, Input::Configure(Box::new(view)));
    };
    let all_well = |net: &Net| net.hosts.values().all(|host| host.liveness.eligible == 0b11);
    // Both are listed; then member 2 moves to the new one, and member 1 has to find out.
    keys(&mut net, 1, [old, new]);
    net.run(100 * MS);
    keys(&mut net, 2, [new, [0; 2]]);
    for _ in 0..100 {
        net.run(10 * MS);
        assert!(all_well(&net));
    }
    keys(&mut net, 1, [new, [0; 2]]);
    net.run(S);
    assert!(all_well(&net));
    assert_eq!(net.reports(1, |e| matches!(e, Event::PeerDown { .. } | Event::PeerAgent { .. })), 0);
    assert_eq!(net.reports(2, |e| matches!(e, Event::PeerDown { .. } | Event::PeerAgent { .. })), 0);
    // Without a common key they are strangers.
    keys(&mut net, 1, [old, [0; 2]]);
    net.run(121 * MS);
    assert_eq!([net.hosts[&1].liveness.forwarding, net.hosts[&2].liveness.forwarding], [0b01, 0b10]);
}

#[test]
fn a_restarted_member_is_introduced_by_its_first_probe_and_believed_from_the_second() {
    let mut net = Net::new(2);
    net.kill(2);
    net.run(10 * S);
    let before = net.hosts[&1].heard[&2].incarnation;
    net.start(2);
    let recorded = net.hosts[&2].heard[&1];
    net.run(45 * MS);
    assert_eq!(net.hosts[&1].heard[&2].incarnation, before + 1);
    assert_ne!(net.hosts[&2].heard[&1].probe_ns, recorded.probe_ns);
}
