//! Names (at most 15 characters, as the kernel keeps them) and default capacities of the maps.

/// Preallocated HASH: `FlowKeyV4` to `FlowEntry`.
pub const FLOWS: &str = "flows";
/// LRU_HASH, one for all CPUs: `FlowKeyV4` to `Pending`.
pub const PENDING: &str = "pending";
/// Preallocated HASH: `FlowKeyV6` to `FlowEntry`.
pub const FLOWS_V6: &str = "flows_v6";
/// LRU_HASH, one for all CPUs: `FlowKeyV6` to `Pending`.
pub const PENDING_V6: &str = "pending_v6";
/// LRU_HASH: the key of a datagram (`FlowKey::datagram`) to `Fragment`.
pub const FRAGMENTS: &str = "fragments";
/// The same of IPv6.
pub const FRAGMENTS_V6: &str = "fragments_v6";
/// HASH: `ServiceKey` to `Service`.
pub const SERVICES: &str = "services";
/// ARRAY of one: `VipFilter`.
pub const VIP_FILTER: &str = "vip_filter";
/// ARRAY_OF_MAPS: by `Service::ring`, each inner map an ARRAY of one `Ring`.
pub const RINGS: &str = "rings";
/// ARRAY by local slot: `Target`; slot 0 stands for "none".
pub const BACKENDS: &str = "backends";
/// ARRAY by member id: `Target`; 0 is unused.
pub const MEMBERS: &str = "members";
/// HASH: `Address` of a member to its id (`u32`).
pub const PEERS: &str = "peers";
/// LPM_TRIE over `Address` to member id (`u32`): prefixes that hand-offs may come from; see `NODE_PEER_PREFIXES`.
pub const PEER_PREFIXES: &str = "peer_prefixes";
/// ARRAY by family (`V4`, `V6`): `NextHop`, the way back to clients for answers to packets that came through a peer.
pub const GATEWAYS: &str = "gateways";
/// DEVMAP_HASH by interface index: the interfaces that packets may leave by.
pub const DEVICES: &str = "devices";
/// ARRAY of one: `Liveness`.
pub const LIVENESS: &str = "liveness";
/// ARRAY by member id: `Heard`.
pub const HEARD: &str = "heard";
/// ARRAY of one: `Node`.
pub const NODE: &str = "node";
/// PERCPU_ARRAY by `Reason`: `Counter`.
pub const COUNTERS: &str = "counters";
/// PERCPU_ARRAY by `Service::ring`: `ServiceCounters`.
pub const SERVICE_COUNT: &str = "service_count";
/// PERCPU_ARRAY by local slot: `Counter` of deliveries.
pub const BACKEND_COUNT: &str = "backend_count";
/// PERCPU_ARRAY by member id: `Counter` of hand-offs.
pub const MEMBER_COUNT: &str = "member_count";
/// PERCPU_ARRAY of one: `Budget`.
pub const BUDGET: &str = "budget";
/// ARRAY_OF_MAPS by CPU, each inner map a RINGBUF of `Event`s.
pub const EVENTS: &str = "events";

/// Flows a member can hold by default: about 117 MB of kernel memory.
pub const FLOWS_MAX: u32 = 1 << 20;
/// Tuples remembered before they earn an entry: 63 s of 4,000 honest SYNs a second.
pub const PENDING_MAX: u32 = 1 << 18;
/// Datagrams whose fragments are under way: 2,000 a second for 30 s.
pub const FRAGMENTS_MAX: u32 = 1 << 16;
/// Prefixes that hand-offs may come from: two families of 64 members.
pub const PEER_PREFIXES_MAX: u32 = 128;
/// Interfaces that packets may leave by.
pub const DEVICES_MAX: u32 = 64;
/// Services (and VIP marks) a member can hold.
pub const SERVICES_MAX: u32 = 4096;
/// How much further on in `rings` a service's ring of before the last change of servers is.
pub const PREVIOUS_RINGS: u32 = SERVICES_MAX;
/// Rings: of each service that of now and that of before.
pub const RINGS_MAX: u32 = PREVIOUS_RINGS + SERVICES_MAX;
/// Backend slots, including slot 0; slots are 16 bits wide in entries and rings.
pub const BACKENDS_MAX: u32 = 1 << 14;
/// Elements of the arrays indexed by member id.
pub const MEMBER_SLOTS: u32 = 65;
/// CPUs that can have an event ring.
pub const CPUS_MAX: u32 = 512;
/// Bytes of one CPU's event ring: 16,000 events, 125 ms of a full budget.
pub const EVENT_RING_BYTES: u32 = 1 << 20;
