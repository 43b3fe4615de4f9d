//! What is remembered of each connection.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How a connection behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Small requests at an interval.
    Chatty,
    /// One request at the start, another when woken, one at the end.
    Idle,
    /// Full-size segments to the server, acknowledged with a digest.
    Uploading,
    /// Connect, one request, close.
    Short,
}

/// Why a connection is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection within the load's patience.
    Handshake,
    /// A RST in the middle: a server that does not know the connection.
    Reset,
    /// No answer within the load's patience.
    Timeout,
    /// The server closed it.
    Closed,
    /// The answer is not what was asked for.
    WrongBytes,
    /// Another server answered than before.
    OtherServer,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "no handshake",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Closed => "closed by the server",
            Self::WrongBytes => "wrong bytes",
            Self::OtherServer => "another server answered",
        })
    }
}

/// A connection's record, shared between its task and those who watch.
#[derive(Debug)]
pub struct Record {
    /// Unique in its load.
    pub id: u64,
    /// How it behaves.
    pub kind: Kind,
    facts: Mutex<Facts>,
}

/// What is known of a connection so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The client's port; 0 before the handshake.
    pub port: u16,
    /// When the handshake was done.
    pub opened: Option<Instant>,
    /// How long the handshake took.
    pub handshake: Duration,
    /// The server that answers on it; 0 before the first answer.
    pub server: u32,
    /// Requests answered correctly.
    pub exchanges: u64,
    /// Bytes sent and confirmed, both directions.
    pub bytes: u64,
    /// The last progress, while an answer is outstanding.
    pub waiting_since: Option<Instant>,
    /// The longest time without progress while an answer was outstanding.
    pub longest_wait: Duration,
    /// When that wait began.
    pub longest_wait_from: Option<Instant>,
    /// Set once, when the connection broke.
    pub fault: Option<(Fault, Instant)>,
}

impl Record {
    pub(super) fn new(id: u64, kind: Kind) -> Self {
        Self { id, kind, facts: Mutex::default() }
    }

    /// A copy of what is known now; a wait that still lasts is counted.
    pub fn facts(&self) -> Facts {
        let mut facts = self.lock().clone();
        if facts.fault.is_none() {
            facts.note_wait(Instant::now());
        }
        facts
    }

    pub(super) fn opened(&self, port: u16, handshake: Duration) {
        let mut facts = self.lock();
        facts.port = port;
        facts.handshake = handshake;
        facts.opened = Some(Instant::now());
    }

    /// An answer is expected from now on.
    pub(super) fn waits(&self) {
        self.lock().waiting_since = Some(Instant::now());
    }

    /// Bytes moved while an answer is outstanding.
    pub(super) fn progressed(&self) {
        let mut facts = self.lock();
        let now = Instant::now();
        facts.note_wait(now);
        facts.waiting_since = Some(now);
    }

    /// The answer is complete and right.
    pub(super) fn answered(&self, bytes: u64) {
        let mut facts = self.lock();
        facts.note_wait(Instant::now());
        facts.waiting_since = None;
        facts.exchanges += 1;
        facts.bytes += bytes;
    }

    /// Notes who answered; false when it was somebody else before.
    pub(super) fn is_from(&self, server: u32) -> bool {
        let mut facts = self.lock();
        if facts.server == 0 {
            facts.server = server;
        }
        facts.server == server
    }

    pub(super) fn failed(&self, fault: Fault) {
        let mut facts = self.lock();
        let now = Instant::now();
        facts.note_wait(now);
        facts.fault.get_or_insert((fault, now));
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        // A panic elsewhere does not make these plain values wrong.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    fn note_wait(&mut self, now: Instant) {
        let Some(since) = self.waiting_since else { return };
        let wait = now - since;
        if wait > self.longest_wait {
            self.longest_wait = wait;
            self.longest_wait_from = Some(since);
        }
    }
}
