//! Snapshots, deltas, slow peers, restarts.

use super::*;
use crate::core::{
    CloseReason,
    wire::{Frame, Hello, VERSION},
};

fn ended(event: &Event, wanted: impl Fn(&CloseReason) -> bool) -> bool {
    matches!(event, Event::SessionEnded { reason, .. } if wanted(reason))
}

#[test]
fn a_cold_cluster_becomes_ready_and_everybody_eligible() {
    let net = Net::new(3);
    for id in 1..=3 {
        assert!(net.is_ready(id));
        assert_eq!(net.hosts[&id].liveness.forwarding, 0b111);
        assert_eq!(net.hosts[&id].liveness.eligible, 0b111);
    }
}

#[test]
fn a_flow_reaches_every_member_with_its_backend() {
    let mut net = Net::new(3);
    let owner = net.begin(1, STATE_ESTABLISHED);
    net.run(60 * MS);
    let record = net.core(owner).record(&key(1)).expect("the owner's record");
    for id in 1..=3 {
        assert_eq!(net.core(id).record(&key(1)), Some(record));
        assert_eq!(net.hosts[&id].flows[&key(1)].backend, net.hosts[&owner].flows[&key(1)].backend);
    }
}

#[test]
fn the_other_owner_is_told_at_once_and_the_others_within_50_ms() {
    let mut net = Net::new(3);
    net.begin(1, STATE_ESTABLISHED);
    net.run(MS);
    let record = (1..=3).find_map(|id| net.core(id).record(&key(1))).expect("a record");
    for id in 1..=3 {
        let owns = [record.owners.primary, record.owners.backup].contains(&id);
        assert_eq!(net.core(id).record(&key(1)).is_some(), owns, "member {id}");
    }
    net.run(50 * MS);
    assert!((1..=3).all(|id| net.core(id).record(&key(1)) == Some(record)));
}

#[test]
fn a_flow_that_changes_while_it_waits_is_sent_once() {
    let mut net = Net::new(2);
    net.stalled.insert(1);
    net.stalled.insert(2);
    let owner = net.begin(1, STATE_ESTABLISHED);
    let mut entry = net.hosts[&owner].flows[&key(1)];
    for revision in 1..=100 {
        entry.revision = revision;
        net.host(owner).flows.insert(key(1), entry);
        net.input(owner, Input::Observed { key: key(1), entry });
    }
    let other = 3 - owner;
    let queued = net.core(owner).status().peers.iter().find(|p| p.id == other).map(|p| p.queued);
    assert_eq!(queued, Some(1));
    net.run(MS);
    net.release(1);
    net.release(2);
    assert_eq!(net.core(other).record(&key(1)).map(|r| r.lifecycle.revision), Some(100));
    assert_eq!(net.hosts[&other].puts, 1);
}

#[test]
fn a_young_flow_is_replicated_after_100_ms_and_not_before() {
    let mut net = Net::new(2);
    let owner = net.begin(1, lb_common::flow::STATE_YOUNG);
    let other = 3 - owner;
    net.run(98 * MS);
    assert_eq!(net.core(other).record(&key(1)), None);
    net.run(5 * MS);
    assert!(net.core(other).record(&key(1)).is_some());
    assert!((1..=2).all(|id| net.hosts[&id].flows[&key(1)].state == lb_common::flow::STATE_YOUNG), "and stays young");
}

#[test]
fn a_third_packet_replicates_a_young_flow_at_once() {
    let mut net = Net::new(2);
    let owner = net.begin(1, lb_common::flow::STATE_YOUNG);
    let mut entry = net.hosts[&owner].flows[&key(1)];
    entry.state = STATE_ESTABLISHED;
    net.host(owner).flows.insert(key(1), entry);
    net.input(owner, Input::Observed { key: key(1), entry });
    net.run(MS);
    assert!(net.core(3 - owner).record(&key(1)).is_some());
}

