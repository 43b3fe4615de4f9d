//! The servers' side without a tunnel device: which packets lose their outer header.

use network_types::ip::Ipv4Hdr;

use crate::{
    address::{Address, mapped},
    flow::FlowKeyV4,
    outer::{merged_tos, with_tos},
    packet::{ETHERNET, ETHERTYPE_AT, ETHERTYPE_IPV4, IPIP, IPV4, IpFields, OuterFields},
    parse::Frame,
};

/// LPM_TRIE over `Address` (an IPv4 prefix is 96 bits longer there) to `u32`: where tunnel packets may come from.
pub const DECAP_FROM: &str = "decap_from";
/// HASH: `Address` to `u32`: the VIPs of this server.
pub const DECAP_VIPS: &str = "decap_vips";
/// PERCPU_ARRAY by `Outcome`: `Counter`.
pub const DECAP_COUNTERS: &str = "decap_counters";
/// Prefixes and VIPs a server can have.
pub const DECAP_ENTRIES: u32 = 1024;

/// What `decap` did with a packet; the discriminant is the index of its counter.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not a tunnel packet for one of the VIPs from one of the prefixes: passed untouched.
    Passed = 0,
    /// The outer header was taken off, the rest passed up.
    Stripped = 1,
    /// Congestion was marked on the outer header of a packet that cannot carry the mark (RFC 6040).
    DroppedCongestion = 2,
}

impl Outcome {
    /// Every outcome, in counter order.
    pub const ALL: [Self; 3] = [Self::Passed, Self::Stripped, Self::DroppedCongestion];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Stripped => "stripped",
            Self::DroppedCongestion => "dropped_congestion",
        }
    }
}

/// The tables that `decap` reads.
pub trait DecapTables {
    /// Whether tunnel packets may come from this address.
    fn is_balancer(&self, address: &Address) -> bool;
    /// Whether this address is a VIP of this server.
    fn is_vip(&self, address: &Address) -> bool;
}

/// Judges a frame; `Ok` holds the inner header's fields as they must be after the outer header is gone.
#[inline(always)]
pub fn judge<F: Frame + ?Sized, T: DecapTables>(frame: &F, tables: &T) -> Result<IpFields, Outcome> {
    let pass = Outcome::Passed;
    if frame.header::<[u8; 2]>(ETHERTYPE_AT) != Some(&ETHERTYPE_IPV4) {
        return Err(pass);
    }
    let outer = frame.header::<Ipv4Hdr>(ETHERNET).ok_or(pass)?;
    let is_whole = u16::from_be_bytes(outer.frags) & 0x3fff == 0;
    if outer.proto != IPIP || outer.vihl != 0x45 || !is_whole || !tables.is_balancer(&mapped(outer.src_addr)) {
        return Err(pass);
    }
    let inner = frame.header::<Ipv4Hdr>(ETHERNET + IPV4).ok_or(pass)?;
    let length = u16::from_be_bytes(inner.tot_len);
    let fits = u16::from_be_bytes(outer.tot_len) as usize >= IPV4 + length as usize
        && ETHERNET + IPV4 + length as usize <= frame.length();
    if inner.vihl >> 4 != 4 || !fits || !tables.is_vip(&mapped(inner.dst_addr)) {
        return Err(pass);
    }
    let ip = IpFields {
        length: u32::from(length),
        tos: inner.tos,
        ttl: inner.ttl,
        checksum: u16::from_ne_bytes(inner.check),
        ..IpFields::default()
    };
    match merged_tos(inner.tos, OuterFields { tos: outer.tos }) {
        Ok(tos) => Ok(with_tos::<FlowKeyV4>(ip, tos)),
        Err(_) => Err(Outcome::DroppedCongestion),
    }
}
