//! What is done as time passes: looks at the peers, probes, masks, and the chores of a round.

use std::time::Duration;

use lb_common::{
    liveness::{PROBE_EMPTY, PROBE_GOODBYE, PROBE_READY},
    node::BUDGET_CLASSES,
};

use super::{
    Core, Output, admission,
    event::Event,
    link::nanos,
    liveness::{Change, State},
};

/// A record is with all members 50 ms after it was made; a peer that has lost a session for want of room takes a snapshot.
const DOUBT: Duration = Duration::from_secs(3);

impl Core {
    pub(crate) fn tick(&mut self, now: u64) {
        let mut changes = Vec::new();
        let looked = self.watch.look(now, &mut changes);
        self.peers_changed(now, &changes);
        if looked {
            self.consider_readiness(now);
        }
        self.review_epochs(now);
        self.round(now);
        self.announce(now, false);
        self.promote(now);
        self.flush(now);
        self.go_on_stopping(now);
    }

    /// What is done once per probe interval.
    fn round(&mut self, now: u64) {
        let Some((counter, peers)) = self.watch.next_probes(now) else { return };
        self.probe(now, counter, &peers);
        self.tend_sessions(now);
        self.scan(now);
        self.hand_over(now);
        self.forget_tombstones(now);
        self.review_parked(now);
        if self.has_swept && self.slots.free(now) {
            self.install();
        }
        self.announce(now, true);
    }

    pub(crate) fn probe(&mut self, now: u64, counter: u64, peers: &[u8]) {
        let mut flags = if self.is_eligible() { PROBE_READY } else { 0 };
        if self.is_empty && !self.ready {
            flags |= PROBE_EMPTY;
        }
        if self.stopping.is_some() {
            flags |= PROBE_GOODBYE;
        }
        let eligible = self.eligible();
        for &to in peers {
            let probe = self.watch.probe(now, to, counter, self.incarnation, (flags, eligible));
            self.outputs.push_back(Output::SendProbe { to, probe });
        }
    }

    fn peers_changed(&mut self, now: u64, changes: &[(u8, Change)]) {
        for &(id, change) in changes {
            let peer = self.label(id);
            match change {
                Change::Datapath { from, to } => {
                    if (from == State::Up) != (to == State::Up)
                        && let Some(peer) = self.peers.get_mut(&id)
                    {
                        peer.moved_at = now;
                    }
                    match to {
                        State::Up => self.report(Event::PeerUp { peer }),
                        State::Down if from == State::Up => {
                            self.report(Event::PeerDown { peer, misses: self.view.probing.misses });
                        }
                        State::Left => self.report(Event::PeerLeft { peer }),
                        State::Waiting | State::Rising => {
                            self.dial_soon(now, id);
                            self.distrust_quiet_sessions(now, id);
                        }
                        State::Unknown | State::Down => {}
                    }
                }
                Change::Agent { alive } => {
                    if alive {
                        self.dial_soon(now, id);
                    }
                    if self.watch.state(id) == Some(State::Up) {
                        self.report(Event::PeerAgent { peer, alive });
                    }
                }
                Change::Ready => {}
            }
        }
    }

    pub(crate) fn peer_says_goodbye(&mut self, now: u64, id: u8) {
        let mut changes = Vec::new();
        self.watch.goodbye(id, now, &mut changes);
        self.peers_changed(now, &changes);
        self.announce(now, false);
    }

    /// Writes the masks if they are not as written, or to renew the lease.
    pub(crate) fn announce(&mut self, now: u64, renew: bool) {
        if self.masks.is_none() && !self.watch.has_met_all() && now < self.started + self.patience() {
            // A restarted agent's map holds the masks of before: better than a cluster of one.
            return;
        }
        let mut liveness = self.watch.liveness(now, self.owns_misses());
        liveness.eligible = self.eligible();
        liveness.grace_until_ns = self.epochs.grace_until();
        self.describe(&mut liveness);
        liveness.flags |= self.disbelief(now);
        liveness.budgets = self.budgets();
        liveness.doubt_until_ns = self.doubt_until(now);
        let masks = Some((liveness.forwarding, liveness.eligible));
        if renew || self.masks != masks {
            self.masks = masks;
            self.outputs.push_back(Output::SetLiveness(liveness));
        }
    }

    /// What the datapath may record, given how full its tables are.
    ///
    /// A class has one budget for both families: the one with less room decides.
    fn budgets(&self) -> [u32; BUDGET_CLASSES] {
        let [v4, v6] = self.census.used();
        let limits = &self.view.limits;
        let of_v4 = admission::budgets(&self.view.budgets, v4, limits.flows.saturating_sub(limits.flows_v6));
        let of_v6 = admission::budgets(&self.view.budgets, v6, limits.flows_v6);
        let mut budgets = of_v4;
        budgets.iter_mut().zip(of_v6).for_each(|(budget, other)| *budget = other.min(*budget));
        budgets
    }

    /// Until when others may know flows that this member does not: until some time after it is ready, and after members came
    /// or went, whose flows have other owners then (law 1).
    fn doubt_until(&self, now: u64) -> u64 {
        if self.peers.is_empty() {
            return 0;
        }
        let settled = if self.ready { self.ready_since.max(self.membership_since) } else { now };
        settled + nanos(DOUBT)
    }

    /// How long a peer may take to be heard of for the first time.
    pub(crate) fn patience(&self) -> u64 {
        self.watch.silence() + self.watch.interval()
    }
}
