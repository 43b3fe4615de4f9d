//! Writing the tables that configuration and liveness fill.

use std::{
    collections::{BTreeMap, HashMap as Hash, HashSet},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::maps::{
    Array, ArrayOfMaps, HashMap, IterableMap as _, Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use lb_common::{
    address::Address,
    liveness::{Heard, Liveness},
    maps,
    node::Node,
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::{NextHop, TARGET_SERVING, Target},
};
use zerocopy::FromZeros as _;

use super::{
    bpf::{Batches, put_maps},
    datapath::{Datapath, DatapathError, inner_map},
    neighbours::{GATEWAYS, Resolved},
};
use crate::core::{Adopted, BackendSlot, MapOp, Tables, plan, view::Prefix};

/// Elements that are read at a time when an agent starts on pinned maps.
const BATCH: usize = 4096;

/// Rings that are written at a time: each is a descriptor until then, of which a process may have 1,024.
const RINGS_AT_ONCE: usize = 256;

/// No target's address.
const NOWHERE: Address = [0; 16];

/// The datapath's tables, and what is in them.
pub struct Installed {
    members: Array<MapData, Target>,
    peers: HashMap<MapData, Address, u32>,
    peer_prefixes: LpmTrie<MapData, Address, u32>,
    gateways: Array<MapData, NextHop>,
    backends: Array<MapData, Target>,
    rings: Rings,
    services: HashMap<MapData, ServiceKey, Service>,
    vip_filter: Array<MapData, VipFilter>,
    node: Array<MapData, Node>,
    liveness: Array<MapData, Liveness>,
    heard: Array<MapData, Heard>,
    cluster_ifindex: u32,
    /// What the maps hold, as far as is known.
    tables: Tables,
    /// What they shall hold.
    wanted: Tables,
    is_complete: bool,
    next_hops: Hash<Address, NextHop>,
}

impl Installed {
    /// Takes the tables out of `datapath`; with what an earlier agent left in them, whose backends keep their slots.
    pub fn open(datapath: &mut Datapath) -> Result<(Self, Adopted), DatapathError> {
        let mut installed = Self {
            members: datapath.map(maps::MEMBERS)?,
            peers: datapath.map(maps::PEERS)?,
            peer_prefixes: datapath.map(maps::PEER_PREFIXES)?,
            gateways: datapath.map(maps::GATEWAYS)?,
            backends: datapath.map(maps::BACKENDS)?,
            rings: datapath.map(maps::RINGS)?,
            services: datapath.map(maps::SERVICES)?,
            vip_filter: datapath.map(maps::VIP_FILTER)?,
            node: datapath.map(maps::NODE)?,
            liveness: datapath.map(maps::LIVENESS)?,
            heard: datapath.map(maps::HEARD)?,
            cluster_ifindex: 0,
            tables: Tables::empty(),
            wanted: Tables::empty(),
            is_complete: true,
            next_hops: Hash::new(),
        };
        let adopted = if datapath.is_adopted() { installed.take_stock()? } else { Adopted::default() };
        Ok((installed, adopted))
    }

    /// Makes the tables as `desired`, with as few writes as possible.
    ///
    /// After an error some of them are made; `complete` makes the rest.
    pub fn install(&mut self, desired: Tables) -> Result<(), DatapathError> {
        (self.wanted, self.is_complete) = (desired, false);
        self.complete().map(drop)
    }

    /// Makes what is missing of the tables that were wanted last; the number of writes.
    pub fn complete(&mut self) -> Result<usize, DatapathError> {
        if self.is_complete {
            return Ok(0);
        }
        let ops = plan(&self.wanted, &self.tables);
        let count = ops.len();
        let mut rings = Vec::new();
        for op in ops {
            match op {
                MapOp::SetRing { index, ring } => rings.push((index, ring)),
                // No service points to it: an empty one is as good as none.
                MapOp::ClearRing { index } => rings.push((index, Arc::new(Ring::new_zeroed()))),
                other => {
                    self.set_rings(&mut rings)?;
                    self.apply(other)?;
                }
            }
        }
        self.set_rings(&mut rings)?;
        (self.tables, self.is_complete) = (self.wanted.clone(), true);
        let known: HashSet<Address> = self.addresses().collect();
        self.next_hops.retain(|address, _| known.contains(address));
        Ok(count)
    }

    /// Compares the tables with what was written, and writes again what is not so; the number of writes.
    ///
    /// Rings are left out: they cannot be read back cheaply, and nothing but the agent writes them.
    pub fn heal(&mut self) -> Result<usize, DatapathError> {
        let rings = std::mem::take(&mut self.tables.rings);
        (self.tables, self.is_complete) = (Tables::empty(), false);
        self.take_stock()?;
        self.tables.rings = rings;
        let node = self.node.get(&0, 0).map_err(failed(maps::NODE))?;
        if node.cluster_ifindex == self.cluster_ifindex {
            self.tables.node = Node { cluster_ifindex: 0, ..node };
        }
        self.complete()
    }

    /// Sets the interface that tunnelled packets and probes come in by.
    pub fn set_cluster_interface(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        if ifindex == self.cluster_ifindex {
            return Ok(());
        }
        self.cluster_ifindex = ifindex;
        if self.tables.node.schema == 0 {
            return Ok(());
        }
        self.apply(MapOp::SetNode(Box::new(self.tables.node)))
    }

    /// Whether the way to all of `addresses` is known.
    pub fn are_resolved(&self, addresses: &[Address]) -> bool {
        addresses.iter().all(|address| self.next_hops.contains_key(address))
    }

    /// Every address that packets are sent to.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        let own = self.wanted.node.addresses;
        let members = self.wanted.members.values().copied();
        let backends = self.wanted.backends.values().map(|backend| backend.address);
        members.chain(backends).filter(move |address| !own.contains(address))
    }

    /// The members, by id.
    pub fn members(&self) -> &BTreeMap<u8, Address> {
        &self.wanted.members
    }

    /// Writes a next hop to all targets with its address, and keeps it for later ones.
    pub fn resolve(&mut self, found: &Resolved) -> Result<(), DatapathError> {
        if let Some(family) = GATEWAYS.iter().position(|gateway| *gateway == found.address) {
            return self.gateways.set(family as u32, found.next_hop, 0).map_err(failed(maps::GATEWAYS));
        }
        self.next_hops.insert(found.address, found.next_hop);
        let ids: Vec<u8> =
            self.tables.members.iter().filter(|(_, at)| **at == found.address).map(|(id, _)| *id).collect();
        for id in ids {
            self.set_member(id, found.address).map_err(failed(maps::MEMBERS))?;
        }
        let slots: Vec<(u16, BackendSlot)> =
            self.tables.backends.iter().filter(|(_, b)| b.address == found.address).map(|(s, b)| (*s, *b)).collect();
        for (slot, backend) in slots {
            self.set_backend(slot, backend).map_err(failed(maps::BACKENDS))?;
        }
        Ok(())
    }

    /// Writes the one element of `liveness`.
    pub fn set_liveness(&mut self, liveness: Liveness) -> Result<(), DatapathError> {
        self.liveness.set(0, liveness, 0).map_err(failed(maps::LIVENESS))
    }

    /// What XDP last heard from a member.
    pub fn heard(&self, member: u8) -> Result<Heard, DatapathError> {
        self.heard.get(&u32::from(member), 0).map_err(failed(maps::HEARD))
    }

    fn apply(&mut self, op: MapOp) -> Result<(), DatapathError> {
        match op {
            MapOp::SetMember { id, address, previous } => {
                self.set_member(id, address).map_err(failed(maps::MEMBERS))?;
                previous.map_or(Ok(()), |previous| self.remove_peer(&previous, id))?;
                self.peers.insert(address, u32::from(id), 0).map_err(failed(maps::PEERS))
            }
            MapOp::ClearMember { id, address } => {
                self.members.set(u32::from(id), Target::NONE, 0).map_err(failed(maps::MEMBERS))?;
                self.remove_peer(&address, id)
            }
            MapOp::SetPeerPrefix { prefix, id } => {
                self.peer_prefixes.insert(&trie_key(&prefix), u32::from(id), 0).map_err(failed(maps::PEER_PREFIXES))
            }
            MapOp::RemovePeerPrefix { prefix } => {
                absent_is_fine(self.peer_prefixes.remove(&trie_key(&prefix))).map_err(failed(maps::PEER_PREFIXES))
            }
            MapOp::SetBackend { slot, backend } => self.set_backend(slot, backend).map_err(failed(maps::BACKENDS)),
            MapOp::ClearBackend { slot } => {
                self.backends.set(u32::from(slot), Target::NONE, 0).map_err(failed(maps::BACKENDS))
            }
            MapOp::SetRing { index, ring } => self.set_rings(&mut vec![(index, ring)]),
            MapOp::ClearRing { index } => self.set_rings(&mut vec![(index, Arc::new(Ring::new_zeroed()))]),
            MapOp::SetService { key, service } => self.services.insert(key, service, 0).map_err(failed(maps::SERVICES)),
            MapOp::RemoveService { key } => absent_is_fine(self.services.remove(&key)).map_err(failed(maps::SERVICES)),
            MapOp::SetNode(node) => {
                let node = Node { cluster_ifindex: self.cluster_ifindex, ..*node };
                self.node.set(0, node, 0).map_err(failed(maps::NODE))
            }
            MapOp::SetVipFilter(filter) => self.vip_filter.set(0, *filter, 0).map_err(failed(maps::VIP_FILTER)),
        }
    }

    fn set_member(&mut self, id: u8, address: Address) -> Result<(), MapError> {
        let target = self.target(BackendSlot { address, ring: 0, state: TARGET_SERVING });
        self.members.set(u32::from(id), target, 0)
    }

    fn set_backend(&mut self, slot: u16, backend: BackendSlot) -> Result<(), MapError> {
        self.backends.set(u32::from(slot), self.target(backend), 0)
    }

    fn target(&self, backend: BackendSlot) -> Target {
        let BackendSlot { address, ring, state } = backend;
        let next_hop = self.next_hops.get(&address).copied().unwrap_or(Target::NONE.next_hop);
        Target { address, next_hop, ring, state, ..Target::NONE }
    }

    /// Filled aside, swapped in whole, and in this order: a packet sees an old ring or a new one.
    fn set_rings(&mut self, rings: &mut Vec<(u32, Arc<Ring>)>) -> Result<(), DatapathError> {
        for chunk in std::mem::take(rings).chunks(RINGS_AT_ONCE) {
            let filled = chunk.iter().map(|(index, ring)| Ok((*index, filled(ring)?)));
            let filled = filled.collect::<Result<Vec<_>, DatapathError>>()?;
            let maps: Vec<_> = filled.iter().map(|(index, inner)| (*index, inner.map().fd().as_fd())).collect();
            if self.rings.handle.as_ref().is_some_and(|handle| put_maps(handle.as_fd(), &maps).is_ok()) {
                continue;
            }
            // An older kernel; or what is wrong is said of the first that cannot be written.
            for (index, inner) in &filled {
                self.rings.map.set(*index, inner.map(), 0).map_err(failed(maps::RINGS))?;
            }
        }
        Ok(())
    }

    /// Takes `address` out of `peers` if it is `id`'s: by now another member may have it.
    fn remove_peer(&mut self, address: &Address, id: u8) -> Result<(), DatapathError> {
        match self.peers.get(address, 0) {
            Ok(holder) if holder == u32::from(id) => absent_is_fine(self.peers.remove(address)),
            Ok(_) => Ok(()),
            Err(error) => absent_is_fine(Err(error)),
        }
        .map_err(failed(maps::PEERS))
    }

    /// Reads what is installed. An element that is not whole is taken for one of `NOWHERE`, so that it is written or cleared.
    ///
    /// `node` counts as not installed: it is always written with this start's incarnation.
    fn take_stock(&mut self) -> Result<Adopted, DatapathError> {
        self.read_members()?;
        for element in self.peer_prefixes.iter() {
            let (key, id) = element.map_err(failed(maps::PEER_PREFIXES))?;
            let prefix = Prefix { address: key.data(), length: key.prefix_len() as u8 };
            self.tables.peer_prefixes.insert(prefix, id as u8);
        }
        let backends = self.read_backends()?;
        let mut services = Vec::new();
        for element in self.services.iter() {
            let (key, service) = element.map_err(failed(maps::SERVICES))?;
            services.push((key, service));
            self.tables.services.insert(key, service);
            // Which ring it is cannot be read back. This one equals none, so it is replaced or removed.
            let unknown = || Arc::new(Ring { slots: [u16::MAX; _] });
            self.tables.rings.entry(service.ring).or_insert_with(unknown);
            let previous = service.ring + maps::PREVIOUS_RINGS;
            if self.rings.map.get(&previous, 0).is_ok() {
                self.tables.rings.entry(previous).or_insert_with(unknown);
            }
        }
        self.tables.vip_filter = self.vip_filter.get(&0, 0).map_err(failed(maps::VIP_FILTER))?;
        Ok(Adopted { services, backends })
    }

    fn read_members(&mut self) -> Result<(), DatapathError> {
        let peers: Result<BTreeMap<Address, u32>, MapError> = self.peers.iter().collect();
        let mut peers = peers.map_err(failed(maps::PEERS))?;
        for id in 1..maps::MEMBER_SLOTS {
            let member = self.members.get(&id, 0).map_err(failed(maps::MEMBERS))?;
            if member.state == 0 {
                continue;
            }
            let is_peer = peers.get(&member.address) == Some(&id);
            if is_peer {
                peers.remove(&member.address);
            }
            let is_whole = self.is_current(&member) && is_peer;
            self.tables.members.insert(id as u8, if is_whole { member.address } else { NOWHERE });
        }
        // Addresses that are nobody's: an agent was killed between two writes.
        for address in peers.keys() {
            absent_is_fine(self.peers.remove(address)).map_err(failed(maps::PEERS))?;
        }
        Ok(())
    }

    fn read_backends(&mut self) -> Result<Vec<(u16, Target)>, DatapathError> {
        let mut batches = Batches::<u32, Target>::of(self.backends.map(), BATCH)?;
        let mut used = Vec::new();
        while let Some((slots, targets)) = batches.read()? {
            let elements = slots.iter().map(|slot| *slot as u16).zip(targets.iter().copied());
            used.extend(elements.filter(|(_, target)| target.state != 0));
        }
        for (slot, target) in &used {
            let Some(backend) = BackendSlot::of(target) else { continue };
            let address = if self.is_current(target) { backend.address } else { NOWHERE };
            self.tables.backends.insert(*slot, BackendSlot { address, ..backend });
        }
        Ok(used)
    }

    /// Whether `target` has the next hop that is known for its address; if none is known, it is from now on.
    fn is_current(&mut self, target: &Target) -> bool {
        if target.next_hop.ifindex == 0 {
            return !self.next_hops.contains_key(&target.address);
        }
        *self.next_hops.entry(target.address).or_insert(target.next_hop) == target.next_hop
    }
}

/// The map of rings, and what aya does not show of it.
struct Rings {
    map: ArrayOfMaps<MapData, MapData>,
    handle: Option<OwnedFd>,
}

impl TryFrom<Map> for Rings {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        let handle = match &map {
            Map::ArrayOfMaps(data) => data.fd().as_fd().try_clone_to_owned().ok(),
            _ => None,
        };
        Ok(Self { map: map.try_into()?, handle })
    }
}

/// A map for `rings` that holds one.
fn filled(ring: &Ring) -> Result<Array<MapData, Ring>, DatapathError> {
    let map = Map::from_map_data(inner_map(maps::RINGS, 1)?).map_err(failed(maps::RINGS))?;
    let mut inner: Array<MapData, Ring> = map.try_into().map_err(failed(maps::RINGS))?;
    inner.set(0, *ring, 0).map_err(failed(maps::RINGS))?;
    Ok(inner)
}

fn trie_key(prefix: &Prefix) -> Key<Address> {
    Key::new(u32::from(prefix.length), prefix.address)
}

fn failed(name: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |error| DatapathError::Map { name, error }
}

fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
