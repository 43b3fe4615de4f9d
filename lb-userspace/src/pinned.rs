//! A member's pinned maps, for reading: what its datapath knows, whether its agent is alive or not.
//!
//! Nothing here writes. Several members on one host have a pin directory each.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{Array, ArrayOfMaps, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray},
};
use lb_common::{
    abi::SCHEMA,
    address::Address,
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6, Pending},
    liveness::{Heard, Liveness},
    maps,
    node::Node,
    reason::{Counter, REASONS, ServiceCounters},
    ring::Ring,
    service::{Service, ServiceKey},
    target::Target,
};
use zerocopy::FromBytes;

use crate::{
    core::Key,
    io::{
        attach::LINK_PREFIX,
        bpf::{Batches, link_ifindex},
    },
};

mod snapshot;
#[cfg(test)]
mod tests;

pub use snapshot::Snapshot;

/// Where a member's maps are pinned when nobody says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/sys/fs/bpf/tandem";

/// Elements read at a time: with keys and values of a flow about 200 KB, and more than any hash bucket holds.
const BATCH: usize = 4096;

/// Flows that are counted one by one, in about 60 ms; beyond them the count is extrapolated from the part of the buckets that
/// they fill. The kernel's hash spreads evenly, so that the error is below 1 % (three deviations of a Poisson distribution).
pub const COUNTED_FLOWS: u64 = 1 << 17;

/// The same in less than 10 ms, for whoever asks again and again: the error is below 2.5 %.
pub const SAMPLED_FLOWS: u64 = 1 << 14;

