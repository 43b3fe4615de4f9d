//! The datapath in userspace: one member's tables as plain collections, and a packet's way through `lb-common`.
//!
//! `Model::run` does what `balance` in `lb-ebpf` does: `parse -> steer -> forward`. The differential test compares it
//! with the kernel packet by packet; the simulator runs one per member. What the agent writes are plain fields,
//! what the datapath writes has interior mutability, because a decision borrows its tables.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Arc,
};

use lb_common::{
    address::{Address, Words},
    flow::{EventV4, FlowEntry, FlowKeyV4, Pending},
    lifecycle::Lifecycle,
    liveness::{Heard, Liveness, PROBE_ECHO, Probe},
    node::{Budget, Node},
    outer::{Rewrite, delivery, hand_off},
    packet::{ETHERNET, IPV4},
    parse::{Frame as _, PROBE_OFFSET, Parsed, parse},
    rank::{MEMBERS_MAX, Owners, Seed, bit, rank, seed},
    reason::Reason,
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    steer::{Flows, Inserted, Tables, Verdict, steer},
    target::Target,
};
use zerocopy::{FromZeros as _, IntoBytes as _};

/// One member's datapath.
///
/// `pending` is no LRU here: it holds whatever is put in.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// The monotonic clock of this member's host, in nanoseconds.
    pub(crate) now_ns: u64,
    /// Index of the interface that packets arrive on.
    pub(crate) ingress: u32,
    /// `node`.
    pub(crate) node: Box<Node>,
    /// `liveness`.
    pub(crate) liveness: Liveness,
    /// `vip_filter`.
    pub(crate) vip_filter: Box<VipFilter>,
    /// `peers`: the ids of members by address.
    pub(crate) peers: BTreeMap<Address, u8>,
    /// `members`, by id.
    pub(crate) members: BTreeMap<u8, Target>,
    /// `services`, VIP marks included.
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    /// `rings`, by index.
    pub(crate) rings: BTreeMap<u32, Arc<Ring>>,
    /// `backends`, by slot.
    pub(crate) backends: BTreeMap<u16, Target>,
    /// Capacity of `flows`.
    pub(crate) flows_max: usize,
    /// `flows`.
    pub(crate) flows: RefCell<BTreeMap<FlowKeyV4, FlowEntry>>,
    /// `pending`.
    pub(crate) pending: RefCell<BTreeMap<FlowKeyV4, Pending>>,
    /// `heard`, by id.
    pub(crate) heard: RefCell<BTreeMap<u8, Heard>>,
    /// `budget` of the one CPU there is.
    pub(crate) budget: Cell<Budget>,
    /// `events`, until somebody takes them.
    pub(crate) events: RefCell<Vec<EventV4>>,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The counter that was bumped.
    pub(crate) reason: Reason,
    /// The frame as it leaves, is passed up, or is dropped.
    pub(crate) frame: Vec<u8>,
    /// The interface that it leaves by; 0 if it does not leave.
    pub(crate) way: u32,
}

