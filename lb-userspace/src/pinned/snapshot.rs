//! The tables of one decision, copied: what `steer` needs to decide on one flow, at one moment.

use lb_common::{
    address::{Address, Words, words},
    flow::{FlowEntry, FlowKey, FlowKeyV4, FlowKeyV6, Fragment, Pending},
    lifecycle::Lifecycle,
    liveness::{Heard, Liveness},
    maps::PREVIOUS_RINGS,
    node::Node,
    rank::{Owners, rank},
    ring::{RING_SLOTS, Ring},
    service::{Service, ServiceKey},
    steer::{Flows, Inserted, Tables},
    target::Target,
};

use super::{Pinned, PinnedError};
use crate::core::Key;

/// A copy of what the datapath would look at for one flow. What a decision would write is not written.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken: `CLOCK_MONOTONIC`, in nanoseconds.
    pub now_ns: u64,
    /// This member.
    pub node: Node,
    /// The agent's masks and lease.
    pub liveness: Liveness,
    /// What was last heard of the members, by id.
    pub heard: Vec<Heard>,
    /// The members, by id.
    pub members: Vec<Target>,
    /// The backends, by slot.
    pub backends: Vec<Target>,
    /// The flow that the rest is about.
    pub key: Key,
    /// Whether the flow's destination is a VIP.
    pub is_vip: bool,
    /// Its service, and under which key it was found: of the flow's port, or of every port.
    pub service: Option<(ServiceKey, Service)>,
    /// Its service's ring.
    pub ring: Option<Box<Ring>>,
    /// That of before the last change of servers.
    pub previous_ring: Option<Box<Ring>>,
    /// Its entry.
    pub entry: Option<FlowEntry>,
    /// What is remembered of it without an entry.
    pub pending: Option<Pending>,
}

impl Snapshot {
    /// Copies what concerns the flow `key`; `clock` is asked last, so that nothing is younger than `now_ns`.
    ///
    /// # Errors
    ///
    /// Those of reading the maps.
    pub fn take(pinned: &Pinned, key: Key, clock: impl Fn() -> u64) -> Result<Self, PinnedError> {
        let mut service = None;
        for candidate in [key.service(), key.service().any_port()] {
            if service.is_none() {
                service = pinned.service(&candidate)?.map(|found| (candidate, found));
            }
        }
        let (ring, previous_ring) = match service {
            Some((_, service)) => (pinned.ring(service.ring)?, pinned.ring(service.ring + PREVIOUS_RINGS)?),
            None => (None, None),
        };
        let mut snapshot = Self {
            now_ns: 0,
            node: pinned.node()?,
            liveness: pinned.liveness()?,
            heard: pinned.heard()?,
            members: pinned.members()?,
            backends: pinned.backends()?,
            key,
            is_vip: pinned.is_vip(key.service().address)?,
            service,
            ring: ring.map(Box::new),
            previous_ring: previous_ring.map(Box::new),
            entry: pinned.flow(&key)?,
            pending: pinned.pending(&key)?,
        };
        snapshot.now_ns = clock();
        Ok(snapshot)
    }
}

impl Tables for Snapshot {
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
        self.heard.get(usize::from(id)).map_or(0, |heard| heard.probe_ns)
    }

    fn may_be_ours(&self, address: Words) -> bool {
        self.is_vip && address == words(self.key.service().address)
    }

    fn member_at(&self, address: &Address) -> Option<u8> {
        let mut members = (0_u8..).zip(&self.members);
        members.find(|(_, member)| member.state != 0 && member.address == *address).map(|(id, _)| id)
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        if *key == ServiceKey::vip(self.key.service().address) {
            return self.is_vip.then_some(Service { ring: 0, flags: 0, padding: [0; 3] });
        }
        self.service.filter(|(found, _)| found == key).map(|(_, service)| service)
    }

    fn ring(&self, ring: u32, slot: usize) -> u16 {
        let Some((_, service)) = self.service.filter(|_| slot < RING_SLOTS) else { return 0 };
        let found = match ring.checked_sub(service.ring) {
            Some(0) => &self.ring,
            Some(PREVIOUS_RINGS) => &self.previous_ring,
            _ => &None,
        };
        found.as_ref().map_or(0, |ring| ring.slots[slot])
    }

    fn backend(&self, slot: u16) -> Option<&Target> {
        self.backends.get(usize::from(slot))
    }

    fn member(&self, id: u8) -> Option<&Target> {
        self.members.get(usize::from(id))
    }

    fn rank(&self, flow_hash: u64, candidates: u64) -> Owners {
        rank(flow_hash, &self.node.seeds, self.node.members, candidates)
    }

    fn take_budget(&self, _class: usize) -> bool {
        true
    }
}

macro_rules! flows {
    ($key:ty) => {
        impl Flows<$key> for Snapshot {
            type Flow = FlowEntry;

            fn flow(&self, key: &$key) -> Option<FlowEntry> {
                self.entry.filter(|_| Key::from(*key) == self.key)
            }

            fn entry(&self, flow: FlowEntry) -> FlowEntry {
                flow
            }

            fn touch(&self, _flow: FlowEntry, _tag: u32, _step: Lifecycle) {}

            fn insert(&self, _key: &$key, _entry: &FlowEntry) -> Inserted {
                Inserted::Yes
            }

            fn replace(&self, _key: &$key, _entry: &FlowEntry) {}

            fn pending(&self, key: &$key) -> Option<Pending> {
                self.pending.filter(|_| Key::from(*key) == self.key)
            }

            fn set_pending(&self, _key: &$key, _pending: &Pending) {}

            fn fragment(&self, _datagram: &$key) -> Option<Fragment> {
                None
            }

            fn set_fragment(&self, _datagram: &$key, _fragment: &Fragment) {}

            fn emit(&self, _key: &$key, _entry: &FlowEntry) {}
        }
    };
}
flows!(FlowKeyV4);
flows!(FlowKeyV6);
