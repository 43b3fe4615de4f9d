//! `lb-common`'s tables as plain collections.
//!
//! What the agent writes are plain fields; what the datapath writes has interior mutability, because a decision borrows
//! its tables.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    hash::Hash,
    sync::Arc,
};

use lb_common::{
    address::{Address, Words},
    flow::{FlowEntry, FlowKey, FlowKeyV4, FlowKeyV6, Fragment, Pending},
    lifecycle::Lifecycle,
    liveness::{Heard, Liveness},
    maps::{BACKENDS_MAX, MEMBER_SLOTS},
    node::{Budget, NODE_PEER_PREFIXES, Node},
    rank::{MEMBERS_MAX, Owners, Seed, bit, rank, seed},
    reason::{Counter, ServiceCounters},
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    steer::{Flows, Inserted, Tables},
    target::{NextHop, Target},
};
use zerocopy::FromZeros as _;

/// One member's datapath.
///
/// `pending` and `fragments` are no LRUs here: they hold whatever is put in.
#[derive(Clone, Debug)]
pub struct Model {
    /// The monotonic clock of this member's host, in nanoseconds.
    pub now_ns: u64,
    /// Index of the interface that packets arrive on.
    pub ingress: u32,
    /// `node`.
    pub node: Box<Node>,
    /// `liveness`.
    pub liveness: Liveness,
    /// `vip_filter`.
    pub vip_filter: Box<VipFilter>,
    /// `peers`: the ids of members by address.
    pub peers: BTreeMap<Address, u8>,
    /// `peer_prefixes`: the ids of members by prefix and its length; the length counts the 96 bits in front of a mapped address.
    pub prefixes: BTreeMap<(Address, u32), u8>,
    /// `gateways`, by family.
    pub gateways: [NextHop; 2],
    /// `devices`: the interfaces that packets may leave by.
    pub devices: BTreeSet<u32>,
    /// `members`, by id.
    pub members: BTreeMap<u8, Target>,
    /// `services`, VIP marks included.
    pub services: BTreeMap<ServiceKey, Service>,
    /// `rings`, by index.
    pub rings: BTreeMap<u32, Arc<Ring>>,
    /// `backends`, by slot.
    pub backends: BTreeMap<u16, Target>,
    /// Capacity of `flows` and of `flows_v6`.
    pub flows_max: usize,
    /// Capacity of `service_count`.
    pub services_max: u32,
    /// What packets of IPv4 have left behind.
    pub v4: RefCell<Learned<FlowKeyV4>>,
    /// What packets of IPv6 have left behind.
    pub v6: RefCell<Learned<FlowKeyV6>>,
    /// `heard`, by id.
    pub heard: RefCell<BTreeMap<u8, Heard>>,
    /// `budget` of the one CPU there is.
    pub budget: Cell<Budget>,
    /// `events`, until somebody takes them.
    pub events: RefCell<Vec<Event>>,
    /// `service_count`, `backend_count` and `member_count`.
    pub counts: RefCell<Counts>,
}

/// What packets of one family have left behind.
#[derive(Clone, Debug)]
pub struct Learned<K> {
    /// `flows`.
    pub flows: HashMap<K, FlowEntry>,
    /// `pending`.
    pub pending: HashMap<K, Pending>,
    /// `fragments`.
    pub fragments: HashMap<K, Fragment>,
    /// What was written since somebody looked.
    pub written: Vec<Written<K>>,
}

/// An element that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written<K> {
    /// Of `flows`.
    Flow(K),
    /// Of `pending`.
    Pending(K),
    /// Of `fragments`.
    Fragment(K),
}

/// What the agent is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of an IPv4 flow.
    V4(FlowKeyV4, FlowEntry),
    /// Of an IPv6 flow.
    V6(FlowKeyV6, FlowEntry),
}

/// Counters beside the one per reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `service_count`, by ring.
    pub services: BTreeMap<u32, ServiceCounters>,
    /// `backend_count`, by slot.
    pub backends: BTreeMap<u16, Counter>,
    /// `member_count`, by id.
    pub members: BTreeMap<u8, Counter>,
}

/// An address family.
pub trait Family: FlowKey + Hash + Ord + Debug {
    /// What its packets have left behind.
    fn learned(model: &Model) -> &RefCell<Learned<Self>>;
    /// What the agent is told.
    fn event(self, entry: FlowEntry) -> Event;
}

