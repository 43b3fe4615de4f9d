//! Sessions: who connects, who is believed, and when a session ends.
//!
//! ```text
//!   Connected --> Greeting --Hello--> Open --> gone
//!                    |                  |
//!                    +--- anything else, a refusal, silence ---> gone
//! ```
//!
//! The member with the lower id dials. Both say `Hello` at once, then each sends its snapshot and goes on with deltas.
//! The newest session with a peer replaces an older one; an earlier incarnation is refused and told so by our `Hello`.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    time::Duration,
};

use super::{
    Core, Output, Session,
    event::{CloseReason, Event},
    liveness::State,
    wire::{Decoder, Frame, HELLO_VERSION, Hello, VERSION},
};

/// Without anything to say, a session says this often that it lives.
const KEEPALIVE: Duration = Duration::from_millis(500);
/// Six keepalives: a session that is silent for longer is over.
const SILENCE: Duration = Duration::from_secs(3);
/// Sessions with one peer that have not said `Hello`, before the oldest is closed.
const GREETING_MAX: usize = 4;
/// First pause before dialling again.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause before dialling again: a second is what a returning member may wait for its snapshot.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What a session has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Our `Hello` is out, theirs is not in.
    Greeting,
    /// Records flow.
    Open,
}

/// A connection with a peer.
pub(crate) struct Link {
    pub(crate) peer: u8,
    pub(crate) stage: Stage,
    dialled: bool,
    decoder: Decoder,
    heard_at: u64,
    said_at: u64,
    /// Bytes handed out and not yet drained.
    pub(crate) in_flight: usize,
    /// The next row of the snapshot; `None` when it is sent, or not begun.
    pub(crate) cursor: Option<u32>,
    /// Records of the snapshot sent so far.
    pub(crate) snapshot_sent: u64,
    /// Records of the peer's snapshot received so far.
    snapshot_heard: u64,
    /// Whether the peer's snapshot is complete.
    pub(crate) is_synchronized: bool,
    /// Whether the peer said in its `Hello` that it is ready.
    pub(crate) said_ready: bool,
    /// Generation and hash of the peer's configuration; zeros before its `Hello`.
    pub(crate) configuration: (u64, u64),
    /// Rows that the peer owns.
    pub(crate) urgent: VecDeque<u32>,
    /// Other rows.
    pub(crate) lazy: VecDeque<u32>,
    /// When the first of `lazy` came in.
    pub(crate) lazy_since: u64,
}

/// What is remembered of a peer between sessions.
pub(crate) struct Peer {
    pub(crate) open: Option<Session>,
    dialling: bool,
    dial_at: u64,
    backoff: u64,
    /// The last reason that was reported, until the peer is synchronized.
    complaint: Option<CloseReason>,
    /// The two configurations that were last reported as different.
    differs: Option<((u64, u64), (u64, u64))>,
    /// When its datapath last came or went.
    pub(crate) moved_at: u64,
}

impl Peer {
    fn new(now: u64) -> Self {
        Self {
            open: None,
            dialling: false,
            dial_at: now,
            backoff: nanos(BACKOFF_MIN),
            complaint: None,
            differs: None,
            moved_at: now,
        }
    }

