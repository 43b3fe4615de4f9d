//! From a frame to a `Packet`, or to the reason why it is none.
//!
//! What is not ours passes, always; only a packet for a VIP or from a tunnel can be malformed.

mod extension;
mod icmp;
mod ip;
mod link;
mod plain;
mod probe;
mod transport;

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

pub(crate) use self::ip::{class_v6, is_fragment};
pub use self::{
    extension::{Walk, walk},
    link::Link,
    plain::{plain_v4, plain_v6},
    transport::UDP_HEADER,
};
use crate::{
    address::{Address, Words, low_word, mapped, mapped_words},
    bytes::{Header, load32, load64},
    flow::{FlowKeyV4, FlowKeyV6, UDP},
    liveness::Probe,
    node::{NODE_DROP_OTHER, V4, V6},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPIP, IPV4, IPV6, IPV6_IN_IP, OuterFields, Packet},
    reason::Reason,
    service::{SERVICE_ECHO, ServiceKey},
    steer::Tables,
};

macro_rules! headers {
    ($($name:ty),*) => {$(
        const _: () = assert!(align_of::<$name>() == 1);
        // SAFETY: made of bytes and byte arrays only, at alignment 1.
        unsafe impl Header for $name {}
    )*};
}
headers!(Ipv4Hdr, Ipv6Hdr, TcpHdr, UdpHdr, Probe);

/// Where the last header may begin, from the beginning of the frame: two tags, an outer and an inner header, the longest
/// options or extensions, and the quote of an ICMP error.
pub const OFFSET_MAX: usize = 1023;

/// A received frame.
pub trait Frame {
    /// The header at `offset`, if the frame reaches so far and `offset` is at most `OFFSET_MAX`.
    fn header<T: Header>(&self, offset: usize) -> Option<&T>;
    /// Bytes in the frame.
    fn length(&self) -> usize;

    /// `extension::walk`: a function of its own in the datapath, which the verifier walks once.
    #[inline(always)]
    fn walk(&self, next: u8, at: usize) -> Walk {
        walk(self, next, at)
    }
}

impl Frame for [u8] {
    fn header<T: Header>(&self, offset: usize) -> Option<&T> {
        if offset > OFFSET_MAX {
            return None;
        }
        let bytes = self.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: the slice is as long as `T`, which by its trait has alignment 1 and accepts any bytes.
        Some(unsafe { &*bytes.as_ptr().cast() })
    }

    fn length(&self) -> usize {
        self.len()
    }
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IPv4 packet to steer.
    V4(Packet<FlowKeyV4>),
    /// An IPv6 packet to steer.
    V6(Packet<FlowKeyV6>),
    /// An echo request to a VIP that answers them.
    Ping(Ping),
    /// A peer's probe, to be stamped and reflected.
    Probe(ProbeFrame),
    /// The echo of this member's own probe, to be stamped and taken.
    ProbeEcho(ProbeFrame),
    /// Its way ends here.
    End(Reason),
}

/// What the front of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// At the IP header of a packet that may be for a VIP, or for this member.
    Ours(Place),
    /// Its way ends here.
    End(Reason),
}

/// What a packet to this member's own address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A peer's hand-off; at the IP header inside.
    HandOff(Place),
    /// See `Parsed::Probe`.
    Probe(ProbeFrame),
    /// See `Parsed::ProbeEcho`.
    ProbeEcho(ProbeFrame),
    /// Its way ends here.
    End(Reason),
}

/// What a packet to a VIP is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow<K> {
    /// One to steer.
    Packet(Packet<K>),
    /// An echo request to answer.
    Ping(Ping),
    /// Its way ends here.
    End(Reason),
}

/// An echo request, or a fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Where the IP header begins.
    pub at: usize,
    /// Where the ICMP header begins; 0 in a later fragment, which has none.
    pub icmp_at: usize,
    /// The family.
    pub is_v6: bool,
}

/// A probe or its echo, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeFrame {
    /// The member at the other end.
    pub from: u8,
    /// Where the IP header begins.
    pub at: usize,
    /// The family.
    pub is_v6: bool,
}

/// How far the parser has come: at an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the header begins.
    pub at: usize,
    /// Its family.
    pub is_v6: bool,
    /// Where the frame, or what the outer header encloses of it, ends.
    pub end: usize,
    /// Whether it is inside a tunnel packet from a member.
    pub via_peer: bool,
    /// What the outer header said.
    pub outer: OuterFields,
}

