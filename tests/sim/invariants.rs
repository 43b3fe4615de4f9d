//! What must always hold, checked as it happens.

use std::fmt;

use lb_common::{
    address::Address,
    flow::{FlowEntry, FlowKey as _, UDP},
    rank::bit,
};
use lb_userspace::core::{Key, Status};

use crate::{
    agenda::flow_name,
    client::Client,
    datapath::Way,
    member::Host,
    oracle::is_recorded,
    segment::{Role, Segment},
    time::{MS, Ns, S},
    world::World,
};

/// How long a record, a link or a promise must have been there before others must act on it.
pub(crate) const SETTLED: Ns = 1500 * MS;
/// How long a member may take to notice that it, or a peer, is out.
const GRACE: Ns = S;

/// How long a member that stood still may take to read what its peers have told it meanwhile.
const WAKING: Ns = 100 * MS;
/// The same where links lose packets: TCP sends some again, a few times.
const WAKING_SLOWLY: Ns = S;

/// Flows that are idle for less are not ended by those who do not see them: the others tell of them in time.
const TELLABLE: Ns = 5 * S;

/// What must always hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// No packet is handed off twice.
    OneHandOff,
    /// A protected flow keeps its server while that is in service.
    ProtectedFlow,
    /// No entry gives way to a newcomer.
    NoEviction,
    /// No packet destroys the entry of its flow.
    SpoofHarmless,
    /// An error that quotes a flow changes nothing that is known of it.
    QuoteHarmless,
    /// With `handoff = "direct"` who knows a flow delivers its packets, whoever owns it and whether that lives.
    DirectDelivery,
    /// A flow with traffic does not expire.
    NoEarlyExpiry,
    /// New flows are for members that are ready, while one can be reached.
    ReadyOwnsNew,
    /// Nothing is handed to a member that has been unreachable for long.
    NoBlackHole,
    /// Members that own new flows place them alike, but for the moment of a change.
    OneEpoch,
    /// For some time after a change an unknown flow that goes on follows the servers of before.
    GraceTime,
    /// A flow's owners change only when one of them is gone.
    OwnersStay,
    /// Members that are well know the same of each server, but for the moment of a change.
    OneCondition,
    /// Where all have been well for long, what most checks say of a server is so, and what an operator ordered.
    MostChecksCount,
    /// Memory is bounded.
    Bounded,
    /// No member believes a record that its teller cannot have.
    NoForgery,
    /// Once all is mended: tables are equal.
    Convergence,
    /// Once all is mended: everybody knows that everybody is well.
    AllWell,
    /// Once all is mended: a member that gives its flows away has none, and says so.
    Drained,
    /// Once all is mended: every connection gets answers.
    Progress,
}

impl Invariant {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 20] = [
        Self::OneHandOff,
        Self::ProtectedFlow,
        Self::NoEviction,
        Self::SpoofHarmless,
        Self::QuoteHarmless,
        Self::DirectDelivery,
        Self::NoEarlyExpiry,
        Self::ReadyOwnsNew,
        Self::NoBlackHole,
        Self::OneEpoch,
        Self::GraceTime,
        Self::OwnersStay,
        Self::OneCondition,
        Self::MostChecksCount,
        Self::Bounded,
        Self::NoForgery,
        Self::Convergence,
        Self::AllWell,
        Self::Drained,
        Self::Progress,
    ];
}

/// An invariant did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which.
    pub(crate) invariant: Invariant,
    /// When.
    pub(crate) at: Ns,
    /// What happened.
    pub(crate) text: String,
}

/// A packet that a member delivers.
pub(crate) struct Delivery {
    /// The member.
    pub(crate) member: u8,
    /// The server.
    pub(crate) backend: Address,
    /// The flow's entry at the member before the packet.
    pub(crate) before: Option<FlowEntry>,
    /// And after it.
    pub(crate) after: Option<FlowEntry>,
    /// The packet.
    pub(crate) segment: Segment,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.6} s: {}", self.invariant, self.at as f64 / S as f64, self.text)
    }
}

impl World {
    /// A member delivers: to the right server, and by right?
    pub(crate) fn judge_delivery(&mut self, delivery: &Delivery) {
        let Delivery { backend, segment, .. } = delivery;
        let is_new = delivery.before.is_none() && !segment.is_known;
        if is_new && (segment.role == Role::Syn || segment.flow.protocol() == UDP) {
            self.judge_newcomer(delivery);
        }
        let now = self.now;
        if !self.clients.get(&segment.conn).is_some_and(Client::is_live) {
            return;
        }
        let Some(server) = segment.server.filter(|_| segment.role != Role::Syn) else { return };
        if server == *backend {
            // An error is no sign of life.
            if segment.role != Role::Quote {
                let is_by_before = self.server_before(delivery) == Some(server);
                self.stats.add("packet by the servers of before", u64::from(is_by_before));
                // Who delivers without an entry, because there is no room or no budget, keeps nothing of it.
                let witness = if delivery.after.is_some() { delivery.member } else { 0 };
                if let Some(client) = self.clients.get_mut(&segment.conn) {
                    (client.delivered, client.delivered_by) = (now, witness);
                }
            }
        } else {
            self.judge_misdelivery(delivery, server);
        }
    }

