//! Which member has which of the demo's connections, read from the members' pinned tables.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{flow::FlowEntry, rank::bit};

use crate::{
    cluster::{Cluster, tcp_flow},
    traffic::record::Record,
};

/// The connections by id, with what each member's table says of them.
#[derive(Debug, Default)]
pub(super) struct Census {
    entries: BTreeMap<u64, BTreeMap<u8, FlowEntry>>,
    forwarding: BTreeMap<u8, u64>,
}

impl Census {
    /// Reads the tables of `members` for every connection in `records`; a table that cannot be read has nothing.
    pub(super) fn take<'a>(cluster: &Cluster, members: &[u8], records: impl Iterator<Item = &'a Record>) -> Self {
        let mut tables = Vec::new();
        let mut census = Self::default();
        for member in cluster.members.iter().filter(|member| members.contains(&member.id)) {
            if let (Ok(flows), Ok(liveness)) = (member.tables().flows(), member.tables().liveness()) {
                tables.push((member.id, flows));
                census.forwarding.insert(member.id, liveness.forwarding);
            }
        }
        for record in records {
            let key = tcp_flow(record.facts().port);
            let found = tables.iter().filter_map(|(id, flows)| Some((*id, flows.get(&key, 0).ok()?)));
            census.entries.insert(record.id, found.collect());
        }
        census
    }

    /// Connections by the primary in their entries. Where tables differ, the higher term counts.
    pub(super) fn by_primary(&self) -> BTreeMap<u8, u64> {
        self.count(|entry, _| entry.primary)
    }

    /// Connections by the member that delivers them: the primary, or the backup once the primary is dead.
    pub(super) fn by_carrier(&self) -> BTreeMap<u8, u64> {
        self.count(|entry, forwarding| {
            let usable = |id: u8| forwarding & bit(id) != 0;
            if usable(entry.primary) || !usable(entry.backup) { entry.primary } else { entry.backup }
        })
    }

    /// The connections that at least one member other than `victim` has an entry of.
    pub(super) fn protected(&self, victim: Option<u8>) -> BTreeSet<u64> {
        let survives = |holder: &u8| Some(*holder) != victim;
        self.entries.iter().filter(|(_, held)| held.keys().any(survives)).map(|(id, _)| *id).collect()
    }

    fn count(&self, choose: impl Fn(&FlowEntry, u64) -> u8) -> BTreeMap<u8, u64> {
        let mut counts = BTreeMap::new();
        for held in self.entries.values() {
            let current = held.iter().max_by_key(|(_, entry)| (entry.generation, entry.term, entry.last_seen));
            if let Some((holder, entry)) = current {
                let forwarding = self.forwarding.get(holder).copied().unwrap_or(0);
                *counts.entry(choose(entry, forwarding)).or_insert(0) += 1;
            }
        }
        counts
    }
}
