//! Sources of tunnels: one address, or a prefix in which each flow has its own.

use std::collections::BTreeSet;

use lb_common::{
    address::mapped,
    node::{NODE_PEER_PREFIXES, Source, V4, V6},
    reason::Reason,
    target::Target,
};

use crate::{
    rig::Rig,
    wire::{Datagram, towards},
    world::{World, documentation, member_address, port_where, ranking, server_address_v6, world},
};

const DELIVERY: Source = Source { address: mapped([10, 64, 0, 0]), spread: [0, 0, 0xff, 0xff] };
const HAND_OFF: Source = Source { address: mapped([10, 65, 3, 0]), spread: [0, 0, 0, 0x3f] };
const DELIVERY_V6: Source = Source { address: documentation(0x64, 0), spread: [0xff; 4] };
const HAND_OFF_V6: Source = Source { address: documentation(0x65, 0), spread: [0, 0, 0, 0xff] };

/// The address of a flow within a source.
fn within(source: &Source, tag: u32) -> [u8; 16] {
    let mut address = source.address;
    for ((byte, bits), spread) in address[12..].iter_mut().zip(tag.to_ne_bytes()).zip(source.spread) {
        *byte |= bits & spread;
    }
    address
}

fn spreading() -> World {
    let mut world = world(&[1, 2]);
    world.node.delivery_sources[V4] = DELIVERY;
    world.node.delivery_sources[V6] = DELIVERY_V6;
    world.node.hand_off_sources[V4] = HAND_OFF;
    world.node.hand_off_sources[V6] = HAND_OFF_V6;
    world
}

#[test]
fn every_flow_has_its_own_source_and_keeps_it() {
    for is_v6 in [false, true] {
        let mut world = spreading();
        if is_v6 {
            world.use_members_v6();
            for (slot, backend) in &mut world.backends {
                backend.address = server_address_v6(*slot as u8);
            }
        }
        let rig = Rig::of(world);
        let mut sources = BTreeSet::new();
        for port in 5000..5040 {
            for packet in [Datagram::tcp(port, "S").tos(0xb9), Datagram::tcp(port, "S").tos(0xb9).v6()] {
                let tag = packet.tag();
                let owner = if packet.is_v6() {
                    ranking(&rig.world, &packet.key_v6())[0]
                } else {
                    ranking(&rig.world, &packet.key())[0]
                };
                let (to, [v4, v6], tos, inner, reason): (&Target, _, _, _, _) = if owner == 1 {
                    let backend = &rig.world.backends[&rig.stateless(&packet)];
                    let inner = packet.one_hop_on().packet();
                    (backend, [DELIVERY, DELIVERY_V6], 0xb9, inner, Reason::DeliverStateless)
                } else {
                    (&rig.world.members[&2], [HAND_OFF, HAND_OFF_V6], 1, packet.packet(), Reason::HandOffUnknown)
                };
                let source = within(if to.is_v4() { &v4 } else { &v6 }, tag);
                let expected = towards(to, source, tos, tag, &inner);
                rig.becomes(&packet.frame(), &expected, reason);
                rig.becomes(&packet.frame(), &expected, reason);
                sources.insert(source);
            }
        }
        assert!(sources.len() > 40, "{} sources", sources.len());
    }
}

#[test]
fn a_hand_off_may_come_from_anywhere_in_a_members_prefix() {
    let mut rig = Rig::of(world(&[1, 2, 3]));
    rig.change(|world| {
        world.peer_prefixes.insert((96 + 26, mapped([10, 65, 2, 64])), 2);
        world.peer_prefixes.insert((64, documentation(0x65, 0)), 3);
    });
    let port = port_where(&rig.world, &[2], |port| Datagram::tcp(port, "S").key());
    let syn = Datagram::tcp(port, "S");
    let backend = rig.world.backends[&rig.stateless(&syn)];
    let near = [[10, 65, 2, 64], [10, 65, 2, 100], [10, 65, 2, 127]];
    let far = [[10, 65, 2, 63], [10, 65, 2, 128], [10, 65, 3, 64]];
    // Nobody is asked for prefixes where no member has one.
    near.iter().for_each(|from| rig.ends(&syn.tunnelled(*from, 0), Reason::DropStranger));
    rig.change(|world| world.node.flags = NODE_PEER_PREFIXES);
    for from in near {
        rig.becomes(&syn.tunnelled(from, 0), &syn.delivered(&backend), Reason::DeliverStateless);
    }
    far.iter().for_each(|from| rig.ends(&syn.tunnelled(*from, 0), Reason::DropStranger));
    // Addresses go on being members' without a prefix.
    rig.delivers_from(member_address(3), &syn, rig.stateless(&syn), Reason::DeliverStateless);
    let from = documentation(0x65, 200);
    rig.becomes(&syn.tunnelled_v6(from, 0), &syn.delivered(&backend), Reason::DeliverStateless);
    rig.ends(&syn.tunnelled_v6(documentation(0x66, 200), 0), Reason::DropStranger);
}
