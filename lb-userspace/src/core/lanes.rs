//! What is sent to whom, and when: each open session has two lanes of flows to tell of, and a snapshot behind them.
//!
//! A flow is in a peer's lanes at most once, however often it changes. The urgent lane, of the flows that the peer owns,
//! is due at once, so that a batch of events becomes one frame; the lazy one may wait to become longer. Nothing is sent
//! while `Limits::window` bytes have not left; lanes that grow too long are dropped, and the buckets of their flows are sent
//! whole instead: at most 4096 of them, however far the peer is behind. A session without buckets ends, and a snapshot begins
//! anew.

use std::time::Duration;

use lb_common::rank::bit;

use super::{
    Core, Session,
    event::{CloseReason, Event},
    link::{Introduction, Link, Stage, nanos},
    replication::{ended_s, idle_ms},
    table::Row,
    wire::{Batch, Frame, Item, PAYLOAD_MAX, RECORD_V6},
};

/// How long the flows that a peer does not own may wait for more of them.
const LAZY: Duration = Duration::from_millis(50);
/// How long after a snapshot its errors are corrected: those who know better answer within a round trip.
const CORRECTION: Duration = Duration::from_secs(3);
/// Flows that fill a frame: then the lazy lane does not wait.
const FRAME_FULL: usize = PAYLOAD_MAX / RECORD_V6;

/// What a session may say.
enum Say {
    Acknowledgement,
    Conditions,
    Delta,
    Configuration,
    Bucket,
    Standing,
    End,
    Digests,
    Snapshot,
}

impl Core {
    /// The record goes to every peer with an open session.
    pub(crate) fn tell_all(&mut self, now: u64, number: u32) {
        // Until the first sweep is complete no snapshot has begun, and it will hold this.
        let Some(row) = self.table.row_mut(number).filter(|_| self.has_swept) else { return };
        row.told = row.last_seen;
        let owners = bit(row.record.owners.primary) | bit(row.record.owners.backup);
        for (&session, link) in self.links.iter_mut().filter(|(_, link)| link.stage == Stage::Open) {
            if row.queued & bit(link.peer) == 0 {
                row.queued |= bit(link.peer);
                if link.queue(now, number, owners & bit(link.peer) != 0) > self.view.limits.queue {
                    self.overflown.push(session);
                }
            }
        }
    }

    /// The record goes to a peer that knows less.
    pub(crate) fn tell(&mut self, now: u64, number: u32, peer: u8) {
        let Some(session) = self.peers.get(&peer).and_then(|peer| peer.open) else { return };
        let Some(row) = self.table.row_mut(number).filter(|_| self.has_swept) else { return };
        let Some(link) = self.links.get_mut(&session) else { return };
        if row.queued & bit(peer) == 0 && !row.is_private() {
            row.queued |= bit(peer);
            if link.queue(now, number, true) > self.view.limits.queue {
                self.overflown.push(session);
            }
        }
    }

    /// A flow that a snapshot has just called alive has ended: its peers may have heard of the end before, and forgotten it.
    pub(crate) fn correct(&mut self, now: u64, number: u32) {
        let is_recent = |link: &Link| {
            link.introduction != Introduction::Over || now.saturating_sub(link.snapshot_at) < nanos(CORRECTION)
        };
        let peers: Vec<u8> =
            self.links.values().filter(|l| l.stage == Stage::Open && is_recent(l)).map(|l| l.peer).collect();
        peers.into_iter().for_each(|peer| self.tell(now, number, peer));
    }

    /// Drops what waits for peers that do not keep up. Nothing they miss is lost: whole buckets will hold it, or a snapshot.
    pub(crate) fn shed(&mut self, now: u64) {
        while let Some(session) = self.overflown.pop() {
            match self.links.get(&session).map(Link::compares) {
                Some(true) => self.drop_lanes(session),
                Some(false) => self.close(now, session, CloseReason::Overflow(self.view.limits.queue)),
                None => {}
            }
        }
    }

