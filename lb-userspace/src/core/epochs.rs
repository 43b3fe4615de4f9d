//! Epochs: all members change the servers of new flows together, whenever each is told of the change.
//!
//! `docs/design/0010-epochs.md` says why. Every member tells its [`Standing`] to all; what it does next follows from what
//! the others last said:
//!
//! ```text
//!            set in hand is another, and the others hold it          all have acknowledged, or 2 s
//!   in force --------------------------------------------> next ------------------------------------> in force
//!      |     or: a peer says `next`, or is ahead, with the set in hand   (told behind all flows)
//!      +---- a peer is ahead, with a set that is not in hand: behind, owns no new flows
//! ```

use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    hash::siphash13,
    liveness::{LEFT_UNKNOWN, LIVENESS_BEHIND, LIVENESS_DIFFERS, LIVENESS_DRAINING, LIVENESS_PENDING, Liveness},
    rank::bit,
};

use super::{
    Core, Session,
    event::Event,
    link::{Link, Stage, nanos},
    table::Row,
    view::Service,
    wire::{EPOCH_MAX, Epoch, Frame, Standing},
};

/// The version of the protocol that epochs came with.
const SINCE: u8 = 2;
/// How long the acknowledgement of a member whose agent lives is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a member that does not hear of epochs may own new flows: it stops before the others go on without it.
const LEASE: Duration = Duration::from_millis(1500);
/// How long the rest is waited for when more than half of the members hold a set: reloads one after the other.
const ROLLOUT: Duration = Duration::from_secs(60);
/// How long after a change young flows are told of at once.
const AFTERMATH: Duration = Duration::from_secs(2);

/// Which servers new flows go to, and which they shall go to.
#[derive(Default)]
pub(crate) struct Epochs {
    in_force: Epoch,
    /// The set in force.
    services: Vec<Service>,
    /// Hash of the set in the configuration.
    in_hand: u64,
    /// Acknowledged, with its set; number 0 for nothing.
    next: Epoch,
    next_services: Vec<Service>,
    /// What was acknowledged before `next`, and is not in force yet: others may be ahead, with nobody left to wait for.
    former: Option<(Epoch, Vec<Service>)>,
    /// Peers that have not acknowledged it, and since when they are waited for, be it with another epoch before.
    waited_for: BTreeMap<u8, u64>,
    /// The highest number heard of.
    highest: u32,
    /// Since when more than half of the members in view hold the set in hand.
    held_since: Option<u64>,
    /// Until when unknown flows that go on follow the rings of before.
    grace_until: u64,
    /// Until when young flows are told of at once.
    hasty_until: u64,
    /// Peers that speak of epochs, and when each last had a session.
    heard_at: BTreeMap<u8, u64>,
    /// What was last told.
    told: Standing,
    /// Whether this member may own new flows, as far as epochs go.
    is_current: bool,
    /// Peers that may not, as far as is known here.
    behind: u64,
    /// Members that do not hold the set in hand; 0 when no change is pending.
    awaited: u64,
    is_pending: bool,
}

/// What people are told of epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochStatus {
    /// Number of the epoch in force; 0 for none yet.
    pub number: u32,
    /// Hash of its set.
    pub hash: u64,
    /// Whether the configuration holds another set than that in force.
    pub is_pending: bool,
    /// The members that a change waits for, as a mask.
    pub awaited: u64,
    /// Whether another set is in force in the cluster, which this member does not have.
    pub is_behind: bool,
    /// Until when unknown flows that go on follow the rings of before.
    pub grace_until: u64,
}

impl Epochs {
    /// The set in force.
    pub(crate) fn services(&self) -> &[Service] {
        &self.services
    }

    /// The set that was acknowledged, if any.
    pub(crate) fn next_services(&self) -> &[Service] {
        &self.next_services
    }

    pub(crate) const fn grace_until(&self) -> u64 {
        self.grace_until
    }

    pub(crate) const fn is_current(&self) -> bool {
        self.is_current
    }

    pub(crate) const fn behind(&self) -> u64 {
        self.behind
    }

    pub(crate) const fn status(&self) -> EpochStatus {
        EpochStatus {
            number: self.in_force.number,
            hash: self.in_force.hash,
            is_pending: self.is_pending,
            awaited: self.awaited,
            is_behind: !self.is_current,
            grace_until: self.grace_until,
        }
    }

    /// Whether young flows are worth telling at once: where they go may soon be decided otherwise.
    pub(crate) const fn is_hasty(&self, now: u64) -> bool {
        self.is_pending || now < self.hasty_until
    }

    const fn standing(&self) -> Standing {
        Standing { in_force: self.in_force, in_hand: self.in_hand, next: self.next }
    }
}

/// A peer in view, and what it said in its session.
struct Voter {
    id: u8,
    said: Option<Standing>,
}