impl Model {
    /// A member without peers, services and backends; with `id` 0 it is not configured at all.
    pub(crate) fn new(id: u8, address: Address) -> Self {
        let mut node: Box<Node> = Box::new(Node::new_zeroed());
        (node.id, node.address) = (id, address);
        Self {
            now_ns: 0,
            ingress: 1,
            node,
            liveness: Liveness::new_zeroed(),
            vip_filter: Box::new(VipFilter::EMPTY),
            peers: BTreeMap::new(),
            members: BTreeMap::new(),
            services: BTreeMap::new(),
            rings: BTreeMap::new(),
            backends: BTreeMap::new(),
            flows_max: usize::MAX,
            flows: RefCell::default(),
            pending: RefCell::default(),
            heard: RefCell::default(),
            budget: Cell::new(Budget::new_zeroed()),
            events: RefCell::default(),
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
        let service = Service { ring, padding: [0; 4] };
        self.services.insert(key, service);
        self.services.insert(ServiceKey::vip(key.address), service);
        self.vip_filter.insert(&key.address);
    }

    /// A packet's way.
    pub(crate) fn run(&self, frame: &[u8]) -> Outcome {
        let ended = |reason| Outcome { reason, frame: frame.to_vec(), way: 0 };
        if self.node.id == 0 {
            return ended(Reason::Unconfigured);
        }
        let packet = match parse(frame, self, self.ingress) {
            Parsed::End(reason) => return ended(reason),
            Parsed::Probe { from } => return self.reflect(frame, from),
            Parsed::Echo { from } => {
                self.take_echo(frame, from);
                return ended(Reason::EchoTaken);
            }
            Parsed::Packet(packet) => packet,
        };
        let (rewrite, target, reason) = match steer(self, &packet) {
            Verdict::End(reason) => return ended(reason),
            Verdict::Deliver(target, reason) => (delivery(&packet, &self.node, target), target, reason),
            Verdict::HandOff(target, reason) => (hand_off(&packet, &self.node, target), target, reason),
        };
        match rewrite {
            Ok(rewrite) => {
                Outcome { reason, frame: encapsulated(frame, packet.via_peer, &rewrite), way: target.next_hop.ifindex }
            }
            Err(reason) => ended(reason),
        }
    }

    fn reflect(&self, frame: &[u8], from: u8) -> Outcome {
        let probe: &Probe = frame.header(PROBE_OFFSET).expect("parsed");
        let mut heard = self.heard.borrow_mut();
        let heard = heard.entry(from).or_insert_with(Heard::new_zeroed);
        heard.probe_ns = self.now_ns;
        heard.forwarding = u64::from_be_bytes(probe.forwarding);
        heard.eligible = u64::from_be_bytes(probe.eligible);
        heard.probe_counter = u64::from_be_bytes(probe.counter);
        heard.incarnation = u32::from_be_bytes(probe.incarnation);
        heard.flags = probe.flags;
        let mut echo = frame.to_vec();
        let mut copy = |to: usize, from: usize, length: usize| {
            echo[to..to + length].copy_from_slice(&frame[from..from + length]);
        };
        let (mac, ip, ports) = (0, ETHERNET + 12, ETHERNET + IPV4);
        for (first, length) in [(mac, 6), (ip, 4), (ports, 2)] {
            copy(first, first + length, length);
            copy(first + length, first, length);
        }
        echo[ports + 6..ports + 8].fill(0);
        echo[PROBE_OFFSET + std::mem::offset_of!(Probe, kind)] = PROBE_ECHO;
        Outcome { reason: Reason::ProbeReflected, frame: echo, way: self.ingress }
    }

    fn take_echo(&self, frame: &[u8], from: u8) {
        let echo: &Probe = frame.header(PROBE_OFFSET).expect("parsed");
        let mut heard = self.heard.borrow_mut();
        let heard = heard.entry(from).or_insert_with(Heard::new_zeroed);
        heard.echo_ns = self.now_ns;
        heard.echo_counter = u64::from_be_bytes(echo.counter);
        heard.echo_sent_ns = u64::from_be_bytes(echo.sent_ns);
    }
}

/// The frame with new outer headers; one that came through the tunnel loses its old ones.
fn encapsulated(frame: &[u8], via_peer: bool, rewrite: &Rewrite) -> Vec<u8> {
    let at = if via_peer { ETHERNET + IPV4 } else { ETHERNET };
    let mut inner = frame[at..].to_vec();
    inner[1] = rewrite.inner.tos;
    inner[8] = rewrite.inner.ttl;
    inner[10..12].copy_from_slice(&rewrite.inner.checksum);
    [rewrite.ethernet.as_bytes(), &rewrite.outer, &inner].concat()
}

impl Tables for Model {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn node(&self) -> &Node {
        &self.node
    }

    fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    fn probe_heard_ns(&self, id: u8) -> u64 {
        self.heard.borrow().get(&id).map_or(0, Heard::probe_with_records_ns)
    }