impl Place {
    /// The fields as one word.
    #[inline(always)]
    pub const fn pack(&self) -> u64 {
        let flags = self.via_peer as u64 | (self.is_v6 as u64) << 1;
        self.at as u64 | (self.outer.tos as u64) << 16 | flags << 24 | (self.end as u64) << 32
    }

    /// The fields from their word.
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            at: packed as usize & OFFSET_MAX,
            is_v6: packed >> 25 & 1 != 0,
            end: (packed >> 32) as usize,
            via_peer: packed >> 24 & 1 != 0,
            outer: OuterFields { tos: (packed >> 16) as u8 },
        }
    }
}

/// Why a packet is not one to steer.
enum Refusal {
    Ping { icmp_at: usize },
    End(Reason),
}

impl From<Reason> for Refusal {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::End(reason)
    }
}

/// Parses a frame that arrived on interface `ingress`.
#[inline(always)]
pub fn parse<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T, ingress: u32) -> Parsed {
    let mut place = match front(frame, |address| tables.may_be_ours(address)) {
        Front::Ours(place) => place,
        Front::End(reason) => return Parsed::End(reason),
    };
    if is_own(frame, tables, place) {
        place = match arrival(frame, tables, place, ingress) {
            Arrival::HandOff(inner) => inner,
            Arrival::Probe(probe) => return Parsed::Probe(probe),
            Arrival::ProbeEcho(probe) => return Parsed::ProbeEcho(probe),
            Arrival::End(reason) => return Parsed::End(reason),
        };
    }
    if place.is_v6 {
        match flow_v6(frame, tables, place) {
            Flow::Packet(packet) => Parsed::V6(packet),
            Flow::Ping(ping) => Parsed::Ping(ping),
            Flow::End(reason) => Parsed::End(reason),
        }
    } else {
        match flow_v4(frame, tables, place) {
            Flow::Packet(packet) => Parsed::V4(packet),
            Flow::Ping(ping) => Parsed::Ping(ping),
            Flow::End(reason) => Parsed::End(reason),
        }
    }
}

/// The link layer, and whether the packet behind it may concern this member at all.
///
/// Asks nothing but the filter, `Tables::may_be_ours`: traffic of others is to cost next to nothing.
#[inline(always)]
pub fn front<F: Frame + ?Sized>(frame: &F, may_be_ours: impl Fn(Words) -> bool) -> Front {
    let Some(link) = Link::of(frame) else { return Front::End(Reason::NotIp) };
    let is_v6 = link.ethertype == u16::from_ne_bytes(ETHERTYPE_IPV6);
    if !is_v6 && link.ethertype != u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return Front::End(Reason::NotIp);
    }
    let place = Place { at: link.length, is_v6, end: frame.length(), via_peer: false, outer: OuterFields { tos: 0 } };
    match destination(frame, place) {
        Some(address) if may_be_ours(address) => Front::Ours(place),
        Some(_) => Front::End(Reason::NotOurs),
        None => Front::End(Reason::NotIp),
    }
}

/// The destination of the packet at `place`.
#[inline(always)]
fn destination<F: Frame + ?Sized>(frame: &F, place: Place) -> Option<Words> {
    Some(if place.is_v6 {
        let ip = frame.header::<Ipv6Hdr>(place.at)?;
        [load64::<{ ip::DESTINATION_V6 }, _>(ip), load64::<{ ip::DESTINATION_V6 + 8 }, _>(ip)]
    } else {
        let ip = frame.header::<Ipv4Hdr>(place.at)?;
        mapped_words(load32::<{ ip::DESTINATION_V4 }, _>(ip))
    })
}

/// Whether the packet at `place` is addressed to this member itself; see `arrival`.
#[inline(always)]
pub fn is_own<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T, place: Place) -> bool {
    let node = tables.node();
    if place.is_v6 {
        let own = &node.addresses[V6];
        frame.header::<Ipv6Hdr>(place.at).is_some_and(|ip| ip::is_same(&ip.dst_addr, own))
    } else {
        let own = low_word(&node.addresses[V4]);
        own != 0 && frame.header::<Ipv4Hdr>(place.at).is_some_and(|ip| load32::<{ ip::DESTINATION_V4 }, _>(ip) == own)
    }
}

