//! The cluster that the tests take place in: member 1 is the one under test.

use std::sync::Arc;

use crate::model::Model;
use lb_common::{
    address::{Address, mapped},
    flow::{FlowKey as _, FlowKeyV4, TCP, UDP},
    rank::{bit, score, seed},
    ring::{Ring, ring_slot},
    service::ServiceKey,
    target::{NextHop, TARGET_SERVING, Target},
};
use zerocopy::FromZeros as _;

use crate::wire::Datagram;

/// The member under test.
pub(crate) const SELF: u8 = 1;
pub(crate) const OWN_ADDRESS: [u8; 4] = member_address(SELF);
pub(crate) const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub(crate) const CLIENT: [u8; 4] = [198, 51, 100, 7];
pub(crate) const VIP: [u8; 4] = [203, 0, 113, 10];
/// A TCP service, by ring 0 on the backends 1 to 3.
pub(crate) const WEB: u16 = 80;
/// A UDP service, by ring 1 on backend 4.
pub(crate) const DNS: u16 = 53;
/// UDP port of probes.
pub(crate) const PROBE_PORT: u16 = 7001;
/// The loopback interface: `BPF_PROG_TEST_RUN` says that packets come from it.
pub(crate) const LOOPBACK: u32 = 1;

pub(crate) const fn member_address(id: u8) -> [u8; 4] {
    [10, 0, 1, 10 + id]
}

/// A cluster of these members, all alive, and `SELF` among them.
pub(crate) fn world(ids: &[u8]) -> Model {
    let mut world = Model::new(SELF, mapped(OWN_ADDRESS));
    world.set_member_ids(ids.iter().copied());
    world.node.schema = lb_common::abi::SCHEMA;
    world.node.hash_key = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
    world.node.silence_ns = 5_000_000_000;
    world.node.incarnation = 5;
    world.node.budgets = [1000; 3];
    world.node.port = PROBE_PORT.to_be_bytes();
    for &id in ids {
        world.members.insert(id, target(member_address(id), [2, 0, 0, 0, 1, id]));
        world.peers.insert(mapped(member_address(id)), id);
        world.liveness.forwarding |= bit(id);
    }
    world.liveness.eligible = world.liveness.forwarding;
    world.liveness.lease_until_ns = u64::MAX;
    for slot in 1..=4 {
        let target = target([10, 0, 2, 10 + slot as u8], [2, 0, 0, 0, 2, slot as u8]);
        world.backends.insert(slot, Target { ring: u32::from(slot == 4), ..target });
    }
    world.add_service(service(WEB, TCP), 0);
    world.add_service(service(DNS, UDP), 1);
    world.rings.insert(0, ring(&[1, 2, 3]));
    world.rings.insert(1, ring(&[4]));
    world
}

pub(crate) fn service(port: u16, protocol: u8) -> ServiceKey {
    ServiceKey { address: mapped(VIP), port: port.to_be_bytes(), protocol, padding: 0 }
}

/// A ring that gives these backends its slots in turn.
pub(crate) fn ring(backends: &[u16]) -> Arc<Ring> {
    let mut ring = Ring::new_zeroed();
    for (slot, backend) in ring.slots.iter_mut().zip(backends.iter().cycle()) {
        *slot = *backend;
    }
    Arc::new(ring)
}

/// A port of the client whose flow to `web` ranks the members like this, best first; the others come after them.
pub(crate) fn port_ranked(world: &Model, order: &[u8]) -> u16 {
    let is_ranked = |port: &u16| ranking(world, &Datagram::tcp(*port, "S").key()).starts_with(order);
    (1024..=u16::MAX).find(is_ranked).expect("some port has that rank")
}

/// The configured members by rank for a flow, best first: sorted, where the datapath must not.
pub(crate) fn ranking(world: &Model, key: &FlowKeyV4) -> Vec<u8> {
    let hash = key.hash(&world.node.hash_key);
    let mut ids: Vec<u8> = (1..=64).filter(|id| world.node.configured & bit(*id) != 0).collect();
    ids.sort_by_key(|id| std::cmp::Reverse(score(hash, seed(*id), *id)));
    ids
}

/// The backend that the stateless answer gives to a flow.
pub(crate) fn stateless(world: &Model, key: &FlowKeyV4) -> u16 {
    let ring = world.services[&key.service()].ring;
    world.rings[&ring].slots[ring_slot(key.hash(&world.node.hash_key))]
}

fn target(address: [u8; 4], mac: [u8; 6]) -> Target {
    let next_hop = NextHop { destination: mac, source: OWN_MAC, ifindex: LOOPBACK, mtu: 1500, padding: [0; 2] };
    Target { address: address_of(address), next_hop, ring: 0, state: TARGET_SERVING, padding: [0; 3] }
}

fn address_of(v4: [u8; 4]) -> Address {
    mapped(v4)
}