impl Family for FlowKeyV4 {
    fn learned(model: &Model) -> &RefCell<Learned<Self>> {
        &model.v4
    }

    fn event(self, entry: FlowEntry) -> Event {
        Event::V4(self, entry)
    }
}

impl Family for FlowKeyV6 {
    fn learned(model: &Model) -> &RefCell<Learned<Self>> {
        &model.v6
    }

    fn event(self, entry: FlowEntry) -> Event {
        Event::V6(self, entry)
    }
}

impl<K> Default for Learned<K> {
    fn default() -> Self {
        Self { flows: HashMap::new(), pending: HashMap::new(), fragments: HashMap::new(), written: Vec::new() }
    }
}

impl Model {
    /// A member without addresses, peers, services and backends; with `id` 0 it is not configured at all.
    pub fn new(id: u8) -> Self {
        let mut node: Box<Node> = Box::new(Node::new_zeroed());
        node.id = id;
        Self {
            now_ns: 0,
            ingress: 1,
            node,
            liveness: Liveness::new_zeroed(),
            vip_filter: Box::new(VipFilter::EMPTY),
            peers: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            gateways: [NextHop::NONE; 2],
            devices: BTreeSet::new(),
            members: BTreeMap::new(),
            services: BTreeMap::new(),
            rings: BTreeMap::new(),
            backends: BTreeMap::new(),
            flows_max: usize::MAX,
            services_max: u32::MAX,
            v4: RefCell::default(),
            v6: RefCell::default(),
            heard: RefCell::default(),
            budget: Cell::new(Budget::new_zeroed()),
            events: RefCell::default(),
            counts: RefCell::default(),
        }
    }

    /// Configures the members with these ids; `members` and `peers` are the caller's.
    pub fn set_member_ids(&mut self, ids: impl IntoIterator<Item = u8>) {
        self.node.seeds = [Seed::new_zeroed(); MEMBERS_MAX];
        (self.node.configured, self.node.members) = (0, 0);
        for (slot, id) in self.node.seeds.iter_mut().zip(ids) {
            *slot = Seed { seed: seed(id), id: u64::from(id) };
            self.node.configured |= bit(id);
            self.node.members += 1;
        }
    }

    /// Gives the member an address by family, and adds it to the filter.
    pub fn set_address(&mut self, family: usize, address: Address) {
        self.node.addresses[family] = address;
        self.vip_filter.insert(&address);
    }

    /// Adds a service, its VIP's mark, and its VIP to the filter.
    pub fn add_service(&mut self, key: ServiceKey, ring: u32) {
        self.services.insert(key, Service { ring, flags: 0, padding: [0; 3] });
        self.services.entry(ServiceKey::vip(key.address)).or_insert(Service { ring: 0, flags: 0, padding: [0; 3] });
        self.vip_filter.insert(&key.address);
    }
}

/// An element of an array that nobody wrote.
static UNUSED: Target = Target::NONE;

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
        let exact = self.peers.get(address).copied();
        if exact.is_none() && self.node.flags & NODE_PEER_PREFIXES != 0 {
            return longest_match(&self.prefixes, address);
        }
        exact
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn ring(&self, ring: u32, slot: usize) -> u16 {
        self.rings.get(&ring).map_or(0, |ring| ring.slots[slot])
    }

    fn backend(&self, slot: u16) -> Option<&Target> {
        let is_element = u32::from(slot) < BACKENDS_MAX;
        self.backends.get(&slot).or_else(|| is_element.then_some(&UNUSED))
    }

    fn member(&self, id: u8) -> Option<&Target> {
        let is_element = u32::from(id) < MEMBER_SLOTS;
        self.members.get(&id).or_else(|| is_element.then_some(&UNUSED))
    }

    fn rank(&self, flow_hash: u64, candidates: u64) -> Owners {
        rank(flow_hash, &self.node.seeds, self.node.members, candidates)
    }

    fn take_budget(&self, class: usize) -> bool {
        let mut budget = self.budget.get();
        let is_taken = budget.take(class, &self.liveness.budgets, self.now_ns);
        self.budget.set(budget);
        is_taken
    }
}

