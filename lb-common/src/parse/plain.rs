//! The packets that most packets are: whole, TCP or UDP, without options, extensions or a tunnel.
//!
//! What is found here is what `flow_v4` and `flow_v6` find; they have the rest. So little varies that everything after it
//! stays in registers.

use core::mem::offset_of;

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use super::{Frame, UDP_HEADER, ip};
use crate::{
    address::{is_martian_v4, is_martian_v6},
    bytes::{load16, load32, load64},
    flow::{FlowKeyV4, FlowKeyV6, TCP, UDP},
    packet::{IPV4, IPV6, IpFields, OuterFields, Packet, Part},
};

/// The packet at `at`, if it is a plain one of IPv4.
#[inline(always)]
pub fn plain_v4<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<Packet<FlowKeyV4>> {
    let ip = frame.header::<Ipv4Hdr>(at)?;
    let length = u16::from_be(load16::<{ offset_of!(Ipv4Hdr, tot_len) }, _>(ip)) as usize;
    let fragment = load16::<{ offset_of!(Ipv4Hdr, frags) }, _>(ip);
    let is_part = fragment & u16::from_ne_bytes([0x3f, 0xff]) != 0;
    if ip.vihl != 0x45 || is_part || at + length > frame.length() || is_martian_v4(ip.src_addr) {
        return None;
    }
    let seen = transport(frame, at + IPV4, ip.proto, length.wrapping_sub(IPV4))?;
    Some(Packet {
        key: FlowKeyV4::of_words(
            load32::<{ ip::SOURCE_V4 }, _>(ip),
            load32::<{ ip::DESTINATION_V4 }, _>(ip),
            seen.ports,
            ip.proto,
        ),
        flags: seen.flags,
        seq: seen.seq,
        has_payload: seen.has_payload,
        part: Part::Whole,
        datagram: [0; 4],
        via_peer: false,
        ip: IpFields {
            length: length as u32,
            tos: ip.tos,
            ttl: ip.ttl,
            checksum: load16::<{ offset_of!(Ipv4Hdr, check) }, _>(ip),
            label: 0,
            is_whole: fragment & u16::from_ne_bytes([0x40, 0]) != 0,
        },
        outer: OuterFields { tos: 0 },
        at,
    })
}

/// The packet at `at`, if it is a plain one of IPv6.
#[inline(always)]
pub fn plain_v6<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<Packet<FlowKeyV6>> {
    let ip = frame.header::<Ipv6Hdr>(at)?;
    let payload = u16::from_be(load16::<{ offset_of!(Ipv6Hdr, payload_len) }, _>(ip)) as usize;
    if ip.vcf[0] >> 4 != 6 || at + IPV6 + payload > frame.length() || is_martian_v6(&ip.src_addr) {
        return None;
    }
    let seen = transport(frame, at + IPV6, ip.next_hdr, payload)?;
    let source = [load64::<{ ip::SOURCE_V6 }, _>(ip), load64::<{ ip::SOURCE_V6 + 8 }, _>(ip)];
    let destination = [load64::<{ ip::DESTINATION_V6 }, _>(ip), load64::<{ ip::DESTINATION_V6 + 8 }, _>(ip)];
    Some(Packet {
        key: FlowKeyV6::of_words(source, destination, seen.ports, ip.next_hdr),
        flags: seen.flags,
        seq: seen.seq,
        has_payload: seen.has_payload,
        part: Part::Whole,
        datagram: [0; 4],
        via_peer: false,
        ip: IpFields {
            length: (IPV6 + payload) as u32,
            tos: ip::class_v6(ip),
            ttl: ip.hop_limit,
            checksum: 0,
            label: ip.vcf[1] & 0x0f,
            is_whole: true,
        },
        outer: OuterFields { tos: 0 },
        at,
    })
}

struct Transport {
    ports: u32,
    flags: u8,
    seq: u32,
    has_payload: bool,
}

/// `length` is what the IP header leaves for the transport header and its payload; a negative one is a huge one, for
/// which the header is not there.
#[inline(always)]
fn transport<F: Frame + ?Sized>(frame: &F, at: usize, protocol: u8, length: usize) -> Option<Transport> {
    match protocol {
        TCP => {
            let tcp = frame.header::<TcpHdr>(at)?;
            // Data offset and flags share a word.
            let word = u16::from_be(load16::<12, _>(tcp));
            let header = (word >> 12) as usize * 4;
            if header < size_of::<TcpHdr>() || header > length || length > 0xffff {
                return None;
            }
            let (ports, seq) = (load32::<0, _>(tcp), u32::from_be(load32::<4, _>(tcp)));
            Some(Transport { ports, flags: word as u8, seq, has_payload: length > header })
        }
        UDP => {
            let udp = frame.header::<UdpHdr>(at)?;
            let claimed = u16::from_be(load16::<4, _>(udp)) as usize;
            if claimed < UDP_HEADER || claimed > length || length > 0xffff {
                return None;
            }
            Some(Transport { ports: load32::<0, _>(udp), flags: 0, seq: 0, has_payload: true })
        }
        _ => None,
    }
}
