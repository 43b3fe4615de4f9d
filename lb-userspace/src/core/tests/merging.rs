//! The merge laws, and what they mean for a flow.

use lb_common::flow::{STATE_CLOSING, STATE_DELETED, STATE_RESET};
use proptest::prelude::*;

use super::*;
use crate::core::records::{BackendRegister, COUNT_MAX, Lifecycle, OwnersRegister, Record};

/// Few values each, so that equal ones meet often.
fn record() -> impl Strategy<Value = Record> {
    let backend = (any::<bool>(), 1..4_u8, 1..4_u32, 1..4_u8).prop_map(|(witnessed, creator, incarnation, last)| {
        BackendRegister { witnessed, creator, incarnation, address: server(last) }
    });
    let lifecycle = (0..3_u16, 2..6_u8).prop_map(|(revision, state)| Lifecycle { revision, state });
    let owners =
        (0..3_u16, 1..4_u8, 4..7_u8).prop_map(|(term, primary, backup)| OwnersRegister { term, primary, backup });
    (0..3_u16, backend, lifecycle, owners).prop_map(|(generation, backend, lifecycle, owners)| Record {
        generation,
        backend,
        lifecycle,
        owners,
    })
}

proptest! {
    #[test]
    fn merging_is_commutative(a in record(), b in record()) {
        prop_assert_eq!(a.merge(&b), b.merge(&a));
    }

    #[test]
    fn merging_is_associative(a in record(), b in record(), c in record()) {
        prop_assert_eq!(a.merge(&b).merge(&c), a.merge(&b.merge(&c)));
    }

    #[test]
    fn merging_is_idempotent(a in record(), b in record()) {
        prop_assert_eq!(a.merge(&a), a);
        prop_assert_eq!(a.merge(&b).merge(&b), a.merge(&b));
    }

    #[test]
    fn an_entry_says_what_its_record_says(a in record()) {
        prop_assert_eq!(Record::of(&a.entry(9, 1, 2, 3), a.backend.address), a);
    }

    /// Members that hear the same records in any order and any number of times hold the same tables.
    #[test]
    fn members_converge_whatever_order_they_hear_things_in(
        said in prop::collection::vec((0..4_u16, record()), 1..20),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut net = Net::new(2);
        for id in 1..=2 {
            net.host(id).view.services[0].backends = vec![backend(1), backend(2), backend(3)];
            let view = net.hosts[&id].view.clone();
            net.input(id, Input::Configure(Box::new(view)));
        }
        net.isolate(2);
        net.run(4 * S);
        let now = net.now;
        let mut hear = |id: u8, (client, record): (u16, Record)| {
            let item = crate::core::wire::Item { key: key(client), record, idle_ms: 0, ended_s: 0 };
            net.host(id).core.as_mut().expect("core").apply(now, 3 - id, &item);
        };
        said.iter().for_each(|said| hear(1, *said));
        order.iter().for_each(|at| hear(2, *at.get(&said)));
        said.iter().rev().for_each(|said| hear(2, *said));
        for client in 0..4 {
            prop_assert_eq!(net.core(1).record(&key(client)), net.core(2).record(&key(client)));
        }
    }
}

#[test]
fn the_first_member_to_see_a_flow_does_not_lose_it_to_a_derived_one() {
    let mut net = Net::new(2);
    let owner = net.begin(1, STATE_ESTABLISHED);
    net.run(100 * MS);
    let other = 3 - owner;
    let known = net.core(owner).record(&key(1)).expect("a record");
    let mut entry = net.hosts[&other].flows[&key(1)];
    entry.creator = other;
    entry.backend = 2;
    net.host(other).flows.insert(key(1), entry);
    net.sweep(other);
    net.run(100 * MS);
    for id in 1..=2 {
        assert_eq!(net.core(id).record(&key(1)), Some(known));
    }
    assert_eq!(net.hosts[&other].flows[&key(1)].backend, 1, "the map is amended");
}

