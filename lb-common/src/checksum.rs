//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624), on network-order bytes.

/// The checksum of an IPv4 header without options, whose checksum field is zero.
#[inline(always)]
pub fn of_ipv4_header(header: &[u8; 20]) -> [u8; 2] {
    let mut sum = 0_u32;
    let mut i = 0;
    while i < 20 {
        sum += word([header[i], header[i + 1]]);
        i += 2;
    }
    finish(sum)
}

/// The checksum after one 16-bit word of the data changed from `old` to `new`: `~(~HC + ~m + m')`.
#[inline(always)]
pub const fn updated(checksum: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    finish((!word(checksum) & 0xffff) + (!word(old) & 0xffff) + word(new))
}

#[inline(always)]
const fn word(bytes: [u8; 2]) -> u32 {
    u16::from_be_bytes(bytes) as u32
}

#[inline(always)]
const fn finish(mut sum: u32) -> [u8; 2] {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    (!sum as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A receiver accepts a header whose words, checksum included, add up to all ones.
    fn verifies(header: &[u8; 20]) -> bool {
        let sum: u32 = header.chunks(2).map(|pair| word([pair[0], pair[1]])).sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    proptest! {
        #[test]
        fn a_header_with_its_checksum_verifies(mut header: [u8; 20]) {
            header[10..12].fill(0);
            let checksum = of_ipv4_header(&header);
            header[10..12].copy_from_slice(&checksum);
            prop_assert!(verifies(&header));
        }

        #[test]
        fn an_updated_checksum_verifies(mut header: [u8; 20], at in 0..9_usize, new: [u8; 2]) {
            header[0] = 0x45; // An all-zero header has no valid checksum.
            header[10..12].fill(0);
            let checksum = of_ipv4_header(&header);
            let at = if at >= 5 { at + 1 } else { at } * 2;
            prop_assume!(at != 0);
            let old = [header[at], header[at + 1]];
            header[at..at + 2].copy_from_slice(&new);
            header[10..12].copy_from_slice(&updated(checksum, old, new));
            prop_assert!(verifies(&header));
        }
    }
}
