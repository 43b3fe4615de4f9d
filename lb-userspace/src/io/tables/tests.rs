//! On real maps, in a network namespace and a pin directory of each test's own.

use std::path::{Path, PathBuf};

use lb_common::address::mapped;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;
use crate::{
    config::MultiBuffer,
    io::{attach::Mode, datapath::Spec, pins},
};

const A: Address = mapped([10, 0, 0, 1]);
const B: Address = mapped([10, 0, 0, 2]);
const NEXT_HOP: NextHop =
    NextHop { destination: [2, 0, 0, 0, 0, 1], source: [2, 0, 0, 0, 0, 2], ifindex: 7, mtu: 1500, ..NextHop::NONE };

/// A datapath that is loaded and not attached; `None` without the rights for it.
fn load(pins: &Path) -> Option<Datapath> {
    // SAFETY: only this test's thread moves to the new network namespace.
    if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        eprintln!("skipped: cannot make a network namespace ({error}); run as root");
        return None;
    }
    Some(Datapath::load(&spec(pins, &["lo".to_owned()])).unwrap())
}

fn spec<'s>(pins: &'s Path, interfaces: &'s [String]) -> Spec<'s> {
    let multi_buffer = MultiBuffer::Auto;
    Spec { pins, interfaces, mode: Mode::Generic, multi_buffer, flows_max: 64, flows_v6_max: 32 }
}

fn directory(name: &str) -> PathBuf {
    Path::new(pins::BPFFS).join(format!("tandem-test-{}-{name}", std::process::id()))
}

fn tables(members: &[(u8, Address)]) -> Tables {
    let backend = BackendSlot { address: B, ring: 0, state: TARGET_SERVING };
    let key = ServiceKey { address: mapped([203, 0, 113, 10]), port: [0, 80], protocol: 6, padding: 0 };
    Tables {
        node: Node { schema: lb_common::abi::SCHEMA, ..Node::new_zeroed() },
        members: members.iter().copied().collect(),
        peer_prefixes: BTreeMap::new(),
        backends: BTreeMap::from([(1, backend)]),
        rings: BTreeMap::from([(0, Arc::new(Ring { slots: [1; 16384] }))]),
        services: BTreeMap::from([(key, Service { ring: 0, flags: 0, padding: [0; 3] })]),
        vip_filter: VipFilter::EMPTY,
    }
}

fn peers(installed: &Installed) -> BTreeMap<Address, u32> {
    installed.peers.iter().map(Result::unwrap).collect()
}

#[test]
fn a_member_that_takes_over_an_address_is_a_peer() {
    let Some(mut datapath) = load(&directory("takeover")) else { return };
    let (mut installed, _) = Installed::open(&mut datapath).unwrap();
    installed.install(tables(&[(3, A)])).unwrap();
    installed.install(tables(&[(4, A)])).unwrap();
    assert_eq!(peers(&installed), BTreeMap::from([(A, 4)]));

    installed.install(tables(&[(1, A), (2, B)])).unwrap();
    installed.install(tables(&[(1, B), (2, A)])).unwrap();
    assert_eq!(peers(&installed), BTreeMap::from([(A, 2), (B, 1)]));
}

#[test]
fn what_others_changed_is_healed() {
    let Some(mut datapath) = load(&directory("heal")) else { return };
    let (mut installed, _) = Installed::open(&mut datapath).unwrap();
    installed.install(tables(&[(1, A), (2, B)])).unwrap();
    installed.resolve(&Resolved { address: B, next_hop: NEXT_HOP }).unwrap();
    assert_eq!(installed.heal().unwrap(), 0);

    installed.peers.remove(&A).unwrap();
    installed.peers.insert(mapped([10, 0, 0, 9]), 9, 0).unwrap();
    installed.members.set(5, Target { address: A, state: TARGET_SERVING, ..Target::NONE }, 0).unwrap();
    installed.backends.set(1, Target { address: B, ring: 0, state: TARGET_SERVING, ..Target::NONE }, 0).unwrap();
    assert_eq!(installed.heal().unwrap(), 3);

    assert_eq!(peers(&installed), BTreeMap::from([(A, 1), (B, 2)]));
    assert_eq!(installed.members.get(&5, 0).unwrap(), Target::NONE);
    assert_eq!(installed.backends.get(&1, 0).unwrap().next_hop, NEXT_HOP);
    assert_eq!(installed.heal().unwrap(), 0);
}

#[test]
fn a_restarted_agent_finds_slots_and_next_hops_and_replaces_every_ring() {
    let path = directory("restart");
    let Some(mut datapath) = load(&path) else { return };
    let (mut installed, _) = Installed::open(&mut datapath).unwrap();
    installed.resolve(&Resolved { address: B, next_hop: NEXT_HOP }).unwrap();
    installed.install(tables(&[(1, A)])).unwrap();
    datapath.attach().unwrap();
    drop((installed, datapath));

    let mut datapath = Datapath::load(&spec(&path, &["lo".to_owned()])).unwrap();
    let (installed, adopted) = Installed::open(&mut datapath).unwrap();
    assert_eq!(adopted.backends.len(), 1);
    assert_eq!((adopted.backends[0].0, adopted.backends[0].1.next_hop), (1, NEXT_HOP));
    assert_eq!(adopted.services.len(), 1);
    // Also when all backends drain, and the wanted ring is empty.
    let wanted = Tables { rings: BTreeMap::from([(0, Arc::new(Ring::new_zeroed()))]), ..tables(&[(1, A)]) };
    assert_eq!(crate::io::bpf::link_ifindex(&path.join("link_lo")).unwrap(), 1);
    let ops = plan(&wanted, &installed.tables);
    assert!(ops.iter().any(|op| matches!(op, MapOp::SetRing { index: 0, .. })), "{}", ops.len());
    datapath.attach().unwrap();
    datapath.remove().unwrap();
    assert!(!path.exists());
}
