//! On real maps: the object's own, pinned in a directory of the test's. Needs root; without it there is nothing to read.

use aya::{Ebpf, EbpfLoader};
use lb_common::{
    address::mapped,
    flow::{FlowKey, STATE_ESTABLISHED},
    node::Node,
    rank::{Seed, seed},
    reason::Reason,
    target::{NextHop, TARGET_DRAINING, TARGET_SERVING},
};
use zerocopy::FromZeros;

use super::*;
use crate::{
    config::Names,
    inspect::{
        explain::explain,
        listing::{self, Filter},
        status::{Readings, Verdict, status},
    },
    io::datapath::OBJECT,
};

const MAPS: [&str; 16] = [
    maps::FLOWS,
    maps::FLOWS_V6,
    maps::PENDING,
    maps::PENDING_V6,
    maps::SERVICE_COUNT,
    maps::BACKEND_COUNT,
    maps::MEMBER_COUNT,
    maps::SERVICES,
    maps::RINGS,
    maps::BACKENDS,
    maps::MEMBERS,
    maps::PEERS,
    maps::LIVENESS,
    maps::HEARD,
    maps::NODE,
    maps::COUNTERS,
];

/// A pin directory with the maps of a member that has been configured.
struct Datapath {
    directory: PathBuf,
    /// Keeps the maps that are not pinned.
    _ebpf: Ebpf,
}

impl Datapath {
    /// `None` without the privilege to make maps.
    fn load(name: &str) -> Option<Self> {
        let directory = Path::new("/sys/fs/bpf").join(format!("tandem-test-{name}-{}", std::process::id()));
        if fs::create_dir(&directory).is_err() {
            eprintln!("skipped: cannot pin maps in a BPF file system; run as root");
            return None;
        }
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for name in MAPS {
            loader.map_pin_path(name, directory.join(name));
        }
        let ebpf = loader.load(OBJECT).unwrap();
        Some(Self { directory, _ebpf: ebpf })
    }

    fn map<M: TryFrom<Map, Error = MapError>>(&self, name: &str) -> M {
        M::try_from(Map::from_map_data(MapData::from_pin(self.directory.join(name)).unwrap()).unwrap()).unwrap()
    }

    fn set<V: Pod>(&self, name: &str, index: u32, value: V) {
        self.map::<Array<MapData, V>>(name).set(index, value, 0).unwrap();
    }

    /// Member 1 of 2, a service with two backends; `now_ns` is within the lease.
    fn configure(&self, now_ns: u64) {
        let next_hop = NextHop { ifindex: 1, mtu: 1500, ..Target::NONE.next_hop };
        let target = |address, state| Target { address: mapped(address), next_hop, ring: 3, state, padding: [0; 3] };
        let mut node = Node::new_zeroed();
        (node.schema, node.id, node.members, node.configured) = (SCHEMA, 1, 2, 0b11);
        (node.addresses[0], node.hash_key, node.incarnation) = (mapped([10, 0, 1, 11]), [1, 2], 5);
        for (slot, id) in node.seeds.iter_mut().zip(1..=2) {
            *slot = Seed { seed: seed(id), id: u64::from(id) };
        }
        self.set(maps::NODE, 0, node);
        let lease_until_ns = now_ns + 100_000_000;
        self.set(
            maps::LIVENESS,
            0,
            Liveness {
                forwarding: 0b11,
                eligible: 0b11,
                lease_until_ns,
                budgets: [1000; 5],
                doubt_until_ns: 0,
                grace_until_ns: 0,
                epoch: 0,
                awaited: 0,
                left: 0,
                flags: 0,
            },
        );
        let (echo_ns, echo_sent_ns) = (now_ns - 2_000_000, now_ns - 2_100_000);
        self.set(maps::HEARD, 2, Heard { probe_ns: now_ns - 7_000_000, echo_ns, echo_sent_ns, ..Heard::new_zeroed() });
        self.set(maps::MEMBERS, 2, target([10, 0, 1, 12], TARGET_SERVING));
        self.set(maps::BACKENDS, 1, target([10, 0, 2, 11], TARGET_SERVING));
        self.set(maps::BACKENDS, 2, target([10, 0, 2, 12], TARGET_DRAINING));

        let mut services: HashMap<MapData, ServiceKey, Service> = self.map(maps::SERVICES);
        let key = flow(1).0.service();
        services.insert(key, Service { ring: 3, flags: 0, padding: [0; 3] }, 0).unwrap();
        services.insert(ServiceKey::vip(key.address), Service { ring: 0, flags: 0, padding: [0; 3] }, 0).unwrap();
        let mut peers: HashMap<MapData, Address, u32> = self.map(maps::PEERS);
        peers.insert(mapped([10, 0, 1, 12]), 2, 0).unwrap();
        let mut inner = Array::<MapData, Ring>::create(1, 0).unwrap();
        inner.set(0, Ring { slots: [1; 16384] }, 0).unwrap();
        let mut rings: ArrayOfMaps<MapData, Array<MapData, Ring>> = self.map(maps::RINGS);
        rings.set(3, &inner, 0).unwrap();
    }

