//! Tandem's programs under test, on maps of their own: the only file here that knows what is in those maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, IterableMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf, lpm_trie::Key},
    programs::{ProgramFd, Xdp},
};
use aya_obj::generated::bpf_map_type;
use lb_common::{
    abi,
    address::{Address, mapped},
    bench::{Course, client, source_port, source_v4, source_v6},
    decap,
    flow::{FlowEntry, FlowKey, FlowKeyV4, FlowKeyV6, PLAUSIBLE_PACKETS, STATE_ESTABLISHED, TCP, WITNESSED, tick},
    liveness::Liveness,
    maps,
    node::{BUDGET_CLASSES, NODE_DIRECT, Node, Source, V4, V6},
    rank::{bit, seed},
    reason::{Counter, Reason},
    ring::Ring,
    service::{Service, ServiceKey, VipFilter},
    target::{NextHop, TARGET_SERVING, Target},
};
use lb_userspace::io::datapath::OBJECT;
use zerocopy::FromZeros as _;

use super::{
    harness::FILLING,
    matrix::{Path, Row},
    packets::{CLIENT_V6, Destination, Family, Tunnel},
};

/// Flows that a table holds: as many as it does by default.
pub(crate) const CAPACITY: u32 = maps::FLOWS_MAX;

/// Backends of a service.
const BACKENDS: u16 = 100;
/// The primary of all flows.
const OWNER: u8 = 1;
/// Their backup, and the one who sends tunnel packets.
const PEER: u8 = 2;
/// The member under test where somebody else is to be the owner.
const RECEIVER: u8 = 3;
/// `BPF_PROG_TEST_RUN` says that packets come from the loopback interface.
pub(crate) const LOOPBACK: u32 = 1;

/// What the member under test is to its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Members of the cluster.
    members: u8,
    /// Family of the members' addresses: that of the clients, so that outer and inner headers are of one family.
    family: Family,
    /// This member.
    id: u8,
    /// Whether it delivers whatever flow it knows.
    direct: bool,
    /// Whether packets can be handed to others; if not, new flows are this member's, whoever ranks first.
    peers_reachable: bool,
}

/// What `row` needs, or in a word why the programs cannot take its packets (yet).
pub(crate) fn setting(row: &Row) -> Result<Option<Setting>, &'static str> {
    let usual = Setting { members: 16, family: row.family, id: OWNER, direct: false, peers_reachable: true };
    Ok(Some(match row.path {
        Path::Nothing | Path::Floor | Path::Decap | Path::Against(_) => return Ok(None),
        Path::Established | Path::FromPeer | Path::Pass => usual,
        Path::HandOff => Setting { id: RECEIVER, ..usual },
        Path::Direct => Setting { id: RECEIVER, direct: true, ..usual },
        Path::Syn(members) | Path::New(members) => Setting { members, peers_reachable: false, ..usual },
    }))
}

/// The counter that every packet of a path is to be found in; none where Tandem does not see them.
pub(crate) fn counter(path: Path) -> Option<&'static str> {
    Some(match path {
        Path::Nothing | Path::Floor | Path::Against(_) => return None,
        Path::Established | Path::FromPeer | Path::Direct => Reason::DeliverKnown.name(),
        Path::HandOff => Reason::HandOffKnown.name(),
        Path::Syn(_) => Reason::DeliverStateless.name(),
        Path::New(_) => Reason::DeliverNew.name(),
        Path::Pass => Reason::NotOurs.name(),
        Path::Decap => decap::Outcome::Stripped.name(),
    })
}

/// The outer header of the packets of a row, if they have one.
pub(crate) fn tunnel(row: &Row) -> Option<Tunnel> {
    let (source, destination) = match row.path {
        Path::FromPeer => (member_address(row.family, PEER), member_address(row.family, OWNER)),
        Path::Decap => (member_address(row.family, OWNER), backend_address(row.family, 1)),
        _ => return None,
    };
    Some(Tunnel { source, destination })
}