impl Core {
    /// The configuration holds a set, which may be another than before.
    pub(crate) fn hold(&mut self) {
        self.apply_conditions();
        let epochs = &mut self.epochs;
        let in_hand = fingerprint(&self.services);
        if in_hand != epochs.in_hand {
            (epochs.in_hand, epochs.held_since) = (in_hand, None);
        }
        // Also what of a service has no part in where flows go; and before any epoch nobody relies on a set.
        if epochs.in_force.number == 0 || in_hand == epochs.in_force.hash {
            epochs.in_force.hash = in_hand;
            epochs.services.clone_from(&self.services);
        }
    }

    /// A peer says how it stands.
    pub(crate) fn heard_standing(&mut self, now: u64, session: Session, standing: Standing) {
        let Some(link) = self.links.get_mut(&session) else { return };
        link.standing = Some(standing);
        let highest = standing.in_force.number.max(standing.next.number);
        self.epochs.highest = self.epochs.highest.max(highest);
        self.review_epochs(now);
    }

    /// Does what follows from what is known.
    pub(crate) fn review_epochs(&mut self, now: u64) {
        if self.stopping.is_some() {
            return;
        }
        let voters = self.voters();
        let ids: Vec<u8> = voters.iter().map(|voter| voter.id).collect();
        self.decide(now, &ids, ids.iter().all(|&id| id > self.view.me));
        self.learn_number(&voters);
        self.propose(now, &voters);
        self.follow(now, &voters);
        self.switch(now, &voters);
        self.judge_standings(now, &voters);
        if self.epochs.grace_until != 0 && now >= self.epochs.grace_until {
            self.epochs.grace_until = 0;
            self.slots.end_grace();
            self.install();
        }
        let standing = self.epochs.standing();
        if standing != self.epochs.told {
            self.epochs.told = standing;
            self.links.values_mut().filter(|link| link.speaks_of_epochs()).for_each(|link| link.owes_standing = true);
        }
    }

