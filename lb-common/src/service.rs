//! Services: what is balanced.

use crate::{
    address::{Address, Words, words},
    map_type,
};

map_type! {
    /// A service's identity.
    ///
    /// With port zero it stands for every port without a service of its own. With port and protocol zero
    /// it is the mark that its address is a VIP at all; `services` holds one such mark for each VIP.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct ServiceKey: 20 {
        /// The VIP.
        pub address: Address,
        /// Port, network order.
        pub port: [u8; 2],
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub padding: u8,
    }

    /// A service as the datapath sees it.
    pub struct Service: 8 {
        /// Index of its ring in `rings`, and of its counters.
        pub ring: u32,
        /// `SERVICE_*` bits.
        pub flags: u8,
        /// Zero.
        pub padding: [u8; 3],
    }

    /// A bitmap over hashes of VIPs and of this member's own addresses: one inlined array look-up keeps traffic of others
    /// cheap.
    pub struct VipFilter: 1024 {
        /// 8192 bits.
        pub words: [u64; 128],
    }
}

/// New flows of one client go to one backend, whatever their ports.
pub const SERVICE_AFFINITY: u8 = 1;
/// On the mark of a VIP: echo requests to it are answered.
pub const SERVICE_ECHO: u8 = 2;

impl ServiceKey {
    /// The same address and protocol, every port.
    #[inline(always)]
    pub const fn any_port(self) -> Self {
        Self { port: [0; 2], ..self }
    }

    /// The mark of a VIP.
    #[inline(always)]
    pub const fn vip(address: Address) -> Self {
        Self { address, port: [0; 2], protocol: 0, padding: 0 }
    }
}

impl VipFilter {
    /// A filter that knows no address.
    pub const EMPTY: Self = Self { words: [0; 128] };

    /// Adds an address.
    pub fn insert(&mut self, address: &Address) {
        let (word, bit) = Self::place(words(*address));
        self.words[word] |= bit;
    }

    /// False: surely not one that was added. True: perhaps one.
    #[inline(always)]
    pub fn may_contain(&self, address: Words) -> bool {
        let (word, bit) = Self::place(address);
        self.words[word] & bit != 0
    }

    #[inline(always)]
    fn place([high, low]: Words) -> (usize, u64) {
        // An odd constant spreads the bits that differ between neighbouring addresses to the top (D. E. Knuth, 6.4).
        let hash = (high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51;
        ((hash as usize >> 6) & 127, 1 << (hash & 63))
    }
}
