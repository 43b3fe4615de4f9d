//! What encapsulation does to a packet, and when it cannot.

use lb_common::{
    packet::{CE, IPV4},
    reason::Reason,
};

use crate::{
    rig::{Rig, XDP_DROP, XDP_REDIRECT, XDP_TX},
    wire::{Datagram, Transport},
    world::{LOOPBACK, member_address, port_ranked, world},
};

#[test]
fn the_ttl_is_decremented_once_at_delivery_and_its_checksum_is_right() {
    let rig = Rig::of(world(&[1, 2, 3]));
    let (own, handed) = (port_ranked(&rig.world, &[1]), port_ranked(&rig.world, &[2]));
    for ttl in 2..=255 {
        let syn = Datagram::tcp(own, "S").ttl(ttl);
        rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
        rig.delivers_from(member_address(2), &syn, rig.stateless(&syn), Reason::DeliverStateless);
        // A hand-off is no hop of the packet's way.
        rig.hands_off(&Datagram::tcp(handed, "S").ttl(ttl), 2, Reason::HandOffUnknown);
    }
}

#[test]
fn the_checksum_is_right_for_every_carry() {
    let rig = Rig::of(world(&[1]));
    // The identification takes the checksum through all its values around the wrap.
    for identification in (0..=u16::MAX).step_by(61).chain(0xe000..0xe100) {
        let syn = Datagram::tcp(5000, "S").identified(identification);
        let (_, frame) = rig.run(&syn.frame());
        assert_eq!(frame, syn.delivered(&rig.world.backends[&rig.stateless(&syn)]), "{identification:#x}");
    }
}

#[test]
fn a_packet_whose_ttl_ends_here_is_dropped_at_delivery_only() {
    let rig = Rig::of(world(&[1, 2, 3]));
    for ttl in [0, 1] {
        let syn = Datagram::tcp(port_ranked(&rig.world, &[1]), "S").ttl(ttl);
        rig.ends(&syn.frame(), Reason::DropTtl);
        rig.ends(&syn.tunnelled(member_address(2), 0), Reason::DropTtl);
        rig.hands_off(&Datagram::tcp(port_ranked(&rig.world, &[2]), "S").ttl(ttl), 2, Reason::HandOffUnknown);
    }
}

#[test]
fn the_traffic_class_is_copied_outside_on_delivery_and_congestion_bits_only_on_a_hand_off() {
    let rig = Rig::of(world(&[1, 2, 3]));
    for tos in [0, 1, 2, CE, 0xb8, 0xb9, 0xba, 0xbb, 0xff] {
        let syn = Datagram::tcp(port_ranked(&rig.world, &[1]), "S").tos(tos);
        rig.delivers(&syn, rig.stateless(&syn), Reason::DeliverStateless);
        rig.hands_off(&Datagram::tcp(port_ranked(&rig.world, &[2]), "S").tos(tos), 2, Reason::HandOffUnknown);
    }
}

#[test]
fn a_packet_fits_up_to_the_mtu_of_its_next_hop() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    let room = |mtu: usize| vec![7; mtu - IPV4 - IPV4 - 20];
    for mtu in [576, 1500, 3000] {
        rig.change(|world| {
            world.backends.values_mut().for_each(|backend| backend.next_hop.mtu = mtu as u16);
            world.members.values_mut().for_each(|member| member.next_hop.mtu = mtu as u16);
        });
        for (order, via_peer) in [(&[1_u8][..], false), (&[2], false), (&[2], true)] {
            let fits = Datagram::tcp(port_ranked(&rig.world, order), "F.").with_payload(&room(mtu));
            let too_big = fits.clone().with_payload(&[&room(mtu)[..], &[7]].concat());
            let framed = |datagram: &Datagram| match via_peer {
                true => datagram.tunnelled(member_address(3), 0),
                false => datagram.frame(),
            };
            // A packet from a peer is answered by the gateway, which this world has not.
            let refusal = if via_peer { Reason::DropTooBig } else { Reason::TooBigAnswered };
            assert_eq!(rig.send(&framed(&too_big)).reason.name(), refusal.name());
            let seen = rig.send(&framed(&fits));
            assert_eq!((seen.verdict, seen.frame.len()), (XDP_TX, mtu + 14));
        }
    }
    // Unknown: anything goes.
    rig.change(|world| world.backends.values_mut().for_each(|backend| backend.next_hop.mtu = 0));
    let large = Datagram::tcp(port_ranked(&rig.world, &[1]), "F.").with_payload(&[7; 3000]);
    rig.delivers(&large, rig.stateless(&large), Reason::DeliverStateless);
}

