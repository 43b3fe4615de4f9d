//! When flows end, and what is remembered of them.
//!
//! The acting owner of a flow, who delivers it, ends it when it has been idle for its timeout, and tells the others; whose
//! map shows later traffic than the owner knew refuses. The others let go on their own after twice the timeout without a word. After an owner
//! came or went, or a session began again, nothing of it ends for a full timeout, unless idle for three: the new acting
//! owner has not seen the traffic of before.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use lb_common::{
    flow::{FlowKey, SCTP, STATE_CLOSING, STATE_RESET, STATE_YOUNG, UDP, tick, ticks_of_ms},
    rank::{bit, rank},
    service::ServiceKey,
};

use super::{
    Core, Key, Output, PutMode,
    link::nanos,
    records::age,
    table::Row,
    view::{Timeouts, View},
};

/// How long a tombstone is kept at least: longer than any message of the flow can be under way, silence of a session
/// included.
const TOMBSTONE: Duration = Duration::from_secs(120);
/// All rows are visited once in this time, little beside the shortest timeout: 2 % of a core for a million rows.
const PASS: Duration = Duration::from_secs(2);
/// Parked records visited per round.
const PARKED_REVIEWED: usize = 64;
/// Rows visited at least per round.
const VISITS_MIN: u64 = 64;
/// Entries written again in one round because a sweep did not find them: the driver has other work to do.
const REPAIRS_MAX: usize = 256;

/// Rows by the time at which something is to be done about them.
#[derive(Default)]
pub(crate) struct Dues(BinaryHeap<Reverse<(u64, u32)>>);

impl Dues {
    pub(crate) fn push(&mut self, due: u64, row: u32) {
        self.0.push(Reverse((due, row)));
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((due, _))| *due)
    }

    pub(crate) fn pop_due(&mut self, now: u64) -> Option<u32> {
        self.next_due().filter(|&due| due <= now)?;
        self.0.pop().map(|Reverse((_, row))| row)
    }
}

/// Tombstones, by the time at which they are forgotten: at all members at about the same.
#[derive(Default)]
pub(crate) struct Tombstones {
    dues: Dues,
    /// Rows that are tombstones.
    pub(crate) count: usize,
}

impl Core {
    /// Visits the next rows: asks to delete what is idle, writes again what the sweep has missed.
    pub(crate) fn scan(&mut self, now: u64) {
        let end = self.table.end();
        let visits = (u64::from(end) * self.watch.interval() / nanos(PASS)).max(VISITS_MIN).min(u64::from(end));
        let mut repairs = 0;
        for _ in 0..visits {
            let number = if self.scanned < end { self.scanned } else { 0 };
            if number == 0 {
                self.census.end_of_pass();
            }
            self.scanned = number + 1;
            let Some(&row) = self.table.row(number) else { continue };
            if row.record.is_tombstone() {
                continue;
            }
            self.census.meet(&row);
            if self.is_over(now, &row) {
                if let Some(row) = self.table.row_mut(number) {
                    row.expiring = true;
                }
                self.outputs.push_back(Output::DeleteFlow { key: row.key, unless_seen_since: row.last_seen });
            } else if self.sweep.wrapping_sub(row.swept) >= 2 && repairs < REPAIRS_MAX {
                // A whole sweep has passed without it.
                repairs += 1;
                self.put(number, PutMode::Insert);
            }
        }
    }

    fn is_over(&self, now: u64, row: &Row) -> bool {
        let timeout = self.timeout_ticks(&row.key, row.record.lifecycle.state);
        let idle = age(tick(now), row.last_seen);
        // Nearly always false, so it comes before asking whose the flow is.
        if idle < timeout {
            return false;
        }
        if !row.shared {
            return true;
        }
        let settled = u64::from(timeout) << 20;
        let is_settled = |id: u8| match self.peers.get(&id) {
            Some(peer) => now.saturating_sub(peer.moved_at) >= settled,
            None => now.saturating_sub(self.membership_since) >= settled,
        };
        let owners = row.record.owners;
        let is_mine = self.acting_owner(row) == self.view.me;
        // Signs of life that a session took with it come again within a quarter of the timeout.
        let is_heard = now.saturating_sub(self.reunited_at) >= settled;
        let is_quiet = is_heard && is_settled(owners.primary) && is_settled(owners.backup);
        // A member that comes and goes all the time must not keep its flows for ever.
        let is_enough = idle >= timeout.saturating_mul(3);
        (is_quiet || is_enough) && (is_mine || idle >= timeout.saturating_mul(2))
    }

