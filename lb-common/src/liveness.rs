//! Who is alive: the masks that the agent writes, the stamps that XDP writes, the probe on the wire.

use core::mem::offset_of;

use crate::{
    bytes::load64,
    hash::{HashKey, siphash24},
    map_type,
    node::{BUDGET_CLASSES, Node},
    rank::{MEMBERS_MAX, opaque},
    reason::Reason,
};

map_type! {
    /// What the agent renews all the time: its view of all members, and what may be recorded; the one element of `liveness`.
    pub struct Liveness: 80 {
        /// Members whose datapath answers.
        pub forwarding: u64,
        /// Members that may own new flows: forwarding, agent alive, ready.
        pub eligible: u64,
        /// Monotonic time until which the agent vouches for the masks.
        pub lease_until_ns: u64,
        /// Monotonic time until which records may be missing here: a packet that seems to belong to a flow that others know
        /// gets a second chance at another member.
        pub doubt_until_ns: u64,
        /// Monotonic time until which packets of unknown flows that did not begin just now go by the rings of before the
        /// last change of servers.
        pub grace_until_ns: u64,
        /// New entries and answers a CPU may make in a budget window, per class (`BUDGET_*`).
        pub budgets: [u32; BUDGET_CLASSES],
        /// Number of the epoch in force; 0 for none yet. This and the rest is for people.
        pub epoch: u32,
        /// Members that a change of servers waits for.
        pub awaited: u64,
        /// Flows that still name this member while it is draining; `LEFT_UNKNOWN` until they have been counted.
        pub left: u32,
        /// `LIVENESS_*` bits.
        pub flags: u32,
    }

    /// What XDP last heard from one member; an element of `heard`, indexed by id.
    ///
    /// Written field by field without a lock; a reader may see two probes mixed, which the next one corrects.
    pub struct Heard: 72 {
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
        /// Its nonce, as its last echo told.
        pub nonce: u64,
        /// Its incarnation.
        pub incarnation: u32,
        /// `PROBE_*` bits of its last probe.
        pub flags: u8,
        /// Which of the pair's keys it used last.
        pub key: u8,
        /// Zero.
        pub padding: [u8; 2],
    }

    /// A probe or its echo: the payload of a UDP datagram between members, all integers big-endian.
    ///
    /// The receiver's XDP judges it, stamps `Heard`, turns the packet round with `kind` set to `PROBE_ECHO`, its own nonce in
    /// `answers` and a new tag, and sends it back.
    pub struct Probe: 72 {
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
        /// Random, of this start of `from`'s agent.
        pub nonce: [u8; 8],
        /// The nonce of `to`: in a request as its last echo told it, zeros before one came; in an echo its own.
        pub answers: [u8; 8],
        /// SipHash-2-4 of all that is before, under a key of the pair.
        pub tag: [u8; 8],
    }
}

/// A change of servers is in hand here, and not yet in force.
pub const LIVENESS_PENDING: u32 = 1;
/// The cluster's servers are others than this member's: it owns no new flows.
pub const LIVENESS_BEHIND: u32 = 2;
/// This member gives its flows to others and owns no new ones.
pub const LIVENESS_DRAINING: u32 = 4;
/// A peer runs another configuration than this member.
pub const LIVENESS_DIFFERS: u32 = 8;
/// Bits of `Liveness::flags` from here on: eight with the id of the member that said what cannot be, not long ago (0 for none), and
/// eight with the reason for which it was not believed.
pub const LIVENESS_DISBELIEVED: u32 = 8;
/// In `Liveness::left`.
pub const LEFT_UNKNOWN: u32 = u32::MAX;

/// First bytes of a probe.
pub const PROBE_MAGIC: [u8; 4] = *b"TDMP";
/// The probe's version.
pub const PROBE_VERSION: u8 = 2;
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

/// What a probe is worth, and which of the pair's keys it was tagged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// `DropProbeForged`, `DropProbeOld`, `ProbeIntroduced`, `ProbeReflected` or `EchoTaken`.
    pub reason: Reason,
    /// Index of the key.
    pub key: u8,
}

