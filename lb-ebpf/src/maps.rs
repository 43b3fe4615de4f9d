//! The maps: who writes, who reads. Names, layouts and capacities are `lb_common::maps`'s.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    check::{CHECK_WAYS_MAX, CheckWay},
    clamp, decap,
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6, Fragment, Pending},
    liveness::{Heard, Liveness},
    maps::{
        BACKENDS_MAX, CPUS_MAX, DEVICES_MAX, EVENT_RING_BYTES, FLOWS_MAX, FRAGMENTS_MAX, MEMBER_SLOTS,
        PEER_PREFIXES_MAX, PENDING_MAX, RINGS_MAX, SERVICES_MAX,
    },
    node::{Budget, Node},
    packet::{ETHERNET, Packet},
    rank::MEMBERS_MAX,
    reason::{Action, Counter, REASONS, Reason, ServiceCounters},
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::{NextHop, Target},
};

/// XDP inserts and touches, the agent does the rest. Preallocated: nothing is evicted, nothing is allocated per packet.
#[btf_map(name = "flows")]
pub(crate) static FLOWS: HashMap<FlowKeyV4, FlowEntry, { FLOWS_MAX as usize }> = HashMap::new();

/// As `flows`.
#[btf_map(name = "flows_v6")]
pub(crate) static FLOWS_V6: HashMap<FlowKeyV6, FlowEntry, { FLOWS_MAX as usize }> = HashMap::new();

/// XDP only. One LRU for all CPUs: the packets of a handshake may reach different ones.
#[btf_map(name = "pending")]
pub(crate) static PENDING: LruHashMap<FlowKeyV4, Pending, { PENDING_MAX as usize }> = LruHashMap::new();

/// As `pending`.
#[btf_map(name = "pending_v6")]
pub(crate) static PENDING_V6: LruHashMap<FlowKeyV6, Pending, { PENDING_MAX as usize }> = LruHashMap::new();

/// XDP only. One LRU for all CPUs: NICs spread first and later fragments differently.
#[btf_map(name = "fragments")]
pub(crate) static FRAGMENTS: LruHashMap<FlowKeyV4, Fragment, { FRAGMENTS_MAX as usize }> = LruHashMap::new();

/// As `fragments`.
#[btf_map(name = "fragments_v6")]
pub(crate) static FRAGMENTS_V6: LruHashMap<FlowKeyV6, Fragment, { FRAGMENTS_MAX as usize }> = LruHashMap::new();

/// Written by the agent.
#[btf_map(name = "services")]
pub(crate) static SERVICES: HashMap<ServiceKey, Service, { SERVICES_MAX as usize }> = HashMap::new();

/// Written by the agent.
#[btf_map(name = "vip_filter")]
pub(crate) static VIP_FILTER: Array<VipFilter, 1> = Array::new();

/// Written by the agent: a whole inner map at a time.
#[btf_map(name = "rings")]
pub(crate) static RINGS: ArrayOfMaps<Array<Ring, 1>, { RINGS_MAX as usize }> = ArrayOfMaps::new();

/// Written by the agent.
#[btf_map(name = "backends")]
pub(crate) static BACKENDS: Array<Target, { BACKENDS_MAX as usize }> = Array::new();

/// Written by the agent.
#[btf_map(name = "members")]
pub(crate) static MEMBERS: Array<Target, { MEMBER_SLOTS as usize }> = Array::new();

/// Written by the agent.
#[btf_map(name = "peers")]
pub(crate) static PEERS: HashMap<Address, u32, MEMBERS_MAX> = HashMap::new();

/// Written by the agent; consulted where `NODE_PEER_PREFIXES` says so.
#[btf_map(name = "peer_prefixes")]
pub(crate) static PEER_PREFIXES: LpmTrie<Address, u32, { PEER_PREFIXES_MAX as usize }> = LpmTrie::new();

/// Written by the agent.
#[btf_map(name = "gateways")]
pub(crate) static GATEWAYS: Array<NextHop, 2> = Array::new();

/// Written by the agent.
#[btf_map(name = "devices")]
pub(crate) static DEVICES: DevMapHash<{ DEVICES_MAX as usize }> = DevMapHash::new();

/// Written by the agent.
#[btf_map(name = "liveness")]
pub(crate) static LIVENESS: Array<Liveness, 1> = Array::new();

/// Written by XDP, read by the agent.
#[btf_map(name = "heard")]
pub(crate) static HEARD: Array<Heard, { MEMBER_SLOTS as usize }> = Array::new();

