//! Reloads: backends and members come and go, members disagree for a while.

use std::sync::Arc;

use lb_common::{
    flow::{STATE_CLOSING, STATE_RESET},
    maps::PREVIOUS_RINGS,
    ring::RING_SLOTS,
    target::{TARGET_DRAINING, TARGET_REMOVED, TARGET_SERVING},
};

use super::{versions::mixed, *};
use crate::core::{MapOp, plan};

pub(super) fn configure(net: &mut Net, id: u8, change: impl Fn(&mut View)) {
    let host = net.host(id);
    change(&mut host.view);
    host.view.generation += 1;
    let view = host.view.clone();
    net.input(id, Input::Configure(Box::new(view)));
}

/// All members are reloaded.
pub(super) fn configure_all(net: &mut Net, change: impl Fn(&mut View)) {
    let ids: Vec<u8> = net.hosts.keys().copied().collect();
    ids.into_iter().for_each(|id| configure(net, id, &change));
    net.run(MS);
}

pub(super) fn backends(net: &Net, id: u8) -> BTreeMap<u16, (Address, u8)> {
    let tables = net.hosts[&id].tables.as_ref().expect("tables");
    tables.backends.iter().map(|(slot, backend)| (*slot, (backend.address, backend.state))).collect()
}

pub(super) fn ring(net: &Net, id: u8) -> Vec<u16> {
    let tables = net.hosts[&id].tables.as_ref().expect("tables");
    let service = tables.services[&vip()];
    tables.rings[&service.ring].slots[..RING_SLOTS].to_vec()
}

#[test]
fn the_tables_hold_the_configuration() {
    let net = Net::new(2);
    let tables = net.hosts[&1].tables.as_ref().expect("tables");
    assert_eq!(tables.members, BTreeMap::from([(1, mapped([10, 0, 1, 1])), (2, mapped([10, 0, 1, 2]))]));
    assert!(tables.services.contains_key(&vip()));
    assert!(tables.services.contains_key(&ServiceKey::vip(vip().address)));
    assert!(tables.vip_filter.may_contain(lb_common::address::words(vip().address)));
    assert_eq!(backends(&net, 1), BTreeMap::from([(1, (server(1), TARGET_SERVING)), (2, (server(2), TARGET_SERVING))]));
    assert!(ring(&net, 1).iter().all(|slot| [1, 2].contains(slot)));
    assert_eq!((tables.node.id, tables.node.members, tables.node.configured), (1, 2, 0b11));
    assert_eq!(tables.node.schema, lb_common::abi::SCHEMA);
}

#[test]
fn a_draining_backend_keeps_its_slot_and_leaves_the_ring() {
    let mut net = Net::new(2);
    configure_all(&mut net, |view| view.services[0].backends[0].drain = true);
    assert_eq!(backends(&net, 1)[&1], (server(1), TARGET_DRAINING));
    assert!(ring(&net, 1).iter().all(|&slot| slot == 2));
}

#[test]
fn a_removed_backend_keeps_its_slot_while_a_flow_names_it_and_a_while_longer() {
    let mut net = Net::new(2);
    net.run(100 * S);
    net.begin(1, STATE_RESET);
    configure_all(&mut net, |view| view.services[0].backends = vec![backend(2), backend(3)]);
    assert_eq!(backends(&net, 1)[&1], (server(1), TARGET_REMOVED));
    assert_eq!(backends(&net, 1)[&3], (server(3), TARGET_SERVING), "its slot is not the removed one's");
    assert!(ring(&net, 1).iter().all(|slot| [2, 3].contains(slot)));
    net.run(35 * S);
    assert!(net.hosts[&1].flows.is_empty());
    assert!(backends(&net, 1).contains_key(&1), "something on its way may still name it");
    net.run(70 * S);
    assert!(!backends(&net, 1).contains_key(&1));
    configure_all(&mut net, |view| view.services[0].backends.push(backend(4)));
    assert_eq!(backends(&net, 1)[&1], (server(4), TARGET_SERVING), "the slot is free again");
}

