//! How flows end, and how they do not.

use lb_common::flow::{SCTP, STATE_CLOSING, STATE_DELETED, STATE_RESET, STATE_YOUNG, UDP};

use super::*;
use crate::core::{
    expiry::Timers,
    wire::{Frame, Item, VERSION},
};

fn is_gone(net: &Net, id: u8, client: u16) -> bool {
    net.core(id).record(&key(client)).is_none_or(|record| record.is_tombstone())
        && !net.hosts[&id].flows.contains_key(&key(client))
}

#[test]
fn an_idle_flow_ends_everywhere_by_the_word_of_its_owner() {
    let mut net = Net::new(3);
    net.run(200 * S);
    let owner = net.begin(1, STATE_CLOSING);
    net.run(119 * S);
    assert!((1..=3).all(|id| !is_gone(&net, id, 1)));
    net.run(5 * S);
    assert!((1..=3).all(|id| is_gone(&net, id, 1)));
    assert_eq!(net.core(owner).record(&key(1)).map(|r| r.lifecycle.state), Some(STATE_DELETED));
    net.run(121 * S);
    assert!((1..=3).all(|id| net.core(id).record(&key(1)).is_none()), "tombstones are forgotten");
}

#[test]
fn a_flow_with_traffic_lives_on_also_where_it_does_not_pass() {
    let mut net = Net::new(3);
    net.run(100 * S);
    let owner = net.begin(1, STATE_RESET);
    for _ in 0..200 {
        net.packet(owner, 1);
        net.sweep_all();
        net.run(S);
    }
    assert!((1..=3).all(|id| !is_gone(&net, id, 1)));
    net.run(S * 90);
    assert!((1..=3).all(|id| is_gone(&net, id, 1)));
}

#[test]
fn traffic_that_no_sweep_has_seen_yet_spares_the_flow() {
    let mut net = Net::new(2);
    net.run(100 * S);
    let owner = net.begin(1, STATE_RESET);
    net.run(29 * S);
    net.packet(owner, 1);
    net.run(20 * S);
    assert!(!is_gone(&net, owner, 1));
    assert!(!is_gone(&net, 3 - owner, 1));
}

#[test]
fn a_member_with_later_traffic_refuses_the_end() {
    let mut net = Net::new(2);
    net.run(100 * S);
    let owner = net.begin(1, STATE_RESET);
    let other = 3 - owner;
    net.run(25 * S);
    // Packets pass at the backup, which takes the primary for dead; nothing has told the primary.
    net.packet(other, 1);
    net.run(15 * S);
    net.packet(other, 1);
    net.sweep_all();
    net.run(5 * S);
    assert!(!is_gone(&net, other, 1));
    assert!(!is_gone(&net, owner, 1));
    let revision = net.core(other).record(&key(1)).map(|r| r.lifecycle.revision);
    assert_eq!(revision, net.core(owner).record(&key(1)).map(|r| r.lifecycle.revision));
}

#[test]
fn a_young_flow_that_goes_silent_is_nobody_elses_affair() {
    let mut net = Net::new(2);
    let mut young = net.hosts[&1].view.timeouts;
    young.young = Duration::from_millis(50);
    for id in 1..=2 {
        net.host(id).view.timeouts = young;
        let view = net.hosts[&id].view.clone();
        net.input(id, Input::Configure(Box::new(view)));
    }
    let owner = net.begin(1, STATE_YOUNG);
    net.run(99 * MS);
    assert_eq!(net.core(owner).record(&key(1)), None);
    assert!(net.hosts[&owner].flows.is_empty());
    assert_eq!(net.core(3 - owner).record(&key(1)), None);
}

#[test]
fn a_handshake_alone_lasts_no_longer_than_a_young_flow_anywhere() {
    let mut net = Net::new(3);
    net.run(60 * S);
    net.begin(1, STATE_YOUNG);
    net.run(S);
    assert!((1..=3).all(|id| net.hosts[&id].flows.contains_key(&key(1))), "it is replicated");
    net.run(17 * S);
    assert!((1..=3).all(|id| is_gone(&net, id, 1)));
}

#[test]
fn a_replicated_young_flow_becomes_established_by_a_packet_anywhere() {
    let mut net = Net::new(2);
    let owner = net.begin(1, STATE_YOUNG);
    net.run(S);
    let other = 3 - owner;
    let mut entry = net.hosts[&other].flows[&key(1)];
    (entry.state, entry.last_seen) = (STATE_ESTABLISHED, tick(net.now));
    net.host(other).flows.insert(key(1), entry);
    net.input(other, Input::Observed { key: key(1), entry });
    net.run(100 * S);
    assert!((1..=2).all(|id| net.hosts[&id].flows[&key(1)].state == STATE_ESTABLISHED));
}

