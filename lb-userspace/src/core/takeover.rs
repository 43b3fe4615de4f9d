//! Who owns flows whose owner is gone for good: their backup, and the next in rank behind it.
//!
//! `docs/design/0011-ownership-over-time.md` says why. A record in wrong hands gets new owners and the next term; the
//! flow's server is never touched. Any member delivers any flow that it has a record of, so nothing depends on it: rows are
//! visited in turn, and few are raised at a time.

use std::time::Duration;

use lb_common::{
    flow::FlowKey as _,
    rank::{Owners, bit, rank},
};

use super::{
    Core, PutMode,
    event::Event,
    link::nanos,
    records::{COUNT_MAX, OwnersRegister, next_count},
    table::Row,
};

/// All rows are visited once in this time.
const PASS: Duration = Duration::from_secs(4);
/// Rows visited at least per round.
const VISITS_MIN: u64 = 64;
/// Records raised in one round: 10,000 a second at the default profile, which the lanes carry beside new flows.
const RAISED_MAX: usize = 200;
/// Reloads that remove a member reach the others one after the other: until then it lives for some of them.
const SETTLED: Duration = Duration::from_secs(30);

/// How far the passes over all rows are.
#[derive(Default)]
pub(crate) struct Takeover {
    /// The next row to visit.
    next: u32,
    /// Flows raised in this pass, and in all before.
    raised: u64,
    pub(crate) total: u64,
    /// Flows that name this member, in this pass and in the last.
    counting: usize,
    left: Option<usize>,
    /// Whether it was said that none are left.
    has_reported: bool,
    /// An order of the operator beside the configuration.
    ordered: bool,
}

/// What people are told of a member that is draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainStatus {
    /// Flows that name it as primary or backup; `None` until all have been counted.
    pub left: Option<usize>,
}

impl Core {
    /// Whether this member gives its flows to others and owns no new ones.
    pub(crate) fn is_draining(&self) -> bool {
        self.takeover.ordered || self.view.member(self.view.me).is_some_and(|own| own.drain)
    }

    /// The operator wants this member drained, or not any more, whatever the configuration says.
    pub(crate) fn drain(&mut self, now: u64, drain: bool) {
        self.takeover.ordered = drain;
        self.announce(now, false);
    }

    /// What is left to do until this member is drained; `None` if it is not to be.
    pub(crate) fn drain_status(&self) -> Option<DrainStatus> {
        self.is_draining().then_some(DrainStatus { left: self.takeover.left })
    }

    /// Visits the next rows, and gives those in wrong hands to others; once a round.
    pub(crate) fn hand_over(&mut self, now: u64) {
        if !self.is_draining() {
            (self.takeover.left, self.takeover.has_reported) = (None, false);
        }
        if !self.ready || self.stopping.is_some() {
            return;
        }
        let (dead, eligible) = (self.dead_for_good(now), self.eligible());
        let own = if self.is_draining() && eligible != 0 { bit(self.view.me) } else { 0 };
        if dead | own == 0 && !self.is_draining() && self.takeover.next == 0 {
            return;
        }
        let end = self.table.end();
        let visits = (u64::from(end) * self.watch.interval() / nanos(PASS)).max(VISITS_MIN).min(u64::from(end) + 1);
        let mut raised = 0;
        for _ in 0..visits {
            if self.takeover.next >= end {
                self.end_of_pass();
                break;
            }
            if raised == RAISED_MAX {
                break;
            }
            let number = self.takeover.next;
            self.takeover.next += 1;
            let Some(&row) = self.table.row(number).filter(|row| !row.record.is_tombstone()) else { continue };
            raised += usize::from(self.raise(now, number, &row, dead, own, eligible));
            let owners = self.table.row(number).map(|row| row.record.owners);
            let names_me = |owners: OwnersRegister| [owners.primary, owners.backup].contains(&self.view.me);
            self.takeover.counting += usize::from(owners.is_some_and(names_me));
        }
        self.takeover.raised += raised as u64;
    }

    /// Gives the flow other owners, if it is in wrong hands and this member is the one to say so.
    fn raise(&mut self, now: u64, number: u32, row: &Row, dead: u64, own: u64, eligible: u64) -> bool {
        let owners = row.record.owners;
        let names = bit(owners.primary) | bit(owners.backup);
        let gone = dead | own;
        let is_mine = names & own != 0 || names & dead != 0 && self.acting_owner(row) == self.view.me;
        if names & gone == 0 || !is_mine || owners.term >= COUNT_MAX || row.is_private() {
            return false;
        }
        let Some(new) = self.new_owners(row, gone, eligible & !gone) else { return false };
        let mut record = row.record;
        record.owners = OwnersRegister { term: next_count(owners.term), ..new };
        self.rewrite(now, number, record);
        self.put(number, PutMode::Amend);
        self.tell_all(now, number);
        true
    }

    /// Who is to own a flow instead of those that are gone; `None` where there is nobody better.
    fn new_owners(&self, row: &Row, gone: u64, candidates: u64) -> Option<OwnersRegister> {
        let owners = row.record.owners;
        let hash = row.key.hash(&self.node.hash_key);
        let best = |others: u64| -> Owners { rank(hash, &self.node.seeds, self.node.members, candidates & !others) };
        let stays = |id: u8| id != 0 && bit(id) & gone == 0;
        let primary = match (stays(owners.primary), stays(owners.backup)) {
            (true, _) => owners.primary,
            (false, true) => owners.backup,
            (false, false) => best(0).primary,
        };
        if primary == 0 {
            return None;
        }
        let backup =
            if stays(owners.backup) && owners.backup != primary { owners.backup } else { best(bit(primary)).primary };
        // Without another candidate a name that may come back is worth more than none, except that of who wants to go.
        let dead_name = |id: u8| id != 0 && id != primary && id != self.view.me && self.view.member(id).is_some();
        let backup = match backup {
            0 => [owners.backup, owners.primary].into_iter().find(|&id| dead_name(id)).unwrap_or_default(),
            backup => backup,
        };
        let new = OwnersRegister { term: owners.term, primary, backup };
        (new != owners).then_some(new)
    }

    /// Members that are no longer configured, or have been dead for long, while more than half are in view.
    fn dead_for_good(&self, now: u64) -> u64 {
        let configured = self.view.configured();
        let in_view = self.watch.forwarding() & configured;
        if in_view.count_ones() * 2 <= configured.count_ones() {
            return 0;
        }
        let after = nanos(self.view.takeover_after);
        let is_dead = |id: u8| {
            let moved_at = self.peers.get(&id).map_or(now, |peer| peer.moved_at);
            in_view & bit(id) == 0 && now.saturating_sub(moved_at) >= after
        };
        let dead = self.peers.keys().copied().filter(|&id| is_dead(id)).fold(0, |mask, id| mask | bit(id));
        // Once nobody can come back under their names.
        let is_settled = now.saturating_sub(self.membership_since) >= nanos(SETTLED);
        dead | if is_settled { !configured } else { 0 }
    }

    fn end_of_pass(&mut self) {
        let (raised, counted) = (self.takeover.raised, self.takeover.counting);
        (self.takeover.next, self.takeover.raised, self.takeover.counting) = (0, 0, 0);
        self.takeover.total += raised;
        if raised > 0 {
            self.report(Event::HandedOver { flows: raised });
        }
        if self.is_draining() {
            self.takeover.left = Some(counted);
            if counted == 0 && !self.takeover.has_reported {
                self.takeover.has_reported = true;
                self.report(Event::Drained);
            } else if counted > 0 {
                self.takeover.has_reported = false;
            }
        }
    }
}
