//! A packet that does not fit once encapsulated: its sender is told what would.

use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4::DestUnreachableHeader};
use lb_common::{
    address::mapped,
    node::{BUDGET_ANSWERS, NODE_DROP_OVERSIZED, V4, V6},
    packet::{IPV4, IPV6},
    reason::Reason,
    target::NextHop,
};

use crate::{
    rig::{Rig, XDP_REDIRECT, XDP_TX},
    wire::{Datagram, Tag, by_way_of, framed, with_tags},
    world::{
        CLIENT, CLIENT_V6, ELSEWHERE, LOOPBACK, OWN_MAC, ROUTER_MAC, VIP, VIP_V6, World, member_address, port_ranked,
        port_ranked_v6, server_address_v6, world,
    },
};

/// A segment whose IP packet has so many bytes.
fn segment(port: u16, bytes: usize) -> Datagram {
    let payload: Vec<u8> = (0..bytes - IPV4 - 20).map(|n| (n * 5 + 1) as u8).collect();
    Datagram::tcp(port, "P.").with_payload(&payload)
}

fn segment_v6(port: u16, bytes: usize) -> Datagram {
    segment(port, bytes - IPV6 + IPV4).v6()
}

/// "Fragmentation needed" about a packet of the client (RFC 1191), which would fit with `mtu` bytes.
fn needed(of: &Datagram, mtu: u16) -> Vec<u8> {
    let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu });
    let error = Datagram::icmp(kind, &of.packet()[..68]);
    error.from(VIP).to(CLIENT).identified(0).divisible().ttl(64).packet()
}

/// "Packet too big" about a packet of the client (RFC 4443, section 3.2): 1280 bytes.
fn too_big(of: &Datagram, mtu: u32) -> Vec<u8> {
    let error = Datagram::icmp_v6(Icmpv6Type::PacketTooBig { mtu }, &of.packet()[..1232]);
    let packet = error.source_v6(VIP_V6).destination_v6(CLIENT_V6).label(0).ttl(64).packet();
    assert_eq!(packet.len(), 1280);
    packet
}

/// Back to whom it came from.
fn back(packet: &[u8]) -> Vec<u8> {
    framed(ROUTER_MAC, OWN_MAC, packet)
}

/// All backends in one family.
fn backends_in(is_v6: bool) -> World {
    let mut world = world(&[1, 2, 3]);
    for (slot, backend) in &mut world.backends {
        let slot = *slot as u8;
        backend.address = if is_v6 { server_address_v6(slot) } else { mapped([10, 0, 2, 10 + slot]) };
    }
    world
}

#[test]
fn the_client_is_told_what_would_have_fitted() {
    for (is_v6, overhead) in [(false, IPV4), (true, IPV6)] {
        let rig = Rig::of(backends_in(is_v6));
        let (port, port_v6) = (port_ranked(&rig.world, &[1]), port_ranked_v6(&rig.world, &[1]));
        let room = 1500 - overhead;
        let fits = segment(port, room);
        rig.delivers(&fits, rig.stateless(&fits), Reason::DeliverStateless);
        let fits = segment_v6(port_v6, room);
        rig.delivers(&fits, rig.stateless(&fits), Reason::DeliverStateless);
        for bytes in [room + 1, room + 2, room + 7, 1500] {
            let large = segment(port, bytes);
            rig.becomes(&large.frame(), &back(&needed(&large, room as u16)), Reason::TooBigAnswered);
            let large = segment_v6(port_v6, bytes);
            rig.becomes(&large.frame(), &back(&too_big(&large, room as u32)), Reason::TooBigAnswered);
            assert_eq!(rig.send(&large.frame()).verdict, XDP_TX);
        }
    }
}

#[test]
fn a_hand_off_that_does_not_fit_is_answered_as_well() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let large = segment(port_ranked(&rig.world, &[2]), 1500);
    rig.becomes(&large.frame(), &back(&needed(&large, 1480)), Reason::TooBigAnswered);
    rig.change(World::use_members_v6);
    rig.becomes(&large.frame(), &back(&needed(&large, 1460)), Reason::TooBigAnswered);
}

#[test]
fn options_are_quoted_and_the_answer_has_none() {
    let rig = Rig::of(world(&[1]));
    let large = segment(5000, 1500).with_ip_options(10);
    rig.becomes(&large.frame(), &back(&needed(&large, 1480)), Reason::TooBigAnswered);
}

#[test]
fn the_answer_has_the_tags_of_the_question() {
    let rig = Rig::of(world(&[1]));
    let all: [&[Tag]; 3] = [&[], &[(0x8100, 0xa005)], &[(0x88a8, 7), (0x8100, 5)]];
    for tags in all {
        let large = segment(5000, 1500);
        let expected = with_tags(tags, back(&needed(&large, 1480)));
        rig.becomes(&large.tagged(tags), &expected, Reason::TooBigAnswered);
        let large = segment_v6(5000, 1500);
        let room = if rig.stateless(&large) <= 4 { 1480 } else { 1460 };
        let expected = with_tags(tags, back(&too_big(&large, room)));
        rig.becomes(&large.tagged(tags), &expected, Reason::TooBigAnswered);
    }
}

