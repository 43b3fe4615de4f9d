//! The IP headers of a packet for a VIP.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{
    Frame, Place, Refusal,
    extension::{part_of, upper},
    icmp, transport,
};
use crate::{
    address::{Address, is_martian_v4, is_martian_v6},
    bytes::{load16, load32, load64},
    flow::{FlowKeyV4, FlowKeyV6, SCTP, TCP, UDP},
    packet::{ICMP, ICMPV6, IPIP, IPV4, IPV6, IPV6_IN_IP, IpFields, Packet, Part},
    reason::Reason,
};

/// Where the source lies in an IPv4 header.
pub(super) const SOURCE_V4: usize = offset_of!(Ipv4Hdr, src_addr);
/// Where the destination lies in an IPv4 header.
pub(super) const DESTINATION_V4: usize = offset_of!(Ipv4Hdr, dst_addr);
/// Where the source lies in an IPv6 header.
pub(super) const SOURCE_V6: usize = offset_of!(Ipv6Hdr, src_addr);
/// Where the destination lies in an IPv6 header.
pub(super) const DESTINATION_V6: usize = offset_of!(Ipv6Hdr, dst_addr);

/// More fragments to come, or not the first one (RFC 791).
#[inline(always)]
pub(crate) fn is_fragment(ip: &Ipv4Hdr) -> bool {
    u16::from_be_bytes(ip.frags) & 0x3fff != 0
}

/// The traffic class.
#[inline(always)]
pub(crate) fn class_v6(ip: &Ipv6Hdr) -> u8 {
    ip.vcf[0] << 4 | ip.vcf[1] >> 4
}

#[inline(always)]
pub(super) fn is_same(in_packet: &Address, in_map: &Address) -> bool {
    load64::<0, _>(in_packet) == load64::<0, _>(in_map) && load64::<8, _>(in_packet) == load64::<8, _>(in_map)
}

#[inline(always)]
pub(super) fn packet_v4<F: Frame + ?Sized>(
    frame: &F,
    place: Place,
    ip: &Ipv4Hdr,
) -> Result<Packet<FlowKeyV4>, Refusal> {
    let at = place.at;
    let header = (ip.vihl & 0x0f) as usize * 4;
    let length = u16::from_be(load16::<{ offset_of!(Ipv4Hdr, tot_len) }, _>(ip)) as usize;
    if ip.vihl >> 4 != 4 || header < IPV4 || length < header || at + length > place.end {
        return Err(Reason::DropMalformed.into());
    }
    let fragment = u16::from_be(load16::<{ offset_of!(Ipv4Hdr, frags) }, _>(ip));
    let part = part_of(fragment & 0x1fff, fragment & 0x2000 != 0);
    let [a, b] = ip.id;
    let datagram = [0, 0, a, b];
    let fields = IpFields {
        length: length as u32,
        tos: ip.tos,
        ttl: ip.ttl,
        checksum: load16::<{ offset_of!(Ipv4Hdr, check) }, _>(ip),
        label: 0,
        is_whole: fragment & 0x4000 != 0,
    };
    let seen = match ip.proto {
        TCP | UDP | SCTP => {
            if is_martian_v4(ip.src_addr) {
                return Err(Reason::DropMartian.into());
            }
            transport::parse(frame, at + header, ip.proto, length - header, part)?
        }
        ICMP => {
            let quote = icmp::quoted_v4(frame, at + header, length - header, part)?;
            if quote.source != load32::<DESTINATION_V4, _>(ip) {
                return Err(Reason::DropQuote.into());
            }
            let key = FlowKeyV4::of_words(quote.destination, quote.source, quote.ports, quote.protocol);
            return Ok(quoting(place, key, fields));
        }
        IPIP | IPV6_IN_IP if place.via_peer => return Err(Reason::DropNestedTunnel.into()),
        _ => return Err(Reason::NotBalanced.into()),
    };
    Ok(Packet {
        key: FlowKeyV4::of_words(load32::<SOURCE_V4, _>(ip), load32::<DESTINATION_V4, _>(ip), seen.ports, ip.proto),
        flags: seen.flags,
        seq: seen.seq,
        has_payload: seen.has_payload,
        part,
        datagram,
        via_peer: place.via_peer,
        ip: fields,
        outer: place.outer,
        at,
    })
}

#[inline(always)]
pub(super) fn packet_v6<F: Frame + ?Sized>(
    frame: &F,
    place: Place,
    ip: &Ipv6Hdr,
) -> Result<Packet<FlowKeyV6>, Refusal> {
    let at = place.at;
    let length = IPV6 + u16::from_be(load16::<{ offset_of!(Ipv6Hdr, payload_len) }, _>(ip)) as usize;
    if ip.vcf[0] >> 4 != 6 || at + length > place.end {
        return Err(Reason::DropMalformed.into());
    }
    let fields = IpFields {
        length: length as u32,
        tos: class_v6(ip),
        ttl: ip.hop_limit,
        checksum: 0,
        label: ip.vcf[1] & 0x0f,
        is_whole: true,
    };
    let upper = upper(frame, ip.next_hdr, at + IPV6)?;
    let rest = (at + length).checked_sub(upper.at).ok_or(Reason::DropMalformed)?;
    let words = |of: &Address| [load64::<0, _>(of), load64::<8, _>(of)];
    let seen = match upper.protocol {
        TCP | UDP | SCTP => {
            if is_martian_v6(&ip.src_addr) {
                return Err(Reason::DropMartian.into());
            }
            transport::parse(frame, upper.at, upper.protocol, rest, upper.part)?
        }
        ICMPV6 => {
            let quote = icmp::quoted_v6(frame, upper.at, rest, upper.part)?;
            if !is_same(&quote.ip.src_addr, &ip.dst_addr) {
                return Err(Reason::DropQuote.into());
            }
            let (client, vip) = (words(&quote.ip.dst_addr), words(&quote.ip.src_addr));
            return Ok(quoting(place, FlowKeyV6::of_words(client, vip, quote.ports, quote.protocol), fields));
        }
        IPIP | IPV6_IN_IP if place.via_peer => return Err(Reason::DropNestedTunnel.into()),
        _ => return Err(Reason::NotBalanced.into()),
    };
    let source = [load64::<SOURCE_V6, _>(ip), load64::<{ SOURCE_V6 + 8 }, _>(ip)];
    let destination = [load64::<DESTINATION_V6, _>(ip), load64::<{ DESTINATION_V6 + 8 }, _>(ip)];
    Ok(Packet {
        key: FlowKeyV6::of_words(source, destination, seen.ports, upper.protocol),
        flags: seen.flags,
        seq: seen.seq,
        has_payload: seen.has_payload,
        part: upper.part,
        datagram: upper.datagram,
        via_peer: place.via_peer,
        ip: fields,
        outer: place.outer,
        at,
    })
}

/// An ICMP error, addressed to the flow that it quotes.
#[inline(always)]
fn quoting<K>(place: Place, key: K, ip: IpFields) -> Packet<K> {
    Packet {
        key,
        flags: 0,
        seq: 0,
        has_payload: false,
        part: Part::Quote,
        datagram: [0; 4],
        via_peer: place.via_peer,
        ip,
        outer: place.outer,
        at: place.at,
    }
}
