//! Probes: reflected and stamped in XDP; whatever is wrong with one, it is dropped and stamps nothing.

use lb_common::{
    liveness::{Heard, PROBE_ECHO, PROBE_GOODBYE, PROBE_MAGIC, PROBE_READY, PROBE_REQUEST, PROBE_VERSION, Probe},
    packet::ETHERNET,
    reason::Reason,
};
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::{
    checks::now_ns,
    rig::{Rig, XDP_DROP, XDP_TX},
    wire::{Datagram, Tag, framed, with_tags},
    world::{
        LOOPBACK, OWN_ADDRESS, OWN_ADDRESS_V6, OWN_MAC, PROBE_PORT, ROUTER_MAC, member_address, member_address_v6,
        world,
    },
};

/// Source port of probes: a sender's own choice.
const SENDER: u16 = 40_000;

fn probe(kind: u8, from: u8, to: u8) -> Probe {
    Probe {
        magic: PROBE_MAGIC,
        version: PROBE_VERSION,
        kind,
        from,
        to,
        incarnation: 77_u32.to_be_bytes(),
        flags: PROBE_READY | PROBE_GOODBYE,
        padding: [0; 3],
        counter: 0x0102_0304_0506_0708_u64.to_be_bytes(),
        sent_ns: 0x1112_1314_1516_1718_u64.to_be_bytes(),
        forwarding: 0b110_u64.to_be_bytes(),
        eligible: 0b100_u64.to_be_bytes(),
        tag: [0xa5; 8],
        reserved: [0x5a; 8],
    }
}

/// From a member to this one.
fn datagram(member: u8, probe: &Probe) -> Datagram {
    let datagram = Datagram::udp(SENDER, PROBE_PORT).from(member_address(member)).to(OWN_ADDRESS);
    datagram.with_payload(probe.as_bytes())
}

/// A request, good or not.
pub(crate) fn request(from: u8, to: u8) -> Probe {
    probe(PROBE_REQUEST, from, to)
}

/// The echo of `from`'s request, good or not.
pub(crate) fn echo(from: u8, to: u8) -> Probe {
    probe(PROBE_ECHO, from, to)
}

/// A probe from a member's address to this one.
pub(crate) fn frame(member: u8, probe: &Probe) -> Vec<u8> {
    datagram(member, probe).frame()
}

#[test]
fn a_probe_is_turned_round_and_stamped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let request = request(2, 1);
    let before = now_ns();
    let seen = rig.send(&frame(2, &request));
    let after = now_ns();

    let answer = Probe { kind: PROBE_ECHO, ..request };
    let mut echo = Datagram::udp(PROBE_PORT, SENDER).from(OWN_ADDRESS).to(member_address(2));
    echo = echo.with_payload(answer.as_bytes());
    let mut expected = framed(ROUTER_MAC, OWN_MAC, &echo.packet());
    // UDP without a checksum (RFC 768).
    expected[ETHERNET + 26..ETHERNET + 28].fill(0);
    assert_eq!((seen.reason, seen.verdict, seen.frame), (Reason::ProbeReflected, XDP_TX, expected));

    let heard = rig.heard(2);
    assert!((before..=after).contains(&heard.probe_ns));
    let expected = Heard {
        probe_ns: heard.probe_ns,
        probe_counter: 0x0102_0304_0506_0708,
        incarnation: 77,
        flags: PROBE_READY | PROBE_GOODBYE,
        forwarding: 0b110,
        eligible: 0b100,
        ..Heard::new_zeroed()
    };
    assert_eq!(heard, expected);
    assert_eq!([rig.heard(1), rig.heard(3)], [Heard::new_zeroed(); 2]);
    rig.remembers_nothing();
}

#[test]
fn an_echo_is_taken_and_stamped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    rig.send(&frame(3, &request(3, 1)));
    let probed = rig.heard(3);
    let frame = frame(3, &echo(1, 3));
    let before = now_ns();
    let seen = rig.send(&frame);
    let after = now_ns();
    assert_eq!((seen.reason, seen.verdict, seen.frame), (Reason::EchoTaken, XDP_DROP, frame));
    let heard = rig.heard(3);
    assert!((before..=after).contains(&heard.echo_ns));
    // What the member's own probe said stays as it was.
    let expected = Heard {
        echo_ns: heard.echo_ns,
        echo_counter: 0x0102_0304_0506_0708,
        echo_sent_ns: 0x1112_1314_1516_1718,
        ..probed
    };
    assert_eq!(heard, expected);
    rig.remembers_nothing();
}

