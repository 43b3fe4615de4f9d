//! A member's datapath: the maps, and the real `steer` over them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
};

use lb_common::{
    address::{Address, Words, words},
    flow::{FlowEntry, FlowKey as _, Fragment, PENDING_SYN, Pending},
    lifecycle::Lifecycle,
    liveness::{Heard, Liveness, PROBE_REQUEST, Probe},
    node::{Budget, NODE_DIRECT},
    outer::{Purpose, encapsulate},
    packet::{OuterFields, Part},
    rank::{Owners, bit, rank},
    reason::Reason,
    ring::ring_slot,
    service::{Service, ServiceKey},
    steer::{self, Flows, Inserted, Tables, Verdict},
    target::{TARGET_DOWN, Target},
};
use lb_userspace::core::{self, BackendSlot, Key, MapOp};
use zerocopy::FromZeros;

use crate::{
    elements::Elements,
    lru::Lru,
    mutation::Mutation,
    plan::Sizes,
    rng::Rng,
    segment::{Role, Segment},
};

/// The maps of one member, as they outlive its agent.
pub(crate) struct Datapath {
    /// What the agent's edge has installed.
    pub(crate) installed: core::Tables,
    /// The one element of `liveness`.
    pub(crate) liveness: Liveness,
    /// `heard`, by member id.
    pub(crate) heard: BTreeMap<u8, Heard>,
    /// `flows`.
    pub(crate) flows: RefCell<Elements>,
    /// The event ring.
    pub(crate) events: RefCell<VecDeque<(Key, FlowEntry)>>,
    /// Events that found the ring full.
    pub(crate) events_lost: Cell<u64>,
    /// Insertions that found the table full.
    pub(crate) refused: Cell<u64>,
    /// Agent's writes that fell between XDP's read and XDP's write.
    pub(crate) interleaved: Cell<u64>,
    pending: RefCell<Lru<Pending>>,
    fragments: RefCell<Lru<Fragment>>,
    members: BTreeMap<u8, Target>,
    backends: BTreeMap<u16, Target>,
    peers: BTreeMap<Address, u8>,
    budget: RefCell<Budget>,
    now_ns: u64,
    rng: RefCell<Rng>,
    events_max: usize,
    mutation: Mutation,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To this server.
    Backend(Address),
    /// To this member, with this traffic class in the outer header.
    Member(u8, OuterFields),
    /// Nowhere.
    Dropped,
}

impl Datapath {
    /// A datapath that was just loaded.
    pub(crate) fn new(sizes: Sizes, mutation: Mutation, rng: Rng) -> Self {
        Self {
            installed: core::Tables::empty(),
            liveness: Liveness::new_zeroed(),
            heard: BTreeMap::new(),
            flows: RefCell::new(Elements::new(sizes.flows)),
            events: RefCell::default(),
            events_lost: Cell::new(0),
            refused: Cell::new(0),
            interleaved: Cell::new(0),
            pending: RefCell::new(Lru::new(sizes.pending)),
            fragments: RefCell::new(Lru::new(sizes.pending)),
            members: BTreeMap::new(),
            backends: BTreeMap::new(),
            peers: BTreeMap::new(),
            budget: RefCell::new(Budget::new_zeroed()),
            now_ns: 0,
            rng: RefCell::new(rng),
            events_max: sizes.events,
            mutation,
        }
    }

    /// Decides on a packet.
    pub(crate) fn steer(&mut self, now_ns: u64, segment: &Segment) -> (Way, Reason) {
        self.now_ns = now_ns;
        if self.installed.node.id == 0 {
            return (Way::Dropped, Reason::Unconfigured);
        }
        if !self.may_be_ours(words(segment.flow.service().address)) {
            return (Way::Dropped, Reason::NotOurs);
        }
        let mut packet = segment.packet;
        match self.mutation {
            Mutation::HandsOffTunnelPackets => packet.via_peer = false,
            Mutation::OverlooksMarks => packet.outer.tos = 0,
            Mutation::TakesQuotesForPackets => packet.part = Part::Whole,
            _ => {}
        }
        let Verdict { way, reason, .. } = steer::steer(&*self, &mut packet);
        let way = match way {
            steer::Way::Deliver(target, _) => Way::Backend(target.address),
            steer::Way::HandOff(target, id) => {
                let rewrite = encapsulate(&segment.packet, Purpose::of(reason), target);
                let tos = rewrite.map(|rewrite| rewrite.outer_v4(&self.installed.node, target)[0].to_ne_bytes()[1]);
                tos.map_or(Way::Dropped, |tos| Way::Member(id, OuterFields { tos }))
            }
            steer::Way::End => Way::Dropped,
        };
        self.spoil(segment);
        let loses = self.mutation == Mutation::LosesKnownPackets && self.installed.node.id == 1;
        let is_lost = loses && self.flows.borrow().find(&segment.flow).is_some();
        (if is_lost { Way::Dropped } else { way }, reason)
    }