#[test]
fn a_backend_without_a_next_hop_drops_by_name() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| world.backends.values_mut().for_each(|backend| backend.next_hop.ifindex = 0));
    rig.ends(&Datagram::tcp(5000, "S").frame(), Reason::DropNoNextHop);
    rig.ends(&Datagram::tcp(5000, "S").tunnelled(member_address(1), 0), Reason::DropNoNextHop);
}

#[test]
fn a_next_hop_on_another_interface_is_reached_by_redirection() {
    let mut rig = Rig::of(world(&[1, 2]));
    let (own, handed) = (Datagram::tcp(port_ranked(&rig.world, &[1]), "S"), port_ranked(&rig.world, &[2]));
    let handed = Datagram::tcp(handed, "S");
    assert_eq!([rig.send(&own.frame()).verdict, rig.send(&handed.frame()).verdict], [XDP_TX; 2]);
    rig.change(|world| {
        world.backends.values_mut().for_each(|backend| backend.next_hop.ifindex = LOOPBACK + 1);
        world.members.values_mut().for_each(|member| member.next_hop.ifindex = LOOPBACK + 1);
    });
    rig.delivers(&own, rig.stateless(&own), Reason::DeliverStateless);
    rig.hands_off(&handed, 2, Reason::HandOffUnknown);
    assert_eq!([rig.send(&own.frame()).verdict, rig.send(&handed.frame()).verdict], [XDP_REDIRECT; 2]);
}

#[test]
fn without_headroom_a_packet_from_the_wire_is_dropped_and_one_from_a_peer_is_not() {
    let rig = Rig::of(world(&[1, 2]));
    let syn = Datagram::tcp(port_ranked(&rig.world, &[1]), "S");
    let Some(seen) = rig.run_without_headroom(&syn.frame()) else {
        println!("skipped: this kernel's BPF_PROG_TEST_RUN does not let a test take the headroom away");
        return;
    };
    assert_eq!(seen, (XDP_DROP, syn.frame()));
    assert_eq!(rig.counter(Reason::DropHeadroom).packets, 1);
    // It brings the room along.
    let delivered = syn.delivered(&rig.world.backends[&rig.stateless(&syn)]);
    assert_eq!(rig.run_without_headroom(&syn.tunnelled(member_address(2), 0)), Some((XDP_TX, delivered)));
}

#[test]
fn the_transport_and_the_payload_are_not_touched() {
    let rig = Rig::of(world(&[1]));
    for length in [0, 1, 2, 5, 6, 7, 100, 1399, 1400] {
        let payload: Vec<u8> = (0..length).map(|n| (n * 7 + 3) as u8).collect();
        let mut data = Datagram::tcp(5000, "P.").seq(length).with_tcp_options(3).with_payload(&payload);
        let Transport::Tcp(tcp) = &mut data.transport else { panic!("it is TCP") };
        (tcp.window_size, tcp.urgent_pointer, tcp.urg, tcp.ece, tcp.cwr) = (0x1234, 0x5678, true, true, true);
        rig.set_pending(&data.key(), None);
        rig.delivers(&data, rig.stateless(&data), Reason::DeliverStateless);
    }
}