    /// Parked records of flows that have been idle for their timeout are of no use any more.
    pub(crate) fn review_parked(&mut self, now: u64) {
        let timers = &self.timers;
        self.parked.review(PARKED_REVIEWED, |item, seen| {
            age(tick(now), seen) < timers.ticks(&item.key, item.record.lifecycle.state)
        });
    }

    /// The entry is no longer in the map.
    pub(crate) fn deleted(&mut self, now: u64, key: &Key) {
        let Some(number) = self.table.find(key) else { return };
        let Some(&row) = self.table.row(number).filter(|row| row.expiring) else { return };
        if row.shared && self.acting_owner(&row) == self.view.me {
            self.end(now, number, row.record, row.last_seen, tick(now));
            self.tell_all(now, number);
        } else {
            // Nobody else knows it, or its acting owner has forgotten to tell of its end.
            self.slots.release(now, row.slot);
            self.table.remove(number);
        }
    }

    /// The row has become a tombstone, `created` at its flow's end.
    pub(crate) fn bury(&mut self, now: u64, number: u32) {
        if let Some(row) = self.table.row(number) {
            let left = self.tombstone_ticks().saturating_sub(age(tick(now), row.created));
            self.tombstones.dues.push(now + (u64::from(left) << 20), number);
            self.tombstones.count += 1;
        }
    }

    /// Forgets old tombstones, and the oldest when there are too many.
    pub(crate) fn forget_tombstones(&mut self, now: u64) {
        loop {
            let too_many = self.tombstones.count > self.view.limits.tombstones;
            let Some(number) = self.tombstones.dues.pop_due(if too_many { u64::MAX } else { now }) else { break };
            // The flow may have been revived and ended again since, or the row be another's: that has a due of its own.
            let is_old = |row: &Row| too_many || age(tick(now), row.created) >= self.tombstone_ticks();
            let row = self.table.row(number).filter(|row| row.record.is_tombstone() && is_old(row));
            if !too_many && row.is_some_and(|row| self.is_awaited(now, row)) {
                self.tombstones.dues.push(now + nanos(Duration::from_secs(1)), number);
            } else if row.is_some() {
                self.table.remove(number);
                self.tombstones.count -= 1;
            }
        }
        if self.is_full && self.live() * 10 < self.view.limits.flows * 9 {
            self.is_full = false;
        }
    }

    /// Primary if it is alive, else backup if it is alive, else the best-ranked member that is: whom XDP picks.
    pub(crate) fn acting_owner(&self, row: &Row) -> u8 {
        let forwarding = self.watch.forwarding();
        let owners = row.record.owners;
        if forwarding & bit(owners.primary) != 0 {
            owners.primary
        } else if forwarding & bit(owners.backup) != 0 {
            owners.backup
        } else {
            rank(row.key.hash(&self.node.hash_key), &self.node.seeds, self.node.members, forwarding).primary
        }
    }

    /// How long a flow may be idle.
    pub(crate) fn timeout_ticks(&self, key: &Key, state: u8) -> u32 {
        self.timers.ticks(key, state)
    }

    pub(crate) const fn tombstone_ticks(&self) -> u32 {
        ticks_of_ms(TOMBSTONE.as_millis() as u64)
    }
}

/// How long flows may be idle.
pub(crate) struct Timers {
    timeouts: Timeouts,
    /// Of UDP services that have a timeout of their own.
    services: BTreeMap<ServiceKey, Duration>,
}

impl Timers {
    pub(crate) fn new(view: &View) -> Self {
        let own = |service: &super::view::Service| {
            let timeout = service.idle_timeout;
            let vips: Vec<_> = service.vips.iter().filter_map(|vip| Some((*vip, timeout?))).collect();
            vips
        };
        Self { timeouts: view.timeouts, services: view.services.iter().flat_map(own).collect() }
    }

    /// In ticks, by the flow's protocol, service and state.
    pub(crate) fn ticks(&self, key: &Key, state: u8) -> u32 {
        let timeouts = &self.timeouts;
        let timeout = match (key.protocol(), state) {
            (UDP, _) => self.of_service(key).unwrap_or(timeouts.udp),
            (_, STATE_YOUNG) => timeouts.young,
            (_, STATE_RESET) => timeouts.reset,
            (SCTP, STATE_CLOSING) => timeouts.sctp_closing,
            (SCTP, _) => timeouts.sctp,
            (_, STATE_CLOSING) => timeouts.closing,
            _ => timeouts.established,
        };
        ticks_of_ms(timeout.as_millis() as u64)
    }

    /// As the datapath finds the service: that of the port, else that of every port.
    fn of_service(&self, key: &Key) -> Option<Duration> {
        if self.services.is_empty() {
            return None;
        }
        let service = key.service();
        self.services.get(&service).or_else(|| self.services.get(&service.any_port())).copied()
    }
}