    /// Planted: what a packet must not do to its flow's entry.
    fn spoil(&self, segment: &Segment) {
        let key = &segment.flow;
        let mut flows = self.flows.borrow_mut();
        let deletes = match self.mutation {
            Mutation::FinDeletes => segment.role == Role::Fin,
            Mutation::RstDeletes => segment.role == Role::Rst,
            _ => false,
        };
        if deletes {
            flows.remove(key);
        }
        if self.mutation == Mutation::SynPlacesAnew
            && segment.role == Role::Syn
            && let Some(entry) = flows.get(key)
            && let Some(service) = self.service(&key.service())
        {
            let backend = self.ring(service.ring, ring_slot(key.hash(&self.installed.node.hash_key)));
            flows.replace(key, &FlowEntry { backend, generation: entry.generation + 1, ..entry });
        }
    }

    /// A probe or an echo came in: stamps it, and turns a request round.
    pub(crate) fn take_probe(&mut self, now_ns: u64, from: u8, probe: &Probe) -> Option<Probe> {
        if self.installed.node.id == 0 {
            return None;
        }
        let node = &self.installed.node;
        // As `parse` has it: whose address it comes from, and whom it is for.
        let ends = if probe.kind == PROBE_REQUEST { (probe.from, probe.to) } else { (probe.to, probe.from) };
        if ends != (from, node.id) {
            return None;
        }
        let (_, echo) = self.heard.entry(from).or_insert_with(Heard::new_zeroed).take(node, from, probe, now_ns);
        echo.filter(|_| self.mutation != Mutation::NeverAnswersProbes || node.id != 1)
    }

    /// Makes the tables so, step by step as the agent's edge would.
    pub(crate) fn install(&mut self, desired: core::Tables) {
        for op in core::plan(&desired, &self.installed) {
            self.apply(&op);
        }
        self.installed = desired;
        if self.mutation == Mutation::ForgetsDirect && self.installed.node.id == 1 {
            self.installed.node.flags &= !NODE_DIRECT;
        }
    }

    fn apply(&mut self, op: &MapOp) {
        match *op {
            MapOp::SetMember { id, address, previous } => {
                if let Some(previous) = previous {
                    self.peers.remove(&previous);
                }
                self.peers.insert(address, id);
                self.members.insert(id, reachable(BackendSlot { address, ring: 0, state: 1 }));
            }
            MapOp::ClearMember { id, address } => {
                self.members.remove(&id);
                self.peers.remove(&address);
            }
            MapOp::SetBackend { slot, backend } => {
                self.backends.insert(slot, reachable(backend));
            }
            MapOp::ClearBackend { slot } => {
                self.backends.remove(&slot);
            }
            // Read from `installed`, which the caller replaces.
            MapOp::SetRing { .. }
            | MapOp::ClearRing { .. }
            | MapOp::SetService { .. }
            | MapOp::RemoveService { .. }
            | MapOp::SetPeerPrefix { .. }
            | MapOp::RemovePeerPrefix { .. }
            | MapOp::SetNode(_)
            | MapOp::SetVipFilter(_) => {}
        }
    }

    /// The backend that `slot` names now.
    pub(crate) fn backend_address(&self, slot: u16) -> Option<Address> {
        self.backends.get(&slot).map(|target| target.address)
    }

    /// All backends, by slot.
    pub(crate) fn targets(&self) -> BTreeMap<u16, Target> {
        self.backends.clone()
    }

    /// Whether it remembers how a flow began.
    pub(crate) fn remembers_syn(&self, key: &Key) -> bool {
        self.pending.borrow().get(key).is_some_and(|pending| pending.kind == PENDING_SYN)
    }

    /// Whether it takes a peer to be alive.
    pub(crate) fn sees(&self, id: u8) -> bool {
        let vouched = if self.liveness.lease_until_ns < self.now_ns { self.heard_lately() } else { u64::MAX };
        self.liveness.forwarding & vouched & bit(id) != 0
    }

    /// Where a flow without an entry goes: the backend in slot `at` of the service's ring.
    pub(crate) fn stateless(&self, service: &ServiceKey, at: usize) -> Option<Address> {
        self.backend_address(self.ring(self.service(service)?.ring, at))
    }

    /// Whether `slot` is in service for the packets that pass here.
    pub(crate) fn is_in_service(&self, slot: u16) -> bool {
        self.backends.get(&slot).is_some_and(Target::is_in_service)
    }

    /// Whether the backend in `slot` is down: its flows stay, and a packet that may begin another takes the tuple elsewhere.
    pub(crate) fn is_down(&self, slot: u16) -> bool {
        self.backends.get(&slot).is_some_and(|target| target.state == TARGET_DOWN)
    }

    /// Whether a server is down for any VIP.
    pub(crate) fn has_down(&self, server: Address) -> bool {
        self.backends.values().any(|target| target.address == server && target.state == TARGET_DOWN)
    }