#[test]
fn a_joiner_gets_all_records_before_it_is_ready() {
    let mut net = Net::idle();
    for id in 1..=2 {
        net.add(view(id, 2));
    }
    net.start(1);
    net.run(2 * S);
    net.host(2).is_up = false;
    for client in 0..500 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.host(2).is_up = true;
    net.start(2);
    assert!(!net.is_ready(2));
    net.run(200 * MS);
    assert!(net.is_ready(2));
    assert_eq!(net.records(2), net.records(1));
    assert_eq!(net.hosts[&2].flows.len(), net.hosts[&1].flows.len());
    assert_eq!(net.reports(2, |e| matches!(e, Event::Ready { peers: 1, .. })), 1);
}

#[test]
fn what_a_peer_sent_before_it_was_ready_makes_no_joiner_ready() {
    let mut net = Net::new(3);
    net.begin(1, STATE_ESTABLISHED);
    net.run(S);
    for id in [2, 3] {
        net.kill(id);
        net.host(id).flows.clear();
        net.host(id).tables = None;
    }
    net.run(S);
    // Member 3 hears member 2 only, who greets it with nothing and then learns all from member 1.
    net.cut.extend([(1, 3), (3, 1)]);
    net.start(3);
    net.start(2);
    for _ in 0..200 {
        net.run(10 * MS);
        assert!(!net.is_ready(3) || net.records(3) == 1, "ready without the record");
    }
    assert!(net.is_ready(2) && net.is_ready(3));
}

#[test]
fn a_joiner_waits_for_a_ready_peer_whose_records_do_not_come() {
    let mut net = Net::idle();
    for id in 1..=2 {
        net.add(view(id, 2));
    }
    net.start(1);
    net.run(2 * S);
    net.stalled.insert(1);
    net.start(2);
    net.run(11 * S);
    assert!(!net.is_ready(2), "a ready peer lives, so this is no cold start");
    assert_eq!(net.reports(2, |e| matches!(e, Event::NotReady { .. })), 1);
}

/// The window takes no more than one frame; then 100 flows may wait, and 800 begin.
fn overflow(net: &mut Net) {
    for id in 1..=2 {
        let limits = &mut net.host(id).view.limits;
        (limits.window, limits.queue) = (1, 100);
        let view = net.hosts[&id].view.clone();
        net.input(id, Input::Configure(Box::new(view)));
    }
    net.stalled.insert(1);
    for client in 0..800 {
        net.begin(client, STATE_ESTABLISHED);
        net.run(MS);
    }
}

#[test]
fn a_slow_peer_keeps_its_session_and_gets_whole_buckets_at_once() {
    let mut net = Net::new(2);
    let session = net.core(1).peers[&2].open;
    overflow(&mut net);
    let status = net.core(1).status();
    let overflows = status.peers[0].overflows;
    assert!(overflows >= 2, "{overflows}");
    let said = net.reports(1, |e| matches!(e, Event::Overflow { flows: 100, .. })) as u64;
    assert_eq!(said, u64::from(overflows.ilog2()) + 1, "the first, second, fourth time");
    assert!(net.records(2) < 800);
    assert!((0..800).all(|client| !net.core(1).is_durable(&key(client))));
    net.release(1);
    net.run(100 * MS);
    assert_eq!((net.records(1), net.records(2)), (800, 800), "long before the next comparison");
    assert_eq!(net.core(1).peers[&2].open, session, "nothing began anew");
    assert!((0..800).all(|client| net.core(1).is_durable(&key(client))));
    net.check_digests();
}

#[test]
fn a_slow_peer_without_digests_loses_its_session_and_gets_a_snapshot() {
    let mut net = versions::mixed(1);
    overflow(&mut net);
    assert!(net.reports(1, |e| ended(e, |r| matches!(r, CloseReason::Overflow(100)))) >= 1);
    assert!(net.records(2) < 800);
    net.held.clear();
    net.stalled.clear();
    net.run(5 * S);
    assert_eq!((net.records(1), net.records(2)), (800, 800));
    assert!(net.core(1).status().peers[0].snapshot_sent);
}