/// Why there is nothing to read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// No pins.
    #[error(
        "no datapath is pinned at {}: is the agent started? (tandem run --config FILE; other pins: --pin-dir DIR)",
        .0.display()
    )]
    Absent(PathBuf),
    /// Reading maps takes a capability.
    #[error("the maps pinned at {} cannot be opened without privileges: run as root", .0.display())]
    Denied(PathBuf),
    /// Another version of the program made the pins.
    #[error(
        "the datapath at {} was made by another version of tandem ({difference}): use the tandem that runs there",
        .directory.display()
    )]
    OtherVersion {
        /// The pin directory.
        directory: PathBuf,
        /// What differs.
        difference: String,
    },
    /// Anything else.
    #[error("reading the map {name} at {}: {error}", .directory.display())]
    Map {
        /// The pin directory.
        directory: PathBuf,
        /// The map.
        name: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

/// The opened maps.
pub struct Pinned {
    directory: PathBuf,
    flows: HashMap<MapData, FlowKeyV4, FlowEntry>,
    flows_v6: HashMap<MapData, FlowKeyV6, FlowEntry>,
    pending: HashMap<MapData, FlowKeyV4, Pending>,
    pending_v6: HashMap<MapData, FlowKeyV6, Pending>,
    services: HashMap<MapData, ServiceKey, Service>,
    rings: ArrayOfMaps<MapData, Array<MapData, Ring>>,
    backends: Array<MapData, Target>,
    members: Array<MapData, Target>,
    peers: HashMap<MapData, Address, u32>,
    liveness: Array<MapData, Liveness>,
    heard: Array<MapData, Heard>,
    node: Array<MapData, Node>,
    counters: PerCpuArray<MapData, Counter>,
    service_count: PerCpuArray<MapData, ServiceCounters>,
    backend_count: PerCpuArray<MapData, Counter>,
    member_count: PerCpuArray<MapData, Counter>,
}

/// Nanoseconds of `CLOCK_MONOTONIC`: the clock of the datapath's stamps.
pub fn now_ns() -> u64 {
    crate::io::clock::now_ns()
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowCount {
    /// That many, or about that many.
    pub flows: u64,
    /// Whether each was counted.
    pub is_exact: bool,
}

impl Pinned {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    ///
    /// There are none, they may not be read, or another version made them.
    pub fn open(directory: &Path) -> Result<Self, PinnedError> {
        let at = Opening { directory };
        let node = at.open(maps::NODE)?;
        let pinned = Self {
            flows: at.open(maps::FLOWS)?,
            flows_v6: at.open(maps::FLOWS_V6)?,
            pending: at.open(maps::PENDING)?,
            pending_v6: at.open(maps::PENDING_V6)?,
            services: at.open(maps::SERVICES)?,
            rings: at.open(maps::RINGS)?,
            backends: at.open(maps::BACKENDS)?,
            members: at.open(maps::MEMBERS)?,
            peers: at.open(maps::PEERS)?,
            liveness: at.open(maps::LIVENESS)?,
            heard: at.open(maps::HEARD)?,
            counters: at.open(maps::COUNTERS)?,
            service_count: at.open(maps::SERVICE_COUNT)?,
            backend_count: at.open(maps::BACKEND_COUNT)?,
            member_count: at.open(maps::MEMBER_COUNT)?,
            node,
            directory: directory.to_owned(),
        };
        let schema = pinned.node()?.schema;
        // 0: the agent that made the maps has not filled them yet.
        if schema != SCHEMA && schema != 0 {
            let difference = format!("schema {schema:016x}, here {SCHEMA:016x}");
            return Err(PinnedError::OtherVersion { directory: directory.to_owned(), difference });
        }
        Ok(pinned)
    }

    /// The pin directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// This member; all zeros before the agent has configured it.
    pub fn node(&self) -> Result<Node, PinnedError> {
        self.element(maps::NODE, &self.node, 0)
    }

    /// The agent's masks and lease.
    pub fn liveness(&self) -> Result<Liveness, PinnedError> {
        self.element(maps::LIVENESS, &self.liveness, 0)
    }

    /// What was last heard of each member, by id.
    pub fn heard(&self) -> Result<Vec<Heard>, PinnedError> {
        (0..maps::MEMBER_SLOTS).map(|id| self.element(maps::HEARD, &self.heard, id)).collect()
    }

    /// The members, by id.
    pub fn members(&self) -> Result<Vec<Target>, PinnedError> {
        (0..maps::MEMBER_SLOTS).map(|id| self.element(maps::MEMBERS, &self.members, id)).collect()
    }

    /// All backend slots.
    pub fn backends(&self) -> Result<Vec<Target>, PinnedError> {
        let mut backends = vec![Target::NONE; self.backends.len() as usize];
        self.batches(maps::BACKENDS, self.backends.map(), |slot: &u32, backend: &Target| {
            if let Some(element) = backends.get_mut(*slot as usize) {
                *element = *backend;
            }
            true
        })?;
        Ok(backends)
    }

    /// The services in order, without the marks of VIPs.
    pub fn services(&self) -> Result<Vec<(ServiceKey, Service)>, PinnedError> {
        let mut services: Vec<_> =
            self.services.iter().collect::<Result<_, _>>().map_err(|error| self.failed(maps::SERVICES, error))?;
        services.retain(|(key, _): &(ServiceKey, _)| key.protocol != 0);
        services.sort_by_key(|(key, _)| *key);
        Ok(services)
    }

    /// Whether `address` is a VIP, of whatever service.
    pub fn is_vip(&self, address: Address) -> Result<bool, PinnedError> {
        Ok(self.found(maps::SERVICES, self.services.get(&ServiceKey::vip(address), 0))?.is_some())
    }

    /// The service with that key.
    pub fn service(&self, key: &ServiceKey) -> Result<Option<Service>, PinnedError> {
        self.found(maps::SERVICES, self.services.get(key, 0))
    }

    /// The ring at `index`.
    pub fn ring(&self, index: u32) -> Result<Option<Ring>, PinnedError> {
        let Some(ring) = self.found(maps::RINGS, self.rings.get(&index, 0))? else { return Ok(None) };
        self.found(maps::RINGS, ring.get(&0, 0))
    }

    /// The member with that address.
    pub fn member_at(&self, address: &Address) -> Result<Option<u8>, PinnedError> {
        Ok(self.found(maps::PEERS, self.peers.get(address, 0))?.map(|id| id as u8))
    }

    /// Packets and bytes by reason, over all CPUs.
    pub fn counters(&self) -> Result<[Counter; REASONS], PinnedError> {
        let mut sums = [Counter { packets: 0, bytes: 0 }; REASONS];
        for (reason, sum) in (0..).zip(&mut sums) {
            *sum = self.sum(maps::COUNTERS, &self.counters, reason)?;
        }
        Ok(sums)
    }

    /// What became of the packets of the service whose ring is at `ring`, over all CPUs.
    pub fn service_counters(&self, ring: u32) -> Result<ServiceCounters, PinnedError> {
        let none = Counter { packets: 0, bytes: 0 };
        let mut sums = ServiceCounters { delivered: none, handed_off: none, answered: none, dropped: none };
        let counters = self.service_count.get(&ring, 0).map_err(|error| self.failed(maps::SERVICE_COUNT, error))?;
        for cpu in counters.iter() {
            add(&mut sums.delivered, &cpu.delivered);
            add(&mut sums.handed_off, &cpu.handed_off);
            add(&mut sums.answered, &cpu.answered);
            add(&mut sums.dropped, &cpu.dropped);
        }
        Ok(sums)
    }

    /// What was delivered to the backend in slot `slot`, over all CPUs.
    pub fn backend_counter(&self, slot: u16) -> Result<Counter, PinnedError> {
        self.sum(maps::BACKEND_COUNT, &self.backend_count, slot.into())
    }

    /// What was handed off to member `id`, over all CPUs.
    pub fn member_counter(&self, id: u8) -> Result<Counter, PinnedError> {
        self.sum(maps::MEMBER_COUNT, &self.member_count, id.into())
    }

    /// The entry of a flow.
    pub fn flow(&self, key: &Key) -> Result<Option<FlowEntry>, PinnedError> {
        match key {
            Key::V4(key) => self.found(maps::FLOWS, self.flows.get(key, 0)),
            Key::V6(key) => self.found(maps::FLOWS_V6, self.flows_v6.get(key, 0)),
        }
    }

    /// What is remembered of a tuple without an entry.
    pub fn pending(&self, key: &Key) -> Result<Option<Pending>, PinnedError> {
        match key {
            Key::V4(key) => self.found(maps::PENDING, self.pending.get(key, 0)),
            Key::V6(key) => self.found(maps::PENDING_V6, self.pending_v6.get(key, 0)),
        }
    }

    /// Calls `each` for the flows, those of IPv4 first, else in no order, until it returns false.
    pub fn each_flow(&self, mut each: impl FnMut(Key, &FlowEntry) -> bool) -> Result<(), PinnedError> {
        let mut goes_on = true;
        self.batches(maps::FLOWS, self.flows.map(), |key: &FlowKeyV4, entry: &FlowEntry| {
            goes_on = each((*key).into(), entry);
            goes_on
        })?;
        if !goes_on {
            return Ok(());
        }
        self.batches(maps::FLOWS_V6, self.flows_v6.map(), |key: &FlowKeyV6, entry: &FlowEntry| {
            each((*key).into(), entry)
        })
    }

    /// Counts the flows of each family (`V4`, `V6`), in bounded time: of a table with more than `counted` a part.
    pub fn count_flows(&self, counted: u64) -> Result<[FlowCount; 2], PinnedError> {
        Ok([
            self.count::<FlowKeyV4>(maps::FLOWS, self.flows.map(), counted)?,
            self.count::<FlowKeyV6>(maps::FLOWS_V6, self.flows_v6.map(), counted)?,
        ])
    }

    /// Flows of each family that fit.
    pub fn flows_max(&self) -> Result<[u32; 2], PinnedError> {
        Ok([self.capacity(maps::FLOWS, self.flows.map())?, self.capacity(maps::FLOWS_V6, self.flows_v6.map())?])
    }

    fn count<K: FromBytes + Copy>(
        &self,
        name: &'static str,
        map: &MapData,
        counted: u64,
    ) -> Result<FlowCount, PinnedError> {
        let failed = |error| self.failed_io(name, error);
        let mut batches = Batches::<K, FlowEntry>::of(map, BATCH).map_err(failed)?;
        let mut flows = 0;
        while let Some((keys, _)) = batches.read().map_err(failed)? {
            flows += keys.len() as u64;
            if flows >= counted {
                let buckets = u64::from(self.capacity(name, map)?.next_power_of_two());
                let read = u64::from(batches.position().unwrap_or(0)).clamp(1, buckets);
                return Ok(FlowCount { flows: flows * buckets / read, is_exact: read == buckets });
            }
        }
        Ok(FlowCount { flows, is_exact: true })
    }

    fn capacity(&self, name: &'static str, map: &MapData) -> Result<u32, PinnedError> {
        Ok(map.info().map_err(|error| self.failed(name, error))?.max_entries())
    }

    fn sum(
        &self,
        name: &'static str,
        counters: &PerCpuArray<MapData, Counter>,
        index: u32,
    ) -> Result<Counter, PinnedError> {
        let mut sum = Counter { packets: 0, bytes: 0 };
        let counters = counters.get(&index, 0).map_err(|error| self.failed(name, error))?;
        counters.iter().for_each(|cpu| add(&mut sum, cpu));
        Ok(sum)
    }

    /// The interfaces that the datapath is attached to, as the pins call them (dots are underscores there).
    ///
    /// A pinned link whose interface or network namespace is gone does not count.
    pub fn interfaces(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let is_attached = |name: &String| !matches!(link_ifindex(&self.directory.join(name)), Ok(0));
        let mut interfaces: Vec<_> = names
            .filter(|name| name.starts_with(LINK_PREFIX) && is_attached(name))
            .map(|name| name[LINK_PREFIX.len()..].to_owned())
            .collect();
        interfaces.sort();
        interfaces
    }

    fn element<V: Pod>(&self, name: &'static str, map: &Array<MapData, V>, index: u32) -> Result<V, PinnedError> {
        map.get(&index, 0).map_err(|error| self.failed(name, error))
    }

    fn found<V>(&self, name: &'static str, result: Result<V, MapError>) -> Result<Option<V>, PinnedError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => Ok(None),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    fn batches<K: FromBytes + Copy, V: FromBytes + Copy>(
        &self,
        name: &'static str,
        map: &MapData,
        mut each: impl FnMut(&K, &V) -> bool,
    ) -> Result<(), PinnedError> {
        let failed = |error| self.failed_io(name, error);
        let mut batches = Batches::<K, V>::of(map, BATCH).map_err(failed)?;
        while let Some((keys, values)) = batches.read().map_err(failed)? {
            if !keys.iter().zip(values).all(|(key, value)| each(key, value)) {
                break;
            }
        }
        Ok(())
    }

    fn failed(&self, name: &'static str, error: MapError) -> PinnedError {
        Opening { directory: &self.directory }.failed(name, error)
    }

    fn failed_io(&self, name: &'static str, error: io::Error) -> PinnedError {
        PinnedError::Map { directory: self.directory.clone(), name, error }
    }
}

fn add(sum: &mut Counter, counter: &Counter) {
    sum.packets += counter.packets;
    sum.bytes += counter.bytes;
}

struct Opening<'a> {
    directory: &'a Path,
}

impl Opening<'_> {
    /// The map pinned as `name`; aya compares its type and sizes with those of `M`.
    fn open<M: TryFrom<Map, Error = MapError>>(&self, name: &'static str) -> Result<M, PinnedError> {
        MapData::from_pin(self.directory.join(name))
            .and_then(Map::from_map_data)
            .and_then(M::try_from)
            .map_err(|error| self.failed(name, error))
    }

    fn failed(&self, name: &'static str, error: MapError) -> PinnedError {
        let directory = self.directory.to_owned();
        match error {
            MapError::SyscallError(error) => match error.io_error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => PinnedError::Absent(directory),
                Some(libc::EPERM | libc::EACCES) => PinnedError::Denied(directory),
                _ => PinnedError::Map { directory, name, error: error.io_error },
            },
            MapError::InvalidKeySize { .. }
            | MapError::InvalidValueSize { .. }
            | MapError::InvalidMapType { .. }
            | MapError::InvalidValueStride { .. } => {
                PinnedError::OtherVersion { directory, difference: format!("map {name}: {error}") }
            }
            error => PinnedError::Map { directory, name, error: io::Error::other(error) },
        }
    }
}