/// To this member's own address, on interface `ingress`: a tunnel packet, a probe, or the host's own traffic.
#[inline(always)]
pub fn arrival<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T, place: Place, ingress: u32) -> Arrival {
    let node = tables.node();
    let (protocol, source, is_plain, inner, length, tos) = if place.is_v6 {
        let Some(ip) = frame.header::<Ipv6Hdr>(place.at) else { return Arrival::End(Reason::NotIp) };
        (ip.next_hdr, ip.src_addr, true, place.at + IPV6, IPV6 + be16(ip.payload_len), class_v6(ip))
    } else {
        let Some(ip) = frame.header::<Ipv4Hdr>(place.at) else { return Arrival::End(Reason::NotIp) };
        let is_plain = ip.vihl == 0x45 && !is_fragment(ip);
        (ip.proto, mapped(ip.src_addr), is_plain, place.at + IPV4, be16(ip.tot_len), ip.tos)
    };
    let on_cluster_interface = node.cluster_ifindex == 0 || node.cluster_ifindex == ingress;
    if protocol == UDP {
        return probe::parse(frame, tables, place, source, is_plain, on_cluster_interface);
    }
    if protocol != IPIP && protocol != IPV6_IN_IP {
        return Arrival::End(Reason::NotOurs);
    }
    if !on_cluster_interface || tables.member_at(&source).is_none() {
        return Arrival::End(Reason::DropStranger);
    }
    if !is_plain {
        return Arrival::End(Reason::DropMalformed);
    }
    let end = place.end.min(place.at + length);
    let is_v6 = protocol == IPV6_IN_IP;
    let inner = Place { at: inner, is_v6, end, via_peer: true, outer: OuterFields { tos } };
    match destination(frame, inner) {
        Some(address) if tables.may_be_ours(address) => Arrival::HandOff(inner),
        Some(_) => Arrival::End(Reason::DropTunnelNoService),
        None => Arrival::End(Reason::DropMalformed),
    }
}

/// The checks are the same for a packet from the wire and from the tunnel: the tunnel carries no authority.
#[inline(always)]
pub fn flow_v4<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T, place: Place) -> Flow<FlowKeyV4> {
    let Some(ip) = frame.header::<Ipv4Hdr>(place.at) else { return Flow::End(cut_off(place)) };
    match ip::packet_v4(frame, place, ip) {
        Ok(packet) => Flow::Packet(packet),
        Err(refusal) => refused(tables, place, mapped(ip.dst_addr), refusal),
    }
}

/// The same of IPv6.
#[inline(always)]
pub fn flow_v6<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T, place: Place) -> Flow<FlowKeyV6> {
    let Some(ip) = frame.header::<Ipv6Hdr>(place.at) else { return Flow::End(cut_off(place)) };
    match ip::packet_v6(frame, place, ip) {
        Ok(packet) => Flow::Packet(packet),
        Err(refusal) => refused(tables, place, ip.dst_addr, refusal),
    }
}

/// The filter has false positives; before a packet is dropped or answered, its address must surely be a VIP.
#[inline(always)]
fn refused<K, T: Tables>(tables: &T, place: Place, vip: Address, refusal: Refusal) -> Flow<K> {
    let Some(mark) = tables.service(&ServiceKey::vip(vip)) else { return Flow::End(elsewhere(place)) };
    let reason = match refusal {
        Refusal::Ping { icmp_at } if !place.via_peer && mark.flags & SERVICE_ECHO != 0 => {
            return Flow::Ping(Ping { at: place.at, icmp_at, is_v6: place.is_v6 });
        }
        Refusal::Ping { .. } => Reason::NotBalanced,
        Refusal::End(reason) => reason,
    };
    Flow::End(match reason {
        // What the host could take from the wire, a peer has no reason to send through the tunnel.
        Reason::NotBalanced | Reason::NeighbourDiscovery if place.via_peer => Reason::DropTunnelNoService,
        Reason::NotBalanced if tables.node().flags & NODE_DROP_OTHER != 0 => Reason::DropNotBalanced,
        reason => reason,
    })
}

#[inline(always)]
const fn be16(bytes: [u8; 2]) -> usize {
    u16::from_be_bytes(bytes) as usize
}

/// A frame that ends within its IP header.
#[inline(always)]
const fn cut_off(place: Place) -> Reason {
    if place.via_peer { Reason::DropMalformed } else { Reason::NotIp }
}

/// Not for a VIP.
#[inline(always)]
const fn elsewhere(place: Place) -> Reason {
    if place.via_peer { Reason::DropTunnelNoService } else { Reason::NotOurs }
}

#[cfg(test)]
mod tests;