#[test]
fn a_backend_that_returns_finds_its_slot_and_its_flows() {
    let mut net = Net::new(1);
    net.begin(1, STATE_ESTABLISHED);
    configure(&mut net, 1, |view| view.services[0].backends = vec![backend(2)]);
    net.run(S);
    configure(&mut net, 1, |view| view.services[0].backends = vec![backend(2), backend(1)]);
    assert_eq!(backends(&net, 1), BTreeMap::from([(1, (server(1), TARGET_SERVING)), (2, (server(2), TARGET_SERVING))]));
}

#[test]
fn slots_outlive_the_agent() {
    let mut net = Net::new(1);
    configure(&mut net, 1, |view| view.services[0].backends = vec![backend(9), backend(2)]);
    let before = backends(&net, 1);
    net.kill(1);
    // The new configuration lists them in another order, and one is gone.
    net.host(1).view.services[0].backends = vec![backend(2), backend(5), backend(9)];
    net.start(1);
    let after = backends(&net, 1);
    for (slot, (address, state)) in &before {
        let expected = if *state == TARGET_REMOVED { TARGET_REMOVED } else { TARGET_SERVING };
        assert_eq!(after[slot], (*address, expected));
    }
}

#[test]
fn a_flow_of_a_service_that_went_while_the_agent_was_dead_keeps_its_slot() {
    let mut net = Net::new(1);
    net.begin(1, STATE_ESTABLISHED);
    configure(&mut net, 1, |view| view.services.clear());
    net.kill(1);
    net.start(1);
    net.run(200 * S);
    assert_eq!(backends(&net, 1), BTreeMap::from([(1, (server(1), TARGET_REMOVED))]));
    assert_eq!(net.records(1), 1);
    configure(&mut net, 1, |view| {
        view.services = vec![web(vec![backend(2), backend(1)])];
    });
    net.sweep(1);
    assert_eq!(backends(&net, 1)[&1], (server(1), TARGET_SERVING));
}

#[test]
fn a_ring_is_built_anew_only_when_its_backends_change() {
    let mut net = Net::new(1);
    let before = net.hosts[&1].tables.clone().expect("tables");
    configure(&mut net, 1, |view| view.timeouts.udp = Duration::from_secs(1));
    let after = net.hosts[&1].tables.clone().expect("tables");
    assert!(Arc::ptr_eq(&before.rings[&0], &after.rings[&0]));
    assert!(plan(&after, &before).is_empty());
    configure(&mut net, 1, |view| view.services[0].backends.push(backend(3)));
    let after = net.hosts[&1].tables.clone().expect("tables");
    assert!(!Arc::ptr_eq(&before.rings[&0], &after.rings[&0]));
}

#[test]
fn a_plan_writes_what_is_pointed_to_first_and_removes_it_last() {
    let mut net = Net::new(2);
    let before = net.hosts[&1].tables.clone().expect("tables");
    let kind = |op: &MapOp| match op {
        MapOp::SetMember { .. } => "member",
        MapOp::ClearMember { .. } => "-member",
        MapOp::SetPeerPrefix { .. } => "prefix",
        MapOp::RemovePeerPrefix { .. } => "-prefix",
        MapOp::SetBackend { backend, .. } if backend.state == TARGET_SERVING => "backend",
        MapOp::SetBackend { .. } => "-serving",
        MapOp::ClearBackend { .. } => "-backend",
        MapOp::SetRing { index, .. } if *index >= PREVIOUS_RINGS => "ring of before",
        MapOp::SetRing { .. } => "ring",
        MapOp::ClearRing { .. } => "-ring",
        MapOp::SetService { .. } => "service",
        MapOp::RemoveService { .. } => "-service",
        MapOp::SetNode(_) => "node",
        MapOp::SetVipFilter(_) => "filter",
    };
    let kinds = |ops: Vec<MapOp>| {
        let mut kinds: Vec<&str> = ops.iter().map(kind).collect();
        kinds.dedup();
        kinds
    };
    let empty = Tables::empty();
    assert_eq!(kinds(plan(&before, &empty)), ["member", "backend", "ring", "service", "node", "filter"]);
    let way_back = ["node", "filter", "-service", "-ring", "-backend", "-member"];
    assert_eq!(kinds(plan(&empty, &before)), way_back);
    configure_all(&mut net, |view| view.services[0].backends = vec![backend(1), backend(7)]);
    let after = net.hosts[&1].tables.clone().expect("tables");
    assert_eq!(kinds(plan(&after, &before)), ["backend", "ring of before", "ring", "-serving"]);
}

