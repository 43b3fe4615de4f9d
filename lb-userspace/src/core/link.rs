//! A connection with a peer, and what is remembered of the peer between two of them.

use std::{collections::VecDeque, time::Duration};

use super::{
    Session,
    acknowledging::Acknowledgements,
    bulk::Underway,
    conditions::Hearsay,
    digests::Comparison,
    distribution::Hand,
    event::CloseReason,
    wire::{Decoder, HELLO_VERSION, Standing},
};

/// First pause before dialling again.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause before dialling again: a second is what a returning member may wait for its snapshot.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// For how long it is remembered that a peer was not believed: its sessions may last until it says it again.
const DISBELIEF: Duration = Duration::from_secs(60);

/// What a session has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Our `Hello` is out, theirs is not in.
    Greeting,
    /// Records flow.
    Open,
    /// Bulk flows; the pair has another session for all else.
    Bulk,
}

/// How far a peer is with what was known before the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Introduction {
    /// Its digests will show what it lacks.
    Asking,
    /// All rows, from this one on.
    Rows(u32),
    /// The buckets that differ.
    Buckets,
    /// It knows, or there was nothing to say yet.
    Over,
}

/// A connection with a peer.
pub(crate) struct Link {
    pub(crate) peer: u8,
    pub(crate) stage: Stage,
    pub(crate) dialled: bool,
    /// Whether it is a pair's second one: known from the beginning to who dials it, from its `Hello` to the other.
    pub(crate) is_bulk: bool,
    /// The open session for bulk that belongs to this one.
    pub(crate) bulk: Option<Session>,
    /// In a session for bulk, what is on its way.
    pub(crate) underway: Underway,
    pub(crate) decoder: Decoder,
    /// The version that is spoken, from the peer's `Hello` on.
    pub(crate) version: u8,
    pub(crate) heard_at: u64,
    pub(crate) said_at: u64,
    /// Bytes handed out and not yet drained.
    pub(crate) in_flight: usize,
    /// How far the peer is with what was known before this session.
    pub(crate) introduction: Introduction,
    /// When that was last complete.
    pub(crate) snapshot_at: u64,
    /// When another one is due.
    pub(crate) snapshot_again_at: Option<u64>,
    /// Records of the current snapshot sent so far.
    pub(crate) snapshot_sent: u64,
    /// Records of the peer's current snapshot received so far; since version 3, of all its snapshots.
    pub(crate) snapshot_heard: u64,
    /// Whether a snapshot of the peer is complete.
    pub(crate) is_synchronized: bool,
    /// Whether our last `Hello` said that we are ready.
    pub(crate) told_ready: bool,
    /// Whether the peer said in its `Hello` that it is ready.
    pub(crate) said_ready: bool,
    /// Generation and hash of the peer's configuration; zeros before its `Hello`.
    pub(crate) configuration: (u64, u64),
    /// What both sides have told and applied.
    pub(crate) acknowledgements: Acknowledgements,
    /// How both sides compare.
    pub(crate) comparison: Comparison,
    /// What the peer last said of epochs.
    pub(crate) standing: Option<Standing>,
    /// Whether it is to be told how this member stands, behind what waits for it.
    pub(crate) owes_standing: bool,
    /// What is said of backends.
    pub(crate) hearsay: Hearsay,
    /// What is asked and said of configurations.
    pub(crate) hand: Hand,
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
    pub(crate) dialling: bool,
    pub(crate) dial_at: u64,
    pub(crate) backoff: u64,
    /// The last reason that was reported, until the peer is synchronized and believed.
    pub(crate) complaint: Option<CloseReason>,
    /// When the last session ended.
    pub(crate) ended_at: u64,
    /// The two configurations that were last reported as different.
    pub(crate) differs: Option<((u64, u64), (u64, u64))>,
    /// Whether a snapshot of it has ever been complete.
    pub(crate) was_synchronized: bool,
    /// When its datapath last came or went.
    pub(crate) moved_at: u64,
    /// How often what waited for it was dropped.
    pub(crate) overflows: u64,
}

impl Peer {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            open: None,
            dialling: false,
            dial_at: now,
            backoff: nanos(BACKOFF_MIN),
            complaint: None,
            ended_at: 0,
            differs: None,
            was_synchronized: false,
            moved_at: now,
            overflows: 0,
        }
    }

    /// Whether it has said what cannot be, not long ago.
    pub(crate) fn is_disbelieved(&self, now: u64) -> bool {
        let is_recent = now.saturating_sub(self.ended_at) < nanos(DISBELIEF);
        matches!(self.complaint, Some(CloseReason::Disbelieved(_))) && is_recent
    }

    /// Waits longer each time.
    pub(crate) fn back_off(&mut self, now: u64) {
        self.dialling = false;
        self.dial_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(nanos(BACKOFF_MAX));
    }
}

impl Link {
    /// Begins to tell all that is known, also what was told before: at once to a peer that has no digests, else what it
    /// lacks by its own.
    pub(crate) fn introduce(&mut self, now: u64) {
        (self.snapshot_sent, self.snapshot_again_at) = (0, None);
        let compares = self.compares();
        self.introduction = if compares { Introduction::Asking } else { Introduction::Rows(0) };
        self.comparison.due = compares.then_some(now);
    }

    pub(crate) fn new(now: u64, peer: u8, dialled: bool) -> Self {
        Self {
            peer,
            stage: Stage::Greeting,
            dialled,
            is_bulk: false,
            bulk: None,
            underway: Underway::default(),
            decoder: Decoder::default(),
            version: HELLO_VERSION,
            heard_at: now,
            said_at: now,
            in_flight: 0,
            introduction: Introduction::Over,
            snapshot_at: now,
            snapshot_again_at: None,
            snapshot_sent: 0,
            snapshot_heard: 0,
            is_synchronized: false,
            told_ready: false,
            said_ready: false,
            configuration: (0, 0),
            acknowledgements: Acknowledgements::default(),
            comparison: Comparison::new(),
            standing: None,
            owes_standing: false,
            hearsay: Hearsay::default(),
            hand: Hand::default(),
            urgent: VecDeque::new(),
            lazy: VecDeque::new(),
            lazy_since: 0,
        }
    }
}

pub(crate) const fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
