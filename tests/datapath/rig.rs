//! The programs in the kernel, on maps of their own.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Once},
};

use crate::model::Model;
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, ArrayOfMaps, HashMap, IterableMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{ProgramError, Xdp},
};
use aya_obj::generated::bpf_map_type;
use lb_common::{
    address::Address,
    flow::{EventV4, FlowEntry, FlowKeyV4, Pending},
    liveness::{Heard, Liveness},
    maps,
    node::{Budget, Node},
    packet::ETHERNET,
    reason::{Action, Counter, Reason},
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::Target,
};
use lb_userspace::io::datapath::OBJECT;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

/// Verdicts of XDP programs (linux/bpf.h).
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;

/// Capacity of `flows` in the tests.
pub(crate) const FLOWS: u32 = 256;

/// What the kernel did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) verdict: u32,
    pub(crate) reason: Reason,
    pub(crate) frame: Vec<u8>,
}

/// What packets have left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) flows: BTreeMap<FlowKeyV4, FlowEntry>,
    pub(crate) pending: BTreeMap<FlowKeyV4, Pending>,
}

/// The program `balancer`, and a world in its maps.
pub(crate) struct Rig {
    /// What the agent has written.
    pub(crate) world: Model,
    ebpf: Ebpf,
    tables: Tables,
    events: RefCell<RingBuf<MapData>>,
}

/// The maps, typed.
struct Tables {
    flows: RefCell<HashMap<MapData, FlowKeyV4, FlowEntry>>,
    pending: RefCell<HashMap<MapData, FlowKeyV4, Pending>>,
    services: HashMap<MapData, ServiceKey, Service>,
    vip_filter: Array<MapData, VipFilter>,
    rings: ArrayOfMaps<MapData>,
    backends: Array<MapData, Target>,
    members: Array<MapData, Target>,
    peers: HashMap<MapData, Address, u32>,
    liveness: Array<MapData, Liveness>,
    heard: Array<MapData, Heard>,
    node: Array<MapData, Node>,
    counters: PerCpuArray<MapData, Counter>,
    budget: PerCpuArray<MapData, Budget>,
}

impl Rig {
    /// Loads the program on new maps and fills them.
    pub(crate) fn of(world: Model) -> Self {
        Self::with_capacity(world, FLOWS)
    }

    /// The same, with room for so many flows.
    pub(crate) fn with_capacity(world: Model, flows: u32) -> Self {
        let mut ebpf = load_object(|loader| {
            loader.map_max_entries(maps::FLOWS, flows);
        });
        let mut tables = Tables::of(&mut ebpf);
        xdp(&mut ebpf, "balancer").load().expect("the verifier accepts it");
        // From now on the program keeps the maps.
        let events = events_ring(ebpf.take_map(maps::EVENTS).expect("in the object"));
        tables.install(&world, None);
        Self { world, ebpf, tables, events: RefCell::new(events) }
    }