#[test]
fn who_knows_less_is_told_more() {
    let mut net = Net::new(2);
    let owner = net.begin(1, STATE_ESTABLISHED);
    let mut entry = net.hosts[&owner].flows[&key(1)];
    entry.state = STATE_CLOSING;
    net.host(owner).flows.insert(key(1), entry);
    net.input(owner, Input::Observed { key: key(1), entry });
    net.run(100 * MS);
    let known = net.core(owner).record(&key(1)).expect("a record");
    // The other member believes something older, and says so.
    let mut older = known;
    older.lifecycle.state = STATE_ESTABLISHED;
    let now = net.now;
    let other = 3 - owner;
    let item = crate::core::wire::Item { key: key(1), record: older, idle_ms: 0, ended_s: 0 };
    net.host(owner).core.as_mut().expect("core").apply(now, other, &item);
    let queued = net.core(owner).status().peers[0].queued;
    assert_eq!((net.core(owner).record(&key(1)), queued), (Some(known), 1));
}

#[test]
fn a_tombstone_that_nothing_can_follow_makes_no_endless_loop() {
    for state in [STATE_ESTABLISHED, STATE_RESET] {
        let mut net = Net::new(2);
        net.run(100 * S);
        let owner = net.begin(1, state);
        net.run(MS * 100);
        let mut last = net.core(owner).record(&key(1)).expect("a record");
        (last.generation, last.lifecycle.revision, last.lifecycle.state) = (COUNT_MAX, COUNT_MAX, STATE_DELETED);
        let now = net.now;
        let item = crate::core::wire::Item { key: key(1), record: last, idle_ms: 50_000, ended_s: 1 };
        net.host(owner).core.as_mut().expect("core").apply(now, 3 - owner, &item);
        net.carry_out(owner);
        assert_eq!(net.core(owner).record(&key(1)).map(|record| record.is_tombstone()), Some(true));
        net.run(5 * S);
        net.begin_at(owner, 1, state);
        net.run(200 * S);
        net.begin_at(owner, 1, state);
        assert_eq!(net.core(owner).record(&key(1)).map(|record| record.is_tombstone()), Some(false), "it is forgotten");
    }
}

#[test]
fn amending_keeps_what_xdp_wrote_meanwhile() {
    let entry = |generation, revision, state, last_seen| FlowEntry {
        generation,
        revision,
        state,
        last_seen,
        created: 5,
        packets: 9,
        ..FlowEntry::new_zeroed()
    };
    let wanted = FlowEntry { backend: 7, term: 3, packets: 0, created: 6, ..entry(1, 0, STATE_ESTABLISHED, 100) };
    let amended = records::amend(&entry(1, 0, STATE_RESET, 200), &wanted);
    assert_eq!((amended.backend, amended.term, amended.state, amended.last_seen), (7, 3, STATE_RESET, 200));
    assert_eq!((amended.packets, amended.created), (9, 5));
    let amended = records::amend(&entry(1, 0, STATE_ESTABLISHED, 50), &wanted);
    assert_eq!((amended.state, amended.last_seen), (STATE_ESTABLISHED, 100));
    let anew = entry(2, 0, STATE_ESTABLISHED, 50);
    assert_eq!(records::amend(&anew, &wanted), anew, "placed anew: its event is on the way");
}

#[test]
fn a_flow_after_a_tombstone_is_of_the_next_generation_everywhere() {
    let mut net = Net::new(2);
    let owner = net.begin(1, STATE_RESET);
    net.run(35 * S);
    net.sweep_all();
    net.run(S);
    assert!((1..=2).all(|id| net.core(id).record(&key(1)).is_some_and(|r| r.lifecycle.state == STATE_DELETED)));
    assert!((1..=2).all(|id| net.hosts[&id].flows.is_empty()));
    assert_eq!(net.begin(1, STATE_ESTABLISHED), owner);
    net.run(100 * MS);
    for id in 1..=2 {
        let record = net.core(id).record(&key(1)).expect("a record");
        assert_eq!((record.generation, record.lifecycle.state), (1, STATE_ESTABLISHED));
        assert_eq!(net.hosts[&id].flows[&key(1)].generation, 1);
    }
}
