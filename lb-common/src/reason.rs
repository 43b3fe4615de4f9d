//! What can happen to a packet: one reason per outcome, one counter per reason.

use crate::map_type;

map_type! {
    /// Packets and bytes of one reason on one CPU; an element of `counters`, indexed by reason.
    pub struct Counter: 16 {
        /// Packets.
        pub packets: u64,
        /// Bytes, from the IP header on.
        pub bytes: u64,
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
        }
    };
}

reasons! {
    /// Not IPv4.
    NotIp = 0, Pass, "not_ip";
    /// Not for a VIP, not a tunnel or probe to this member.
    NotOurs = 1, Pass, "not_ours";
    /// For a VIP, but for no service on it.
    NoService = 2, Pass, "no_service";
    /// For a VIP, but of a protocol that is not balanced.
    NotBalanced = 3, Pass, "not_balanced";
    /// The agent has not configured the datapath.
    Unconfigured = 4, Pass, "unconfigured";

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

    /// To an owner of a known flow.
    HandOffKnown = 16, HandOff, "hand_off_known";
    /// To an owner of a flow that is not known here.
    HandOffUnknown = 17, HandOff, "hand_off_unknown";

    /// A peer's probe, sent back as its echo.
    ProbeReflected = 20, Answer, "probe_reflected";
    /// The echo of this member's own probe.
    EchoTaken = 21, Consume, "echo_taken";

    /// Ends before its headers do, or they contradict each other.
    DropMalformed = 24, Drop, "drop_malformed";
    /// A fragment.
    DropFragment = 25, Drop, "drop_fragment";
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
}

/// Elements of `counters`: reasons are below it.
pub const REASONS: usize = 40;

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!((Reason::ALL[i] as usize) < REASONS);
        i += 1;
    }
};