/// Written by the agent.
#[btf_map(name = "node")]
pub(crate) static NODE: Array<Node, 1> = Array::new();

/// Written by XDP.
#[btf_map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<Counter, REASONS> = PerCpuArray::new();

/// Written by XDP.
#[btf_map(name = "service_count")]
pub(crate) static SERVICE_COUNT: PerCpuArray<ServiceCounters, { SERVICES_MAX as usize }> = PerCpuArray::new();

/// Written by XDP.
#[btf_map(name = "backend_count")]
pub(crate) static BACKEND_COUNT: PerCpuArray<Counter, { BACKENDS_MAX as usize }> = PerCpuArray::new();

/// Written by XDP.
#[btf_map(name = "member_count")]
pub(crate) static MEMBER_COUNT: PerCpuArray<Counter, { MEMBER_SLOTS as usize }> = PerCpuArray::new();

/// XDP only.
#[btf_map(name = "budget")]
pub(crate) static BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();

/// Written by XDP, read by the agent; one ring per CPU, because producers of a shared one wait for each other.
#[btf_map(name = "events")]
pub(crate) static EVENTS: ArrayOfMaps<RingBuf<(), { EVENT_RING_BYTES as usize }>, { CPUS_MAX as usize }> =
    ArrayOfMaps::new();

/// XDP only: a packet between two functions, see `tables::Aside`.
#[btf_map(name = "aside")]
pub(crate) static ASIDE: PerCpuArray<Packet<FlowKeyV4>, 1> = PerCpuArray::new();

/// As `aside`.
#[btf_map(name = "aside_v6")]
pub(crate) static ASIDE_V6: PerCpuArray<Packet<FlowKeyV6>, 1> = PerCpuArray::new();

/// `decap`: written by its command.
#[btf_map(name = "decap_from")]
pub(crate) static DECAP_FROM: LpmTrie<Address, u32, { decap::DECAP_ENTRIES as usize }> = LpmTrie::new();

/// `decap`: written by its command.
#[btf_map(name = "decap_vips")]
pub(crate) static DECAP_VIPS: HashMap<Address, u32, { decap::DECAP_ENTRIES as usize }> = HashMap::new();

/// `decap`: written by XDP.
#[btf_map(name = "decap_counters")]
pub(crate) static DECAP_COUNTERS: PerCpuArray<Counter, { decap::Outcome::ALL.len() }> = PerCpuArray::new();

/// `clamp`: written by the command of `decap`.
#[btf_map(name = "clamp_mss")]
pub(crate) static CLAMP_MSS: Array<u32, 2> = Array::new();

/// `clamp`: written by the program.
#[btf_map(name = "clamp_counters")]
pub(crate) static CLAMP_COUNTERS: PerCpuArray<Counter, { clamp::Outcome::ALL.len() }> = PerCpuArray::new();

/// `check`: written by the agent.
#[btf_map(name = "check_ways")]
pub(crate) static CHECK_WAYS: HashMap<u64, CheckWay, { CHECK_WAYS_MAX as usize }> = HashMap::new();

/// Counts a packet of `frame_bytes` bytes, a link-layer header among them.
#[inline(always)]
pub(crate) fn count(reason: Reason, frame_bytes: usize) {
    add(COUNTERS.get_ptr_mut(reason as u32), frame_bytes);
}

/// Counts a packet of a service by what became of it; `NO_SERVICE` has no counters.
#[inline(always)]
pub(crate) fn count_service(service: u32, action: Action, frame_bytes: usize) {
    let Some(counters) = SERVICE_COUNT.get_ptr_mut(service) else { return };
    // SAFETY: as in `add`.
    let counters = unsafe { &mut *counters };
    bump(
        match action {
            Action::Deliver => &mut counters.delivered,
            Action::HandOff => &mut counters.handed_off,
            Action::Answer => &mut counters.answered,
            Action::Drop | Action::Pass | Action::Consume => &mut counters.dropped,
        },
        frame_bytes,
    );
}

/// Adds a packet to a counter of this CPU.
#[inline(always)]
pub(crate) fn add(counter: Option<*mut Counter>, frame_bytes: usize) {
    let Some(counter) = counter else { return };
    // SAFETY: this CPU's own element, and XDP programs of one CPU do not interrupt each other.
    bump(unsafe { &mut *counter }, frame_bytes);
}

#[inline(always)]
fn bump(counter: &mut Counter, frame_bytes: usize) {
    counter.packets += 1;
    counter.bytes += frame_bytes.wrapping_sub(ETHERNET) as u64;
}
