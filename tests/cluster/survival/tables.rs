//! Other tables in the place of those that hold the flows: another size, another layout.

use std::{collections::BTreeMap, process::Stdio, thread, time::Duration};

use aya::maps::{Array, Map, MapData, MapInfo};
use lb_common::{
    flow::{FlowEntry, FlowKeyV4},
    maps,
    node::Node,
};
use lb_userspace::io::layouts::OLDER;
use serde_json::Value;
use tests::{
    cluster::{Cluster, READY_LIMIT},
    interrupt::wait_until,
    member::{self, Member},
    traffic::{
        caller::Caller,
        datagrams::Stream,
        load::{Load, Plan},
    },
    variant::Variant,
};

use super::{Ended, callers, datapath, fingerprint, status, stream};
use crate::cluster;

/// Long-lived connections.
const CONNECTIONS: usize = 1000;
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// What the lab's tables hold, and what they hold then.
const BEFORE: u32 = 1 << 17;
const AFTER: u32 = 150_000;

/// A member whose flows go where its ring would not send them any more, under load.
struct Scene {
    // Before the cluster: the traffic ends before the lab does.
    load: Load,
    stream: Stream,
    before: BTreeMap<FlowKeyV4, FlowEntry>,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Self {
        let mut cluster = cluster(1);
        let load = Load::start(&cluster.topology.client, Plan::mixed(CONNECTIONS)).unwrap();
        load.wait_open(OPEN_LIMIT).unwrap();
        thread::sleep(Duration::from_millis(700));
        // Without its entry a connection would be sent to another server: whatever loses the table, breaks it.
        for number in [4, 5, 6] {
            let at = cluster.add_server(number).unwrap();
            cluster.config.add_backend(&cluster.servers[at].host);
        }
        cluster.reconfigure().unwrap();
        thread::sleep(Duration::from_millis(700));
        let stream = stream(&cluster);
        thread::sleep(Duration::from_millis(700));
        let before = flows(&cluster.members[0]);
        assert!(before.len() >= CONNECTIONS);
        Self { load, stream, before, cluster }
    }

    fn member(&mut self) -> &mut Member {
        self.cluster.member(1).unwrap()
    }

    /// Every flow of before is there as it was placed.
    #[track_caller]
    fn tables_kept_all(&self) {
        let now = flows(&self.cluster.members[0]);
        let placed = |entry: &FlowEntry| (entry.created, entry.backend, entry.generation, entry.creator_incarnation);
        let lost = self.before.iter().filter(|(key, entry)| now.get(key).map(placed) != Some(placed(entry)));
        assert_eq!(lost.count(), 0, "of {}", self.before.len());
    }

    /// A connection that begins now gets an entry in the tables of now, by the agent and the datapath of now.
    #[track_caller]
    fn new_flows_are_recorded(&self, port: u16) {
        let mut caller = Caller::open(&self.cluster.topology.client, port).unwrap();
        let key = tests::cluster::tcp_flow(port);
        let is_established = || {
            caller.ask().unwrap();
            let entry = self.cluster.members[0].tables().flow(&key).unwrap();
            entry.is_some_and(|entry| entry.state == lb_common::flow::STATE_ESTABLISHED)
        };
        assert!(wait_until(READY_LIMIT, Duration::from_millis(20), is_established).unwrap());
    }

    #[track_caller]
    fn nothing_was_lost(self) {
        let tally = self.stream.finish().unwrap();
        assert_eq!(tally.lost(), 0, "{tally:?}");
        nothing_broke(self.load);
    }
}

#[track_caller]
fn nothing_broke(load: Load) {
    load.wake_idle();
    thread::sleep(Duration::from_millis(500));
    let broken = load.finish().broken();
    let what: Vec<_> = broken.iter().map(|record| (record.kind, record.facts())).take(5).collect();
    assert!(broken.is_empty(), "{} connections broke, the first of them {what:#?}", broken.len());
}

fn flows(member: &Member) -> BTreeMap<FlowKeyV4, FlowEntry> {
    member.tables().all_flows().unwrap().into_iter().collect()
}

fn capacity(member: &Member) -> u32 {
    MapInfo::from_pin(member.pins().join(maps::FLOWS)).unwrap().max_entries()
}

fn resize(member: &Member, flows_max: u32) -> Ended {
    datapath(member, &["upgrade", "-o", "json", "--flows-max", &flows_max.to_string()])
}

/// Nothing is left of the tables of before, or of a change that came to nothing.
#[track_caller]
fn has_no_other_tables(member: &Member) {
    let other = ["tables_new", "tables_old"].map(|name| member.pins().join("upgrade").join(name).exists());
    assert_eq!(other, [false; 2]);
}

#[test]
fn a_table_gets_another_size_beside_its_agent_and_no_packet_is_lost() {
    let mut scene = Scene::new();
    let program = fingerprint(scene.member(), "current");
    for (size, port) in [(AFTER, 46_000), (BEFORE / 2, 46_001)] {
        let ended = resize(scene.member(), size);
        assert_eq!(ended.code, 0, "{}", ended.err);
        let said: Value = serde_json::from_str(&ended.out).unwrap();
        assert_eq!((said["outcome"].as_str(), said["watched"]["lost"].as_u64()), (Some("upgraded"), Some(0)), "{said}");
        assert_eq!(capacity(scene.member()), size);
        assert_eq!(fingerprint(scene.member(), "current"), program);
        assert_eq!(status(scene.member()).0, 0);
        has_no_other_tables(scene.member());
        let words = format!("flows_max={size}");
        assert!(scene.member().log().contains(&words), "{}", scene.member().log());
        scene.tables_kept_all();
        scene.new_flows_are_recorded(port);
    }
    let again = resize(scene.member(), BEFORE / 2);
    assert!(again.code == 0 && again.out.contains("\"same\""), "{}{}", again.out, again.err);
    // Fewer than there are.
    let links = status(scene.member()).1["links"].clone();
    let small = resize(scene.member(), 256);
    assert_eq!(small.code, 1);
    assert!(small.err.contains("leaves room for 256") && small.err.contains("Nothing was changed"), "{}", small.err);
    assert_eq!((capacity(scene.member()), &status(scene.member()).1["links"]), (BEFORE / 2, &links));
    has_no_other_tables(scene.member());
    scene.tables_kept_all();
    scene.nothing_was_lost();
}

