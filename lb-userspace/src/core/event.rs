//! What the core has to say to people: one line each.

use std::fmt;

use super::{authority::Absurdity, wire::WireError};

/// Something worth a line in the log. Peers are named as in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This member may own new flows.
    Ready {
        /// Records that it holds.
        records: usize,
        /// Peers whose records it has, 0 for a cold start.
        peers: usize,
    },
    /// A ready peer lives, but no session with it comes about.
    NotReady {
        /// The peer.
        peer: String,
    },
    /// A peer's datapath answers.
    PeerUp {
        /// The peer.
        peer: String,
    },
    /// A peer's datapath has stopped to answer.
    PeerDown {
        /// The peer.
        peer: String,
        /// Probes that it has not answered.
        misses: u32,
    },
    /// A peer has said goodbye.
    PeerLeft {
        /// The peer.
        peer: String,
    },
    /// A peer's agent is alive, or not any more.
    PeerAgent {
        /// The peer.
        peer: String,
        /// Which of both.
        alive: bool,
    },
    /// All records of a peer have arrived.
    Synchronized {
        /// The peer.
        peer: String,
        /// Its incarnation.
        incarnation: u32,
        /// Records in its snapshot.
        records: u64,
    },
    /// A session has ended, or none came about. Said once a reason until the peer is synchronized again.
    SessionEnded {
        /// The peer.
        peer: String,
        /// Why.
        reason: CloseReason,
    },
    /// A peer's configuration is not ours. Replication goes on.
    ConfigurationDiffers {
        /// The peer.
        peer: String,
        /// Its generation and hash.
        theirs: (u64, u64),
        /// Ours.
        ours: (u64, u64),
    },
    /// A peer has a later configuration, which is not taken over here; the one that is running stays.
    ConfigurationRefused {
        /// Its generation.
        generation: u64,
        /// Why not.
        why: String,
    },
    /// The same the other way round.
    PeerRefuses {
        /// The peer.
        peer: String,
        /// The configuration's generation.
        generation: u64,
        /// Why it does not take it over.
        why: String,
    },
    /// A peer knows of a later incarnation of this member than this one.
    IncarnationRaised {
        /// The peer.
        peer: String,
        /// The incarnation from now on.
        to: u32,
    },
    /// A configuration in which this member has another id; the one before stays.
    OtherMember {
        /// Its id.
        me: u8,
        /// The other one.
        other: u8,
    },
    /// More backends than slots; those left over get no flows.
    SlotsExhausted {
        /// Backends without a slot.
        backends: usize,
    },
    /// A record was parked, as the first one since none was.
    Parked {
        /// The peer that sent it.
        peer: String,
    },
    /// Records that were parked have found their backend.
    Unparked {
        /// How many.
        records: usize,
    },
    /// New flows go to other servers from now on.
    Epoch {
        /// Number of the epoch.
        number: u32,
        /// Members that have not acknowledged it, by name; empty if all have.
        missing: String,
    },
    /// What the cluster makes of its checks of a backend.
    Backend {
        /// Its service, by name.
        service: String,
        /// Its name.
        backend: String,
        /// Whether they fail.
        is_down: bool,
    },
    /// Flows of members that are gone, or of this one that is draining, have other owners now.
    HandedOver {
        /// How many.
        flows: u64,
    },
    /// This member is draining, and no flow names it any more.
    Drained,
    /// Whether this member has the set of servers that is in force.
    Current {
        /// Which of both.
        is_current: bool,
    },
    /// More flows waited for a peer than may. Said the first, second, fourth time, and so on.
    Overflow {
        /// The peer.
        peer: String,
        /// How many may wait.
        flows: usize,
        /// How often it has happened.
        times: u64,
    },
    /// As many flows as the table holds; further ones of peers are not kept here.
    TableFull {
        /// Its size.
        flows: usize,
    },
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// What it sent is not the protocol.
    #[error("protocol violated: {0}")]
    Wire(#[from] WireError),
    /// A frame that has no place there.
    #[error("protocol violated: {0}")]
    Unexpected(&'static str),
    /// It sent a record that cannot be.
    #[error("it is not believed: {0}")]
    Disbelieved(#[from] Absurdity),
    /// It belongs to another cluster.
    #[error("it belongs to another cluster")]
    WrongCluster,
    /// It is not the member that has its address, or takes us for another.
    #[error("it says it is member {from}, speaking to member {to}")]
    WrongMember {
        /// What it says it is.
        from: u8,
        /// Whom it believes to speak to.
        to: u8,
    },
    /// A later start of its agent is known.
    #[error("it is incarnation {said}, but {known} is known")]
    Stale {
        /// What it says it is.
        said: u32,
        /// The latest that is known.
        known: u32,
    },
    /// It claims to know an incarnation of this member that cannot be.
    #[error("it says this member was incarnation {heard_of} once, and it is {is}")]
    Absurd {
        /// What it claims.
        heard_of: u32,
        /// The incarnation of this member.
        is: u32,
    },
    /// This member goes on as a later incarnation.
    #[error("this member goes on as a later incarnation")]
    Raised,
    /// A newer session with the same peer.
    #[error("a newer session took its place")]
    Replaced,
    /// It reads too slowly, and has no digests.
    #[error("more than {0} flows waited for it; a snapshot will follow")]
    Overflow(usize),
    /// It says nothing.
    #[error("silent for {0} s")]
    Silent(u64),
    /// The connection broke.
    #[error("the connection ended")]
    Ended,
    /// It is no longer configured.
    #[error("it is no longer a member")]
    Removed,
    /// It has said goodbye.
    #[error("it has stopped")]
    Left,
    /// This member stops.
    #[error("this member stops")]
    Stopping,
}

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the record.
    Info,
    /// Worth waking someone.
    Warn,
}

impl Event {
    /// How loud it is.
    pub fn level(&self) -> Level {
        match self {
            Self::Ready { .. }
            | Self::PeerUp { .. }
            | Self::PeerLeft { .. }
            | Self::PeerAgent { alive: true, .. }
            | Self::Synchronized { .. }
            | Self::Parked { .. }
            | Self::Unparked { .. }
            | Self::Backend { is_down: false, .. }
            | Self::HandedOver { .. }
            | Self::Drained
            | Self::Current { is_current: true } => Level::Info,
            Self::Epoch { missing, .. } if missing.is_empty() => Level::Info,
            Self::SessionEnded { reason, .. } => reason.level(),
            Self::NotReady { .. }
            | Self::PeerDown { .. }
            | Self::PeerAgent { alive: false, .. }
            | Self::ConfigurationDiffers { .. }
            | Self::ConfigurationRefused { .. }
            | Self::PeerRefuses { .. }
            | Self::IncarnationRaised { .. }
            | Self::OtherMember { .. }
            | Self::SlotsExhausted { .. }
            | Self::Epoch { .. }
            | Self::Backend { is_down: true, .. }
            | Self::Current { is_current: false }
            | Self::Overflow { .. }
            | Self::TableFull { .. } => Level::Warn,
        }
    }
}

impl CloseReason {
    const fn level(&self) -> Level {
        match self {
            Self::Raised | Self::Replaced | Self::Ended | Self::Removed | Self::Left | Self::Stopping => Level::Info,
            Self::Wire(_)
            | Self::Unexpected(_)
            | Self::Disbelieved(_)
            | Self::WrongCluster
            | Self::WrongMember { .. }
            | Self::Stale { .. }
            | Self::Absurd { .. }
            | Self::Overflow(_)
            | Self::Silent(_) => Level::Warn,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { records, peers: 0 } => write!(f, "ready: cold start, no peer is, {records} records"),
            Self::Ready { records, peers } => write!(f, "ready: {records} records, synchronized with {peers} peers"),
            Self::NotReady { peer } => write!(f, "not ready: {peer} lives and is ready, but its records do not come"),
            Self::PeerUp { peer } => write!(f, "{peer}: its datapath answers"),
            Self::PeerDown { peer, misses } => write!(f, "{peer}: its datapath is dead, {misses} probes unanswered"),
            Self::PeerLeft { peer } => write!(f, "{peer}: has said goodbye"),
            Self::PeerAgent { peer, alive: true } => write!(f, "{peer}: its agent is alive"),
            Self::PeerAgent { peer, alive: false } => write!(f, "{peer}: its agent is dead, no probe comes in"),
            Self::Synchronized { peer, incarnation, records } => {
                write!(f, "{peer}: synchronized, incarnation {incarnation}, {records} records")
            }
            Self::SessionEnded { peer, reason } => write!(f, "{peer}: no session: {reason}"),
            Self::ConfigurationDiffers { peer, theirs, ours } => write!(
                f,
                "{peer}: another configuration, generation {} hash {:016x}, here generation {} hash {:016x}",
                theirs.0, theirs.1, ours.0, ours.1
            ),
            Self::ConfigurationRefused { generation, why } => {
                write!(
                    f,
                    "generation {generation} of the configuration is not taken over, the one that runs stays: {why}"
                )
            }
            Self::PeerRefuses { peer, generation, why } => {
                write!(f, "{peer}: does not take over generation {generation} of the configuration: {why}")
            }
            Self::IncarnationRaised { peer, to } => {
                write!(f, "{peer}: knows a later incarnation of this member, going on as {to}")
            }
            Self::OtherMember { me, other } => {
                write!(
                    f,
                    "the new configuration makes member {me} member {other}; that needs a restart, nothing changed"
                )
            }
            Self::SlotsExhausted { backends } => write!(f, "no slots left for {backends} backends, they get no flows"),
            Self::Parked { peer } => {
                write!(f, "{peer}: sends flows of a backend that is not configured here, they are parked")
            }
            Self::Unparked { records } => write!(f, "{records} parked records have found their backend"),
            Self::Epoch { number, missing } if missing.is_empty() => {
                write!(f, "epoch {number}: new flows go to the servers of the configuration")
            }
            Self::Epoch { number, missing } => {
                write!(f, "epoch {number}, not acknowledged by {missing}: without them new flows go to other servers")
            }
            Self::Backend { service, backend, is_down: true } => {
                write!(f, "{service}: {backend} is down: most members' checks fail, it gets no new flows")
            }
            Self::Backend { service, backend, is_down: false } => write!(f, "{service}: {backend} is up again"),
            Self::HandedOver { flows } => write!(f, "{flows} flows have other owners now, those of before are gone"),
            Self::Drained => write!(f, "drained: no flow names this member any more, it can be stopped"),
            Self::Current { is_current: true } => write!(f, "has the servers of the epoch in force, owns new flows"),
            Self::Current { is_current: false } => write!(
                f,
                "does not have the servers of the epoch in force, or hears of none; others own new flows until it does"
            ),
            Self::Overflow { peer, flows, times } => {
                write!(
                    f,
                    "{peer}: more than {flows} flows waited for it, for the {times}. time; it gets their buckets whole"
                )
            }
            Self::TableFull { flows } => write!(f, "flow table full at {flows} flows, those of peers are not kept"),
        }
    }
}
