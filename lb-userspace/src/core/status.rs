//! A picture of the core for people and tests.

use super::{event::CloseReason, liveness::State};

/// What the core knows, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether this member may own new flows.
    pub ready: bool,
    /// This start of the agent.
    pub incarnation: u32,
    /// Members whose datapath answers.
    pub forwarding: u64,
    /// Members that may own new flows.
    pub eligible: u64,
    /// Which servers new flows go to, and what a change waits for.
    pub epoch: super::epochs::EpochStatus,
    /// How far a member that is draining is.
    pub drain: Option<super::takeover::DrainStatus>,
    /// Flows that were given other owners from here.
    pub handed_over: u64,
    /// Live records.
    pub records: usize,
    /// Records of flows that have ended.
    pub tombstones: usize,
    /// Entries of the flow maps that were damaged, and written anew.
    pub restored: u64,
    /// Buckets of records that were sent whole to a peer, because it held others.
    pub repaired: u64,
    /// Records that wait for a configuration that knows their backend.
    pub parked: usize,
    /// Records that were dropped because too many were parked.
    pub parked_dropped: u64,
    /// The peers, by id.
    pub peers: Vec<PeerStatus>,
}

/// What the core knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its id.
    pub id: u8,
    /// What is known of its datapath; it forwards when it is `Up`.
    pub datapath: State,
    /// Whether its agent lives.
    pub agent: bool,
    /// Whether it says that it is ready.
    pub ready: bool,
    /// Its latest incarnation known here, 0 for none.
    pub incarnation: u32,
    /// Whether a session is open.
    pub connected: bool,
    /// Whether its second one is, for bulk.
    pub bulk: bool,
    /// Why the last one ended, until all its records have arrived; that it was not believed, for a minute.
    pub complaint: Option<CloseReason>,
    /// Generation and hash of its configuration, if there is a session.
    pub configuration: Option<(u64, u64)>,
    /// Why it does not take over the configuration that runs here.
    pub refusal: Option<String>,
    /// Whether all records have been sent to it.
    pub snapshot_sent: bool,
    /// Whether all its records have arrived.
    pub snapshot_received: bool,
    /// Whether its configuration is ours.
    pub same_configuration: bool,
    /// Whether, since its snapshot, each bucket was equal once or came whole from it.
    pub agrees: bool,
    /// Flows that wait to be sent to it.
    pub queued: usize,
    /// How often more flows than may wait for it did: whole buckets were sent instead.
    pub overflows: u64,
    /// Frames of changes that it has not acknowledged.
    pub outstanding: u64,
}