    fn may_be_ours(&self, address: Words) -> bool {
        self.vip_filter.may_contain(address)
    }

    fn member_at(&self, address: &Address) -> Option<u8> {
        self.peers.get(address).copied()
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn ring(&self, ring: u32, slot: usize) -> u16 {
        self.rings.get(&ring).map_or(0, |ring| ring.slots[slot])
    }

    fn backend(&self, slot: u16) -> Option<&Target> {
        // The kernel's map is an array: within it, an element that nobody wrote is all zeros.
        static UNUSED: Target = Target::NONE;
        let in_array = u32::from(slot) < lb_common::maps::BACKENDS_MAX;
        self.backends.get(&slot).or_else(|| in_array.then_some(&UNUSED))
    }

    fn member(&self, id: u8) -> Option<&Target> {
        self.members.get(&id)
    }

    fn rank(&self, flow_hash: u64, candidates: u64) -> Owners {
        rank(flow_hash, &self.node.seeds, self.node.members, candidates)
    }

    fn take_budget(&self, class: usize) -> bool {
        let mut budget = self.budget.get();
        let taken = budget.take(class, &self.node.budgets, self.now_ns);
        self.budget.set(budget);
        taken
    }
}

impl Flows<FlowKeyV4> for Model {
    type Flow = FlowKeyV4;

    fn flow(&self, key: &FlowKeyV4) -> Option<FlowKeyV4> {
        self.flows.borrow().contains_key(key).then_some(*key)
    }

    fn entry(&self, flow: FlowKeyV4) -> FlowEntry {
        self.flows.borrow()[&flow]
    }

    fn touch(&self, flow: FlowKeyV4, tag: u32, step: Lifecycle) {
        if let Some(entry) = self.flows.borrow_mut().get_mut(&flow)
            && entry.tag == tag
        {
            *entry = FlowEntry {
                last_seen: step.last_seen,
                revision: step.revision,
                state: step.state,
                packets: step.packets,
                ..*entry
            };
        }
    }

    fn insert(&self, key: &FlowKeyV4, entry: &FlowEntry) -> Inserted {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            Inserted::Exists
        } else if flows.len() >= self.flows_max {
            Inserted::Full
        } else {
            flows.insert(*key, *entry);
            Inserted::Yes
        }
    }

    fn replace(&self, key: &FlowKeyV4, entry: &FlowEntry) {
        if let Some(old) = self.flows.borrow_mut().get_mut(key) {
            *old = *entry;
        }
    }

    fn pending(&self, key: &FlowKeyV4) -> Option<Pending> {
        self.pending.borrow().get(key).copied()
    }

    fn set_pending(&self, key: &FlowKeyV4, pending: &Pending) {
        self.pending.borrow_mut().insert(*key, *pending);
    }

    fn emit(&self, key: &FlowKeyV4, entry: &FlowEntry) {
        self.events.borrow_mut().push(EventV4 { key: *key, entry: *entry });
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        address::mapped,
        flow::{FlowKey as _, STATE_ESTABLISHED, TCP},
    };

    use super::*;

    const KEY: FlowKeyV4 = FlowKeyV4 {
        source: [192, 0, 2, 1],
        destination: [203, 0, 113, 10],
        source_port: [0x80, 0],
        destination_port: [0, 80],
        protocol: TCP,
        padding: [0; 3],
    };

    #[test]
    fn a_recycled_element_is_not_touched() {
        let model = Model::new(1, mapped([10, 0, 1, 11]));
        let entry = FlowEntry { tag: KEY.tag(), state: STATE_ESTABLISHED, ..FlowEntry::new_zeroed() };
        assert_eq!(model.insert(&KEY, &entry), Inserted::Yes);
        model.touch(KEY, KEY.tag() ^ 1, Lifecycle { last_seen: 9, revision: 9, state: 9, packets: 9 });
        assert_eq!(model.entry(KEY), entry);
    }
}
