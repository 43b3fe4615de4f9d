//! The oracle: who has known what, since when.

use std::collections::BTreeMap;

use lb_common::{
    address::Address,
    flow::{FlowEntry, STATE_ESTABLISHED},
};
use lb_userspace::core::Key;

use crate::{time::Ns, world::World};

/// What the oracle has seen in the members' tables.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// By member and flow: the recorded server, and since when it has been that.
    known: BTreeMap<u8, BTreeMap<Key, Known>>,
    /// When an agent last deleted an entry of the flow.
    deleted: BTreeMap<Key, Ns>,
}

/// A record that the oracle has seen.
#[derive(Clone, Copy, Debug)]
struct Known {
    backend: Address,
    since: Ns,
    seen: Ns,
}

impl Oracle {
    /// A member lost its memory.
    pub(crate) fn forget_member(&mut self, member: u8) {
        self.known.remove(&member);
    }

    /// Since when `member` has had the flow on `backend`.
    pub(crate) fn known_since(&self, member: u8, key: &Key, backend: Address) -> Option<Ns> {
        self.known.get(&member)?.get(key).filter(|known| known.backend == backend).map(|known| known.since)
    }

    /// A member's agent deletes its entry of the flow.
    pub(crate) fn note_deletion(&mut self, now: Ns, member: u8, key: Key) {
        self.deleted.insert(key, now);
        if let Some(known) = self.known.get_mut(&member) {
            known.remove(&key);
        }
    }

    /// When an agent last deleted an entry of the flow.
    pub(crate) fn deleted_at(&self, key: &Key) -> Option<Ns> {
        self.deleted.get(key).copied()
    }

    fn see(&mut self, now: Ns, member: u8, entries: impl Iterator<Item = (Key, Address)>) {
        let known = self.known.entry(member).or_default();
        for (key, backend) in entries {
            let entry = known.entry(key).or_insert(Known { backend, since: now, seen: now });
            if entry.backend != backend {
                *entry = Known { backend, since: now, seen: now };
            }
            entry.seen = now;
        }
        known.retain(|_, known| known.seen == now);
    }
}

/// Whether peers may have this entry too.
pub(crate) fn is_recorded(entry: &FlowEntry) -> bool {
    entry.state >= STATE_ESTABLISHED
}

impl World {
    /// Looks at all tables.
    pub(crate) fn inspect(&mut self) {
        for (&member, host) in &self.hosts {
            let Some(datapath) = &host.datapath else { continue };
            let flows = datapath.flows.borrow();
            let recorded = flows
                .iter()
                .filter(|(_, entry)| is_recorded(entry))
                .filter_map(|(key, entry)| Some((key, datapath.backend_address(entry.backend)?)));
            self.oracle.see(self.now, member, recorded);
            self.stats.max("flows in a table", flows.len() as u64);
        }
    }

    /// Adds what became of the clients.
    pub(crate) fn gather(&mut self) {
        for client in self.clients.values() {
            self.stats.count(match client.phase {
                crate::client::Phase::Failed => "connection never opened",
                crate::client::Phase::Broken => "connection broken, all",
                _ => "connection well",
            });
        }
    }
}
