//! ICMP to a VIP: echo requests are answered, errors go to the backend of the flow that they quote.

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type,
    icmpv4::{self, DestUnreachableHeader},
    icmpv6,
};
use lb_common::{
    address::mapped,
    flow::{FlowEntry, STATE_ESTABLISHED, tick, ticks_of_ms},
    node::{BUDGET_ANSWERS, NODE_DROP_OTHER},
    packet::{ETHERNET, IPV4, IPV6},
    reason::Reason,
    service::{SERVICE_ECHO, ServiceKey},
};

use crate::{
    checks::{entry, now_ns},
    rig::{Rig, XDP_TX},
    wire::{Datagram, chunk, framed, with_tags},
    world::{
        CLIENT, CLIENT_V6, DNS, OWN_MAC, ROUTER_MAC, VIP, VIP_V6, World, documentation, member_address, port_ranked,
        port_ranked_v6, world,
    },
};

/// A router on the way, which has something to complain of.
const ROUTER: [u8; 4] = [192, 0, 2, 1];
const ROUTER_V6: [u8; 16] = documentation(0xf, 1);

/// Both VIPs answer echo requests, as many as there are.
fn answering(ids: &[u8]) -> World {
    let mut world = world(ids);
    world.flag(ServiceKey::vip(mapped(VIP)), SERVICE_ECHO);
    world.flag(ServiceKey::vip(VIP_V6), SERVICE_ECHO);
    world.liveness.budgets[BUDGET_ANSWERS] = u32::MAX;
    world
}

/// The reply to `Datagram::ping(id, data)`.
fn reply(id: u16, data: &[u8]) -> Vec<u8> {
    let reply = Datagram::icmp(Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq: 1 }), data);
    framed(ROUTER_MAC, OWN_MAC, &reply.from(VIP).to(CLIENT).ttl(64).packet())
}

fn reply_v6(id: u16, data: &[u8]) -> Vec<u8> {
    let reply = Datagram::icmp_v6(Icmpv6Type::EchoReply(IcmpEchoHeader { id, seq: 1 }), data);
    framed(ROUTER_MAC, OWN_MAC, &reply.source_v6(VIP_V6).destination_v6(CLIENT_V6).ttl(64).packet())
}

