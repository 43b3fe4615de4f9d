//! Packets from other members: always delivered, trusted in nothing.

use lb_common::{
    packet::{CE, ETHERNET, IPV4},
    reason::Reason,
    target::Target,
};

use crate::{
    rig::Rig,
    wire::{Datagram, framed, tunnel},
    world::{DNS, LOOPBACK, OWN_ADDRESS, OWN_ADDRESS_V6, OWN_MAC, ROUTER_MAC, VIP, member_address, port_ranked, world},
};

const PEER: [u8; 4] = member_address(2);

#[test]
fn a_packet_from_a_peer_is_delivered_whoever_owns_it() {
    let rig = Rig::of(world(&[1, 2, 3]));
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        let syn = Datagram::tcp(port_ranked(&rig.world, &order), "S");
        rig.delivers_from(PEER, &syn, rig.stateless(&syn), Reason::DeliverStateless);
        rig.delivers_from(member_address(3), &syn, rig.stateless(&syn), Reason::DeliverStateless);
    }
}

#[test]
fn a_packet_from_a_peer_is_delivered_when_all_masks_are_empty() {
    let mut world = world(&[1, 2, 3]);
    (world.liveness.forwarding, world.liveness.eligible, world.liveness.lease_until_ns) = (0, 0, 0);
    let rig = Rig::of(world);
    let syn = Datagram::tcp(port_ranked(&rig.world, &[2, 3]), "S");
    rig.delivers_from(PEER, &syn, rig.stateless(&syn), Reason::DeliverStateless);
}

#[test]
fn a_tunnel_from_a_stranger_is_dropped() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let syn = Datagram::tcp(5000, "S");
    for stranger in [member_address(4), [10, 0, 1, 1], [198, 51, 100, 7], [0; 4], [127, 0, 0, 1]] {
        rig.ends(&syn.tunnelled(stranger, 0), Reason::DropStranger);
    }
    // A peer's address, but on the side of the clients.
    rig.change(|world| world.node.cluster_ifindex = LOOPBACK + 1);
    rig.ends(&syn.tunnelled(PEER, 0), Reason::DropStranger);
    rig.remembers_nothing();
    rig.change(|world| world.node.cluster_ifindex = LOOPBACK);
    rig.delivers_from(PEER, &syn, rig.stateless(&syn), Reason::DeliverStateless);
}

#[test]
fn a_tunnel_inside_the_tunnel_is_dropped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = Datagram::tcp(5000, "S").packet();
    let nested = |to| framed(OWN_MAC, ROUTER_MAC, &tunnel(PEER, OWN_ADDRESS, 0, &tunnel(PEER, to, 0, &syn)));
    rig.ends(&nested(VIP), Reason::DropNestedTunnel);
    // For a member and not for a VIP: not even looked into.
    rig.ends(&nested(OWN_ADDRESS), Reason::DropTunnelNoService);
    rig.ends(&Datagram::other(41, &[0x60; 40]).tunnelled(PEER, 0), Reason::DropNestedTunnel);
    rig.ends(&Datagram::other(41, &[0x60; 40]).v6().tunnelled(PEER, 0), Reason::DropNestedTunnel);
    rig.remembers_nothing();
}

#[test]
fn an_inner_packet_for_no_service_is_dropped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = || Datagram::tcp(5000, "S");
    let rows = [
        ("another port", syn().with_port(81)),
        ("another address", syn().to([203, 0, 113, 11])),
        ("the member itself", syn().to(OWN_ADDRESS)),
        ("another protocol's port", Datagram::udp(5000, 80)),
        ("ICMP", Datagram::other(1, &[8, 0, 0, 0, 0, 0, 0, 0])),
        ("another protocol", Datagram::other(47, &[0; 24])),
        ("IPv6 for another port", syn().v6().with_port(81)),
        ("IPv6 for another address", syn().v6().destination_v6(OWN_ADDRESS_V6)),
    ];
    for (name, datagram) in rows {
        println!("{name}");
        rig.ends(&datagram.tunnelled(PEER, 0), Reason::DropTunnelNoService);
    }
    rig.remembers_nothing();
}

#[test]
fn a_malformed_tunnel_packet_is_dropped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = Datagram::tcp(5000, "S");
    let frame = syn.tunnelled(PEER, 0);
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = frame.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let inner = ETHERNET + IPV4;
    let options = Datagram::other(4, &syn.packet()).from(PEER).to(OWN_ADDRESS).with_ip_options(1);
    let rows = [
        ("outer options", options.frame()),
        ("an outer header of 16 bytes", with(ETHERNET, &[0x44])),
        ("outer version 6", with(ETHERNET, &[0x65])),
        ("an outer fragment", with(ETHERNET + 6, &[0x20, 0])),
        ("a later outer fragment", with(ETHERNET + 6, &[0, 3])),
        ("an outer total length that ends in the inner packet", with(ETHERNET + 2, &[0, 59])),
        ("an outer total length of 0", with(ETHERNET + 2, &[0, 0])),
        ("inner version 6", with(inner, &[0x65])),
        ("an inner header of 16 bytes", with(inner, &[0x44])),
        ("an inner total length beyond the frame", with(inner + 2, &[0, 41])),
        ("an inner total length of 0", with(inner + 2, &[0, 0])),
        ("an inner TCP header beyond the packet", with(inner + 20 + 12, &[0xf0])),
    ];
    for (name, frame) in rows {
        println!("{name}");
        rig.ends(&frame, Reason::DropMalformed);
    }
    rig.remembers_nothing();
}

/// RFC 6040, figure 4; None: dropped.
#[test]
fn congestion_marks_of_the_outer_header_are_merged() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let (not_ect, ect1, ect0) = (0, 1, 2);
    let rows = [
        (not_ect, [Some(not_ect), Some(not_ect), Some(not_ect), None]),
        (ect1, [Some(ect1), Some(ect1), Some(ect1), Some(CE)]),
        (ect0, [Some(ect0), Some(ect1), Some(ect0), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    // The DSCP outside belongs to the cluster, the one inside to the packet: they never mix.
    for (dscp, outer_dscp) in [(0, 0), (0xb8, 0), (0, 0xb8), (0x28, 0xfc)] {
        for (inner, row) in rows {
            for (outer, merged) in [not_ect, ect1, ect0, CE].into_iter().zip(row) {
                println!("inner {inner}, outer {outer}");
                let syn = Datagram::tcp(5000, "S").tos(dscp | inner);
                let frame = syn.tunnelled(PEER, outer_dscp | outer);
                match merged {
                    Some(ecn) => {
                        let backend: &Target = &rig.world.backends[&rig.stateless(&syn)];
                        let expected = syn.clone().tos(dscp | ecn).delivered(backend);
                        rig.becomes(&frame, &expected, Reason::DeliverStateless);
                    }
                    None => rig.ends(&frame, Reason::DropCongestion),
                }
            }
        }
    }
}

#[test]
fn the_outer_ttl_and_checksum_mean_nothing() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let dns = Datagram::udp(5000, DNS);
    let mut frame = dns.tunnelled(PEER, 0);
    frame[ETHERNET + 8] = 1;
    frame[ETHERNET + 10..ETHERNET + 12].fill(0xee);
    rig.becomes(&frame, &dns.delivered(&rig.world.backends[&4]), Reason::DeliverStateless);
}
