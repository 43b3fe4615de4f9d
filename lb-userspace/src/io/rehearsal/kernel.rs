//! The programs in the kernel, on maps of their own, with the model's tables in them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _, TestRunOptions,
    maps::{
        Array, ArrayOfMaps, HashMap, IterableMap, Map, MapData, PerCpuArray, RingBuf,
        lpm_trie::{Key as Prefix, LpmTrie},
        xdp::DevMapHash,
    },
    programs::Xdp,
};
use aya_obj::generated::bpf_map_type;
use lb_common::{
    address::Address,
    flow::{EventV4, EventV6, FlowEntry, FlowKeyV4, FlowKeyV6, Fragment, Pending},
    liveness::{Heard, Liveness},
    maps,
    node::{Budget, Node},
    reason::{Counter, Reason, ServiceCounters},
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::{NextHop, Target},
};
use model::{
    Event, Model,
    tables::{Family, Learned, Written},
};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::twins::same;

/// Room in the maps; what the model has must be below.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// In each of the flow tables.
    pub(super) flows: u32,
    /// In `services` and `service_count`.
    pub(super) services: u32,
}

/// More than a world's packets can fill, so that the kernel evicts nothing.
const REMEMBERED: u32 = 1 << 15;

/// The programs, one for frames in one buffer, one for frames in several.
pub(super) const PROGRAMS: [&str; 2] = ["balancer", "balancer_frags"];

pub(super) struct Kernel {
    ebpf: Ebpf,
    v4: Remembered<FlowKeyV4>,
    v6: Remembered<FlowKeyV6>,
    services: HashMap<MapData, ServiceKey, Service>,
    vip_filter: Array<MapData, VipFilter>,
    rings: ArrayOfMaps<MapData>,
    backends: Array<MapData, Target>,
    members: Array<MapData, Target>,
    peers: HashMap<MapData, Address, u32>,
    prefixes: LpmTrie<MapData, Address, u32>,
    gateways: Array<MapData, NextHop>,
    devices: DevMapHash<MapData>,
    liveness: Array<MapData, Liveness>,
    heard: Array<MapData, Heard>,
    node: Array<MapData, Node>,
    counters: PerCpuArray<MapData, Counter>,
    service_count: PerCpuArray<MapData, ServiceCounters>,
    backend_count: PerCpuArray<MapData, Counter>,
    member_count: PerCpuArray<MapData, Counter>,
    budget: PerCpuArray<MapData, Budget>,
    events: RingBuf<MapData>,
    /// What the maps hold of the agent's.
    installed: Model,
    output: Vec<u8>,
}

/// The maps of a family.
pub(super) struct Remembered<K: Pod> {
    flows: HashMap<MapData, K, FlowEntry>,
    pending: HashMap<MapData, K, Pending>,
    fragments: HashMap<MapData, K, Fragment>,
}

