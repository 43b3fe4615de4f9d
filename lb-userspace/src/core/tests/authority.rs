//! Who may say what: a session whose peer says what cannot be ends, and nothing of it is believed.

use super::*;
use crate::core::{
    Absurdity,
    event::CloseReason,
    records::{BackendRegister, Record},
    wire::{Frame, Item, VERSION},
};

impl Net {
    /// A record that member 2 could have made.
    fn made_by_2(&mut self) -> Item {
        self.begin_at(2, 1, STATE_ESTABLISHED);
        let record = self.core(2).record(&key(1)).expect("a record");
        assert_eq!((record.backend.creator, record.backend.incarnation), (2, 1));
        Item { key: key(2), record, idle_ms: 0, ended_s: 0 }
    }

    /// Bytes that come to member 1 from member 2.
    fn says(&mut self, frame: &Frame, version: u8) {
        let session = self.core(1).peers[&2].open.expect("a session");
        self.input(1, Input::Received { session, bytes: frame.encode(version) });
    }

    /// Why member 1 does not believe member 2.
    fn disbelief(&self) -> Option<Absurdity> {
        match self.core(1).status().peers[0].complaint {
            Some(CloseReason::Disbelieved(absurdity)) => Some(absurdity),
            _ => None,
        }
    }
}

fn with(item: Item, change: impl Fn(&mut Record)) -> Item {
    let mut item = item;
    change(&mut item.record);
    item
}

#[test]
fn a_member_makes_records_as_itself_only() {
    let mut net = Net::new(3);
    let own = net.made_by_2();
    let of_3 = with(Item { key: key(3), ..own }, |record| record.backend.creator = 3);
    net.says(&Frame::Delta(vec![own]), VERSION);
    assert_eq!(net.core(1).record(&key(2)), Some(own.record));
    net.says(&Frame::Relay(vec![of_3, Item { key: key(4), ..own }]), VERSION);
    assert_eq!(net.core(1).record(&key(3)), Some(of_3.record), "relayed as such it is believed");
    assert_eq!(net.disbelief(), None);
    net.says(&Frame::Delta(vec![Item { key: key(5), ..own }, Item { key: key(6), ..of_3 }]), VERSION);
    assert_eq!(net.disbelief(), Some(Absurdity::Creator(3)));
    for client in 5..=6 {
        assert_eq!(net.core(1).record(&key(client)), None, "nothing of the frame");
    }
    let told = |e: &Event| e.to_string().contains("not believed: it made a record as member 3");
    assert_eq!(net.reports(1, told), 1);
    net.run(20 * MS);
    let flags = net.hosts[&1].liveness.flags >> lb_common::liveness::LIVENESS_DISBELIEVED;
    assert_eq!((flags & 0xff, Absurdity::of_code((flags >> 8) as u8).is_some()), (2, true), "for who reads the maps");
    // It goes on at once, and for a while everybody can see that something was.
    net.run(2 * S);
    assert!(net.core(1).status().peers[0].connected);
    assert_eq!(net.disbelief(), Some(Absurdity::Creator(3)));
    net.run(60 * S);
    net.kill(2);
    net.start(2);
    net.run(2 * S);
    assert_eq!(net.disbelief(), None);
}

#[test]
fn what_cannot_be_ends_the_session_in_every_frame() {
    let too_late = 2 + (1 << 20);
    let martian = |register: &mut BackendRegister| register.address = mapped([224, 0, 0, 1]);
    let known = key(1);
    let cases: [(&dyn Fn(Item) -> Item, Absurdity); 8] = [
        (&|i| with(i, |r| r.backend.incarnation = 2), Absurdity::Incarnation { member: 2, said: 2, is: 1 }),
        (
            &|i| with(i, |r| (r.backend.creator, r.backend.incarnation) = (1, too_late)),
            Absurdity::Incarnation { member: 1, said: too_late, is: 1 },
        ),
        (
            &|i| with(i, |r| (r.backend.creator, r.backend.incarnation) = (3, too_late)),
            Absurdity::Incarnation { member: 3, said: too_late, is: 1 },
        ),
        (&|i| Item { idle_ms: 1 << 31 | 1 << 30, ..i }, Absurdity::Idle(1 << 31 | 1 << 30)),
        (&|i| with(i, |r| martian(&mut r.backend)), Absurdity::Backend),
        (&|i| with(i, |r| r.backend.address = [0xff; 16]), Absurdity::Backend),
        (&|i| with(Item { key: known, ..i }, |r| r.generation = 16_385), Absurdity::Leap { from: 0, to: 16_385 }),
        (&|i| with(Item { key: known, ..i }, |r| r.owners.term = 16_385), Absurdity::Leap { from: 0, to: 16_385 }),
    ];
    for (make, absurdity) in cases {
        let frames: [&dyn Fn(Vec<Item>) -> Frame; 3] =
            [&Frame::Relay, &Frame::Snapshot, &|items| Frame::Bucket { bucket: 0, is_last: true, items }];
        for frame in frames {
            let mut net = Net::new(3);
            let item = net.made_by_2();
            net.run(100 * MS);
            let before = net.core(1).record(&known);
            net.says(&frame(vec![item, make(item)]), VERSION);
            assert_eq!(net.disbelief(), Some(absurdity));
            assert_eq!((net.core(1).record(&known), net.core(1).record(&key(2))), (before, None));
        }
    }
}

