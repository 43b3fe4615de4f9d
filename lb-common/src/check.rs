//! Health checks through the tunnel: the packets of a check's socket leave as deliveries to the backend do.

use crate::{
    address::{Address, low_word},
    bytes::load64,
    checksum::of_ipv4_header,
    map_type,
    packet::{IPIP, IPV4, IPV6, IPV6_IN_IP},
};

/// HASH by socket cookie (`u64`): `CheckWay`.
pub const CHECK_WAYS: &str = "check_ways";
/// Checks under way at a time.
pub const CHECK_WAYS_MAX: u32 = 1 << 14;

map_type! {
    /// Where the packets of a socket go.
    pub struct CheckWay: 36 {
        /// Outer source.
        pub source: Address,
        /// Outer destination, of the same family.
        pub target: Address,
        /// The interface that the route to it leaves by.
        pub ifindex: u32,
    }
}

/// TTL of the outer header, as of a delivery.
const OUTER_TTL: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;

impl CheckWay {
    /// The protocol number for an inner packet of either family.
    const fn protocol(is_v6: bool) -> u8 {
        if is_v6 { IPV6_IN_IP } else { IPIP }
    }

    /// The outer IPv4 header before a packet of `length` bytes, as words as they lie in memory.
    #[inline(always)]
    pub fn outer_v4(&self, is_v6: bool, length: u16) -> [u32; 5] {
        let [l0, l1] = length.wrapping_add(IPV4 as u16).to_be_bytes();
        let protocol = Self::protocol(is_v6);
        let mut words = [
            u32::from_ne_bytes([0x45, 0, l0, l1]),
            u32::from_ne_bytes([0, 0, DONT_FRAGMENT, 0]),
            u32::from_ne_bytes([OUTER_TTL, protocol, 0, 0]),
            low_word(&self.source),
            low_word(&self.target),
        ];
        let [c0, c1] = of_ipv4_header(&words).to_ne_bytes();
        words[2] = u32::from_ne_bytes([OUTER_TTL, protocol, c0, c1]);
        words
    }

    /// The outer IPv6 header.
    #[inline(always)]
    pub fn outer_v6(&self, is_v6: bool, length: u16) -> [u64; 5] {
        let [l0, l1] = length.to_be_bytes();
        [
            u64::from_ne_bytes([0x60, 0, 0, 0, l0, l1, Self::protocol(is_v6), OUTER_TTL]),
            load64::<0, _>(&self.source),
            load64::<8, _>(&self.source),
            load64::<0, _>(&self.target),
            load64::<8, _>(&self.target),
        ]
    }
}

/// Bytes of each outer header.
pub const OUTER: [usize; 2] = [IPV4, IPV6];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::mapped;

    #[test]
    fn outer_headers_are_those_of_a_delivery() {
        let way = CheckWay { source: mapped([10, 0, 1, 11]), target: mapped([10, 0, 2, 11]), ifindex: 2 };
        let bytes: Vec<u8> = way.outer_v4(false, 60).iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes[..10], [0x45, 0, 0, 80, 0, 0, 0x40, 0, 64, 4]);
        assert_eq!(bytes[12..], [10, 0, 1, 11, 10, 0, 2, 11]);
        // RFC 1071: the sum over a header with its checksum is all ones.
        let sum = bytes.chunks(2).fold(0_u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        let way = CheckWay { source: [1; 16], target: [2; 16], ifindex: 2 };
        let bytes: Vec<u8> = way.outer_v6(true, 60).iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes[..8], [0x60, 0, 0, 0, 0, 60, 41, 64]);
        assert_eq!((&bytes[8..24], &bytes[24..]), (&[1; 16][..], &[2; 16][..]));
    }
}