    /// A packet of a live connection goes to a server that does not know it.
    fn judge_misdelivery(&mut self, delivery: &Delivery, server: Address) {
        self.stats.count("packet to the wrong server");
        let Delivery { member, segment, before, after, backend, .. } = delivery;
        let key = segment.flow;
        let in_service = |version: usize| self.configs.get(version).is_some_and(|cluster| cluster.serves(server));
        let version = self.hosts.get(member).map_or(0, |host| host.version);
        if !in_service(self.configs.len() - 1) || !in_service(version) {
            self.stats.count("wrong server: the right one is out of service");
            return;
        }
        let client = self.clients.get(&segment.conn);
        if client.is_some_and(|client| client.is_let_go) {
            self.stats.count("wrong server: the right one was down, and a SYN came");
            return;
        }
        // The network has hidden its packets from those who ask whether it still lives.
        if client.is_some_and(|client| 4 * (self.now - client.delivered) >= 3 * self.plan.established()) {
            self.stats.count("wrong server: the flow was idle for its timeout");
            return;
        }
        let is_full = |host: &Host| {
            host.overfull > 0 || host.datapath.as_ref().is_some_and(|datapath| datapath.refused.get() > 0)
        };
        if self.hosts.get(member).is_some_and(is_full) {
            self.stats.count("wrong server: the member had no room for the flow");
            return;
        }
        // What its peers told it meanwhile comes right after what waited in its NIC.
        let waking = |host: &Host| if self.network.has_lost_since(host.frozen.1) { WAKING_SLOWLY } else { WAKING };
        if self.hosts.get(member).is_some_and(|host| self.now < host.frozen.1.saturating_add(waking(host))) {
            self.stats.count("wrong server: the member has just woken");
            return;
        }
        let knows = before.is_some_and(|entry| {
            let datapath = self.hosts.get(member).and_then(|host| host.datapath.as_ref());
            is_recorded(&entry) && datapath.and_then(|datapath| datapath.backend_address(entry.backend)) == Some(server)
        });
        let witness = if knows { Some(*member) } else { self.witness(&key, server, *member, segment.receiver) };
        let Some(witness) = witness else {
            self.judge_grace(delivery, server);
            self.stats.count("wrong server: the flow was unprotected");
            return;
        };
        if before.is_some_and(|entry| !knows && self.is_of_a_stranger(&key, entry.creator_id(), *backend, witness)) {
            self.stats.count("wrong server: a member that nobody could tell of the flow had placed it");
            return;
        }
        self.violate(Invariant::ProtectedFlow, || {
            format!(
                "{} conn {} of server {} is delivered by {member} (received by {}) to {}; member {witness} knew; \
                 entry before {before:?}, after {after:?}",
                flow_name(&key),
                segment.conn,
                server[15],
                segment.receiver,
                backend[15]
            )
        });
    }

    /// A healthy member that has long had the flow's record, and that both `member` and `receiver` can reach and are long known to.
    fn witness(&self, key: &Key, server: Address, member: u8, receiver: u8) -> Option<u8> {
        let since = self.now.saturating_sub(SETTLED);
        let reaches =
            |id: u8| self.network.worked_since(id, member, since) && self.network.worked_since(id, receiver, since);
        let knows = |host: &Host, id: u8| host.acquainted.get(&id).is_some_and(|&at| at <= since);
        self.hosts
            .values()
            // If it has ended a flow of which packets were still to come, `judge_expiry` says so.
            .filter(|host| host.id != member)
            .filter(|host| [member, receiver].iter().all(|&id| id == host.id || knows(host, id)))
            .filter(|host| host.serves() && host.ready_since(since) && host.agent_changed <= since && reaches(host.id))
            // An agent whose host takes no packets tells nobody.
            .filter(|host| host.frozen.1 <= since)
            .find(|host| {
                let known = self.oracle.known_since(host.id, key, server).filter(|&known| known <= since);
                known.is_some_and(|known| !self.is_under_way(host, key, member, known))
            })
            .map(|host| host.id)
    }

