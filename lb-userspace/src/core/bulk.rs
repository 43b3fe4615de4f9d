//! A pair's second session, for what is long and in no hurry: snapshots and buckets that are sent whole.
//!
//! Merging needs no order between the two sessions. What must come behind bulk (the end of a snapshot, digests, an
//! epoch's acknowledgement) is said on the first session, once the peer has acknowledged the bulk before it. What was
//! not acknowledged when the second session ends is sent again; without one, bulk goes on the first.

use std::collections::VecDeque;

use super::{
    Core, Output, Session,
    authority::Word,
    event::CloseReason,
    link::{Introduction, Link, Stage},
    wire::{Frame, Hello},
};

/// The first version that has a second session.
const SINCE: u8 = 3;

/// What a frame of bulk held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// Rows from this one on, and how many records of the snapshot went before.
    Rows(u32, u64),
    /// Some of a bucket.
    Bucket(u16),
}

/// Frames that the peer has not acknowledged, by number.
#[derive(Debug, Default)]
pub(crate) struct Underway {
    frames: VecDeque<(u64, Sent)>,
    /// The last one that held some of a bucket.
    last_bucket: u64,
}

impl Underway {
    /// The peer has applied so many frames.
    pub(crate) fn arrived(&mut self, frames: u64) {
        while self.frames.front().is_some_and(|(number, _)| *number <= frames) {
            self.frames.pop_front();
        }
    }

    fn push(&mut self, number: u64, sent: Sent) {
        if matches!(sent, Sent::Bucket(_)) {
            self.last_bucket = number;
        }
        self.frames.push_back((number, sent));
    }
}

impl Core {
    /// The peer's open session.
    pub(crate) fn open_session(&self, id: u8) -> Option<&Link> {
        self.links.get(&self.peers.get(&id)?.open?)
    }

    /// The session that one for bulk belongs to; any other is its own.
    pub(crate) fn control_of(&self, session: Session) -> Session {
        let bulk = self.links.get(&session).filter(|link| link.stage == Stage::Bulk);
        bulk.and_then(|link| self.peers.get(&link.peer)?.open).unwrap_or(session)
    }

    /// A session that says it is a pair's second one has said hello, as who it must be.
    ///
    /// It belongs to the session that is open with the same start of the peer. Where that has not opened on this side yet, who dialled does so again.
    pub(crate) fn open_bulk(&mut self, now: u64, session: Session, hello: &Hello) -> Result<(), CloseReason> {
        let Some(link) = self.links.get_mut(&session) else { return Ok(()) };
        link.is_bulk = true;
        let id = link.peer;
        let is_same_start = hello.incarnation == self.watch.incarnation(id);
        let open = self.open_session(id).filter(|link| link.has_bulk() && is_same_start);
        let Some((version, older)) = open.map(|link| (link.version, link.bulk)) else {
            self.close(now, session, CloseReason::Replaced);
            return Ok(());
        };
        if let Some(older) = older {
            self.close(now, older, CloseReason::Replaced);
        }
        if let Some(link) = self.links.get_mut(&session) {
            (link.stage, link.version) = (Stage::Bulk, version);
        }
        self.outputs.push_back(Output::Defer { session });
        let control = self.control_of(session);
        if let Some(link) = self.links.get_mut(&control) {
            link.bulk = Some(session);
            // Its beginning may arrive behind its end.
            link.comparison.begin_bucket_anew();
        }
        self.pump(now, control);
        Ok(())
    }

    /// What comes in on a session for bulk.
    pub(crate) fn bulk_frame(&mut self, now: u64, session: Session, frame: Frame) -> Result<(), CloseReason> {
        let Some(link) = self.links.get_mut(&session) else { return Ok(()) };
        match frame {
            Frame::Snapshot(items) => {
                link.acknowledgements.hear();
                let control = self.control_of(session);
                if let Some(link) = self.links.get_mut(&control) {
                    link.snapshot_heard += items.len() as u64;
                }
                self.hear(now, session, Word::Relayed, &items)
            }
            Frame::Bucket { bucket, is_last, items } => {
                link.acknowledgements.hear();
                self.hear(now, session, Word::Relayed, &items)?;
                if is_last {
                    self.received_whole(self.control_of(session), bucket);
                }
                Ok(())
            }
            Frame::Acknowledgement { frames } => self.acknowledged(now, session, frames),
            Frame::Keepalive => Ok(()),
            _ => Err(CloseReason::Unexpected("what is no bulk, in a session for bulk")),
        }
    }