impl Kernel {
    /// Loads the programs of `object` on new maps.
    pub(super) fn load(object: &[u8], room: Room) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        // As the agent does: no program reads kernel structures.
        loader.btf(None);
        for name in [maps::FLOWS, maps::FLOWS_V6] {
            loader.map_max_entries(name, room.flows);
        }
        for name in [maps::PENDING, maps::PENDING_V6, maps::FRAGMENTS, maps::FRAGMENTS_V6] {
            loader.map_max_entries(name, REMEMBERED);
        }
        for name in [maps::SERVICES, maps::SERVICE_COUNT] {
            loader.map_max_entries(name, room.services);
        }
        let mut ebpf = loader.load(object).context("the object does not load (run as root)")?;
        for name in PROGRAMS {
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("the verifier refuses `{name}`"))?;
        }
        Ok(Self {
            v4: Remembered::of(&mut ebpf, [maps::FLOWS, maps::PENDING, maps::FRAGMENTS])?,
            v6: Remembered::of(&mut ebpf, [maps::FLOWS_V6, maps::PENDING_V6, maps::FRAGMENTS_V6])?,
            services: take(&mut ebpf, maps::SERVICES)?,
            vip_filter: take(&mut ebpf, maps::VIP_FILTER)?,
            rings: take(&mut ebpf, maps::RINGS)?,
            backends: take(&mut ebpf, maps::BACKENDS)?,
            members: take(&mut ebpf, maps::MEMBERS)?,
            peers: take(&mut ebpf, maps::PEERS)?,
            prefixes: take(&mut ebpf, maps::PEER_PREFIXES)?,
            gateways: take(&mut ebpf, maps::GATEWAYS)?,
            devices: take(&mut ebpf, maps::DEVICES)?,
            liveness: take(&mut ebpf, maps::LIVENESS)?,
            heard: take(&mut ebpf, maps::HEARD)?,
            node: take(&mut ebpf, maps::NODE)?,
            counters: take(&mut ebpf, maps::COUNTERS)?,
            service_count: take(&mut ebpf, maps::SERVICE_COUNT)?,
            backend_count: take(&mut ebpf, maps::BACKEND_COUNT)?,
            member_count: take(&mut ebpf, maps::MEMBER_COUNT)?,
            budget: take(&mut ebpf, maps::BUDGET)?,
            events: events_ring(take(&mut ebpf, maps::EVENTS)?)?,
            ebpf,
            installed: Model::new(0),
            output: vec![0; 1 << 14],
        })
    }

    /// Runs a program on a frame: its verdict, and the frame afterwards.
    pub(super) fn run(&mut self, program: &str, frame: &[u8]) -> Result<(u32, &[u8])> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex; loopback stands for no interface.
        let context = [0, frame.len() as u32, 0, 0, 0, 0];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut self.output),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::new()
        };
        let program: &Xdp = self.ebpf.program(program).context("loaded")?.try_into()?;
        let result = program.test_run(options).context("the kernel does not run it")?;
        Ok((result.return_value, &self.output[..result.data_size_out as usize]))
    }

    /// Writes what the agent would write, as far as it differs from what is there.
    pub(super) fn install(&mut self, world: &Model) -> Result<()> {
        let before = std::mem::replace(&mut self.installed, world.clone());
        self.node.set(0, *world.node, 0)?;
        self.liveness.set(0, world.liveness, 0)?;
        self.vip_filter.set(0, *world.vip_filter, 0)?;
        for (family, hop) in (0..).zip(world.gateways) {
            self.gateways.set(family, hop, 0)?;
        }
        differences(&before.services, &world.services, |key, service| match service {
            Some(service) => self.services.insert(key, service, 0),
            None => self.services.remove(key),
        })?;
        differences(&before.peers, &world.peers, |address, id| match id {
            Some(id) => self.peers.insert(address, u32::from(*id), 0),
            None => self.peers.remove(address),
        })?;
        differences(&before.prefixes, &world.prefixes, |(address, length), id| match id {
            Some(id) => self.prefixes.insert(&Prefix::new(*length, *address), u32::from(*id), 0),
            None => self.prefixes.remove(&Prefix::new(*length, *address)),
        })?;
        for device in world.devices.difference(&before.devices) {
            // Any interface that is there will do: what is redirected goes nowhere in a test run.
            self.devices.insert(*device, 1, None, 0)?;
        }
        differences(&before.members, &world.members, |id, member| {
            self.members.set(u32::from(*id), member.unwrap_or(&Target::NONE), 0)
        })?;
        differences(&before.backends, &world.backends, |slot, backend| {
            self.backends.set(u32::from(*slot), backend.unwrap_or(&Target::NONE), 0)
        })?;
        differences(&before.heard.borrow(), &world.heard.borrow(), |id, heard| {
            self.heard.set(u32::from(*id), heard.copied().unwrap_or_else(Heard::new_zeroed), 0)
        })?;
        differences(&before.rings, &world.rings, |index, ring| {
            // Every world has the same ones.
            let Some(ring) = ring else { return Ok(()) };
            let inner =
                MapData::create(definition(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, size_of::<Ring>(), 1), "ring", None)?;
            let mut inner = Array::<_, Ring>::try_from(Map::Array(inner))?;
            inner.set(0, **ring, 0)?;
            self.rings.set(*index, IterableMap::map(&inner), 0)
        })
    }

    /// Takes note of what probes have written, so that the next installation takes it back.
    pub(super) fn note_heard(&self, heard: &BTreeMap<u8, Heard>) {
        self.installed.heard.borrow_mut().clone_from(heard);
    }

    /// Puts what the model remembers of flows in the place of what is there.
    pub(super) fn remember(&mut self, world: &Model) -> Result<()> {
        self.v4.replace(&world.v4.borrow())?;
        self.v6.replace(&world.v6.borrow())
    }

    /// Compares what is remembered of flows with the model, all of it.
    pub(super) fn same_memory(&self, world: &Model) -> Result<(), String> {
        self.v4.same(&world.v4.borrow())?;
        self.v6.same(&world.v6.borrow())
    }

    /// Compares what the model has written with what is there, and forgets that it has.
    pub(super) fn same_writes(&self, world: &Model) -> Result<(), String> {
        self.v4.same_writes(&mut world.v4.borrow_mut())?;
        self.v6.same_writes(&mut world.v6.borrow_mut())
    }

    /// A reason's counter, summed over the CPUs.
    pub(super) fn counter(&self, reason: Reason) -> Result<Counter> {
        sum(&self.counters, reason as u32)
    }

    /// The counter of deliveries to a backend.
    pub(super) fn delivered(&self, slot: u16) -> Result<Counter> {
        sum(&self.backend_count, u32::from(slot))
    }

    /// The counter of hand-offs to a member.
    pub(super) fn handed_off(&self, id: u8) -> Result<Counter> {
        sum(&self.member_count, u32::from(id))
    }

    /// The counters of a service.
    pub(super) fn service(&self, ring: u32) -> Result<ServiceCounters> {
        let values = self.service_count.get(&ring, 0)?;
        Ok(values.iter().fold(ServiceCounters::new_zeroed(), |total, one| ServiceCounters {
            delivered: added(total.delivered, &one.delivered),
            handed_off: added(total.handed_off, &one.handed_off),
            answered: added(total.answered, &one.answered),
            dropped: added(total.dropped, &one.dropped),
        }))
    }

    /// What was last heard from a member.
    pub(super) fn heard(&self, id: u8) -> Result<Heard> {
        Ok(self.heard.get(&u32::from(id), 0)?)
    }

    /// The budget used on a CPU.
    pub(super) fn budget(&self, cpu: usize) -> Result<Budget> {
        Ok(self.budget.get(&0, 0)?[cpu])
    }

    /// The events since the last call.
    pub(super) fn take_events(&mut self) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(if let Ok(EventV4 { key, entry }) = EventV4::read_from_bytes(&item) {
                Event::V4(key, entry)
            } else if let Ok(EventV6 { key, entry }) = EventV6::read_from_bytes(&item) {
                Event::V6(key, entry)
            } else {
                return Err(format!("an event of {} bytes, which no family's has", item.len()));
            });
        }
        Ok(events)
    }
}

