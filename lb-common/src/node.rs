//! What the datapath must know of its own member, and the budgets of new flows.

use crate::{
    address::Address,
    hash::HashKey,
    map_type,
    rank::{MEMBERS_MAX, Seed},
};

map_type! {
    /// This member and its cluster; the one element of `node`.
    pub struct Node: 3248 {
        /// `abi::SCHEMA` of the agent that made the maps.
        pub schema: u64,
        /// The cluster's secret.
        pub hash_key: HashKey,
        /// Where tunnels to this member end, by family (`V4`, `V6`); zeros where it has no such address.
        pub addresses: [Address; 2],
        /// Random, new with every start of the agent: whoever repeats it has heard this member since then.
        pub probe_nonce: u64,
        /// Mask of the configured members.
        pub configured: u64,
        /// A peer is dead when it has been silent for this long; used only while the lease has lapsed.
        pub silence_ns: u64,
        /// Outer source of deliveries, by family of the backend's address.
        pub delivery_sources: [Source; 2],
        /// Outer source of hand-offs, by family of the peer's address.
        pub hand_off_sources: [Source; 2],
        /// By id less one: the keys of the probes between that member and this one, as many as the member has keys; zeros
        /// for none.
        pub probe_keys: [[HashKey; PROBE_KEYS]; MEMBERS_MAX],
        /// The configured members, `members` of them.
        pub seeds: [Seed; MEMBERS_MAX],
        /// How many of `seeds` are used.
        pub members: u32,
        /// This agent's incarnation.
        pub incarnation: u32,
        /// The cluster interface: tunnelled packets and probes are taken from it only; 0 for any.
        pub cluster_ifindex: u32,
        /// UDP port of probes, network order.
        pub port: [u8; 2],
        /// This member's id.
        pub id: u8,
        /// `NODE_*` bits.
        pub flags: u8,
    }

    /// The source of outer headers: one address, or a prefix whose host part is taken from the flow, so that the
    /// receivers' NICs spread flows over their queues.
    pub struct Source: 20 {
        /// The address, or the prefix with its host part zero; an IPv4 one is mapped.
        pub address: Address,
        /// The bits of the last four bytes that the flow decides, network order.
        pub spread: [u8; 4],
    }

    /// What one CPU has used up in the current window; the one element of `budget`.
    pub struct Budget: 24 {
        /// The window these counts belong to.
        pub window: u32,
        /// New entries and answers, per class.
        pub used: [u32; BUDGET_CLASSES],
    }
}

/// Keys of a pair: a member has two while one replaces the other.
pub const PROBE_KEYS: usize = 2;

/// Index of IPv4 in what is kept by family.
pub const V4: usize = 0;
/// Index of IPv6.
pub const V6: usize = 1;

/// Set where flows are recorded and replicated at their first packet.
pub const NODE_FIRST_PACKET: u8 = 1;
/// Whoever knows a flow delivers its packets; only packets of unknown flows visit an owner (`handoff = "direct"`).
pub const NODE_DIRECT: u8 = 2;
/// What is for a VIP but is not balanced is dropped, not left to the host.
pub const NODE_DROP_OTHER: u8 = 4;
/// An IPv4 packet that does not fit and may be fragmented is dropped without an answer.
pub const NODE_DROP_OVERSIZED: u8 = 8;
/// Some member's hand-offs come from a prefix: `peer_prefixes` is consulted, too.
pub const NODE_PEER_PREFIXES: u8 = 16;

/// Witnessed TCP flows.
pub const BUDGET_TCP: usize = 0;
/// UDP flows.
pub const BUDGET_UDP: usize = 1;
/// Flows derived from their later packets.
pub const BUDGET_DERIVED: usize = 2;
/// Witnessed SCTP associations.
pub const BUDGET_SCTP: usize = 3;
/// Answers to clients: echo replies and ICMP errors.
pub const BUDGET_ANSWERS: usize = 4;
/// Classes with a budget of their own, so that a flood of one kind cannot use up another's.
pub const BUDGET_CLASSES: usize = 5;

/// A budget window is 2^27 ns, about 134 ms: short, so that a burst at its end does not starve a second.
pub const BUDGET_WINDOW_SHIFT: u32 = 27;

impl Budget {
    /// Takes one of `class` from the budget; false when it is used up.
    #[inline(always)]
    pub fn take(&mut self, class: usize, limits: &[u32; BUDGET_CLASSES], now_ns: u64) -> bool {
        let window = (now_ns >> BUDGET_WINDOW_SHIFT) as u32;
        if self.window != window {
            *self = Self { window, used: [0; BUDGET_CLASSES] };
        }
        let (Some(used), Some(limit)) = (self.used.get_mut(class), limits.get(class)) else { return false };
        if *used >= *limit {
            return false;
        }
        *used += 1;
        true
    }
}