/// What a receiver checks (RFC 1071): all words, the checksum included, add up to all ones.
fn verifies(bytes: &[u8], start: u32) -> bool {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

#[test]
fn an_echo_request_is_answered() {
    let rig = Rig::of(answering(&[1, 2, 3]));
    for length in [0, 1, 2, 56, 57, 1472] {
        let data: Vec<u8> = (0..length).map(|n| (n * 3) as u8).collect();
        rig.becomes(&Datagram::ping(7, &data).frame(), &reply(7, &data), Reason::PingAnswered);
        rig.becomes(&Datagram::ping_v6(7, &data).frame(), &reply_v6(7, &data), Reason::PingAnswered);
        // With the tags that it came with.
        for tags in [&[(0x8100, 0x2005)][..], &[(0x88a8, 7), (0x8100, 5)]] {
            let tagged = Datagram::ping(7, &data).tagged(tags);
            rig.becomes(&tagged, &with_tags(tags, reply(7, &data)), Reason::PingAnswered);
            let tagged = Datagram::ping_v6(7, &data).tagged(tags);
            rig.becomes(&tagged, &with_tags(tags, reply_v6(7, &data)), Reason::PingAnswered);
        }
    }
    assert_eq!(rig.send(&Datagram::ping(7, b"").frame()).verdict, XDP_TX);
    // IP options travel back with it.
    let optioned = Datagram::ping(7, b"x").with_ip_options(3);
    let expected = optioned.clone().reversed().ttl(64).packet();
    let answered = rig.send(&optioned.frame()).frame;
    assert_eq!(answered[ETHERNET..ETHERNET + IPV4 + 12], expected[..IPV4 + 12]);
    rig.remembers_nothing();
}

#[test]
fn the_checksum_of_a_reply_is_right_for_all_values() {
    let rig = Rig::of(answering(&[1]));
    let (verdict, shortest) = rig.run(&Datagram::icmp(Icmpv4Type::EchoRequest(ECHO_OF_ZEROS), &[]).frame());
    // A reply that is all zeros has the checksum 0xffff, and no other.
    assert_eq!((verdict, &shortest[ETHERNET + IPV4..]), (XDP_TX, &[0, 0, 0xff, 0xff, 0, 0, 0, 0][..]));
    let pseudo_header = |length: u32| {
        let addresses = [CLIENT_V6, VIP_V6].concat();
        let words = addresses.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        words.sum::<u32>() + length + 58
    };
    for value in 0..=u16::MAX {
        let data = value.to_be_bytes();
        let ping = Datagram::icmp(Icmpv4Type::EchoRequest(ECHO_OF_ZEROS), &data).identified(value);
        let (_, frame) = rig.run(&ping.frame());
        assert!(verifies(&frame[ETHERNET..ETHERNET + IPV4], 0), "IP header, {value:#x}");
        let message = &frame[ETHERNET + IPV4..];
        assert_eq!((message[0], message[1], &message[4..8], &message[8..]), (0, 0, &[0; 4][..], &data[..]));
        assert!(verifies(message, 0), "{value:#x}: {message:02x?}");

        let ping = Datagram::icmp_v6(Icmpv6Type::EchoRequest(ECHO_OF_ZEROS), &data);
        let (_, frame) = rig.run(&ping.frame());
        let message = &frame[ETHERNET + IPV6..];
        assert_eq!((message[0], message[1], &message[4..8], &message[8..]), (129, 0, &[0; 4][..], &data[..]));
        assert!(verifies(message, pseudo_header(10)), "{value:#x}: {message:02x?}");
    }
}

const ECHO_OF_ZEROS: IcmpEchoHeader = IcmpEchoHeader { id: 0, seq: 0 };

#[test]
fn a_fragmented_echo_request_is_answered_fragment_by_fragment() {
    let rig = Rig::of(answering(&[1]));
    let data = vec![7; 3000];
    let whole = Datagram::ping(7, &data);
    let [head, tail] = whole.split(180);
    let answer = Datagram::icmp(Icmpv4Type::EchoReply(IcmpEchoHeader { id: 7, seq: 1 }), &data).from(VIP).to(CLIENT);
    let [expected_head, expected_tail] = answer.split(180);
    let framed = |part: Datagram| framed(ROUTER_MAC, OWN_MAC, &part.packet());
    rig.becomes(&head.frame(), &framed(expected_head.ttl(64)), Reason::PingAnswered);
    // What lies in a later fragment is not known: it loses a hop, so that nothing goes round for ever.
    rig.becomes(&tail.frame(), &framed(expected_tail.ttl(62)), Reason::PingAnswered);
    rig.ends(&tail.clone().ttl(1).frame(), Reason::DropTtl);
    rig.ends(&tail.ttl(0).frame(), Reason::DropTtl);

    let [head, tail] = Datagram::ping_v6(7, &data).split(180);
    let answer = Datagram::icmp_v6(Icmpv6Type::EchoReply(IcmpEchoHeader { id: 7, seq: 1 }), &data);
    let [expected_head, expected_tail] = answer.source_v6(VIP_V6).destination_v6(CLIENT_V6).split(180);
    rig.becomes(&head.frame(), &framed(expected_head.ttl(64)), Reason::PingAnswered);
    rig.becomes(&tail.frame(), &framed(expected_tail.ttl(62)), Reason::PingAnswered);
}

#[test]
fn an_echo_request_is_the_hosts_where_the_vip_does_not_answer() {
    let mut rig = Rig::of(world(&[1]));
    let pings = [Datagram::ping(7, b"x").frame(), Datagram::ping_v6(7, b"x").frame()];
    pings.iter().for_each(|ping| rig.ends(ping, Reason::NotBalanced));
    rig.change(|world| world.node.flags = NODE_DROP_OTHER);
    pings.iter().for_each(|ping| rig.ends(ping, Reason::DropNotBalanced));
    // One VIP's answer is not another's.
    rig.change(|world| world.flag(ServiceKey::vip(mapped(VIP)), SERVICE_ECHO));
    assert_eq!(rig.send(&pings[0]).reason, Reason::PingAnswered);
    rig.ends(&pings[1], Reason::DropNotBalanced);
}

#[test]
fn answers_have_a_budget_of_their_own() {
    let mut rig = Rig::of(answering(&[1]));
    rig.change(|world| world.liveness.budgets = [0; 5]);
    rig.ends(&Datagram::ping(7, b"x").frame(), Reason::DropAnswerBudget);
    rig.ends(&Datagram::ping_v6(7, b"x").frame(), Reason::DropAnswerBudget);
    rig.change(|world| world.liveness.budgets[BUDGET_ANSWERS] = 1000);
    assert_eq!(rig.send(&Datagram::ping(7, b"x").frame()).reason, Reason::PingAnswered);
}

#[test]
fn what_must_not_be_answered_is_not() {
    let rig = Rig::of(answering(&[1, 2]));
    for forged in [[0; 4], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        rig.ends(&Datagram::ping(7, b"x").from(forged).frame(), Reason::DropMartian);
    }
    rig.ends(&Datagram::ping_v6(7, b"x").source_v6([0; 16]).frame(), Reason::DropMartian);
    // A peer hands no echo request off.
    rig.ends(&Datagram::ping(7, b"x").tunnelled(member_address(2), 0), Reason::DropTunnelNoService);
    // Replies, and what else ICMP has.
    for kind in [0_u8, 13, 17, 30] {
        rig.ends(&Datagram::other(1, &[kind, 0, 0, 0, 0, 0, 0, 0]).frame(), Reason::NotBalanced);
    }
    for kind in [129_u8, 130, 131, 132, 143] {
        rig.ends(&Datagram::other(58, &[kind, 0, 0, 0, 0, 0, 0, 0]).v6().frame(), Reason::NotBalanced);
    }
    rig.ends(&Datagram::ping(7, b"").with_payload(&[8, 0, 0]).frame(), Reason::DropMalformed);
}

#[test]
fn neighbour_discovery_is_the_hosts_whatever_the_policy() {
    let mut rig = Rig::of(world(&[1, 2]));
    for flags in [0, NODE_DROP_OTHER] {
        rig.change(|world| world.node.flags = flags);
        for kind in [133, 134, 135, 136, 137] {
            let message = Datagram::other(58, &[kind, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]).v6();
            rig.ends(&message.frame(), Reason::NeighbourDiscovery);
            rig.ends(&message.tunnelled(member_address(2), 0), Reason::DropTunnelNoService);
        }
    }
}

/// Errors about a packet of the server, each with eight bytes of its transport header and with more.
fn errors(of: &Datagram) -> Vec<Datagram> {
    let quoted = of.clone().reversed().packet();
    let kinds = [
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 }),
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
        Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
    ];
    let lengths = [IPV4 + 8, quoted.len()];
    let pairs = kinds.into_iter().flat_map(|kind| lengths.map(|length| (kind.clone(), length)));
    pairs.map(|(kind, length)| Datagram::icmp(kind, &quoted[..length]).from(ROUTER)).collect()
}

