//! The cluster that the tests take place in: member 1 is the one under test.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::{
    address::{Address, mapped},
    flow::{FlowKey, SCTP, TCP, UDP},
    hash::HashKey,
    liveness::{Heard, Liveness},
    node::{Node, Source, V4, V6},
    rank::{MEMBERS_MAX, Seed, bit, score, seed},
    ring::{Ring, ring_slot},
    service::{Service, ServiceKey, VipFilter},
    target::{NextHop, TARGET_SERVING, Target},
};
use zerocopy::FromZeros as _;

use crate::wire::Datagram;

/// The member under test.
pub(crate) const SELF: u8 = 1;
pub(crate) const OWN_ADDRESS: [u8; 4] = member_address(SELF);
pub(crate) const OWN_ADDRESS_V6: Address = member_address_v6(SELF);
pub(crate) const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub(crate) const CLIENT: [u8; 4] = [198, 51, 100, 7];
pub(crate) const CLIENT_V6: Address = documentation(0xc, 7);
pub(crate) const VIP: [u8; 4] = [203, 0, 113, 10];
pub(crate) const VIP_V6: Address = documentation(0xa, 10);
/// A TCP service: on the IPv4 VIP by ring 0 on the backends 1 to 3, on the IPv6 VIP by ring 2 on 5 and 6.
pub(crate) const WEB: u16 = 80;
/// A UDP service: on the IPv4 VIP by ring 1 on backend 4, on the IPv6 VIP by ring 3 on 7.
pub(crate) const DNS: u16 = 53;
/// An SCTP service: on both VIPs by ring 4 on backend 8.
pub(crate) const DIAMETER: u16 = 3868;
/// `Node::probe_nonce`.
pub(crate) const OWN_NONCE: u64 = 0x6162_6364_6566_6768;
/// UDP port of probes.
pub(crate) const PROBE_PORT: u16 = 7001;
/// The loopback interface: `BPF_PROG_TEST_RUN` says that packets come from it.
pub(crate) const LOOPBACK: u32 = 1;
/// Another interface that packets may leave by.
pub(crate) const ELSEWHERE: u32 = LOOPBACK + 1;

/// An address in the prefix for documentation (RFC 3849).
pub(crate) const fn documentation(net: u8, host: u8) -> Address {
    [0x20, 0x01, 0x0d, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
}

pub(crate) const fn member_address_v6(id: u8) -> Address {
    documentation(1, 10 + id)
}

pub(crate) const fn server_address_v6(slot: u8) -> Address {
    documentation(2, 10 + slot)
}

/// What the agent writes, as plain collections.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// `node`.
    pub(crate) node: Box<Node>,
    /// `liveness`.
    pub(crate) liveness: Liveness,
    /// `vip_filter`.
    pub(crate) vip_filter: Box<VipFilter>,
    /// `peers`: the ids of members by address.
    pub(crate) peers: BTreeMap<Address, u8>,
    /// `peer_prefixes`: the same by prefix, its length (of 128 bits) first.
    pub(crate) peer_prefixes: BTreeMap<(u32, Address), u8>,
    /// `members`, by id.
    pub(crate) members: BTreeMap<u8, Target>,
    /// `services`, VIP marks included.
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    /// `rings`, by index.
    pub(crate) rings: BTreeMap<u32, Arc<Ring>>,
    /// `backends`, by slot.
    pub(crate) backends: BTreeMap<u16, Target>,
    /// `gateways`, by family.
    pub(crate) gateways: [NextHop; 2],
    /// `heard`, by id: what XDP writes, and the tests to let time pass.
    pub(crate) heard: BTreeMap<u8, Heard>,
}

impl World {
    /// No peers, services and backends; with `id` 0 the datapath is not configured at all.
    pub(crate) fn new(id: u8) -> Self {
        let mut node: Box<Node> = Box::new(Node::new_zeroed());
        node.id = id;
        Self {
            node,
            liveness: Liveness::new_zeroed(),
            vip_filter: Box::new(VipFilter::EMPTY),
            peers: BTreeMap::new(),
            peer_prefixes: BTreeMap::new(),
            members: BTreeMap::new(),
            services: BTreeMap::new(),
            rings: BTreeMap::new(),
            backends: BTreeMap::new(),
            gateways: [NextHop::NONE; 2],
            heard: BTreeMap::new(),
        }
    }

    /// Configures the members with these ids; `members` and `peers` are the caller's.
    pub(crate) fn set_member_ids(&mut self, ids: impl IntoIterator<Item = u8>) {
        self.node.seeds = [Seed::new_zeroed(); MEMBERS_MAX];
        (self.node.configured, self.node.members) = (0, 0);
        for (slot, id) in self.node.seeds.iter_mut().zip(ids) {
            *slot = Seed { seed: seed(id), id: u64::from(id) };
            self.node.configured |= bit(id);
            self.node.members += 1;
        }
    }

    /// Adds a service, its VIP's mark, and its VIP to the filter.
    pub(crate) fn add_service(&mut self, key: ServiceKey, ring: u32) {
        self.services.insert(key, Service { ring, flags: 0, padding: [0; 3] });
        self.services.insert(ServiceKey::vip(key.address), Service { ring: 0, flags: 0, padding: [0; 3] });
        self.vip_filter.insert(&key.address);
    }