#[test]
fn a_killed_agent_finds_its_flows_and_slots_again() {
    let mut net = Net::new(3);
    for client in 0..200 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(100 * MS);
    let before = net.hosts[&2].flows.clone();
    net.kill(2);
    net.run(500 * MS);
    assert_eq!(net.hosts[&1].liveness.eligible, 0b101, "its agent is dead");
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b111, "its datapath is not");
    net.start(2);
    net.run(300 * MS);
    assert!(net.is_ready(2));
    assert_eq!(net.records(2), 200);
    assert_eq!(net.hosts[&2].flows, before, "nothing was written");
    assert_eq!(net.hosts[&1].liveness.eligible, 0b111);
}

#[test]
fn a_restarted_agent_leaves_the_masks_alone_until_peers_have_answered() {
    let mut net = Net::new(3);
    net.kill(2);
    let before = net.hosts[&2].liveness;
    net.start(2);
    net.run(20 * MS);
    assert_eq!(net.hosts[&2].liveness, before);
    net.run(60 * MS);
    assert_eq!(net.hosts[&2].liveness.forwarding, 0b111);
}

#[test]
fn flows_of_a_partition_are_exchanged_when_it_heals() {
    let mut net = Net::new(2);
    net.isolate(2);
    net.run(5 * S);
    let (mut here, mut there) = (0, 0);
    for client in 0..100 {
        if net.begin(client, STATE_ESTABLISHED) == 1 { here += 1 } else { there += 1 }
    }
    net.run(S);
    assert_eq!((net.records(1), net.records(2)), (here, there));
    net.cut.clear();
    net.run(S);
    assert_eq!((net.records(1), net.records(2)), (100, 100));
}

#[test]
fn what_a_crashed_member_told_one_peer_only_reaches_the_others() {
    let mut net = Net::new(3);
    let owner = net.begin(1, STATE_ESTABLISHED);
    net.run(MS);
    let record = net.core(owner).record(&key(1)).expect("a record");
    let third = (1..=3).find(|id| ![record.owners.primary, record.owners.backup].contains(id)).expect("a third");
    net.host(owner).is_up = false;
    net.kill(owner);
    assert_eq!(net.core(third).record(&key(1)), None, "its lane was still waiting");
    net.run(12 * S);
    assert_eq!(net.core(third).record(&key(1)), Some(record));
}

#[test]
fn a_member_that_lost_its_disk_continues_above_its_old_incarnation() {
    let mut net = Net::new(2);
    for _ in 0..5 {
        net.kill(2);
        net.start(2);
        net.run(S);
    }
    assert_eq!(net.core(2).status().incarnation, 6);
    net.kill(2);
    net.host(2).incarnation = 0;
    net.start(2);
    net.run(2 * S);
    assert_eq!(net.core(2).status().incarnation, 7);
    assert_eq!(net.hosts[&2].incarnation, 7, "it is kept on disk");
    assert!(net.core(2).status().peers[0].snapshot_received);
    assert_eq!(net.hosts[&1].liveness.eligible, 0b11);
}

fn hello(from: u8, to: u8) -> Hello {
    Hello {
        bulk: false,
        speaks: VERSION,
        from,
        to,
        ready: true,
        incarnation: 100,
        heard_of: 0,
        generation: 1,
        hash: 7,
        cluster: "test".into(),
    }
}

/// Member 2 as a puppet: says `frames` to a fresh member 1, and returns what became of the session.
fn say(frames: &[Vec<u8>]) -> Option<CloseReason> {
    let mut net = Net::idle();
    net.add(view(1, 2));
    net.start(1);
    let (_, here) = net.connect(9, 1);
    net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
    for frame in frames {
        net.input(1, Input::Received { session: here, bytes: frame.clone() });
    }
    net.hosts[&1].reports.iter().find_map(|(_, event)| match event {
        Event::SessionEnded { reason, .. } => Some(*reason),
        _ => None,
    })
}