/// The programs, on maps of their own.
pub(crate) struct Tandem {
    ebpf: Ebpf,
    flows_v4: HashMap<MapData, FlowKeyV4, FlowEntry>,
    flows_v6: HashMap<MapData, FlowKeyV6, FlowEntry>,
    node: Array<MapData, Node>,
    liveness: Array<MapData, Liveness>,
    members: Array<MapData, Target>,
    counters: PerCpuArray<MapData, Counter>,
    decap_counters: PerCpuArray<MapData, Counter>,
    events: RingBuf<MapData>,
    setting: Option<Setting>,
    to: Destination,
    ifindex: u32,
}

impl Tandem {
    /// Loads the programs and configures one service per family with its backends; the flow tables are empty.
    ///
    /// Interface `ifindex` leads to all peers and backends.
    pub(crate) fn load(to: Destination, ifindex: u32) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        // As the agent does: no program reads kernel structures.
        let mut ebpf = loader.btf(None).load(OBJECT).context("the XDP programs do not load")?;
        for name in ["balancer", "decap"] {
            let program: &mut Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        configure_services(&mut ebpf, &to, ifindex)?;
        configure_decap(&mut ebpf, &to)?;
        let events = events_ring(&mut ebpf)?;
        Ok(Self {
            flows_v4: take(&mut ebpf, maps::FLOWS)?,
            flows_v6: take(&mut ebpf, maps::FLOWS_V6)?,
            node: take(&mut ebpf, maps::NODE)?,
            liveness: take(&mut ebpf, maps::LIVENESS)?,
            members: take(&mut ebpf, maps::MEMBERS)?,
            counters: take(&mut ebpf, maps::COUNTERS)?,
            decap_counters: take(&mut ebpf, decap::DECAP_COUNTERS)?,
            events,
            setting: None,
            to,
            ifindex,
            ebpf,
        })
    }

    /// A program, for the harness to call.
    pub(crate) fn program(&self, name: &str) -> Result<&ProgramFd> {
        let program: &Xdp = self.ebpf.program(name).context("no such program")?.try_into()?;
        Ok(program.fd()?)
    }

    /// Makes this member what `setting` says.
    pub(crate) fn set(&mut self, setting: Setting) -> Result<()> {
        if self.setting == Some(setting) {
            return Ok(());
        }
        let mut node = Box::new(Node::new_zeroed());
        node.schema = abi::SCHEMA;
        node.hash_key = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        for (index, family) in [(V4, Family::V4), (V6, Family::V6)] {
            node.addresses[index] = address(member_address(family, OWNER));
            let source = Source { address: node.addresses[index], spread: [0; 4] };
            (node.delivery_sources[index], node.hand_off_sources[index]) = (source, source);
        }
        node.silence_ns = u64::MAX;
        node.members = u32::from(setting.members);
        node.incarnation = 1;
        node.port = 7001_u16.to_be_bytes();
        node.id = setting.id;
        node.flags = if setting.direct { NODE_DIRECT } else { 0 };
        for id in 1..=setting.members {
            node.configured |= bit(id);
            node.seeds[usize::from(id) - 1].seed = seed(id);
            node.seeds[usize::from(id) - 1].id = u64::from(id);
            let ifindex = if setting.peers_reachable { self.ifindex } else { 0 };
            self.members.set(u32::from(id), target(member_address(setting.family, id), ifindex), 0)?;
        }
        let liveness = Liveness {
            forwarding: node.configured,
            eligible: node.configured,
            lease_until_ns: u64::MAX,
            doubt_until_ns: 0,
            grace_until_ns: 0,
            budgets: [u32::MAX; BUDGET_CLASSES],
            epoch: 0,
            awaited: 0,
            left: 0,
            flags: 0,
        };
        self.liveness.set(0, liveness, 0)?;
        self.node.set(0, *node, 0)?;
        self.setting = Some(setting);
        Ok(())
    }

