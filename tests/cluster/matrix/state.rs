//! E: what becomes of the flows' state.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    flow::{FlowEntry, FlowKeyV4, UDP},
    maps,
};
use tests::{
    cluster::{Cluster, READY_LIMIT, Shape, tcp_flow},
    interrupt, population,
    topology::Host,
    traffic::{
        caller::Caller,
        datagrams::{Pace, Stream},
        flood::{Flood, Kind as Kindof},
        half_closed::HalfClosed,
        load::{Load, Plan},
        record::Kind,
    },
};

use super::{CONNECTIONS, CONVERGENCE_LIMIT, OPEN_LIMIT, Scene};

/// An agent stands still while more flows begin than its rings have room for; its sweep finds them all, and so does a peer.
#[test]
fn e42_event_rings_overflow_and_no_flow_is_forgotten() {
    let shape = Shape { balancers: 2, servers: 2, naive: false };
    let mut cluster = Cluster::build(shape, |config| {
        config.replicate = "first-packet";
        config.timeouts = Some("{ udp = \"10m\" }");
    })
    .unwrap();
    let first = cluster.member(1).unwrap();
    first.start().unwrap();
    first.wait_ready(READY_LIMIT).unwrap();
    let host: Host = first.host.clone();
    cluster.announce(1).unwrap();
    cluster.members[0].suspend().unwrap();
    let flood = Flood::start(&cluster.topology.router, &[host], Kindof::Udp).unwrap();
    // An event takes 48 bytes and a header of 8.
    let room = aya::util::nr_cpus().unwrap() * maps::EVENT_RING_BYTES as usize / 56;
    let held = || population::flows_of(&cluster.members[0]).unwrap() as usize;
    let is_over = || held() > room + 10_000;
    let is_over = interrupt::wait_until(READY_LIMIT, Duration::from_millis(100), is_over).unwrap();
    flood.finish().unwrap();
    cluster.members[0].resume().unwrap();
    assert!(is_over, "{} flows, room for {room} events", held());
    cluster.member(2).unwrap().start().unwrap();
    cluster.member(2).unwrap().wait_ready(READY_LIMIT).unwrap();
    let missing = || {
        let [mut of_first, of_second] = [0, 1].map(|at| flows(&cluster.members[at].tables()));
        of_first.retain(|key, _| !of_second.contains_key(key));
        of_first.len()
    };
    let mut lacks = missing();
    let has_all = || {
        lacks = missing();
        lacks == 0
    };
    interrupt::wait_until(4 * CONVERGENCE_LIMIT, Duration::from_millis(500), has_all).unwrap();
    assert_eq!(lacks, 0);
}

/// One bit of the owners or of the backend of a silent flow's entry; within the limit all is as it was.
#[test]
fn e44_bits_of_one_members_table_flip() {
    let scene = Scene::of_long_ones(3);
    thread::sleep(Duration::from_secs(6));
    let mut flows = scene.cluster.members[1].tables().flows().unwrap();
    let is_idle =
        |port: &u16| scene.load.ledger().long().iter().any(|of| of.kind == Kind::Idle && of.facts().port == *port);
    let ports = scene.load.ledger().long().iter().map(|record| record.facts().port);
    let mut flipped = BTreeMap::new();
    for (round, port) in ports.filter(is_idle).enumerate() {
        let key = tcp_flow(port);
        let Ok(good) = flows.get(&key, 0) else { continue };
        let mut bad = good;
        match round % 5 {
            // Another server, which exists.
            0 => bad.backend ^= if good.backend == 2 { 1 } else { 2 },
            1 => bad.primary ^= 4,
            2 => bad.term ^= 1 << 7,
            3 => bad.creator_incarnation ^= 1,
            _ => bad.generation ^= 1 << 3,
        }
        flows.insert(key, bad, 0).unwrap();
        flipped.insert(key, good);
    }
    assert!(flipped.len() >= CONNECTIONS / 10, "{}", flipped.len());
    let began = Instant::now();
    let placed =
        |e: &FlowEntry| (e.backend, e.primary, e.backup, e.term, e.creator, e.creator_incarnation, e.generation);
    let is_back =
        |(key, good): (&FlowKeyV4, &FlowEntry)| flows.get(key, 0).is_ok_and(|now| placed(&now) == placed(good));
    let are_back = || flipped.iter().all(is_back);
    let all = interrupt::wait_until(CONVERGENCE_LIMIT, Duration::from_millis(100), are_back).unwrap();
    println!("{} flipped bits found and restored after {:?}", flipped.len(), began.elapsed());
    let wrong = flipped.iter().filter(|pair| !is_back(*pair)).count();
    assert!(all, "{wrong} of {} entries are still wrong", flipped.len());
    scene.tables_agree();
    scene.nothing_broke();
}

/// Entries of flows that have ended everywhere turn up in one member's table.
#[test]
fn e45_an_end_stays_an_end() {
    let cluster = crate::started(3, |config| config.timeouts = Some("{ udp = \"3s\" }"));
    let pace = Pace { flows: 50, per_second: 500, bytes: 64 };
    let stream = Stream::start(&cluster.topology.client, pace).unwrap();
    let datagrams = |at: usize| {
        let mut flows = flows(&cluster.members[at].tables());
        flows.retain(|key, _| key.protocol == UDP);
        flows
    };
    let wait = |count: usize| {
        let all_have = || (0..3).all(|at| datagrams(at).len() == count);
        let ended = interrupt::wait_until(2 * READY_LIMIT, Duration::from_millis(100), all_have).unwrap();
        assert!(ended, "not {count}: {:?}", [0, 1, 2].map(|at| datagrams(at).len()));
    };
    wait(50);
    let of_then = datagrams(1);
    stream.finish().unwrap();
    wait(0);
    let mut table = cluster.members[1].tables().flows().unwrap();
    for (key, entry) in &of_then {
        table.insert(key, entry, 0).unwrap();
    }
    assert_eq!(datagrams(1).len(), 50);
    let (began, mut spread) = (Instant::now(), 0);
    while began.elapsed() < READY_LIMIT && !datagrams(1).is_empty() {
        spread = spread.max(datagrams(0).len()).max(datagrams(2).len());
        thread::sleep(Duration::from_millis(50));
    }
    println!("50 entries of flows that had ended were gone after {:?}", began.elapsed());
    assert_eq!((datagrams(1).len(), spread), (0, 0));
}

