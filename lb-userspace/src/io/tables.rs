//! Writing the tables that configuration and liveness fill.

use std::{
    collections::{BTreeMap, HashMap as Hash},
    sync::Arc,
};

use aya::maps::{Array, ArrayOfMaps, HashMap, IterableMap as _, Map, MapData, MapError};
use lb_common::{
    address::Address,
    liveness::{Heard, Liveness},
    maps::{self, BACKENDS_MAX},
    node::Node,
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::{NextHop, TARGET_SERVING, Target},
};
use zerocopy::FromZeros as _;

use super::{
    bpf::Batches,
    datapath::{Datapath, DatapathError, inner_map},
    neighbours::Resolved,
};
use crate::core::{Adopted, BackendSlot, MapOp, Tables, plan};

/// Elements that are read at a time when an agent starts on pinned maps.
const BATCH: usize = 4096;

/// The datapath's tables, and what is in them.
pub struct Installed {
    members: Array<MapData, Target>,
    peers: HashMap<MapData, Address, u32>,
    backends: Array<MapData, Target>,
    rings: ArrayOfMaps<MapData, MapData>,
    services: HashMap<MapData, ServiceKey, Service>,
    vip_filter: Array<MapData, VipFilter>,
    node: Array<MapData, Node>,
    liveness: Array<MapData, Liveness>,
    heard: Array<MapData, Heard>,
    cluster_ifindex: u32,
    tables: Tables,
    next_hops: Hash<Address, NextHop>,
}

impl Installed {
    /// Takes the tables out of `datapath`, and reads what an earlier agent left in them.
    pub fn open(datapath: &mut Datapath) -> Result<Self, DatapathError> {
        let mut installed = Self {
            members: datapath.map(maps::MEMBERS)?,
            peers: datapath.map(maps::PEERS)?,
            backends: datapath.map(maps::BACKENDS)?,
            rings: datapath.map(maps::RINGS)?,
            services: datapath.map(maps::SERVICES)?,
            vip_filter: datapath.map(maps::VIP_FILTER)?,
            node: datapath.map(maps::NODE)?,
            liveness: datapath.map(maps::LIVENESS)?,
            heard: datapath.map(maps::HEARD)?,
            cluster_ifindex: datapath.cluster_ifindex(),
            tables: Tables::empty(),
            next_hops: Hash::new(),
        };
        if datapath.is_adopted() {
            installed.read().map_err(|error| DatapathError::Map { name: "(one of the pinned)", error })?;
        }
        Ok(installed)
    }

    /// What an earlier agent left: services and backends keep their slots while flows refer to them.
    pub fn adopted(&self) -> Adopted {
        let target = |(slot, backend): (&u16, &BackendSlot)| (*slot, self.target(*backend));
        Adopted {
            services: self.tables.services.iter().map(|(key, service)| (*key, *service)).collect(),
            backends: self.tables.backends.iter().map(target).collect(),
        }
    }

    /// Makes the tables as `desired`, with as few writes as possible.
    ///
    /// After an error some of them are made; the next call makes the rest.
    pub fn install(&mut self, desired: Tables) -> Result<(), DatapathError> {
        for op in plan(&desired, &self.tables) {
            self.apply(op)?;
        }
        self.tables = desired;
        let known: Vec<Address> = self.addresses().collect();
        self.next_hops.retain(|address, _| known.contains(address));
        Ok(())
    }

    /// Every address that packets are sent to.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        let own = self.tables.node.address;
        let members = self.tables.members.values().copied();
        let backends = self.tables.backends.values().map(|backend| backend.address);
        members.chain(backends).filter(move |address| *address != own)
    }

    /// The members, by id.
    pub fn members(&self) -> &BTreeMap<u8, Address> {
        &self.tables.members
    }

    /// Writes a next hop to all targets with its address, and keeps it for later ones.
    pub fn resolve(&mut self, found: &Resolved) -> Result<(), DatapathError> {
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
                previous
                    .map_or(Ok(()), |previous| absent_is_fine(self.peers.remove(&previous)))
                    .map_err(failed(maps::PEERS))?;
                self.peers.insert(address, u32::from(id), 0).map_err(failed(maps::PEERS))
            }
            MapOp::ClearMember { id, address } => {
                self.members.set(u32::from(id), Target::NONE, 0).map_err(failed(maps::MEMBERS))?;
                absent_is_fine(self.peers.remove(&address)).map_err(failed(maps::PEERS))
            }
            MapOp::SetBackend { slot, backend } => self.set_backend(slot, backend).map_err(failed(maps::BACKENDS)),
            MapOp::ClearBackend { slot } => {
                self.backends.set(u32::from(slot), Target::NONE, 0).map_err(failed(maps::BACKENDS))
            }
            MapOp::SetRing { index, ring } => self.set_ring(index, &ring),
            // No service points to it: an empty one is as good as none.
            MapOp::ClearRing { index } => self.set_ring(index, &Ring::new_zeroed()),
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

    /// Filled aside, swapped in whole: a packet sees the old ring or the new one.
    fn set_ring(&mut self, index: u32, ring: &Ring) -> Result<(), DatapathError> {
        let map = Map::from_map_data(inner_map(maps::RINGS, 1)?).map_err(failed(maps::RINGS))?;
        let mut inner: Array<MapData, Ring> = map.try_into().map_err(failed(maps::RINGS))?;
        inner.set(0, *ring, 0).map_err(failed(maps::RINGS))?;
        self.rings.set(index, inner.map(), 0).map_err(failed(maps::RINGS))
    }

    /// Reads what is installed. `node` counts as not installed, so that it is always written with this start's incarnation.
    fn read(&mut self) -> Result<(), MapError> {
        for id in 1..maps::MEMBER_SLOTS {
            let member = self.members.get(&id, 0)?;
            if member.state != 0 {
                self.tables.members.insert(id as u8, member.address);
                self.remember(&member);
            }
        }
        let mut batches = Batches::<u32, Target>::of(self.backends.map(), BATCH).map_err(MapError::IoError)?;
        let mut backends = Vec::new();
        while let Some((slots, targets)) = batches.read().map_err(MapError::IoError)? {
            backends.extend(slots.iter().copied().zip(targets.iter().copied()));
        }
        for (slot, target) in backends {
            if let (Some(backend), true) = (BackendSlot::of(&target), slot < BACKENDS_MAX) {
                self.tables.backends.insert(slot as u16, backend);
                self.remember(&target);
            }
        }
        for element in self.services.iter() {
            let (key, service) = element?;
            self.tables.services.insert(key, service);
            // Which ring it is cannot be read back; one that equals no real one is replaced or removed.
            self.tables.rings.entry(service.ring).or_insert_with(|| Arc::new(Ring::new_zeroed()));
        }
        self.tables.vip_filter = self.vip_filter.get(&0, 0)?;
        Ok(())
    }

    fn remember(&mut self, target: &Target) {
        if target.next_hop.ifindex != 0 {
            self.next_hops.insert(target.address, target.next_hop);
        }
    }
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
