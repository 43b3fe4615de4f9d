//! The second chance (law 1), and direct hand-off: who delivers what it knows, and whom it asks for what it does not.

use lb_common::{
    flow::{EVENT_ASKED, FlowEntry, STATE_ESTABLISHED, tick, ticks_of_ms},
    node::NODE_DIRECT,
    packet::SECOND_CHANCE,
    rank::bit,
    reason::Reason,
    target::TARGET_DOWN,
};

use crate::{
    checks::{entry, now_ns},
    rig::Rig,
    wire::{Datagram, chunk},
    world::{DNS, member_address, port_ranked, port_ranked_v6, port_where, world},
};

/// In the window in which records may be missing.
fn doubting() -> Rig {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    rig.change(|world| world.liveness.doubt_until_ns = u64::MAX);
    rig
}

fn a_while_ago() -> u32 {
    tick(now_ns()).wrapping_sub(ticks_of_ms(1000))
}

#[test]
fn in_doubt_a_packet_of_an_unknown_flow_asks_the_member_that_may_know_it() {
    let mut rig = doubting();
    let port = port_ranked(&rig.world, &[1, 3, 2]);
    for packet in [
        Datagram::tcp(port, ".").tos(0xb9),
        Datagram::tcp(port, "P.").tos(2).with_payload(b"more"),
        Datagram::tcp(port, "F."),
        Datagram::tcp(port, "R"),
    ] {
        let expected = packet.asking(&rig.world.members[&3]);
        rig.becomes(&packet.frame(), &expected, Reason::HandOffSecondChance);
        // Also what a peer has taken to be this member's own.
        rig.becomes(&packet.tunnelled(member_address(2), 0), &expected, Reason::HandOffSecondChance);
    }
    let v6 = Datagram::tcp(port_ranked_v6(&rig.world, &[1, 2]), ".").v6().tos(0xb8);
    rig.becomes(&v6.frame(), &v6.asking(&rig.world.members[&2]), Reason::HandOffSecondChance);
    let sctp = Datagram::sctp(port_where(&rig.world, &[1, 2], |port| Datagram::sctp(port, 0).key()), chunk::DATA);
    rig.becomes(&sctp.frame(), &sctp.asking(&rig.world.members[&2]), Reason::HandOffSecondChance);
    let udp = Datagram::udp(port_where(&rig.world, &[1, 3], |port| Datagram::udp(port, DNS).key()), DNS);
    rig.becomes(&udp.frame(), &udp.asking(&rig.world.members[&3]), Reason::HandOffSecondChance);
    rig.remembers_nothing();
    // It is a hop: where the TTL ends, it ends.
    for ttl in [0, 1] {
        rig.ends(&Datagram::tcp(port, ".").ttl(ttl).frame(), Reason::DropTtl);
    }
    // A connection that begins is known to nobody else, and neither are its next packets.
    let begins = port_ranked(&rig.world, &[1, 2, 3]);
    for flags in ["S", "."] {
        let packet = Datagram::tcp(begins, flags);
        rig.delivers(&packet, rig.stateless(&packet), Reason::DeliverStateless);
    }
    // The next one, where the best is dead; nobody, where all are; and after the window.
    let ack = Datagram::tcp(port, ".");
    rig.change(|world| (world.liveness.forwarding, world.liveness.eligible) = (bit(1) | bit(2), bit(1) | bit(2)));
    rig.becomes(&ack.frame(), &ack.asking(&rig.world.members[&2]), Reason::HandOffSecondChance);
    rig.change(|world| (world.liveness.forwarding, world.liveness.eligible) = (bit(1), bit(1)));
    rig.delivers(&ack, rig.stateless(&ack), Reason::DeliverStateless);
    rig.change(|world| {
        (world.liveness.forwarding, world.liveness.eligible) = (0b111, 0b111);
        world.liveness.doubt_until_ns = now_ns() - 1_000_000_000;
    });
    rig.delivers(&ack, rig.stateless(&ack), Reason::DeliverStateless);
}

#[test]
fn in_doubt_a_known_flow_is_no_question() {
    let rig = doubting();
    let ack = Datagram::tcp(port_ranked(&rig.world, &[1, 3]), ".");
    rig.set_flow(&ack.key(), Some(&entry(&ack.key(), 2, STATE_ESTABLISHED)));
    rig.delivers(&ack, 2, Reason::DeliverKnown);
}

