//! Law 3: what a flow must show before it is worth an entry.

use lb_common::{
    flow::{FlowEntry, PENDING_MIDFLOW, PENDING_SYN, PENDING_UDP, STATE_ESTABLISHED, STATE_YOUNG, WITNESSED},
    node::NODE_FIRST_PACKET,
    reason::Reason,
    target::{TARGET_DOWN, TARGET_DRAINING, TARGET_REMOVED},
};

use crate::{
    checks::entry,
    rig::Rig,
    wire::Datagram,
    world::{DNS, SELF, member_address, port_ranked, ring, world},
};

/// Three members, and a port whose flow the one under test owns.
fn owner() -> (Rig, u16) {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked(&rig.world, &[1, 2]);
    (rig, port)
}

/// A backend that is not `backend`, of the service `web`.
const fn another(backend: u16) -> u16 {
    backend % 3 + 1
}

#[test]
fn a_syn_leaves_only_a_pending_entry() {
    let (rig, port) = owner();
    let syn = Datagram::tcp(port, "S").seq(u32::MAX);
    rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
    // The sequence number after the last one is 0.
    rig.expects(&syn.key(), PENDING_SYN, rig.stateless(&syn), 1, 0);
    assert_eq!(rig.state().flows.len(), 0);
    let pending = rig.pending(&syn.key()).unwrap();
    assert_eq!(pending.first_seen, pending.last_seen);
}

#[test]
fn the_ack_of_a_handshake_makes_the_flow_young_and_the_next_packet_establishes_it() {
    for (third, payload) in [(".", &b""[..]), ("P.", b"GET /")] {
        let (rig, port) = owner();
        let syn = Datagram::tcp(port, "S").seq(1000);
        let key = syn.key();
        let backend = rig.stateless(&syn);
        rig.delivers(&syn, backend, Reason::DeliverStateless);
        rig.delivers(&Datagram::tcp(port, ".").seq(1001), backend, Reason::DeliverNew);
        rig.has_told(&key, entry(&key, backend, STATE_YOUNG));
        let created = rig.flow(&key).unwrap();
        assert_eq!(created.created, created.last_seen);
        rig.delivers(&Datagram::tcp(port, third).seq(1001).with_payload(payload), backend, Reason::DeliverKnown);
        let established = FlowEntry { packets: 3, ..entry(&key, backend, STATE_ESTABLISHED) };
        rig.has_told(&key, established);
        // From then on, packets are no news.
        for _ in 0..3 {
            rig.delivers(&Datagram::tcp(port, ".").seq(1002), backend, Reason::DeliverKnown);
        }
        rig.holds(&key, established);
        assert_eq!(rig.take_events(), []);
        assert_eq!(rig.flow(&key).unwrap().created, created.created);
    }
}

#[test]
fn an_ack_with_data_is_an_ack() {
    let (rig, port) = owner();
    let syn = Datagram::tcp(port, "S").seq(7);
    let backend = rig.stateless(&syn);
    rig.delivers(&syn, backend, Reason::DeliverStateless);
    rig.delivers(&Datagram::tcp(port, "P.").seq(8).with_payload(b"hello"), backend, Reason::DeliverNew);
    rig.has_told(&syn.key(), entry(&syn.key(), backend, STATE_YOUNG));
}

#[test]
fn a_packet_from_a_peer_makes_the_same_entries() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked(&rig.world, &[2, 3]);
    let syn = Datagram::tcp(port, "S").seq(1000);
    let key = syn.key();
    let backend = rig.stateless(&syn);
    rig.delivers_from(member_address(3), &syn, backend, Reason::DeliverStateless);
    rig.delivers_from(member_address(3), &Datagram::tcp(port, ".").seq(1001), backend, Reason::DeliverNew);
    // The owners are those of the flow, whoever delivers.
    rig.has_told(&key, FlowEntry { primary: 2, backup: 3, ..entry(&key, backend, STATE_YOUNG) });
}

#[test]
fn an_ack_with_another_sequence_number_is_no_handshake() {
    let (rig, port) = owner();
    let syn = Datagram::tcp(port, "S").seq(1000);
    let backend = rig.stateless(&syn);
    rig.delivers(&syn, backend, Reason::DeliverStateless);
    for (n, seq) in [1000, 1002, 0].into_iter().enumerate() {
        rig.delivers(&Datagram::tcp(port, ".").seq(seq), backend, Reason::DeliverStateless);
        rig.expects(&syn.key(), PENDING_SYN, backend, 2 + n as u8, 1001);
    }
    rig.delivers(&Datagram::tcp(port, ".").seq(1001), backend, Reason::DeliverNew);
}

