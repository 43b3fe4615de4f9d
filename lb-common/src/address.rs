//! Addresses with room for both families.

use zerocopy::transmute;

use crate::bytes::{load32, load64};

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96`; network order.
pub type Address = [u8; 16];

/// An `Address` as words, each as it lies in memory.
pub type Words = [u64; 2];

/// `address` as words.
#[inline(always)]
pub const fn words(address: Address) -> Words {
    transmute!(address)
}

/// `mapped` on words.
#[inline(always)]
pub const fn mapped_words(v4: u32) -> Words {
    let low: u64 = transmute!([u32::from_ne_bytes([0, 0, 0xff, 0xff]), v4]);
    [0, low]
}

/// Maps an IPv4 address (network order) into the form that types for both families hold.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Address {
    // Two whole words: for bytes the eBPF compiler would call a byte-wise memset.
    let words = [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])];
    transmute!(words)
}

/// Whether `address` is a mapped IPv4 address.
#[inline(always)]
pub fn is_mapped(address: &Address) -> bool {
    load64::<0, _>(address) == 0 && load32::<8, _>(address) == u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// The IPv4 address inside `address`, if it is a mapped one.
#[inline(always)]
pub const fn unmapped(address: Address) -> Option<[u8; 4]> {
    match address {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
        _ => None,
    }
}

/// The last four bytes: the IPv4 address, where the caller knows that `address` is a mapped one.
#[inline(always)]
pub const fn low_v4(address: &Address) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

/// The same as a word, as it lies in memory.
#[inline(always)]
pub fn low_word(address: &Address) -> u32 {
    load32::<12, _>(address)
}

/// Whether an IPv4 source address can only be forged: "this network", loopback, multicast, reserved (RFC 6890).
#[inline(always)]
pub const fn is_martian_v4(source: [u8; 4]) -> bool {
    matches!(source[0], 0 | 127 | 224..=255)
}

/// Whether an IPv6 source address can only be forged: unspecified, loopback, mapped, multicast (RFC 4291).
#[inline(always)]
pub fn is_martian_v6(source: &Address) -> bool {
    source[0] == 0xff || load64::<0, _>(source) == 0 && (load32::<8, _>(source) == 0 || is_mapped(source))
}