    fn add_flows(&self, flows: impl Iterator<Item = u32>) {
        let mut map: HashMap<MapData, FlowKeyV4, FlowEntry> = self.map(maps::FLOWS);
        for number in flows {
            let (key, entry) = flow(number);
            map.insert(key, entry, 0).unwrap();
        }
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).ok();
    }
}

fn flow(number: u32) -> (FlowKeyV4, FlowEntry) {
    let [_, a, b, c] = number.to_be_bytes();
    let key = FlowKeyV4::new([10, a, b, c], [203, 0, 113, 10], [0x9c, 0x40], [0, 80], 6);
    let zeros = FlowEntry::new_zeroed();
    let entry = FlowEntry { tag: key.tag(), backend: 2, state: STATE_ESTABLISHED, primary: 2, backup: 1, ..zeros };
    (key, entry)
}

fn names() -> Names {
    Names::parse(
        r#"version = 1
cluster.name = "edge-1"
cluster.member = [{ id = 1, name = "lb1" }, { id = 2, name = "lb2" }]
[[service]]
name = "web"
vip = ["203.0.113.10:80/tcp"]
backends = [{ name = "web-1", address = "10.0.2.11" }, { name = "web-2", address = "10.0.2.12" }]
"#,
    )
}

#[test]
fn what_is_not_pinned_is_absent() {
    let error = Pinned::open(Path::new("/sys/fs/bpf/tandem-test-nothing")).err().unwrap();
    assert!(matches!(error, PinnedError::Absent(_) | PinnedError::Denied(_)), "{error}");
}

#[test]
fn maps_of_a_configured_member_are_read() {
    let Some(datapath) = Datapath::load("read") else { return };
    let now = now_ns();
    datapath.configure(now);
    datapath.add_flows(0..50);
    let pinned = Pinned::open(&datapath.directory).unwrap();
    let readings = Readings::take(&pinned, || now).unwrap();
    let found = status(&readings, &names());
    assert_eq!(found.verdict, Verdict::Down, "no link is pinned: {:?}", found.problems);
    assert_eq!((found.agent.alive, found.agent.lease_ms, found.incarnation), (true, Some(100), 5));
    assert_eq!((found.flows.used, found.flows.exact, found.flows.max), (50, true, maps::FLOWS_MAX));
    let peer = &found.members[1];
    assert_eq!((peer.member.name.as_deref(), peer.forwarding, peer.eligible), (Some("lb2"), true, true));
    assert_eq!((peer.probe_age_ms, peer.echo_age_ms, peer.rtt_ns), (Some(7), Some(2), Some(100_000)));
    assert_eq!(peer.next_hop.as_ref().map(|hop| hop.interface.as_str()), Some("lo"));
    let service = &found.services[0];
    assert_eq!((service.title().as_str(), service.serving, service.draining), ("web (203.0.113.10:80/tcp)", 1, 1));
    assert!(service.takes_new_flows);
    assert!(found.packets.is_empty());

    let backends = listing::backends(&readings, &names());
    let shares: Vec<_> = backends.iter().map(|found| (found.backend.title(), found.ring_slots)).collect();
    assert_eq!(shares, [("web-1 (10.0.2.11)".to_owned(), 16_381), ("web-2 (10.0.2.12)".to_owned(), 0)]);
}