    /// The frame that tells a peer how this member stands.
    pub(crate) fn standing(&mut self, session: Session) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&session)?;
        link.owes_standing = false;
        Some(Frame::Epoch(self.epochs.standing()).encode(link.version))
    }

    /// The peers that speak of epochs, whose agents live and are ready; also those that have no session for the moment.
    fn voters(&mut self) -> Vec<Voter> {
        for link in self.links.values().filter(|link| link.speaks_of_epochs() && link.standing.is_some()) {
            self.epochs.heard_at.insert(link.peer, link.heard_at);
        }
        for link in self.links.values().filter(|link| link.stage == Stage::Open && link.version < SINCE) {
            self.epochs.heard_at.remove(&link.peer);
        }
        let peers = &self.peers;
        self.epochs.heard_at.retain(|id, _| peers.contains_key(id));
        let said = |id| {
            let session = self.peers.get(&id).and_then(|peer| peer.open)?;
            self.links.get(&session).filter(|link| link.speaks_of_epochs())?.standing
        };
        let in_view = self.epochs.heard_at.keys().copied().filter(|&id| self.watch.is_ready(id));
        in_view.map(|id| Voter { id, said: said(id) }).collect()
    }

    /// The set in force has a higher number elsewhere; or none anywhere, and it is this member's place to give it one.
    fn learn_number(&mut self, voters: &[Voter]) {
        if !self.ready {
            return;
        }
        let top = top(voters);
        let epochs = &mut self.epochs;
        if top.hash == epochs.in_force.hash {
            epochs.in_force.number = epochs.in_force.number.max(top.number);
        } else if epochs.in_force.number == 0 && top.number == 0 && voters.iter().all(|voter| voter.id > self.view.me) {
            epochs.highest = next_number(epochs.highest);
            epochs.in_force.number = epochs.highest;
        }
    }

    fn propose(&mut self, now: u64, voters: &[Voter]) {
        let in_hand = self.epochs.in_hand;
        let top = top(voters).max(self.epochs.in_force);
        self.epochs.is_pending = in_hand != self.epochs.in_force.hash
            || self.epochs.next.number != 0
            || voters.iter().any(|voter| voter.said.is_some_and(|said| said.in_hand != self.epochs.in_force.hash));
        self.epochs.awaited = 0;
        let is_settled = top.number == 0 || in_hand == top.hash || self.epochs.next > top;
        if !self.ready || is_settled {
            self.epochs.held_since = None;
            return;
        }
        let lacks = |voter: &&Voter| voter.said.is_none_or(|said| said.in_hand != in_hand);
        let lacking = voters.iter().filter(lacks);
        self.epochs.awaited = lacking.fold(0, |mask, voter| mask | bit(voter.id));
        let lacking = self.epochs.awaited.count_ones() as usize;
        let is_majority = (voters.len() + 1 - lacking) * 2 > voters.len() + 1;
        let since = is_majority.then(|| *self.epochs.held_since.get_or_insert(now));
        self.epochs.held_since = since;
        let has_waited = since.is_some_and(|since| now.saturating_sub(since) >= nanos(ROLLOUT));
        let is_its_place = voters.iter().all(|voter| voter.id > self.view.me);
        if is_its_place && (lacking == 0 || has_waited) {
            self.epochs.highest = next_number(self.epochs.highest.max(top.number));
            self.look_forward(now, Epoch { number: self.epochs.highest, hash: in_hand });
        }
    }

    /// A peer says `next`, or is ahead: if this member has the set, it follows.
    fn follow(&mut self, now: u64, voters: &[Voter]) {
        let said = voters.iter().filter_map(|voter| voter.said).flat_map(|said| [said.in_force, said.next]);
        let wanted = said.filter(|epoch| epoch.number != 0 && epoch.hash == self.epochs.in_hand).max();
        if let Some(wanted) = wanted.filter(|wanted| *wanted > self.epochs.in_force.max(self.epochs.next)) {
            self.look_forward(now, wanted);
        }
    }

    /// Tells of all flows, and behind them that it is ready for an epoch with the set in hand.
    fn look_forward(&mut self, now: u64, epoch: Epoch) {
        let former = (self.epochs.next, std::mem::take(&mut self.epochs.next_services));
        if former.0.number != 0 {
            self.epochs.former = Some(former);
        }
        (self.epochs.next, self.epochs.is_pending) = (epoch, true);
        self.epochs.next_services.clone_from(&self.services);
        while let Some(number) = self.young.pop_due(u64::MAX) {
            self.reveal(number);
            self.tell_all(now, number);
        }
    }

    /// A young flow is told of before its time.
    pub(crate) fn reveal(&mut self, number: u32) {
        if self.table.row(number).is_some_and(Row::is_private) {
            self.table.change(number, |row| row.plausible = true);
        }
    }

    /// Changes the servers, when everybody has told of all flows.
    fn switch(&mut self, now: u64, voters: &[Voter]) {
        let next = self.epochs.next;
        let has_acknowledged = |said: &Standing, epoch| said.in_force >= epoch || said.next >= epoch;
        let waits = |voter: &Voter, epoch| voter.said.is_none_or(|said| !has_acknowledged(&said, epoch));
        let waited_for = std::mem::take(&mut self.epochs.waited_for);
        let since = |id: u8| waited_for.get(&id).copied().unwrap_or(now);
        let silent = voters.iter().filter(|voter| next.number != 0 && waits(voter, next));
        // Another epoch meanwhile must not make the wait for whoever is silent longer.
        self.epochs.waited_for = silent.map(|voter| (voter.id, since(voter.id))).collect();
        let is_waited_for =
            |id: &u8| self.epochs.waited_for.get(id).is_some_and(|&since| now.saturating_sub(since) < nanos(PATIENCE));
        let is_waiting = |epoch| voters.iter().any(|voter| waits(voter, epoch) && is_waited_for(&voter.id));
        let is_next = !is_waiting(next);
        let in_force = self.epochs.in_force;
        let is_former = self.epochs.former.as_ref().is_some_and(|(epoch, _)| *epoch > in_force && !is_waiting(*epoch));
        // Who has yet to write its first masks could not tell the datapath of a grace time with them.
        let is_mute = self.masks.is_none() && in_force.number != 0;
        if next.number == 0 || is_mute || !is_next && !is_former {
            return;
        }
        let former = self.epochs.former.take().filter(|_| !is_next);
        let (epoch, services) = former.unwrap_or_else(|| {
            self.epochs.waited_for.clear();
            (std::mem::take(&mut self.epochs.next), std::mem::take(&mut self.epochs.next_services))
        });
        let missing = voters.iter().filter(|voter| waits(voter, epoch));
        let missing: Vec<String> = missing.map(|voter| self.label(voter.id)).collect();
        let grace = nanos(self.view.grace);
        if in_force.number != 0 && grace > 0 {
            self.epochs.grace_until = now + grace;
            self.slots.begin_grace(now + grace);
            // Told before the rings change: those of before count from when they are there.
            self.announce(now, true);
        }
        (self.epochs.in_force, self.epochs.services) = (epoch, services);
        self.epochs.hasty_until = now + nanos(AFTERMATH);
        self.epochs.is_pending = self.epochs.in_hand != epoch.hash;
        self.report(Event::Epoch { number: epoch.number, missing: missing.join(", ") });
        self.apply_services(now);
        // Whoever reads the epoch's number finds its rings.
        self.announce(now, true);
    }

    /// Who may own new flows, as far as epochs go.
    fn judge_standings(&mut self, now: u64, voters: &[Voter]) {
        let (in_force, next) = (self.epochs.in_force, self.epochs.next);
        let ahead = |voter: &Voter| {
            let said = voter.said.unwrap_or_default();
            let is_lost = said.next > in_force && said.next.hash != self.epochs.in_hand && next.number == 0;
            said.in_force > in_force.max(next) || is_lost
        };
        let has_lease = |voter: &Voter| {
            let heard_at = self.epochs.heard_at.get(&voter.id).copied().unwrap_or_default();
            now.saturating_sub(heard_at) < nanos(LEASE)
        };
        let proposer = voters.iter().min_by_key(|voter| voter.id).filter(|voter| voter.id < self.view.me);
        let is_current = in_force.number != 0 && !voters.iter().any(ahead) && proposer.is_none_or(has_lease);
        let is_behind = |said: &Standing| said.in_force < in_force && said.next < in_force;
        let behind = voters.iter().filter(|voter| voter.said.as_ref().is_some_and(is_behind));
        let behind = behind.fold(0, |mask, voter| mask | bit(voter.id));
        if (is_current, behind) != (self.epochs.is_current, self.epochs.behind) {
            if self.ready && is_current != self.epochs.is_current {
                self.report(Event::Current { is_current });
            }
            (self.epochs.is_current, self.epochs.behind) = (is_current, behind);
            self.announce(now, false);
        }
    }

    /// Slots and rings follow the set in force; what is only in hand has its slots already.
    pub(crate) fn apply_services(&mut self, now: u64) {
        let upcoming = [self.epochs.next_services(), self.services.as_slice()];
        let backends = self.slots.configure(now, self.epochs.services(), upcoming);
        if backends > 0 {
            self.report(Event::SlotsExhausted { backends });
        }
        self.install();
    }

    /// Whether this member may own new flows.
    pub(crate) fn owns_misses(&self) -> bool {
        self.is_eligible() && self.epochs.is_current() && !self.is_draining()
    }

    /// What people read of the agent's mind in the datapath's maps.
    pub(crate) fn describe(&self, liveness: &mut Liveness) {
        let epoch = self.epochs.status();
        (liveness.epoch, liveness.awaited) = (epoch.number, epoch.awaited);
        let left = self.drain_status().map(|drain| drain.left.and_then(|left| u32::try_from(left).ok()));
        liveness.left = left.map_or(0, |left| left.unwrap_or(LEFT_UNKNOWN));
        liveness.flags = [
            (epoch.is_pending, LIVENESS_PENDING),
            (self.ready && epoch.is_behind, LIVENESS_BEHIND),
            (left.is_some(), LIVENESS_DRAINING),
            (self.has_other_configurations(), LIVENESS_DIFFERS),
        ]
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .fold(0, |flags, (_, flag)| flags | flag);
    }

    /// Members that may own new flows.
    pub(crate) fn eligible(&self) -> u64 {
        self.watch.eligible(self.owns_misses()) & !self.epochs.behind()
    }
}

