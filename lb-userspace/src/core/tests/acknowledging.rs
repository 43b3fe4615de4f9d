//! Acknowledgements: what a peer has applied is known, and only that.

use super::*;
use crate::core::{
    CloseReason,
    wire::{Frame, VERSION},
};

impl Net {
    fn outstanding(&self, id: u8) -> u64 {
        self.core(id).status().peers.iter().map(|peer| peer.outstanding).sum()
    }
}

#[test]
fn a_record_is_durable_when_the_other_owner_has_acknowledged_it() {
    let mut net = Net::new(2);
    net.stalled.insert(1);
    net.begin_at(1, 1, STATE_ESTABLISHED);
    net.run(10 * MS);
    assert!(!net.core(1).is_durable(&key(1)), "it has not left");
    assert_eq!(net.outstanding(1), 1);
    net.stalled.insert(2);
    net.stalled.remove(&1);
    let held = std::mem::take(&mut net.held);
    held.into_iter().for_each(|(session, bytes)| net.deliver(session, bytes));
    net.run(10 * MS);
    assert!(net.core(2).record(&key(1)).is_some());
    assert!(!net.core(1).is_durable(&key(1)), "nobody has said that it came");
    net.release(2);
    net.run(MS);
    assert!(net.core(1).is_durable(&key(1)));
    assert_eq!(net.outstanding(1), 0);
    assert!(!net.core(1).is_durable(&key(2)), "nobody knows it");
}

#[test]
fn deltas_that_come_together_are_acknowledged_together() {
    let mut net = Net::new(2);
    net.run(S);
    let session = net.core(1).peers[&2].open.expect("a session");
    let before = net.sent[&1];
    let bytes = Frame::Delta(vec![]).encode(VERSION).repeat(100);
    net.input(1, Input::Received { session, bytes });
    net.tick(1);
    let said = net.sent[&1] - before;
    assert!(said < 200, "{said} bytes");
}

#[test]
fn nobody_acknowledges_what_was_not_said() {
    for frames in [1, u64::MAX] {
        let mut net = Net::new(2);
        let session = net.core(1).peers[&2].open.expect("a session");
        let bytes = Frame::Acknowledgement { frames }.encode(VERSION);
        net.input(1, Input::Received { session, bytes });
        let unexpected =
            |event: &Event| matches!(event, Event::SessionEnded { reason: CloseReason::Unexpected(_), .. });
        assert_eq!(net.reports(1, unexpected), 1);
    }
}

/// The peer takes part in all but acknowledging: its program is stuck, and its connection stands.
#[test]
fn a_tombstone_outlives_its_time_as_long_as_a_connected_peer_has_not_heard_of_it() {
    for acknowledges in [true, false] {
        let mut net = Net::new(2);
        net.begin_at(1, 1, STATE_ESTABLISHED);
        net.run(S);
        let session = net.core(1).peers[&2].open.expect("a session");
        if !acknowledges {
            net.deaf.insert(session);
        }
        let number = net.core(1).table.find(&key(1)).expect("a record");
        let now = net.now;
        let core = net.host(1).core.as_mut().expect("a running agent");
        let row = *core.table.row(number).expect("a row");
        core.end(now, number, row.record, row.last_seen, tick(now));
        core.tell_all(now, number);
        net.host(1).flows.clear();
        net.run(125 * S);
        assert_eq!(net.core(1).status().tombstones, usize::from(!acknowledges));
        net.deaf.clear();
        net.begin_at(1, 2, STATE_ESTABLISHED);
        net.run(5 * S);
        assert_eq!(net.core(1).status().tombstones, 0, "it has heard of it now");
    }
}
