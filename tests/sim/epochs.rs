//! Servers change for all members together: what the simulator makes of epochs, and what must hold of them.

use std::collections::BTreeMap;

use lb_common::{
    address::Address,
    flow::{FlowEntry, FlowKey as _, UDP},
    hash::mix,
    rank::bit,
    ring::{RING_SLOTS, ring_slot},
    service::{SERVICE_AFFINITY, ServiceKey},
    target::Target,
};
use lb_userspace::core::{self, Key, Status, event::Event};

use crate::{
    agenda::flow_name,
    configuration::{WEB, service_key},
    datapath::Datapath,
    invariants::{Delivery, Invariant, SETTLED},
    member::Host,
    segment::Role,
    time::{MS, Ns, S},
    world::World,
};

/// For how long members that are well may place new flows differently while everybody is well: words are on their way.
const CHANGE: Ns = S;
/// And while somebody is not: whoever waits for that one's acknowledgement does so for 2 s.
const PATIENCE: Ns = 2 * S + 500 * MS;
/// Slots that are compared at each look.
const SAMPLES: u64 = 16;
/// Before the end of the grace time, as its owner sees it.
const MARGIN: Ns = 10 * MS;

/// What an agent has made of epochs.
#[derive(Default)]
pub(crate) struct Epochs {
    /// Number of the epoch in force, 0 for none.
    number: u32,
    /// Since when it may own new flows, as far as epochs and its draining go.
    owns_new_since: Option<Ns>,
    /// Where unknown flows went before the last change, and when that was.
    before: Option<(Ns, Before)>,
}

/// Where unknown flows went before a change.
struct Before {
    tables: core::Tables,
    backends: BTreeMap<u16, Target>,
}

impl Epochs {
    /// The core's own words.
    pub(crate) fn take(&mut self, now: Ns, status: &Status) {
        self.number = status.epoch.number;
        let owns_new = !status.epoch.is_behind && status.drain.is_none();
        self.owns_new_since = owns_new.then(|| self.owns_new_since.unwrap_or(now));
    }
}

impl Host {
    /// Whether nothing but readiness has kept its agent from owning new flows since `since`.
    pub(crate) fn owns_new_since(&self, since: Ns) -> bool {
        let owns = |agent: &crate::member::Agent| agent.epochs.owns_new_since.is_some_and(|at| at <= since);
        self.agent.as_ref().is_some_and(owns)
    }

    /// Whether it has been well since `since`, and its datapath takes itself for an owner of new flows.
    fn has_owned_since(&self, now: Ns, since: Ns) -> bool {
        let is_well = self.serves() && self.ready_since(since) && self.owns_new_since(since);
        let is_quiet = self.agent_changed.max(self.host_changed) <= since && self.overfull == 0;
        let liveness = self.datapath.as_ref().map(|datapath| datapath.liveness);
        let owns = liveness.is_some_and(|l| l.eligible & bit(self.id) != 0 && l.lease_until_ns >= self.local(now));
        is_well && is_quiet && owns && self.speaks >= 2
    }
}

impl Before {
    /// The server of an unknown flow.
    fn server(&self, key: &Key) -> Option<Address> {
        let service = self.tables.services.get(&key.service())?;
        let hash_key = &self.tables.node.hash_key;
        let is_affine = service.flags & SERVICE_AFFINITY != 0;
        let hash = if is_affine { key.without_ports().hash(hash_key) } else { key.hash(hash_key) };
        let slot = self.tables.rings.get(&service.ring)?.slots.get(ring_slot(hash))?;
        self.backends.get(slot).map(|target| target.address)
    }
}

impl World {
    /// An agent reports something; of epochs it is remembered.
    pub(crate) fn note_epoch(&mut self, member: u8, event: &Event) {
        match event {
            Event::Epoch { missing, .. } => {
                self.stats.count(if missing.is_empty() { "epoch began" } else { "epoch began without some" });
                let now = self.now;
                let Some(host) = self.hosts.get_mut(&member) else { return };
                let (Some(agent), Some(datapath)) = (&mut host.agent, &host.datapath) else { return };
                let before = Before { tables: datapath.installed.clone(), backends: datapath.targets() };
                agent.epochs.before = (agent.epochs.number != 0).then_some((now, before));
            }
            Event::Current { is_current: false } => self.stats.count("member behind an epoch"),
            _ => {}
        }
    }

    /// Members that own new flows, and are well, place them alike.
    pub(crate) fn inspect_epochs(&mut self) {
        let (now, since) = (self.now, self.now.saturating_sub(SETTLED));
        let owners = self.hosts.values().filter(|host| host.has_owned_since(now, since));
        let owners: Vec<(&Host, Vec<Option<Address>>)> = owners.map(|host| (host, self.answers(host))).collect();
        let mut differing = BTreeMap::new();
        for (at, (one, answers)) in owners.iter().enumerate() {
            for (other, other_answers) in &owners[at + 1..] {
                let knows = |a: &Host, b: &Host| a.acquainted.get(&b.id).is_some_and(|&at| at <= since);
                let are_acquainted = knows(one, other) && knows(other, one);
                if !are_acquainted || !self.network.worked_since(one.id, other.id, since) {
                    continue;
                }
                let pair = (one.id, other.id);
                if answers != other_answers {
                    differing.insert(pair, self.differing.get(&pair).copied().unwrap_or(now));
                }
            }
        }
        self.differing = differing;
        let bound = if self.is_well_since(now.saturating_sub(SETTLED + PATIENCE)) { CHANGE } else { PATIENCE };
        let longest = self.differing.iter().find(|&(_, &since)| now - since >= bound);
        if let Some((&(one, other), &at)) = longest {
            self.violate(Invariant::OneEpoch, || {
                format!("members {one} and {other} have placed new flows differently for {} ms", (now - at) / MS)
            });
        }
    }