fn errors_v6(of: &Datagram) -> Vec<Datagram> {
    let quoted = of.clone().reversed().packet();
    let kinds = [
        Icmpv6Type::PacketTooBig { mtu: 1400 },
        Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Address),
        Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
    ];
    let lengths = [IPV6 + 8, quoted.len()];
    let pairs = kinds.into_iter().flat_map(|kind| lengths.map(|length| (kind, length)));
    pairs.map(|(kind, length)| Datagram::icmp_v6(kind, &quoted[..length]).source_v6(ROUTER_V6)).collect()
}

#[test]
fn an_error_goes_to_the_backend_of_the_known_flow_that_it_quotes() {
    let rig = Rig::of(world(&[1, 2, 3]));
    // Not the backend that the ring has for it; and a stamp that a packet of the client would renew.
    let stamp = tick(now_ns()).wrapping_sub(ticks_of_ms(5000));
    for flow in
        [Datagram::tcp(5000, "P.").with_payload(b"page"), Datagram::udp(5000, DNS), Datagram::sctp(5000, chunk::DATA)]
    {
        let known = FlowEntry { last_seen: stamp, ..entry(&flow.key(), 6, STATE_ESTABLISHED) };
        rig.set_flow(&flow.key(), Some(&known));
        for error in errors(&flow) {
            let expected = error.delivered_as(flow.tag(), &rig.world.backends[&6]);
            rig.becomes(&error.frame(), &expected, Reason::DeliverQuote);
            rig.becomes(&error.tunnelled(member_address(2), 0), &expected, Reason::DeliverQuote);
        }
        // It says nothing of the flow's life.
        assert_eq!(rig.flow(&flow.key()), Some(known));
        rig.set_flow(&flow.key(), Some(&FlowEntry { primary: 3, backup: 2, ..known }));
        for error in errors(&flow) {
            let expected = error.handed_off_as(flow.tag(), &rig.world.members[&3]);
            rig.becomes(&error.frame(), &expected, Reason::HandOffKnown);
        }

        let flow = flow.v6();
        let known = FlowEntry { last_seen: stamp, ..entry(&flow.key_v6(), 1, STATE_ESTABLISHED) };
        rig.set_flow(&flow.key_v6(), Some(&known));
        for error in errors_v6(&flow) {
            let expected = error.delivered_as(flow.tag(), &rig.world.backends[&1]);
            rig.becomes(&error.frame(), &expected, Reason::DeliverQuote);
        }
        assert_eq!(rig.flow(&flow.key_v6()), Some(known));
    }
    assert_eq!(rig.take_events(), []);
}