impl<K: Pod + Family> Remembered<K> {
    fn of(ebpf: &mut Ebpf, [flows, pending, fragments]: [&str; 3]) -> Result<Self> {
        Ok(Self { flows: take(ebpf, flows)?, pending: take(ebpf, pending)?, fragments: take(ebpf, fragments)? })
    }

    fn replace(&mut self, model: &Learned<K>) -> Result<()> {
        replace(&mut self.flows, &model.flows)?;
        replace(&mut self.pending, &model.pending)?;
        replace(&mut self.fragments, &model.fragments)
    }

    fn same(&self, model: &Learned<K>) -> Result<(), String> {
        same_map("flows", &self.flows, &model.flows)?;
        same_map("pending", &self.pending, &model.pending)?;
        same_map("fragments", &self.fragments, &model.fragments)
    }

    fn same_writes(&self, model: &mut Learned<K>) -> Result<(), String> {
        for written in std::mem::take(&mut model.written) {
            match written {
                Written::Flow(key) => same_element("flows", &self.flows, &model.flows, &key)?,
                Written::Pending(key) => same_element("pending", &self.pending, &model.pending, &key)?,
                Written::Fragment(key) => same_element("fragments", &self.fragments, &model.fragments, &key)?,
            }
        }
        Ok(())
    }
}

fn replace<K: Pod + Family, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    elements: &std::collections::HashMap<K, V>,
) -> Result<()> {
    let old: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| map.remove(key))?;
    elements.iter().try_for_each(|(key, value)| map.insert(key, value, 0))?;
    Ok(())
}

fn same_map<K: Pod + Family, V: Pod + PartialEq + std::fmt::Debug>(
    what: &str,
    map: &HashMap<MapData, K, V>,
    model: &std::collections::HashMap<K, V>,
) -> Result<(), String> {
    let kernel: BTreeMap<K, V> = map.iter().collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let model: BTreeMap<K, V> = model.iter().map(|(key, value)| (*key, *value)).collect();
    same(what, &kernel, &model)
}

fn same_element<K: Pod + Family, V: Pod + PartialEq + std::fmt::Debug>(
    what: &str,
    map: &HashMap<MapData, K, V>,
    model: &std::collections::HashMap<K, V>,
    key: &K,
) -> Result<(), String> {
    same(what, &map.get(key, 0).ok(), &model.get(key).copied())
}

fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("there is no map {name}"))?;
    T::try_from(map).ok().with_context(|| format!("the map {name} is of another type"))
}

/// Calls `write` for every key whose value differs.
fn differences<K: Ord, V: PartialEq, E: Into<anyhow::Error>>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    mut write: impl FnMut(&K, Option<&V>) -> Result<(), E>,
) -> Result<()> {
    let gone = before.keys().filter(|key| !after.contains_key(key)).map(|key| (key, None));
    let other =
        after.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, value)| (key, Some(value)));
    gone.chain(other).try_for_each(|(key, value)| write(key, value)).map_err(Into::into)
}

fn sum(map: &PerCpuArray<MapData, Counter>, index: u32) -> Result<Counter> {
    Ok(map.get(&index, 0)?.iter().fold(Counter { packets: 0, bytes: 0 }, added))
}

fn added(total: Counter, one: &Counter) -> Counter {
    Counter { packets: total.packets + one.packets, bytes: total.bytes + one.bytes }
}

/// Puts one ring buffer in the places of all CPUs, so that events are seen in their order.
fn events_ring(mut rings: ArrayOfMaps<MapData>) -> Result<RingBuf<MapData>> {
    let definition = definition(bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, maps::EVENT_RING_BYTES);
    let ring = MapData::create(definition, "ring", None)?;
    for cpu in 0..aya::util::nr_cpus().map_err(|(_, error)| error)? as u32 {
        rings.set(cpu, &ring, 0)?;
    }
    Ok(RingBuf::try_from(Map::RingBuf(ring))?)
}

fn definition(map_type: bpf_map_type, key: u32, value: usize, entries: u32) -> aya_obj::Map {
    aya_obj::Map::new_from_params(map_type as u32, key, value as u32, entries, 0)
}
