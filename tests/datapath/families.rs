//! IPv6, and either family in either: what comes in as one may leave in the other.

use lb_common::{
    address::mapped,
    flow::{STATE_ESTABLISHED, STATE_YOUNG},
    packet::{CE, ETHERNET, IPV6},
    reason::Reason,
    target::Target,
};

use crate::{
    checks::entry,
    rig::Rig,
    wire::Datagram,
    world::{
        DNS, World, documentation, member_address, member_address_v6, port_ranked, port_ranked_v6, server_address_v6,
        world,
    },
};

/// Extension headers that are walked.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// Members and backends of each combination of families: (members, backends), true for IPv6.
fn underlays() -> Vec<(bool, bool, World)> {
    let mut all = Vec::new();
    for (members_v6, backends_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = world(&[1, 2, 3]);
        if members_v6 {
            world.use_members_v6();
        }
        for (slot, backend) in &mut world.backends {
            let slot = *slot as u8;
            backend.address = if backends_v6 { server_address_v6(slot) } else { mapped([10, 0, 2, 10 + slot]) };
        }
        all.push((members_v6, backends_v6, world));
    }
    all
}

#[test]
fn every_family_is_carried_in_every_family() {
    for (members_v6, backends_v6, world) in underlays() {
        let rig = Rig::of(world);
        println!("members in IPv6: {members_v6}, backends in IPv6: {backends_v6}");
        for is_v6 in [false, true] {
            let shaped = |datagram: Datagram| if is_v6 { datagram.v6() } else { datagram };
            let port = |order: &[u8]| match is_v6 {
                true => port_ranked_v6(&rig.world, order),
                false => port_ranked(&rig.world, order),
            };
            for tos in [0, 0xb9, 0xff] {
                let own = shaped(Datagram::tcp(port(&[1]), "S")).tos(tos);
                let backend: &Target = &rig.world.backends[&rig.stateless(&own)];
                rig.becomes(&own.frame(), &own.delivered(backend), Reason::DeliverStateless);
                rig.becomes(&own.tunnelled(member_address(2), 0), &own.delivered(backend), Reason::DeliverStateless);
                let handed = shaped(Datagram::tcp(port(&[2]), "P.")).tos(tos).with_payload(b"data");
                rig.becomes(&handed.frame(), &handed.handed_off(&rig.world.members[&2]), Reason::HandOffUnknown);
            }
            if members_v6 {
                let syn = shaped(Datagram::tcp(port(&[3]), "S"));
                let backend: &Target = &rig.world.backends[&rig.stateless(&syn)];
                let from = member_address_v6(2);
                rig.becomes(&syn.tunnelled_v6(from, 0), &syn.delivered(backend), Reason::DeliverStateless);
                // The outer flow label and hop limit mean nothing; congestion does.
                let capable = syn.clone().tos(0xb8 | 2);
                let marked = capable.clone().tos(0xb8 | CE);
                let frame = capable.tunnelled_v6(from, CE);
                rig.becomes(&frame, &marked.delivered(backend), Reason::DeliverStateless);
                rig.ends(&syn.tunnelled_v6(from, CE), Reason::DropCongestion);
                rig.ends(&syn.tunnelled_v6(member_address_v6(9), 0), Reason::DropStranger);
            }
        }
    }
}

#[test]
fn an_ipv6_flow_earns_its_entry_like_one_of_ipv4() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked_v6(&rig.world, &[1, 2]);
    let packet = |flags: &str, seq| Datagram::tcp(port, flags).v6().seq(seq);
    let key = packet("S", 1000).key_v6();
    let backend = rig.stateless(&packet("S", 1000));
    rig.delivers(&packet("S", 1000), backend, Reason::DeliverStateless);
    rig.delivers(&packet(".", 1001), backend, Reason::DeliverNew);
    rig.has_told(&key, entry(&key, backend, STATE_YOUNG));
    rig.delivers(&packet("P.", 1001).with_payload(b"GET /"), backend, Reason::DeliverKnown);
    let established = lb_common::flow::FlowEntry { packets: 3, ..entry(&key, backend, STATE_ESTABLISHED) };
    rig.has_told(&key, established);
    // Nothing of it is in the tables of IPv4.
    let state = rig.state();
    assert_eq!((state.flows.len(), state.pending.len(), state.flows_v6.len()), (0, 0, 1));

    let question = |port| Datagram::udp(port, DNS).v6();
    let port = (1024..).find(|port| rig.send(&question(*port).frame()).reason == Reason::DeliverStateless).unwrap();
    rig.delivers(&question(port), 7, Reason::DeliverNew);
    rig.delivers(&question(port), 7, Reason::DeliverKnown);
}

#[test]
fn the_hop_limit_is_decremented_at_delivery_and_ends_here_when_it_ends() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let (own, handed) = (port_ranked_v6(&rig.world, &[1]), port_ranked_v6(&rig.world, &[2]));
    for hops in [2, 3, 64, 255] {
        let syn = Datagram::tcp(own, "S").v6().ttl(hops);
        rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
    }
    for hops in [0, 1] {
        rig.ends(&Datagram::tcp(own, "S").v6().ttl(hops).frame(), Reason::DropTtl);
        rig.hands_off(&Datagram::tcp(handed, "S").v6().ttl(hops), 2, Reason::HandOffUnknown);
    }
}