#[test]
fn what_is_merely_strange_is_believed() {
    let cases: [&dyn Fn(&mut Record); 5] = [
        // News of its start came another way.
        &|r| (r.backend.creator, r.backend.incarnation) = (3, 9),
        // Configured there, not yet or no longer here.
        &|r| r.backend.creator = 64,
        &|r| (r.owners.primary, r.owners.backup) = (64, 63),
        // A flow that was not known here.
        &|r| r.generation = records::COUNT_MAX,
        // A client that revives its flow as fast as it can.
        &|r| r.lifecycle.revision = records::COUNT_MAX,
    ];
    for make in cases {
        let mut net = Net::new(3);
        let item = net.made_by_2();
        let item = with(item, make);
        net.says(&Frame::Relay(vec![item]), VERSION);
        assert_eq!((net.disbelief(), net.core(1).record(&key(2))), (None, Some(item.record)));
    }
}

#[test]
fn of_a_peer_without_relays_only_what_cannot_be_is_not_taken() {
    let mut net = versions::mixed(1);
    let own = net.made_by_2();
    let of_3 = with(Item { key: key(3), ..own }, |record| record.backend.creator = 3);
    let martian = with(Item { key: key(4), ..own }, |record| record.backend.address = mapped([127, 0, 0, 1]));
    net.says(&Frame::Delta(vec![own, of_3, martian]), 1);
    assert!(net.core(1).status().peers[0].connected);
    assert_eq!([2, 3].map(|client| net.core(1).record(&key(client))), [Some(own.record), Some(of_3.record)]);
    assert_eq!((net.core(1).record(&key(4)), net.core(1).status().parked), (None, 0));
}

#[test]
fn a_member_goes_on_above_a_start_that_its_disk_has_forgotten() {
    let mut net = Net::new(2);
    let item = net.made_by_2();
    let item = with(item, |record| (record.backend.creator, record.backend.incarnation) = (1, 57));
    net.says(&Frame::Relay(vec![item]), VERSION);
    assert_eq!(net.core(1).status().incarnation, 58);
    assert_eq!(net.hosts[&1].incarnation, 58, "and on disk");
    net.run(2 * S);
    assert!(net.core(1).status().peers[0].connected);
    assert_eq!(net.core(2).status().peers[0].incarnation, 58);
    // The same from its own map.
    let mut entry = net.hosts[&2].flows[&key(1)];
    (entry.creator, entry.creator_incarnation, entry.tag) = (1 | WITNESSED, 99, key(7).tag());
    net.host(1).flows.insert(key(7), entry);
    net.input(1, Input::Observed { key: key(7), entry });
    assert_eq!(net.core(1).status().incarnation, 100);
}

#[test]
fn a_member_relays_what_became_of_a_flow_that_another_one_placed() {
    let mut net = Net::new(3);
    net.begin_at(1, 1, STATE_ESTABLISHED);
    net.run(S);
    let mut entry = net.hosts[&2].flows[&key(1)];
    entry.state += 1;
    net.host(2).flows.insert(key(1), entry);
    net.input(2, Input::Observed { key: key(1), entry });
    net.run(S);
    for id in 1..=3 {
        let record = net.core(id).record(&key(1)).expect("a record");
        assert_eq!((record.backend.creator, record.lifecycle.state), (1, entry.state));
        assert!(net.core(id).status().peers.iter().all(|peer| peer.connected && peer.complaint.is_none()));
    }
}
