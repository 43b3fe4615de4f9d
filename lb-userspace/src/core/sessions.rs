//! Sessions: who connects, who is believed, and when a session ends.
//!
//! ```text
//!   Connected --> Greeting --Hello--> Open --> gone
//!                    |                  |
//!                    +--- anything else, a refusal, silence ---> gone
//! ```
//!
//! The member with the lower id dials. Both say `Hello` at once, then each tells what the other one lacks by its digests, all
//! of it to one that has none, and goes on with deltas. A snapshot may come again at any time. The newest session with a peer replaces an older one; an earlier incarnation is refused and told so by our `Hello`.

use std::mem;

use super::{
    Core, Output, Session,
    authority::Word,
    event::{CloseReason, Event},
    link::{BACKOFF_MIN, Link, Peer, Stage, nanos},
    wire::{Frame, Hello},
};

/// Starts that a member may have forgotten: at one a second, those of twelve days. More is nonsense, or an attack.
pub(super) const STARTS_MAX: u32 = 1 << 20;
/// Sessions with one peer that have not said `Hello`, before the oldest is closed.
const GREETING_MAX: usize = 4;

impl Core {
    /// Makes the peers those of the configuration.
    pub(crate) fn configure_peers(&mut self, now: u64) {
        let gone: Vec<u8> = self.peers.keys().copied().filter(|&id| self.view.member(id).is_none()).collect();
        for id in gone {
            let sessions: Vec<Session> = self.sessions_with(id).collect();
            for session in sessions {
                self.close(now, session, CloseReason::Removed);
            }
            self.peers.remove(&id);
        }
        for member in self.view.members.iter().filter(|member| member.id != self.view.me) {
            self.peers.entry(member.id).or_insert_with(|| Peer::new(now));
        }
        self.greet_all_again();
        let ids: Vec<u8> = self.peers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.compare_configuration(id));
    }

    pub(crate) fn connected(&mut self, now: u64, id: u8, session: Session, dialled: bool) {
        let Some(peer) = self.peers.get_mut(&id) else {
            self.outputs.push_back(Output::Close { session });
            return;
        };
        if dialled {
            peer.dialling = false;
        }
        if self.stopping.is_some() {
            self.outputs.push_back(Output::Close { session });
            return;
        }
        let greeting: Vec<Session> =
            self.sessions_with(id).filter(|s| self.links.get(s).is_some_and(|l| l.stage == Stage::Greeting)).collect();
        if greeting.len() >= GREETING_MAX
            && let Some(&oldest) = greeting.first()
        {
            self.close(now, oldest, CloseReason::Replaced);
        }
        // While one is open, what is dialled is its second one.
        let is_bulk = dialled && self.open_session(id).is_some_and(Link::has_bulk);
        self.links.insert(session, Link { told_ready: self.ready, is_bulk, ..Link::new(now, id, dialled) });
        let hello = Hello { bulk: is_bulk, ..self.hello(id) };
        self.say(now, session, &Frame::Hello(hello));
    }

    pub(crate) fn received(&mut self, now: u64, session: Session, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&session) else { return };
        link.heard_at = now;
        let mut decoder = mem::take(&mut link.decoder);
        decoder.push(bytes);
        // A greeting among the bytes changes the version of what follows.
        while let Some(version) = self.links.get(&session).map(|link| link.version) {
            let said = match decoder.next_frame(version) {
                Ok(Some(frame)) => self.frame(now, session, frame),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            if let Err(reason) = said {
                let control = self.control_of(session);
                self.close(now, control, reason);
                return;
            }
        }
        if let Some(link) = self.links.get_mut(&session) {
            link.decoder = decoder;
        }
    }

    fn frame(&mut self, now: u64, session: Session, frame: Frame) -> Result<(), CloseReason> {
        let Some(link) = self.links.get_mut(&session) else { return Ok(()) };
        let peer = link.peer;
        if link.stage == Stage::Greeting && !matches!(frame, Frame::Hello(_)) {
            return Err(CloseReason::Unexpected("something before hello"));
        }
        if link.stage == Stage::Bulk {
            return self.bulk_frame(now, session, frame);
        }
        match frame {
            Frame::Hello(hello) if link.stage == Stage::Greeting => self.greeted(now, session, &hello),
            Frame::Hello(hello) => self.greeted_again(now, peer, session, &hello),
            Frame::Snapshot(items) => {
                link.snapshot_heard += items.len() as u64;
                self.hear(now, session, Word::Relayed, &items)
            }
            Frame::SnapshotEnd { records } => {
                // Since version 3 some may have come twice, or with another snapshot.
                if link.snapshot_heard < records || !link.has_bulk() && link.snapshot_heard != records {
                    return Err(CloseReason::Unexpected("end of a snapshot that was not sent"));
                }
                if !link.has_bulk() {
                    link.snapshot_heard = 0;
                }
                if !link.is_synchronized {
                    link.is_synchronized = true;
                    self.synchronized(now, peer, records);
                }
                Ok(())
            }
            Frame::Delta(items) => {
                if link.acknowledges() {
                    link.acknowledgements.hear();
                }
                self.hear(now, session, Word::Own, &items)
            }
            Frame::Relay(items) => {
                link.acknowledgements.hear();
                self.hear(now, session, Word::Relayed, &items)
            }
            Frame::Acknowledgement { frames } => self.acknowledged(now, session, frames),
            Frame::Digests(theirs) => {
                self.compare(session, &theirs);
                Ok(())
            }
            Frame::Bucket { bucket, is_last, items } => {
                link.acknowledgements.hear();
                self.hear(now, session, Word::Relayed, &items)?;
                if is_last {
                    self.received_whole(session, bucket);
                }
                Ok(())
            }
            Frame::Epoch(standing) => {
                self.heard_standing(now, session, standing);
                Ok(())
            }
            Frame::Opinions(opinions) => {
                self.heard_opinions(now, session, &opinions);
                Ok(())
            }
            Frame::Conditions(conditions) => {
                self.take_conditions(now, &conditions);
                Ok(())
            }
            Frame::ConfigurationRequest(id) => {
                self.asked_for_configuration(session, id);
                Ok(())
            }
            Frame::ConfigurationPart(part) => {
                self.heard_part(now, session, part);
                Ok(())
            }
            Frame::ConfigurationRefusal { id, why } => {
                self.heard_refusal(session, id, why);
                Ok(())
            }
            Frame::Keepalive => Ok(()),
            Frame::Goodbye => {
                self.peer_says_goodbye(now, peer);
                Ok(())
            }
        }
    }

    /// The peer's first word: whether it is believed.
    fn greeted(&mut self, now: u64, session: Session, hello: &Hello) -> Result<(), CloseReason> {
        let Some(link) = self.links.get(&session) else { return Ok(()) };
        let id = link.peer;
        if hello.cluster != self.view.cluster {
            return Err(CloseReason::WrongCluster);
        }
        if hello.from != id || hello.to != self.view.me {
            return Err(CloseReason::WrongMember { from: hello.from, to: hello.to });
        }
        if hello.heard_of.saturating_sub(self.incarnation) > STARTS_MAX {
            return Err(CloseReason::Absurd { heard_of: hello.heard_of, is: self.incarnation });
        }
        if hello.heard_of > self.incarnation {
            self.raise_incarnation(now, id, hello.heard_of);
            return Ok(());
        }
        let known = self.watch.incarnation(id);
        if hello.incarnation < known {
            return Err(CloseReason::Stale { said: hello.incarnation, known });
        }
        if link.is_bulk || hello.bulk {
            return self.open_bulk(now, session, hello);
        }
        if let Some(older) = self.peers.get(&id).and_then(|peer| peer.open).filter(|&older| older != session) {
            self.close(now, older, CloseReason::Replaced);
        }
        self.watch.learn_incarnation(id, hello.incarnation);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.open = Some(session);
            if peer.was_synchronized {
                self.reunited_at = now;
            }
        }
        if let Some(link) = self.links.get_mut(&session) {
            link.stage = Stage::Open;
            link.version = hello.speaks.min(self.speaks);
            link.owes_standing = link.speaks_of_epochs();
            link.said_ready = hello.ready;
            link.introduce(now);
            link.configuration = (hello.generation, hello.hash);
            if self.ready && !link.told_ready {
                self.greet_again(session, id);
            }
        }
        self.introduce_conditions(session);
        self.introduce_configuration(session);
        self.compare_configuration(id);
        self.review_distribution(now);
        self.dial_missing(now);
        self.pump(now, session);
        Ok(())
    }

    /// A peer that has a new configuration, or has become ready, says `Hello` again; nothing else in it may have changed.
    fn greeted_again(&mut self, now: u64, id: u8, session: Session, hello: &Hello) -> Result<(), CloseReason> {
        let is_same = hello.cluster == self.view.cluster
            && (hello.from, hello.to) == (id, self.view.me)
            && hello.incarnation == self.watch.incarnation(id);
        if !is_same {
            return Err(CloseReason::Unexpected("second hello of somebody else"));
        }
        let is_joiner = !self.ready;
        if let Some(link) = self.links.get_mut(&session) {
            link.configuration = (hello.generation, hello.hash);
            if hello.ready && !link.said_ready {
                link.said_ready = true;
                if !link.has_bulk() {
                    link.snapshot_heard = 0;
                }
                // What it sent before was less than all.
                link.is_synchronized &= !is_joiner;
                link.comparison.start_anew();
                // By our digests it tells what we lack of all that it has now.
                link.comparison.due = link.compares().then_some(now);
            }
        }
        self.compare_configuration(id);
        self.review_distribution(now);
        Ok(())
    }

    /// Says once that the configurations differ; replication goes on, what is unknown is parked.
    fn compare_configuration(&mut self, id: u8) {
        let link = self.peers.get(&id).and_then(|peer| peer.open).and_then(|session| self.links.get(&session));
        let Some(theirs) = link.map(|link| link.configuration) else { return };
        let ours = (self.view.generation, self.view.hash);
        let label = self.label(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if theirs == ours {
            peer.differs = None;
        } else if peer.differs != Some((theirs, ours)) {
            peer.differs = Some((theirs, ours));
            self.report(Event::ConfigurationDiffers { peer: label, theirs, ours });
        }
    }

    /// A peer remembers a later start of this member than the disk did: go on above it.
    pub(super) fn raise_incarnation(&mut self, now: u64, id: u8, heard_of: u32) {
        let to = heard_of.saturating_add(1);
        self.incarnation = to;
        self.outputs.push_back(Output::RaiseIncarnation(to));
        let peer = self.label(id);
        self.report(Event::IncarnationRaised { peer, to });
        let sessions: Vec<Session> = self.links.keys().copied().collect();
        for session in sessions {
            self.close(now, session, CloseReason::Raised);
        }
        for peer in self.peers.values_mut() {
            peer.dial_at = now;
        }
        self.install();
    }

    fn synchronized(&mut self, now: u64, id: u8, records: u64) {
        let (peer, incarnation) = (self.label(id), self.watch.incarnation(id));
        if let Some(peer) = self.peers.get_mut(&id) {
            if !peer.is_disbelieved(now) {
                peer.backoff = nanos(BACKOFF_MIN);
                peer.complaint = None;
            }
            peer.was_synchronized = true;
        }
        self.report(Event::Synchronized { peer, incarnation, records });
    }

    /// Tells open sessions of a configuration that has changed, or that this member has become ready.
    pub(super) fn greet_all_again(&mut self) {
        let open: Vec<(Session, u8)> =
            self.links.iter().filter(|(_, l)| l.stage == Stage::Open).map(|(&s, l)| (s, l.peer)).collect();
        for (session, id) in open {
            self.greet_again(session, id);
        }
    }

    fn greet_again(&mut self, session: Session, id: u8) {
        let hello = self.hello(id);
        if let Some(link) = self.links.get_mut(&session) {
            let bytes = Frame::Hello(hello).encode(link.version);
            link.told_ready = self.ready;
            link.in_flight += bytes.len();
            self.outputs.push_back(Output::Send { session, bytes });
        }
    }

    fn hello(&self, to: u8) -> Hello {
        Hello {
            speaks: self.speaks,
            from: self.view.me,
            to,
            ready: self.ready,
            bulk: false,
            incarnation: self.incarnation,
            heard_of: self.watch.incarnation(to),
            generation: self.view.generation,
            hash: self.view.hash,
            cluster: self.view.cluster.clone(),
        }
    }
}