/// The client says that it has nothing more to say, and listens for longer than a flow that closes is remembered; its primary
/// dies meanwhile, and its server is one that the ring would not choose any more.
#[test]
fn e47_a_half_closed_connection_goes_on_receiving() {
    let mut cluster = crate::started(3, |config| config.timeouts = Some("{ closing = \"30s\" }"));
    let mut halves: Vec<HalfClosed> =
        (47_000..47_020).map(|port| HalfClosed::open(&cluster.topology.client, port).unwrap()).collect();
    for number in [4, 5, 6] {
        let at = cluster.add_server(number).unwrap();
        cluster.config.add_backend(&cluster.servers[at].host);
    }
    cluster.reconfigure().unwrap();
    let began = Instant::now();
    for second in 0..40 {
        if second == 15 {
            cluster.cut(1).unwrap();
        }
        halves.iter_mut().for_each(|half| half.receive().unwrap());
        thread::sleep((began + Duration::from_secs(second + 1)).saturating_duration_since(Instant::now()));
    }
    for half in halves {
        half.receive_all().unwrap();
    }
}

/// Handshakes that are complete, more than the table has room for: all are answered, and nobody loses an entry.
#[test]
fn g65_handshakes_go_on_when_the_table_is_full() {
    let room = 2048;
    let cluster = crate::started(3, |config| config.flows_max = Some(room));
    let load = Load::start(&cluster.topology.client, Plan::mixed(CONNECTIONS)).unwrap();
    load.wait_open(OPEN_LIMIT).unwrap();
    thread::sleep(Duration::from_secs(1));
    let mut scene = Scene { load, cluster };
    let held = population::flows_of(&scene.cluster.members[0]).unwrap() as u32;
    assert!(held >= CONNECTIONS as u32);
    population::fill(&scene.cluster.members[0], room - held).unwrap();
    let is_full = || scene.cluster.members.iter().all(|of| population::flows_of(of).unwrap() >= u64::from(room) - 16);
    assert!(interrupt::wait_until(READY_LIMIT, Duration::from_millis(100), is_full).unwrap());
    let more = Load::start(&scene.cluster.topology.client, Plan { shorts_per_second: 200, ..Plan::quiet() }).unwrap();
    scene.pause(5000);
    let ledger = more.finish();
    let shorts = ledger.shorts();
    assert_eq!((shorts.handshakes_failed, ledger.broken().len()), (0, 0));
    assert!(shorts.done > 200, "{}", shorts.done);
    scene.cluster.cut(1).unwrap();
    scene.pause(1500);
    scene.nothing_broke();
}

fn flows(tables: &tests::tables::Tables) -> BTreeMap<FlowKeyV4, FlowEntry> {
    tables.all_flows().unwrap().into_iter().collect()
}

/// A table too small for the load: those who find no room are answered like everybody, and nobody makes room for them.
#[test]
fn e43_the_table_is_full() {
    let cluster = crate::started(3, |config| config.flows_max = Some(512));
    let load = Load::start(&cluster.topology.client, Plan::mixed(CONNECTIONS)).unwrap();
    load.wait_open(OPEN_LIMIT).unwrap();
    thread::sleep(Duration::from_secs(2));
    let held = cluster.members[0].tables().all_flows().unwrap().len();
    assert!((256..=512).contains(&held), "{held} entries");
    let scene = Scene { load, cluster };
    scene.pause(1000);
    scene.nothing_broke();
}

/// A client's port is used again at once: the tuple stays with its server, or is placed anew with it.
#[test]
fn e46_a_tuple_is_used_again_within_a_second() {
    let scene = Scene::of_long_ones(3);
    let client = &scene.cluster.topology.client;
    client.sysctl("ipv4/tcp_tw_reuse", "1").unwrap();
    client.sysctl("ipv4/tcp_tw_reuse_delay", "50").unwrap();
    for round in 0..10 {
        thread::sleep(Duration::from_millis(200));
        for port in 9000..9010 {
            let mut caller = Caller::open(&scene.cluster.topology.client, port).unwrap();
            caller.ask().unwrap_or_else(|error| panic!("round {round}, port {port}: {error:#}"));
        }
    }
    scene.nothing_broke();
}

/// The owner dies while a flow is silent; its next packet finds the flow known.
#[test]
fn e48_a_silent_flow_survives_its_primary() {
    let mut scene = Scene::of_long_ones(3);
    let idle: Vec<u16> =
        scene.load.ledger().long().iter().map(|record| record.facts().port).take(CONNECTIONS).collect();
    let entries = scene.cluster.members[0].tables();
    let owned = idle.iter().filter(|port| entries.flow(&tcp_flow(**port)).unwrap().is_some_and(|e| e.primary == 1));
    assert!(owned.count() > CONNECTIONS / 5);
    scene.cluster.cut(1).unwrap();
    scene.pause(3000);
    scene.nothing_broke();
}