    /// Records the flows of the clients from `base` on as established; their number is a power of two.
    pub(crate) fn fill(&mut self, family: Family, base: u32, clients: u32) -> Result<()> {
        let order = Course { flow_mask: clients - 1, base, stride: FILLING, ..Course::new_zeroed() };
        for n in 0..clients {
            let client = client(n, &order);
            match family {
                Family::V4 => {
                    let key = key_v4(client, &self.to);
                    self.flows_v4.insert(key, entry(&key, family, client), 0)
                }
                Family::V6 => {
                    let key = key_v6(client, &self.to);
                    self.flows_v6.insert(key, entry(&key, family, client), 0)
                }
            }
            .context("the flow table is full")?;
        }
        Ok(())
    }

    /// Forgets the flows of these clients.
    pub(crate) fn forget(&mut self, family: Family, base: u32, clients: u32) {
        for client in base..base + clients {
            // One that is not there is forgotten.
            let _ = match family {
                Family::V4 => self.flows_v4.remove(&key_v4(client, &self.to)),
                Family::V6 => self.flows_v6.remove(&key_v6(client, &self.to)),
            };
        }
    }

    /// Takes the events that packets have left behind, and counts them.
    pub(crate) fn take_events(&mut self) -> usize {
        std::iter::from_fn(|| self.events.next().map(drop)).count()
    }

    /// Packets counted so far, by counter.
    pub(crate) fn counted(&self) -> Result<BTreeMap<&'static str, u64>> {
        let sum = |counters: &PerCpuArray<MapData, Counter>, index: u32| -> Result<u64> {
            Ok(counters.get(&index, 0)?.iter().map(|counter| counter.packets).sum())
        };
        let reasons = Reason::ALL.iter().map(|reason| Ok((reason.name(), sum(&self.counters, *reason as u32)?)));
        let outcomes =
            decap::Outcome::ALL.iter().map(|outcome| Ok((outcome.name(), sum(&self.decap_counters, *outcome as u32)?)));
        reasons.chain(outcomes).collect()
    }
}

/// Ring and slots of the IPv6 service come after those of the IPv4 one.
fn configure_services(ebpf: &mut Ebpf, to: &Destination, ifindex: u32) -> Result<()> {
    let mut filter = Box::new(VipFilter::EMPTY);
    let mut services: HashMap<MapData, ServiceKey, Service> = take(ebpf, maps::SERVICES)?;
    let mut backends: Array<MapData, Target> = take(ebpf, maps::BACKENDS)?;
    let mut rings: ArrayOfMaps<MapData> = take(ebpf, maps::RINGS)?;
    let mut peers: HashMap<MapData, Address, u32> = take(ebpf, maps::PEERS)?;
    for (ring, family, vip) in [(0, Family::V4, mapped(to.v4)), (1, Family::V6, to.v6)] {
        // Everything that the member under test is to look at: the VIP, and its own address.
        filter.insert(&vip);
        filter.insert(&address(member_address(family, OWNER)));
        let key = ServiceKey { address: vip, port: to.port.to_be_bytes(), protocol: TCP, padding: 0 };
        for key in [key, ServiceKey::vip(vip)] {
            services.insert(key, Service { ring, flags: 0, padding: [0; 3] }, 0)?;
        }
        for number in 1..=BACKENDS {
            let target = Target { ring, ..target(backend_address(family, number), ifindex) };
            backends.set(u32::from(slot(family, number)), target, 0)?;
        }
        rings.set(ring, IterableMap::map(&inner_ring(family)?), 0)?;
        for id in [OWNER, PEER] {
            peers.insert(address(member_address(family, id)), u32::from(id), 0)?;
        }
    }
    let mut filters: Array<MapData, VipFilter> = take(ebpf, maps::VIP_FILTER)?;
    filters.set(0, *filter, 0)?;
    Ok(())
}

