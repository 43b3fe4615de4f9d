//! A member's tables, copied from its pinned maps.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError, lpm_trie::LpmTrie};
use lb_common::{
    address::Address,
    maps,
    service::{Service, ServiceKey, VipFilter},
    target::NextHop,
};
use model::Model;

use super::kernel::Room;
use crate::{core::Key, pinned::Pinned};

/// Services whose rings are copied: each takes 32 KiB, and a program that treats these right treats the others right.
const SERVICES: usize = 64;
/// Flows that are copied.
const FLOWS: usize = 128;
/// New flows for which there is room as well.
const NEW_FLOWS: u32 = 4096;
/// The interface that test runs come from: the loopback.
const INGRESS: u32 = 1;

/// The tables pinned in `pins`, with a sample of the flows.
pub(super) fn of(pins: &Path) -> Result<Model> {
    let pinned = Pinned::open(pins)?;
    let mut model = Model::new(0);
    *model.node = pinned.node()?;
    // Packets and hand-offs come by the cluster's interface, wherever that is.
    if model.node.cluster_ifindex != 0 {
        model.node.cluster_ifindex = INGRESS;
    }
    model.ingress = INGRESS;
    model.liveness = pinned.liveness()?;
    for (id, member) in (0..).zip(pinned.members()?) {
        if member.state != 0 {
            model.members.insert(id, member);
        }
    }
    for (slot, backend) in (0..).zip(pinned.backends()?) {
        if backend.state != 0 {
            model.backends.insert(slot, backend);
        }
    }
    let targets = model.members.values().chain(model.backends.values());
    model.devices = targets.map(|target| target.next_hop.ifindex).filter(|way| *way != 0).chain([INGRESS]).collect();
    for (id, heard) in (0..).zip(pinned.heard()?) {
        model.heard.borrow_mut().insert(id, heard);
    }
    let services: HashMap<MapData, ServiceKey, Service> = open(pins, maps::SERVICES)?;
    for element in services.iter() {
        let (key, service) = element?;
        model.services.insert(key, service);
    }
    let mut rings: Vec<u32> =
        model.services.iter().filter(|(key, _)| key.protocol != 0).map(|(_, of)| of.ring).collect();
    rings.sort_unstable();
    rings.dedup();
    // Each with the one of before, which the packets of a grace time need.
    for index in rings.into_iter().take(SERVICES).flat_map(|ring| [ring, maps::PREVIOUS_RINGS + ring]) {
        if let Some(ring) = pinned.ring(index)? {
            model.rings.insert(index, ring.into());
        }
    }
    let filter: Array<MapData, VipFilter> = open(pins, maps::VIP_FILTER)?;
    *model.vip_filter = filter.get(&0, 0)?;
    let gateways: Array<MapData, NextHop> = open(pins, maps::GATEWAYS)?;
    for (family, hop) in (0..).zip(&mut model.gateways) {
        *hop = gateways.get(&family, 0)?;
    }
    let peers: HashMap<MapData, Address, u32> = open(pins, maps::PEERS)?;
    for element in peers.iter() {
        let (address, id) = element?;
        model.peers.insert(address, id as u8);
    }
    let prefixes: LpmTrie<MapData, Address, u32> = open(pins, maps::PEER_PREFIXES)?;
    for element in prefixes.iter() {
        let (prefix, id) = element?;
        model.prefixes.insert((prefix.data(), prefix.prefix_len()), id as u8);
    }
    let mut copied = 0;
    pinned.each_flow(|key, entry| {
        match key {
            Key::V4(key) => drop(model.v4.borrow_mut().flows.insert(key, *entry)),
            Key::V6(key) => drop(model.v6.borrow_mut().flows.insert(key, *entry)),
        }
        copied += 1;
        copied < FLOWS
    })?;
    Ok(model)
}

/// Room for these tables.
pub(super) fn room(model: &Model) -> Room {
    let rings = model.services.values().map(|service| service.ring + 1).max().unwrap_or(0);
    let services = rings.max(model.services.len() as u32).max(1);
    Room { flows: FLOWS as u32 + NEW_FLOWS, services }
}

fn open<M: TryFrom<Map, Error = MapError>>(pins: &Path, name: &str) -> Result<M> {
    let map = MapData::from_pin(pins.join(name)).and_then(Map::from_map_data).and_then(M::try_from);
    map.with_context(|| format!("the map {name}"))
}
