//! Services: what is balanced.

use crate::{
    address::{Address, low_v4},
    hash::mix,
    map_type,
};

map_type! {
    /// A service's identity.
    ///
    /// With port and protocol zero it is the mark that its address is a VIP at all; `services`
    /// holds one such mark for each VIP.
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
        /// Index of its ring in `rings`.
        pub ring: u32,
        /// Zero.
        pub padding: [u8; 4],
    }

    /// A bitmap over hashes of VIPs: one inlined array look-up keeps traffic of others cheap.
    pub struct VipFilter: 1024 {
        /// 8192 bits.
        pub words: [u64; 128],
    }
}

impl ServiceKey {
    /// The mark of a VIP.
    #[inline(always)]
    pub const fn vip(address: Address) -> Self {
        Self { address, port: [0; 2], protocol: 0, padding: 0 }
    }
}

impl VipFilter {
    /// A filter that knows no VIP.
    pub const EMPTY: Self = Self { words: [0; 128] };

    /// Adds a VIP.
    pub fn insert(&mut self, address: &Address) {
        let (word, bit) = Self::place(address);
        self.words[word] |= bit;
    }

    /// False: surely no VIP. True: perhaps one.
    #[inline(always)]
    pub fn may_contain(&self, address: &Address) -> bool {
        let (word, bit) = Self::place(address);
        self.words[word] & bit != 0
    }

    #[inline(always)]
    fn place(address: &Address) -> (usize, u64) {
        let high = u64::from_le_bytes([
            address[0], address[1], address[2], address[3], address[4], address[5], address[6], address[7],
        ]);
        let low = u32::from_le_bytes(low_v4(address)) as u64;
        let middle = u32::from_le_bytes([address[8], address[9], address[10], address[11]]) as u64;
        let hash = mix(high ^ (middle << 32 | low)) >> 51;
        ((hash as usize >> 6) & 127, 1 << (hash & 63))
    }
}