#[test]
fn nobody_can_push_a_member_to_the_last_incarnation() {
    let mut net = Net::idle();
    net.add(view(1, 2));
    net.start(1);
    let (_, here) = net.connect(9, 1);
    net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
    let absurd = Hello { heard_of: u32::MAX, ..hello(2, 1) };
    net.input(1, Input::Received { session: here, bytes: Frame::Hello(absurd).encode(VERSION) });
    assert_eq!(net.core(1).status().incarnation, 1);
    assert_eq!(net.reports(1, |e| ended(e, |r| matches!(r, CloseReason::Absurd { .. }))), 1);
}

#[test]
fn a_joiner_whose_source_dies_on_the_way_does_not_start_cold() {
    let mut net = Net::idle();
    for id in 1..=2 {
        net.add(view(id, 2));
    }
    net.start(1);
    net.run(2 * S);
    for client in 0..50 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.stalled.insert(1);
    net.start(2);
    net.run(100 * MS);
    net.kill(1);
    net.held.clear();
    net.stalled.clear();
    net.run(5 * S);
    assert!(!net.is_ready(2), "the flows are at member 1, whose datapath forwards");
    net.start(1);
    net.run(3 * S);
    assert!(net.is_ready(1) && net.is_ready(2));
    assert_eq!(net.records(2), net.records(1));
    assert!(net.records(2) > 0);
}

#[test]
fn a_joiner_whose_source_dies_with_its_host_starts_cold() {
    let mut net = Net::idle();
    for id in 1..=2 {
        net.add(view(id, 2));
    }
    net.start(1);
    net.run(2 * S);
    net.stalled.insert(1);
    net.start(2);
    net.run(100 * MS);
    net.kill(1);
    net.host(1).is_up = false;
    net.run(3 * S);
    assert!(net.is_ready(2));
}

#[test]
fn a_session_of_the_wrong_peer_is_refused() {
    let said = |hello: Hello| say(&[Frame::Hello(hello).encode(VERSION)]);
    assert_eq!(said(hello(2, 1)), None);
    assert_eq!(said(Hello { cluster: "other".into(), ..hello(2, 1) }), Some(CloseReason::WrongCluster));
    assert_eq!(said(hello(3, 1)), Some(CloseReason::WrongMember { from: 3, to: 1 }));
    assert_eq!(said(hello(2, 3)), Some(CloseReason::WrongMember { from: 2, to: 3 }));
}

#[test]
fn an_earlier_incarnation_is_refused() {
    let old = Hello { incarnation: 99, ..hello(2, 1) };
    let mut net = Net::idle();
    net.add(view(1, 2));
    net.start(1);
    for hello in [hello(2, 1), old] {
        let (_, here) = net.connect(9, 1);
        net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
        net.input(1, Input::Received { session: here, bytes: Frame::Hello(hello).encode(VERSION) });
    }
    assert_eq!(net.reports(1, |e| ended(e, |r| *r == CloseReason::Stale { said: 99, known: 100 })), 1);
    assert!(net.core(1).status().peers[0].connected, "the session of the later one stays");
}

#[test]
fn the_newest_session_replaces_an_older_one() {
    let mut net = Net::idle();
    net.add(view(1, 2));
    net.start(1);
    for _ in 0..3 {
        let (_, here) = net.connect(9, 1);
        net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
        net.input(1, Input::Received { session: here, bytes: Frame::Hello(hello(2, 1)).encode(VERSION) });
    }
    assert_eq!(net.core(1).links.len(), 1);
    assert_eq!(net.core(1).peers[&2].open, Some(Session(7)));
}