/// Judges a probe or an echo of the pair of `node` and the member at index `peer` (its id less one), of whom `heard` was
/// heard before. See `docs/design/0009-identity.md`.
///
/// Both keys are always tried: what comes does not decide what it costs.
#[inline(always)]
pub fn judge(probe: &Probe, node: &Node, peer: usize, heard: &Heard) -> Judgement {
    let [first, second] = &node.probe_keys[peer & (MEMBERS_MAX - 1)];
    let tag = load64::<{ offset_of!(Probe, tag) }, _>(probe);
    let is_of = |key: &HashKey| opaque(u64::from(probe.tag_under(key) == tag) & u64::from(key[0] | key[1] != 0));
    let (is_first, is_second) = (is_of(first), is_of(second));
    let key = (is_second & !is_first) as u8;
    let reason = if is_first | is_second == 0 {
        Reason::DropProbeForged
    } else if probe.kind == PROBE_ECHO {
        let is_ours = u64::from_be_bytes(probe.nonce) == node.probe_nonce;
        let is_new = u64::from_be_bytes(probe.counter) > heard.echo_counter;
        if is_ours && is_new { Reason::EchoTaken } else { Reason::DropProbeOld }
    } else {
        let incarnation = u32::from_be_bytes(probe.incarnation);
        let is_later_start = incarnation > heard.incarnation;
        let is_later = incarnation == heard.incarnation && u64::from_be_bytes(probe.counter) > heard.probe_counter;
        if !is_later_start && !is_later {
            Reason::DropProbeOld
        } else if u64::from_be_bytes(probe.answers) != node.probe_nonce {
            Reason::ProbeIntroduced
        } else {
            Reason::ProbeReflected
        }
    };
    Judgement { reason, key }
}

impl Probe {
    /// The tag that `key` gives it, as it lies in memory.
    #[inline(always)]
    pub fn tag_under(&self, key: &HashKey) -> u64 {
        let words = [
            load64::<0, _>(self),
            load64::<8, _>(self),
            load64::<16, _>(self),
            load64::<24, _>(self),
            load64::<32, _>(self),
            load64::<40, _>(self),
            load64::<48, _>(self),
            load64::<56, _>(self),
        ];
        siphash24(key, &words.map(u64::from_le)).to_le()
    }

    /// The same, tagged.
    pub fn tagged(self, key: &HashKey) -> Self {
        Self { tag: self.tag_under(key).to_ne_bytes(), ..self }
    }
}

impl Heard {
    /// Takes a probe or an echo from the member `from` in as XDP does: what became of it, and the echo to send.
    pub fn take(&mut self, node: &Node, from: u8, probe: &Probe, now_ns: u64) -> (Reason, Option<Probe>) {
        let peer = usize::from(from.wrapping_sub(1));
        let Judgement { reason, key } = judge(probe, node, peer, self);
        match reason {
            Reason::EchoTaken => {
                self.echo_counter = u64::from_be_bytes(probe.counter);
                self.echo_sent_ns = u64::from_be_bytes(probe.sent_ns);
                (self.echo_ns, self.nonce, self.key) = (now_ns, u64::from_be_bytes(probe.answers), key);
            }
            Reason::ProbeReflected => {
                self.forwarding = u64::from_be_bytes(probe.forwarding);
                self.eligible = u64::from_be_bytes(probe.eligible);
                self.probe_counter = u64::from_be_bytes(probe.counter);
                self.incarnation = u32::from_be_bytes(probe.incarnation);
                (self.probe_ns, self.flags, self.key) = (now_ns, probe.flags, key);
            }
            _ => {}
        }
        let is_answered = matches!(reason, Reason::ProbeReflected | Reason::ProbeIntroduced);
        let echo = Probe { kind: PROBE_ECHO, answers: node.probe_nonce.to_be_bytes(), ..*probe };
        let key = &node.probe_keys[peer % MEMBERS_MAX][usize::from(key)];
        (reason, is_answered.then(|| echo.tagged(key)))
    }

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
