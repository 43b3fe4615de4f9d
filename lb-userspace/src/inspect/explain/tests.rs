use std::path::Path;

use lb_common::{
    abi::SCHEMA,
    address::mapped,
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6, PENDING_SYN, Pending, SCTP, STATE_ESTABLISHED, TCP, WITNESSED},
    liveness::{Heard, Liveness},
    node::{NODE_DIRECT, Node},
    rank::{Owners, Seed, seed},
    ring::Ring,
    service::Service,
    target::{NextHop, TARGET_DRAINING, TARGET_SERVING},
};
use zerocopy::FromZeros;

use super::*;

const NOW: u64 = 1_000_000_000_000;
const ME: u8 = 1;

/// Three members, of which this is the first; a service with two backends; everything is well.
fn snapshot(key: impl Into<Key>) -> Snapshot {
    let key: Key = key.into();
    let next_hop = NextHop { ifindex: 2, mtu: 1500, ..Target::NONE.next_hop };
    let target = |address, state| Target { address: mapped(address), next_hop, ring: 7, state, padding: [0; 3] };
    let mut node = Node::new_zeroed();
    (node.schema, node.id, node.members, node.configured) = (SCHEMA, ME, 3, 0b111);
    node.addresses[0] = mapped([10, 0, 1, 11]);
    node.hash_key = [1, 2];
    node.silence_ns = 100_000_000;
    for (slot, id) in node.seeds.iter_mut().zip(1..=3) {
        *slot = Seed { seed: seed(id), id: u64::from(id) };
    }
    let mut ring = Box::new(Ring { slots: [0; 16384] });
    for (slot, backend) in ring.slots.iter_mut().zip([1, 2].into_iter().cycle()) {
        *slot = backend;
    }
    Snapshot {
        now_ns: NOW,
        node,
        liveness: Liveness {
            forwarding: 0b111,
            eligible: 0b111,
            lease_until_ns: NOW + 80_000_000,
            budgets: [1000; 5],
            doubt_until_ns: 0,
            grace_until_ns: 0,
            epoch: 0,
            awaited: 0,
            left: 0,
            flags: 0,
        },
        heard: vec![Heard { probe_ns: NOW - 5_000_000, ..Heard::new_zeroed() }; 65],
        members: (0..65).map(|id| target([10, 0, 1, 10 + id], TARGET_SERVING)).collect(),
        backends: vec![
            Target::NONE,
            target([10, 0, 2, 11], TARGET_SERVING),
            target([10, 0, 2, 12], TARGET_SERVING),
            target([10, 0, 2, 13], TARGET_DRAINING),
        ],
        key,
        is_vip: true,
        service: Some((key.service(), Service { ring: 7, flags: 0, padding: [0; 3] })),
        ring: Some(ring),
        previous_ring: None,
        entry: None,
        pending: None,
    }
}

fn key(port: u16) -> FlowKeyV4 {
    FlowKeyV4::new([198, 51, 100, 7], [203, 0, 113, 10], port.to_be_bytes(), 80_u16.to_be_bytes(), TCP)
}

fn rank_of(key: &FlowKeyV4) -> Owners {
    let snapshot = snapshot(*key);
    Tables::rank(&snapshot, key.hash(&snapshot.node.hash_key), 0b111)
}

/// A flow whose primary and backup by rank are these.
fn owned_by(primary: u8, backup: u8) -> Snapshot {
    let ports = 1024..u16::MAX;
    let key = ports.map(key).find(|key| rank_of(key) == Owners { primary, backup }).unwrap();
    snapshot(key)
}

fn entry(key: Key, primary: u8, backup: u8, backend: u16) -> FlowEntry {
    FlowEntry {
        last_seen: tick(NOW - 2_000_000_000),
        created: tick(NOW - 60_000_000_000),
        tag: key.tag(),
        backend,
        state: STATE_ESTABLISHED,
        creator: 2 | WITNESSED,
        primary,
        backup,
        ..FlowEntry::new_zeroed()
    }
}

fn names() -> Names {
    Names::parse(
        r#"version = 1
[cluster]
name = "edge-1"
member = [{ id = 1, name = "lb1" }, { id = 2, name = "lb2" }, { id = 3, name = "lb3" }]
[[service]]
name = "web"
vip = ["203.0.113.10:80/tcp"]
backends = [{ name = "web-1", address = "10.0.2.11" }, { name = "web-3", address = "10.0.2.13" }]
"#,
    )
}

