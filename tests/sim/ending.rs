//! What must hold once all is mended and quiet.

use std::collections::BTreeMap;

use lb_common::{
    address::Address,
    flow::FlowEntry,
    rank::bit,
    ring::{RING_SLOTS, ring_slot},
};

use lb_userspace::core::Key;

use crate::{
    agenda::flow_name,
    configuration::{WEB, service_key},
    invariants::Invariant,
    time::{MS, S},
    world::World,
};

/// An entry without what is local: times, slots, counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Canonical {
    generation: u16,
    backend: Address,
    creator: u8,
    creator_incarnation: u32,
    revision: u16,
    state: u8,
    term: u16,
    primary: u8,
    backup: u8,
}

type Table = BTreeMap<Key, Canonical>;

impl World {
    /// All invariants of the end.
    pub(crate) fn judge_end(&mut self) {
        self.judge_drained();
        self.judge_masks();
        self.judge_rings();
        self.judge_tables();
        self.judge_progress();
    }

    /// Everybody knows that everybody is well.
    fn judge_masks(&mut self) {
        let all = self.hosts.values().filter(|host| host.enlisted).fold(0, |mask, host| mask | bit(host.id));
        let drained = self.newest().drained.iter().fold(0, |mask, &id| mask | bit(id));
        let mut wrong = None;
        for host in self.hosts.values().filter(|host| host.enlisted) {
            let liveness = host.datapath.as_ref().map(|datapath| datapath.liveness);
            let is_well = liveness.is_some_and(|liveness| {
                liveness.forwarding | bit(host.id) == all
                    && liveness.eligible == all & !drained
                    && liveness.lease_until_ns >= host.local(self.now)
            });
            // Nobody announces a member that starts in order to be drained.
            let serves = host.serves() || drained & bit(host.id) != 0 && host.up && host.attached;
            if !is_well || !serves {
                wrong = Some((host.id, liveness));
            }
        }
        if let Some((member, liveness)) = wrong {
            self.violate(Invariant::AllWell, || format!("member {member} sees {liveness:?}, all are {all:#b}"));
        }
    }

    /// The stateless answer is the same on every member (law 2).
    fn judge_rings(&mut self) {
        let mut answers: BTreeMap<u8, Vec<Option<Address>>> = BTreeMap::new();
        for host in self.hosts.values().filter(|host| host.enlisted) {
            let Some(datapath) = &host.datapath else { continue };
            let hashes = (0..64_u64).map(lb_common::hash::mix);
            let keys = [false, true].map(|is_v6| service_key(is_v6, WEB, self.plan.protocol));
            let slots = hashes.flat_map(|hash| keys.map(|key| datapath.stateless(&key, ring_slot(hash) % RING_SLOTS)));
            answers.insert(host.id, slots.collect());
        }
        let differs = answers.values().zip(answers.values().skip(1)).any(|(one, other)| one != other);
        if differs {
            self.violate(Invariant::Convergence, || "members give different stateless answers".into());
        }
    }

    /// All tables hold the same, and every protected connection is in them.
    fn judge_tables(&mut self) {
        let mut tables: BTreeMap<u8, Table> = BTreeMap::new();
        for host in self.hosts.values().filter(|host| host.enlisted) {
            tables.insert(host.id, self.canonical(host.id));
        }
        let is_roomy = self.hosts.values().filter(|host| host.enlisted).all(|host| {
            // What was parked beyond the bound comes with the next snapshot.
            let parked_all = host.agent.as_ref().is_none_or(|agent| agent.core.status().parked_dropped == 0);
            parked_all
                && host.overfull == 0
                && host.datapath.as_ref().is_none_or(|datapath| datapath.refused.get() == 0)
        });
        let mut union = Table::new();
        for table in tables.values() {
            union.extend(table.iter().map(|(key, entry)| (*key, *entry)));
        }
        self.stats.add("flow compared at the end", union.len() as u64);
        self.stats.count(if is_roomy { "tables compared as wholes" } else { "tables compared in part" });
        let mut wrong = None;
        for (key, expected) in &union {
            for (member, table) in &tables {
                let found = table.get(key);
                let is_missing = found.is_none() && is_roomy && !self.may_be_missing(key, expected);
                let differs = found.is_some_and(|found| found != expected && self.can_agree(found, expected));
                if is_missing || differs && !self.is_disputed(key) {
                    wrong = Some((*key, *member, found.copied(), *expected));
                }
            }
        }
        if let Some((key, member, found, expected)) = wrong {
            self.trace_records(&key);
            self.violate(Invariant::Convergence, || {
                format!("{} on member {member}: {found:?}, elsewhere {expected:?}", flow_name(&key))
            });
        }
        let misplaced = self.clients.values().filter(|client| client.is_live()).find(|client| {
            let found = union.get(&client.key).filter(|_| client.server.is_some_and(|server| self.is_newest(server)));
            let differs = |found: &Canonical| Some(found.backend) != client.server && self.is_newest(found.backend);
            // Nobody is bound by where a member that has no room for a flow delivers it.
            found.is_some_and(differs)
                && client.delivered >= self.plan.healed_at
                && client.delivered_by != 0
                && !client.is_let_go
        });
        if let Some(key) = misplaced.map(|client| client.key) {
            let found = union.get(&key);
            self.trace_records(&key);
            self.violate(Invariant::Convergence, || format!("{} is recorded elsewhere: {found:?}", flow_name(&key)));
        }
    }

