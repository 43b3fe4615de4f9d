//! What can happen to a packet: one reason per outcome, one counter per reason.

use crate::{map_type, rank::opaque};

map_type! {
    /// Packets and bytes on one CPU; an element of `counters` (by reason), `backend_count` (delivered, by slot) and
    /// `member_count` (handed off, by id).
    pub struct Counter: 16 {
        /// Packets.
        pub packets: u64,
        /// Bytes, from the link-layer header on without its 14 bytes.
        pub bytes: u64,
    }

    /// What became of a service's packets on one CPU; an element of `service_count`, indexed by `Service::ring`.
    ///
    /// Together they are what the service received here; ICMP errors and fragments count with the service they belong to.
    pub struct ServiceCounters: 64 {
        /// Delivered to a backend.
        pub delivered: Counter,
        /// Handed off to a member.
        pub handed_off: Counter,
        /// Answered from here: packets that were too big.
        pub answered: Counter,
        /// Dropped.
        pub dropped: Counter,
    }
}

/// What the datapath did with the packet; each maps to one XDP action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Left to the host's stack, untouched.
    Pass,
    /// Encapsulated to a backend.
    Deliver,
    /// Encapsulated to the member that owns the flow.
    HandOff,
    /// Answered from XDP.
    Answer,
    /// Taken by XDP; for nobody else.
    Consume,
    /// Dropped.
    Drop,
}

macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident = $index:literal, $action:ident, $text:literal;)*) => {
        /// Why a packet met its end here; the discriminant is the index of its counter.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$meta])* $name = $index,)* }

        impl Reason {
            /// Every reason, in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason at an index that `ALL` holds; any other stands for "malformed".
            #[inline(always)]
            pub fn from_index(index: u8) -> Self {
                BY_INDEX[index as usize % INDICES]
            }

            /// The stable name, as `tandem status` and the metrics print it.
            #[inline(always)]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What is done with the packet.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$name => Action::$action,)* }
            }

            /// The same from a table, for a reason that the compiler does not know: the verifier would follow each arm of
            /// the match with all that comes after it.
            #[inline(always)]
            pub fn action_by_table(self) -> Action {
                ACTIONS[opaque(self as u64) as usize % INDICES]
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6.
    NotIp = 0, Pass, "not_ip";
    /// Not for a VIP, not a tunnel or probe to this member.
    NotOurs = 1, Pass, "not_ours";
    /// For a VIP, but for no service on it.
    NoService = 2, Pass, "no_service";
    /// For a VIP, but of a protocol that is not balanced.
    NotBalanced = 3, Pass, "not_balanced";
    /// The agent has not configured the datapath.
    Unconfigured = 4, Pass, "unconfigured";
    /// Neighbour discovery for a VIP: the host's to answer, whatever the policy.
    NeighbourDiscovery = 5, Pass, "neighbour_discovery";

    /// The flow is known here.
    DeliverKnown = 8, Deliver, "deliver_known";
    /// A flow became known with this packet.
    DeliverNew = 9, Deliver, "deliver_new";
    /// Not known (yet): delivered by the stateless answer.
    DeliverStateless = 10, Deliver, "deliver_stateless";
    /// Worth an entry, but the budget of new flows is used up: unprotected.
    DeliverOverBudget = 11, Deliver, "deliver_over_budget";
    /// Worth an entry, but the flow table is full: unprotected.
    DeliverTableFull = 12, Deliver, "deliver_table_full";
    /// An ICMP error, to the backend of the flow that it quotes.
    DeliverQuote = 13, Deliver, "deliver_quote";
    /// A peer that did not know the flow asked this member to deliver it (law 1).
    DeliverSecondChance = 14, Deliver, "deliver_second_chance";

    /// A later fragment whose first one has not come: by way of another member, which takes as long as one hand-off more.
    HandOffFragmentRound = 15, HandOff, "hand_off_fragment_round";
    /// To an owner of a known flow.
    HandOffKnown = 16, HandOff, "hand_off_known";
    /// To an owner of a flow that is not known here.
    HandOffUnknown = 17, HandOff, "hand_off_unknown";
    /// A fragment, to the member where all fragments between its addresses meet.
    HandOffFragment = 18, HandOff, "hand_off_fragment";
    /// A packet of a flow that others may know better, while records may be missing here (law 1).
    HandOffSecondChance = 19, HandOff, "hand_off_second_chance";

    /// A peer's probe, sent back as its echo.
    ProbeReflected = 20, Answer, "probe_reflected";
    /// The echo of this member's own probe.
    EchoTaken = 21, Consume, "echo_taken";
    /// An echo request to a VIP (ping).
    PingAnswered = 22, Answer, "ping_answered";
    /// Did not fit once encapsulated: the client was told the right size.
    TooBigAnswered = 23, Answer, "too_big_answered";

    /// A peer's probe, sent back as its echo, and not believed: it does not show that its sender has heard this start of
    /// the member.
    ProbeIntroduced = 43, Answer, "probe_introduced";

    /// Ends before its headers do, or they contradict each other.
    DropMalformed = 24, Drop, "drop_malformed";
    /// A later fragment whose first one has not come, or came too long ago.
    DropFragmentNoHead = 25, Drop, "drop_fragment_no_head";
    /// A tunnel packet from an address that is no member's.
    DropStranger = 26, Drop, "drop_stranger";
    /// A tunnel inside the tunnel.
    DropNestedTunnel = 27, Drop, "drop_nested_tunnel";
    /// A tunnel packet whose inner packet is for no service.
    DropTunnelNoService = 28, Drop, "drop_tunnel_no_service";
    /// A source address that can only be forged.
    DropMartian = 29, Drop, "drop_martian";
    /// The TTL ends here.
    DropTtl = 30, Drop, "drop_ttl";
    /// Congestion was marked on the outer header of a packet that cannot carry the mark (RFC 6040, section 4.2).
    DropCongestion = 31, Drop, "drop_congestion";
    /// Does not fit the link once encapsulated.
    DropTooBig = 32, Drop, "drop_too_big";
    /// The service has no backend for it.
    DropNoBackend = 33, Drop, "drop_no_backend";
    /// The next hop of the target is not resolved.
    DropNoNextHop = 34, Drop, "drop_no_next_hop";
    /// The driver left no room for the outer header.
    DropHeadroom = 35, Drop, "drop_headroom";
    /// A probe that is malformed, not for this member, or not from the address of the member it names.
    DropProbe = 37, Drop, "drop_probe";
    /// A probe or echo whose tag is not of the pair of members it names.
    DropProbeForged = 44, Drop, "drop_probe_forged";
    /// A probe or echo that is not later than what was heard, or of an earlier start: replayed, or overtaken.
    DropProbeOld = 45, Drop, "drop_probe_old";
    /// More extension headers than are walked.
    DropExtensions = 38, Drop, "drop_extensions";
    /// An ICMP error that quotes too little, or not a packet from the VIP that it is for.
    DropQuote = 39, Drop, "drop_quote";
    /// Worth an answer, but the budget of answers is used up.
    DropAnswerBudget = 40, Drop, "drop_answer_budget";
    /// For a VIP, but for no service on it; the node's policy is to drop.
    DropNoService = 41, Drop, "drop_no_service";
    /// For a VIP, but of a protocol that is not balanced; the node's policy is to drop.
    DropNotBalanced = 42, Drop, "drop_not_balanced";
}

/// A power of two, so that an index is masked.
const INDICES: usize = 64;

static BY_INDEX: [Reason; INDICES] = {
    let mut table = [Reason::DropMalformed; INDICES];
    let mut i = 0;
    while i < Reason::ALL.len() {
        table[Reason::ALL[i] as usize] = Reason::ALL[i];
        i += 1;
    }
    table
};

static ACTIONS: [Action; INDICES] = {
    let mut table = [Action::Drop; INDICES];
    let mut i = 0;
    while i < Reason::ALL.len() {
        table[Reason::ALL[i] as usize] = Reason::ALL[i].action();
        i += 1;
    }
    table
};

/// Elements of `counters`: reasons are below it.
pub const REASONS: usize = 48;

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!((Reason::ALL[i] as usize) < REASONS);
        i += 1;
    }
};
