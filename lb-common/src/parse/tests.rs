use std::vec::Vec;

use proptest::{prelude::*, strategy::ValueTree as _};
use zerocopy::FromZeros as _;

use super::{plain::*, *};
use crate::{
    liveness::Liveness,
    node::Node,
    packet::{ETHERNET, ETHERTYPE_AT},
    rank::Owners,
    service::Service,
    target::Target,
};

/// A member to which every address is its own concern; one VIP in each family, one peer.
struct View {
    node: Node,
    liveness: Liveness,
}

const OWN: Address = mapped([10, 0, 1, 11]);
const OWN_V6: Address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
const PEER: Address = mapped([10, 0, 1, 12]);
const VIP: Address = mapped([203, 0, 113, 10]);
const VIP_V6: Address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];

impl View {
    fn new() -> Self {
        let mut node = Node::new_zeroed();
        (node.id, node.addresses, node.port) = (1, [OWN, OWN_V6], [0x1b, 0x59]);
        Self { node, liveness: Liveness::new_zeroed() }
    }
}

impl Tables for View {
    fn now_ns(&self) -> u64 {
        0
    }

    fn node(&self) -> &Node {
        &self.node
    }

    fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    fn probe_heard_ns(&self, _: u8) -> u64 {
        0
    }

    fn may_be_ours(&self, _: Words) -> bool {
        true
    }

    fn member_at(&self, address: &Address) -> Option<u8> {
        (*address == PEER).then_some(2)
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let is_vip = [VIP, VIP_V6].contains(&key.address);
        is_vip.then_some(Service { ring: 0, flags: SERVICE_ECHO, padding: [0; 3] })
    }

    fn ring(&self, _: u32, _: usize) -> u16 {
        0
    }

    fn backend(&self, _: u16) -> Option<&Target> {
        None
    }

    fn member(&self, _: u8) -> Option<&Target> {
        None
    }

    fn rank(&self, _: u64, _: u64) -> Owners {
        Owners { primary: 1, backup: 0 }
    }

    fn take_budget(&self, _: usize) -> bool {
        true
    }
}

/// Ethernet and an IPv4 header with this protocol, then `rest`.
fn v4(from: Address, to: Address, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let [l0, l1] = ((IPV4 + rest.len()) as u16).to_be_bytes();
    let ip = [0x45, 0, l0, l1, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    [&[2; ETHERTYPE_AT][..], &ETHERTYPE_IPV4, &ip, &from[12..], &to[12..], rest].concat()
}

/// The same of IPv6.
fn v6(to: Address, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let [l0, l1] = (rest.len() as u16).to_be_bytes();
    let ip = [0x60, 0, 0, 0, l0, l1, protocol, 64];
    [&[2; ETHERTYPE_AT][..], &ETHERTYPE_IPV6, &ip, &[0xfd; 16], &to, rest].concat()
}

/// Frames that are this member's concern, with random bytes where the IP header ends.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let protocols = prop::sample::select(std::vec![6_u8, 17, 132, 1, 58, 4, 41, 0, 43, 44, 60, 47]);
    let tails = prop::collection::vec(any::<u8>(), 0..200);
    let client = mapped([198, 51, 100, 7]);
    (protocols, tails, 0..5_u8, 0..1000_usize, prop::option::of((0..80_usize, any::<u8>()))).prop_map(
        move |(protocol, mut tail, shape, cut, change)| {
            // Every other ICMP message is an echo request.
            if let Some(kind) = tail.first_mut().filter(|kind| **kind >= 128) {
                *kind = if protocol == 1 { 8 } else { 128 };
            }
            let mut frame = match shape {
                0 => v4(client, VIP, protocol, &tail),
                1 => v6(VIP_V6, protocol, &tail),
                2 => v4(PEER, OWN, 4, &v4(client, VIP, protocol, &tail)[ETHERNET..]),
                3 => v4(PEER, OWN, 41, &v6(VIP_V6, protocol, &tail)[ETHERNET..]),
                _ => v4(PEER, OWN, protocol, &tail),
            };
            if let Some((at, byte)) = change
                && let Some(place) = frame.get_mut(at)
            {
                *place = byte;
            }
            // Most are whole.
            if cut < frame.len() {
                frame.truncate(cut);
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// The verifier proves it of the datapath; `explain` and the simulator run the same code without one.
    #[test]
    fn any_frame_is_a_verdict_whose_packet_lies_within_it(frame in frames()) {
        let within = |at: usize, length: u32| at + length as usize <= frame.len();
        match parse(&frame[..], &View::new(), 1) {
            Parsed::V4(packet) => prop_assert!(within(packet.at, packet.ip.length)),
            Parsed::V6(packet) => prop_assert!(within(packet.at, packet.ip.length)),
            Parsed::Ping(ping) => prop_assert!(ping.at < frame.len() && ping.icmp_at < frame.len()),
            Parsed::Probe(probe) | Parsed::ProbeEcho(probe) => prop_assert!(probe.probe_at() < frame.len()),
            Parsed::End(_) => {}
        }
    }

    /// The short way is one of speed: it never says anything else than the long one.
    #[test]
    fn a_plain_packet_is_what_the_whole_parser_finds(frame in frames()) {
        let view = View::new();
        let place = Place { at: ETHERNET, is_v6: false, end: frame.len(), via_peer: false, outer: OuterFields { tos: 0 } };
        if let Some(packet) = plain_v4(&frame[..], ETHERNET) {
            // Of a whole packet nobody asks for the identification.
            let Flow::Packet(found) = flow_v4(&frame[..], &view, place) else { panic!("not a packet") };
            prop_assert_eq!(Packet { datagram: [0; 4], ..found }, packet);
        }
        let place = Place { is_v6: true, ..place };
        if let Some(packet) = plain_v6(&frame[..], ETHERNET)
        {
            prop_assert_eq!(flow_v6(&frame[..], &view, place), Flow::Packet(packet));
        }
    }
}

/// `BPF_PROG_TEST_RUN` takes no frame without a whole Ethernet header.
#[test]
fn a_frame_shorter_than_its_ethernet_header_is_not_ip() {
    let frame = v4(mapped([198, 51, 100, 7]), VIP, 17, &[0; 20]);
    for length in 0..ETHERNET {
        assert_eq!(parse(&frame[..length], &View::new(), 1), Parsed::End(Reason::NotIp));
    }
}

#[test]
fn the_strategy_reaches_every_kind_of_verdict() {
    let view = View::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = [0; 6];
    for _ in 0..20_000 {
        let frame = frames().new_tree(&mut runner).expect("a frame").current();
        let kind = match parse(&frame[..], &view, 1) {
            Parsed::V4(_) => 0,
            Parsed::V6(_) => 1,
            Parsed::Ping(_) => 2,
            Parsed::Probe(_) | Parsed::ProbeEcho(_) => 3,
            Parsed::End(Reason::DropMalformed) => 4,
            Parsed::End(_) => 5,
        };
        seen[kind] += 1;
    }
    // Probes have 64 bytes that must be right; the datapath's tests have them.
    assert!([0, 1, 2, 4, 5].iter().all(|kind| seen[*kind] > 20), "{seen:?}");
}
