//! The programs in the kernel, on maps of their own.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Debug,
    io::Write as _,
    sync::{Arc, Once},
};

use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _, TestRunOptions,
    maps::{
        Array, ArrayOfMaps, HashMap, IterableMap, Map, MapData, PerCpuArray, RingBuf,
        lpm_trie::{Key as Prefix, LpmTrie},
        xdp::DevMapHash,
    },
    programs::{ProgramError, Xdp},
};
use aya_obj::generated::bpf_map_type;
use lb_common::{
    address::Address,
    flow::{EventV4, EventV6, FlowEntry, FlowKey, FlowKeyV4, FlowKeyV6, Fragment, Pending},
    liveness::{Heard, Liveness},
    maps,
    node::{Budget, Node},
    rank::MEMBERS_MAX,
    reason::{Action, Counter, Reason, ServiceCounters},
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::{NextHop, Target},
};
use lb_userspace::io::datapath::OBJECT;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use crate::{
    counts::{self, Counts},
    world::{ELSEWHERE, LOOPBACK, World},
};

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
    pub(crate) fragments: BTreeMap<FlowKeyV4, Fragment>,
    pub(crate) flows_v6: BTreeMap<FlowKeyV6, FlowEntry>,
    pub(crate) pending_v6: BTreeMap<FlowKeyV6, Pending>,
    pub(crate) fragments_v6: BTreeMap<FlowKeyV6, Fragment>,
}

/// A balancer program, and a world in its maps.
pub(crate) struct Rig {
    /// What the agent has written.
    pub(crate) world: World,
    program: &'static str,
    ebpf: Ebpf,
    tables: Tables,
    ring: RefCell<RingBuf<MapData>>,
}

/// A key, and the maps of its family.
pub(crate) trait Key: FlowKey + Pod + Ord + Debug {
    /// The maps of this family.
    fn family(tables: &Tables) -> &Family<Self>;
}

impl Key for FlowKeyV4 {
    fn family(tables: &Tables) -> &Family<Self> {
        &tables.v4
    }
}

impl Key for FlowKeyV6 {
    fn family(tables: &Tables) -> &Family<Self> {
        &tables.v6
    }
}

/// The maps of a family, and its events.
pub(crate) struct Family<K: Pod> {
    flows: RefCell<HashMap<MapData, K, FlowEntry>>,
    pending: RefCell<HashMap<MapData, K, Pending>>,
    fragments: RefCell<HashMap<MapData, K, Fragment>>,
    events: RefCell<Vec<(K, FlowEntry)>>,
}

/// The maps, typed.
pub(crate) struct Tables {
    v4: Family<FlowKeyV4>,
    v6: Family<FlowKeyV6>,
    services: HashMap<MapData, ServiceKey, Service>,
    vip_filter: Array<MapData, VipFilter>,
    rings: ArrayOfMaps<MapData>,
    backends: Array<MapData, Target>,
    members: Array<MapData, Target>,
    peers: HashMap<MapData, Address, u32>,
    peer_prefixes: LpmTrie<MapData, Address, u32>,
    gateways: Array<MapData, NextHop>,
    liveness: Array<MapData, Liveness>,
    heard: Array<MapData, Heard>,
    node: Array<MapData, Node>,
    counters: PerCpuArray<MapData, Counter>,
    service_count: PerCpuArray<MapData, ServiceCounters>,
    backend_count: PerCpuArray<MapData, Counter>,
    member_count: PerCpuArray<MapData, Counter>,
    budget: PerCpuArray<MapData, Budget>,
}

impl Rig {
    /// Loads the program on new maps and fills them.
    pub(crate) fn of(world: World) -> Self {
        Self::with_capacity(world, FLOWS)
    }

    /// The same, with room for so many flows of each family.
    pub(crate) fn with_capacity(world: World, flows: u32) -> Self {
        Self::running("balancer", world, flows)
    }

    /// The same with the program for frames in several buffers.
    pub(crate) fn for_jumbo_frames(world: World) -> Self {
        Self::running("balancer_frags", world, FLOWS)
    }

    fn running(program: &'static str, world: World, flows: u32) -> Self {
        let mut ebpf = load_object(|loader| {
            loader.map_max_entries(maps::FLOWS, flows).map_max_entries(maps::FLOWS_V6, flows);
        });
        let mut tables = Tables::of(&mut ebpf);
        xdp(&mut ebpf, program).load().expect("the verifier accepts it");
        // From now on the program keeps the maps.
        let ring = RefCell::new(events_ring(ebpf.take_map(maps::EVENTS).expect("in the object")));
        let mut devices: DevMapHash<_> = take(&mut ebpf, maps::DEVICES);
        // A device that there is, for one that there may not be: how a packet is sent is the kernel's.
        devices.insert(ELSEWHERE, LOOPBACK, None, 0).expect("devices");
        tables.install(&world, None);
        Self { world, program, ebpf, tables, ring }
    }