    /// Changes what the agent has written.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Model)) {
        let before = self.world.clone();
        change(&mut self.world);
        self.tables.install(&self.world, Some(&before));
    }

    /// Runs the program on a frame, and checks that one counter, and no other, counts it.
    pub(crate) fn send(&self, frame: &[u8]) -> Seen {
        let before = self.counters();
        let (verdict, seen) = self.run(frame);
        let counted: Vec<(Reason, Counter)> = (before.iter().zip(self.counters()))
            .filter(|(before, after)| **before != *after)
            .map(|((reason, before), (_, after))| (*reason, difference(before, &after)))
            .collect();
        let bytes = (frame.len() - ETHERNET) as u64;
        let [(reason, Counter { packets: 1, bytes: counted_bytes })] = counted[..] else {
            panic!("one packet bumped {counted:?}");
        };
        assert_eq!(counted_bytes, bytes, "{}", reason.name());
        assert_verdict(verdict, reason);
        Seen { verdict, reason, frame: seen }
    }

    /// Runs the program on a frame: its verdict and the frame afterwards.
    pub(crate) fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        run(&self.ebpf, "balancer", frame)
    }

    /// Runs the program on a frame whose driver left almost no room in front of it; None where the kernel cannot.
    pub(crate) fn run_without_headroom(&self, frame: &[u8]) -> Option<(u32, Vec<u8>)> {
        // The 256 bytes hold this metadata and the kernel's struct xdp_frame (40 bytes). Older kernels let metadata
        // take 32 bytes at most.
        try_run(&self.ebpf, "balancer", frame, 200).ok()
    }

    /// A reason's counter, summed over the CPUs.
    pub(crate) fn counter(&self, reason: Reason) -> Counter {
        let values = self.tables.counters.get(&(reason as u32), 0).expect("every reason has a counter");
        values.iter().fold(Counter { packets: 0, bytes: 0 }, |sum, counter| Counter {
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        })
    }

    fn counters(&self) -> Vec<(Reason, Counter)> {
        Reason::ALL.iter().map(|reason| (*reason, self.counter(*reason))).collect()
    }

    /// The flow's entry.
    pub(crate) fn flow(&self, key: &FlowKeyV4) -> Option<FlowEntry> {
        self.tables.flows.borrow().get(key, 0).ok()
    }

    /// Writes or deletes a flow's entry, as the agent does.
    pub(crate) fn set_flow(&self, key: &FlowKeyV4, entry: Option<&FlowEntry>) {
        let mut flows = self.tables.flows.borrow_mut();
        match entry {
            Some(entry) => flows.insert(key, entry, 0).expect("there is room"),
            None => drop(flows.remove(key)),
        }
    }

    /// What is remembered of a tuple without an entry.
    pub(crate) fn pending(&self, key: &FlowKeyV4) -> Option<Pending> {
        self.tables.pending.borrow().get(key, 0).ok()
    }

    /// Writes or deletes it: how the tests let time pass.
    pub(crate) fn set_pending(&self, key: &FlowKeyV4, pending: Option<&Pending>) {
        let mut map = self.tables.pending.borrow_mut();
        match pending {
            Some(pending) => map.insert(key, pending, 0).expect("there is room"),
            None => drop(map.remove(key)),
        }
    }

    /// All that packets have left behind.
    pub(crate) fn state(&self) -> State {
        State {
            flows: self.tables.flows.borrow().iter().map(|item| item.expect("readable")).collect(),
            pending: self.tables.pending.borrow().iter().map(|item| item.expect("readable")).collect(),
        }
    }

    /// What was last heard from a member.
    pub(crate) fn heard(&self, id: u8) -> Heard {
        self.tables.heard.get(&u32::from(id), 0).expect("in the array")
    }

    /// The events since the last call.
    pub(crate) fn take_events(&self) -> Vec<EventV4> {
        let mut ring = self.events.borrow_mut();
        std::iter::from_fn(|| ring.next().map(|item| EventV4::read_from_bytes(&item).expect("of its size"))).collect()
    }

    /// The budget used on a CPU.
    pub(crate) fn budget(&self, cpu: usize) -> Budget {
        self.tables.budget.get(&0, 0).expect("one element")[cpu]
    }
}

impl Tables {
    fn of(ebpf: &mut Ebpf) -> Self {
        fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> T {
            T::try_from(ebpf.take_map(name).expect(name)).unwrap_or_else(|_| panic!("{name} has another type"))
        }
        Self {
            flows: RefCell::new(take(ebpf, maps::FLOWS)),
            pending: RefCell::new(take(ebpf, maps::PENDING)),
            services: take(ebpf, maps::SERVICES),
            vip_filter: take(ebpf, maps::VIP_FILTER),
            rings: take(ebpf, maps::RINGS),
            backends: take(ebpf, maps::BACKENDS),
            members: take(ebpf, maps::MEMBERS),
            peers: take(ebpf, maps::PEERS),
            liveness: take(ebpf, maps::LIVENESS),
            heard: take(ebpf, maps::HEARD),
            node: take(ebpf, maps::NODE),
            counters: take(ebpf, maps::COUNTERS),
            budget: take(ebpf, maps::BUDGET),
        }
    }

    /// Writes what the agent would write; from `before`, only the differences.
    fn install(&mut self, world: &Model, before: Option<&Model>) {
        let empty = Model::new(0, [0; 16]);
        let before = before.unwrap_or(&empty);
        self.node.set(0, *world.node, 0).expect("node");
        self.liveness.set(0, world.liveness, 0).expect("liveness");
        self.vip_filter.set(0, *world.vip_filter, 0).expect("vip_filter");
        differences(&before.services, &world.services, |key, service| match service {
            Some(service) => self.services.insert(key, service, 0).expect("services"),
            None => self.services.remove(&key).expect("services"),
        });
        differences(&before.peers, &world.peers, |address, id| match id {
            Some(id) => self.peers.insert(address, u32::from(id), 0).expect("peers"),
            None => self.peers.remove(&address).expect("peers"),
        });
        differences(&before.members, &world.members, |id, member| {
            self.members.set(u32::from(id), member.unwrap_or(Target::NONE), 0).expect("members");
        });
        differences(&before.backends, &world.backends, |slot, backend| {
            self.backends.set(u32::from(slot), backend.unwrap_or(Target::NONE), 0).expect("backends");
        });
        differences(&before.heard.borrow(), &world.heard.borrow(), |id, heard| {
            self.heard.set(u32::from(id), heard.unwrap_or_else(Heard::new_zeroed), 0).expect("heard");
        });
        differences(&before.rings, &world.rings, |index, ring: Option<Arc<Ring>>| {
            let ring = ring.expect("the tests take no ring away");
            let inner =
                MapData::create(definition(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, size_of::<Ring>(), 1), "ring", None);
            let mut inner = Array::<_, Ring>::try_from(Map::Array(inner.expect("a ring"))).expect("an array");
            inner.set(0, *ring, 0).expect("a ring");
            self.rings.set(index, IterableMap::map(&inner), 0).expect("rings");
        });
    }
}

