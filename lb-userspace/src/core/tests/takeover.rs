//! Flows of members that are gone for good, or that shall go.

use super::{
    configuration::{configure, configure_all},
    *,
};
use crate::core::records::Record;

const FLOWS: u16 = 60;

/// A cluster that has flows of all its members.
fn populated(members: u8) -> Net {
    let mut net = Net::new(members);
    for client in 0..FLOWS {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(S);
    net
}

fn record(net: &Net, id: u8, client: u16) -> Record {
    net.core(id).record(&key(client)).expect("a record")
}

fn records_of(net: &Net, id: u8) -> Vec<Record> {
    (0..FLOWS).map(|client| record(net, id, client)).collect()
}

fn die(net: &mut Net, id: u8) {
    net.kill(id);
    net.host(id).is_up = false;
}

/// Like `run`, and the sweeps show that the flows have traffic.
fn run(net: &mut Net, seconds: u64) {
    for _ in 0..seconds {
        net.run(S);
        let ids: Vec<u8> = net.hosts.iter().filter(|(_, host)| host.core.is_some()).map(|(&id, _)| id).collect();
        ids.into_iter().for_each(|id| net.sweep(id));
    }
}

#[test]
fn a_dead_members_flows_go_to_their_backup_and_the_next_in_rank() {
    let mut net = populated(3);
    let before = records_of(&net, 1);
    die(&mut net, 3);
    run(&mut net, 25);
    assert_eq!(records_of(&net, 1), before, "a member may come back for 30 s");
    run(&mut net, 20);
    for id in 1..=2 {
        for (before, after) in before.iter().zip(records_of(&net, id)) {
            let old = before.owners;
            assert_eq!(Record { owners: old, ..after }, *before, "nothing but the owners has changed");
            let survivors = [after.owners.primary, after.owners.backup];
            assert!(survivors == [1, 2] || survivors == [2, 1], "{after:?}");
            let expected = if old.primary == 3 { old.backup } else { old.primary };
            assert_eq!(after.owners.primary, expected, "the flow stays where its packets go");
            assert_eq!(after.owners.term, u16::from(old.primary == 3 || old.backup == 3));
        }
    }
    let raised: u64 = (1..=2).map(|id| net.core(id).status().handed_over).sum();
    assert_eq!(raised as usize, before.iter().filter(|r| [r.owners.primary, r.owners.backup].contains(&3)).count());
    // The datapath's entries say the same.
    for client in 0..FLOWS {
        let entry = net.hosts[&1].flows[&key(client)];
        let owners = record(&net, 1, client).owners;
        assert_eq!((entry.primary, entry.backup, entry.term), (owners.primary, owners.backup, owners.term));
    }
}

#[test]
fn nothing_moves_back_to_a_member_that_returns() {
    let mut net = populated(3);
    die(&mut net, 3);
    run(&mut net, 45);
    let taken = records_of(&net, 1);
    // With its old flows, of the old term.
    net.host(3).is_up = true;
    net.start(3);
    run(&mut net, 45);
    assert!(net.is_ready(3));
    assert!((1..=3).all(|id| records_of(&net, id) == taken));
    assert!(taken.iter().all(|record| ![record.owners.primary, record.owners.backup].contains(&3)));
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111), "new flows are its own again");
}

#[test]
fn without_a_majority_nobody_takes_over() {
    let mut net = populated(2);
    let before = records_of(&net, 1);
    die(&mut net, 2);
    run(&mut net, 60);
    assert_eq!(records_of(&net, 1), before);
    let mut net = populated(4);
    let before = records_of(&net, 1);
    (3..=4).for_each(|id| die(&mut net, id));
    run(&mut net, 60);
    assert_eq!(records_of(&net, 1), before, "two of four are no majority");
}

#[test]
fn when_both_owners_are_dead_the_next_in_rank_take_the_flow() {
    let mut net = populated(5);
    (4..=5).for_each(|id| die(&mut net, id));
    run(&mut net, 60);
    for record in records_of(&net, 1) {
        let owners = record.owners;
        assert!((1..=3).contains(&owners.primary) && (1..=3).contains(&owners.backup), "{owners:?}");
        assert_ne!(owners.primary, owners.backup);
    }
    assert_eq!(records_of(&net, 1), records_of(&net, 3));
}

#[test]
fn a_removed_members_flows_get_other_owners() {
    let mut net = populated(3);
    configure_all(&mut net, |v| v.members.retain(|member| member.id != 3));
    run(&mut net, 60);
    for record in records_of(&net, 1) {
        assert!(![record.owners.primary, record.owners.backup].contains(&3), "{record:?}");
    }
}

#[test]
fn a_draining_member_gives_its_flows_away_and_says_when_none_are_left() {
    let mut net = populated(3);
    let before = records_of(&net, 1);
    // Its own file is enough.
    configure(&mut net, 2, |view| view.members[1].drain = true);
    net.run(S);
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b101 && net.hosts[&id].liveness.forwarding == 0b111));
    run(&mut net, 20);
    for (before, after) in before.iter().zip(records_of(&net, 1)) {
        assert!([1, 3].contains(&after.owners.primary) && [1, 3].contains(&after.owners.backup), "{after:?}");
        assert_eq!(Record { owners: before.owners, ..after }, *before);
        assert!(before.owners.primary == 2 || after.owners.primary == before.owners.primary);
    }
    assert!((1..=3).all(|id| records_of(&net, id) == records_of(&net, 1)));
    assert_eq!(net.core(2).status().drain.map(|drain| drain.left), Some(Some(0)));
    assert_eq!(net.hosts[&2].liveness.left, 0);
    assert_eq!(net.reports(2, |event| *event == Event::Drained), 1);
    // And back.
    configure(&mut net, 2, |view| view.members[1].drain = false);
    net.run(S);
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111));
    assert_eq!(net.core(2).status().drain, None);
}

#[test]
fn an_order_drains_a_member_too() {
    let mut net = populated(2);
    net.input(1, Input::Drain(true));
    run(&mut net, 20);
    assert!(records_of(&net, 2).iter().all(|record| (record.owners.primary, record.owners.backup) == (2, 0)));
    assert_eq!(net.core(1).status().drain.map(|drain| drain.left), Some(Some(0)));
    net.input(1, Input::Drain(false));
    net.run(S);
    assert_eq!(net.hosts[&2].liveness.eligible, 0b11);
}

#[test]
fn the_last_member_cannot_give_its_flows_away_and_keeps_them() {
    let mut net = populated(1);
    net.input(1, Input::Drain(true));
    run(&mut net, 20);
    assert_eq!(net.core(1).status().drain.map(|drain| drain.left), Some(Some(usize::from(FLOWS))));
    assert_eq!(net.reports(1, |event| *event == Event::Drained), 0);
}