/// (reason, member that delivers, why).
fn verdict(snapshot: &Snapshot) -> (&'static str, Option<u8>, String) {
    let judgement = explain(snapshot, &names()).verdict;
    (judgement.reason, judgement.member.map(|member| member.id), judgement.why)
}

#[test]
fn a_new_flow_goes_to_its_primary() {
    let text = |text: &str| text.to_owned();
    assert_eq!(verdict(&owned_by(1, 2)), ("deliver_stateless", Some(1), text("lb1 is the primary")));
    assert_eq!(verdict(&owned_by(2, 1)), ("hand_off_unknown", Some(2), text("lb2 is the primary")));
}

#[test]
fn a_new_flow_goes_to_the_backup_of_a_primary_that_is_out() {
    let mut snapshot = owned_by(2, 3);
    snapshot.liveness.eligible = 0b101;
    let why = "lb3 is the backup, and lb2 is not eligible".to_owned();
    assert_eq!(verdict(&snapshot), ("hand_off_unknown", Some(3), why));
    snapshot.liveness.forwarding = 0b101;
    let why = "lb3 is the backup, and lb2 is not forwarding".to_owned();
    assert_eq!(verdict(&snapshot), ("hand_off_unknown", Some(3), why));
}

#[test]
fn without_owners_the_best_ranked_usable_member_takes_it() {
    let mut snapshot = owned_by(2, 3);
    (snapshot.liveness.forwarding, snapshot.liveness.eligible) = (0b001, 0b001);
    let why =
        "lb1 is the best-ranked member that is usable: lb2 is not forwarding, and lb3 is not forwarding".to_owned();
    assert_eq!(verdict(&snapshot), ("deliver_stateless", Some(1), why));
}

#[test]
fn a_member_whose_agent_is_dead_owns_no_new_flows() {
    let mut snapshot = owned_by(1, 2);
    snapshot.liveness.lease_until_ns = NOW - 1;
    let why = "lb2 is the backup, and lb1 (this member) owns no new flows while its agent is dead".to_owned();
    assert_eq!(verdict(&snapshot), ("hand_off_unknown", Some(2), why));
    assert!(!explain(&snapshot, &names()).agent_alive);
}

#[test]
fn without_an_agent_a_silent_owner_is_passed_over() {
    let mut snapshot = owned_by(1, 2);
    snapshot.liveness.lease_until_ns = NOW - 1;
    snapshot.heard[2].probe_ns = NOW - 300_000_000;
    snapshot.entry = Some(entry(snapshot.key, 2, 3, 1));
    let why = "lb3 is the backup, and lb2 has not probed for 300 ms, while the agent here is dead".to_owned();
    assert_eq!(verdict(&snapshot), ("hand_off_known", Some(3), why));
}

#[test]
fn an_owner_that_cannot_be_reached_is_named() {
    let mut snapshot = owned_by(2, 1);
    snapshot.members[2].next_hop.ifindex = 0;
    let why = "lb2 should have it, but the next hop to lb2 is not resolved".to_owned();
    assert_eq!(verdict(&snapshot), ("deliver_stateless", Some(1), why));
}

#[test]
fn the_entry_decides_on_owners_and_backend_of_a_known_flow() {
    let mut snapshot = owned_by(1, 2);
    snapshot.entry = Some(entry(snapshot.key, 3, 1, 3));
    let explanation = explain(&snapshot, &names());
    assert_eq!(verdict(&snapshot), ("hand_off_known", Some(3), "lb3 is the primary".to_owned()));
    let roles: Vec<_> = explanation.ranking.iter().map(|ranked| (ranked.member.id, ranked.role)).collect();
    assert_eq!(roles, [(1, Some("backup")), (2, None), (3, Some("primary"))]);
    let choice = explanation.backend.unwrap();
    assert_eq!((choice.from, choice.backend.title().as_str()), ("entry", "web-3 (10.0.2.13)"));
    assert_eq!((explanation.packet, choice.backend.state), ("data", "draining"));
    let known = explanation.known.unwrap();
    assert_eq!((known.idle_ms.div_ceil(10), known.age_ms.div_ceil(10)), (200, 6_000));
    assert!(known.witnessed);

    snapshot.entry = Some(entry(snapshot.key, 1, 2, 3));
    assert_eq!(verdict(&snapshot), ("deliver_known", Some(1), "lb1 is the primary".to_owned()));
}

