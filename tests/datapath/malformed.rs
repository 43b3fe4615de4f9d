//! Bad input: a verdict from the tables, never a crash, never an entry.

use lb_common::{
    flow::STATE_ESTABLISHED,
    packet::{ETHERNET, IPV4},
    reason::Reason,
};

use crate::{
    checks::entry,
    probes::{self, request},
    rig::Rig,
    wire::Datagram,
    world::{DNS, World, member_address, port_ranked, world},
};

/// Offsets in a frame without IP options.
const TOTAL_LENGTH: usize = ETHERNET + 2;
const TCP_OFFSET: usize = ETHERNET + IPV4 + 12;
const UDP_LENGTH: usize = ETHERNET + IPV4 + 4;

/// `frame` with other bytes at `at`.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn headers_that_contradict_each_other_are_dropped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = || Datagram::tcp(5000, "S").frame();
    let udp = || Datagram::udp(5000, DNS).frame();
    let rows = [
        ("IP version 5", with(syn(), ETHERNET, &[0x55])),
        ("IP version 6", with(syn(), ETHERNET, &[0x65])),
        ("an IP header of 16 bytes", with(syn(), ETHERNET, &[0x44])),
        ("an IP header of 0 bytes", with(syn(), ETHERNET, &[0x40])),
        ("an IP header longer than the packet", with(syn(), ETHERNET, &[0x4f])),
        ("a total length of 0", with(syn(), TOTAL_LENGTH, &[0, 0])),
        ("a total length shorter than the IP header", with(syn(), TOTAL_LENGTH, &[0, 19])),
        ("a total length without a TCP header", with(syn(), TOTAL_LENGTH, &[0, 20])),
        ("a total length that ends in the TCP header", with(syn(), TOTAL_LENGTH, &[0, 39])),
        ("a total length beyond the frame", with(syn(), TOTAL_LENGTH, &[0, 41])),
        ("the longest total length", with(syn(), TOTAL_LENGTH, &[0xff, 0xff])),
        ("a TCP header of 0 bytes", with(syn(), TCP_OFFSET, &[0x00])),
        ("a TCP header of 16 bytes", with(syn(), TCP_OFFSET, &[0x40])),
        ("a TCP header beyond the packet", with(syn(), TCP_OFFSET, &[0x60])),
        ("the longest TCP header", with(syn(), TCP_OFFSET, &[0xf0])),
        ("a UDP length of 0", with(udp(), UDP_LENGTH, &[0, 0])),
        ("a UDP length shorter than its header", with(udp(), UDP_LENGTH, &[0, 7])),
        ("a UDP length beyond the packet", with(udp(), UDP_LENGTH, &[0, 21])),
        ("a total length that ends in the UDP header", with(udp(), TOTAL_LENGTH, &[0, 27])),
    ];
    for (name, frame) in rows {
        println!("{name}");
        rig.ends(&frame, Reason::DropMalformed);
    }
    rig.remembers_nothing();
}

#[test]
fn a_tcp_header_that_only_the_padding_completes_is_malformed() {
    let rig = Rig::of(world(&[1]));
    // 26 bytes of IP, padded by the link to 60 bytes of frame: the TCP header lies in the frame, but not in the packet.
    let frame = with(Datagram::tcp(5000, "S").frame(), TOTAL_LENGTH, &[0, 26]);
    rig.ends(&[frame, vec![0; 6]].concat(), Reason::DropMalformed);
    rig.remembers_nothing();
}

#[test]
fn a_source_that_can_only_be_forged_is_dropped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let forged = [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [239, 255, 255, 255], [255; 4]];
    for source in forged {
        rig.ends(&Datagram::tcp(5000, "S").from(source).frame(), Reason::DropMartian);
        rig.ends(&Datagram::udp(5000, DNS).from(source).frame(), Reason::DropMartian);
        rig.ends(&Datagram::tcp(5000, "S").from(source).tunnelled(member_address(2), 0), Reason::DropMartian);
    }
    rig.remembers_nothing();
    for source in [[1, 0, 0, 1], [126, 255, 255, 255], [128, 0, 0, 1], [223, 255, 255, 255], [10, 0, 0, 1]] {
        let syn = Datagram::tcp(5000, "S").from(source);
        let seen = rig.send(&syn.frame());
        assert!(matches!(seen.reason, Reason::DeliverStateless | Reason::HandOffUnknown), "{source:?}");
    }
}

