//! What the datapath must know of its own member, and the budgets of new flows.

use crate::{
    address::Address,
    hash::HashKey,
    map_type,
    rank::{MEMBERS_MAX, Seed},
};

map_type! {
    /// This member and its cluster; the one element of `node`.
    pub struct Node: 1112 {
        /// `abi::SCHEMA` of the agent that made the maps.
        pub schema: u64,
        /// The cluster's secret.
        pub hash_key: HashKey,
        /// Tunnel and agent address of this member.
        pub address: Address,
        /// Mask of the configured members.
        pub configured: u64,
        /// A peer is dead when it has been silent for this long; used only while the lease has lapsed.
        pub silence_ns: u64,
        /// The configured members, `members` of them.
        pub seeds: [Seed; MEMBERS_MAX],
        /// How many of `seeds` are used.
        pub members: u32,
        /// This agent's incarnation.
        pub incarnation: u32,
        /// New entries a CPU may make in a budget window, per class (`BUDGET_*`).
        pub budgets: [u32; BUDGET_CLASSES],
        /// The cluster interface: tunnelled packets and probes are taken from it only; 0 for any.
        pub cluster_ifindex: u32,
        /// UDP port of probes, network order.
        pub port: [u8; 2],
        /// This member's id.
        pub id: u8,
        /// `NODE_*` bits.
        pub flags: u8,
        /// Zero.
        pub padding: [u8; 4],
    }

    /// New entries made by one CPU in the current window; the one element of `budget`.
    pub struct Budget: 16 {
        /// The window these counts belong to.
        pub window: u32,
        /// Entries made, per class.
        pub used: [u32; BUDGET_CLASSES],
    }
}

/// Set where flows are recorded and replicated at their first packet.
pub const NODE_FIRST_PACKET: u8 = 1;

/// Witnessed TCP flows.
pub const BUDGET_TCP: usize = 0;
/// UDP flows.
pub const BUDGET_UDP: usize = 1;
/// Flows derived from their later packets.
pub const BUDGET_DERIVED: usize = 2;
/// Classes with a budget of their own, so that a flood of one kind cannot use up another's.
pub const BUDGET_CLASSES: usize = 3;

/// A budget window is 2^27 ns, about 134 ms: short, so that a burst at its end does not starve a second.
pub const BUDGET_WINDOW_SHIFT: u32 = 27;

impl Budget {
    /// Takes one entry of `class` from the budget; false when it is used up.
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
