//! Random tables: a cluster around the member under test, and what it remembers of flows.

use std::sync::{Arc, LazyLock};

use lb_common::{
    address::{Address, mapped},
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6, Fragment, Pending, SCTP, TCP, UDP, WITNESSED, tick, ticks_of_ms},
    liveness::{Heard, PROBE_EMPTY},
    maps::PREVIOUS_RINGS,
    node::{NODE_DIRECT, NODE_DROP_OTHER, NODE_DROP_OVERSIZED, NODE_FIRST_PACKET, NODE_PEER_PREFIXES, Source, V4, V6},
    rank::{MEMBERS_MAX, bit},
    ring::Ring,
    service::{SERVICE_AFFINITY, SERVICE_ECHO, ServiceKey},
    target::{NextHop, TARGET_SERVING, Target},
};
use zerocopy::FromZeros as _;

use crate::{Dice, Model};

/// The member under test.
pub const SELF: u8 = 1;
/// UDP port of probes.
pub const PROBE_PORT: u16 = 7001;
/// The interface that packets come from.
pub const INGRESS: u32 = 1;
/// An interface in `devices`, and one that is not.
pub const OTHERS: [u32; 2] = [2, 3];
/// MAC of the member under test.
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The first one's ports have services of their own, the second one's only that of every port; the third one has none.
pub const VIPS: [[u8; 4]; 3] = [[203, 0, 113, 10], [203, 0, 113, 11], [203, 0, 113, 12]];
/// Ports of services, and one of none.
pub const PORTS: [u16; 5] = [80, 53, 443, 9, 81];
/// Clients.
pub const CLIENTS: usize = 2;
/// Ports of each client.
pub const CLIENT_PORTS: usize = 3;

/// Backend slots in use are below this.
const BACKENDS: u16 = 13;
/// Rings in use are below this; the service of port 443 has none.
const RINGS: u32 = 3;
const RINGLESS: u32 = 9;
const SECOND_NS: u64 = 1_000_000_000;

/// An address of member `id`.
pub fn member_address(id: u8, is_v6: bool) -> Address {
    if is_v6 { v6([0x00fd, 1], id) } else { mapped([10, 0, 1, 10 + id]) }
}

/// The VIP of one of `VIPS` in the other family.
pub fn vip_v6(nth: usize) -> Address {
    v6([0x2001, 0x10], nth as u8 + 10)
}

/// A client's address.
pub fn client(nth: usize, is_v6: bool) -> Address {
    if is_v6 { v6([0x2001, 0xc1], nth as u8) } else { mapped([198, 51, 100, nth as u8]) }
}

fn v6([first, second]: [u16; 2], last: u8) -> Address {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&first.to_be_bytes());
    address[2..4].copy_from_slice(&second.to_be_bytes());
    address[15] = last;
    address
}

/// Rings are large and few: made once.
static ALL_RINGS: LazyLock<Vec<Arc<Ring>>> = LazyLock::new(|| {
    let choices: [&[u16]; 8] =
        [&[1, 2, 3], &[4], &[5, 6, 7, 8, 9, 10, 11, 12], &[0], &[1, 0, 7], &[13, 2], &[9, 16_383], &[3, 60_000, 5]];
    choices.iter().map(|choice| ring(choice)).collect()
});

/// A ring that gives these backends its slots in turn.
pub fn ring(backends: &[u16]) -> Arc<Ring> {
    let mut ring = Ring::new_zeroed();
    for (slot, backend) in ring.slots.iter_mut().zip(backends.iter().cycle()) {
        *slot = *backend;
    }
    Arc::new(ring)
}

/// A key of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyKey {
    /// Of IPv4.
    V4(FlowKeyV4),
    /// Of IPv6.
    V6(FlowKeyV6),
}