/// A cluster in which each of these packets would leave something behind if it were whole.
fn every_kind(world: &World) -> Vec<(&'static str, Vec<u8>)> {
    let port = port_ranked(world, &[1, 2]);
    let ack = || Datagram::tcp(port, ".").seq(1001);
    let syn = || Datagram::tcp(port, "S");
    vec![
        ("SYN", syn().frame()),
        ("SYN with options", syn().with_ip_options(10).with_tcp_options(10).frame()),
        ("data", ack().with_payload(&[7; 20]).frame()),
        ("UDP", Datagram::udp(port, DNS).frame()),
        ("SYN from a peer", syn().tunnelled(member_address(2), 0)),
        (
            "data with options from a peer",
            ack().with_ip_options(10).with_payload(&[7; 9]).tunnelled(member_address(2), 0),
        ),
        ("UDP from a peer", Datagram::udp(port, DNS).tunnelled(member_address(2), 0)),
        ("SYN to be handed off", Datagram::tcp(port_ranked(world, &[2]), "S").frame()),
        ("probe", probes::frame(2, &request(2, 1))),
    ]
}

#[test]
fn a_packet_cut_at_any_length_is_a_verdict_and_never_an_entry() {
    let rig = Rig::of(world(&[1, 2, 3]));
    for (name, frame) in every_kind(&rig.world) {
        let is_probe = name == "probe";
        for length in ETHERNET..frame.len() {
            let expected = match length {
                _ if length < ETHERNET + IPV4 => Reason::NotIp,
                _ if is_probe && length < ETHERNET + IPV4 + 8 => Reason::NotOurs,
                _ if is_probe => Reason::DropProbe,
                _ => Reason::DropMalformed,
            };
            println!("{name}, {length} bytes");
            rig.ends(&frame[..length], expected);
        }
        rig.remembers_nothing();
        // The whole one is good, or this test proves nothing.
        let seen = rig.send(&frame);
        assert!(!seen.reason.name().starts_with("drop"), "{name}: {}", seen.reason.name());
        rig.state().pending.keys().for_each(|key| rig.set_pending(key, None));
    }
}

#[test]
fn a_cut_packet_of_a_known_flow_does_not_touch_its_entry() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let fin = Datagram::tcp(port_ranked(&rig.world, &[1, 2]), "F.").with_payload(b"bye");
    let known = entry(&fin.key(), 1, STATE_ESTABLISHED);
    rig.set_flow(&fin.key(), Some(&known));
    let frame = fin.frame();
    for length in ETHERNET..frame.len() {
        rig.send(&frame[..length]);
    }
    assert_eq!(rig.flow(&fin.key()), Some(known));
    assert_eq!(rig.take_events(), []);
}

#[test]
fn what_lies_behind_the_packet_stays_behind_it() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let syn = Datagram::tcp(port_ranked(&rig.world, &[1, 2]), "S");
    let backend = rig.world.backends[&rig.stateless(&syn)];
    // Ethernet pads 54 bytes to 60.
    let padding = [0xaa; 6];
    let padded = |frame: Vec<u8>| [frame, padding.to_vec()].concat();
    rig.becomes(&padded(syn.frame()), &padded(syn.delivered(&backend)), Reason::DeliverStateless);
    let tunnelled = padded(syn.tunnelled(member_address(2), 0));
    rig.becomes(&tunnelled, &padded(syn.delivered(&backend)), Reason::DeliverStateless);
    let other = Datagram::tcp(port_ranked(&rig.world, &[2]), "S");
    let handed_off = padded(other.handed_off(&rig.world.members[&2]));
    rig.becomes(&padded(other.frame()), &handed_off, Reason::HandOffUnknown);
}

#[test]
fn options_of_ip_and_tcp_are_walked() {
    let rig = Rig::of(world(&[1]));
    for words in 0..=10 {
        let syn = Datagram::tcp(5000, "S").with_ip_options(words).with_tcp_options(10 - words);
        let backend = rig.stateless(&syn);
        rig.delivers(&syn, backend, Reason::DeliverStateless);
        let ack = Datagram::tcp(5000, ".").seq(1001).with_ip_options(words);
        rig.delivers(&ack, backend, Reason::DeliverNew);
        rig.set_flow(&ack.key(), None);
        let udp = Datagram::udp(5000, DNS).with_ip_options(words);
        assert_eq!(rig.send(&udp.frame()).frame, udp.delivered(&rig.world.backends[&4]));
    }
}

#[test]
fn datagrams_without_payload_and_short_udp_lengths_are_good() {
    let rig = Rig::of(world(&[1]));
    let empty = Datagram::udp(5000, DNS).with_payload(&[]);
    rig.delivers(&empty, 4, Reason::DeliverStateless);
    // UDP may be shorter than IP says (RFC 768); the rest travels with it.
    let longer = Datagram::udp(5001, DNS).with_payload(&[1; 20]);
    let frame = with(longer.frame(), UDP_LENGTH, &[0, 10]);
    let expected = with(longer.delivered(&rig.world.backends[&4]), UDP_LENGTH + IPV4, &[0, 10]);
    rig.becomes(&frame, &expected, Reason::DeliverStateless);
}
