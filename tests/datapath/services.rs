//! What services may ask for: every port, affinity, policies for what is not theirs.

use std::collections::BTreeSet;

use lb_common::{
    address::mapped,
    flow::{FlowEntry, FlowKey as _, STATE_ESTABLISHED, TCP, UDP},
    node::NODE_DROP_OTHER,
    reason::Reason,
    ring::ring_slot,
    service::{SERVICE_AFFINITY, ServiceKey},
    target::{TARGET_DOWN, TARGET_REMOVED},
};

use crate::{
    checks::entry,
    rig::Rig,
    wire::{Datagram, chunk},
    world::{CLIENT, DNS, VIP, WEB, documentation, member_address, ring, service, service_v6, world},
};

const ICMP: u8 = 1;

#[test]
fn a_service_on_any_port_takes_what_no_other_service_of_its_protocol_has() {
    let mut rig = Rig::of(world(&[1]));
    rig.ends(&Datagram::tcp(5000, "S").with_port(81).frame(), Reason::NoService);
    rig.change(|world| {
        // Of backends that no other service has.
        world.rings.insert(5, ring(&[8]));
        world.add_service(service(0, TCP), 5);
        world.add_service(service_v6(0, UDP), 5);
    });
    for port in [1, 22, 81, 443, 65_535] {
        rig.delivers(&Datagram::tcp(5000, "S").with_port(port), 8, Reason::DeliverStateless);
        rig.delivers(&Datagram::udp(5000, port).v6(), 8, Reason::DeliverStateless);
        rig.ends(&Datagram::udp(5000, if port == DNS { 54 } else { port }).frame(), Reason::NoService);
        rig.ends(&Datagram::sctp(5000, chunk::INIT).with_port(port).frame(), Reason::NoService);
    }
    let web = Datagram::tcp(5000, "S").with_port(WEB);
    assert!(rig.stateless(&web) <= 3);
    rig.delivers(&web, rig.stateless(&web), Reason::DeliverStateless);
    // Each port is a flow of its own.
    rig.delivers(&Datagram::tcp(5000, ".").with_port(22).seq(1001), 8, Reason::DeliverNew);
    rig.delivers(&Datagram::tcp(5000, ".").with_port(443).seq(1001), 8, Reason::DeliverNew);
    assert_eq!(rig.state().flows.len(), 2);
}

#[test]
fn with_affinity_all_flows_of_a_client_go_to_one_backend() {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| {
        world.flag(service(WEB, TCP), SERVICE_AFFINITY);
        world.flag(service_v6(WEB, TCP), SERVICE_AFFINITY);
    });
    let mut backends = BTreeSet::new();
    for client in 1..=20 {
        let address = [CLIENT[0], CLIENT[1], CLIENT[2], client];
        let syn = |port| Datagram::tcp(port, "S").from(address);
        let hash = syn(0).key().without_ports().hash(&rig.world.node.hash_key);
        let backend = rig.world.rings[&0].slots[ring_slot(hash)];
        for port in 5000..5010 {
            rig.delivers(&syn(port), backend, Reason::DeliverStateless);
        }
        backends.insert(backend);
        let syn = |port| Datagram::tcp(port, "S").v6().source_v6(documentation(0xc, client));
        let hash = syn(0).key_v6().without_ports().hash(&rig.world.node.hash_key);
        let backend = rig.world.rings[&2].slots[ring_slot(hash)];
        for port in 5000..5010 {
            rig.delivers(&syn(port), backend, Reason::DeliverStateless);
        }
        backends.insert(backend);
    }
    // Of clients, not of the service.
    assert_eq!(backends, BTreeSet::from([1, 2, 3, 5, 6]));
    // Another service has its own way.
    rig.delivers(&Datagram::udp(5000, DNS), 4, Reason::DeliverStateless);
}