impl Dice<'_> {
    /// A cluster around the member under test, at `now_ns` of its clock.
    pub fn world(&mut self, now_ns: u64) -> Model {
        let mut world = Model::new(SELF);
        (world.now_ns, world.ingress) = (now_ns, INGRESS);
        world.devices = [INGRESS, OTHERS[0]].into();
        self.cluster(&mut world);
        self.services(&mut world);
        for _ in 0..self.below(12) {
            self.change(&mut world);
        }
        world
    }

    fn cluster(&mut self, world: &mut Model) {
        let others = self.pick(&[2, 1, 0, 2, 3, 7, 63]);
        let mut ids = vec![SELF];
        while ids.len() <= others {
            // The next one that is free: exhausted bytes would name the same one for ever.
            let mut id = self.below(63) as u8;
            while ids.contains(&(2 + id)) {
                id = (id + 1) % 63;
            }
            ids.push(2 + id);
        }
        world.set_member_ids(ids.iter().copied());
        let node = &mut world.node;
        node.schema = lb_common::abi::SCHEMA;
        node.hash_key = [self.roll(), self.roll()];
        node.probe_nonce = self.roll();
        // Strangers' stay zero: they have none.
        for &id in &ids {
            node.probe_keys[usize::from(id) - 1] = match self.below(3) {
                0 => [[self.roll(), self.roll()], [0; 2]],
                1 => [[self.roll(), self.roll()], [self.roll(), self.roll()]],
                _ => [[0; 2], [self.roll(), self.roll()]],
            };
        }
        node.silence_ns = 5 * SECOND_NS;
        node.incarnation = self.roll() as u32;
        node.port = PROBE_PORT.to_be_bytes();
        node.cluster_ifindex = self.pick(&[0, INGRESS, 0, INGRESS, 0, INGRESS, 0, INGRESS, 0, OTHERS[0]]);
        node.flags = self.flags();
        for sources in [&mut node.delivery_sources, &mut node.hand_off_sources] {
            let spread =
                |dice: &mut Self| dice.pick(&[[0; 4], [0; 4], [0, 0, 0xff, 0xff], [0xff; 4], [0x0f, 0xff, 0, 1]]);
            sources[V4] = Source { address: member_address(SELF, false), spread: spread(self) };
            sources[V6] = Source { address: member_address(SELF, true), spread: spread(self) };
        }
        // A member may have an address of one family only.
        let missing = self.pick(&[None, None, None, None, None, None, None, None, Some(V4), Some(V6)]);
        for family in [V4, V6].into_iter().filter(|family| missing != Some(*family)) {
            world.set_address(family, member_address(SELF, family == V6));
        }
        for &id in &ids {
            let is_v6 = self.chance(30);
            let target = self.target(member_address(id, is_v6));
            world.members.insert(id, target);
            world.peers.insert(member_address(id, false), id);
            // `peers` holds as many addresses as there can be members.
            if ids.len() <= MEMBERS_MAX / 2 {
                world.peers.insert(member_address(id, true), id);
            }
            world.liveness.forwarding |= bit(id);
        }
        for (prefix, id) in
            [((mapped([10, 0, 3, 0]), 120), 2), ((mapped([10, 0, 0, 0]), 104), 3), ((v6([0x00fd, 3], 0), 32), 4)]
        {
            world.prefixes.insert(prefix, id);
        }
        world.liveness.eligible = world.liveness.forwarding;
        world.liveness.lease_until_ns = u64::MAX;
        world.liveness.budgets = [100_000; 5];
        world.gateways = [V4, V6].map(|_| self.next_hop());
    }

    fn services(&mut self, world: &mut Model) {
        for slot in 1..BACKENDS {
            let address = if slot % 2 == 0 { mapped([10, 0, 2, slot as u8]) } else { v6([0x00fd, 2], slot as u8) };
            let target = self.target(address);
            world.backends.insert(slot, Target { ring: u32::from(slot) % RINGS, ..target });
        }
        for ring in 0..RINGS {
            world.rings.insert(ring, self.ring());
            world.rings.insert(PREVIOUS_RINGS + ring, self.ring());
        }
        for (first, second, third) in
            [(mapped(VIPS[0]), mapped(VIPS[1]), mapped(VIPS[2])), (vip_v6(0), vip_v6(1), vip_v6(2))]
        {
            let key =
                |address, port: u16, protocol| ServiceKey { address, port: port.to_be_bytes(), protocol, padding: 0 };
            world.add_service(key(first, 80, TCP), 0);
            world.add_service(key(first, 53, UDP), 1);
            world.add_service(key(first, 443, TCP), RINGLESS);
            world.add_service(key(first, 9, SCTP), 2);
            world.add_service(key(second, 80, TCP), 1);
            for protocol in [TCP, UDP, SCTP] {
                world.add_service(key(second, 0, protocol), 2);
            }
            world.add_service(key(third, 0, 0), 0);
        }
        for (key, service) in &mut world.services {
            // Ports and protocol of zero: the mark of a VIP.
            service.flags = if key.protocol == 0 {
                self.pick(&[SERVICE_ECHO, SERVICE_ECHO, 0])
            } else {
                self.pick(&[0, 0, SERVICE_AFFINITY])
            };
        }
        if self.chance(10) {
            // A filter that knows everything: its false positives must do no harm.
            world.vip_filter.words = [u64::MAX; 128];
        }
    }

    fn flags(&mut self) -> u8 {
        let mut flags = 0;
        for flag in [NODE_FIRST_PACKET, NODE_DIRECT, NODE_DROP_OTHER, NODE_DROP_OVERSIZED, NODE_PEER_PREFIXES] {
            if self.chance(25) {
                flags |= flag;
            }
        }
        flags
    }

    fn target(&mut self, address: Address) -> Target {
        Target { address, next_hop: self.next_hop(), ring: 0, state: TARGET_SERVING, padding: [0; 3] }
    }

    fn next_hop(&mut self) -> NextHop {
        NextHop {
            destination: [2, 0, 0, 1, 0, self.below(256) as u8],
            source: OWN_MAC,
            ifindex: self.pick(&[INGRESS, INGRESS, INGRESS, INGRESS, INGRESS, OTHERS[0], OTHERS[1], 0]),
            mtu: self.pick(&[1500, 1500, 1500, 0, 60, 100, 1400, 9000, u16::MAX]),
            tag_bytes: self.pick(&[0, 0, 4, 8]),
            padding: 0,
            tags: [0x88, 0xa8, 0x20, 5, 0x81, 0, 0, 7],
        }
    }

    fn ring(&mut self) -> Arc<Ring> {
        // Mostly one with backends in all slots.
        let nth = self.pick(&[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]);
        Arc::clone(&ALL_RINGS[nth])
    }

    /// Something that the agent writes while packets come.
    pub fn change(&mut self, world: &mut Model) {
        let now_ns = world.now_ns;
        match self.below(12) {
            0 => {
                let slot = 1 + self.below(usize::from(BACKENDS) - 1) as u16;
                let backend = world.backends.get_mut(&slot).expect("slots in use");
                backend.state = self.pick(&[1, 2, 3, 4, 0, 1, 1]);
            }
            1 => world.liveness.eligible = self.mask(),
            2 => world.liveness.lease_until_ns = self.pick(&[u64::MAX, 0, 1, now_ns, u64::MAX]),
            3 => world.node.flags = self.flags(),
            4 => world.liveness.budgets = [(); 5].map(|()| self.pick(&[100_000, 100_000, 0, 2])),
            5 => {
                let id = self.member(world);
                let hop = self.next_hop();
                if let Some(member) = world.members.get_mut(&id) {
                    member.next_hop = hop;
                }
            }
            6 => {
                let age_ns = self.pick(&[0, 4, 6, 60]) * SECOND_NS;
                let probe_ns = now_ns.saturating_sub(age_ns);
                let heard = Heard { probe_ns, flags: self.pick(&[0, 0, PROBE_EMPTY, 3]), ..Heard::new_zeroed() };
                let id = self.member(world);
                if world.members.contains_key(&id) {
                    world.heard.borrow_mut().insert(id, heard);
                }
            }
            7 => drop(world.rings.insert(self.below(RINGS as usize) as u32, self.ring())),
            8 => {
                let ring = PREVIOUS_RINGS + self.below(RINGS as usize) as u32;
                world.rings.insert(ring, self.ring());
            }
            9 => world.liveness.grace_until_ns = self.pick(&[u64::MAX, 0, now_ns, u64::MAX]),
            10 => world.liveness.doubt_until_ns = self.pick(&[u64::MAX, 0, now_ns, u64::MAX]),
            _ => world.liveness.forwarding = self.mask(),
        }
    }

    /// A random view, more often a good one than a bad one.
    fn mask(&mut self) -> u64 {
        match self.below(5) {
            0 => u64::MAX,
            1 => 0,
            2 => self.roll() & !1,
            3 => self.roll(),
            _ => u64::MAX,
        }
    }

    /// One of few flows, so that packets meet their entries.
    pub fn key(&mut self, is_v6: bool) -> AnyKey {
        let (protocol, port) = self.pick(&[
            (TCP, 80),
            (TCP, 80),
            (UDP, 53),
            (UDP, 53),
            (SCTP, 9),
            (TCP, 80),
            (UDP, 53),
            (SCTP, 9),
            (TCP, 443),
            (TCP, 81),
        ]);
        let (vip, client_nth) = (self.pick(&[0, 0, 0, 0, 1, 1, 0, 2]), self.below(CLIENTS));
        let ports = ((5000 + self.below(CLIENT_PORTS) as u16).to_be_bytes(), u16::to_be_bytes(port));
        if is_v6 {
            AnyKey::V6(FlowKeyV6::new(client(client_nth, true), vip_v6(vip), ports.0, ports.1, protocol))
        } else {
            let [.., a, b, c, d] = client(client_nth, false);
            AnyKey::V4(FlowKeyV4::new([a, b, c, d], VIPS[vip], ports.0, ports.1, protocol))
        }
    }

    /// Fills the tables of flows, up to `most` entries in each.
    pub fn populate(&mut self, world: &Model, most: usize) {
        for _ in 0..self.below(most + 1) {
            let is_v6 = self.chance(50);
            let (key, kind) = (self.key(is_v6), self.below(5));
            match key {
                AnyKey::V4(key) => self.remember(world, key, kind, most),
                AnyKey::V6(key) => self.remember(world, key, kind, most),
            }
        }
    }

    fn remember<K: crate::tables::Family>(&mut self, world: &Model, key: K, kind: usize, most: usize) {
        let mut learned = K::learned(world).borrow_mut();
        match kind {
            0..=2 if learned.flows.len() < most.min(world.flows_max) => {
                let entry = self.entry(key.tag(), world);
                learned.flows.insert(key, entry);
            }
            0..=3 => drop(learned.pending.insert(key, self.pending(world))),
            _ => {
                let datagram = key.datagram([0, 0, 0, self.below(4) as u8]);
                let age = ticks_of_ms(self.pick(&[0, 1000, 40_000]));
                let seen = tick(world.now_ns).wrapping_sub(age);
                learned.fragments.insert(datagram, Fragment { ports: key.ports(), seen });
            }
        }
    }

    fn entry(&mut self, tag: u32, world: &Model) -> FlowEntry {
        let age = ticks_of_ms(self.pick(&[0, 100, 30_000]));
        let stamp = tick(world.now_ns).wrapping_sub(age);
        FlowEntry {
            last_seen: stamp,
            created: stamp.wrapping_sub(age),
            tag: if self.chance(5) { self.roll() as u32 } else { tag },
            creator_incarnation: self.roll() as u32,
            generation: self.pick(&[0, 1, u16::MAX]),
            revision: self.pick(&[0, 1, u16::MAX]),
            term: self.pick(&[0, 1, u16::MAX]),
            backend: self.slot(),
            state: self.pick(&[2, 1, 3, 4, 1, 2, 3, 4, 0, 5, 200]),
            packets: self.pick(&[0, 1, 2, 3, u8::MAX]),
            creator: self.member(world) | self.pick(&[0, WITNESSED]),
            primary: self.member(world),
            backup: self.member(world),
            event: 0,
            padding: [0; 2],
        }
    }

    fn pending(&mut self, world: &Model) -> Pending {
        let now = tick(world.now_ns);
        let last_seen = now.wrapping_sub(ticks_of_ms(self.pick(&[0, 10, 1000, 70_000])));
        Pending {
            first_seen: last_seen.wrapping_sub(ticks_of_ms(self.pick(&[0, 50, 200, 5000]))),
            expected_seq: self.seq(),
            backend: self.slot(),
            kind: self.pick(&[1, 2, 3, 1, 1, 2, 3, 0]),
            packets: self.pick(&[0, 1, 2, 3, u8::MAX]),
            last_seen,
        }
    }

    fn slot(&mut self) -> u16 {
        if self.chance(5) { self.roll() as u16 } else { self.below(usize::from(BACKENDS)) as u16 }
    }

    /// The id of a member, or seldom of none.
    pub fn member(&mut self, world: &Model) -> u8 {
        match self.below(8) {
            0 | 1 => SELF,
            2 if self.chance(30) => self.pick(&[0, 77, 200]),
            _ => {
                let nth = self.below(world.members.len());
                *world.members.keys().nth(nth).expect("below their number")
            }
        }
    }

    /// A sequence number.
    pub fn seq(&mut self) -> u32 {
        self.pick(&[1001, 1000, 1001, 0, 1, 2, u32::MAX])
    }
}
