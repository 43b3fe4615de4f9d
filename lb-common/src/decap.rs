//! The servers' side without a tunnel device: which packets lose their outer header.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    address::{Address, mapped},
    flow::{FlowKeyV4, FlowKeyV6},
    node::{V4, V6},
    outer::{merged_tos, with_tos},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPIP, IPV4, IPV6, IPV6_IN_IP, IpFields, OuterFields},
    parse::{Frame, Link, class_v6, is_fragment},
};

/// LPM_TRIE over `Address` (an IPv4 prefix is 96 bits longer there) to `V4` or `V6`: where tunnel packets may come from.
///
/// The value keeps the families apart: `::/0` covers the mapped addresses, too, and means no IPv4 address.
pub const DECAP_FROM: &str = "decap_from";
/// HASH: `Address` to `V4` or `V6`: the VIPs of this server.
pub const DECAP_VIPS: &str = "decap_vips";
/// PERCPU_ARRAY by `Outcome`: `Counter`.
pub const DECAP_COUNTERS: &str = "decap_counters";
/// Prefixes and VIPs a server can have.
pub const DECAP_ENTRIES: u32 = 1024;

macro_rules! outcomes {
    ($($(#[$meta:meta])* $name:ident = $text:literal;)*) => {
        /// What became of a packet; the discriminant is the index of its counter.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome { $($(#[$meta])* $name,)* }

        impl Outcome {
            /// Every outcome, in counter order.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$name),*];

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}
pub(crate) use outcomes;

outcomes! {
    /// No tunnel packet: passed untouched.
    Passed = "passed";
    /// The outer header was taken off, the rest passed up.
    Stripped = "stripped";
    /// Congestion was marked on the outer header of a packet that cannot carry the mark (RFC 6040).
    DroppedCongestion = "dropped_congestion";
    /// A tunnel packet that comes from none of the prefixes: passed untouched.
    PassedStranger = "passed_stranger";
    /// A tunnel packet from a balancer, for none of the VIPs: passed untouched.
    PassedNoVip = "passed_no_vip";
    /// A tunnel packet from a balancer, but a fragment of one, with options, or shorter than its headers say: passed
    /// untouched.
    PassedMalformed = "passed_malformed";
}

/// The tables that `decap` reads; `family` is `V4` or `V6`.
pub trait DecapTables {
    /// Whether tunnel packets may come from this address.
    fn is_balancer(&self, family: usize, address: &Address) -> bool;
    /// Whether this address is a VIP of this server.
    fn is_vip(&self, family: usize, address: &Address) -> bool;
}

/// What to take off a frame, and what of the inner header changes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strip {
    /// Bytes of the link-layer header, which stays.
    pub link: usize,
    /// Bytes of the outer header, which goes.
    pub outer: usize,
    /// The family of the packet inside.
    pub is_v6: bool,
    /// Its header's fields as they must be afterwards.
    pub inner: IpFields,
}

/// What an outer header says.
struct Outer {
    bytes: usize,
    protocol: u8,
    fields: OuterFields,
    end: usize,
}

/// Judges a frame.
#[inline(always)]
pub fn judge<F: Frame + ?Sized, T: DecapTables>(frame: &F, tables: &T) -> Result<Strip, Outcome> {
    let link = Link::of(frame).ok_or(Outcome::Passed)?;
    let outer = match link.ethertype.to_ne_bytes() {
        ETHERTYPE_IPV4 => outer_v4(frame, tables, link.length)?,
        ETHERTYPE_IPV6 => outer_v6(frame, tables, link.length)?,
        _ => return Err(Outcome::Passed),
    };
    let at = link.length + outer.bytes;
    let end = outer.end.min(frame.length());
    let is_v6 = outer.protocol == IPV6_IN_IP;
    let inner = if is_v6 {
        inner_v6(frame, tables, at, end, outer.fields)
    } else {
        inner_v4(frame, tables, at, end, outer.fields)
    };
    Ok(Strip { link: link.length, outer: outer.bytes, is_v6, inner: inner? })
}

#[inline(always)]
fn outer_v4<F: Frame + ?Sized, T: DecapTables>(frame: &F, tables: &T, at: usize) -> Result<Outer, Outcome> {
    let ip = frame.header::<Ipv4Hdr>(at).ok_or(Outcome::Passed)?;
    if !is_tunnel(ip.proto) {
        return Err(Outcome::Passed);
    }
    if !tables.is_balancer(V4, &mapped(ip.src_addr)) {
        return Err(Outcome::PassedStranger);
    }
    if ip.vihl != 0x45 || is_fragment(ip) {
        return Err(Outcome::PassedMalformed);
    }
    let end = at + u16::from_be_bytes(ip.tot_len) as usize;
    Ok(Outer { bytes: IPV4, protocol: ip.proto, fields: OuterFields { tos: ip.tos }, end })
}

#[inline(always)]
fn outer_v6<F: Frame + ?Sized, T: DecapTables>(frame: &F, tables: &T, at: usize) -> Result<Outer, Outcome> {
    let ip = frame.header::<Ipv6Hdr>(at).ok_or(Outcome::Passed)?;
    if !is_tunnel(ip.next_hdr) {
        return Err(Outcome::Passed);
    }
    if !tables.is_balancer(V6, &ip.src_addr) {
        return Err(Outcome::PassedStranger);
    }
    if ip.vcf[0] >> 4 != 6 {
        return Err(Outcome::PassedMalformed);
    }
    let end = at + IPV6 + u16::from_be_bytes(ip.payload_len) as usize;
    Ok(Outer { bytes: IPV6, protocol: ip.next_hdr, fields: OuterFields { tos: class_v6(ip) }, end })
}

#[inline(always)]
fn inner_v4<F: Frame + ?Sized, T: DecapTables>(
    frame: &F,
    tables: &T,
    at: usize,
    end: usize,
    outer: OuterFields,
) -> Result<IpFields, Outcome> {
    let ip = frame.header::<Ipv4Hdr>(at).ok_or(Outcome::PassedMalformed)?;
    let length = u16::from_be_bytes(ip.tot_len);
    if ip.vihl >> 4 != 4 || at + length as usize > end {
        return Err(Outcome::PassedMalformed);
    }
    if !tables.is_vip(V4, &mapped(ip.dst_addr)) {
        return Err(Outcome::PassedNoVip);
    }
    let tos = merged_tos(ip.tos, outer).map_err(|_congestion| Outcome::DroppedCongestion)?;
    let fields = IpFields {
        length: u32::from(length),
        tos: ip.tos,
        ttl: ip.ttl,
        checksum: u16::from_ne_bytes(ip.check),
        ..IpFields::default()
    };
    Ok(with_tos::<FlowKeyV4>(fields, tos))
}

#[inline(always)]
fn inner_v6<F: Frame + ?Sized, T: DecapTables>(
    frame: &F,
    tables: &T,
    at: usize,
    end: usize,
    outer: OuterFields,
) -> Result<IpFields, Outcome> {
    let ip = frame.header::<Ipv6Hdr>(at).ok_or(Outcome::PassedMalformed)?;
    let length = IPV6 + u16::from_be_bytes(ip.payload_len) as usize;
    if ip.vcf[0] >> 4 != 6 || at + length > end {
        return Err(Outcome::PassedMalformed);
    }
    if !tables.is_vip(V6, &ip.dst_addr) {
        return Err(Outcome::PassedNoVip);
    }
    let class = class_v6(ip);
    let tos = merged_tos(class, outer).map_err(|_congestion| Outcome::DroppedCongestion)?;
    let fields = IpFields {
        length: length as u32,
        tos: class,
        ttl: ip.hop_limit,
        label: ip.vcf[1] & 0x0f,
        is_whole: true,
        ..IpFields::default()
    };
    Ok(with_tos::<FlowKeyV6>(fields, tos))
}

/// Whether a header is followed by a whole IP packet.
#[inline(always)]
const fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, IPIP | IPV6_IN_IP)
}
