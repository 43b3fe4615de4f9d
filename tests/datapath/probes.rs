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
        LOOPBACK, OWN_ADDRESS, OWN_ADDRESS_V6, OWN_MAC, OWN_NONCE, PROBE_PORT, ROUTER_MAC, SELF, member_address,
        member_address_v6, probe_key, world,
    },
};

/// The nonce of every peer.
const PEER_NONCE: u64 = 0x7172_7374_7576_7778;
/// Source port of probes: a sender's own choice.
const SENDER: u16 = 40_000;

/// As `from` would make it, who has heard `to` since it started; tagged with the first key of the other one of the two.
fn probe(kind: u8, from: u8, to: u8) -> Probe {
    let (nonce, answers) = if from == SELF { (OWN_NONCE, PEER_NONCE) } else { (PEER_NONCE, OWN_NONCE) };
    let probe = Probe {
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
        nonce: nonce.to_be_bytes(),
        answers: answers.to_be_bytes(),
        tag: [0; 8],
    };
    probe.tagged(&probe_key(if from == SELF { to } else { from }))
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

/// The echo that this member gives member 2.
fn answer(request: &Probe) -> Probe {
    Probe { kind: PROBE_ECHO, answers: OWN_NONCE.to_be_bytes(), ..*request }.tagged(&probe_key(2))
}

/// That echo, as it leaves.
fn answer_frame(request: &Probe) -> Vec<u8> {
    let echo = Datagram::udp(PROBE_PORT, SENDER).from(OWN_ADDRESS).to(member_address(2));
    let mut frame = framed(ROUTER_MAC, OWN_MAC, &echo.with_payload(answer(request).as_bytes()).packet());
    // UDP without a checksum (RFC 768).
    frame[ETHERNET + 26..ETHERNET + 28].fill(0);
    frame
}

fn is_untouched(rig: &Rig) {
    assert!((0..=64).all(|id| rig.heard(id) == Heard::new_zeroed()));
    rig.remembers_nothing();
}

#[test]
fn a_probe_is_turned_round_and_stamped() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let request = request(2, 1);
    let before = now_ns();
    let seen = rig.send(&frame(2, &request));
    let after = now_ns();

    let expected = answer_frame(&request);
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
        nonce: PEER_NONCE,
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
        ("cut by one byte", datagram(2, &good).with_payload(&good.as_bytes()[..71])),
    ];
    for (name, datagram) in rows {
        println!("{name}");
        rig.ends(&datagram.frame(), Reason::DropProbe);
    }
    is_untouched(&rig);
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
        let of = |counter: u64| {
            let counter = (0x0123_4567_89ab * (counter + 1)).to_be_bytes();
            Probe { counter, ..request(2, 1) }.tagged(&probe_key(2))
        };
        let request = of(2 * counter);
        let answer = answer(&request);
        let question = Datagram::udp(SENDER, PROBE_PORT).with_payload(request.as_bytes());
        let echo = Datagram::udp(PROBE_PORT, SENDER).with_payload(answer.as_bytes());
        let tags: &[Tag] = [&[][..], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]][counter as usize % 3];

        let (own, peer) = (OWN_ADDRESS_V6, member_address_v6(2));
        let asked = question.clone().v6().source_v6(peer).destination_v6(own).tagged(tags);
        let echo_v6 = echo.clone().v6().source_v6(own).destination_v6(peer);
        let expected = with_tags(tags, framed(ROUTER_MAC, OWN_MAC, &echo_v6.packet()));
        rig.becomes(&asked, &expected, Reason::ProbeReflected);
        assert_eq!(rig.heard(2).probe_counter, u64::from_be_bytes(request.counter));

        let request = of(2 * counter + 1);
        let asked = datagram(2, &request).tagged(tags);
        rig.becomes(&asked, &with_tags(tags, answer_frame(&request)), Reason::ProbeReflected);
    }
    let echo = Datagram::udp(PROBE_PORT, SENDER).with_payload(echo(1, 3).as_bytes()).with_port(PROBE_PORT);
    let echo = echo.v6().source_v6(member_address_v6(3)).destination_v6(OWN_ADDRESS_V6);
    rig.ends(&echo.tagged(&[(0x8100, 5)]), Reason::EchoTaken);
    rig.ends(&echo.tagged(&[]), Reason::DropProbeOld);
    assert_ne!(rig.heard(3).echo_ns, 0);
    // From a stranger, or to another port.
    rig.ends(&echo.clone().source_v6(member_address_v6(9)).frame(), Reason::DropProbe);
    rig.ends(&echo.with_port(PROBE_PORT + 1).frame(), Reason::NotOurs);
}

/// The bytes on the wire; the tag by an implementation of SipHash-2-4 in Python.
#[test]
fn a_probe_has_these_bytes() {
    let bytes: String = request(2, 1).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(bytes, WIRE);
}

const WIRE: &str = concat!(
    "54444d50020102010000004d03000000",
    "01020304050607081112131415161718",
    "00000000000000060000000000000004",
    "71727374757677786162636465666768",
    "b304c273f054c405",
);

#[test]
fn whatever_is_changed_in_a_probe_it_is_forged() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    for (good, is_request) in [(request(2, 1), true), (echo(1, 2), false)] {
        for at in 0..good.as_bytes().len() {
            for bit in 0..8 {
                let mut bytes = good.as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                // Magic, version, kind, and the ids: not a probe between these two at all.
                let reason = if at < 8 { Reason::DropProbe } else { Reason::DropProbeForged };
                rig.ends(&datagram(2, &good).with_payload(&bytes).frame(), reason);
            }
        }
        is_untouched(&rig);
        let reason = rig.send(&frame(2, &good)).reason;
        assert_eq!(reason, if is_request { Reason::ProbeReflected } else { Reason::EchoTaken });
        rig.forget_heard(2);
    }
}

