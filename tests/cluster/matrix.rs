//! The test matrix: what may happen to a cluster under 1,000 long-lived connections whose every byte is checked.
//!
//! `docs/test-matrix.md` says which row is tested where. After each fault that heals, all tables are the same.

mod changes;
mod epochs;
mod installation;
mod malice;
mod network;
mod nodes;
mod state;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use lb_common::flow::{FlowEntry, FlowKey as _, FlowKeyV4};
use tests::{
    cluster::{Cluster, READY_LIMIT},
    config::Config,
    interrupt,
    member::Member,
    tables::Tables,
    traffic::load::{Load, Plan},
};

/// Long-lived connections of every row, a fifth of them idle and a fifth uploading.
const CONNECTIONS: usize = 1000;
/// How long connections may take to open, and to be protected.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Tables are the same so long after a fault has healed.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(10);

/// A cluster under load.
struct Scene {
    // Before the cluster: the traffic ends before the lab does.
    load: Load,
    cluster: Cluster,
}

impl Scene {
    /// Members that know all connections of the load.
    fn of(balancers: u8) -> Self {
        Self::with(balancers, Plan { shorts_per_second: 20, ..Plan::mixed(CONNECTIONS) })
    }

    /// The same without new connections all the time: where some may not succeed, or tables are compared.
    fn of_long_ones(balancers: u8) -> Self {
        Self::with(balancers, Plan::mixed(CONNECTIONS))
    }

    fn with(balancers: u8, plan: Plan) -> Self {
        Self::tuned(balancers, plan, |_| ())
    }

    fn tuned(balancers: u8, plan: Plan, tune: impl FnOnce(&mut Config)) -> Self {
        let cluster = crate::started(balancers, tune);
        let load = Load::start(&cluster.topology.client, plan).unwrap();
        load.wait_open(OPEN_LIMIT).unwrap();
        // Past plausibility, and told to everybody.
        thread::sleep(Duration::from_millis(700));
        Self { load, cluster }
    }

    /// Every connection, the idle ones included, works and has worked; nobody was refused.
    #[track_caller]
    fn nothing_broke(self) {
        self.load.wake_idle();
        thread::sleep(Duration::from_millis(500));
        let ledger = self.load.finish();
        let broken = ledger.broken();
        let what: Vec<_> = broken.iter().map(|record| (record.kind, record.facts())).take(5).collect();
        assert!(broken.is_empty(), "{} connections broke, the first of them {what:#?}", broken.len());
        assert_eq!(ledger.shorts().handshakes_failed, 0);
    }

    /// Within the limit all members hold the same records.
    #[track_caller]
    fn tables_agree(&self) {
        let began = Instant::now();
        let mut difference = None;
        let agree = || {
            difference = difference_of(&self.cluster.members);
            difference.is_none()
        };
        interrupt::wait_until(CONVERGENCE_LIMIT, Duration::from_millis(200), agree).unwrap();
        assert!(difference.is_none(), "after {:?} tables differ: {difference:?}", began.elapsed());
    }

    fn ready(&mut self, id: u8) {
        self.cluster.member(id).unwrap().wait_ready(READY_LIMIT).unwrap();
    }

    fn pause(&self, milliseconds: u64) {
        thread::sleep(Duration::from_millis(milliseconds));
    }
}

/// What members agree on of an entry: no times, no local slots.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    backend: [u8; 16],
    generation: u16,
    revision: u16,
    state: u8,
    creator: u8,
    incarnation: u32,
    owners: (u16, u8, u8),
}

/// A flow that two of the members know differently.
fn difference_of(members: &[Member]) -> Option<String> {
    let known: Vec<_> =
        members.iter().filter(|member| member.pid().is_some()).map(|member| (member, records(member))).collect();
    let (first, others) = known.split_first()?;
    for (member, table) in others {
        let one_sided = |key: &&FlowKeyV4| first.1.get(*key) != table.get(*key);
        if let Some(key) = first.1.keys().chain(table.keys()).find(one_sided) {
            let (a, b) = (first.1.get(key), table.get(key));
            return Some(format!("{key:?}: {} has {a:?}, {} has {b:?}", first.0.name(), member.name()));
        }
    }
    None
}

fn records(member: &Member) -> BTreeMap<FlowKeyV4, Known> {
    let tables = member.tables();
    let flows = tables.all_flows().unwrap();
    flows.into_iter().filter_map(|(key, entry)| Some((key, of(&tables, &key, &entry)?))).collect()
}

/// None for an entry that was recycled while it was read.
fn of(tables: &Tables, key: &FlowKeyV4, entry: &FlowEntry) -> Option<Known> {
    (entry.tag == key.tag()).then(|| Known {
        backend: tables.backend(entry.backend).unwrap().address,
        generation: entry.generation,
        revision: entry.revision,
        state: entry.state,
        creator: entry.creator,
        incarnation: entry.creator_incarnation,
        owners: (entry.term, entry.primary, entry.backup),
    })
}
