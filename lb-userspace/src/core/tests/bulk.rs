//! The second session of a pair: what is long goes there, nothing else waits for it, and what must come behind it does.

use super::*;
use crate::core::{
    event::CloseReason,
    wire::{Decoder, Frame, Hello, VERSION},
};

impl Net {
    fn bulk(&self, from: u8, to: u8) -> Option<Session> {
        let core = self.core(from);
        core.links[&core.peers[&to].open?].bulk
    }

    /// What was sent on the second session from here on stays under way; with the window full, no more is.
    fn hold_bulk(&mut self, from: u8, to: u8) -> Session {
        let session = self.bulk(from, to).expect("a session for bulk");
        self.slow.insert(session);
        session
    }

    fn release_bulk(&mut self, session: Session) {
        self.slow.remove(&session);
        let held = std::mem::take(&mut self.held);
        held.into_iter().for_each(|(session, bytes)| self.deliver(session, bytes));
    }

    /// A connection of member 1 breaks, and both sides hear of it.
    fn break_off(&mut self, session: Session) {
        self.hang_up(session);
        self.input(1, Input::Closed { session });
    }

    fn frames_held(&self, session: Session) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        self.held.iter().filter(|(other, _)| *other == session).for_each(|(_, bytes)| decoder.push(bytes));
        std::iter::from_fn(|| decoder.next_frame(VERSION).expect("frames")).collect()
    }
}

/// Member 1 has so many flows, and member 2 none: its agent has started, its second session is up, and what member 1 says there is held.
fn joining(flows: u16, limits: impl Fn(&mut Limits)) -> (Net, Session) {
    let mut net = Net::idle();
    for id in 1..=2 {
        let mut view = view(id, 2);
        limits(&mut view.limits);
        net.add(view);
    }
    net.start(1);
    net.run(2 * S);
    for client in 0..flows {
        net.begin_at(1, client, STATE_ESTABLISHED);
    }
    net.run(S);
    // Until its map was swept it asks for nothing.
    let now = net.now;
    let view = net.hosts[&2].view.clone();
    net.host(2).incarnation = 1;
    net.host(2).core = Some(Core::new(now, view, 1, 7, &Adopted::default()));
    net.run(500 * MS);
    let held = net.hold_bulk(1, 2);
    net.sweep(2);
    (net, held)
}

fn puppet_hello(bulk: bool) -> Vec<u8> {
    let hello = Hello {
        bulk,
        speaks: VERSION,
        from: 2,
        to: 1,
        ready: true,
        incarnation: 100,
        heard_of: 0,
        generation: 1,
        hash: 7,
        cluster: "test".into(),
    };
    Frame::Hello(hello).encode(VERSION)
}

/// Member 2 as a puppet that has said hello to a fresh member 1, and what member 1 calls that session.
fn puppet() -> (Net, Session) {
    let mut net = Net::idle();
    net.add(view(1, 2));
    net.start(1);
    let (_, here) = net.connect(9, 1);
    net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
    net.input(1, Input::Received { session: here, bytes: puppet_hello(false) });
    (net, here)
}

#[test]
fn every_pair_has_a_second_session_unless_one_of_both_does_not_know_of_it() {
    let net = Net::new(3);
    for (from, to) in [(1, 2), (1, 3), (2, 3)] {
        let (ours, theirs) = (net.bulk(from, to).expect("one"), net.bulk(to, from).expect("the same"));
        assert_eq!(net.ends[&ours], (from, theirs), "and both mean the same connection");
        assert!(net.core(from).links[&ours].dialled, "the lower id dials");
    }
    let old = versions::mixed(1);
    assert_eq!((old.bulk(1, 2), old.bulk(2, 1)), (None, None));
    assert_eq!(old.core(1).links.len(), 1, "nobody has dialled");
}

#[test]
fn a_delta_passes_a_snapshot_that_does_not_move() {
    let (mut net, held) = joining(500, |limits| limits.window = 4096);
    net.run(300 * MS);
    assert!(net.records(2) < 500, "the snapshot is held");
    assert!(net.frames_held(held).iter().any(|frame| matches!(frame, Frame::Snapshot(_))));
    net.begin_at(1, 900, STATE_ESTABLISHED);
    net.run(0);
    assert!(net.core(2).record(&key(900)).is_some(), "at once: member 2 is an owner of it");
}

#[test]
fn the_end_of_a_snapshot_comes_behind_its_last_record() {
    let (mut net, held) = joining(100, |_| ());
    net.run(2 * S);
    assert_eq!(net.records(2), 0, "all of it is under way");
    assert!(!net.core(2).status().peers[0].snapshot_received && !net.is_ready(2));
    assert!(!net.core(1).status().peers[0].snapshot_sent);
    net.release_bulk(held);
    net.run(500 * MS);
    assert_eq!(net.records(2), 100);
    assert!(net.core(2).status().peers[0].snapshot_received && net.is_ready(2));
}