    /// A session for bulk is over. What it has not brought to the peer is sent again.
    pub(crate) fn bulk_ended(&mut self, now: u64, session: Session, bulk: &Link) {
        let Some(peer) = self.peers.get_mut(&bulk.peer) else { return };
        if !peer.dialling {
            peer.back_off(now);
        }
        let open = peer.open.and_then(|session| self.links.get_mut(&session));
        let Some(link) = open.filter(|link| link.bulk == Some(session)) else { return };
        link.bulk = None;
        for (_, sent) in &bulk.underway.frames {
            match (*sent, link.introduction) {
                (Sent::Bucket(bucket), _) => link.comparison.owe(bucket),
                // Those of a snapshot before this one may be anywhere: too many are sent again, never too few.
                (Sent::Rows(from, sent), Introduction::Rows(cursor)) => {
                    link.introduction = Introduction::Rows(cursor.min(from));
                    link.snapshot_sent = link.snapshot_sent.min(sent);
                }
                // The peer's digests show what it lacks.
                (Sent::Rows(..), Introduction::Asking | Introduction::Buckets | Introduction::Over) => {}
            }
        }
    }

    /// Sends what is due in a session and in the one that it belongs to.
    pub(crate) fn pump_pair(&mut self, now: u64, session: Session) {
        self.pump(now, session);
        let control = self.control_of(session);
        if control != session {
            self.pump(now, control);
        }
    }

    /// Sends some of a bucket that is owed.
    pub(crate) fn send_bucket(&mut self, now: u64, session: Session) {
        if let Some((bucket, frame)) = self.owed(now, session) {
            self.send_bulk(now, session, Sent::Bucket(bucket), frame);
        }
    }

    /// Sends the next rows of the snapshot.
    pub(crate) fn send_rows(&mut self, now: u64, session: Session) {
        let Some(link) = self.links.get(&session) else { return };
        let Introduction::Rows(from) = link.introduction else { return };
        let sent = Sent::Rows(from, link.snapshot_sent);
        if let Some(frame) = self.snapshot(now, session) {
            self.send_bulk(now, session, sent, frame);
        }
    }

    fn send_bulk(&mut self, now: u64, session: Session, sent: Sent, frame: Vec<u8>) {
        let bulk = self.links.get(&session).and_then(|link| link.bulk);
        let Some(link) = self.links.get_mut(&bulk.unwrap_or(session)) else { return };
        // The first session has all in order: there only changes are numbered.
        if bulk.is_some() || matches!(sent, Sent::Bucket(_)) {
            link.acknowledgements.tell(now);
        }
        if bulk.is_some() {
            link.underway.push(link.acknowledgements.told(), sent);
        }
        self.send(now, bulk.unwrap_or(session), frame);
    }

    fn bulk_of(&self, link: &Link) -> Option<&Link> {
        self.links.get(&link.bulk?)
    }

    /// Whether more bulk may be sent.
    pub(crate) fn has_room_for_bulk(&self, link: &Link) -> bool {
        self.has_room(self.bulk_of(link).unwrap_or(link))
    }

    /// Whether what is said now comes behind all bulk.
    pub(crate) fn has_arrived(&self, link: &Link) -> bool {
        self.bulk_of(link).is_none_or(|bulk| bulk.underway.frames.is_empty())
    }

    /// Whether what is said now comes behind all buckets that the peer was owed: changes that were told late.
    pub(crate) fn is_settled(&self, link: &Link) -> bool {
        !link.comparison.is_owing() && self.have_buckets_arrived(link)
    }

    /// Whether the peer has applied all buckets that were sent.
    pub(crate) fn have_buckets_arrived(&self, link: &Link) -> bool {
        let has_last = |bulk: &Link| bulk.acknowledgements.acknowledged() >= bulk.underway.last_bucket;
        self.bulk_of(link).is_none_or(has_last)
    }
}

impl Link {
    /// Whether the pair has a second session, or may have one.
    pub(crate) fn has_bulk(&self) -> bool {
        self.version >= SINCE
    }
}
