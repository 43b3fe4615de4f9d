//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Words and checksums are as they lie in memory: the sum of ones' complement numbers comes out right in either byte order.

/// The checksum of an IPv4 header without options, whose checksum field is zero.
#[inline(always)]
pub const fn of_ipv4_header(words: &[u32; 5]) -> u16 {
    let [a, b, c, d, e] = *words;
    finish(a as u64 + b as u64 + c as u64 + d as u64 + e as u64)
}

/// The checksum after one 16-bit word of the data changed from `old` to `new`: `~(~HC + ~m + m')`.
#[inline(always)]
pub const fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u64 + !old as u64 + new as u64)
}

/// The checksum of data whose 16 or 32-bit words add up to `sum`.
#[inline(always)]
pub const fn finish(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A receiver accepts a header whose words, checksum included, add up to all ones.
    fn verifies(header: &[u8; 20]) -> bool {
        let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    fn of_header(header: &[u8; 20]) -> u16 {
        of_ipv4_header(&zerocopy::transmute!(*header))
    }

    proptest! {
        #[test]
        fn a_header_with_its_checksum_verifies(mut header: [u8; 20]) {
            header[10..12].fill(0);
            let checksum = of_header(&header);
            header[10..12].copy_from_slice(&checksum.to_ne_bytes());
            prop_assert!(verifies(&header));
        }

        #[test]
        fn an_updated_checksum_verifies(mut header: [u8; 20], at in 0..9_usize, new: [u8; 2]) {
            header[0] = 0x45; // An all-zero header has no valid checksum.
            header[10..12].fill(0);
            let checksum = of_header(&header);
            let at = if at >= 5 { at + 1 } else { at } * 2;
            prop_assume!(at != 0);
            let old = u16::from_ne_bytes([header[at], header[at + 1]]);
            header[at..at + 2].copy_from_slice(&new);
            let checksum = updated(checksum, old, u16::from_ne_bytes(new));
            header[10..12].copy_from_slice(&checksum.to_ne_bytes());
            prop_assert!(verifies(&header));
        }
    }
}