    /// Whether all members, and all links between them, have been well.
    pub(crate) fn is_well_since(&self, since: Ns) -> bool {
        let members: Vec<&Host> = self.hosts.values().filter(|host| host.enlisted).collect();
        let reach = |one: &Host| members.iter().all(|other| self.network.worked_since(one.id, other.id, since));
        // Where probes are lost an agent that lives may be taken for dead, and is not waited for, or is for longer.
        let is_lossy = self.network.has_lost_since(since);
        !is_lossy && members.iter().all(|host| host.agent_changed.max(host.host_changed) <= since && reach(host))
    }

    fn answers(&self, host: &Host) -> Vec<Option<Address>> {
        let keys: [ServiceKey; 2] = [false, true].map(|is_v6| service_key(is_v6, WEB, self.plan.protocol));
        let of = |datapath: &Datapath| {
            let slots = (0..SAMPLES).map(|sample| ring_slot(mix(sample)) % RING_SLOTS);
            slots.flat_map(|slot| keys.map(|key| datapath.stateless(&key, slot))).collect()
        };
        host.datapath.as_ref().map(of).unwrap_or_default()
    }

    /// Where a packet of an unknown flow that goes on is to go though new flows go elsewhere: a change is not long ago.
    pub(crate) fn server_before(&self, delivery: &Delivery) -> Option<Address> {
        let Delivery { member, segment, before, .. } = delivery;
        let key = segment.flow;
        let goes_on = key.protocol() != UDP && matches!(segment.role, Role::Data | Role::Ack | Role::Fin);
        let host = self.hosts.get(member).filter(|_| goes_on && before.is_none() && !segment.is_known)?;
        let (at, rings) = host.agent.as_ref()?.epochs.before.as_ref()?;
        let datapath = host.datapath.as_ref()?;
        let server = rings.server(&key)?;
        let goes_now = Before { tables: datapath.installed.clone(), backends: datapath.targets() }.server(&key);
        let grace = self.plan.grace.as_nanos() as Ns;
        // What it remembers of the tuple says more than a ring: somebody has begun anew with it.
        // A server that is down is given nothing that is not known to be its own.
        let is_down = datapath.has_down(server);
        let is_elsewhere = goes_now != Some(server) && !datapath.remembers_syn(&key) && !is_down;
        (self.now + MARGIN < at + grace && is_elsewhere).then_some(server)
    }

    /// A packet of a flow that nobody had to know of went to another server than `server`, which knows it.
    pub(crate) fn judge_grace(&mut self, delivery: &Delivery, server: Address) {
        if self.server_before(delivery) == Some(server) {
            let (member, name) = (delivery.member, flow_name(&delivery.segment.flow));
            self.violate(Invariant::GraceTime, || {
                format!("{name} of server {} is placed anew by {member} soon after a change", server[15])
            });
        }
    }

    /// Members that are to give their flows away have none left, and know it.
    pub(crate) fn judge_drained(&mut self) {
        let newest = self.newest().clone();
        let mut wrong = None;
        for &drained in &newest.drained {
            // What it has no room for, or no configured server, it does not know, and others take over once it is gone.
            let Some(host) = self.hosts.get(&drained) else { continue };
            let refused = host.datapath.as_ref().map_or(0, |datapath| datapath.refused.get());
            let knows_all = host.overfull == 0 && refused == 0;
            let left = |host: &Host| {
                let datapath = host.datapath.as_ref()?;
                let flows = datapath.flows.borrow();
                let is_served = |slot| datapath.backend_address(slot).is_some_and(|server| newest.serves(server));
                let names = |entry: &FlowEntry| {
                    knows_all && [entry.primary, entry.backup].contains(&drained) && is_served(entry.backend)
                };
                flows
                    .iter()
                    .find(|(key, entry)| names(entry) && !self.is_disputed(key))
                    .map(|(key, entry)| (host.id, key, entry))
            };
            let named_at = self.hosts.values().filter(|host| host.enlisted).find_map(left);
            let says = host.agent.as_ref().and_then(|agent| agent.core.status().drain);
            if named_at.is_some() || says.and_then(|drain| drain.left) != Some(0) {
                wrong = Some((drained, named_at, says));
            }
            self.stats.count("member drained to the end");
        }
        if let Some((drained, named_at, says)) = wrong {
            self.violate(Invariant::Drained, || {
                let named_at = named_at.map(|(member, key, entry)| (member, flow_name(&key), entry));
                format!("member {drained} is drained and says {says:?}; a flow names it at {named_at:?}")
            });
        }
    }
}