#[test]
fn a_table_gets_another_size_by_a_restart_of_the_agent_and_no_packet_is_lost() {
    let mut scene = Scene::new();
    scene.cluster.config.flows_max = Some(AFTER);
    scene.cluster.write_config().unwrap();
    scene.member().kill().unwrap();
    scene.member().start().unwrap();
    scene.member().wait_ready(READY_LIMIT).unwrap();
    assert_eq!(capacity(scene.member()), AFTER);
    scene.tables_kept_all();
    scene.new_flows_are_recorded(46_010);
    // The agent judges, and lets go of what it no longer needs.
    let is_judged = || fingerprint(&scene.cluster.members[0], "previous").is_none();
    assert!(wait_until(Duration::from_secs(15), Duration::from_millis(100), is_judged).unwrap());
    has_no_other_tables(scene.member());
    assert_eq!(status(scene.member()).0, 0);
    scene.nothing_was_lost();
}

#[test]
fn tables_of_another_layout_are_converted_by_the_agent_that_starts_and_no_packet_is_lost() {
    let mut scene = Scene::new();
    let before = MapInfo::from_pin(scene.member().pins().join(maps::BACKENDS)).unwrap().id();
    scene.member().kill().unwrap();
    set_schema(scene.member(), 0xdead);
    // One that nobody knows: named, and left alone.
    scene.member().start().unwrap();
    let refused = scene.member().wait_ready(READY_LIMIT).unwrap_err().to_string();
    assert!(refused.contains("000000000000dead") && refused.contains("Nothing was changed"), "{refused}");
    // One that was written before. Its entries are those of today, so that today's program can write it.
    set_schema(scene.member(), OLDER[0].schema);
    let asked = datapath(scene.member(), &["upgrade"]);
    assert!(asked.code == 1 && asked.err.contains("start this version's"), "{}", asked.err);
    scene.member().start().unwrap();
    scene.member().wait_ready(READY_LIMIT).unwrap();
    assert_ne!(MapInfo::from_pin(scene.member().pins().join(maps::BACKENDS)).unwrap().id(), before);
    assert_eq!(status(scene.member()).0, 0);
    has_no_other_tables(scene.member());
    scene.tables_kept_all();
    scene.new_flows_are_recorded(46_020);
    scene.nothing_was_lost();
}

/// The first word of the node, where every layout has its schema.
fn set_schema(member: &Member, schema: u64) {
    let map = MapData::from_pin(member.pins().join(maps::NODE)).unwrap();
    let mut node = Array::<_, Node>::try_from(Map::Array(map)).unwrap();
    let of_now = node.get(&0, 0).unwrap();
    node.set(0, Node { schema, ..of_now }, 0).unwrap();
}

#[test]
fn a_program_that_drops_takes_its_tables_with_it_and_what_it_learned_stays_known() {
    let cluster = cluster(1);
    let mut callers = callers(&cluster, 46_030..46_035);
    let stream = stream(&cluster);
    let member = &cluster.members[0];
    let good = fingerprint(member, "current").unwrap();
    let object = Variant::DefectUnseen.object().unwrap();
    let size = AFTER.to_string();
    let ended = datapath(member, &["upgrade", "--flows-max", &size, "--object", object.to_str().unwrap()]);
    assert_eq!(ended.code, 1, "{}", ended.out);
    assert!(ended.err.contains("the one before is attached again"), "{}", ended.err);
    assert_eq!((fingerprint(member, "current").unwrap(), capacity(member)), (good, BEFORE));
    assert_eq!(status(member).0, 0);
    has_no_other_tables(member);
    callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    drop(stream);
}

#[test]
fn a_change_of_tables_that_is_killed_at_any_moment_is_put_in_order() {
    let cluster = cluster(1);
    let mut callers = callers(&cluster, 46_040..46_050);
    let stream = stream(&cluster);
    let member = &cluster.members[0];
    for (round, wait_ms) in [200, 900, 1_300, 1_700, 2_000, 2_300, 2_600, 3_000, 4_000].into_iter().enumerate() {
        let size = BEFORE + 1 + round as u32;
        let mut command = member.host.namespace.command(member::binary().unwrap());
        command.args(["datapath", "upgrade", "--flows-max", &size.to_string(), "--pin-dir"]).arg(member.pins());
        let mut upgrade = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(wait_ms));
        upgrade.kill().unwrap();
        upgrade.wait().unwrap();
        let check = datapath(member, &["upgrade", "--check"]);
        assert_eq!(check.code, 0, "{wait_ms} ms: {}", check.err);
        let (code, said) = status(member);
        assert_eq!(code, 0, "{wait_ms} ms: {said}");
        callers.iter_mut().for_each(|caller| caller.ask().unwrap());
    }
    let tally = stream.finish().unwrap();
    assert_eq!(tally.lost(), 0, "{tally:?}");
}
