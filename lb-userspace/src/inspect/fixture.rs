//! A member in good health, for tests of what is said of it.

use lb_common::{
    abi::SCHEMA,
    address::mapped,
    liveness::{Heard, Liveness},
    maps::FLOWS_MAX,
    node::Node,
    rank::{Seed, seed},
    reason::{Counter, REASONS, Reason, ServiceCounters},
    ring::RING_SLOTS,
    service::{Service, ServiceKey},
    target::{NextHop, TARGET_DRAINING, TARGET_SERVING, Target},
};
use zerocopy::FromZeros;

use crate::{
    config::Names,
    inspect::{status::Readings, words::Traffic},
    pinned::FlowCount,
};

/// When it was read.
pub(crate) const NOW: u64 = 1_000_000_000_000;

/// Member 1 of 2, in good health.
pub(crate) fn readings() -> Readings {
    let next_hop = NextHop { ifindex: 1, destination: [2, 0, 0, 0, 0, 9], mtu: 1500, ..Target::NONE.next_hop };
    let target = |address, state| Target { address: mapped(address), next_hop, ring: 3, state, padding: [0; 3] };
    let mut node = Node::new_zeroed();
    (node.schema, node.id, node.members, node.configured) = (SCHEMA, 1, 2, 0b11);
    (node.addresses[0], node.incarnation) = (mapped([10, 0, 1, 11]), 5);
    for (slot, id) in node.seeds.iter_mut().zip(1..=2) {
        *slot = Seed { seed: seed(id), id: u64::from(id) };
    }
    let (echo_ns, echo_sent_ns) = (NOW - 2_000_000, NOW - 2_084_000);
    let (probe_ns, forwarding) = (NOW - 7_000_000, 0b11);
    let heard = Heard { probe_ns, echo_ns, echo_sent_ns, forwarding, incarnation: 3, ..Heard::new_zeroed() };
    let mut counters = vec![Counter { packets: 0, bytes: 0 }; REASONS];
    counters[Reason::DeliverKnown as usize] = Counter { packets: 1_234_567, bytes: 98_765_432 };
    counters[Reason::DropFragmentNoHead as usize] = Counter { packets: 3, bytes: 4_500 };
    let key = ServiceKey { address: mapped([203, 0, 113, 10]), port: [0, 80], protocol: 6, padding: 0 };
    let of = |packets| Counter { packets, bytes: packets * 80 };
    let service_counters =
        ServiceCounters { delivered: of(1_234_567), handed_off: of(567), answered: of(0), dropped: of(3) };
    Readings {
        now_ns: NOW,
        node,
        liveness: Liveness {
            forwarding: 0b11,
            eligible: 0b11,
            lease_until_ns: NOW + 80_000_000,
            budgets: [1000; 5],
            doubt_until_ns: 0,
            grace_until_ns: 0,
            epoch: 7,
            awaited: 0,
            left: 0,
            flags: 0,
        },
        heard: vec![Heard::new_zeroed(), Heard::new_zeroed(), heard],
        members: [0, 11, 12].map(|last| target([10, 0, 1, last], TARGET_SERVING)).to_vec(),
        backends: vec![Target::NONE, target([10, 0, 2, 11], TARGET_SERVING), target([10, 0, 2, 12], TARGET_DRAINING)],
        services: vec![(key, Service { ring: 3, flags: 0, padding: [0; 3] }, [(1, RING_SLOTS as u32)].into())],
        counters,
        unprotected_per_s: 0,
        service_counters: [(3, service_counters)].into(),
        delivered: [(1, Traffic { packets: 1_234_000, bytes: 98_700_000 })].into(),
        handed_off: [(2, Traffic { packets: 567, bytes: 45_000 })].into(),
        flows: [FlowCount { flows: 12_345, is_exact: true }, FlowCount { flows: 67, is_exact: true }],
        flows_max: [FLOWS_MAX, FLOWS_MAX / 4],
        interfaces: vec!["eth0".into()],
    }
}

/// As its configuration has them.
pub(crate) fn names() -> Names {
    Names::parse(
        r#"version = 1
cluster.name = "edge-1"
cluster.member = [{ id = 1, name = "lb1" }, { id = 2, name = "lb2" }]
[[service]]
name = "web"
vip = ["203.0.113.10:80/tcp"]
"#,
    )
}