#[test]
fn an_error_about_an_unknown_flow_goes_where_its_packets_would_go() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let own = Datagram::tcp(port_ranked(&rig.world, &[1, 2]), ".");
    for error in errors(&own) {
        let expected = error.delivered_as(own.tag(), &rig.world.backends[&rig.stateless(&own)]);
        rig.becomes(&error.frame(), &expected, Reason::DeliverQuote);
    }
    let handed = Datagram::tcp(port_ranked(&rig.world, &[2, 3]), ".");
    for error in errors(&handed) {
        let expected = error.handed_off_as(handed.tag(), &rig.world.members[&2]);
        rig.becomes(&error.frame(), &expected, Reason::HandOffUnknown);
        let expected = error.delivered_as(handed.tag(), &rig.world.backends[&rig.stateless(&handed)]);
        rig.becomes(&error.tunnelled(member_address(3), 0), &expected, Reason::DeliverQuote);
    }
    let own = Datagram::tcp(port_ranked_v6(&rig.world, &[1, 2]), ".").v6();
    for error in errors_v6(&own) {
        let expected = error.delivered_as(own.tag(), &rig.world.backends[&rig.stateless(&own)]);
        rig.becomes(&error.frame(), &expected, Reason::DeliverQuote);
    }
    let handed = Datagram::tcp(port_ranked_v6(&rig.world, &[3, 2]), ".").v6();
    for error in errors_v6(&handed) {
        let expected = error.handed_off_as(handed.tag(), &rig.world.members[&3]);
        rig.becomes(&error.frame(), &expected, Reason::HandOffUnknown);
    }
    rig.remembers_nothing();
}

#[test]
fn an_error_that_quotes_options_or_extensions_is_understood() {
    let rig = Rig::of(world(&[1]));
    let flow = Datagram::tcp(5000, ".").with_ip_options(10);
    let quoted = flow.clone().reversed().packet();
    let kind = Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit);
    let error = Datagram::icmp(kind, &quoted[..60 + 8]).from(ROUTER).with_ip_options(2);
    let expected = error.delivered_as(flow.tag(), &rig.world.backends[&rig.stateless(&flow)]);
    rig.becomes(&error.frame(), &expected, Reason::DeliverQuote);

    let flow = Datagram::tcp(5000, ".").v6().with_extension(60, 2);
    let quoted = flow.clone().reversed().packet();
    let error =
        Datagram::icmp_v6(Icmpv6Type::PacketTooBig { mtu: 1280 }, &quoted[..IPV6 + 16 + 8]).source_v6(ROUTER_V6);
    let error = error.with_extension(60, 1);
    let expected = error.delivered_as(flow.tag(), &rig.world.backends[&rig.stateless(&flow)]);
    rig.becomes(&error.frame(), &expected, Reason::DeliverQuote);
}

#[test]
fn an_error_that_quotes_too_little_or_somebody_elses_packet_is_dropped() {
    let rig = Rig::of(world(&[1]));
    let flow = Datagram::tcp(5000, ".");
    let quoted = flow.clone().reversed().packet();
    let error = |quote: &[u8]| {
        let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        Datagram::icmp(kind, quote).from(ROUTER).frame()
    };
    for length in 0..IPV4 + 8 {
        rig.ends(&error(&quoted[..length]), Reason::DropQuote);
    }
    let elsewhere = flow.clone().reversed().from([203, 0, 113, 11]).packet();
    rig.ends(&error(&elsewhere), Reason::DropQuote);
    rig.ends(&error(&flow.packet()), Reason::DropQuote);
    rig.ends(&error(&flow.reversed().fragment(3, false).packet()), Reason::DropQuote);
    let gre = Datagram::other(47, &[0; 16]).reversed().packet();
    rig.ends(&error(&gre), Reason::NotBalanced);

    let flow = Datagram::tcp(5000, ".").v6();
    let quoted = flow.clone().reversed().packet();
    let error = |quote: &[u8]| Datagram::icmp_v6(Icmpv6Type::PacketTooBig { mtu: 1400 }, quote).frame();
    for length in 0..IPV6 + 8 {
        rig.ends(&error(&quoted[..length]), Reason::DropQuote);
    }
    rig.ends(&error(&flow.clone().reversed().source_v6(documentation(9, 9)).packet()), Reason::DropQuote);
    rig.ends(&error(&flow.packet()), Reason::DropQuote);
    rig.remembers_nothing();
}
