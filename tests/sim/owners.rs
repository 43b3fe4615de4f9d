//! Whose flows are given to whom: only those of members that are gone, as whoever gives them sees it.

use std::collections::BTreeMap;

use lb_common::{flow::FlowEntry, rank::bit};
use lb_userspace::core::Key;

use crate::{agenda::flow_name, invariants::Invariant, member::Agent, time::Ns, world::World};

/// The owners of a flow, as somebody has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owned {
    generation: u16,
    term: u16,
    primary: u8,
    backup: u8,
}

/// What an agent knows of owners, and of those who may have lost their flows.
#[derive(Default)]
pub(crate) struct Ownership {
    /// Of each flow the highest owners that it has seen in its map, or has written there.
    known: BTreeMap<Key, Owned>,
    /// Members that it takes to be dead, and since when.
    missed: BTreeMap<u8, Ns>,
    /// Whether it has said yet whom it takes to be alive.
    has_looked: bool,
}

impl Ownership {
    /// The agent sees or writes a flow's owners; says whether they are news to it.
    pub(crate) fn see(&mut self, key: Key, owned: Owned) -> bool {
        let before = self.known.get(&key).copied();
        let is_news = before.is_none_or(|before| before < owned);
        if is_news {
            self.known.insert(key, owned);
        }
        is_news
    }

    /// The flow has ended: what the agent hears of it next may be less.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.known.remove(key);
    }
}

impl Owned {
    /// Those of an entry.
    pub(crate) const fn of(entry: &FlowEntry) -> Self {
        Self { generation: entry.generation, term: entry.term, primary: entry.primary, backup: entry.backup }
    }

    /// Whether others have been named since, though the flow is the same.
    const fn is_raised_to(&self, later: &Self) -> bool {
        self.generation == later.generation && self.term < later.term
    }

    /// Whether the flow is the same, and so is its term, but not its owners.
    pub(crate) const fn contradicts(&self, other: &Self) -> bool {
        let is_same = self.primary == other.primary && self.backup == other.backup;
        self.generation == other.generation && self.term == other.term && !is_same
    }
}

impl World {
    /// An agent writes an entry: if these owners are news to all, it has named them itself, because one of those before is gone.
    pub(crate) fn judge_owners(&mut self, member: u8, key: &Key, entry: &FlowEntry) {
        let owned = Owned::of(entry);
        let Some(agent) = self.hosts.get_mut(&member).and_then(|host| host.agent.as_mut()) else { return };
        let before = agent.ownership.known.get(key).copied();
        agent.ownership.see(*key, owned);
        let is_news = self.owned.insert((*key, owned));
        let Some(before) = before.filter(|before| is_news && before.is_raised_to(&owned)) else { return };
        self.stats.count("owners changed");
        if ![before.primary, before.backup].iter().any(|&id| id != 0 && self.is_gone(member, id)) {
            self.violate(Invariant::OwnersStay, || {
                format!("member {member} gives {} from {before:?} to {owned:?}, and nobody is gone", flow_name(key))
            });
        }
    }

    /// Whether `member` may give the flows of `id` to others.
    fn is_gone(&self, member: u8, id: u8) -> bool {
        let Some(host) = self.hosts.get(&member) else { return false };
        let Some(agent) = &host.agent else { return false };
        if id == member {
            return agent.core.own_status().drain.is_some();
        }
        let is_configured = self.configs.get(host.version).is_some_and(|cluster| cluster.members.contains(&id));
        let takeover_after = self.plan.takeover_after.as_nanos() as Ns;
        let acquainted = host.acquainted.get(&id).copied().unwrap_or_default();
        let missed = agent.ownership.missed.get(&id);
        !is_configured || missed.is_some_and(|&since| self.now - since.max(acquainted) >= takeover_after)
    }

    /// A member's agent says whose datapaths answer it.
    pub(crate) fn note_forwarding(&mut self, member: u8, forwarding: u64) {
        let (now, last) = (self.now, self.plan.members_max);
        let Some(host) = self.hosts.get_mut(&member) else { return };
        let Some(Agent { ownership, started, .. }) = &mut host.agent else { return };
        // Whom it has not seen yet it has missed since it started.
        let since = if ownership.has_looked { now } else { *started };
        ownership.has_looked = true;
        for id in (1..=last).filter(|&id| id != member) {
            if forwarding & bit(id) == 0 {
                ownership.missed.entry(id).or_insert(since);
            } else {
                ownership.missed.remove(&id);
            }
        }
    }
}
