//! `handoff = "direct"`: whoever knows a flow delivers its packets.

use std::{
    thread,
    time::{Duration, Instant},
};

use lb_common::reason::{Action, Reason};
use tests::{
    cluster::{Cluster, tcp_flow},
    interrupt::wait_until,
    traffic::caller::Caller,
};

use crate::{cluster_with, entries_everywhere, ports, started};

/// The longest that a member's death goes unnoticed: an exchange that waits for its owner waits that long.
const DETECTION: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(5);

/// A connection that member 1 receives and member 2 owns, known to all.
fn owned_elsewhere(cluster: &mut Cluster) -> Caller {
    cluster.receive_at(&[1]).unwrap();
    let port = ports(cluster, tcp_flow, |ranked| ranked[0] == 2).next().unwrap();
    let mut caller = Caller::open(&cluster.topology.client, port).unwrap();
    for _ in 0..3 {
        caller.ask().unwrap();
    }
    for (id, entry) in entries_everywhere(cluster, &tcp_flow(port)) {
        assert_eq!(entry.primary, 2, "on member {id}");
    }
    caller
}

/// The longest of exchanges made one after the other for a while.
fn longest(caller: &mut Caller, duration: Duration) -> Duration {
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    while began.elapsed() < duration {
        let asked = Instant::now();
        caller.ask().unwrap();
        longest = longest.max(asked.elapsed());
        thread::sleep(PAUSE);
    }
    longest
}

#[test]
fn the_death_of_its_owner_costs_an_established_flow_nothing() {
    let mut cluster = cluster_with(3, "direct");
    let mut caller = owned_elsewhere(&mut cluster);
    let at = |cluster: &Cluster, id: usize| cluster.members[id - 1].tables().packets().unwrap();
    let before = (at(&cluster, 1), at(&cluster, 2));
    let usual = longest(&mut caller, Duration::from_millis(300));
    assert_eq!(at(&cluster, 2).since(&before.1).ended_in(Action::Deliver), 0, "the owner delivers none of it");
    cluster.cut(2).unwrap();
    let after = longest(&mut caller, Duration::from_millis(600));
    println!("longest exchange {usual:?} before the owner died and {after:?} afterwards");
    assert!(after < DETECTION, "{after:?}, and {usual:?} before");
    let since = at(&cluster, 1).since(&before.0);
    assert_eq!(since.ended_in(Action::HandOff), 0);
    assert!(since.of(Reason::DeliverKnown) >= 50, "{since:?}");
}

/// The owner sees nothing of the flow; the receiver tells it.
#[test]
fn a_flow_with_traffic_only_at_another_member_than_its_owners_does_not_expire() {
    // The owner hears of the traffic by the receiver's sweep of its table, every five seconds; it must not end before.
    let timeouts = "{ young = \"10s\", tcp = \"10s\" }";
    let mut cluster = started(3, |config| (config.handoff, config.timeouts) = ("direct", Some(timeouts)));
    let mut caller = owned_elsewhere(&mut cluster);
    let key = tcp_flow(caller.port());
    let holders = |cluster: &Cluster| -> Vec<u8> {
        let has = |member: &&tests::member::Member| member.tables().flow(&key).unwrap().is_some();
        cluster.members.iter().filter(has).map(|member| member.id).collect()
    };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(25) {
        caller.ask().unwrap();
        thread::sleep(Duration::from_millis(250));
        assert_eq!(holders(&cluster), [1, 2, 3], "after {:?}", began.elapsed());
    }
    let gone = wait_until(Duration::from_secs(30), Duration::from_millis(100), || holders(&cluster).is_empty());
    assert!(gone.unwrap(), "silent for 30 s, and still known to {:?}", holders(&cluster));
}
