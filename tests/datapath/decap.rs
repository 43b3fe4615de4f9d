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
    packet::{CE, ETHERNET, IPV4},
    reason::Counter,
};

use crate::{
    rig::{XDP_DROP, XDP_PASS, load_object, run, xdp},
    wire::{Datagram, framed, tunnel},
    world::{DNS, OWN_ADDRESS, OWN_MAC, ROUTER_MAC, VIP, member_address},
};

/// A balancer, within the prefix 10.0.1.0/24 that the server takes packets from.
const BALANCER: [u8; 4] = member_address(2);

struct Server {
    ebpf: Ebpf,
    counters: PerCpuArray<aya::maps::MapData, Counter>,
}

impl Server {
    fn new() -> Self {
        let mut ebpf = load_object(|_| {});
        xdp(&mut ebpf, "decap").load().expect("the verifier accepts it");
        let from = ebpf.map_mut(DECAP_FROM).expect("in the object");
        let mut from = LpmTrie::<_, Address, u32>::try_from(from).expect("a trie");
        from.insert(&Key::new(96 + 24, mapped([10, 0, 1, 0])), 1, 0).expect("room");
        let vips = ebpf.map_mut(DECAP_VIPS).expect("in the object");
        let mut vips = HashMap::<_, Address, u32>::try_from(vips).expect("a hash");
        vips.insert(mapped(VIP), 1, 0).expect("room");
        let counters = ebpf.take_map(DECAP_COUNTERS).expect("in the object");
        Self { ebpf, counters: PerCpuArray::try_from(counters).expect("per CPU") }
    }

    fn counters(&self) -> [u64; 3] {
        let sum = |outcome| self.counters.get(&(outcome as u32), 0).unwrap().iter().map(|count| count.packets).sum();
        Outcome::ALL.map(sum)
    }

    /// Runs the program, and checks that the outcome's counter, and no other, counts it.
    #[track_caller]
    fn makes(&self, frame: &[u8], expected: &[u8], outcome: Outcome) {
        let before = self.counters();
        let (verdict, after) = run(&self.ebpf, "decap", frame);
        let counted: Vec<u64> = self.counters().iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(counted, Outcome::ALL.map(|other| u64::from(other == outcome)), "{}", outcome.name());
        assert_eq!(verdict, if outcome == Outcome::DroppedCongestion { XDP_DROP } else { XDP_PASS });
        assert_eq!(after, expected);
    }

    #[track_caller]
    fn passes(&self, frame: &[u8]) {
        self.makes(frame, frame, Outcome::Passed);
    }
}

#[test]
fn a_packet_from_a_balancer_loses_its_outer_header() {
    let server = Server::new();
    let packets = [
        Datagram::tcp(5000, "S"),
        Datagram::tcp(5000, "P.").with_payload(&[1; 1440]),
        Datagram::tcp(5000, ".").with_ip_options(10),
        Datagram::udp(5000, DNS),
        // The balancers send none of these, but they are the server's to judge.
        Datagram::other(1, &[8, 0, 0, 0, 0, 0, 0, 0]),
        Datagram::tcp(5000, "S").ttl(0),
    ];
    for packet in packets {
        server.makes(&packet.tunnelled(BALANCER, 0), &packet.frame(), Outcome::Stripped);
        let padded = [packet.tunnelled(member_address(200), 0), vec![0; 6]].concat();
        server.makes(&padded, &[packet.frame(), vec![0; 6]].concat(), Outcome::Stripped);
    }
}

#[test]
fn everything_else_passes_untouched() {
    let server = Server::new();
    let syn = || Datagram::tcp(5000, "S");
    let good = syn().tunnelled(BALANCER, 0);
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let inner = ETHERNET + IPV4;
    let nested = tunnel(BALANCER, OWN_ADDRESS, 0, &syn().packet());
    let rows = [
        ("no tunnel", syn().frame()),
        ("no IP", with(12, &[0x86, 0xdd])),
        ("from a stranger", syn().tunnelled([10, 0, 2, 1], 0)),
        ("not for a VIP", syn().to([203, 0, 113, 11]).tunnelled(BALANCER, 0)),
        ("a tunnel in the tunnel", framed(OWN_MAC, ROUTER_MAC, &tunnel(BALANCER, OWN_ADDRESS, 0, &nested))),
        ("another protocol outside", with(ETHERNET + 9, &[47])),
        ("outer options", with(ETHERNET, &[0x46])),
        ("an outer fragment", with(ETHERNET + 6, &[0x20, 0])),
        ("an outer length that ends in the inner packet", with(ETHERNET + 2, &[0, 59])),
        ("an inner length beyond the frame", with(inner + 2, &[0, 41])),
        ("inner version 6", with(inner, &[0x65])),
    ];
    for (name, frame) in rows {
        println!("{name}");
        server.passes(&frame);
    }
    for length in ETHERNET..good.len() {
        server.passes(&good[..length]);
    }
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
            let packet = Datagram::tcp(5000, ".").tos(0xb8 | inner);
            let frame = packet.tunnelled(BALANCER, outer);
            match merged {
                Some(ecn) => server.makes(&frame, &packet.clone().tos(0xb8 | ecn).frame(), Outcome::Stripped),
                None => server.makes(&frame, &frame, Outcome::DroppedCongestion),
            }
        }
    }
}