#[test]
fn flags_beside_the_ack_are_no_handshake() {
    let (rig, port) = owner();
    let syn = Datagram::tcp(port, "S").seq(1000);
    let backend = rig.stateless(&syn);
    rig.delivers(&syn, backend, Reason::DeliverStateless);
    for flags in ["F.", "R.", "R", "S.", "SF", "SR", ""] {
        rig.delivers(&Datagram::tcp(port, flags).seq(1001), backend, Reason::DeliverStateless);
        rig.expects(&syn.key(), PENDING_SYN, backend, 1, 1001);
    }
}

#[test]
fn a_retried_syn_goes_where_the_first_one_went() {
    let (mut rig, port) = owner();
    let syn = Datagram::tcp(port, "S").seq(1000);
    let first = rig.stateless(&syn);
    rig.delivers(&syn, first, Reason::DeliverStateless);
    // Meanwhile the first backend drains: new flows go elsewhere.
    rig.change(|world| {
        world.rings.insert(0, ring(&[another(first)]));
        world.backends.get_mut(&first).unwrap().state = TARGET_DRAINING;
    });
    rig.delivers(&syn.clone().seq(2000), first, Reason::DeliverStateless);
    rig.expects(&syn.key(), PENDING_SYN, first, 1, 2001);
    rig.delivers(&Datagram::tcp(port, ".").seq(2001), first, Reason::DeliverNew);
    rig.has_told(&syn.key(), entry(&syn.key(), first, STATE_YOUNG));
}

#[test]
fn a_retried_syn_leaves_a_backend_that_is_out_of_service() {
    for state in [TARGET_DOWN, TARGET_REMOVED, 0] {
        let (mut rig, port) = owner();
        let syn = Datagram::tcp(port, "S").seq(1000);
        let first = rig.stateless(&syn);
        rig.delivers(&syn, first, Reason::DeliverStateless);
        rig.change(|world| {
            world.rings.insert(0, ring(&[another(first)]));
            world.backends.get_mut(&first).unwrap().state = state;
        });
        rig.delivers(&syn, another(first), Reason::DeliverStateless);
        rig.expects(&syn.key(), PENDING_SYN, another(first), 1, 1001);
    }
}

#[test]
fn a_syn_is_forgotten_after_63_seconds() {
    let (mut rig, port) = owner();
    let syn = Datagram::tcp(port, "S").seq(1000);
    let first = rig.stateless(&syn);
    rig.delivers(&syn, first, Reason::DeliverStateless);
    rig.change(|world| drop(world.rings.insert(0, ring(&[another(first)]))));
    rig.age_pending(&syn.key(), 60_000);
    rig.delivers(&syn, first, Reason::DeliverStateless);
    rig.age_pending(&syn.key(), 63_100);
    rig.delivers(&Datagram::tcp(port, ".").seq(1001), another(first), Reason::DeliverStateless);
    rig.expects(&syn.key(), PENDING_MIDFLOW, another(first), 1, 0);
}

#[test]
fn an_unknown_connection_is_recorded_as_derived_when_it_keeps_coming() {
    let (rig, port) = owner();
    let ack = Datagram::tcp(port, ".").seq(5);
    let key = ack.key();
    let backend = rig.stateless(&ack);
    for packets in 1..=2 {
        rig.delivers(&ack, backend, Reason::DeliverStateless);
        rig.expects(&key, PENDING_MIDFLOW, backend, packets, 0);
    }
    // The third, but too soon: a burst proves nothing.
    rig.delivers(&ack, backend, Reason::DeliverStateless);
    rig.expects(&key, PENDING_MIDFLOW, backend, 3, 0);
    rig.age_pending(&key, 101);
    rig.delivers(&ack, backend, Reason::DeliverNew);
    rig.has_told(&key, FlowEntry { creator: SELF, ..entry(&key, backend, STATE_ESTABLISHED) });
}

#[test]
fn two_packets_of_an_unknown_connection_are_not_enough_however_old() {
    let (rig, port) = owner();
    let data = Datagram::tcp(port, "P.").with_payload(b"x");
    let backend = rig.stateless(&data);
    rig.delivers(&data, backend, Reason::DeliverStateless);
    rig.age_pending(&data.key(), 1000);
    rig.delivers(&data, backend, Reason::DeliverStateless);
    rig.expects(&data.key(), PENDING_MIDFLOW, backend, 2, 0);
    rig.delivers(&data, backend, Reason::DeliverNew);
    assert_eq!(rig.flow(&data.key()).unwrap().creator & WITNESSED, 0);
}