#[test]
fn what_was_under_way_when_the_second_session_broke_is_sent_again() {
    for window in [1024, 1 << 18] {
        let (mut net, held) = joining(500, |limits| limits.window = window);
        net.run(100 * MS);
        let first = net.records(2);
        net.slow.clear();
        net.held.clear();
        net.break_off(held);
        assert_eq!(net.bulk(1, 2), None);
        net.run(10 * MS);
        assert!(net.records(2) > first, "on the first session, until there is another second one");
        net.run(2 * S);
        assert_eq!(net.records(2), 500);
        assert!(net.is_ready(2));
        assert!(net.bulk(1, 2).is_some_and(|session| session != held), "dialled again");
    }
}

#[test]
fn buckets_owed_hold_an_epochs_acknowledgement_and_digests_back_until_they_have_arrived() {
    let mut net = Net::new(2);
    let held = net.hold_bulk(1, 2);
    net.stalled.insert(1);
    // More than may wait for a peer: their buckets are owed.
    for client in 0..600 {
        net.begin_at(1, client, STATE_ESTABLISHED);
    }
    assert!(net.core(1).status().peers[0].overflows > 0);
    net.release(1);
    net.run(100 * MS);
    assert!(net.records(2) < 600);
    assert!(!net.core(1).is_durable(&key(0)), "its bucket is under way");
    let control = net.core(1).peers[&2].open.expect("a session");
    net.slow.insert(control);
    for id in 1..=2 {
        let mut view = net.hosts[&id].view.clone();
        view.services = vec![web(vec![backend(1)])];
        view.generation += 1;
        net.input(id, Input::Configure(Box::new(view)));
    }
    net.run(300 * MS);
    let says = |net: &Net| {
        let frames = net.frames_held(control);
        let told = |frame: &Frame| matches!(frame, Frame::Epoch(standing) if standing.next.number != 0);
        (frames.iter().any(told), frames.iter().any(|frame| matches!(frame, Frame::Digests(_))))
    };
    assert_eq!(says(&net), (false, false));
    net.slow.remove(&held);
    let (bulk, rest): (VecDeque<_>, VecDeque<_>) =
        std::mem::take(&mut net.held).into_iter().partition(|(session, _)| *session == held);
    net.held = rest;
    bulk.into_iter().for_each(|(session, bytes)| net.deliver(session, bytes));
    assert_eq!(net.records(2), 600);
    net.run(300 * MS);
    assert!(says(&net).0, "it says so when all has arrived");
}

#[test]
fn a_second_session_ends_with_the_first_and_comes_back_with_it() {
    let mut net = Net::new(2);
    let (open, bulk) = (net.core(1).peers[&2].open.expect("open"), net.bulk(1, 2).expect("bulk"));
    net.break_off(open);
    assert!(!net.core(1).links.contains_key(&bulk));
    net.run(S);
    assert!(net.bulk(1, 2).is_some_and(|other| other != bulk));
    assert_eq!(net.core(1).links.len(), 2);
    assert_eq!(net.core(2).links.len(), 2);
}

#[test]
fn a_second_session_without_a_first_is_closed_and_one_of_another_start_too() {
    let mut net = Net::idle();
    net.add(view(1, 2));
    net.start(1);
    let (_, here) = net.connect(9, 1);
    net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
    net.input(1, Input::Received { session: here, bytes: puppet_hello(true) });
    assert!(net.core(1).links.is_empty());
    assert_eq!(net.reports(1, |event| matches!(event, Event::SessionEnded { .. })), 0, "it is nobody's fault");

    let (mut net, _) = puppet();
    let mut later = Decoder::default();
    later.push(&puppet_hello(true));
    let Ok(Some(Frame::Hello(mut hello))) = later.next_frame(1) else { panic!() };
    hello.incarnation = 101;
    let (_, here) = net.connect(9, 1);
    net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
    net.input(1, Input::Received { session: here, bytes: Frame::Hello(hello).encode(1) });
    assert_eq!(net.core(1).links.len(), 1);
    assert_eq!(net.bulk(1, 2), None);
}

#[test]
fn what_is_no_bulk_ends_both_sessions_of_the_pair() {
    for frame in [Frame::Delta(Vec::new()), Frame::SnapshotEnd { records: 0 }, Frame::Goodbye] {
        let (mut net, _) = puppet();
        let (_, here) = net.connect(9, 1);
        net.input(1, Input::Connected { peer: 2, session: here, dialled: false });
        net.input(1, Input::Received { session: here, bytes: puppet_hello(true) });
        assert_eq!(net.bulk(1, 2), Some(here));
        net.input(1, Input::Received { session: here, bytes: Frame::Keepalive.encode(VERSION) });
        assert_eq!(net.core(1).links.len(), 2);
        net.input(1, Input::Received { session: here, bytes: frame.encode(VERSION) });
        assert!(net.core(1).links.is_empty());
        let is_reason = |event: &Event| matches!(event, Event::SessionEnded { reason: CloseReason::Unexpected(what), .. } if what.contains("bulk"));
        assert_eq!(net.reports(1, is_reason), 1);
    }
}