    /// Owes whole buckets instead of their flows; the session goes on.
    fn drop_lanes(&mut self, session: Session) {
        let Some(link) = self.links.get_mut(&session) else { return };
        let queue = self.view.limits.queue;
        let (id, waiting) = (link.peer, link.queued());
        if waiting <= queue {
            return;
        }
        for number in link.urgent.drain(..).chain(link.lazy.drain(..)) {
            if let Some(row) = self.table.row_mut(number).filter(|row| row.queued & bit(id) != 0) {
                row.queued &= !bit(id);
                link.comparison.owe(row.bucket());
            }
        }
        let label = self.label(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.overflows += 1;
        let times = peer.overflows;
        // Rarer and rarer: a peer that is slow for good must not fill the log.
        if times.is_power_of_two() {
            self.report(Event::Overflow { peer: label, flows: queue, times });
        }
    }

    /// Sends to everybody what is due.
    pub(crate) fn flush(&mut self, now: u64) {
        let due: Vec<Session> = self
            .links
            .iter()
            .filter(|(_, link)| self.due(link).is_some_and(|due| due <= now))
            .map(|(&session, _)| session)
            .collect();
        for session in due {
            self.pump(now, session);
        }
    }

    /// When the next frame is due.
    pub(crate) fn next_flush(&self) -> Option<u64> {
        self.links.values().filter_map(|link| self.due(link)).min()
    }

    /// When there is something to say; 0 for at once.
    fn due(&self, link: &Link) -> Option<u64> {
        if self.next_to_say(0, link).is_some() {
            return Some(0);
        }
        if link.stage != Stage::Open || !self.has_room(link) {
            return None;
        }
        let digests = link.comparison.due.filter(|_| self.may_compare(link));
        [link.lazy_due(self.stopping.is_some()), digests].into_iter().flatten().min()
    }

    /// What goes out next at `now`, of a session or of the one for bulk that belongs to it.
    fn next_to_say(&self, now: u64, link: &Link) -> Option<Say> {
        let has_room = self.has_room(link);
        if has_room && link.stage != Stage::Greeting && link.acknowledgements.is_due() {
            return Some(Say::Acknowledgement);
        }
        if link.stage != Stage::Open {
            return None;
        }
        if has_room && link.hearsay.is_due() {
            return Some(Say::Conditions);
        }
        let compares = self.may_compare(link) && link.comparison.due.is_some_and(|due| due <= now);
        let in_a_hurry = self.stopping.is_some() || compares || link.owes_standing;
        let has_rows = matches!(link.introduction, Introduction::Rows(cursor) if cursor < self.table.end());
        if has_room && (!link.urgent.is_empty() || link.lazy_due(in_a_hurry).is_some_and(|due| due <= now)) {
            Some(Say::Delta)
        } else if has_room && link.hand.is_due() {
            Some(Say::Configuration)
        } else if link.comparison.is_owing() && self.has_room_for_bulk(link) {
            Some(Say::Bucket)
        } else if has_room && link.owes_standing && self.is_settled(link) {
            Some(Say::Standing)
        } else if has_room && self.has_swept && link.is_introducing() && !has_rows && self.has_arrived(link) {
            Some(Say::End)
        } else if has_room && compares {
            Some(Say::Digests)
        } else if self.has_swept && has_rows && self.has_room_for_bulk(link) {
            Some(Say::Snapshot)
        } else {
            None
        }
    }

    /// Whether the window is not full.
    pub(crate) fn has_room(&self, link: &Link) -> bool {
        link.in_flight < self.view.limits.window
    }

    /// Whether digests would show what the peer has been told.
    fn may_compare(&self, link: &Link) -> bool {
        self.has_swept && self.stopping.is_none() && self.is_settled(link)
    }

    /// Sends what is due, as far as the windows go.
    pub(crate) fn pump(&mut self, now: u64, session: Session) {
        while let Some(say) = self.links.get(&session).and_then(|link| self.next_to_say(now, link)) {
            let frame = match say {
                Say::Acknowledgement => self.acknowledge(session),
                Say::Conditions => self.tell_conditions(session),
                Say::Delta => self.delta(now, session),
                Say::Configuration => self.tell_configuration(now, session),
                Say::Standing => self.standing(session),
                Say::End => self.end_introduction(now, session),
                Say::Digests => self.digests(now, session),
                Say::Bucket => {
                    self.send_bucket(now, session);
                    continue;
                }
                Say::Snapshot => {
                    self.send_rows(now, session);
                    continue;
                }
            };
            if let Some(frame) = frame {
                self.send(now, session, frame);
            }
        }
    }

    /// The next frame of deltas, of relays, or both; `None` when what was queued is no longer worth telling.
    fn delta(&mut self, now: u64, session: Session) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&session)?;
        let (mut own, mut others) = (Batch::delta(link.version), Batch::relay(link.version));
        while !own.are_full(&others) {
            let Some(number) = link.urgent.pop_front().or_else(|| link.lazy.pop_front()) else { break };
            let Some(row) = self.table.row_mut(number).filter(|row| row.queued & bit(link.peer) != 0) else { continue };
            row.queued &= !bit(link.peer);
            if !row.is_private() {
                row.shared = true;
                let is_own = row.record.backend.creator == self.view.me || !link.relays();
                if is_own { &mut own } else { &mut others }.push(&item(now, row));
            }
        }
        let batches = [own, others].into_iter().filter(|batch| !batch.is_empty());
        let frames = batches.map(|batch| {
            link.acknowledgements.tell(now);
            batch.finish()
        });
        frames.reduce(|one, other| [one, other].concat())
    }

    /// The next frame of the snapshot; `None` when no row is left that is worth telling.
    pub(crate) fn snapshot(&mut self, now: u64, session: Session) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&session)?;
        let Introduction::Rows(mut cursor) = link.introduction else { return None };
        let mut batch = Batch::snapshot(link.version);
        while cursor < self.table.end() && !batch.is_full() {
            if let Some(row) = self.table.row_mut(cursor).filter(|row| !row.is_private()) {
                row.shared = true;
                link.snapshot_sent += 1;
                batch.push(&item(now, row));
            }
            cursor += 1;
        }
        link.introduction = Introduction::Rows(cursor);
        (!batch.is_empty()).then(|| batch.finish())
    }

    /// The peer has been told all that was known, or needs nothing of it.
    fn end_introduction(&mut self, now: u64, session: Session) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&session)?;
        (link.introduction, link.snapshot_at) = (Introduction::Over, now);
        if link.compares() {
            // A joiner waits for the proof that it has all.
            let due = link.comparison.due.filter(|_| link.said_ready).unwrap_or(now);
            link.comparison.due = Some(due);
        }
        Some(Frame::SnapshotEnd { records: link.snapshot_sent }.encode(link.version))
    }

    /// Takes the rows out of the lanes of a session that is over.
    pub(crate) fn forget_queue(&mut self, link: &Link) {
        for &number in link.urgent.iter().chain(&link.lazy) {
            if let Some(row) = self.table.row_mut(number) {
                row.queued &= !bit(link.peer);
            }
        }
    }
}

pub(crate) fn item(now: u64, row: &Row) -> Item {
    let ended_s = if row.record.is_tombstone() { ended_s(now, row.created) } else { 0 };
    Item { key: row.key, record: row.record, idle_ms: idle_ms(now, row.last_seen), ended_s }
}

impl Link {
    fn is_introducing(&self) -> bool {
        matches!(self.introduction, Introduction::Rows(_) | Introduction::Buckets)
    }

    fn lazy_due(&self, in_a_hurry: bool) -> Option<u64> {
        if self.lazy.is_empty() {
            None
        } else if self.lazy.len() >= FRAME_FULL || in_a_hurry {
            Some(0)
        } else {
            Some(self.lazy_since + nanos(LAZY))
        }
    }

    /// Puts a row in a lane; returns how many wait.
    fn queue(&mut self, now: u64, number: u32, is_urgent: bool) -> usize {
        if is_urgent {
            self.urgent.push_back(number);
        } else {
            if self.lazy.is_empty() {
                self.lazy_since = now;
            }
            self.lazy.push_back(number);
        }
        self.queued()
    }

    /// Flows that wait for the peer.
    pub(crate) fn queued(&self) -> usize {
        self.urgent.len() + self.lazy.len()
    }
}