#[test]
fn extension_headers_are_walked_to_the_bound_and_no_further() {
    let rig = Rig::of(world(&[1]));
    let tcp = || Datagram::tcp(5000, "S").v6();
    let udp = || Datagram::udp(5000, DNS).v6();
    let kinds = [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, DESTINATION_OPTIONS, ROUTING, HOP_BY_HOP];
    let chain = |datagram: Datagram, count: usize, units: u8| {
        (0..count).fold(datagram, |datagram, n| datagram.with_extension(kinds[n % kinds.len()], units))
    };
    for count in 0..=6 {
        for units in [1, 2, 10] {
            println!("{count} headers of {units}");
            let syn = chain(tcp(), count, units);
            rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
            let question = chain(udp(), count, units);
            assert_eq!(rig.send(&question.frame()).frame, question.delivered(&rig.world.backends[&7]));
        }
    }
    // A fragment header with nothing before or after it in the datagram counts as one of them (RFC 6946).
    let atomic = chain(tcp(), 5, 1).fragment(0, false);
    rig.delivers(&atomic, rig.stateless(&atomic), Reason::DeliverStateless);
    for count in [7, 8, 20] {
        rig.ends(&chain(tcp(), count, 1).frame(), Reason::DropExtensions);
        rig.ends(&chain(udp(), count, 1).tunnelled(member_address(1), 0), Reason::DropExtensions);
    }
    // 512 bytes are walked, and whatever begins within them.
    let long = tcp().with_extension(HOP_BY_HOP, 64);
    rig.delivers(&long, rig.stateless(&long), Reason::DeliverStateless);
    let longer = tcp().with_extension(HOP_BY_HOP, 65).with_extension(DESTINATION_OPTIONS, 1);
    rig.ends(&longer.frame(), Reason::DropExtensions);
    let longest = tcp().with_extension(HOP_BY_HOP, 128);
    rig.ends(&longest.frame(), Reason::DropExtensions);
}

#[test]
fn an_ipv6_packet_cut_at_any_length_is_a_verdict_and_never_an_entry() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let port = port_ranked_v6(&rig.world, &[1, 2]);
    let packets = [
        Datagram::tcp(port, "S").v6(),
        Datagram::tcp(port, "S").v6().with_extension(HOP_BY_HOP, 1).with_extension(DESTINATION_OPTIONS, 3),
        Datagram::udp(port, DNS).v6(),
    ];
    for packet in packets {
        let frame = packet.frame();
        for length in ETHERNET..frame.len() {
            let expected = if length < ETHERNET + IPV6 { Reason::NotIp } else { Reason::DropMalformed };
            rig.ends(&frame[..length], expected);
        }
        rig.remembers_nothing();
        let tunnelled = packet.tunnelled(member_address(2), 0);
        for length in ETHERNET + 20..tunnelled.len() {
            rig.ends(&tunnelled[..length], Reason::DropMalformed);
        }
        rig.remembers_nothing();
    }
}

#[test]
fn headers_that_contradict_each_other_are_dropped() {
    let rig = Rig::of(world(&[1]));
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = Datagram::tcp(5000, "S").v6().frame();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let rows = [
        ("version 4", with(ETHERNET, &[0x40])),
        ("version 5", with(ETHERNET, &[0x50])),
        ("a payload beyond the frame", with(ETHERNET + 4, &[0, 21])),
        ("a payload that ends in the TCP header", with(ETHERNET + 4, &[0, 19])),
        ("no payload", with(ETHERNET + 4, &[0, 0])),
        ("a TCP header of 16 bytes", with(ETHERNET + IPV6 + 12, &[0x40])),
        ("a TCP header beyond the packet", with(ETHERNET + IPV6 + 12, &[0x60])),
    ];
    for (name, frame) in rows {
        println!("{name}");
        rig.ends(&frame, Reason::DropMalformed);
    }
    rig.remembers_nothing();
}

#[test]
fn a_source_that_can_only_be_forged_is_dropped() {
    let rig = Rig::of(world(&[1]));
    let mut loopback = [0; 16];
    loopback[15] = 1;
    let mut multicast = [0; 16];
    (multicast[0], multicast[15]) = (0xff, 1);
    for source in [[0; 16], loopback, mapped([198, 51, 100, 7]), multicast] {
        rig.ends(&Datagram::tcp(5000, "S").v6().source_v6(source).frame(), Reason::DropMartian);
        rig.ends(&Datagram::udp(5000, DNS).v6().source_v6(source).frame(), Reason::DropMartian);
    }
    rig.remembers_nothing();
    let good = Datagram::tcp(5000, "S").v6().source_v6(documentation(9, 9));
    rig.delivers(&good, rig.stateless(&good), Reason::DeliverStateless);
}

#[test]
fn what_is_for_other_addresses_or_ports_passes() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = || Datagram::tcp(5000, "S").v6();
    rig.ends(&syn().destination_v6(documentation(0xa, 11)).frame(), Reason::NotOurs);
    rig.ends(&syn().destination_v6(member_address_v6(1)).frame(), Reason::NotOurs);
    rig.ends(&syn().destination_v6(documentation(0xa, 11)).fragment(3, true).frame(), Reason::NotOurs);
    rig.ends(&syn().with_port(81).frame(), Reason::NoService);
    rig.ends(&Datagram::other(47, &[0; 24]).v6().frame(), Reason::NotBalanced);
    rig.ends(&Datagram::other(59, &[]).v6().frame(), Reason::NotBalanced);
    rig.remembers_nothing();
}
