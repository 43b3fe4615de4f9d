//! The grace time after a change of servers: flows that nobody has recorded yet go where they went before it.

use lb_common::{maps::PREVIOUS_RINGS, reason::Reason, ring::ring_slot, service::SERVICE_AFFINITY};

use crate::{
    checks::now_ns,
    rig::Rig,
    wire::{Datagram, chunk},
    world::{DNS, WEB, port_where, ring, service, world},
};
use lb_common::flow::{FlowKey as _, TCP};

const SECOND_NS: u64 = 1_000_000_000;

/// Server 1 is the only one of the web service now, and 2 and 3 were before; so were 3 for datagrams and associations.
fn after_a_change() -> Rig {
    let mut rig = Rig::of(world(&[1]));
    rig.change(|world| {
        world.rings.insert(0, ring(&[1]));
        world.rings.insert(PREVIOUS_RINGS, ring(&[2, 3]));
        world.rings.insert(PREVIOUS_RINGS + 1, ring(&[3]));
        world.rings.insert(PREVIOUS_RINGS + 4, ring(&[3]));
        world.liveness.grace_until_ns = now_ns() + 60 * SECOND_NS;
    });
    rig
}

fn before(rig: &Rig, packet: &Datagram) -> u16 {
    rig.world.rings[&PREVIOUS_RINGS].slots[ring_slot(packet.key().hash(&rig.world.node.hash_key))]
}

#[test]
fn in_the_grace_time_only_what_begins_goes_by_the_new_ring() {
    let mut rig = after_a_change();
    let mut seen = [false; 4];
    for port in 2000..2020 {
        for flags in [".", "P.", "F.", "R", "R.", "S."] {
            let packet = Datagram::tcp(port, flags);
            let slot = before(&rig, &packet);
            seen[usize::from(slot)] = true;
            rig.delivers(&packet, slot, Reason::DeliverStateless);
        }
    }
    assert_eq!(seen, [false, false, true, true]);
    for port in 3000..3020 {
        // The connection that begins now is the new ring's, its later packets included.
        for flags in ["S", "S", "P."] {
            rig.delivers(&Datagram::tcp(port, flags), 1, Reason::DeliverStateless);
        }
    }
    let sctp = |kind| Datagram::sctp(port_where(&rig.world, &[1], |port| Datagram::sctp(port, 0).key()), kind);
    rig.delivers(&sctp(chunk::DATA), 3, Reason::DeliverStateless);
    // A datagram does not tell whether it is the first.
    let udp = Datagram::udp(2000, DNS);
    rig.delivers(&udp, rig.stateless(&udp), Reason::DeliverStateless);
    rig.change(|world| world.liveness.grace_until_ns = now_ns() - SECOND_NS);
    rig.delivers(&Datagram::tcp(4000, "."), 1, Reason::DeliverStateless);
}

#[test]
fn a_flow_that_is_recorded_in_the_grace_time_stays_where_it_went() {
    let mut rig = after_a_change();
    let ack = Datagram::tcp(5000, ".");
    let slot = before(&rig, &ack);
    rig.delivers(&ack, slot, Reason::DeliverStateless);
    rig.delivers(&ack, slot, Reason::DeliverStateless);
    std::thread::sleep(std::time::Duration::from_millis(120));
    rig.delivers(&ack, slot, Reason::DeliverNew);
    rig.change(|world| world.liveness.grace_until_ns = 0);
    rig.delivers(&ack, slot, Reason::DeliverKnown);
}

#[test]
fn a_service_that_had_no_server_before_has_the_new_ones() {
    let mut rig = after_a_change();
    rig.change(|world| {
        world.rings.insert(PREVIOUS_RINGS, ring(&[0]));
    });
    rig.delivers(&Datagram::tcp(5000, "."), 1, Reason::DeliverStateless);
}

#[test]
fn affinity_chose_the_old_server_by_the_client_too() {
    let mut rig = after_a_change();
    rig.change(|world| world.flag(service(WEB, TCP), SERVICE_AFFINITY));
    let key = Datagram::tcp(5000, ".").key();
    let hash = key.without_ports().hash(&rig.world.node.hash_key);
    let slot = rig.world.rings[&PREVIOUS_RINGS].slots[ring_slot(hash)];
    for port in 5000..5010 {
        rig.delivers(&Datagram::tcp(port, "."), slot, Reason::DeliverStateless);
    }
}