#[test]
fn frames_out_of_place_end_the_session() {
    let greeting = Frame::Hello(hello(2, 1)).encode(VERSION);
    let end = |records| Frame::SnapshotEnd { records }.encode(VERSION);
    let unexpected = |frames: &[Vec<u8>]| matches!(say(frames), Some(CloseReason::Unexpected(_)));
    assert!(unexpected(&[Frame::Keepalive.encode(1)]), "before the hello");
    let old_greeting = Frame::Hello(Hello { speaks: 1, ..hello(2, 1) }).encode(1);
    let old_end = |records| Frame::SnapshotEnd { records }.encode(1);
    assert!(unexpected(&[old_greeting.clone(), old_end(1)]), "the snapshot had no record");
    assert!(unexpected(&[old_greeting, old_end(0), old_end(1)]));
    assert!(unexpected(&[greeting.clone(), end(1)]));
    assert!(unexpected(&[greeting.clone(), end(0), end(1)]));
    assert!(unexpected(&[greeting.clone(), Frame::Hello(hello(3, 1)).encode(VERSION)]));
    assert_eq!(
        say(&[greeting, end(0), end(0), Frame::Delta(vec![]).encode(VERSION), Frame::Keepalive.encode(VERSION)]),
        None
    );
}

#[test]
fn a_silent_session_ends_and_a_kept_alive_one_does_not() {
    let mut net = Net::new(2);
    net.run(20 * S);
    assert_eq!(net.reports(1, |e| ended(e, |_| true)), 0);
    net.stalled.extend([1, 2]);
    net.run(4 * S);
    let silent = |id| net.reports(id, |e| ended(e, |r| matches!(r, CloseReason::Silent(_))));
    assert_eq!(silent(1) + silent(2), 1, "whoever notices first closes");
}

#[test]
fn a_reason_is_reported_once_until_the_peer_is_back() {
    let mut net = Net::new(2);
    net.kill(2);
    net.host(2).view.cluster = "other".into();
    net.start(2);
    net.run(20 * S);
    assert_eq!(net.reports(1, |e| ended(e, |r| *r == CloseReason::WrongCluster)), 1);
}

#[test]
fn a_stop_says_goodbye_within_50_ms_and_loses_no_record() {
    let mut net = Net::new(3);
    let owner = net.begin(1, STATE_ESTABLISHED);
    net.input(owner, Input::Stop);
    for id in (1..=3).filter(|&id| id != owner) {
        assert_eq!(net.hosts[&id].liveness.forwarding, 0b111 & !bit(owner), "out at once");
        assert!(net.core(id).record(&key(1)).is_some(), "the lazy lane was flushed");
    }
    assert_eq!(net.hosts[&owner].liveness.eligible & bit(owner), 0);
    assert_eq!(net.hosts[&owner].stopped_at, None);
    let from = net.now;
    net.run(50 * MS);
    let stopped = net.hosts[&owner].stopped_at.expect("stopped");
    assert!(stopped - from <= 50 * MS, "after {} ms", (stopped - from) / MS);
}

#[test]
fn a_goodbye_that_only_probes_carry_counts_too() {
    let mut net = Net::new(2);
    net.stalled.insert(2);
    net.input(2, Input::Stop);
    net.run(21 * MS);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01);
    net.run(30 * MS);
    assert!(net.hosts[&2].stopped_at.is_some(), "it does not wait for ever");
}

#[test]
fn a_member_that_said_goodbye_comes_back_with_its_next_incarnation() {
    let mut net = Net::new(2);
    net.input(2, Input::Stop);
    net.run(60 * MS);
    net.kill(2);
    net.run(S);
    assert_eq!(net.hosts[&1].liveness.forwarding, 0b01);
    net.start(2);
    net.run(200 * MS);
    assert_eq!(net.hosts[&1].liveness.eligible, 0b11);
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let trace = || {
        let mut net = Net::new(3);
        for client in 0..100 {
            net.begin(client, STATE_ESTABLISHED);
            net.run(3 * MS);
        }
        net.isolate(1);
        net.run(S);
        net.cut.clear();
        net.run(S);
        format!("{:?} {:?}", net.hosts.values().map(|h| (&h.reports, h.puts)).collect::<Vec<_>>(), net.next_session)
    };
    assert_eq!(trace(), trace());
}
