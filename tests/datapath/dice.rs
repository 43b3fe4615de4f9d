//! Random worlds, tables and packets, from a seed.

use lb_common::{
    flow::{FlowEntry, FlowKey as _, FlowKeyV4, Pending, TCP, WITNESSED, tick, ticks_of_ms},
    hash::mix,
    liveness::Heard,
    node::NODE_FIRST_PACKET,
    packet::ETHERNET,
    target::Target,
};
use zerocopy::FromZeros as _;

use crate::{
    checks::now_ns,
    model::Model,
    probes,
    wire::{Datagram, Transport, framed, tunnel},
    world::{
        DNS, LOOPBACK, OWN_ADDRESS, OWN_MAC, PROBE_PORT, ROUTER_MAC, SELF, VIP, WEB, member_address, ring, service,
        world,
    },
};

/// A TCP service whose ring is not there.
const RINGLESS: u16 = 443;
/// Backend slots in use are below this.
const BACKENDS: u16 = 9;

/// A sequence of random numbers (Steele, Lea, Flood: SplitMix64's counter, with another mixer).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A cluster around the member under test.
    pub(crate) fn world(&mut self) -> Model {
        let others = self.pick(&[0, 1, 2, 2, 2, 3, 7, 63]);
        let mut ids = vec![SELF];
        while ids.len() <= others {
            let id = 2 + self.below(63) as u8;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let mut world = world(&ids);
        world.add_service(service(RINGLESS, TCP), 9);
        for slot in 5..BACKENDS {
            world.backends.insert(slot, Target { address: [slot as u8; 16], ..world.backends[&1] });
        }
        world.node.incarnation = self.roll() as u32;
        world.node.hash_key = [self.roll(), self.roll()];
        world.node.cluster_ifindex = self.pick(&[0, 0, 0, LOOPBACK, LOOPBACK, LOOPBACK, LOOPBACK, LOOPBACK + 1]);
        if self.chance(10) {
            // A filter that knows everything: its false positives must do no harm.
            world.vip_filter.words = [u64::MAX; 128];
        }
        for _ in 0..8 {
            self.change(&mut world);
        }
        world
    }

    /// Something that the agent writes while packets come.
    pub(crate) fn change(&mut self, world: &mut Model) {
        let ids: Vec<u8> = world.members.keys().copied().collect();
        match self.below(10) {
            0 => world.liveness.forwarding = self.mask(),
            1 => world.liveness.eligible = self.mask(),
            2 => world.liveness.lease_until_ns = self.pick(&[u64::MAX, u64::MAX, 0, 1]),
            3 => world.node.flags = self.pick(&[0, 0, 0, NODE_FIRST_PACKET]),
            4 => world.node.budgets = [(); 3].map(|()| self.pick(&[0, 2, 1000, 1000])),
            5 => {
                let id = self.pick(&ids);
                self.change_target(world.members.get_mut(&id).expect("an id of the keys"));
            }
            6 => {
                let heard =
                    Heard { probe_ns: now_ns() - self.pick(&[0, 4, 6, 60]) * 1_000_000_000, ..Heard::new_zeroed() };
                world.heard.borrow_mut().insert(self.pick(&ids), heard);
            }
            7 => {
                let slots: Vec<u16> = (0..5).map(|_| self.below(usize::from(BACKENDS) + 2) as u16).collect();
                world.rings.insert(self.below(2) as u32, ring(&slots));
            }
            _ => {
                let slot = 1 + self.below(usize::from(BACKENDS) - 1) as u16;
                let backend = world.backends.get_mut(&slot).expect("slots in use");
                backend.state = self.pick(&[0, 1, 1, 1, 2, 3, 4]);
                self.change_target(backend);
            }
        }
    }

    fn change_target(&mut self, target: &mut Target) {
        target.next_hop.ifindex = self.pick(&[LOOPBACK, LOOPBACK, LOOPBACK, LOOPBACK, LOOPBACK + 1, 0]);
        target.next_hop.mtu = self.pick(&[1500, 1500, 1500, 0, 60]);
    }

    /// A random view, more often a good one than a bad one.
    fn mask(&mut self) -> u64 {
        match self.below(5) {
            0 => self.roll(),
            1 => 0,
            2 => self.roll() & !1,
            _ => u64::MAX,
        }
    }

    /// An entry of a flow.
    pub(crate) fn entry(&mut self, key: &FlowKeyV4, world: &Model) -> FlowEntry {
        let age = ticks_of_ms(self.pick(&[0, 100, 30_000]));
        let stamp = tick(now_ns()).wrapping_sub(age);
        FlowEntry {
            last_seen: stamp,
            created: stamp.wrapping_sub(age),
            tag: if self.chance(95) { key.tag() } else { self.roll() as u32 },
            creator_incarnation: self.roll() as u32,
            generation: self.pick(&[0, 1, u16::MAX]),
            revision: self.pick(&[0, 1, u16::MAX]),
            term: self.pick(&[0, 1, u16::MAX]),
            backend: self.slot(),
            state: self.pick(&[1, 1, 2, 2, 2, 3, 3, 4, 4, 0, 5, 200]),
            packets: self.pick(&[0, 1, 2, 3, u8::MAX]),
            creator: self.member(world) | self.pick(&[0, WITNESSED]),
            primary: self.member(world),
            backup: self.member(world),
            padding: [0; 3],
        }
    }

    /// What is remembered of a tuple.
    pub(crate) fn pending(&mut self) -> Pending {
        let now = tick(now_ns());
        let last_seen = now.wrapping_sub(ticks_of_ms(self.pick(&[0, 10, 1000, 70_000])));
        Pending {
            first_seen: last_seen.wrapping_sub(ticks_of_ms(self.pick(&[0, 50, 200, 5000]))),
            expected_seq: self.seq(),
            backend: self.slot(),
            kind: self.pick(&[1, 1, 1, 2, 2, 3, 3, 0]),
            packets: self.pick(&[0, 1, 2, 3, u8::MAX]),
            last_seen,
        }
    }

    fn slot(&mut self) -> u16 {
        let any = self.roll() as u16;
        let used = self.below(usize::from(BACKENDS) + 1) as u16;
        if self.chance(95) { used } else { any }
    }

    fn member(&mut self, world: &Model) -> u8 {
        let ids: Vec<u8> = world.members.keys().copied().chain([0, SELF, SELF, 77]).collect();
        self.pick(&ids)
    }

    fn seq(&mut self) -> u32 {
        self.pick(&[1000, 1001, 1001, 0, u32::MAX])
    }

    /// A packet of one of few flows, so that they meet their entries.
    pub(crate) fn of_a_flow(&mut self) -> Datagram {
        let port = 5000 + self.below(24) as u16;
        let datagram = match self.below(3) {
            0 => Datagram::udp(port, DNS),
            _ => {
                let flags = self.pick(&["S", "S", ".", ".", ".", "P.", "P.", "F.", "R", "R.", "S.", "FSRP.", ""]);
                let length = self.pick(&[0, 0, 0, 1, 20, 60]);
                Datagram::tcp(port, flags).seq(self.seq()).with_payload(&[0x5a; 60][..length])
            }
        };
        match datagram.transport {
            Transport::Tcp(_) if self.chance(20) => datagram.with_tcp_options(self.below(11)),
            _ => datagram,
        }
    }

    /// A frame: mostly of a flow, from the wire or through the tunnel; sometimes anything else; sometimes damaged.
    pub(crate) fn frame(&mut self, world: &Model) -> Vec<u8> {
        let mut frame = match self.below(20) {
            0..=1 => self.probe(world),
            2 => self.odd(),
            _ => {
                let datagram = self.of_a_flow();
                let datagram = self.varied(datagram);
                if self.chance(60) { datagram.frame() } else { datagram.tunnelled(self.sender(world), self.tos()) }
            }
        };
        match self.below(12) {
            0 => frame.truncate(ETHERNET + self.below(frame.len() - ETHERNET + 1)),
            1 => {
                for _ in 0..=self.below(3) {
                    let at = self.below(frame.len().min(ETHERNET + 64));
                    frame[at] = self.roll() as u8;
                }
            }
            2 => frame.extend([0xaa; 30].iter().take(self.below(30))),
            _ => {}
        }
        frame
    }

    fn varied(&mut self, mut datagram: Datagram) -> Datagram {
        if self.chance(30) {
            datagram = datagram.tos(self.tos()).ttl(self.pick(&[0, 1, 2, 63, 64, 128, 255]));
        }
        if self.chance(15) {
            datagram = datagram.with_ip_options(self.below(11));
        }
        match self.below(40) {
            0 => datagram.fragment(self.below(3) as u16, true),
            1 => datagram.fragment(1 + self.below(8000) as u16, false),
            2 => datagram.from(self.pick(&[[0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 5], [255; 4]])),
            3 => datagram.with_port(self.pick(&[81, 0, RINGLESS, RINGLESS, WEB, DNS])),
            4 => datagram.to(self.pick(&[[203, 0, 113, 11], OWN_ADDRESS, member_address(2)])),
            _ => datagram,
        }
    }

    fn tos(&mut self) -> u8 {
        self.pick(&[0, 1, 2, 3, 3, 0xb8, 0xbb])
    }

    /// Whom a tunnel packet comes from.
    fn sender(&mut self, world: &Model) -> [u8; 4] {
        let ids: Vec<u8> = world.members.keys().copied().collect();
        if self.chance(90) { member_address(self.pick(&ids)) } else { self.pick(&[[10, 0, 1, 200], [0; 4], VIP]) }
    }

    fn probe(&mut self, world: &Model) -> Vec<u8> {
        let ids: Vec<u8> = world.members.keys().copied().collect();
        let address = if self.chance(80) { self.pick(&ids) } else { self.member(world) };
        let from = if self.chance(80) { address } else { self.member(world) };
        match self.below(2) {
            0 => probes::frame(address, &probes::request(from, self.pick(&[SELF, SELF, SELF, 2]))),
            _ => probes::frame(address, &probes::echo(self.pick(&[SELF, SELF, SELF, 2]), from)),
        }
    }

    /// What is none of the above.
    fn odd(&mut self) -> Vec<u8> {
        let inner = self.of_a_flow();
        let protocol = self.pick(&[1, 4, 41, 47]);
        let other = Datagram::other(protocol, &inner.packet());
        match self.below(6) {
            0 => other.frame(),
            1 => other.tunnelled(member_address(SELF), 0),
            2 => Datagram::udp(5000, PROBE_PORT).to(OWN_ADDRESS).frame(),
            3 => {
                let mut frame = inner.frame();
                frame[12..ETHERNET].copy_from_slice(&self.pick(&[[0x86, 0xdd], [0x08, 0x06], [0x81, 0]]));
                frame
            }
            4 => other.from(member_address(SELF)).to(OWN_ADDRESS).with_ip_options(1).frame(),
            _ => {
                let nested = tunnel(member_address(SELF), OWN_ADDRESS, 0, &inner.packet());
                framed(OWN_MAC, ROUTER_MAC, &tunnel(member_address(SELF), OWN_ADDRESS, 0, &nested))
            }
        }
    }
}
