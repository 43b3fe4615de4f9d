//! The life of sessions between their frames: dialling, keeping alive, ending.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Core, Output, Session,
    event::{CloseReason, Event},
    link::{BACKOFF_MIN, Introduction, Link, Stage, nanos},
    liveness::State,
    wire::Frame,
};

/// Without anything to say, a session says this often that it lives.
const KEEPALIVE: Duration = Duration::from_millis(500);
/// Six keepalives: a session that is silent for longer is over.
const SILENCE: Duration = Duration::from_secs(3);
/// After a session has ended, those who have no digests are sent all records again: what its peer has said to one member
/// only is lost to the rest. Not at once, because there may be a failover to be done.
const RETELL: Duration = Duration::from_secs(1);
/// The least time between two snapshots in a session: a peer that comes and goes must not keep the others busy.
const RETELL_PAUSE: Duration = Duration::from_secs(10);

impl Core {
    pub(crate) fn dial_failed(&mut self, now: u64, peer: u8) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.back_off(now);
        }
    }

    /// The peer is there again: there is no reason to wait.
    pub(crate) fn dial_soon(&mut self, now: u64, id: u8) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.dial_at = now;
            peer.backoff = nanos(BACKOFF_MIN);
        }
    }

    /// A connection may have broken without a word while the peer was away, and TCP would take its time to notice.
    pub(crate) fn distrust_quiet_sessions(&mut self, now: u64, id: u8) {
        let quiet: Vec<Session> = self
            .sessions_with(id)
            .filter(|s| self.links.get(s).is_some_and(|l| now.saturating_sub(l.heard_at) > 2 * nanos(KEEPALIVE)))
            .collect();
        for session in quiet {
            self.close(now, session, CloseReason::Silent(nanos(KEEPALIVE) * 2 / 1_000_000_000));
        }
    }

    /// Keeps sessions alive, ends silent ones, dials missing ones; once a round.
    pub(crate) fn tend_sessions(&mut self, now: u64) {
        let silent: Vec<Session> = self
            .links
            .iter()
            .filter(|(_, link)| now.saturating_sub(link.heard_at) > nanos(SILENCE))
            .map(|(&session, _)| session)
            .collect();
        for session in silent {
            self.close(now, session, CloseReason::Silent(SILENCE.as_secs()));
        }
        let quiet: Vec<Session> = self
            .links
            .iter()
            .filter(|(_, link)| link.stage != Stage::Greeting && now.saturating_sub(link.said_at) >= nanos(KEEPALIVE))
            .map(|(&session, _)| session)
            .collect();
        for session in quiet {
            self.say(now, session, &Frame::Keepalive);
        }
        if self.stopping.is_some() {
            return;
        }
        let is_due = |link: &Link| {
            link.introduction == Introduction::Over && link.snapshot_again_at.is_some_and(|due| due <= now)
        };
        self.links.values_mut().filter(|link| is_due(link)).for_each(|link| link.introduce(now));
        self.dial_missing(now);
        self.review_distribution(now);
    }

    /// The member with the lower id dials: first the session, and when that is open its second one, for bulk.
    pub(crate) fn dial_missing(&mut self, now: u64) {
        if self.stopping.is_some() {
            return;
        }
        let is_connecting = |link: &&Link| link.dialled && link.stage == Stage::Greeting;
        let connecting: BTreeSet<u8> = self.links.values().filter(is_connecting).map(|link| link.peer).collect();
        for (&id, peer) in self.peers.range_mut(self.view.me + 1..) {
            let open = peer.open.and_then(|session| self.links.get(&session));
            let is_missing = open.is_none_or(|link| link.has_bulk() && link.bulk.is_none());
            if is_missing && !peer.dialling && now >= peer.dial_at && !connecting.contains(&id) {
                peer.dialling = true;
                self.outputs.push_back(Output::Dial { peer: id });
            }
        }
    }

    /// Sends a frame in the session's version.
    pub(crate) fn say(&mut self, now: u64, session: Session, frame: &Frame) {
        if let Some(link) = self.links.get(&session) {
            let bytes = frame.encode(link.version);
            self.send(now, session, bytes);
        }
    }

    pub(crate) fn send(&mut self, now: u64, session: Session, bytes: Vec<u8>) {
        if let Some(link) = self.links.get_mut(&session) {
            link.said_at = now;
            link.in_flight += bytes.len();
            self.outputs.push_back(Output::Send { session, bytes });
        }
    }

    /// Ends a session of our own will.
    pub(crate) fn close(&mut self, now: u64, session: Session, reason: CloseReason) {
        if self.links.contains_key(&session) {
            self.outputs.push_back(Output::Close { session });
            self.ended(now, session, reason);
        }
    }

    /// A session is over: forgets what waited for it, and when to dial again.
    pub(crate) fn ended(&mut self, now: u64, session: Session, reason: CloseReason) {
        let Some(link) = self.links.remove(&session) else { return };
        if link.is_bulk {
            self.bulk_ended(now, session, &link);
            return;
        }
        if let Some(bulk) = link.bulk {
            self.links.remove(&bulk);
            self.outputs.push_back(Output::Close { session: bulk });
        }
        self.forget_queue(&link);
        if link.stage == Stage::Open {
            self.compare_soon(now, link.peer);
            let is_other = |other: &&mut Link| other.stage == Stage::Open && other.peer != link.peer;
            for other in self.links.values_mut().filter(is_other).filter(|other| !other.compares()) {
                let due = (now + nanos(RETELL)).max(other.snapshot_at + nanos(RETELL_PAUSE));
                other.snapshot_again_at.get_or_insert(due);
            }
        }
        let label = self.label(link.peer);
        let has_left = self.watch.state(link.peer) == Some(State::Left);
        let Some(peer) = self.peers.get_mut(&link.peer) else { return };
        if peer.open == Some(session) {
            peer.open = None;
        }
        if peer.open.is_none() && !peer.dialling {
            peer.back_off(now);
        }
        let reason = if has_left && reason == CloseReason::Ended { CloseReason::Left } else { reason };
        peer.ended_at = now;
        if peer.complaint != Some(reason) {
            peer.complaint = Some(reason);
            self.report(Event::SessionEnded { peer: label, reason });
        }
    }

    pub(crate) fn sessions_with(&self, id: u8) -> impl Iterator<Item = Session> {
        self.links.iter().filter(move |(_, link)| link.peer == id).map(|(&session, _)| session)
    }
}
