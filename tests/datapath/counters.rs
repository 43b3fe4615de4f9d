//! Counters that add up: received = passed + delivered + handed off + answered + dropped.

use std::collections::BTreeMap;

use lb_common::{
    address::{Address, is_mapped, low_v4, mapped},
    packet::ETHERNET,
    reason::{Action, Counter},
    service::{SERVICE_ECHO, ServiceKey},
};

use crate::{
    counts::sum,
    rig::{Rig, XDP_DROP, XDP_PASS, XDP_TX},
    wire::{Datagram, chunk},
    world::{DNS, VIP, member_address, world},
};

/// Packets of every kind: wanted, unwanted, broken, too big, from clients and from peers.
fn stream() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for port in 5000..5020 {
        for packet in [
            Datagram::tcp(port, "S"),
            Datagram::tcp(port, ".").seq(1001),
            Datagram::tcp(port, "P.").seq(1001).with_payload(&vec![1; usize::from(port - 4990) * 30]),
            Datagram::tcp(port, "F."),
            Datagram::udp(port, DNS),
            Datagram::udp(port, DNS),
            Datagram::sctp(port, chunk::INIT),
            Datagram::sctp(port, chunk::COOKIE_ECHO),
            Datagram::tcp(port, "S").with_port(81),
            Datagram::tcp(port, "S").ttl(1),
            Datagram::tcp(port, "P.").with_payload(&[1; 1460]),
        ] {
            all.extend([packet.frame(), packet.tunnelled(member_address(2), 0), packet.clone().v6().frame()]);
        }
        all.push(Datagram::ping(port, &[1; 56]).frame());
        all.push(Datagram::ping_v6(port, &[1; 56]).frame());
        all.push(Datagram::tcp(port, "S").to([203, 0, 113, 11]).frame());
        all.push(Datagram::tcp(port, "S").tunnelled([10, 9, 9, 9], 0));
        all.push(Datagram::tcp(port, "S").frame()[..50].to_vec());
    }
    all
}

#[test]
fn the_counters_of_a_mixed_stream_add_up() {
    let mut world = world(&[1, 2, 3]);
    world.flag(ServiceKey::vip(mapped(VIP)), SERVICE_ECHO);
    world.liveness.budgets = [u32::MAX; 5];
    let rig = Rig::of(world);
    let frames = stream();
    let (mut verdicts, mut sent_to) = (BTreeMap::<u32, u64>::new(), BTreeMap::<Address, Counter>::new());
    for frame in &frames {
        let (verdict, seen) = rig.run(frame);
        *verdicts.entry(verdict).or_default() += 1;
        if let Some(address) = tunnel_end(&seen).filter(|_| verdict == XDP_TX) {
            let counter = sent_to.entry(address).or_insert(Counter { packets: 0, bytes: 0 });
            counter.packets += 1;
            counter.bytes += (frame.len() - ETHERNET) as u64;
        }
    }
    let counts = rig.counts();
    counts.assert_they_agree();
    let received = Counter {
        packets: frames.len() as u64,
        bytes: frames.iter().map(|frame| (frame.len() - ETHERNET) as u64).sum(),
    };
    let of = |action| counts.of(action);
    let all = [Action::Pass, Action::Deliver, Action::HandOff, Action::Answer, Action::Drop, Action::Consume].map(of);
    assert_eq!(sum(&all), received);
    // Each of these happened, or this test proves nothing of it.
    all[..5].iter().for_each(|counter| assert!(counter.packets > 0, "{all:?}"));
    // What the kernel was told to do says the same.
    let verdict = |verdict| verdicts.get(&verdict).copied().unwrap_or(0);
    assert_eq!(verdict(XDP_PASS), all[0].packets);
    assert_eq!(verdict(XDP_TX), all[1].packets + all[2].packets + all[3].packets);
    assert_eq!(verdict(XDP_DROP), all[4].packets + all[5].packets);
    // And so do the packets that went out: how many to whom.
    for (slot, backend) in &rig.world.backends {
        let expected = sent_to.get(&backend.address).copied().unwrap_or(Counter { packets: 0, bytes: 0 });
        assert_eq!(counts.backends[usize::from(*slot)], expected, "backend {slot}");
    }
    for (id, member) in &rig.world.members {
        let expected = sent_to.get(&member.address).copied().unwrap_or(Counter { packets: 0, bytes: 0 });
        assert_eq!(counts.members[usize::from(*id)], expected, "member {id}");
    }
    // A service's counters are the sum of its backends'.
    for (ring, service) in counts.services.iter().enumerate() {
        let own = rig.world.backends.iter().filter(|(_, backend)| backend.ring as usize == ring);
        let expected = sum(own.map(|(slot, _)| &counts.backends[usize::from(*slot)]));
        assert_eq!(service.delivered, expected, "service {ring}");
    }
}

/// The far end of the tunnel that a frame is in.
fn tunnel_end(frame: &[u8]) -> Option<Address> {
    let ip = &frame[ETHERNET..];
    match (ip[0] >> 4, ip[9], ip[6]) {
        (4, 4 | 41, _) => Some(mapped(ip[16..20].try_into().expect("four bytes"))),
        (6, _, 4 | 41) => Some(ip[24..40].try_into().expect("sixteen bytes")),
        _ => None,
    }
}

#[test]
fn the_end_of_a_tunnel_is_found() {
    let rig = Rig::of(world(&[1]));
    for slot in [1, 5] {
        let backend = &rig.world.backends[&slot];
        let frame = Datagram::tcp(5000, "S").delivered(backend);
        assert_eq!(tunnel_end(&frame), Some(backend.address));
        assert!(!is_mapped(&backend.address) || low_v4(&backend.address) == [10, 0, 2, 10 + slot as u8]);
    }
}