/// What `members` and `peers` hold after a plan was carried out in its order, as `MapOp` says.
fn carry_out(plan: &[MapOp], members: &mut BTreeMap<u8, Address>, peers: &mut BTreeMap<Address, u8>) {
    for op in plan {
        match *op {
            MapOp::SetMember { id, address, previous } => {
                members.insert(id, address);
                previous.map(|previous| peers.remove(&previous));
                peers.insert(address, id);
            }
            MapOp::ClearMember { id, address } => {
                members.remove(&id);
                peers.remove(&address);
            }
            _ => {}
        }
    }
}

#[test]
fn every_members_address_leads_to_it_however_addresses_change_hands() {
    let states: [&[(u8, u8)]; 7] = [
        &[(1, 1), (2, 2), (3, 3)],
        &[(1, 1), (2, 2), (4, 3)],
        &[(1, 1), (2, 3), (4, 2)],
        &[(1, 1), (2, 5), (4, 3)],
        &[(1, 1), (3, 5)],
        &[(1, 3), (3, 1), (5, 5)],
        &[(1, 1)],
    ];
    for from in states {
        for to in states {
            let tables = |state: &[(u8, u8)]| Tables {
                members: state.iter().map(|&(id, last)| (id, mapped([10, 0, 1, last]))).collect(),
                ..Tables::empty()
            };
            let (mut members, mut peers) = (BTreeMap::new(), BTreeMap::new());
            carry_out(&plan(&tables(from), &Tables::empty()), &mut members, &mut peers);
            carry_out(&plan(&tables(to), &tables(from)), &mut members, &mut peers);
            assert_eq!(members, tables(to).members);
            assert_eq!(peers, members.iter().map(|(id, address)| (*address, *id)).collect(), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn records_of_an_unknown_backend_are_parked_and_applied_when_it_is_configured() {
    let mut net = mixed(1);
    // Member 1 knows only a backend that member 2 does not.
    configure(&mut net, 1, |view| view.services[0].backends = vec![backend(3)]);
    net.run(200 * S);
    let clients: Vec<u16> = (0..100).filter(|&c| net_owner(&net, c) == 1).take(5).collect();
    for &client in &clients {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(S);
    let status = net.core(2).status();
    assert_eq!((status.records, status.parked), (0, 5));
    assert_eq!(net.reports(2, |e| matches!(e, Event::Parked { .. })), 1);
    assert!(!status.peers[0].same_configuration);
    assert_eq!(net.reports(2, |e| matches!(e, Event::ConfigurationDiffers { .. })), 1);
    configure(&mut net, 2, |view| view.services[0].backends = vec![backend(3)]);
    let status = net.core(2).status();
    assert_eq!((status.records, status.parked), (5, 0));
    assert_eq!(net.hosts[&2].flows.len(), 5);
    assert!(status.peers[0].same_configuration);
}

fn net_owner(net: &Net, client: u16) -> u8 {
    let node = net.core(1).node;
    rank(key(client).hash(&node.hash_key), &node.seeds, node.members, u64::MAX).primary
}

#[test]
fn parked_records_are_bounded_and_counted() {
    let mut net = mixed(1);
    configure(&mut net, 1, |view| view.services[0].backends = vec![backend(3)]);
    net.run(200 * S);
    for client in (0..200).filter(|&c| net_owner(&net, c) == 1).collect::<Vec<_>>() {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(S);
    let status = net.core(2).status();
    assert_eq!(status.parked, 10);
    assert_eq!(status.parked_dropped as usize, net.records(1) - 10);
}

/// Two members; the second has parked four flows of the first.
fn with_parked(state: u8) -> Net {
    let mut net = mixed(1);
    configure(&mut net, 1, |view| view.services[0].backends = vec![backend(3)]);
    net.run(200 * S);
    let clients: Vec<u16> = (0..100).filter(|&c| net_owner(&net, c) == 1).take(4).collect();
    for &client in &clients {
        net.begin(client, state);
    }
    net.run(S);
    assert_eq!(net.core(2).status().parked, 4);
    net
}

#[test]
fn parked_records_go_when_their_flows_end() {
    let mut net = with_parked(STATE_CLOSING);
    // They end at the first member after 30 s instead of 120.
    configure(&mut net, 1, |view| view.timeouts.closing = Duration::from_secs(30));
    net.run(40 * S);
    assert_eq!(net.core(2).status().parked, 0);
}

#[test]
fn parked_records_go_when_their_flows_would_have_ended() {
    let mut net = with_parked(STATE_RESET);
    net.kill(1);
    net.run(20 * S);
    assert_eq!(net.core(2).status().parked, 4);
    net.run(12 * S);
    assert_eq!(net.core(2).status().parked, 0);
}

#[test]
fn a_new_member_joins_and_a_removed_one_is_let_go() {
    let mut net = Net::new(2);
    for client in 0..20 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.add(view(3, 3));
    for id in 1..=2 {
        configure(&mut net, id, |v| v.members = view(id, 3).members);
    }
    net.start(3);
    net.run(S);
    assert!(net.is_ready(3));
    assert_eq!(net.records(3), 20);
    assert!((1..=3).all(|id| net.hosts[&id].liveness.eligible == 0b111));
    for id in 1..=2 {
        configure(&mut net, id, |v| v.members = view(id, 2).members);
    }
    net.run(S);
    assert!((1..=2).all(|id| net.hosts[&id].liveness.forwarding == 0b11));
    assert!((1..=2).all(|id| net.core(id).links.len() == 2), "with each other, for bulk and for all else");
    assert!(!net.hosts[&1].tables.as_ref().expect("tables").members.contains_key(&3));
}

#[test]
fn another_secret_moves_no_flow_and_tables_are_compared_by_it() {
    let mut net = Net::new(2);
    for client in 0..500 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(20 * S);
    let before: Vec<_> = (0..500).map(|client| net.core(1).record(&key(client))).collect();
    let sessions = net.core(1).peers[&2].open;
    for id in 1..=2 {
        let hash_key = [77, 78];
        let view = View { hash_key, generation: 2, ..net.hosts[&id].view.clone() };
        net.host(id).view = view.clone();
        net.input(id, Input::Configure(Box::new(view)));
        assert_eq!(*net.core(id).table.secret(), hash_key);
        net.check_digests();
        // The other one has yet to be reloaded: that costs, and changes nothing.
        net.run(12 * S);
        net.sweep_all();
    }
    for client in 500..600 {
        net.begin(client, STATE_ESTABLISHED);
    }
    net.run(10 * S);
    let repaired = |net: &Net| net.core(1).status().repaired + net.core(2).status().repaired;
    let so_far = repaired(&net);
    net.run(20 * S);
    assert_eq!(repaired(&net), so_far, "all is equal again");
    for id in 1..=2 {
        assert!(net.core(id).status().peers[0].agrees);
        let now: Vec<_> = (0..500).map(|client| net.core(id).record(&key(client))).collect();
        assert_eq!(now, before);
        assert_eq!(net.records(id), 600);
    }
    assert_eq!(net.core(1).peers[&2].open, sessions);
    net.check_digests();
}