    /// Changes what the agent has written.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut World)) {
        let before = self.world.clone();
        change(&mut self.world);
        self.tables.install(&self.world, Some(&before));
    }

    /// Runs the program on a frame, and checks that it is counted once wherever it must be, and nowhere else.
    pub(crate) fn send(&self, frame: &[u8]) -> Seen {
        let before = self.counts();
        let (verdict, seen) = self.run(frame);
        let reason = (self.counts() - &before).assert_one(frame.len());
        assert_verdict(verdict, reason);
        Seen { verdict, reason, frame: seen }
    }

    /// Runs the program on a frame: its verdict and the frame afterwards.
    pub(crate) fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        run(&self.ebpf, self.program, frame)
    }

    /// Runs the program on a frame whose driver left almost no room in front of it; None where the kernel cannot.
    pub(crate) fn run_without_headroom(&self, frame: &[u8]) -> Option<(u32, Vec<u8>)> {
        // The 256 bytes hold this metadata and the kernel's struct xdp_frame (40 bytes). Older kernels let metadata
        // take 32 bytes at most.
        try_run(&self.ebpf, self.program, frame, 200).ok()
    }

    /// A reason's counter, summed over the CPUs.
    pub(crate) fn counter(&self, reason: Reason) -> Counter {
        summed(&self.tables.counters, reason as u32)
    }

    /// All counters.
    pub(crate) fn counts(&self) -> Counts {
        let tables = &self.tables;
        let service = |index| {
            let values = tables.service_count.get(&index, 0).expect("in the array");
            let of = |pick: fn(&ServiceCounters) -> &Counter| counts::sum(values.iter().map(pick));
            ServiceCounters {
                delivered: of(|service| &service.delivered),
                handed_off: of(|service| &service.handed_off),
                answered: of(|service| &service.answered),
                dropped: of(|service| &service.dropped),
            }
        };
        Counts {
            reasons: Reason::ALL.iter().map(|reason| self.counter(*reason)).collect(),
            services: (0..counts::RINGS).map(service).collect(),
            backends: (0..counts::SLOTS).map(|slot| summed(&tables.backend_count, slot)).collect(),
            members: (0..=MEMBERS_MAX as u32).map(|id| summed(&tables.member_count, id)).collect(),
        }
    }

    /// The flow's entry.
    pub(crate) fn flow<K: Key>(&self, key: &K) -> Option<FlowEntry> {
        K::family(&self.tables).flows.borrow().get(key, 0).ok()
    }

    /// Writes or deletes a flow's entry, as the agent does.
    pub(crate) fn set_flow<K: Key>(&self, key: &K, entry: Option<&FlowEntry>) {
        write(&K::family(&self.tables).flows, key, entry);
    }

    /// What is remembered of a tuple without an entry.
    pub(crate) fn pending<K: Key>(&self, key: &K) -> Option<Pending> {
        K::family(&self.tables).pending.borrow().get(key, 0).ok()
    }

    /// Writes or deletes it: how the tests let time pass.
    pub(crate) fn set_pending<K: Key>(&self, key: &K, pending: Option<&Pending>) {
        write(&K::family(&self.tables).pending, key, pending);
    }

    /// Writes or deletes what is remembered of a datagram's first fragment.
    pub(crate) fn set_fragment<K: Key>(&self, datagram: &K, fragment: Option<&Fragment>) {
        write(&K::family(&self.tables).fragments, datagram, fragment);
    }

    /// All that packets have left behind.
    pub(crate) fn state(&self) -> State {
        let Tables { v4, v6, .. } = &self.tables;
        State {
            flows: contents(&v4.flows),
            pending: contents(&v4.pending),
            fragments: contents(&v4.fragments),
            flows_v6: contents(&v6.flows),
            pending_v6: contents(&v6.pending),
            fragments_v6: contents(&v6.fragments),
        }
    }

    /// The events of a family since the last call.
    pub(crate) fn events<K: Key>(&self) -> Vec<(K, FlowEntry)> {
        let mut ring = self.ring.borrow_mut();
        while let Some(item) = ring.next() {
            if let Ok(event) = EventV4::read_from_bytes(&item) {
                self.tables.v4.events.borrow_mut().push((event.key, event.entry));
            } else {
                let event = EventV6::read_from_bytes(&item).expect("of one of the two sizes");
                self.tables.v6.events.borrow_mut().push((event.key, event.entry));
            }
        }
        K::family(&self.tables).events.take()
    }

    /// The IPv4 events since the last call.
    pub(crate) fn take_events(&self) -> Vec<EventV4> {
        self.events().into_iter().map(|(key, entry)| EventV4 { key, entry }).collect()
    }

    /// Makes it forget what was last heard from a member.
    pub(crate) fn forget_heard(&mut self, id: u8) {
        self.tables.heard.set(u32::from(id), Heard::new_zeroed(), 0).expect("in the array");
    }

    /// What was last heard from a member.
    pub(crate) fn heard(&self, id: u8) -> Heard {
        self.tables.heard.get(&u32::from(id), 0).expect("in the array")
    }

    /// The budget used on a CPU.
    pub(crate) fn budget(&self, cpu: usize) -> Budget {
        self.tables.budget.get(&0, 0).expect("one element")[cpu]
    }
}