    fn back_off(&mut self, now: u64) {
        self.dialling = false;
        self.dial_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(nanos(BACKOFF_MAX));
    }
}

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
        self.greet_again();
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
        self.links.insert(session, Link::new(now, id, dialled));
        let hello = self.hello(id);
        self.send(now, session, Frame::Hello(hello).encode());
    }

    pub(crate) fn dial_failed(&mut self, now: u64, peer: u8) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.back_off(now);
        }
    }

    /// The peer's datapath answers again: there is no reason to wait.
    pub(crate) fn dial_at_once(&mut self, now: u64, id: u8) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.dial_at = now;
            peer.backoff = nanos(BACKOFF_MIN);
        }
        // The connection may have broken without a word while the peer was away.
        let quiet: Vec<Session> = self
            .sessions_with(id)
            .filter(|s| self.links.get(s).is_some_and(|l| now.saturating_sub(l.heard_at) > 2 * nanos(KEEPALIVE)))
            .collect();
        for session in quiet {
            self.close(now, session, CloseReason::Silent(nanos(KEEPALIVE) * 2 / 1_000_000_000));
        }
    }

    pub(crate) fn received(&mut self, now: u64, session: Session, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&session) else { return };
        link.heard_at = now;
        let mut decoder = mem::take(&mut link.decoder);
        decoder.push(bytes);
        loop {
            let said = match decoder.next_frame() {
                Ok(Some(frame)) => self.frame(now, session, frame),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            if let Err(reason) = said {
                self.close(now, session, reason);
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
        match (link.stage, frame) {
            (Stage::Greeting, Frame::Hello(hello)) => self.greeted(now, session, &hello),
            (
                Stage::Greeting,
                Frame::Snapshot(_) | Frame::SnapshotEnd { .. } | Frame::Delta(_) | Frame::Keepalive | Frame::Goodbye,
            ) => Err(CloseReason::Unexpected("something before hello")),
            (Stage::Open, Frame::Hello(hello)) => self.greeted_again(peer, session, &hello),
            (Stage::Open, Frame::Snapshot(items)) => {
                if link.is_synchronized {
                    return Err(CloseReason::Unexpected("snapshot after its end"));
                }
                link.snapshot_heard += items.len() as u64;
                for item in &items {
                    // An end that nobody asked about: kept again at every reconnection, it would be for ever.
                    if !item.record.is_tombstone() || self.record(&item.key).is_some() {
                        self.apply(now, peer, item);
                    }
                }
                Ok(())
            }
            (Stage::Open, Frame::SnapshotEnd { records }) => {
                if link.is_synchronized || link.snapshot_heard != records {
                    return Err(CloseReason::Unexpected("end of a snapshot that was not sent"));
                }
                link.is_synchronized = true;
                self.synchronized(peer, records);
                Ok(())
            }
            (Stage::Open, Frame::Delta(items)) => {
                items.iter().for_each(|item| self.apply(now, peer, item));
                Ok(())
            }
            (Stage::Open, Frame::Keepalive) => Ok(()),
            (Stage::Open, Frame::Goodbye) => {
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
        if hello.heard_of > self.incarnation {
            self.raise_incarnation(now, id, hello.heard_of);
            return Ok(());
        }
        let known = self.watch.incarnation(id);
        if hello.incarnation < known {
            return Err(CloseReason::Stale { said: hello.incarnation, known });
        }
        if let Some(older) = self.peers.get(&id).and_then(|peer| peer.open).filter(|&older| older != session) {
            self.close(now, older, CloseReason::Replaced);
        }
        self.watch.learn_incarnation(id, hello.incarnation);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.open = Some(session);
        }
        if let Some(link) = self.links.get_mut(&session) {
            link.stage = Stage::Open;
            link.said_ready = hello.ready;
            link.cursor = Some(0);
            link.configuration = (hello.generation, hello.hash);
        }
        self.compare_configuration(id);
        self.pump(now, session);
        Ok(())
    }

    /// A peer that has a new configuration says `Hello` again; nothing else in it may have changed.
    fn greeted_again(&mut self, id: u8, session: Session, hello: &Hello) -> Result<(), CloseReason> {
        let is_same = hello.cluster == self.view.cluster
            && (hello.from, hello.to) == (id, self.view.me)
            && hello.incarnation == self.watch.incarnation(id);
        if !is_same {
            return Err(CloseReason::Unexpected("second hello of somebody else"));
        }
        if let Some(link) = self.links.get_mut(&session) {
            link.configuration = (hello.generation, hello.hash);
        }
        self.compare_configuration(id);
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
    fn raise_incarnation(&mut self, now: u64, id: u8, heard_of: u32) {
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

    fn synchronized(&mut self, id: u8, records: u64) {
        let (peer, incarnation) = (self.label(id), self.watch.incarnation(id));
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.backoff = nanos(BACKOFF_MIN);
            peer.complaint = None;
        }
        self.report(Event::Synchronized { peer, incarnation, records });
    }

    /// Tells open sessions of a configuration that has changed.
    fn greet_again(&mut self) {
        let open: Vec<(Session, u8)> =
            self.links.iter().filter(|(_, l)| l.stage == Stage::Open).map(|(&s, l)| (s, l.peer)).collect();
        for (session, id) in open {
            let hello = Frame::Hello(self.hello(id)).encode();
            if let Some(link) = self.links.get_mut(&session) {
                link.in_flight += hello.len();
                self.outputs.push_back(Output::Send { session, bytes: hello });
            }
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
            .filter(|(_, link)| link.stage == Stage::Open && now.saturating_sub(link.said_at) >= nanos(KEEPALIVE))
            .map(|(&session, _)| session)
            .collect();
        for session in quiet {
            self.send(now, session, Frame::Keepalive.encode());
        }
        if self.stopping.is_some() {
            return;
        }
        let connecting: BTreeMap<u8, ()> = self.links.values().filter(|l| l.dialled).map(|l| (l.peer, ())).collect();
        for (&id, peer) in self.peers.range_mut(self.view.me + 1..) {
            if peer.open.is_none() && !peer.dialling && now >= peer.dial_at && !connecting.contains_key(&id) {
                peer.dialling = true;
                self.outputs.push_back(Output::Dial { peer: id });
            }
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
        self.forget_queue(&link);
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
        if peer.complaint != Some(reason) {
            peer.complaint = Some(reason);
            self.report(Event::SessionEnded { peer: label, reason });
        }
    }

    fn hello(&self, to: u8) -> Hello {
        Hello {
            speaks: VERSION.max(HELLO_VERSION),
            from: self.view.me,
            to,
            ready: self.ready,
            incarnation: self.incarnation,
            heard_of: self.watch.incarnation(to),
            generation: self.view.generation,
            hash: self.view.hash,
            cluster: self.view.cluster.clone(),
        }
    }

    fn sessions_with(&self, id: u8) -> impl Iterator<Item = Session> {
        self.links.iter().filter(move |(_, link)| link.peer == id).map(|(&session, _)| session)
    }
}

impl Link {
    fn new(now: u64, peer: u8, dialled: bool) -> Self {
        Self {
            peer,
            stage: Stage::Greeting,
            dialled,
            decoder: Decoder::default(),
            heard_at: now,
            said_at: now,
            in_flight: 0,
            cursor: None,
            snapshot_sent: 0,
            snapshot_heard: 0,
            is_synchronized: false,
            said_ready: false,
            configuration: (0, 0),
            urgent: VecDeque::new(),
            lazy: VecDeque::new(),
            lazy_since: 0,
        }
    }
}

pub(crate) const fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