#[test]
fn a_tag_of_another_pair_or_of_no_key_is_forged() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let zeros = [0; 2];
    for key in [probe_key(3), probe_key(1), zeros, rig.world.node.hash_key] {
        rig.ends(&frame(2, &request(2, 1).tagged(&key)), Reason::DropProbeForged);
        rig.ends(&frame(2, &echo(1, 2).tagged(&key)), Reason::DropProbeForged);
    }
    // A member without keys is nobody.
    rig.change(|world| world.node.probe_keys[1] = [zeros; 2]);
    rig.ends(&frame(2, &request(2, 1)), Reason::DropProbeForged);
    rig.ends(&frame(2, &request(2, 1).tagged(&zeros)), Reason::DropProbeForged);
    rig.ends(&frame(2, &echo(1, 2).tagged(&zeros)), Reason::DropProbeForged);
    is_untouched(&rig);
}

#[test]
fn what_this_member_sent_does_not_come_back_as_a_peers_word() {
    let rig = Rig::of(world(&[1, 2, 3]));
    // Its own request, in the peer's name; its own echo; the peer's request, turned round by somebody without the key.
    rig.ends(&frame(2, &request(1, 2)), Reason::DropProbe);
    rig.ends(&frame(2, &answer(&request(2, 1))), Reason::DropProbe);
    let turned = Probe { kind: PROBE_ECHO, from: 1, to: 2, ..request(2, 1) };
    rig.ends(&frame(2, &turned), Reason::DropProbeForged);
    // The echo of a request that another member made.
    rig.ends(&frame(2, &echo(3, 2)), Reason::DropProbe);
    is_untouched(&rig);
}

#[test]
fn what_was_heard_once_is_old() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let of = |kind, incarnation: u32, counter: u64| {
        let (from, to) = if kind == PROBE_REQUEST { (2, 1) } else { (1, 2) };
        let (incarnation, counter) = (incarnation.to_be_bytes(), counter.to_be_bytes());
        frame(2, &Probe { incarnation, counter, ..probe(kind, from, to) }.tagged(&probe_key(2)))
    };
    let takes = |frame: &[u8], reason| {
        let heard = rig.heard(2);
        assert_eq!(rig.send(frame).reason, reason);
        assert_eq!(rig.heard(2) == heard, reason == Reason::DropProbeOld, "{reason:?}");
    };
    for (incarnation, counter, reason) in [
        (7, 100, Reason::ProbeReflected),
        (7, 100, Reason::DropProbeOld),
        (7, 99, Reason::DropProbeOld),
        (6, 1000, Reason::DropProbeOld),
        (7, 101, Reason::ProbeReflected),
        (8, 1, Reason::ProbeReflected),
        (7, 102, Reason::DropProbeOld),
        (8, 1, Reason::DropProbeOld),
        (8, 2, Reason::ProbeReflected),
    ] {
        takes(&of(PROBE_REQUEST, incarnation, counter), reason);
    }
    for (counter, reason) in [
        (100, Reason::EchoTaken),
        (100, Reason::DropProbeOld),
        (99, Reason::DropProbeOld),
        (102, Reason::EchoTaken),
        (101, Reason::DropProbeOld),
    ] {
        takes(&of(PROBE_ECHO, 5, counter), reason);
    }
    // Of an earlier start of this member, however late.
    let earlier = Probe { nonce: (OWN_NONCE - 1).to_be_bytes(), counter: [0xff; 8], ..echo(1, 2) };
    takes(&frame(2, &earlier.tagged(&probe_key(2))), Reason::DropProbeOld);
}

#[test]
fn a_recording_from_before_a_restart_is_echoed_and_not_believed() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    for answers in [0, OWN_NONCE - 1] {
        let request = Probe { answers: answers.to_be_bytes(), ..request(2, 1) }.tagged(&probe_key(2));
        let seen = rig.send(&frame(2, &request));
        assert_eq!((seen.reason, seen.verdict, seen.frame), (Reason::ProbeIntroduced, XDP_TX, answer_frame(&request)));
        is_untouched(&rig);
    }
    // A new start makes recordings of all that was believed.
    assert_eq!(rig.send(&frame(2, &request(2, 1))).reason, Reason::ProbeReflected);
    rig.change(|world| world.node.probe_nonce += 1);
    rig.forget_heard(2);
    assert_eq!(rig.send(&frame(2, &request(2, 1))).reason, Reason::ProbeIntroduced);
    is_untouched(&rig);
}

#[test]
fn either_key_of_a_pair_is_good_and_answered_with() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let second = [11, 12];
    rig.change(|world| world.node.probe_keys[1][1] = second);
    for (counter, at, key) in [(1_u64, 1, second), (2, 0, probe_key(2)), (3, 1, second)] {
        let request = Probe { counter: counter.to_be_bytes(), ..request(2, 1) }.tagged(&key);
        let seen = rig.send(&frame(2, &request));
        assert_eq!((seen.reason, rig.heard(2).key), (Reason::ProbeReflected, at));
        let payload = &seen.frame[seen.frame.len() - size_of::<Probe>()..];
        assert_eq!(payload, answer(&request).tagged(&key).as_bytes());
        let echo = Probe { counter: counter.to_be_bytes(), ..echo(1, 2) }.tagged(&key);
        assert_eq!((rig.send(&frame(2, &echo)).reason, rig.heard(2).key), (Reason::EchoTaken, at));
    }
    rig.change(|world| world.node.probe_keys[1] = [second, [0; 2]]);
    rig.ends(&frame(2, &Probe { counter: [9; 8], ..request(2, 1) }.tagged(&probe_key(2))), Reason::DropProbeForged);
}
