//! The packets, as the harness lays them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    bench::{
        Course, LAYOUT_V4, LAYOUT_V4_IN_V4, LAYOUT_V6, LAYOUT_V6_IN_V4, LAYOUT_V6_IN_V6, TEMPLATE_WORDS, source_v4,
    },
    checksum::of_ipv4_header,
};
use serde::Serialize;
use zerocopy::{FromZeros as _, IntoBytes as _};

/// TCP flags, as in the header's fourteenth byte.
pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;

/// The source of a client's IPv6 packets; the last two bytes are `source_v6`'s.
pub(crate) const CLIENT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const ETHERNET: usize = 14;
const IPIP: u8 = 4;
const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
const IPV6_IN_IP: u8 = 41;

/// Address family of the client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where packets go; the clients are the harness's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The VIP for IPv4 packets.
    pub v4: [u8; 4],
    /// The VIP for IPv6 packets.
    pub v6: [u8; 16],
    /// The service's port.
    pub port: u16,
}

/// The outer header of a tunnel packet, whose family is its addresses'.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnel {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

/// A frame, and how the harness varies it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) layout: u32,
    pub(crate) frame: Vec<u8>,
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
}

impl Packet {
    /// A client's segment, in a frame of `bytes` or, where its headers do not fit, as few more as they need.
    pub(crate) fn new(family: Family, to: &Destination, tcp: Segment, tunnel: Option<Tunnel>, bytes: usize) -> Self {
        let outer = tunnel.map(|tunnel| Family::of(tunnel.source));
        let inner_at = ETHERNET + outer.map_or(0, Family::header_bytes);
        let bytes = bytes.max(inner_at + family.header_bytes() + TCP_HEADER);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9];
        frame.extend(outer.unwrap_or(family).ethertype());
        if let Some(tunnel) = tunnel {
            let protocol = if family == Family::V4 { IPIP } else { IPV6_IN_IP };
            frame.extend(header(tunnel.source, tunnel.destination, protocol, bytes - ETHERNET));
        }
        let (client, vip) = match family {
            Family::V4 => (source_v4(0).into(), to.v4.into()),
            Family::V6 => (CLIENT_V6.into(), to.v6.into()),
        };
        frame.extend(header(client, vip, TCP, bytes - inner_at));
        let mut segment = [0; TCP_HEADER];
        segment[2..4].copy_from_slice(&to.port.to_be_bytes());
        segment[4..8].copy_from_slice(&tcp.seq.to_be_bytes());
        segment[12..16].copy_from_slice(&[0x50, tcp.flags, 0xff, 0xff]);
        frame.extend(segment);
        frame.resize(bytes, 0);
        let layout = match (family, outer) {
            (Family::V4, None) => LAYOUT_V4,
            (Family::V4, Some(Family::V4)) => LAYOUT_V4_IN_V4,
            (Family::V4, Some(Family::V6)) => unreachable!("no row sends IPv4 in IPv6"),
            (Family::V6, None) => LAYOUT_V6,
            (Family::V6, Some(Family::V4)) => LAYOUT_V6_IN_V4,
            (Family::V6, Some(Family::V6)) => LAYOUT_V6_IN_V6,
        };
        Self { layout, frame }
    }

    /// A course of this packet.
    pub(crate) fn course(&self) -> Course {
        let mut template = [0_u64; TEMPLATE_WORDS];
        let room = template.as_mut_bytes();
        let front = self.frame.len().min(room.len());
        room[..front].copy_from_slice(&self.frame[..front]);
        Course { template, layout: self.layout, frame_bytes: self.frame.len() as u32, ..Course::new_zeroed() }
    }
}

impl Destination {
    /// Documentation addresses (RFC 5737, RFC 3849).
    pub const VIP: Self =
        Self { v4: [203, 0, 113, 10], v6: [0x20, 1, 0xd, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10], port: 80 };
    /// An address that is no VIP.
    pub(crate) const ELSEWHERE: Self = Self {
        v4: [198, 51, 100, 77],
        v6: [0x20, 1, 0xd, 0xb8, 0xee, 0xee, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10],
        port: 80,
    };

    /// The same with another VIP of one family.
    #[must_use]
    pub fn with(self, vip: SocketAddr) -> Self {
        match vip.ip() {
            IpAddr::V4(v4) => Self { v4: v4.octets(), port: vip.port(), ..self },
            IpAddr::V6(v6) => Self { v6: v6.octets(), port: vip.port(), ..self },
        }
    }
}

impl Family {
    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(crate) const fn header_bytes(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    const fn ethertype(self) -> [u8; 2] {
        match self {
            Self::V4 => [8, 0],
            Self::V6 => [0x86, 0xdd],
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// An IP header of a packet of `length` bytes.
fn header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [l0, l1] = (length as u16).to_be_bytes();
            let mut header = [0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let checksum = of_ipv4_header(&header);
            header[10..12].copy_from_slice(&checksum);
            header.to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [l0, l1] = ((length - Family::V6.header_bytes()) as u16).to_be_bytes();
            [&[0x60, 0, 0, 0, l0, l1, protocol, 64][..], &source.octets(), &destination.octets()].concat()
        }
        _ => unreachable!("both ends of a packet are of one family"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNELS: [Option<Tunnel>; 3] = [
        None,
        Some(Tunnel {
            source: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            destination: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        }),
        Some(Tunnel {
            source: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            destination: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        }),
    ];

    /// etherparse shares no code with this file.
    #[test]
    fn frames_are_what_their_headers_say() {
        for (family, tunnel, bytes) in [Family::V4, Family::V6].into_iter().flat_map(|family| {
            TUNNELS.into_iter().flat_map(move |tunnel| [(family, tunnel, 64), (family, tunnel, 1400)])
        }) {
            if family == Family::V4 && tunnel.is_some_and(|tunnel| tunnel.source.is_ipv6()) {
                continue;
            }
            let packet = Packet::new(family, &Destination::VIP, Segment { flags: ACK, seq: 7 }, tunnel, bytes);
            assert!(packet.frame.len() >= bytes);
            let sliced = etherparse::LaxSlicedPacket::from_ethernet(&packet.frame).unwrap();
            assert!(sliced.stop_err.is_none(), "{sliced:?}");
            assert!(sliced.net.is_some());
        }
    }
}
