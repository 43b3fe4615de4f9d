//! A member's pinned maps, read from outside as an operator would, also when its agent is dead.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray},
    programs::ProgramInfo,
};
use lb_common::{
    flow::{FlowEntry, FlowKey, FlowKeyV4},
    liveness::Liveness,
    maps,
    node::Node,
    rank::{bit, score, seed},
    reason::{Action, Counter, Reason},
    target::Target,
};

/// The pin directory of a member.
#[derive(Clone, Debug)]
pub struct Tables {
    pins: PathBuf,
}

/// The kernel's number for the program pinned at `pin`; none if there is none.
pub fn program_id(pin: &Path) -> Option<u32> {
    ProgramInfo::from_pin(pin).ok().map(|program| program.id())
}

/// The flow table of a member.
pub type Flows = HashMap<MapData, FlowKeyV4, FlowEntry>;

impl Tables {
    /// The maps pinned in `pins`; none is opened yet.
    pub fn new(pins: &Path) -> Self {
        Self { pins: pins.to_owned() }
    }

    /// The flow table; may be written to.
    pub fn flows(&self) -> Result<Flows> {
        HashMap::try_from(Map::HashMap(self.open(maps::FLOWS)?)).context("`flows` has another shape")
    }

    /// The entry of one flow.
    pub fn flow(&self, key: &FlowKeyV4) -> Result<Option<FlowEntry>> {
        Ok(self.flows()?.get(key, 0).ok())
    }

    /// All flows.
    pub fn all_flows(&self) -> Result<Vec<(FlowKeyV4, FlowEntry)>> {
        // An entry that goes away during the walk is no error of the walk.
        Ok(self.flows()?.iter().filter_map(Result::ok).collect())
    }

    /// The masks and the lease.
    pub fn liveness(&self) -> Result<Liveness> {
        self.element(maps::LIVENESS, 0)
    }

    /// A handle that reads the masks without opening the map each time.
    pub fn liveness_map(&self) -> Result<Array<MapData, Liveness>> {
        self.array(maps::LIVENESS)
    }

    /// What the datapath knows of its own member.
    pub fn node(&self) -> Result<Node> {
        self.element(maps::NODE, 0)
    }

    /// The backend in a local slot.
    pub fn backend(&self, slot: u16) -> Result<Target> {
        self.element(maps::BACKENDS, u32::from(slot))
    }

    /// Packets counted so far, by reason.
    pub fn packets(&self) -> Result<Packets> {
        let counters: PerCpuArray<_, Counter> = PerCpuArray::try_from(Map::PerCpuArray(self.open(maps::COUNTERS)?))
            .context("`counters` has another shape")?;
        let mut packets = BTreeMap::new();
        for reason in Reason::ALL {
            let values = counters.get(&(*reason as u32), 0)?;
            packets.insert(*reason, values.iter().map(|counter| counter.packets).sum());
        }
        Ok(Packets(packets))
    }

    /// The kernel's id of a map.
    pub fn map_id(&self, name: &str) -> Result<u32> {
        let path = self.pins.join(name);
        Ok(MapInfo::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?.id())
    }

    fn element<V: Pod>(&self, name: &str, index: u32) -> Result<V> {
        Ok(self.array(name)?.get(&index, 0)?)
    }

    fn array<V: Pod>(&self, name: &str) -> Result<Array<MapData, V>> {
        Array::try_from(Map::Array(self.open(name)?)).with_context(|| format!("`{name}` has another shape"))
    }

    fn open(&self, name: &str) -> Result<MapData> {
        let path = self.pins.join(name);
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
    }
}

/// Packets counted by a datapath.
#[derive(Clone, Debug)]
pub struct Packets(BTreeMap<Reason, u64>);

impl Packets {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().map(|(reason, packets)| (*reason, packets - earlier.of(*reason))).collect())
    }

    /// Packets counted for `reason`.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }

    /// Packets whose end was `action`.
    pub fn ended_in(&self, action: Action) -> u64 {
        self.0.iter().filter(|(reason, _)| reason.action() == action).map(|(_, packets)| packets).sum()
    }
}

/// The members that `node` knows, best score for `key` first: by sorting, where the datapath must not.
pub fn ranking(node: &Node, key: &FlowKeyV4) -> Vec<u8> {
    let hash = key.hash(&node.hash_key);
    let ids = (1..=64).filter(|id| node.configured & bit(*id) != 0);
    let mut ranked: Vec<(u64, u8)> = ids.map(|id| (score(hash, seed(id), id), id)).collect();
    ranked.sort_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, id)| id).collect()
}

/// Whether `liveness` says that member `id` may own flows, and its lease lasts.
pub fn is_ready(liveness: &Liveness, id: u8) -> bool {
    liveness.eligible & bit(id) != 0 && liveness.lease_until_ns > monotonic_ns()
}

/// Whether the datapath of member `id` is alive, in the eyes of the member whose map this is.
pub fn sees_forwarding(map: &Array<MapData, Liveness>, id: u8) -> Result<bool> {
    Ok(map.get(&0, 0)?.forwarding & bit(id) != 0)
}

/// CLOCK_MONOTONIC, the clock of times in maps.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local that lives through the call; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_nanos() as u64
}