#[test]
fn after_a_failover_nothing_ends_for_a_full_timeout() {
    let mut net = Net::new(2);
    net.run(200 * S);
    let owner = net.begin(1, STATE_CLOSING);
    let other = 3 - owner;
    net.run(100 * S);
    net.host(owner).is_up = false;
    net.kill(owner);
    net.run(100 * S);
    assert!(!is_gone(&net, other, 1), "idle for 200 s, but its owner may have seen traffic until 100 s ago");
    net.run(30 * S);
    assert!(is_gone(&net, other, 1));
}

#[test]
fn an_owner_that_comes_and_goes_does_not_keep_its_flows_for_ever() {
    let mut net = Net::new(2);
    net.run(200 * S);
    let owner = net.begin(1, STATE_RESET);
    net.run(S);
    let other = 3 - owner;
    net.kill(owner);
    for _ in 0..10 {
        net.isolate(owner);
        net.run(5 * S);
        net.cut.clear();
        net.run(5 * S);
    }
    assert!(is_gone(&net, other, 1), "idle for three timeouts");
}

#[test]
fn without_a_word_the_others_let_go_after_twice_the_timeout() {
    let mut net = Net::new(2);
    net.run(200 * S);
    let owner = net.begin(1, STATE_CLOSING);
    let other = 3 - owner;
    net.run(S);
    // The owner forgets the flow without a word.
    net.host(owner).flows.clear();
    net.kill(owner);
    net.run(S);
    net.host(owner).core = None;
    net.cut.insert((other, owner));
    net.run(270 * S);
    assert!(is_gone(&net, other, 1));
}

#[test]
fn a_stale_entry_of_a_restarted_member_is_no_new_flow() {
    let mut net = Net::new(2);
    net.run(100 * S);
    let owner = net.begin(1, STATE_RESET);
    let other = 3 - owner;
    net.run(S);
    net.kill(other);
    net.run(60 * S);
    assert!(is_gone(&net, owner, 1));
    assert!(net.hosts[&other].flows.contains_key(&key(1)), "nobody was there to delete it");
    net.start(other);
    net.run(S);
    net.sweep_all();
    net.run(S);
    assert!(is_gone(&net, other, 1));
    assert!(is_gone(&net, owner, 1));
}

#[test]
fn a_lost_entry_is_written_again_after_a_sweep_without_it() {
    let mut net = Net::new(2);
    let owner = net.begin(1, STATE_ESTABLISHED);
    net.run(S);
    let other = 3 - owner;
    net.host(other).flows.clear();
    for _ in 0..3 {
        net.sweep(other);
        net.run(3 * S);
    }
    assert!(net.hosts[&other].flows.contains_key(&key(1)));
    assert_eq!(net.hosts[&other].puts, 2);
}

#[test]
fn tombstones_are_bounded() {
    let mut net = Net::new(2);
    net.run(100 * S);
    for client in 0..500 {
        net.begin(client, STATE_RESET);
    }
    net.run(60 * S);
    for id in 1..=2 {
        let status = net.core(id).status();
        assert_eq!(status.records, 0);
        assert!(status.tombstones <= 100, "{}", status.tombstones);
    }
}

#[test]
fn ends_that_a_peer_tells_of_are_bounded_before_the_next_round() {
    let mut net = Net::new(2);
    net.begin_at(2, 1, STATE_ESTABLISHED);
    let mut record = net.core(2).record(&key(1)).expect("a record");
    record.lifecycle.state = STATE_DELETED;
    let ends = (2..300).map(|client| Item { key: key(client), record, idle_ms: 0, ended_s: 0 });
    let session = net.core(1).peers[&2].open.expect("a session");
    for end in ends {
        net.input(1, Input::Received { session, bytes: Frame::Delta(vec![end]).encode(VERSION) });
    }
    assert_eq!(net.core(1).status().tombstones, 100);
}

