//! What the datapath's tables shall hold, and the steps from what they hold to that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::{
    address::Address,
    node::Node,
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::{TARGET_SERVING, Target},
};
use zerocopy::FromZeros;

use super::view::Prefix;

/// Contents of the tables that configuration fills: as desired, or as installed.
///
/// Next hops are not in it: the driver keeps those of members and backends as netlink tells them.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The one element of `node`; `cluster_ifindex` is left 0 for the driver to fill. All zeros when not configured.
    pub node: Node,
    /// Address by member id: `members`, and turned round `peers`.
    pub members: BTreeMap<u8, Address>,
    /// `peer_prefixes`: the member whose hand-offs come from a prefix.
    pub peer_prefixes: BTreeMap<Prefix, u8>,
    /// `backends` by slot.
    pub backends: BTreeMap<u16, BackendSlot>,
    /// `rings` by ring index.
    pub rings: BTreeMap<u32, Arc<Ring>>,
    /// `services`, VIP marks included.
    pub services: BTreeMap<ServiceKey, Service>,
    /// `vip_filter`.
    pub vip_filter: VipFilter,
}

/// An element of `backends` without its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSlot {
    /// Where packets are sent.
    pub address: Address,
    /// Its service, as `Service::ring`.
    pub ring: u32,
    /// One of `TARGET_*`.
    pub state: u8,
}

/// One write to the tables.
#[derive(Clone, Debug)]
pub enum MapOp {
    /// Write `members` (keeping a next hop of the same address) and `peers`.
    SetMember {
        /// The member.
        id: u8,
        /// Its address.
        address: Address,
        /// An address that it had and nobody has any more, to be taken out of `peers`.
        previous: Option<Address>,
    },
    /// Clear the element of `members`, take the address out of `peers`.
    ClearMember {
        /// The member.
        id: u8,
        /// Its address.
        address: Address,
    },
    /// Insert or overwrite an element of `peer_prefixes`.
    SetPeerPrefix {
        /// The prefix.
        prefix: Prefix,
        /// Whose it is.
        id: u8,
    },
    /// Remove an element of `peer_prefixes`.
    RemovePeerPrefix {
        /// The prefix.
        prefix: Prefix,
    },
    /// Write `backends`, keeping a next hop of the same address.
    SetBackend {
        /// The local slot.
        slot: u16,
        /// What it shall hold.
        backend: BackendSlot,
    },
    /// Clear the element of `backends`.
    ClearBackend {
        /// The local slot.
        slot: u16,
    },
    /// Write a ring aside and swap it in whole.
    SetRing {
        /// Index in `rings`.
        index: u32,
        /// The ring.
        ring: Arc<Ring>,
    },
    /// Remove a ring.
    ClearRing {
        /// Index in `rings`.
        index: u32,
    },
    /// Insert or overwrite an element of `services`.
    SetService {
        /// Key.
        key: ServiceKey,
        /// Value.
        service: Service,
    },
    /// Remove an element of `services`.
    RemoveService {
        /// Key.
        key: ServiceKey,
    },
    /// Write `node`.
    SetNode(Box<Node>),
    /// Write `vip_filter`.
    SetVipFilter(Box<VipFilter>),
}

impl Tables {
    /// The tables of a datapath that was just loaded.
    pub fn empty() -> Self {
        Self {
            node: Node::new_zeroed(),
            members: BTreeMap::new(),
            peer_prefixes: BTreeMap::new(),
            backends: BTreeMap::new(),
            rings: BTreeMap::new(),
            services: BTreeMap::new(),
            vip_filter: VipFilter::EMPTY,
        }
    }
}

impl BackendSlot {
    /// The part of `target` that configuration decides; `None` for an unused element.
    pub fn of(target: &Target) -> Option<Self> {
        (target.state != 0).then_some(Self { address: target.address, ring: target.ring, state: target.state })
    }
}

/// The writes that turn `installed` into `desired`, in an order in which packets find what they need.
///
/// What is pointed to is there before what points to it, and goes after it: members and backends, then rings, then services;
/// then `node` (a datapath without one passes everything) and the filter that lets packets in. Then the way back:
/// services, rings, backends that new flows must no longer find (a ring without them is in place by now), members. A member
/// whose address has passed to another goes first.
pub fn plan(desired: &Tables, installed: &Tables) -> Vec<MapOp> {
    let mut ops = Vec::new();
    // An address is one member's: `peers` must not lose it to the one that had it before.
    let in_use: BTreeSet<&Address> = desired.members.values().collect();
    let leaving = || installed.members.iter().filter(|(id, _)| !desired.members.contains_key(*id));
    let clear = |(&id, &address): (&u8, &Address)| MapOp::ClearMember { id, address };
    ops.extend(leaving().filter(|(_, address)| in_use.contains(address)).map(clear));
    for (&id, &address) in &desired.members {
        let before = installed.members.get(&id).copied();
        if before != Some(address) {
            ops.push(MapOp::SetMember { id, address, previous: before.filter(|before| !in_use.contains(before)) });
        }
    }
    for (&prefix, &id) in &desired.peer_prefixes {
        if installed.peer_prefixes.get(&prefix) != Some(&id) {
            ops.push(MapOp::SetPeerPrefix { prefix, id });
        }
    }
    let leaves_service = |slot: &u16, backend: &BackendSlot| {
        let before = installed.backends.get(slot);
        backend.state != TARGET_SERVING && before.is_some_and(|before| before.address == backend.address)
    };
    let changed = || desired.backends.iter().filter(|&(slot, backend)| installed.backends.get(slot) != Some(backend));
    let set = |(&slot, &backend): (&u16, &BackendSlot)| MapOp::SetBackend { slot, backend };
    ops.extend(changed().filter(|(slot, backend)| !leaves_service(slot, backend)).map(set));
    // From the last to the first: rings of before a change are there before those that take their place.
    for (&index, ring) in desired.rings.iter().rev() {
        let same = |before: &Arc<Ring>| Arc::ptr_eq(before, ring) || before == ring;
        if !installed.rings.get(&index).is_some_and(same) {
            ops.push(MapOp::SetRing { index, ring: Arc::clone(ring) });
        }
    }
    for (&key, &service) in &desired.services {
        if installed.services.get(&key) != Some(&service) {
            ops.push(MapOp::SetService { key, service });
        }
    }
    if desired.node != installed.node {
        ops.push(MapOp::SetNode(Box::new(desired.node)));
    }
    if desired.vip_filter != installed.vip_filter {
        ops.push(MapOp::SetVipFilter(Box::new(desired.vip_filter)));
    }
    let gone = |key: &&ServiceKey| !desired.services.contains_key(*key);
    ops.extend(installed.services.keys().filter(gone).map(|&key| MapOp::RemoveService { key }));
    let gone = |index: &&u32| !desired.rings.contains_key(*index);
    ops.extend(installed.rings.keys().filter(gone).map(|&index| MapOp::ClearRing { index }));
    ops.extend(changed().filter(|(slot, backend)| leaves_service(slot, backend)).map(set));
    let gone = |slot: &&u16| !desired.backends.contains_key(*slot);
    ops.extend(installed.backends.keys().filter(gone).map(|&slot| MapOp::ClearBackend { slot }));
    let gone = |prefix: &&Prefix| !desired.peer_prefixes.contains_key(*prefix);
    ops.extend(installed.peer_prefixes.keys().filter(gone).map(|&prefix| MapOp::RemovePeerPrefix { prefix }));
    ops.extend(leaving().filter(|(_, address)| !in_use.contains(address)).map(clear));
    ops
}