/// The member of the longest prefix that holds `address`.
fn longest_match(prefixes: &BTreeMap<(Address, u32), u8>, address: &Address) -> Option<u8> {
    let bits = u128::from_be_bytes(*address);
    prefixes
        .iter()
        .filter(|((prefix, length), _)| {
            let differing = bits ^ u128::from_be_bytes(*prefix);
            *length == 0 || differing >> (128 - length) == 0
        })
        .max_by_key(|((_, length), _)| *length)
        .map(|(_, id)| *id)
}

impl<K: Family> Flows<K> for Model {
    type Flow = K;

    fn flow(&self, key: &K) -> Option<K> {
        K::learned(self).borrow().flows.contains_key(key).then_some(*key)
    }

    fn entry(&self, flow: K) -> FlowEntry {
        K::learned(self).borrow().flows[&flow]
    }

    fn touch(&self, flow: K, tag: u32, step: Lifecycle) {
        let mut learned = K::learned(self).borrow_mut();
        if let Some(entry) = learned.flows.get_mut(&flow)
            && entry.tag == tag
        {
            let Lifecycle { last_seen, revision, state, packets } = step;
            *entry = FlowEntry { last_seen, revision, state, packets, ..*entry };
            learned.written.push(Written::Flow(flow));
        }
    }

    fn insert(&self, key: &K, entry: &FlowEntry) -> Inserted {
        let mut learned = K::learned(self).borrow_mut();
        if learned.flows.contains_key(key) {
            Inserted::Exists
        } else if learned.flows.len() >= self.flows_max {
            Inserted::Full
        } else {
            learned.flows.insert(*key, *entry);
            learned.written.push(Written::Flow(*key));
            Inserted::Yes
        }
    }

    fn replace(&self, key: &K, entry: &FlowEntry) {
        let mut learned = K::learned(self).borrow_mut();
        if let Some(old) = learned.flows.get_mut(key) {
            *old = *entry;
            learned.written.push(Written::Flow(*key));
        }
    }

    fn pending(&self, key: &K) -> Option<Pending> {
        K::learned(self).borrow().pending.get(key).copied()
    }

    fn set_pending(&self, key: &K, pending: &Pending) {
        let mut learned = K::learned(self).borrow_mut();
        learned.pending.insert(*key, *pending);
        learned.written.push(Written::Pending(*key));
    }

    fn fragment(&self, datagram: &K) -> Option<Fragment> {
        K::learned(self).borrow().fragments.get(datagram).copied()
    }

    fn set_fragment(&self, datagram: &K, fragment: &Fragment) {
        let mut learned = K::learned(self).borrow_mut();
        learned.fragments.insert(*datagram, *fragment);
        learned.written.push(Written::Fragment(*datagram));
    }

    fn emit(&self, key: &K, entry: &FlowEntry) {
        self.events.borrow_mut().push(key.event(*entry));
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        address::mapped,
        flow::{STATE_ESTABLISHED, TCP},
    };

    use super::*;

    #[test]
    fn a_recycled_element_is_not_touched() {
        let key = FlowKeyV4::new([192, 0, 2, 1], [203, 0, 113, 10], [0x80, 0], [0, 80], TCP);
        let model = Model::new(1);
        let entry = FlowEntry { tag: key.tag(), state: STATE_ESTABLISHED, ..FlowEntry::new_zeroed() };
        assert_eq!(model.insert(&key, &entry), Inserted::Yes);
        model.touch(key, key.tag() ^ 1, Lifecycle { last_seen: 9, revision: 9, state: 9, packets: 9 });
        assert_eq!(model.entry(key), entry);
    }

    #[test]
    fn the_longest_prefix_counts() {
        let prefixes = [((mapped([10, 0, 0, 0]), 104), 2), ((mapped([10, 0, 1, 0]), 120), 3), (([0x20; 16], 8), 4)];
        let prefixes = BTreeMap::from(prefixes);
        assert_eq!(longest_match(&prefixes, &mapped([10, 9, 9, 9])), Some(2));
        assert_eq!(longest_match(&prefixes, &mapped([10, 0, 1, 9])), Some(3));
        assert_eq!(longest_match(&prefixes, &[0x20; 16]), Some(4));
        assert_eq!(longest_match(&prefixes, &mapped([11, 0, 1, 9])), None);
    }
}