    fn trace_records(&self, key: &Key) {
        for host in self.hosts.values() {
            let record = host.agent.as_ref().and_then(|agent| agent.core.record(&*key));
            let entry = host.datapath.as_ref().and_then(|datapath| datapath.flows.borrow().get(key));
            self.trace(|| format!("member {}: record {record:?}\n    entry {entry:?}", host.id));
        }
    }

    /// Flows that have just expired, and flows of servers that a newly started member no longer finds configured.
    fn may_be_missing(&self, key: &Key, entry: &Canonical) -> bool {
        // A tombstone may have been forgotten for want of room: then each member lets go in its own time.
        let lets_go = self.plan.timeout(key, entry.state) < self.plan.ends_at - self.plan.silent_at;
        let expired = self.oracle.deleted_at(key).is_some_and(|at| self.now - at < S);
        expired || lets_go || !self.is_newest(entry.backend) || self.is_disputed(key)
    }

    /// Whether anybody has the flow on a server that newly started members do not find configured: they park its record,
    /// and know of it what they know themselves, or nothing.
    pub(crate) fn is_disputed(&self, key: &Key) -> bool {
        self.hosts.values().filter(|host| host.enlisted).filter_map(|host| host.datapath.as_ref()).any(|datapath| {
            let server = datapath.flows.borrow().get(key).and_then(|entry| datapath.backend_address(entry.backend));
            server.is_some_and(|server| !self.is_newest(server))
        })
    }

    /// A member that does not find a removed server in its configuration keeps what it knows of the tuple itself.
    fn can_agree(&self, one: &Canonical, other: &Canonical) -> bool {
        let newest = &self.configs[self.configs.len() - 1];
        newest.serves(one.backend) && newest.serves(other.backend)
    }

    fn is_newest(&self, server: Address) -> bool {
        self.configs[self.configs.len() - 1].serves(server)
    }

    /// Every connection that lives gets answers.
    fn judge_progress(&mut self) {
        let now = self.now;
        let starved = self
            .clients
            .iter()
            .find_map(|(id, client)| client.waits_since().map(|since| (*id, client.key, now - since)));
        if let Some((id, key, waits)) = starved {
            self.violate(Invariant::Progress, || {
                format!("{} conn {id} has waited {} ms for an answer", flow_name(&key), waits / MS)
            });
        }
    }

    fn canonical(&self, member: u8) -> Table {
        let Some(datapath) = self.hosts.get(&member).and_then(|host| host.datapath.as_ref()) else {
            return Table::new();
        };
        let canonical = |entry: FlowEntry| Canonical {
            generation: entry.generation,
            backend: datapath.backend_address(entry.backend).unwrap_or_default(),
            creator: entry.creator,
            creator_incarnation: entry.creator_incarnation,
            revision: entry.revision,
            state: entry.state,
            term: entry.term,
            primary: entry.primary,
            backup: entry.backup,
        };
        datapath.flows.borrow().iter().map(|(key, entry)| (key, canonical(entry))).collect()
    }
}
