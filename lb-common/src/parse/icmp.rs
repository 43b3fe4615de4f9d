//! ICMP to a VIP: echo requests, and errors that quote a packet which a server sent from the VIP.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{
    Frame, Refusal,
    extension::upper,
    ip::{DESTINATION_V4, SOURCE_V4},
};
use crate::{
    bytes::load32,
    flow::{SCTP, TCP, UDP},
    packet::{IPV4, IPV6, Part},
    reason::Reason,
};

/// Bytes of an ICMP header.
const ICMP_HEADER: usize = 8;
/// What a quote holds of the transport header at least (RFC 792): the ports are in the first half.
const QUOTED: usize = 8;

/// The quoted packet, as the server sent it.
pub(super) struct QuotedV4 {
    pub(super) source: u32,
    pub(super) destination: u32,
    /// The client's port and the service's: those of the client's own packets.
    pub(super) ports: u32,
    pub(super) protocol: u8,
}

/// The same of IPv6.
pub(super) struct QuotedV6<'f> {
    pub(super) ip: &'f Ipv6Hdr,
    pub(super) ports: u32,
    pub(super) protocol: u8,
}

/// `length` is what the IP header leaves for the ICMP message.
#[inline(always)]
pub(super) fn quoted_v4<F: Frame + ?Sized>(
    frame: &F,
    at: usize,
    length: usize,
    part: Part,
) -> Result<QuotedV4, Refusal> {
    if matches!(part, Part::LaterFragment) {
        return Err(Refusal::Ping { icmp_at: 0 });
    }
    let kind = message(frame, at, length)?;
    match (kind, part) {
        // Echo request.
        (8, _) => return Err(Refusal::Ping { icmp_at: at }),
        // Destination unreachable, source quench, time exceeded, parameter problem.
        (3 | 4 | 11 | 12, Part::Whole) => {}
        _ => return Err(Reason::NotBalanced.into()),
    }
    let at = at + ICMP_HEADER;
    let quoted = frame.header::<Ipv4Hdr>(at).ok_or(Reason::DropQuote)?;
    let header = (quoted.vihl & 0x0f) as usize * 4;
    // Only a first fragment has ports.
    let is_later = u16::from_be_bytes(quoted.frags) & 0x1fff != 0;
    if quoted.vihl >> 4 != 4 || header < IPV4 || length < ICMP_HEADER + header + QUOTED || is_later {
        return Err(Reason::DropQuote.into());
    }
    let ports = turned_ports(frame, at + header, quoted.proto)?;
    Ok(QuotedV4 {
        source: load32::<SOURCE_V4, _>(quoted),
        destination: load32::<DESTINATION_V4, _>(quoted),
        ports,
        protocol: quoted.proto,
    })
}

/// `length` is what the IP headers leave for the ICMPv6 message.
#[inline(always)]
pub(super) fn quoted_v6<F: Frame + ?Sized>(
    frame: &F,
    at: usize,
    length: usize,
    part: Part,
) -> Result<QuotedV6<'_>, Refusal> {
    if matches!(part, Part::LaterFragment) {
        return Err(Refusal::Ping { icmp_at: 0 });
    }
    let kind = message(frame, at, length)?;
    match (kind, part) {
        // Echo request.
        (128, _) => return Err(Refusal::Ping { icmp_at: at }),
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        (1..=4, Part::Whole) => {}
        // A host without it is not reachable: no policy drops it.
        (133..=137, _) => return Err(Reason::NeighbourDiscovery.into()),
        _ => return Err(Reason::NotBalanced.into()),
    }
    let start = at + ICMP_HEADER;
    let quoted = frame.header::<Ipv6Hdr>(start).ok_or(Reason::DropQuote)?;
    let upper = upper(frame, quoted.next_hdr, start + IPV6)?;
    let is_later = matches!(upper.part, Part::LaterFragment);
    if quoted.vcf[0] >> 4 != 6 || at + length < upper.at + QUOTED || is_later {
        return Err(Reason::DropQuote.into());
    }
    Ok(QuotedV6 { ip: quoted, ports: turned_ports(frame, upper.at, upper.protocol)?, protocol: upper.protocol })
}

/// The type of the message.
#[inline(always)]
fn message<F: Frame + ?Sized>(frame: &F, at: usize, length: usize) -> Result<u8, Reason> {
    match frame.header::<[u8; ICMP_HEADER]>(at) {
        Some(header) if length >= ICMP_HEADER => Ok(header[0]),
        _ => Err(Reason::DropMalformed),
    }
}

/// The ports of a quoted transport header, as the client's packets have them.
#[inline(always)]
fn turned_ports<F: Frame + ?Sized>(frame: &F, at: usize, protocol: u8) -> Result<u32, Refusal> {
    if !matches!(protocol, TCP | UDP | SCTP) {
        return Err(Reason::NotBalanced.into());
    }
    let ports = frame.header::<[u8; 4]>(at).ok_or(Reason::DropQuote)?;
    Ok(load32::<0, _>(ports).rotate_left(16))
}