#[test]
fn a_bad_probe_is_dropped_and_stamps_nothing() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let (good, echo) = (request(2, 1), echo(1, 2));
    let rows = [
        ("another magic", datagram(2, &Probe { magic: *b"TDMQ", ..good })),
        ("another version", datagram(2, &Probe { version: PROBE_VERSION + 1, ..good })),
        ("version 0", datagram(2, &Probe { version: 0, ..good })),
        ("no kind", datagram(2, &Probe { kind: 0, ..good })),
        ("another kind", datagram(2, &Probe { kind: 3, ..good })),
        ("from another member than its address says", datagram(3, &good)),
        ("for another member", datagram(2, &Probe { to: 3, ..good })),
        ("of no member", datagram(2, &Probe { from: 0, ..good })),
        ("from a stranger", datagram(9, &Probe { from: 9, ..good })),
        ("from this member itself", datagram(1, &Probe { from: 1, ..good })),
        ("the echo of another member's probe", datagram(2, &Probe { from: 3, ..echo })),
        ("an echo from another member than its address says", datagram(3, &echo)),
        ("an echo that was not for its sender", datagram(2, &Probe { to: 3, ..echo })),
        ("a request in the shape of an echo", datagram(2, &Probe { from: 2, to: 1, ..echo })),
        ("nothing inside", datagram(2, &good).with_payload(&[])),
        ("cut by one byte", datagram(2, &good).with_payload(&good.as_bytes()[..63])),
    ];
    for (name, datagram) in rows {
        println!("{name}");
        rig.ends(&datagram.frame(), Reason::DropProbe);
    }
    assert!((0..=64).all(|id| rig.heard(id) == Heard::new_zeroed()));
    rig.remembers_nothing();
}

#[test]
fn what_is_no_probe_is_the_hosts() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let good = datagram(2, &request(2, 1));
    for other in [
        good.clone().with_port(PROBE_PORT + 1),
        good.clone().with_ip_options(1),
        good.clone().fragment(0, true),
        good.clone().fragment(1, false),
    ] {
        rig.ends(&other.frame(), Reason::NotOurs);
    }
    // A probe for a peer is the router's business.
    rig.ends(&good.to(member_address(3)).frame(), Reason::NotOurs);
    assert!((0..=64).all(|id| rig.heard(id) == Heard::new_zeroed()));
}

#[test]
fn a_probe_from_another_interface_than_the_clusters_stamps_nothing() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    rig.change(|world| world.node.cluster_ifindex = LOOPBACK + 1);
    rig.ends(&frame(2, &request(2, 1)), Reason::DropProbe);
    rig.ends(&frame(3, &echo(1, 3)), Reason::DropProbe);
    assert_eq!([rig.heard(2), rig.heard(3)], [Heard::new_zeroed(); 2]);
}

#[test]
fn probes_are_turned_round_over_ipv6_and_with_tags() {
    let mut world = world(&[1, 2, 3]);
    world.use_members_v6();
    let rig = Rig::of(world);
    for counter in 0..200_u64 {
        let request = Probe { counter: (counter * 0x0123_4567_89ab).to_be_bytes(), ..request(2, 1) };
        let answer = Probe { kind: PROBE_ECHO, ..request };
        let question = Datagram::udp(SENDER, PROBE_PORT).with_payload(request.as_bytes());
        let echo = Datagram::udp(PROBE_PORT, SENDER).with_payload(answer.as_bytes());
        let tags: &[Tag] = [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]][counter as usize % 3];

        let (own, peer) = (OWN_ADDRESS_V6, member_address_v6(2));
        let asked = question.clone().v6().source_v6(peer).destination_v6(own).tagged(tags);
        let echo_v6 = echo.clone().v6().source_v6(own).destination_v6(peer);
        let expected = with_tags(tags, framed(ROUTER_MAC, OWN_MAC, &echo_v6.packet()));
        rig.becomes(&asked, &expected, Reason::ProbeReflected);
        assert_eq!(rig.heard(2).probe_counter, u64::from_be_bytes(request.counter));

        let asked = question.from(member_address(2)).to(OWN_ADDRESS).tagged(tags);
        let mut expected = framed(ROUTER_MAC, OWN_MAC, &echo.from(OWN_ADDRESS).to(member_address(2)).packet());
        expected[ETHERNET + 26..ETHERNET + 28].fill(0);
        rig.becomes(&asked, &with_tags(tags, expected), Reason::ProbeReflected);
    }
    let echo = Datagram::udp(PROBE_PORT, SENDER).with_payload(echo(1, 3).as_bytes()).with_port(PROBE_PORT);
    let echo = echo.v6().source_v6(member_address_v6(3)).destination_v6(OWN_ADDRESS_V6);
    for tags in [&[][..], &[(0x8100, 5)]] {
        rig.ends(&echo.tagged(tags), Reason::EchoTaken);
    }
    assert_ne!(rig.heard(3).echo_ns, 0);
    // From a stranger, or to another port.
    rig.ends(&echo.clone().source_v6(member_address_v6(9)).frame(), Reason::DropProbe);
    rig.ends(&echo.with_port(PROBE_PORT + 1).frame(), Reason::NotOurs);
}