    /// How often what precedes an entry was written.
    pub(crate) fn remembered(&self) -> u64 {
        self.pending.borrow().writes()
    }

    /// What a restarted agent finds.
    pub(crate) fn adopted(&self) -> core::Adopted {
        core::Adopted {
            services: self.installed.services.iter().map(|(key, service)| (*key, *service)).collect(),
            backends: self.backends.iter().map(|(slot, target)| (*slot, *target)).collect(),
        }
    }

    /// A waiting write of the agent may come just now, between XDP's read and its write.
    fn interleave(&self, key: &Key) {
        let mut flows = self.flows.borrow_mut();
        if flows.waits_for(key) && self.rng.borrow_mut().chance(700) {
            flows.write_waiting(key);
            self.interleaved.set(self.interleaved.get() + 1);
        }
    }
}

/// A target whose next hop is known.
fn reachable(slot: BackendSlot) -> Target {
    let mut target = Target { address: slot.address, ring: slot.ring, state: slot.state, ..Target::NONE };
    target.next_hop.ifindex = 1;
    target.next_hop.mtu = 1500;
    target
}

impl Tables for Datapath {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn node(&self) -> &lb_common::node::Node {
        &self.installed.node
    }

    fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    fn probe_heard_ns(&self, id: u8) -> u64 {
        self.heard.get(&id).map_or(0, Heard::probe_with_records_ns)
    }

    fn may_be_ours(&self, address: Words) -> bool {
        self.installed.vip_filter.may_contain(address)
    }

    fn member_at(&self, address: &Address) -> Option<u8> {
        self.peers.get(address).copied()
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.installed.services.get(key).copied()
    }

    fn ring(&self, ring: u32, slot: usize) -> u16 {
        let turned = if self.mutation == Mutation::TurnsOneRing && self.installed.node.id == 1 { 1 } else { 0 };
        let Some(ring) = self.installed.rings.get(&ring) else { return 0 };
        ring.slots.get((slot + turned) % lb_common::ring::RING_SLOTS).copied().unwrap_or(0)
    }

    fn backend(&self, slot: u16) -> Option<&Target> {
        self.backends.get(&slot)
    }

    fn member(&self, id: u8) -> Option<&Target> {
        self.members.get(&id)
    }

    fn rank(&self, flow_hash: u64, candidates: u64) -> Owners {
        rank(flow_hash, &self.installed.node.seeds, self.installed.node.members, candidates)
    }

    fn take_budget(&self, class: usize) -> bool {
        self.budget.borrow_mut().take(class, &self.liveness.budgets, self.now_ns)
    }
}

impl Flows<Key> for Datapath {
    type Flow = usize;

    fn flow(&self, key: &Key) -> Option<usize> {
        let found = self.flows.borrow().find(key)?;
        let (entry, me) = (self.entry(found), self.installed.node.id);
        let hides = match self.mutation {
            Mutation::RepicksOnFailover => (self.liveness.forwarding | bit(me)) & bit(entry.primary) == 0,
            Mutation::HidesPeersRecords => entry.creator_id() != me,
            _ => false,
        };
        (!hides).then_some(found)
    }

    fn entry(&self, flow: usize) -> FlowEntry {
        self.flows.borrow().entry(flow)
    }

    fn touch(&self, flow: usize, tag: u32, step: Lifecycle) {
        let key = self.flows.borrow().key(flow);
        self.interleave(&key);
        self.flows.borrow_mut().touch(flow, tag, step);
    }

    fn insert(&self, key: &Key, entry: &FlowEntry) -> Inserted {
        self.interleave(key);
        let mut flows = self.flows.borrow_mut();
        let mut result = flows.insert(key, entry);
        if result == Inserted::Full {
            self.refused.set(self.refused.get() + 1);
            if self.mutation == Mutation::EvictsForNewcomers {
                flows.evict_one(&mut self.rng.borrow_mut());
                result = flows.insert(key, entry);
            }
        }
        result
    }

    fn replace(&self, key: &Key, entry: &FlowEntry) {
        self.interleave(key);
        self.flows.borrow_mut().replace(key, entry);
    }

    fn pending(&self, key: &Key) -> Option<Pending> {
        self.pending.borrow().get(key)
    }

    fn set_pending(&self, key: &Key, pending: &Pending) {
        self.pending.borrow_mut().set(key, *pending);
    }

    fn fragment(&self, datagram: &Key) -> Option<Fragment> {
        self.fragments.borrow().get(datagram)
    }

    fn set_fragment(&self, datagram: &Key, fragment: &Fragment) {
        self.fragments.borrow_mut().set(datagram, *fragment);
    }

    fn emit(&self, key: &Key, entry: &FlowEntry) {
        let mut events = self.events.borrow_mut();
        if events.len() >= self.events_max {
            self.events_lost.set(self.events_lost.get() + 1);
        } else {
            events.push_back((*key, *entry));
        }
    }
}