#[test]
fn a_member_that_is_asked_delivers_and_tells_its_agent() {
    let rig = doubting();
    for ecn in 0..=2 {
        let ack = Datagram::tcp(port_ranked(&rig.world, &[2, 3]), ".").tos(0xb8 | ecn);
        // Of other owners, and it stays all the same.
        let old =
            FlowEntry { primary: 2, backup: 3, last_seen: a_while_ago(), ..entry(&ack.key(), 3, STATE_ESTABLISHED) };
        rig.set_flow(&ack.key(), Some(&old));
        let frame = ack.tunnelled(member_address(2), SECOND_CHANCE | ecn);
        let expected = ack.delivered(&rig.world.backends[&3]);
        rig.becomes(&frame, &expected, Reason::DeliverSecondChance);
        let told = rig.take_events();
        assert_eq!(told.len(), 1);
        let known = FlowEntry { last_seen: told[0].entry.last_seen, ..old };
        assert_eq!((told[0].key, told[0].entry), (ack.key(), FlowEntry { event: EVENT_ASKED, ..known }));
        assert_eq!(rig.flow(&ack.key()), Some(known));
        assert_ne!(known.last_seen, old.last_seen);
    }
}

#[test]
fn a_marked_packet_is_never_handed_on() {
    let rig = doubting();
    for order in [[1, 2, 3], [2, 3, 1], [3, 1, 2]] {
        let ack = Datagram::tcp(port_ranked(&rig.world, &order), ".");
        let frame = ack.tunnelled(member_address(2), SECOND_CHANCE);
        let expected = ack.delivered(&rig.world.backends[&rig.stateless(&ack)]);
        rig.becomes(&frame, &expected, Reason::DeliverStateless);
    }
    let v6 = Datagram::tcp(port_ranked_v6(&rig.world, &[3, 2]), ".").v6();
    let expected = v6.delivered(&rig.world.backends[&rig.stateless(&v6)]);
    rig.becomes(&v6.tunnelled(member_address(3), SECOND_CHANCE), &expected, Reason::DeliverStateless);
    // The mark is the tunnel's: on a packet from the wire it is a traffic class like any other.
    let ack = Datagram::tcp(port_ranked(&rig.world, &[1, 3]), ".").tos(SECOND_CHANCE);
    rig.becomes(&ack.frame(), &ack.asking(&rig.world.members[&3]), Reason::HandOffSecondChance);
}

#[test]
fn in_direct_mode_whoever_knows_a_flow_delivers_it() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let ack = Datagram::tcp(port_ranked(&rig.world, &[2, 3]), ".");
    let known =
        FlowEntry { primary: 2, backup: 3, last_seen: a_while_ago(), ..entry(&ack.key(), 2, STATE_ESTABLISHED) };
    rig.set_flow(&ack.key(), Some(&known));
    rig.hands_off(&ack, 2, Reason::HandOffKnown);
    rig.change(|world| world.node.flags = NODE_DIRECT);
    rig.delivers(&ack, 2, Reason::DeliverKnown);
    // It keeps the flow alive here; the owner hears of it from the agent.
    assert_ne!(rig.flow(&ack.key()).unwrap().last_seen, known.last_seen);
    // A FIN, too.
    rig.delivers(&Datagram::tcp(u16::from_be_bytes(ack.key().source_port), "F."), 2, Reason::DeliverKnown);
    assert_eq!(rig.take_events().len(), 1);
    // A dead owner costs nothing.
    rig.change(|world| (world.liveness.forwarding, world.liveness.eligible) = (bit(1), bit(1)));
    rig.delivers(&ack, 2, Reason::DeliverKnown);
    rig.change(|world| (world.liveness.forwarding, world.liveness.eligible) = (0b111, 0b111));
    // Unknown ones visit their owner.
    rig.set_flow(&ack.key(), None);
    rig.hands_off(&ack, 2, Reason::HandOffUnknown);
    // And so do those whose backend is gone: it is the owner's to place them anew.
    rig.set_flow(&ack.key(), Some(&known));
    rig.change(|world| world.backends.get_mut(&2).unwrap().state = TARGET_DOWN);
    rig.hands_off(&ack, 2, Reason::HandOffKnown);
    let v6 = Datagram::tcp(port_ranked_v6(&rig.world, &[3, 2]), ".").v6();
    rig.set_flow(&v6.key_v6(), Some(&FlowEntry { primary: 3, backup: 2, ..entry(&v6.key_v6(), 6, STATE_ESTABLISHED) }));
    rig.delivers(&v6, 6, Reason::DeliverKnown);
}