#[test]
fn a_handshake_whose_ack_was_missed_is_derived_and_keeps_its_backend() {
    let (mut rig, port) = owner();
    let syn = Datagram::tcp(port, "S").seq(1000);
    let key = syn.key();
    let first = rig.stateless(&syn);
    rig.delivers(&syn, first, Reason::DeliverStateless);
    rig.change(|world| drop(world.rings.insert(0, ring(&[another(first)]))));
    rig.delivers(&Datagram::tcp(port, ".").seq(1500), first, Reason::DeliverStateless);
    rig.age_pending(&key, 101);
    rig.delivers(&Datagram::tcp(port, ".").seq(1600), first, Reason::DeliverNew);
    rig.has_told(&key, FlowEntry { creator: SELF, ..entry(&key, first, STATE_ESTABLISHED) });
}

#[test]
fn only_plain_acks_of_unknown_connections_are_remembered() {
    let (rig, port) = owner();
    for flags in ["F.", "F", "R", "R.", "S.", "SR", "SF", "", "P"] {
        let packet = Datagram::tcp(port, flags);
        for _ in 0..4 {
            rig.delivers(&packet, rig.stateless(&packet), Reason::DeliverStateless);
        }
        rig.remembers_nothing();
    }
}

#[test]
fn the_second_udp_packet_makes_an_entry() {
    let rig = Rig::of(world(&[1]));
    let question = Datagram::udp(5000, DNS);
    let key = question.key();
    rig.delivers(&question, 4, Reason::DeliverStateless);
    rig.expects(&key, PENDING_UDP, 4, 1, 0);
    rig.delivers(&question, 4, Reason::DeliverNew);
    let expected = FlowEntry { backup: 0, ..entry(&key, 4, STATE_ESTABLISHED) };
    rig.has_told(&key, expected);
    rig.delivers(&question, 4, Reason::DeliverKnown);
    rig.holds(&key, expected);
    assert_eq!(rig.take_events(), []);
}

#[test]
fn the_second_udp_packet_goes_where_the_first_one_went() {
    let mut rig = Rig::of(world(&[1]));
    let question = Datagram::udp(5000, DNS);
    rig.delivers(&question, 4, Reason::DeliverStateless);
    rig.change(|world| drop(world.rings.insert(1, ring(&[3]))));
    rig.delivers(&question, 4, Reason::DeliverNew);
    let mut rig = Rig::of(world(&[1]));
    rig.delivers(&question, 4, Reason::DeliverStateless);
    rig.change(|world| {
        world.rings.insert(1, ring(&[3]));
        world.backends.get_mut(&4).unwrap().state = TARGET_DOWN;
    });
    rig.delivers(&question, 3, Reason::DeliverStateless);
    rig.expects(&question.key(), PENDING_UDP, 3, 1, 0);
}

#[test]
fn with_first_packet_every_flow_is_established_at_once() {
    let (mut rig, port) = owner();
    rig.change(|world| world.node.flags = NODE_FIRST_PACKET);
    let syn = Datagram::tcp(port, "S").seq(1000);
    let backend = rig.stateless(&syn);
    rig.delivers(&syn, backend, Reason::DeliverNew);
    rig.has_told(&syn.key(), entry(&syn.key(), backend, STATE_ESTABLISHED));
    rig.delivers(&syn, backend, Reason::DeliverKnown);
    rig.delivers(&Datagram::tcp(port, ".").seq(1001), backend, Reason::DeliverKnown);
    assert_eq!(rig.take_events(), []);

    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| world.node.flags = NODE_FIRST_PACKET);
    let question = Datagram::udp(5000, DNS);
    rig.delivers(&question, 4, Reason::DeliverNew);
    rig.has_told(&question.key(), FlowEntry { backup: 0, ..entry(&question.key(), 4, STATE_ESTABLISHED) });
    assert_eq!(rig.state().pending.len(), 0);
}

#[test]
fn a_cluster_of_one_keeps_its_own_table() {
    let rig = Rig::of(world(&[1]));
    for port in 5000..5010 {
        let syn = Datagram::tcp(port, "S").seq(1000);
        let key = syn.key();
        let backend = rig.stateless(&syn);
        rig.delivers(&syn, backend, Reason::DeliverStateless);
        rig.delivers(&Datagram::tcp(port, ".").seq(1001), backend, Reason::DeliverNew);
        rig.has_told(&key, FlowEntry { backup: 0, ..entry(&key, backend, STATE_YOUNG) });
        rig.delivers(&Datagram::tcp(port, ".").seq(1001), backend, Reason::DeliverKnown);
        rig.take_events();
    }
}
