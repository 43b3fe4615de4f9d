//! Whose flows are given to whom: only those of members that are gone.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::rank::bit;
use lb_userspace::core::Key;

use crate::{
    agenda::flow_name,
    configuration::Cluster,
    invariants::Invariant,
    oracle::is_recorded,
    time::{MS, Ns},
    world::World,
};

/// How long what was done while a member was away may take to come to light.
const LATELY: Ns = 500 * MS;
/// How long after an agent has concluded that a member is gone it may say so.
const CONCLUSION: Ns = 250 * MS;

/// The owners of a flow, as somebody has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owned {
    generation: u16,
    term: u16,
    primary: u8,
    backup: u8,
}

impl World {
    /// Owners change when one of them is gone, and not otherwise.
    pub(crate) fn inspect_owners(&mut self) {
        let mut owned: BTreeMap<Key, BTreeSet<Owned>> = BTreeMap::new();
        for host in self.hosts.values() {
            let Some(datapath) = &host.datapath else { continue };
            for (key, entry) in datapath.flows.borrow().iter().filter(|(_, entry)| is_recorded(entry)) {
                let (generation, term, primary, backup) = (entry.generation, entry.term, entry.primary, entry.backup);
                owned.entry(key).or_default().insert(Owned { generation, term, primary, backup });
            }
        }
        let before = std::mem::replace(&mut self.owned, owned);
        let mut raised = Vec::new();
        for (key, now) in &self.owned {
            let (Some(before), Some(now)) = (before.get(key), now.last()) else { continue };
            let is_raised = |last: &Owned| last.generation == now.generation && last.term < now.term;
            if before.last().is_some_and(is_raised) {
                // Members that have not heard of each other may each have named owners of their own.
                let stay =
                    |owned: &Owned| [owned.primary, owned.backup].iter().all(|&id| id == 0 || self.is_staying(id));
                raised.push((*key, *now, before.iter().all(stay)));
            }
        }
        for (key, now, nobody_is_gone) in raised {
            self.stats.count("owners changed");
            if nobody_is_gone {
                self.violate(Invariant::OwnersStay, || {
                    format!("{} goes from {:?} to {now:?}, and nobody is gone", flow_name(&key), before.get(&key))
                });
            }
        }
    }

    /// Whether nobody has had a reason to give the member's flows to others.
    fn is_staying(&self, id: u8) -> bool {
        // Members take over configurations one after the other, and what they give away may come to light later.
        let stays = |cluster: &Cluster| cluster.members.contains(&id) && !cluster.drained.contains(&id);
        let takeover_after = self.plan.takeover_after.as_nanos() as Ns;
        let is_missed =
            |(pair, &since): (&(u8, u8), &Ns)| pair.1 == id && self.now - since + CONCLUSION >= takeover_after;
        let was_missed = self.returned.get(&id).is_some_and(|&at| at + LATELY >= self.now);
        self.configs.iter().all(stays) && !was_missed && !self.missed.iter().any(is_missed)
    }

    /// A member's agent says whose datapaths answer it.
    pub(crate) fn note_forwarding(&mut self, member: u8, forwarding: u64) {
        let configured = self.hosts.get(&member).and_then(|host| host.datapath.as_ref());
        let configured = configured.map_or(0, |datapath| datapath.installed.node.configured);
        let takeover_after = self.plan.takeover_after.as_nanos() as Ns;
        for id in (1..=self.plan.members_max).filter(|id| configured & bit(*id) != 0 && *id != member) {
            if forwarding & bit(id) == 0 {
                self.missed.entry((member, id)).or_insert(self.now);
            } else if let Some(since) = self.missed.remove(&(member, id))
                && self.now - since + CONCLUSION >= takeover_after
            {
                self.returned.insert(id, self.now);
            }
        }
    }
}
