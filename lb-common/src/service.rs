//! Services: what is balanced.

use crate::{address::Address, hash::mix, map_type};

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

    /// A bitmap over hashes of VIPs: one inlined array look-up keeps traffic of others cheap.
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
    /// A filter that knows no VIP.
    pub const EMPTY: Self = Self { words: [0; 128] };

    /// Adds a VIP.
    pub fn insert(&mut self, address: &Address) {
        let (word, bit) = Self::place(*address);
        self.words[word] |= bit;
    }

    /// False: surely no VIP. True: perhaps one.
    #[inline(always)]
    pub fn may_contain(&self, address: Address) -> bool {
        let (word, bit) = Self::place(address);
        self.words[word] & bit != 0
    }

    #[inline(always)]
    fn place(address: Address) -> (usize, u64) {
        let [high, low]: [u64; 2] = zerocopy::transmute!(address);
        let hash = mix(high ^ low.rotate_left(32)) >> 51;
        ((hash as usize >> 6) & 127, 1 << (hash & 63))
    }
}