#[test]
fn flows_are_filtered_limited_and_sorted() {
    let Some(datapath) = Datapath::load("flows") else { return };
    datapath.configure(now_ns());
    datapath.add_flows(0..10_000);
    let pinned = Pinned::open(&datapath.directory).unwrap();
    let list = |filter: Filter, limit| listing::flows(&pinned, &names(), &filter, limit, now_ns).unwrap();
    let (all, is_cut) = list(Filter::default(), 0);
    assert_eq!((all.len(), is_cut), (10_000, false));
    assert!(all.is_sorted_by_key(|flow| flow.client));
    let (some, is_cut) = list(Filter::default(), 100);
    assert_eq!((some.len(), is_cut), (100, true));
    let (exactly, is_cut) = list(Filter::default(), 10_000);
    assert_eq!((exactly.len(), is_cut), (10_000, false));
    let (one, _) = list(Filter { client: Some([10, 0, 1, 2].into()), ..Filter::default() }, 10);
    assert_eq!(one.len(), 1);
    assert_eq!((one[0].service.as_deref(), one[0].facts.backend.name.as_deref()), (Some("web"), Some("web-2")));
    assert!(list(Filter { vip_port: Some(443), ..Filter::default() }, 0).0.is_empty());
}

#[test]
fn a_flow_is_explained_from_the_maps() {
    let Some(datapath) = Datapath::load("explain") else { return };
    let now = now_ns();
    datapath.configure(now);
    datapath.add_flows(0..1);
    let pinned = Pinned::open(&datapath.directory).unwrap();
    let of = |number| explain(&Snapshot::take(&pinned, flow(number).0.into(), || now).unwrap(), &names());
    let known = of(0);
    assert_eq!((known.verdict.reason, known.verdict.why.as_str()), ("hand_off_known", "lb2 is the primary"));
    assert_eq!(known.backend.unwrap().backend.title(), "web-2 (10.0.2.12)");
    let reasons: Vec<_> = (1..40).map(|number| of(number).verdict.reason).collect();
    let own = reasons.iter().filter(|reason| **reason == Reason::DeliverStateless.name()).count();
    let peers = reasons.iter().filter(|reason| **reason == Reason::HandOffUnknown.name()).count();
    assert!(own > 5 && peers > 5 && own + peers == 39, "{reasons:?}");
}

#[test]
fn pins_of_another_version_are_told_apart() {
    let Some(datapath) = Datapath::load("version") else { return };
    let pinned = Pinned::open(&datapath.directory).unwrap();
    assert_eq!(pinned.node().unwrap().id, 0, "not configured yet, and readable");
    datapath.set(maps::NODE, 0, Node { schema: SCHEMA + 1, ..Node::new_zeroed() });
    let error = Pinned::open(&datapath.directory).err().unwrap();
    assert!(error.to_string().contains("another version of tandem (schema"), "{error}");

    fs::remove_file(datapath.directory.join(maps::NODE)).unwrap();
    Array::<MapData, u64>::create(1, 0).unwrap().pin(datapath.directory.join(maps::NODE)).unwrap();
    let error = Pinned::open(&datapath.directory).err().unwrap();
    assert!(error.to_string().contains("another version of tandem (map node: invalid value size"), "{error}");
}

/// The time is printed rather than judged: it is the acceptance rows' to measure on a quiet machine.
#[test]
fn a_large_table_is_counted_in_part() {
    let Some(datapath) = Datapath::load("large") else { return };
    datapath.configure(now_ns());
    datapath.add_flows(0..400_000);
    let pinned = Pinned::open(&datapath.directory).unwrap();
    let start = std::time::Instant::now();
    let [count, _] = pinned.count_flows(COUNTED_FLOWS).unwrap();
    println!("counted {count:?} in {:?}", start.elapsed());
    assert!(!count.is_exact && count.flows.abs_diff(400_000) < 4_000, "{count:?}");
}
