//! What is not ours passes, untouched and without a trace.

use lb_common::{
    address::{mapped, words},
    packet::ETHERNET,
    reason::Reason,
    service::VipFilter,
};

use crate::{
    rig::Rig,
    wire::{Datagram, chunk, with_tags},
    world::{OWN_ADDRESS, PROBE_PORT, VIP, World, member_address, world},
};

const ICMP: u8 = 1;
const GRE: u8 = 47;

/// The frame of a SYN with another ethertype.
fn of_ethertype(ethertype: u16) -> Vec<u8> {
    let mut frame = Datagram::tcp(5000, "S").frame();
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

#[test]
fn what_is_not_ip_passes() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let ethertypes = [("ARP", 0x0806), ("LLDP", 0x88cc), ("a length", 0x0026)];
    for (name, ethertype) in ethertypes {
        println!("{name}");
        rig.ends(&of_ethertype(ethertype), Reason::NotIp);
    }
    // IPv6 by its ethertype, behind a tag or not, and nothing that could be a VIP.
    rig.ends(&of_ethertype(0x86dd), Reason::NotOurs);
    rig.ends(&with_tags(&[(0x8100, 5)], of_ethertype(0x86dd)), Reason::NotOurs);
    rig.ends(&with_tags(&[(0x88a8, 5), (0x8100, 6)], of_ethertype(0x0806)), Reason::NotIp);
    // A third tag is nobody's.
    rig.ends(&with_tags(&[(0x88a8, 5), (0x8100, 6), (0x8100, 7)], of_ethertype(0x0800)), Reason::NotIp);
    // An Ethernet header that promises IPv4, and nothing or too little behind it.
    let frame = Datagram::tcp(5000, "S").frame();
    for length in ETHERNET..ETHERNET + 20 {
        rig.ends(&frame[..length], Reason::NotIp);
    }
    rig.remembers_nothing();
}

#[test]
fn what_is_for_other_addresses_passes() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = || Datagram::tcp(5000, "S");
    let rows = [
        ("a TCP packet for somebody else", syn().to([203, 0, 113, 11])),
        ("a fragment for somebody else", syn().to([203, 0, 113, 11]).fragment(3, true)),
        ("the host's own TCP", syn().to(OWN_ADDRESS)),
        ("the host's own UDP", Datagram::udp(5000, 53).to(OWN_ADDRESS)),
        ("UDP to the probes' port of a peer", Datagram::udp(5000, PROBE_PORT).to(member_address(2))),
        ("a ping of the host", Datagram::other(ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]).to(OWN_ADDRESS)),
        ("GRE for the host", Datagram::other(GRE, &[0; 24]).to(OWN_ADDRESS)),
        ("a tunnel to a peer", Datagram::other(4, &syn().packet()).to(member_address(2))),
    ];
    for (name, datagram) in rows {
        println!("{name}");
        rig.ends(&datagram.frame(), Reason::NotOurs);
    }
    rig.remembers_nothing();
}

#[test]
fn what_no_service_of_the_vip_wants_passes() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = || Datagram::tcp(5000, "S");
    rig.ends(&syn().with_port(81).frame(), Reason::NoService);
    rig.ends(&syn().with_port(0).frame(), Reason::NoService);
    rig.ends(&Datagram::udp(5000, 80).frame(), Reason::NoService);
    rig.ends(&syn().with_port(53).frame(), Reason::NoService);
    rig.ends(&Datagram::sctp(5000, chunk::INIT).with_port(81).frame(), Reason::NoService);
    for protocol in [ICMP, GRE, 4, 41, 50] {
        rig.ends(&Datagram::other(protocol, &syn().packet()).frame(), Reason::NotBalanced);
    }
    rig.remembers_nothing();
}

#[test]
fn an_address_that_only_looks_like_a_vip_to_the_filter_loses_no_packet() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let mut filter = VipFilter::EMPTY;
    filter.insert(&mapped(VIP));
    let twin = (1..=u32::MAX)
        .map(|n| (0x0a00_0000 + n).to_be_bytes())
        .find(|address| *address != VIP && filter.may_contain(words(mapped(*address))))
        .expect("one in 8192");
    let syn = || Datagram::tcp(5000, "S").to(twin);
    let echo = Datagram::other(ICMP, &[0; 8]).to(twin);
    for datagram in [syn(), syn().fragment(3, true), syn().from([127, 0, 0, 1]), echo] {
        rig.ends(&datagram.frame(), Reason::NotOurs);
    }
    let mut broken = syn().frame();
    broken[ETHERNET + 20 + 12] = 0x10;
    rig.ends(&broken, Reason::NotOurs);
    rig.remembers_nothing();
}

#[test]
fn before_the_agent_has_configured_it_everything_passes() {
    let mut world = world(&[1, 2, 3]);
    world.node = World::new(0).node;
    let rig = Rig::of(world);
    let syn = Datagram::tcp(5000, "S");
    for frame in [syn.frame(), syn.tunnelled(member_address(2), 0), syn.v6().frame()] {
        rig.ends(&frame, Reason::Unconfigured);
    }
    rig.remembers_nothing();
}