    /// Gives a service, or the mark of a VIP, these flags.
    pub(crate) fn flag(&mut self, key: ServiceKey, flags: u8) {
        self.services.get_mut(&key).expect("a service").flags = flags;
    }

    /// Moves all members to their IPv6 addresses.
    pub(crate) fn use_members_v6(&mut self) {
        for (&id, member) in &mut self.members {
            member.address = member_address_v6(id);
            self.peers.insert(member.address, id);
        }
    }
}

pub(crate) const fn member_address(id: u8) -> [u8; 4] {
    [10, 0, 1, 10 + id]
}

/// The key of the probes between this member and `id`.
pub(crate) const fn probe_key(id: u8) -> HashKey {
    [0x0706_0504_0302_0100 + id as u64, 0x0f0e_0d0c_0b0a_0908]
}

/// A cluster of these members, all alive, and `SELF` among them.
pub(crate) fn world(ids: &[u8]) -> World {
    let mut world = World::new(SELF);
    world.set_member_ids(ids.iter().copied());
    let node = &mut world.node;
    node.schema = lb_common::abi::SCHEMA;
    (node.addresses[V4], node.addresses[V6]) = (mapped(OWN_ADDRESS), OWN_ADDRESS_V6);
    node.delivery_sources = node.addresses.map(|address| Source { address, spread: [0; 4] });
    node.hand_off_sources = node.delivery_sources;
    world.vip_filter.insert(&node.addresses[V4]);
    world.vip_filter.insert(&node.addresses[V6]);
    node.hash_key = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
    node.silence_ns = 5_000_000_000;
    node.incarnation = 5;
    node.probe_nonce = OWN_NONCE;
    for &id in ids.iter().filter(|id| **id != SELF) {
        node.probe_keys[usize::from(id) - 1] = [probe_key(id), [0; 2]];
    }
    node.port = PROBE_PORT.to_be_bytes();
    world.liveness.budgets = [1000; 5];
    for &id in ids {
        world.members.insert(id, target(mapped(member_address(id)), [2, 0, 0, 0, 1, id]));
        world.peers.insert(mapped(member_address(id)), id);
        world.liveness.forwarding |= bit(id);
    }
    world.liveness.eligible = world.liveness.forwarding;
    world.liveness.lease_until_ns = u64::MAX;
    let rings: [&[u16]; 5] = [&[1, 2, 3], &[4], &[5, 6], &[7], &[8]];
    for (index, slots) in (0..).zip(rings) {
        world.rings.insert(index, ring(slots));
        for &slot in slots {
            let address = match slot {
                5..=7 => server_address_v6(slot as u8),
                _ => mapped([10, 0, 2, 10 + slot as u8]),
            };
            let target = target(address, [2, 0, 0, 0, 2, slot as u8]);
            world.backends.insert(slot, Target { ring: index, ..target });
        }
    }
    world.add_service(service(WEB, TCP), 0);
    world.add_service(service(DNS, UDP), 1);
    world.add_service(service_v6(WEB, TCP), 2);
    world.add_service(service_v6(DNS, UDP), 3);
    world.add_service(service(DIAMETER, SCTP), 4);
    world.add_service(service_v6(DIAMETER, SCTP), 4);
    world
}

pub(crate) fn service(port: u16, protocol: u8) -> ServiceKey {
    ServiceKey { address: mapped(VIP), port: port.to_be_bytes(), protocol, padding: 0 }
}

pub(crate) fn service_v6(port: u16, protocol: u8) -> ServiceKey {
    ServiceKey { address: VIP_V6, ..service(port, protocol) }
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
pub(crate) fn port_ranked(world: &World, order: &[u8]) -> u16 {
    port_where(world, order, |port| Datagram::tcp(port, "S").key())
}

/// The same of the IPv6 client and service.
pub(crate) fn port_ranked_v6(world: &World, order: &[u8]) -> u16 {
    port_where(world, order, |port| Datagram::tcp(port, "S").v6().key_v6())
}

/// The first port whose key ranks the members like this.
pub(crate) fn port_where<K: FlowKey>(world: &World, order: &[u8], key: impl Fn(u16) -> K) -> u16 {
    (1024..=u16::MAX).find(|port| ranking(world, &key(*port)).starts_with(order)).expect("some port has that rank")
}

/// The configured members by rank for a flow, best first: sorted, where the datapath must not.
pub(crate) fn ranking<K: FlowKey>(world: &World, key: &K) -> Vec<u8> {
    let hash = key.hash(&world.node.hash_key);
    let mut ids: Vec<u8> = (1..=64).filter(|id| world.node.configured & bit(*id) != 0).collect();
    ids.sort_by_key(|id| std::cmp::Reverse(score(hash, seed(*id), *id)));
    ids
}

/// The backend that the stateless answer gives to a flow.
pub(crate) fn stateless<K: FlowKey>(world: &World, key: &K) -> u16 {
    let ring = world.services[&key.service()].ring;
    world.rings[&ring].slots[ring_slot(key.hash(&world.node.hash_key))]
}

/// A target behind an interface that is the one packets come from, without tags.
pub(crate) fn target(address: Address, mac: [u8; 6]) -> Target {
    let next_hop = NextHop { destination: mac, source: OWN_MAC, ifindex: LOOPBACK, mtu: 1500, ..NextHop::NONE };
    Target { address, next_hop, ring: 0, state: TARGET_SERVING, padding: [0; 3] }
}