fn inner_ring(family: Family) -> Result<Array<MapData, Ring>> {
    let mut ring = Box::new(Ring::new_zeroed());
    for (place, number) in ring.slots.iter_mut().zip((1..=BACKENDS).cycle()) {
        *place = slot(family, number);
    }
    let inner = MapData::create(definition(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, size_of::<Ring>(), 1), "ring", None)?;
    let mut inner = Array::try_from(Map::Array(inner))?;
    inner.set(0, *ring, 0)?;
    Ok(inner)
}

fn configure_decap(ebpf: &mut Ebpf, to: &Destination) -> Result<()> {
    let mut from: LpmTrie<MapData, Address, u32> = take(ebpf, decap::DECAP_FROM)?;
    let mut vips: HashMap<MapData, Address, u32> = take(ebpf, decap::DECAP_VIPS)?;
    for (family, index, vip) in [(Family::V4, V4, mapped(to.v4)), (Family::V6, V6, to.v6)] {
        from.insert(&Key::new(128, address(member_address(family, OWNER))), index as u32, 0)?;
        vips.insert(vip, index as u32, 0)?;
    }
    Ok(())
}

/// One ring buffer in the places of all CPUs.
fn events_ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>> {
    let mut rings: ArrayOfMaps<MapData> = take(ebpf, maps::EVENTS)?;
    let size = maps::EVENT_RING_BYTES;
    let ring = MapData::create(definition(bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, size), "ring", None)?;
    for cpu in 0..aya::util::nr_cpus().map_err(|(_, error)| error)? as u32 {
        rings.set(cpu, &ring, 0)?;
    }
    Ok(RingBuf::try_from(Map::RingBuf(ring))?)
}

fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    T::try_from(map).map_err(|_other| anyhow!("the map {name} has another shape"))
}

fn definition(map_type: bpf_map_type, key: u32, value: usize, entries: u32) -> aya_obj::Map {
    aya_obj::Map::new_from_params(map_type as u32, key, value as u32, entries, 0)
}

fn key_v4(client: u32, to: &Destination) -> FlowKeyV4 {
    FlowKeyV4::new(source_v4(client), to.v4, source_port(client), to.port.to_be_bytes(), TCP)
}

fn key_v6(client: u32, to: &Destination) -> FlowKeyV6 {
    let mut source = CLIENT_V6;
    source[14..].copy_from_slice(&source_v6(client));
    FlowKeyV6 {
        source,
        destination: to.v6,
        source_port: source_port(client),
        destination_port: to.port.to_be_bytes(),
        protocol: TCP,
        padding: [0; 3],
    }
}

fn entry(key: &impl FlowKey, family: Family, client: u32) -> FlowEntry {
    let now = tick(lb_userspace::io::clock::now_ns());
    FlowEntry {
        last_seen: now,
        created: now,
        tag: key.tag(),
        creator_incarnation: 1,
        generation: 0,
        revision: 0,
        term: 0,
        backend: slot(family, 1 + (client % u32::from(BACKENDS)) as u16),
        state: STATE_ESTABLISHED,
        packets: PLAUSIBLE_PACKETS,
        creator: OWNER | WITNESSED,
        primary: OWNER,
        backup: PEER,
        event: 0,
        padding: [0; 2],
    }
}

/// The slot of a service's backend.
const fn slot(family: Family, number: u16) -> u16 {
    match family {
        Family::V4 => number,
        Family::V6 => BACKENDS + number,
    }
}

fn target(to: IpAddr, ifindex: u32) -> Target {
    let next_hop =
        NextHop { destination: [2, 0, 0, 0, 0, 9], source: [2, 0, 0, 0, 0, 1], ifindex, mtu: 1500, ..NextHop::NONE };
    Target { address: address(to), next_hop, state: TARGET_SERVING, ..Target::NONE }
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn member_address(family: Family, id: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 1, id).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(id)).into(),
    }
}

fn backend_address(family: Family, number: u16) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 2, number as u8).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, number).into(),
    }
}