#[test]
fn what_came_through_a_peer_is_answered_by_the_gateway() {
    let mut rig = Rig::of(world(&[1, 2]));
    let (large, large_v6) = (segment(5000, 1500), segment_v6(5000, 1500));
    let tunnelled = [large.tunnelled(member_address(2), 0), large_v6.tunnelled(member_address(2), 0)];
    // No way back is known.
    tunnelled.iter().for_each(|frame| rig.ends(frame, Reason::DropTooBig));
    let tags = [0x81, 0, 0, 9, 0, 0, 0, 0];
    let hop =
        NextHop { destination: [2, 0, 0, 0, 9, 4], source: OWN_MAC, ifindex: LOOPBACK, mtu: 1500, ..NextHop::NONE };
    let hop_v6 = NextHop { destination: [2, 0, 0, 0, 9, 6], ifindex: ELSEWHERE, tag_bytes: 4, tags, ..hop };
    rig.change(|world| (world.gateways[V4], world.gateways[V6]) = (hop, hop_v6));
    rig.becomes(&tunnelled[0], &by_way_of(&hop, &needed(&large, 1480)), Reason::TooBigAnswered);
    rig.becomes(&tunnelled[1], &by_way_of(&hop_v6, &too_big(&large_v6, 1460)), Reason::TooBigAnswered);
    let verdicts = tunnelled.map(|frame| rig.send(&frame).verdict);
    assert_eq!(verdicts, [XDP_TX, XDP_REDIRECT]);
}

#[test]
fn a_divisible_packet_is_answered_or_dropped_as_the_node_says() {
    let mut rig = Rig::of(world(&[1]));
    let divisible = segment(5000, 1500).divisible();
    rig.becomes(&divisible.frame(), &back(&needed(&divisible, 1480)), Reason::TooBigAnswered);
    rig.change(|world| world.node.flags = NODE_DROP_OVERSIZED);
    rig.ends(&divisible.frame(), Reason::DropTooBig);
    // Of packets that must not be fragmented the sender is told in any case.
    let whole = segment(5000, 1500);
    rig.becomes(&whole.frame(), &back(&needed(&whole, 1480)), Reason::TooBigAnswered);
    let whole = segment_v6(5000, 1500);
    rig.becomes(&whole.frame(), &back(&too_big(&whole, 1460)), Reason::TooBigAnswered);
}

#[test]
fn answers_are_limited_in_number() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| world.liveness.budgets[BUDGET_ANSWERS] = 0);
    rig.ends(&segment(5000, 1500).frame(), Reason::DropAnswerBudget);
    rig.ends(&segment_v6(5000, 1500).frame(), Reason::DropAnswerBudget);
}

#[test]
fn no_answer_is_given_to_an_error_or_a_later_fragment() {
    let rig = Rig::of(world(&[1]));
    let quoted = segment(5000, 1480).reversed().packet();
    let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    let error = Datagram::icmp(kind, &quoted[..1460]).from([192, 0, 2, 1]);
    rig.ends(&error.frame(), Reason::DropTooBig);
    let whole = Datagram::udp(5000, crate::world::DNS).with_payload(&[1; 2900]);
    let [head, tail] = whole.split(183);
    rig.becomes(&head.frame(), &back(&needed(&head, 1480)), Reason::TooBigAnswered);
    rig.ends(&tail.with_payload(&[1; 1472]).frame(), Reason::DropTooBig);
}

#[test]
fn jumbo_frames_in_several_buffers_are_carried_and_answered() {
    let mut rig = Rig::for_jumbo_frames(world(&[1, 2]));
    rig.change(|world| {
        world.backends.values_mut().for_each(|backend| backend.next_hop.mtu = 9000);
        world.members.values_mut().for_each(|member| member.next_hop.mtu = 9000);
    });
    let (own, handed) = (port_ranked(&rig.world, &[1]), port_ranked(&rig.world, &[2]));
    let own_v6 = port_ranked_v6(&rig.world, &[1]);
    for bytes in [60, 1500, 3500, 4096, 5000, 8960] {
        let jumbo = segment(own, bytes);
        rig.delivers(&jumbo, rig.stateless(&jumbo), Reason::DeliverStateless);
        rig.set_pending(&jumbo.key(), None);
        rig.delivers_from(member_address(2), &jumbo, rig.stateless(&jumbo), Reason::DeliverStateless);
        rig.set_pending(&jumbo.key(), None);
        rig.hands_off(&segment(handed, bytes), 2, Reason::HandOffUnknown);
        let jumbo = segment_v6(own_v6, bytes);
        rig.delivers(&jumbo, rig.stateless(&jumbo), Reason::DeliverStateless);
        rig.set_pending(&jumbo.key_v6(), None);
    }
    let large = segment(own, 8981);
    rig.becomes(&large.frame(), &back(&needed(&large, 8980)), Reason::TooBigAnswered);
    let large = segment_v6(own_v6, 8981);
    let room = if rig.stateless(&large) <= 4 { 8980 } else { 8960 };
    rig.becomes(&large.frame(), &back(&too_big(&large, room)), Reason::TooBigAnswered);
}
