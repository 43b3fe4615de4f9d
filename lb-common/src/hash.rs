//! SipHash over whole 64-bit words, and the cheap unkeyed mixers beside it.
//!
//! The flow hash is keyed with the cluster's secret so that a client cannot choose its owner or its
//! backend (J.-P. Aumasson, D. J. Bernstein: SipHash, 2012; 1-3 as in the standard library's maps). What others get to
//! see is tagged with 2-4, the conservative choice of its authors.

/// The cluster's secret, as two little-endian words of the 16-byte key file.
pub type HashKey = [u64; 2];

/// SipHash-1-3 of `words`, taken as the concatenation of their little-endian bytes.
#[inline(always)]
pub fn siphash13<const N: usize>(key: &HashKey, words: &[u64; N]) -> u64 {
    siphash::<1, 3, N>(key, words)
}

/// SipHash-2-4 of `words`, taken as the concatenation of their little-endian bytes.
#[inline(always)]
pub fn siphash24<const N: usize>(key: &HashKey, words: &[u64; N]) -> u64 {
    siphash::<2, 4, N>(key, words)
}

#[inline(always)]
fn siphash<const C: usize, const D: usize, const N: usize>(key: &HashKey, words: &[u64; N]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        compress::<C>(&mut v, *word);
    }
    compress::<C>(&mut v, ((N as u64 * 8) & 0xff) << 56);
    v[2] ^= 0xff;
    rounds::<D>(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn compress<const C: usize>(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    rounds::<C>(v);
    v[0] ^= word;
}

#[inline(always)]
fn rounds<const N: usize>(v: &mut [u64; 4]) {
    let mut i = 0;
    while i < N {
        round(v);
        i += 1;
    }
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// A bijective finaliser of 64 bits: every input bit reaches every output bit.
#[inline(always)]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use proptest::prelude::*;
    use siphasher::sip::{SipHasher13, SipHasher24};

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_reference_siphash(k0: u64, k1: u64, words: [u64; 5]) {
            let mut reference = SipHasher13::new_with_keys(k0, k1);
            words.iter().for_each(|word| reference.write(&word.to_le_bytes()));
            prop_assert_eq!(siphash13(&[k0, k1], &words), reference.finish());

            let mut reference = SipHasher13::new_with_keys(k0, k1);
            words[..2].iter().for_each(|word| reference.write(&word.to_le_bytes()));
            prop_assert_eq!(siphash13(&[k0, k1], &[words[0], words[1]]), reference.finish());

            let mut reference = SipHasher24::new_with_keys(k0, k1);
            words.iter().for_each(|word| reference.write(&word.to_le_bytes()));
            prop_assert_eq!(siphash24(&[k0, k1], &words), reference.finish());
        }
    }
}