#[test]
fn a_full_table_takes_no_flow_of_a_peer_back_that_had_ended() {
    let mut net = Net::new(2);
    net.host(1).view.limits.flows = 3;
    let view = net.hosts[&1].view.clone();
    net.input(1, Input::Configure(Box::new(view)));
    for client in 0..10 {
        net.begin_at(2, client, STATE_RESET);
        net.run(40 * S);
    }
    let ended = |net: &Net| (0..10).filter(|&client| net.core(1).record(&key(client)).is_some()).count();
    assert_eq!((net.records(1), ended(&net)), (0, 3), "younger than 120 s");
    for client in 100..103 {
        net.begin_at(2, client, STATE_ESTABLISHED);
    }
    net.run(S);
    for client in 0..10 {
        net.begin_at(2, client, STATE_ESTABLISHED);
    }
    net.run(S);
    assert_eq!((net.records(1), net.records(2)), (3, 13));
    assert_eq!(net.reports(1, |event| matches!(event, Event::TableFull { .. })), 1);
}

#[test]
fn a_full_table_takes_no_more_of_peers_and_says_so_once() {
    let mut net = Net::new(2);
    net.host(2).view.limits.flows = 50;
    let view = net.hosts[&2].view.clone();
    net.input(2, Input::Configure(Box::new(view)));
    for client in 0..200 {
        if net.begin(client, STATE_ESTABLISHED) == 2 {
            continue;
        }
        net.run(MS);
    }
    net.run(S);
    assert_eq!(net.reports(2, |e| matches!(e, Event::TableFull { .. })), 1);
    assert_eq!(net.records(1), 200);
}

#[test]
fn traffic_at_a_member_that_owns_nothing_keeps_the_flow_alive_for_its_owners() {
    let mut net = Net::new(3);
    net.run(100 * S);
    let owner = net.begin(1, STATE_RESET);
    net.run(S);
    let record = net.core(owner).record(&key(1)).expect("a record");
    let direct =
        (1..=3).find(|id| ![record.owners.primary, record.owners.backup].contains(id)).expect("a third member");
    for _ in 0..200 {
        net.packet(direct, 1);
        net.sweep_all();
        net.run(S);
    }
    assert!((1..=3).all(|id| !is_gone(&net, id, 1)));
    net.run(90 * S);
    assert!((1..=3).all(|id| is_gone(&net, id, 1)));
}

#[test]
fn a_member_that_owns_nothing_refuses_the_end_of_a_flow_that_passes_there() {
    let mut net = Net::new(3);
    net.run(100 * S);
    let owner = net.begin(1, STATE_RESET);
    net.run(S);
    let record = net.core(owner).record(&key(1)).expect("a record");
    let direct =
        (1..=3).find(|id| ![record.owners.primary, record.owners.backup].contains(id)).expect("a third member");
    net.run(20 * S);
    // Seen by its sweep only when the owner has ended the flow.
    net.packet(direct, 1);
    net.run(15 * S);
    net.packet(direct, 1);
    net.sweep_all();
    net.run(5 * S);
    assert!((1..=3).all(|id| !is_gone(&net, id, 1)));
}

#[test]
fn protocols_and_services_have_their_own_timers() {
    let mut view = view(1, 1);
    let udp = |port: u16| ServiceKey { protocol: UDP, port: port.to_be_bytes(), ..vip() };
    view.services = [(udp(53), 5), (udp(0), 7)]
        .into_iter()
        .map(|(vip, seconds)| {
            let idle_timeout = Some(Duration::from_secs(seconds));
            Service { vips: vec![vip], idle_timeout, ..web(vec![backend(1)]) }
        })
        .collect();
    let timers = Timers::new(&view);
    let of = |protocol, port: u16, state| {
        let Key::V4(flow) = key(1) else { unreachable!("an IPv4 key") };
        let flow = FlowKeyV4 { protocol, destination_port: port.to_be_bytes(), ..flow };
        lb_common::flow::ms_of_ticks(timers.ticks(&flow.into(), state)).div_ceil(1000)
    };
    let established =
        [(TCP, 80), (UDP, 53), (UDP, 9), (SCTP, 80)].map(|(protocol, port)| of(protocol, port, STATE_ESTABLISHED));
    assert_eq!(established, [7440, 5, 7, 210]);
    assert_eq!([of(TCP, 80, STATE_CLOSING), of(SCTP, 80, STATE_CLOSING), of(UDP, 53, STATE_CLOSING)], [120, 60, 5]);
    assert_eq!([of(TCP, 80, STATE_YOUNG), of(SCTP, 80, STATE_YOUNG), of(SCTP, 80, STATE_RESET)], [15, 15, 30]);
}
