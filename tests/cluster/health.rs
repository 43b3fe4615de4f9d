//! Health checks through the tunnel: who dies gets no new flows, from nobody, and keeps nothing that lives.

mod kinds;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::{
    address::mapped,
    target::{TARGET_DOWN, TARGET_SERVING},
};
use lb_userspace::pinned::Pinned;
use tests::{
    cluster::{Cluster, Shape},
    command,
    interrupt::wait_until,
    member::Member,
    netns::Namespace,
    topology::Family,
    traffic::caller::Caller,
};

const INTERVAL: Duration = Duration::from_millis(200);
const JITTER: Duration = Duration::from_millis(20);
const TIMEOUT: Duration = Duration::from_millis(100);
const RISE: u32 = 2;
const FALL: u32 = 2;

/// Three members and three servers; one check for all VIPs, by TCP.
fn checked(health: &'static str) -> Cluster {
    Cluster::start(Shape { balancers: 3, servers: 3, naive: false }, |config| {
        config.services[0].health = Some(health);
    })
    .unwrap()
}

const TCP: &str =
    r#"{ type = "tcp", port = 80, interval = "200ms", jitter = "20ms", timeout = "100ms", rise = 2, fall = 2 }"#;

/// A server's slots at a member, by VIP: their states, and whether new flows are placed there.
fn slots(member: &Member, address: IpAddr) -> Vec<(u8, bool)> {
    let IpAddr::V4(address) = address else { panic!("an IPv4 lab") };
    let tables = Pinned::open(member.pins()).unwrap();
    let is_chosen = |slot, ring| tables.ring(ring).unwrap().is_some_and(|ring| ring.slots.contains(&slot));
    let backends = (0..).zip(tables.backends().unwrap());
    let of_server = backends.filter(|(_, target)| target.address == mapped(address.octets()));
    of_server.map(|(slot, target)| (target.state, is_chosen(slot, target.ring))).collect()
}

fn all_are(cluster: &Cluster, server: usize, state: u8) -> bool {
    let address = cluster.servers[server].host.address.into();
    cluster.members.iter().all(|member| {
        let slots = slots(member, address);
        !slots.is_empty() && slots.iter().all(|of| *of == (state, state == TARGET_SERVING))
    })
}

pub(crate) fn wait_for(cluster: &Cluster, server: usize, state: u8, limit: Duration) -> Duration {
    let began = Instant::now();
    let came = wait_until(limit, Duration::from_millis(2), || all_are(cluster, server, state)).unwrap();
    let log = cluster.members[0].log();
    assert!(came, "server {server} is not in state {state} at all members after {limit:?}; of member 1:\n{log}");
    began.elapsed()
}

/// A server's new connections are refused: of everybody, or of one source.
fn refuse(server: &Namespace, from: Option<IpAddr>) {
    let source = from.map(|from| format!("ip saddr {from} ")).unwrap_or_default();
    let rule = format!("{source}tcp flags & (syn|ack) == syn reject with tcp reset");
    let rules = format!("table ip sick {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}\n");
    command::run_with_input(server.command("nft").args(["-f", "-"]), &rules).unwrap();
}

fn accept(server: &Namespace) {
    command::run(server.command("nft").args(["delete", "table", "ip", "sick"])).unwrap();
}

/// Connections from so many ports; which servers they are on.
pub(crate) fn open(cluster: &Cluster, ports: std::ops::Range<u16>) -> Vec<Caller> {
    ports
        .map(|port| {
            let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
            caller.ask().unwrap();
            caller
        })
        .collect()
}

#[test]
fn a_dead_backend_gets_no_new_flows_and_keeps_its_connections() {
    let cluster = checked(TCP);
    let mut before = open(&cluster, 42_000..42_030);
    let held = before.iter().filter(|caller| caller.server() == 1).count();
    assert!(held > 0, "30 connections, none to the server that will die");

    refuse(&cluster.servers[0].host.namespace, None);
    let bound = FALL * (INTERVAL + JITTER) + TIMEOUT + Duration::from_millis(250);
    let took = wait_for(&cluster, 0, TARGET_DOWN, Duration::from_secs(5));
    println!("down at all members after {took:?}, required {bound:?}");
    assert!(took <= bound, "{took:?}");
    assert!(open(&cluster, 43_000..43_060).iter().all(|caller| caller.server() != 1));
    before.iter_mut().for_each(|caller| caller.ask().unwrap());

    accept(&cluster.servers[0].host.namespace);
    let bound = RISE * (INTERVAL + JITTER) + Duration::from_secs(1);
    let took = wait_for(&cluster, 0, TARGET_SERVING, Duration::from_secs(5));
    println!("back at all members after {took:?}, required {bound:?}");
    assert!(took <= bound, "{took:?}");
    assert!(open(&cluster, 44_000..44_060).iter().any(|caller| caller.server() == 1));
    before.iter_mut().for_each(|caller| caller.ask().unwrap());
}

#[test]
fn one_members_broken_path_changes_nothing_and_the_last_backend_stays() {
    let cluster = checked(TCP);
    let first = cluster.members[0].host.address.into();
    refuse(&cluster.servers[0].host.namespace, Some(first));
    std::thread::sleep(Duration::from_secs(2));
    assert!(all_are(&cluster, 0, TARGET_SERVING));
    let log = cluster.members[0].log();
    assert!(log.contains("fails its checks"), "the member itself should have noticed:\n{log}");
    accept(&cluster.servers[0].host.namespace);

    for server in &cluster.servers {
        refuse(&server.host.namespace, None);
    }
    std::thread::sleep(Duration::from_secs(3));
    // One of each VIP, which need not be the same server.
    let addresses = || cluster.servers.iter().map(|server| server.host.address.into());
    for member in &cluster.members {
        let slots: Vec<(u8, bool)> = addresses().flat_map(|address| slots(member, address)).collect();
        let left = slots.iter().filter(|slot| **slot == (TARGET_SERVING, true)).count();
        assert_eq!(left, 2, "checks that fail everywhere must not end the service: {slots:?}");
    }
}

#[test]
fn checks_go_to_the_vip_on_the_backend_and_not_to_its_own_address() {
    let cluster = checked(TCP);
    // The server answers at its own address, and has lost the VIP.
    let server = &cluster.servers[0].host.namespace;
    command::run(server.command("ip").args(["addr", "del", "203.0.113.10/32", "dev", "lo"])).unwrap();
    wait_for(&cluster, 0, TARGET_DOWN, Duration::from_secs(5));
    command::run(server.command("ip").args(["addr", "add", "203.0.113.10/32", "dev", "lo"])).unwrap();
    wait_for(&cluster, 0, TARGET_SERVING, Duration::from_secs(5));
}

#[test]
fn checks_go_through_tunnels_of_either_family() {
    for behind in [Family::V4, Family::V6] {
        let cluster = Cluster::start(Shape { balancers: 1, servers: 2, naive: false }, |config| {
            config.behind = behind;
            config.add_vip_v6();
            config.services[0].health = Some(TCP);
        })
        .unwrap();
        // Two VIPs of each family, two servers.
        let answered = || cluster.members[0].log().matches("answers its checks").count();
        let came = wait_until(Duration::from_secs(5), Duration::from_millis(10), || answered() == 8).unwrap();
        assert!(came, "backends of {behind:?}:\n{}", cluster.members[0].log());
    }
}
