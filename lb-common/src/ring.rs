//! Maglev rings: which backend a new flow goes to (Eisenbud et al., NSDI 2016).

use crate::hash::mix;

/// Slots of a ring: a prime, so that every skip visits all slots; 100 times the backends of a large service.
pub const RING_SLOTS: usize = 16_381;

/// Makes the ring's choice independent of the owners' choice, which comes from the same flow hash.
const RING_SEED: u64 = 0x5bd1_e995_9b97_f4a7;

crate::map_type! {
    /// One ring: the local slot of a backend in each ring slot, 0 for none.
    ///
    /// The whole ring is one map value, so that it costs two bytes a slot (an element of a BPF
    /// array takes at least eight) and one system call to fill. The last three slots are unused.
    pub struct Ring: 32768 {
        /// Backend slots, native byte order.
        pub slots: [u16; 16384],
    }
}

/// The ring slot of a flow: below `RING_SLOTS`.
#[inline(always)]
pub const fn ring_slot(flow_hash: u64) -> usize {
    (((mix(flow_hash ^ RING_SEED) >> 32) * RING_SLOTS as u64) >> 32) as usize
}