impl Link {
    /// Whether the peer understands `Standing`.
    pub(crate) fn speaks_of_epochs(&self) -> bool {
        self.stage == Stage::Open && self.version >= SINCE
    }
}

/// The highest epoch that is in force anywhere.
fn top(voters: &[Voter]) -> Epoch {
    voters
        .iter()
        .filter_map(|voter| voter.said)
        .map(|said| said.in_force)
        .filter(|e| e.number != 0)
        .max()
        .unwrap_or_default()
}

fn next_number(number: u32) -> u32 {
    number.saturating_add(1).min(EPOCH_MAX)
}

/// A hash of everything that decides where an unknown flow goes, whatever the order in the configuration.
pub(crate) fn fingerprint(services: &[Service]) -> u64 {
    let mut sets = BTreeMap::new();
    for service in services {
        let mut backends: Vec<_> = service
            .backends
            .iter()
            .map(|backend| (backend.address, backend.weight, backend.drain, backend.down))
            .collect();
        backends.sort_unstable();
        sets.extend(service.vips.iter().map(|vip| (*vip, (service.affinity, backends.clone()))));
    }
    // No secret: nobody gains by sets that collide who can write a configuration.
    let mut hash = 0;
    let mut add = |words: [u64; 3]| hash = siphash13(&[hash, 0], &words);
    let halves = |address: [u8; 16]| {
        let value = u128::from_be_bytes(address);
        [(value >> 64) as u64, value as u64]
    };
    for (vip, (affinity, backends)) in sets {
        let [high, low] = halves(vip.address);
        let port = u64::from(u16::from_be_bytes(vip.port));
        add([high, low, port << 32 | u64::from(vip.protocol) << 8 | u64::from(affinity)]);
        for (address, weight, drain, down) in backends {
            let [high, low] = halves(address);
            add([high, low, 1 << 63 | u64::from(weight) << 8 | u64::from(down) << 1 | u64::from(drain)]);
        }
    }
    hash
}