impl<K: Pod> Family<K> {
    fn of(ebpf: &mut Ebpf, [flows, pending, fragments]: [&str; 3]) -> Self {
        Self {
            flows: RefCell::new(take(ebpf, flows)),
            pending: RefCell::new(take(ebpf, pending)),
            fragments: RefCell::new(take(ebpf, fragments)),
            events: RefCell::default(),
        }
    }
}

impl Tables {
    fn of(ebpf: &mut Ebpf) -> Self {
        Self {
            v4: Family::of(ebpf, [maps::FLOWS, maps::PENDING, maps::FRAGMENTS]),
            v6: Family::of(ebpf, [maps::FLOWS_V6, maps::PENDING_V6, maps::FRAGMENTS_V6]),
            services: take(ebpf, maps::SERVICES),
            vip_filter: take(ebpf, maps::VIP_FILTER),
            rings: take(ebpf, maps::RINGS),
            backends: take(ebpf, maps::BACKENDS),
            members: take(ebpf, maps::MEMBERS),
            peers: take(ebpf, maps::PEERS),
            peer_prefixes: take(ebpf, maps::PEER_PREFIXES),
            gateways: take(ebpf, maps::GATEWAYS),
            liveness: take(ebpf, maps::LIVENESS),
            heard: take(ebpf, maps::HEARD),
            node: take(ebpf, maps::NODE),
            counters: take(ebpf, maps::COUNTERS),
            service_count: take(ebpf, maps::SERVICE_COUNT),
            backend_count: take(ebpf, maps::BACKEND_COUNT),
            member_count: take(ebpf, maps::MEMBER_COUNT),
            budget: take(ebpf, maps::BUDGET),
        }
    }

    /// Writes what the agent would write; from `before`, only the differences.
    fn install(&mut self, world: &World, before: Option<&World>) {
        let empty = World::new(0);
        let before = before.unwrap_or(&empty);
        for (family, hop) in (0..).zip(world.gateways) {
            self.gateways.set(family, hop, 0).expect("gateways");
        }
        differences(&before.peer_prefixes, &world.peer_prefixes, |(bits, address), id| {
            let prefix = Prefix::new(bits, address);
            match id {
                Some(id) => self.peer_prefixes.insert(&prefix, u32::from(id), 0).expect("peer_prefixes"),
                None => self.peer_prefixes.remove(&prefix).expect("peer_prefixes"),
            }
        });
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
        differences(&before.heard, &world.heard, |id, heard| {
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

/// The map `name`, of this type.
fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> T {
    T::try_from(ebpf.take_map(name).expect(name)).unwrap_or_else(|_| panic!("{name} has another type"))
}

fn write<K: Pod, V: Pod>(map: &RefCell<HashMap<MapData, K, V>>, key: &K, value: Option<&V>) {
    let mut map = map.borrow_mut();
    match value {
        Some(value) => map.insert(key, value, 0).expect("there is room"),
        None => drop(map.remove(key)),
    }
}

fn contents<K: Pod + Ord, V: Pod>(map: &RefCell<HashMap<MapData, K, V>>) -> BTreeMap<K, V> {
    map.borrow().iter().map(|item| item.expect("readable")).collect()
}

fn summed(counters: &PerCpuArray<MapData, Counter>, index: u32) -> Counter {
    counts::sum(counters.get(&index, 0).expect("in the array").iter())
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
    let small = [
        (maps::FLOWS, 1),
        (maps::FLOWS_V6, 1),
        (maps::PENDING, 4096),
        (maps::PENDING_V6, 4096),
        (maps::FRAGMENTS, 4096),
        (maps::FRAGMENTS_V6, 4096),
        (maps::SERVICES, 64),
        (maps::SERVICE_COUNT, counts::RINGS),
        (maps::BACKEND_COUNT, counts::SLOTS),
    ];
    for (name, entries) in small {
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
        Action::Answer | Action::Deliver | Action::HandOff => &[XDP_TX, XDP_REDIRECT],
    };
    assert!(expected.contains(&verdict), "{}: verdict {verdict}", reason.name());
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