    /// Whether `creator` placed a flow on `backend` before it and the witness had heard of each other: one word counts.
    fn is_of_a_stranger(&self, key: &Key, creator: u8, backend: Address, witness: u8) -> bool {
        let Some(placed) = self.oracle.known_since(creator, key, backend) else { return false };
        let knows = |one: u8, other: u8| self.hosts.get(&one)?.acquainted.get(&other).copied();
        let (Some(one), Some(other)) = (knows(creator, witness), knows(witness, creator)) else { return true };
        let is_new = placed <= one.max(other) + SETTLED;
        let is_cut = !self.network.worked_since(creator, witness, placed.saturating_sub(SETTLED));
        creator != witness && (is_new || is_cut)
    }

    /// Whether `member` could not hear of the flow from those whose business it is to tell, since `known`.
    ///
    /// What a cut link kept from it, or what was said by a member that died right after it, it gets with the snapshot that
    /// follows the end of a session, at most 10 s later. Open: a second failure within these seconds breaks such a flow
    /// (seeds 400 and 1022 without this exception).
    fn is_under_way(&self, witness: &Host, key: &Key, member: u8, known: Ns) -> bool {
        let entry = witness.datapath.as_ref().and_then(|datapath| datapath.flows.borrow().get(key));
        let since = known.saturating_sub(SETTLED);
        let tells = |id: u8| {
            let host = self.hosts.get(&id);
            let died_at = host.map_or(0, |host| host.agent_changed.max(host.host_changed));
            id == member
                || self.network.worked_since(id, member, since) && !(since..=known + SETTLED).contains(&died_at)
        };
        entry.is_some_and(|entry| ![entry.creator_id(), entry.primary, entry.backup].iter().all(|&id| tells(id)))
    }

    /// A member delivers the first packet of a flow: is it fit to own it?
    fn judge_newcomer(&mut self, delivery: &Delivery) {
        let since = self.now.saturating_sub(SETTLED);
        let Some(owner) = self.hosts.get(&delivery.member) else { return };
        let draining_since = owner.agent.as_ref().and_then(|agent| agent.draining_since);
        let out_since = owner.vouched_until.max(draining_since.unwrap_or_default());
        let is_unready = owner.agent.as_ref().is_none_or(|agent| agent.ready_since.is_none());
        let is_out = is_unready || draining_since.is_some();
        // Who stood still took all others for dead, and takes them for alive after a second of echoes.
        let has_risen = owner.host_changed <= since;
        if !is_out || !has_risen || self.now.saturating_sub(out_since) < GRACE {
            return;
        }
        let receiver = delivery.segment.receiver;
        let is_sound = |id: u8| {
            let host = self.hosts.get(&id);
            host.is_some_and(|host| host.enlisted && host.ready_since(since) && host.agent_changed <= since)
        };
        // Whoever handed it over decided by its own masks; one that was handed back is so by a peer's.
        let handed_by = delivery.segment.handed_by;
        let handers: Vec<&Host> = self.hosts.values().filter(|host| handed_by & bit(host.id) != 0).collect();
        if !handers.iter().all(|host| is_sound(host.id) && self.network.worked_since(host.id, owner.id, since)) {
            return;
        }
        // Where links lose packets anybody may be taken for dead, and who decided may have known of nobody else.
        let is_lossy = self.network.has_lost_since(since);
        let sees = |host: &Host, id: u8| host.datapath.as_ref().is_some_and(|datapath| datapath.sees(id));
        let is_seen = |id: u8| !is_lossy || sees(owner, id) && handers.iter().all(|hander| sees(hander, id));
        // A dead agent's masks know nobody who became ready later, nor do those that a new agent has not yet replaced.
        let masks = owner
            .datapath
            .as_ref()
            .map_or((0, 0), |datapath| (datapath.liveness.eligible, datapath.liveness.forwarding));
        let may_know = if owner.agent.is_some() && owner.agent_changed <= since { u64::MAX } else { masks.0 };
        let fit = self.hosts.values().find(|host| {
            host.id != owner.id
                && host.serves()
                && host.host_changed <= since
                && host.agent_changed <= since
                && host.ready_since(since)
                && host.owns_new_since(since)
                && (is_unready || masks.1 & bit(host.id) != 0)
                && is_seen(host.id)
                && may_know & bit(host.id) != 0
                && self.knows_member(owner.id, host.id)
                // Whoever does not have the owner configured neither probes it nor answers its probes.
                && host.acquainted.get(&owner.id).is_some_and(|&at| at <= since)
                && [owner.id, receiver].iter().all(|&id| self.network.worked_since(host.id, id, since))
                && handers.iter().all(|hander| self.network.worked_since(host.id, hander.id, since))
        });
        if let Some(fit) = fit.map(|host| host.id) {
            let member = owner.id;
            self.violate(Invariant::ReadyOwnsNew, || {
                format!(
                    "member {member}, not ready for long or draining, delivers a new flow (received by {receiver}); {fit} is \
                     ready; eligible and forwarding in its map are {masks:?}"
                )
            });
        }
    }