/// Calls `write` for every key whose value differs.
fn differences<K: Ord + Copy, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    mut write: impl FnMut(K, Option<V>),
) {
    before.keys().filter(|key| !after.contains_key(key)).for_each(|key| write(*key, None));
    after
        .iter()
        .filter(|(key, value)| before.get(key) != Some(value))
        .for_each(|(key, value)| write(*key, Some(value.clone())));
}

/// Puts one ring buffer in the places of all CPUs, so that the tests see events in their order.
fn events_ring(map: Map) -> RingBuf<MapData> {
    let mut rings = ArrayOfMaps::<MapData>::try_from(map).expect("an array of maps");
    let size = maps::EVENT_RING_BYTES;
    let ring = MapData::create(definition(bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, size), "ring", None);
    let ring = ring.expect("a ring buffer");
    for cpu in 0..aya::util::nr_cpus().expect("known") as u32 {
        rings.set(cpu, &ring, 0).expect("a place per CPU");
    }
    RingBuf::try_from(Map::RingBuf(ring)).expect("a ring buffer")
}

fn definition(map_type: bpf_map_type, key: u32, value: usize, entries: u32) -> aya_obj::Map {
    aya_obj::Map::new_from_params(map_type as u32, key, value as u32, entries, 0)
}

/// Parses the object and makes its maps, as small as they can be where size does not matter.
pub(crate) fn load_object(settings: impl FnOnce(&mut EbpfLoader<'_>)) -> Ebpf {
    require_root();
    let mut loader = EbpfLoader::new();
    // As the agent does: no program reads kernel structures.
    loader.btf(None);
    for (name, entries) in [(maps::FLOWS, 1), (maps::PENDING, 4096), (maps::SERVICES, 64), (maps::RINGS, 16)] {
        loader.map_max_entries(name, entries);
    }
    settings(&mut loader);
    loader.load(OBJECT).expect("the object loads")
}

/// The program `name`.
pub(crate) fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> &'e mut Xdp {
    ebpf.program_mut(name).expect(name).try_into().expect("an XDP program")
}

fn program<'e>(ebpf: &'e Ebpf, name: &str) -> &'e Xdp {
    ebpf.program(name).expect(name).try_into().expect("an XDP program")
}

/// Runs `name` on a frame.
pub(crate) fn run(ebpf: &Ebpf, name: &str, frame: &[u8]) -> (u32, Vec<u8>) {
    try_run(ebpf, name, frame, 0).expect("the kernel runs it")
}

/// Runs `name` on a frame that has `metadata` bytes in front of it, which cost it headroom.
fn try_run(ebpf: &Ebpf, name: &str, frame: &[u8], metadata: usize) -> Result<(u32, Vec<u8>), ProgramError> {
    let input = [&vec![0; metadata], frame].concat();
    // struct xdp_md: data (length of the metadata), data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [metadata as u32, input.len() as u32, 0, 0, 0, 0];
    let mut output = vec![0; input.len() + 256];
    let options = TestRunOptions {
        data_in: Some(&input),
        data_out: Some(&mut output),
        ctx_in: Some(context.as_bytes()),
        ..TestRunOptions::new()
    };
    let result = program(ebpf, name).test_run(options)?;
    output.truncate(result.data_size_out as usize);
    Ok((result.return_value, output.split_off(metadata)))
}

/// The pass and drop policy once more.
fn assert_verdict(verdict: u32, reason: Reason) {
    let expected: &[u32] = match reason.action() {
        Action::Pass => &[XDP_PASS],
        Action::Drop | Action::Consume => &[XDP_DROP],
        Action::Answer => &[XDP_TX],
        Action::Deliver | Action::HandOff => &[XDP_TX, XDP_REDIRECT],
    };
    assert!(expected.contains(&verdict), "{}: verdict {verdict}", reason.name());
}

fn difference(before: &Counter, after: &Counter) -> Counter {
    Counter { packets: after.packets - before.packets, bytes: after.bytes - before.bytes }
}

/// Ends the whole test program with one line, rather than every test with a backtrace.
fn require_root() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a system call without arguments.
        if unsafe { libc::geteuid() } != 0 {
            // Not by a macro: the test harness would capture it.
            let _ = writeln!(std::io::stderr(), "the datapath tests load programs into the kernel: run them as root");
            std::process::exit(1);
        }
    });
}