#[test]
fn a_udp_flow_whose_backend_is_gone_is_placed_anew_at_once() {
    for state in [TARGET_DOWN, TARGET_REMOVED] {
        let mut rig = Rig::of(world(&[1, 2]));
        let (v4, v6) = (Datagram::udp(5000, DNS), Datagram::udp(5000, DNS).v6());
        let old = |entry: FlowEntry| FlowEntry { generation: 7, revision: 3, term: 4, creator: 2, ..entry };
        rig.set_flow(&v4.key(), Some(&old(entry(&v4.key(), 4, STATE_ESTABLISHED))));
        rig.set_flow(&v6.key_v6(), Some(&old(entry(&v6.key_v6(), 7, STATE_ESTABLISHED))));
        rig.change(|world| {
            world.rings.insert(1, ring(&[1]));
            world.rings.insert(3, ring(&[5]));
            world.backends.get_mut(&4).unwrap().state = state;
            world.backends.get_mut(&7).unwrap().state = state;
        });
        rig.delivers(&v4, 1, Reason::DeliverNew);
        let anew = |entry: FlowEntry| FlowEntry { generation: 8, term: 4, ..entry };
        rig.has_told(&v4.key(), anew(entry(&v4.key(), 1, STATE_ESTABLISHED)));
        rig.delivers(&v4, 1, Reason::DeliverKnown);
        rig.delivers(&v6, 5, Reason::DeliverNew);
        rig.has_told(&v6.key_v6(), anew(entry(&v6.key_v6(), 5, STATE_ESTABLISHED)));
        rig.delivers(&v6, 5, Reason::DeliverKnown);
        // There is nobody to place it on: it stays where it was.
        rig.set_flow(&v4.key(), Some(&entry(&v4.key(), 4, STATE_ESTABLISHED)));
        rig.change(|world| drop(world.rings.insert(1, ring(&[0]))));
        rig.delivers(&v4, 4, Reason::DeliverKnown);
    }
}

#[test]
fn what_is_for_a_vip_but_for_no_service_is_dropped_where_the_node_says_so() {
    let mut rig = Rig::of(world(&[1, 2]));
    let no_service = [
        Datagram::tcp(5000, "S").with_port(81),
        Datagram::udp(5000, 80),
        Datagram::sctp(5000, chunk::INIT).with_port(1),
        Datagram::tcp(5000, "S").v6().with_port(81),
    ];
    let not_balanced = [Datagram::other(ICMP, &[13, 0, 0, 0, 0, 0, 0, 0]), Datagram::other(47, &[0; 24]).v6()];
    for (flags, unwanted, unbalanced) in
        [(0, Reason::NoService, Reason::NotBalanced), (NODE_DROP_OTHER, Reason::DropNoService, Reason::DropNotBalanced)]
    {
        rig.change(|world| world.node.flags = flags);
        no_service.iter().for_each(|packet| rig.ends(&packet.frame(), unwanted));
        not_balanced.iter().for_each(|packet| rig.ends(&packet.frame(), unbalanced));
        // What is for nobody here passes in any case, and what is balanced is.
        rig.ends(&Datagram::tcp(5000, "S").to([203, 0, 113, 11]).frame(), Reason::NotOurs);
        rig.ends(&Datagram::other(47, &[0; 24]).to(member_address(1)).frame(), Reason::NotOurs);
        rig.delivers(&Datagram::udp(port_of_own(&rig), DNS), 4, Reason::DeliverStateless);
        rig.state().pending.keys().for_each(|key| rig.set_pending(key, None));
    }
    rig.change(|world| {
        world.services.remove(&ServiceKey::vip(mapped(VIP)));
    });
    rig.ends(&no_service[0].frame(), Reason::NotOurs);
    rig.remembers_nothing();
}

/// A port whose flow to the UDP service this member owns.
fn port_of_own(rig: &Rig) -> u16 {
    crate::world::port_where(&rig.world, &[1], |port| Datagram::udp(port, DNS).key())
}
