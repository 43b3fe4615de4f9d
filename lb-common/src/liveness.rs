//! Who is alive: the masks that the agent writes, the stamps that XDP writes, the probe on the wire.

use crate::{
    map_type,
    node::{BUDGET_CLASSES, Node},
    rank::{MEMBERS_MAX, opaque},
};

map_type! {
    /// What the agent renews all the time: its view of all members, and what may be recorded; the one element of `liveness`.
    pub struct Liveness: 56 {
        /// Members whose datapath answers.
        pub forwarding: u64,
        /// Members that may own new flows: forwarding, agent alive, ready.
        pub eligible: u64,
        /// Monotonic time until which the agent vouches for the masks.
        pub lease_until_ns: u64,
        /// Monotonic time until which records may be missing here: a packet that seems to belong to a flow that others know
        /// gets a second chance at another member.
        pub doubt_until_ns: u64,
        /// New entries and answers a CPU may make in a budget window, per class (`BUDGET_*`).
        pub budgets: [u32; BUDGET_CLASSES],
        /// Zero.
        pub padding: [u8; 4],
    }

    /// What XDP last heard from one member; an element of `heard`, indexed by id.
    ///
    /// Written field by field without a lock; a reader may see two probes mixed, which the next one corrects.
    pub struct Heard: 64 {
        /// When its last probe arrived: its agent is alive.
        pub probe_ns: u64,
        /// When its last echo arrived: its datapath is alive.
        pub echo_ns: u64,
        /// `Probe::counter` of that echo.
        pub echo_counter: u64,
        /// `Probe::sent_ns` of that echo, in this host's clock.
        pub echo_sent_ns: u64,
        /// Its view: members whose datapath answers.
        pub forwarding: u64,
        /// Its view: members that may own new flows.
        pub eligible: u64,
        /// `Probe::counter` of its last probe.
        pub probe_counter: u64,
        /// Its incarnation.
        pub incarnation: u32,
        /// `PROBE_*` bits of its last probe.
        pub flags: u8,
        /// Zero.
        pub padding: [u8; 3],
    }

    /// A probe or its echo: the payload of a UDP datagram between members, all integers big-endian.
    ///
    /// The receiver's XDP stamps `Heard`, turns the packet round with `kind` set to `PROBE_ECHO`, and sends it back.
    pub struct Probe: 64 {
        /// `PROBE_MAGIC`.
        pub magic: [u8; 4],
        /// `PROBE_VERSION`.
        pub version: u8,
        /// `PROBE_REQUEST` or `PROBE_ECHO`.
        pub kind: u8,
        /// Id of the member that made the request.
        pub from: u8,
        /// Id of the member that the request is for.
        pub to: u8,
        /// Incarnation of `from`.
        pub incarnation: [u8; 4],
        /// `PROBE_READY`, `PROBE_GOODBYE`.
        pub flags: u8,
        /// Zero.
        pub padding: [u8; 3],
        /// Rises with every request to `to`.
        pub counter: [u8; 8],
        /// Monotonic clock of `from` when it was sent; meaningless to anybody else.
        pub sent_ns: [u8; 8],
        /// The sender's view: members whose datapath answers.
        pub forwarding: [u8; 8],
        /// The sender's view: members that may own new flows.
        pub eligible: [u8; 8],
        /// Reserved for authentication; zero in version 1.
        pub tag: [u8; 8],
        /// Zero.
        pub reserved: [u8; 8],
    }
}

/// First bytes of a probe.
pub const PROBE_MAGIC: [u8; 4] = *b"TDMP";
/// The probe's version.
pub const PROBE_VERSION: u8 = 1;
/// Asks for an echo.
pub const PROBE_REQUEST: u8 = 1;
/// Answers a request.
pub const PROBE_ECHO: u8 = 2;
/// The sender has all records and may own new flows.
pub const PROBE_READY: u8 = 1;
/// The sender is about to stop.
pub const PROBE_GOODBYE: u8 = 2;
/// The sender's maps are new and its records have not arrived: it must not be given known flows.
pub const PROBE_EMPTY: u8 = 4;

impl Heard {
    /// When its last probe arrived; 0 when that said that its maps are empty.
    ///
    /// For a member without an agent, who knows of a peer's new start only from this: what the peer has not heard of
    /// yet must not be handed to it.
    #[inline(always)]
    pub const fn probe_with_records_ns(&self) -> u64 {
        self.probe_ns * (self.flags & PROBE_EMPTY == 0) as u64
    }
}

/// The configured members whose last probe arrived less than `Node::silence_ns` ago, as a mask.
///
/// Free of branches on what was heard, like `rank`.
#[inline(always)]
pub fn heard_lately(node: &Node, now_ns: u64, probe_heard_ns: impl Fn(u8) -> u64) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < MEMBERS_MAX {
        if i as u32 >= node.members {
            break;
        }
        let id = node.seeds[i].id;
        let silent_ns = now_ns.saturating_sub(probe_heard_ns(id as u8));
        let is_heard = opaque(u64::from(silent_ns < node.silence_ns));
        mask |= is_heard << (id.wrapping_sub(1) & 63);
        i += 1;
    }
    mask
}
