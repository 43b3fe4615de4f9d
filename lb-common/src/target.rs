//! Where packets are sent: peers and backends.

use crate::{
    address::{Address, is_mapped},
    map_type,
};

map_type! {
    /// The link-layer way to an address, resolved by the agent.
    pub struct NextHop: 28 {
        /// Destination MAC.
        pub destination: [u8; 6],
        /// Source MAC: the interface's own.
        pub source: [u8; 6],
        /// Interface; 0 while the next hop is not resolved. With tags, the one that carries them.
        pub ifindex: u32,
        /// The largest IP packet that fits, outer header included; 0 for unknown.
        pub mtu: u16,
        /// Bytes of `tags` that are used: 0, 4 or 8.
        pub tag_bytes: u8,
        /// Zero.
        pub padding: u8,
        /// VLAN tags as on the wire, the outer one first: each TPID and TCI (IEEE 802.1Q).
        pub tags: [u8; 8],
    }

    /// A tunnel's far end: an element of `members` (indexed by id) or of `backends` (indexed by local slot).
    pub struct Target: 52 {
        /// Outer destination.
        pub address: Address,
        /// How to reach it.
        pub next_hop: NextHop,
        /// A backend's service, as `Service::ring`: with it a restarted agent tells whose slot this is.
        pub ring: u32,
        /// One of `TARGET_*`; 0 for an unused element.
        pub state: u8,
        /// Zero.
        pub padding: [u8; 3],
    }
}

/// A backend that takes new flows; also every configured member.
pub const TARGET_SERVING: u8 = 1;
/// A backend that keeps its flows and takes no new ones.
pub const TARGET_DRAINING: u8 = 2;
/// A backend that its health check calls dead.
pub const TARGET_DOWN: u8 = 3;
/// A backend that is no longer configured, kept while flows name it.
pub const TARGET_REMOVED: u8 = 4;

impl NextHop {
    /// Not resolved.
    pub const NONE: Self =
        Self { destination: [0; 6], source: [0; 6], ifindex: 0, mtu: 0, tag_bytes: 0, padding: 0, tags: [0; 8] };
}

impl Target {
    /// An unused element.
    pub const NONE: Self = Self { address: [0; 16], next_hop: NextHop::NONE, ring: 0, state: 0, padding: [0; 3] };

    /// Whether the outer header to it is an IPv4 one.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        is_mapped(&self.address)
    }

    /// Serving or draining: established flows stay, whatever else happens.
    #[inline(always)]
    pub const fn is_in_service(&self) -> bool {
        matches!(self.state, TARGET_SERVING | TARGET_DRAINING)
    }
}