    /// A member knows the flow of a packet, and its backend is in service: with `handoff = "direct"` it delivers.
    pub(crate) fn judge_direct(&mut self, member: u8, entry: &FlowEntry, way: Way) {
        let is_dead = |id: u8| self.hosts.get(&id).is_none_or(|host| !(host.up && host.attached));
        if !matches!(way, Way::Backend(_)) {
            self.violate(Invariant::DirectDelivery, || format!("member {member} knows {entry:?}: {way:?}"));
        } else if entry.primary != member && is_dead(entry.primary) {
            self.stats.count("direct delivery of a dead owner's flow");
        } else if entry.primary != member {
            self.stats.count("direct delivery");
        }
    }

    /// A member hands a packet to a peer: can the peer have it?
    pub(crate) fn judge_hand_off(&mut self, from: u8, to: u8) {
        let long_ago = self.now.saturating_sub(GRACE);
        let Some(host) = self.hosts.get(&from) else { return };
        // It has just started, or has woken from a pause and has yet to miss the probes that it did not send.
        let is_new = host.host_changed.max(host.agent_changed) > long_ago;
        let target = self.hosts.get(&to);
        // Probes of an agent that runs, or did until just now, hide from a member without one that the peer's program is detached.
        let probes = |host: &Host| host.agent.is_some() || host.agent_changed > long_ago;
        let is_hidden = host.agent.is_none() && target.is_some_and(probes);
        let is_gone = target.is_none_or(|host| {
            !(host.up && host.attached) && host.host_changed < long_ago
                || host.is_frozen(self.now) && host.frozen.0 < long_ago
        });
        let is_gone = is_gone && !is_hidden;
        if is_gone && !is_new {
            self.violate(Invariant::NoBlackHole, || format!("member {from} hands a packet to {to}, long gone"));
        }
    }

    /// A member's agent has stopped counting these members as forwarding.
    pub(crate) fn judge_suspicion(&mut self, member: u8, lost: u64) {
        let well = self.hosts.values().filter(|host| {
            lost & bit(host.id) != 0 && host.up && host.attached && host.frozen.1.saturating_add(S) < self.now
        });
        let false_alarms = well.filter(|host| self.network.worked_since(member, host.id, self.now)).count() as u64;
        self.stats.add("false alarm", false_alarms);
    }

    /// A member's agent has deleted an entry: was the flow idle?
    pub(crate) fn judge_expiry(&mut self, member: u8, key: &Key, entry: &FlowEntry) {
        self.stats.count("entry deleted");
        self.trace(|| format!("member {member}: ends {}", flow_name(key)));
        self.oracle.note_deletion(self.now, member, *key);
        let since = self.now.saturating_sub(SETTLED);
        if !is_recorded(entry) {
            return;
        }
        let timeout = self.plan.timeout(key, entry.state);
        let Some(client) = self.clients.values().find(|client| client.key == *key && client.is_live()) else { return };
        let idle = self.now - client.delivered;
        // Who sees the packets knows better than any peer. Another may not have been told, and may have told others that it is over.
        let told_since = self.now.saturating_sub(timeout.min(TELLABLE) + SETTLED);
        let teller = self.hosts.get(&client.delivered_by);
        let tells = teller.is_some_and(|teller| {
            let is_sound = |host: &Host| host.agent_changed.max(host.host_changed) <= told_since;
            let reaches = |host: &Host| self.network.worked_since(teller.id, host.id, told_since) && is_sound(host);
            is_sound(teller) && self.hosts.values().filter(|host| host.enlisted).all(reaches)
        });
        let is_hidden = self
            .hosts
            .get(&member)
            .and_then(|host| host.datapath.as_ref())
            .is_some_and(|datapath| datapath.flows.borrow().hides_last_packet(key));
        let is_told = member == client.delivered_by && !is_hidden || tells && timeout >= TELLABLE;
        if is_told && idle < timeout / 4 && client.opened < since {
            self.violate(Invariant::NoEarlyExpiry, || {
                format!("member {member} deletes {} after {} ms: {entry:?}", flow_name(key), idle / MS)
            });
        }
    }

    /// The core's own bounds.
    pub(crate) fn check_core(&mut self, member: u8, status: &Status, queued: usize) {
        let limits = self.plan.limits;
        self.stats.max("flows queued to a peer", queued as u64);
        self.stats.max("tombstones", status.tombstones as u64);
        self.stats.max("parked records", status.parked as u64);
        for (name, size, bound) in [
            ("queued flows", queued, limits.queue),
            ("records", status.records, 2 * limits.flows),
            ("tombstones", status.tombstones, limits.tombstones + limits.flows),
            ("parked records", status.parked, limits.parked),
        ] {
            if size > bound {
                self.violate(Invariant::Bounded, || format!("member {member}: {size} {name}, bound {bound}"));
            }
        }
    }
}
