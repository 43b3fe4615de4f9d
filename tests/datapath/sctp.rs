//! SCTP: balanced like TCP, its chunks taken for the TCP flags that they correspond to.

use lb_common::{
    flow::{
        FlowEntry, PENDING_MIDFLOW, PENDING_SYN, SCTP, STATE_CLOSING, STATE_ESTABLISHED, STATE_RESET, STATE_YOUNG,
        WITNESSED,
    },
    packet::{ETHERNET, IPV4},
    reason::Reason,
};

use crate::{
    checks::entry,
    rig::Rig,
    wire::{Datagram, chunk},
    world::{SELF, World, member_address, port_where, world},
};

/// The only backend of the service.
const BACKEND: u16 = 8;

fn port_ranked(world: &World, order: &[u8]) -> u16 {
    port_where(world, order, |port| Datagram::sctp(port, chunk::INIT).key())
}

#[test]
fn an_association_earns_its_entry_by_its_handshake() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked(&rig.world, &[1, 2]);
    let key = Datagram::sctp(port, chunk::INIT).key();
    assert_eq!(key.protocol, SCTP);
    rig.delivers(&Datagram::sctp(port, chunk::INIT), BACKEND, Reason::DeliverStateless);
    rig.expects(&key, PENDING_SYN, BACKEND, 1, 1);
    rig.delivers(&Datagram::sctp(port, chunk::COOKIE_ECHO), BACKEND, Reason::DeliverNew);
    rig.has_told(&key, entry(&key, BACKEND, STATE_YOUNG));
    rig.delivers(&Datagram::sctp(port, chunk::DATA), BACKEND, Reason::DeliverKnown);
    rig.has_told(&key, FlowEntry { packets: 3, ..entry(&key, BACKEND, STATE_ESTABLISHED) });
    // SHUTDOWN closes it, DATA revives it, ABORT resets it; the entry stays.
    rig.delivers(&Datagram::sctp(port, chunk::SHUTDOWN), BACKEND, Reason::DeliverKnown);
    rig.has_told(&key, FlowEntry { packets: 0, ..entry(&key, BACKEND, STATE_CLOSING) });
    rig.delivers(&Datagram::sctp(port, chunk::DATA), BACKEND, Reason::DeliverKnown);
    rig.has_told(&key, FlowEntry { packets: 0, revision: 1, ..entry(&key, BACKEND, STATE_ESTABLISHED) });
    rig.delivers(&Datagram::sctp(port, chunk::ABORT), BACKEND, Reason::DeliverKnown);
    rig.has_told(&key, FlowEntry { packets: 0, revision: 1, ..entry(&key, BACKEND, STATE_RESET) });
    // An INIT changes nothing (law 5).
    rig.delivers(&Datagram::sctp(port, chunk::INIT), BACKEND, Reason::DeliverKnown);
    rig.holds(&key, FlowEntry { packets: 0, revision: 1, ..entry(&key, BACKEND, STATE_RESET) });
    assert_eq!(rig.take_events(), []);
}

#[test]
fn a_chunk_that_is_not_the_handshakes_next_makes_no_entry() {
    let rig = Rig::of(world(&[1]));
    let key = Datagram::sctp(5000, chunk::INIT).key();
    for kind in [chunk::DATA, chunk::HEARTBEAT] {
        rig.delivers(&Datagram::sctp(5000, chunk::INIT), BACKEND, Reason::DeliverStateless);
        rig.delivers(&Datagram::sctp(5000, kind), BACKEND, Reason::DeliverStateless);
        rig.expects(&key, PENDING_SYN, BACKEND, 2, 1);
        rig.set_pending(&key, None);
    }
    for kind in [chunk::ABORT, chunk::SHUTDOWN] {
        rig.delivers(&Datagram::sctp(5000, kind), BACKEND, Reason::DeliverStateless);
        rig.remembers_nothing();
    }
}

#[test]
fn an_unknown_association_is_derived_when_it_keeps_coming() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked(&rig.world, &[1, 2]);
    let data = Datagram::sctp(port, chunk::DATA);
    for packets in 1..=2 {
        rig.delivers(&data, BACKEND, Reason::DeliverStateless);
        rig.expects(&data.key(), PENDING_MIDFLOW, BACKEND, packets, 0);
    }
    rig.age_pending(&data.key(), 101);
    rig.delivers(&data, BACKEND, Reason::DeliverNew);
    rig.has_told(
        &data.key(),
        FlowEntry { creator: SELF & !WITNESSED, ..entry(&data.key(), BACKEND, STATE_ESTABLISHED) },
    );
}

#[test]
fn associations_are_handed_off_and_taken_from_peers_like_connections() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked(&rig.world, &[2, 3]);
    for kind in [chunk::INIT, chunk::COOKIE_ECHO, chunk::DATA, chunk::ABORT, chunk::SHUTDOWN] {
        rig.hands_off(&Datagram::sctp(port, kind), 2, Reason::HandOffUnknown);
        rig.remembers_nothing();
    }
    rig.delivers_from(member_address(3), &Datagram::sctp(port, chunk::INIT), BACKEND, Reason::DeliverStateless);
    let init =
        Datagram::sctp(port_where(&rig.world, &[1], |port| Datagram::sctp(port, 1).v6().key_v6()), chunk::INIT).v6();
    rig.delivers(&init, BACKEND, Reason::DeliverStateless);
    rig.expects(&init.key_v6(), PENDING_SYN, BACKEND, 1, 1);
}

#[test]
fn an_sctp_packet_without_a_whole_chunk_header_is_malformed() {
    let rig = Rig::of(world(&[1]));
    let frame = Datagram::sctp(5000, chunk::INIT).frame();
    for length in ETHERNET + IPV4..frame.len() {
        rig.ends(&frame[..length], Reason::DropMalformed);
    }
    rig.ends(&Datagram::sctp(5000, chunk::INIT).with_payload(&[]).frame(), Reason::DropMalformed);
    rig.ends(&Datagram::sctp(5000, chunk::INIT).with_payload(&[1, 0, 0]).frame(), Reason::DropMalformed);
    rig.remembers_nothing();
}