#[test]
fn a_pending_flow_goes_where_its_first_packet_went() {
    let mut snapshot = owned_by(1, 2);
    let now = tick(NOW);
    let pending =
        Pending { first_seen: now, expected_seq: 0, backend: 3, kind: PENDING_SYN, packets: 1, last_seen: now };
    snapshot.pending = Some(pending);
    let explanation = explain(&snapshot, &names());
    assert_eq!(explanation.pending.unwrap().kind, "syn");
    assert_eq!(explanation.backend.map(|choice| (choice.backend.slot, choice.from)), Some((3, "pending")));
}

#[test]
fn the_ring_gives_the_backend_of_a_new_flow() {
    let snapshot = owned_by(2, 1);
    let choice = explain(&snapshot, &names()).backend.unwrap();
    assert_eq!(choice.ring_slot, ring_slot(snapshot.key.hash(&snapshot.node.hash_key)));
    assert_eq!((usize::from(choice.backend.slot), choice.from), (choice.ring_slot % 2 + 1, "ring"));
}

#[test]
fn members_are_listed_by_score() {
    for port in 1024..1100 {
        let explanation = explain(&snapshot(key(port)), &names());
        let owners = rank_of(&key(port));
        let scores: Vec<_> = explanation.ranking.iter().map(|ranked| ranked.score.clone()).collect();
        assert!(scores.is_sorted_by(|a, b| a > b));
        let ids: Vec<_> = explanation.ranking.iter().map(|ranked| ranked.member.id).collect();
        assert_eq!(ids[..2], [owners.primary, owners.backup]);
    }
}

#[test]
fn what_is_not_balanced_says_so() {
    let mut snapshot = snapshot(key(4000));
    snapshot.service = None;
    assert_eq!(verdict(&snapshot).0, "no_service");
    snapshot.is_vip = false;
    assert_eq!(verdict(&snapshot).0, "not_ours");
    assert!(explain(&snapshot, &names()).backend.is_none());
    snapshot.node.id = 0;
    assert_eq!(verdict(&snapshot).0, "unconfigured");
}

#[test]
fn names_are_optional() {
    let explanation = explain(&owned_by(2, 1), &Names::load(Path::new("/nonexistent")));
    assert_eq!((explanation.service, explanation.verdict.why.as_str()), (None, "member 2 is the primary"));
    assert_eq!(explanation.receiver.title(), "member 1");
}

#[test]
fn flows_of_ipv6_and_sctp_and_of_every_port_are_explained() {
    let names = names();
    let v6 = FlowKeyV6::new([0x20; 16], [0x21; 16], [0x9c, 0x40], [0, 80], TCP);
    let explanation = explain(&snapshot(v6), &names);
    assert!(
        ["deliver_stateless", "hand_off_unknown"].contains(&explanation.verdict.reason),
        "{:?}",
        explanation.verdict
    );
    assert_eq!((explanation.packet, explanation.client.port()), ("syn", 40_000));

    let sctp = FlowKeyV4 { protocol: SCTP, ..key(4000) };
    assert_eq!((explain(&snapshot(sctp), &names).packet, explain(&snapshot(sctp), &names).vip.port), ("syn", 80));
    let mut any = snapshot(sctp);
    any.service = any.service.map(|(key, service)| (key.any_port(), service));
    assert!(explain(&any, &names).backend.is_some());
}

#[test]
fn direct_and_second_chance_say_why() {
    let mut direct = owned_by(2, 3);
    direct.entry = Some(entry(direct.key, 2, 3, 1));
    assert_eq!(verdict(&direct).0, "hand_off_known");
    direct.node.flags = NODE_DIRECT;
    let why = "this member knows the flow, and who knows a flow delivers it (handoff = \"direct\")".to_owned();
    assert_eq!(verdict(&direct), ("deliver_known", Some(1), why));

    let tcp = owned_by(1, 2);
    let doubt = |mut snapshot: Snapshot| {
        snapshot.liveness.doubt_until_ns = NOW + 1;
        snapshot
    };
    assert_eq!(verdict(&doubt(tcp)).0, "deliver_stateless", "a SYN belongs to no flow yet");
    let udp = (1024..u16::MAX).map(|port| FlowKeyV4 { protocol: UDP, ..key(port) });
    let udp = udp.map(|key| (key, rank_of(&key))).find(|(_, owners)| *owners == Owners { primary: 1, backup: 2 });
    let doubt = doubt(snapshot(udp.unwrap().0));
    let why = "records may still be missing here, and lb2 may know the flow".to_owned();
    assert_eq!(verdict(&doubt), ("hand_off_second_chance", Some(2), why));
}
