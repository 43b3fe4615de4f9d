//! The program `decap`: takes the outer header off packets from the balancers for a VIP; all else passes untouched.

use aya::{
    Ebpf,
    maps::{
        HashMap, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    address::{Address, mapped},
    decap::{DECAP_COUNTERS, DECAP_FROM, DECAP_VIPS, Outcome},
    node::{V4, V6},
    packet::{CE, ETHERNET, IPV4, IPV6},
    reason::Counter,
};

use crate::{
    rig::{XDP_DROP, XDP_PASS, load_object, run, xdp},
    wire::{Datagram, Tag, framed, tunnel, tunnel_v6, with_tags},
    world::{
        DNS, OWN_ADDRESS, OWN_ADDRESS_V6, OWN_MAC, ROUTER_MAC, VIP, VIP_V6, documentation, member_address,
        member_address_v6,
    },
};

/// A balancer, within the prefix 10.0.1.0/24 that the server takes packets from.
const BALANCER: [u8; 4] = member_address(2);
/// Its IPv6 address, within a prefix of 64 bits that the server takes packets from, too.
const BALANCER_V6: Address = member_address_v6(2);

struct Server {
    ebpf: Ebpf,
    counters: PerCpuArray<aya::maps::MapData, Counter>,
}

impl Server {
    fn new() -> Self {
        let mut v6 = BALANCER_V6;
        v6[8..].fill(0);
        Self::from(&[(96 + 24, mapped([10, 0, 1, 0]), V4), (64, v6, V6)])
    }

    /// One that takes packets from these prefixes of a family.
    fn from(prefixes: &[(u32, Address, usize)]) -> Self {
        let mut ebpf = load_object(|_| {});
        for name in ["decap", "decap_frags"] {
            xdp(&mut ebpf, name).load().expect("the verifier accepts it");
        }
        let from = ebpf.map_mut(DECAP_FROM).expect("in the object");
        let mut from = LpmTrie::<_, Address, u32>::try_from(from).expect("a trie");
        for (length, prefix, family) in prefixes {
            from.insert(&Key::new(*length, *prefix), *family as u32, 0).expect("room");
        }
        let vips = ebpf.map_mut(DECAP_VIPS).expect("in the object");
        let mut vips = HashMap::<_, Address, u32>::try_from(vips).expect("a hash");
        vips.insert(mapped(VIP), V4 as u32, 0).expect("room");
        vips.insert(VIP_V6, V6 as u32, 0).expect("room");
        let counters = ebpf.take_map(DECAP_COUNTERS).expect("in the object");
        Self { ebpf, counters: PerCpuArray::try_from(counters).expect("per CPU") }
    }

    fn counters(&self) -> [u64; Outcome::ALL.len()] {
        let sum = |outcome| self.counters.get(&(outcome as u32), 0).unwrap().iter().map(|count| count.packets).sum();
        Outcome::ALL.map(sum)
    }

    /// Runs both programs, and checks that the outcome's counter, and no other, counts each.
    #[track_caller]
    fn makes(&self, frame: &[u8], expected: &[u8], outcome: Outcome) {
        for name in ["decap", "decap_frags"] {
            let before = self.counters();
            let (verdict, after) = run(&self.ebpf, name, frame);
            let counted: Vec<u64> = self.counters().iter().zip(before).map(|(after, before)| after - before).collect();
            assert_eq!(counted, Outcome::ALL.map(|other| u64::from(other == outcome)), "{}", outcome.name());
            assert_eq!(verdict, if outcome == Outcome::DroppedCongestion { XDP_DROP } else { XDP_PASS });
            assert_eq!(after, expected, "{name}");
        }
    }

    #[track_caller]
    fn leaves(&self, frame: &[u8], outcome: Outcome) {
        self.makes(frame, frame, outcome);
    }
}

/// The same packet in a tunnel of either family.
fn tunnelled(packet: &Datagram, outer_tos: u8) -> [Vec<u8>; 2] {
    [packet.tunnelled(BALANCER, outer_tos), packet.tunnelled_v6(BALANCER_V6, outer_tos)]
}

fn packets() -> Vec<Datagram> {
    vec![
        Datagram::tcp(5000, "S"),
        Datagram::tcp(5000, "P.").with_payload(&[1; 1440]),
        Datagram::tcp(5000, ".").with_ip_options(10),
        Datagram::udp(5000, DNS),
        Datagram::tcp(5000, "S").v6(),
        Datagram::tcp(5000, "P.").with_payload(&[1; 1400]).v6(),
        Datagram::tcp(5000, ".").v6().with_extension(0, 1).with_extension(60, 9),
        Datagram::udp(5000, DNS).v6(),
        // The server's own stack puts fragments together.
        Datagram::udp(5000, DNS).fragment(0, true),
        Datagram::udp(5000, DNS).fragment(185, false),
        Datagram::udp(5000, DNS).v6().fragment(0, true),
        Datagram::udp(5000, DNS).v6().fragment(185, false),
        // The balancers send none of these, but they are the server's to judge.
        Datagram::other(1, &[8, 0, 0, 0, 0, 0, 0, 0]),
        Datagram::tcp(5000, "S").ttl(0),
    ]
}

#[test]
fn a_packet_from_a_balancer_loses_its_outer_header() {
    let server = Server::new();
    for packet in packets() {
        for frame in tunnelled(&packet, 0) {
            server.makes(&frame, &packet.frame(), Outcome::Stripped);
            let padded = |frame: Vec<u8>| [frame, vec![0; 6]].concat();
            server.makes(&padded(frame), &padded(packet.frame()), Outcome::Stripped);
        }
    }
    let last = member_address(200);
    server.makes(&packets()[0].tunnelled(last, 0), &packets()[0].frame(), Outcome::Stripped);
}

#[test]
fn vlan_tags_stay_in_front() {
    let server = Server::new();
    let tags: [&[Tag]; 3] = [&[(0x8100, 0x2007)], &[(0x88a8, 0x0003), (0x8100, 0xe123)], &[(0x9100, 1), (0x8100, 2)]];
    for packet in packets() {
        for (tags, frame) in tags.iter().flat_map(|tags| tunnelled(&packet, 0).map(|frame| (tags, frame))) {
            server.makes(&with_tags(tags, frame), &packet.tagged(tags), Outcome::Stripped);
        }
    }
    // No datapath looks behind a third tag.
    let [frame, _] = tunnelled(&packets()[0], 0);
    server.leaves(&with_tags(&[(0x88a8, 1), (0x8100, 2), (0x8100, 3)], frame), Outcome::Passed);
}

/// A frame of more than a page lies in several buffers.
#[test]
fn a_jumbo_frame_loses_its_outer_header() {
    let server = Server::new();
    for packet in [Datagram::tcp(5000, "P."), Datagram::tcp(5000, "P.").v6()] {
        let packet = packet.with_payload(&[7; 8900]);
        for frame in tunnelled(&packet, 0) {
            let before = server.counters();
            let (verdict, after) = run(&server.ebpf, "decap_frags", &frame);
            assert_eq!((verdict, after), (XDP_PASS, packet.frame()));
            assert_eq!(server.counters()[Outcome::Stripped as usize], before[Outcome::Stripped as usize] + 1);
        }
    }
}

#[test]
fn what_is_no_tunnel_packet_passes_untouched() {
    let server = Server::new();
    let [v4, v6] = tunnelled(&Datagram::tcp(5000, "S"), 0);
    let rows = [
        ("no tunnel", Datagram::tcp(5000, "S").frame()),
        ("no tunnel, IPv6", Datagram::tcp(5000, "S").v6().frame()),
        ("no IP", with(&v4, 12, &[0x08, 0x06])),
        ("another protocol outside", with(&v4, ETHERNET + 9, &[47])),
        ("another protocol outside, IPv6", with(&v6, ETHERNET + 6, &[47])),
        ("an outer extension header", with(&v6, ETHERNET + 6, &[60])),
    ];
    for (name, frame) in rows {
        println!("{name}");
        server.leaves(&frame, Outcome::Passed);
    }
    for (frame, header) in [(v4, IPV4), (v6, IPV6)] {
        for length in ETHERNET..frame.len() {
            let outcome = if length < ETHERNET + header { Outcome::Passed } else { Outcome::PassedMalformed };
            server.leaves(&frame[..length], outcome);
        }
    }
}

#[test]
fn tunnel_packets_of_others_pass_untouched() {
    let server = Server::new();
    for packet in [Datagram::tcp(5000, "S"), Datagram::tcp(5000, "S").v6()] {
        for stranger in [[10, 0, 2, 1], [10, 0, 0, 255], VIP] {
            server.leaves(&packet.tunnelled(stranger, 0), Outcome::PassedStranger);
        }
        // The last one is an IPv4 balancer's address, but not in a header of that family.
        for stranger in [documentation(9, 1), VIP_V6, [0; 16], mapped(BALANCER)] {
            server.leaves(&packet.tunnelled_v6(stranger, 0), Outcome::PassedStranger);
        }
    }
    let v4 = Datagram::tcp(5000, "S").to([203, 0, 113, 11]);
    let v6 = Datagram::tcp(5000, "S").v6();
    for packet in [v4, v6.clone().destination_v6(documentation(0xa, 11)), v6.destination_v6(mapped(VIP))] {
        for frame in tunnelled(&packet, 0) {
            server.leaves(&frame, Outcome::PassedNoVip);
        }
    }
    let nested = tunnel(BALANCER, OWN_ADDRESS, 0, &Datagram::tcp(5000, "S").packet());
    let in_v4 = tunnel(BALANCER, OWN_ADDRESS, 0, &nested);
    let in_v6 = tunnel_v6(BALANCER_V6, OWN_ADDRESS_V6, 0, 0, &nested);
    for packet in [in_v4, in_v6] {
        server.leaves(&framed(OWN_MAC, ROUTER_MAC, &packet), Outcome::PassedNoVip);
    }
}

/// `::/0` covers the addresses that IPv4 ones are mapped to.
#[test]
fn a_prefix_of_one_family_is_none_of_the_other() {
    let packet = Datagram::tcp(5000, "S");
    let (v4, v6) = (packet.tunnelled(BALANCER, 0), packet.tunnelled_v6(BALANCER_V6, 0));
    let server = Server::from(&[(0, [0; 16], V6)]);
    server.leaves(&v4, Outcome::PassedStranger);
    server.makes(&v6, &packet.frame(), Outcome::Stripped);
    let server = Server::from(&[(96, mapped([0; 4]), V4)]);
    server.makes(&v4, &packet.frame(), Outcome::Stripped);
    server.leaves(&v6, Outcome::PassedStranger);
    let server = Server::from(&[(0, [0; 16], V6), (96, mapped([0; 4]), V4)]);
    server.makes(&v4, &packet.frame(), Outcome::Stripped);
    server.makes(&v6, &packet.frame(), Outcome::Stripped);
    server.leaves(&packet.tunnelled_v6(mapped(BALANCER), 0), Outcome::PassedStranger);
}

#[test]
fn contradictions_pass_untouched() {
    let server = Server::new();
    let [v4, v6] = tunnelled(&Datagram::tcp(5000, "S"), 0);
    let [v4_in_6, v6_in_6] = [v6, tunnelled(&Datagram::tcp(5000, "S").v6(), 0)[1].clone()];
    let inner = ETHERNET + IPV4;
    let rows = [
        ("outer options", with(&v4, ETHERNET, &[0x46])),
        ("an outer fragment", with(&v4, ETHERNET + 6, &[0x20, 0])),
        ("a later outer fragment", with(&v4, ETHERNET + 6, &[0, 1])),
        ("an outer length that ends in the inner packet", with(&v4, ETHERNET + 2, &[0, 59])),
        ("an inner length beyond the frame", with(&v4, inner + 2, &[0, 41])),
        ("inner version 6", with(&v4, inner, &[0x65])),
        ("IPv6 inside by the outer header, not by the inner one", with(&v4, ETHERNET + 9, &[41])),
        ("outer version 4 behind the ethertype of IPv6", with(&v4_in_6, ETHERNET, &[0x45])),
        ("an outer IPv6 length that ends in the inner packet", with(&v4_in_6, ETHERNET + 4, &[0, 39])),
        ("an inner length beyond the frame, in IPv6", with(&v4_in_6, ETHERNET + IPV6 + 2, &[0, 41])),
        ("an inner IPv6 length beyond the frame", with(&v6_in_6, ETHERNET + IPV6 + 4, &[0, 21])),
        ("an outer length that ends in the inner IPv6 packet", with(&v6_in_6, ETHERNET + 4, &[0, 59])),
        ("inner version 4", with(&v6_in_6, ETHERNET + IPV6, &[0x45])),
    ];
    for (name, frame) in rows {
        println!("{name}");
        server.leaves(&frame, Outcome::PassedMalformed);
    }
}

fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// RFC 6040, figure 4; None: dropped.
#[test]
fn congestion_marks_of_the_outer_header_are_merged() {
    let server = Server::new();
    let rows = [
        (0, [Some(0), Some(0), Some(0), None]),
        (1, [Some(1), Some(1), Some(1), Some(CE)]),
        (2, [Some(2), Some(1), Some(2), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    for (inner, row) in rows {
        for (outer, merged) in (0..).zip(row) {
            // The flow label shares a byte with the class.
            for packet in [Datagram::tcp(5000, "."), Datagram::tcp(5000, ".").v6()] {
                let packet = packet.tos(0xb8 | inner);
                for frame in tunnelled(&packet, 0x28 | outer) {
                    match merged {
                        Some(ecn) => {
                            server.makes(&frame, &packet.clone().tos(0xb8 | ecn).frame(), Outcome::Stripped);
                        }
                        None => server.leaves(&frame, Outcome::DroppedCongestion),
                    }
                }
            }
        }
    }
}
