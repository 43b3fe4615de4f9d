//! What the datapath knows of a packet once it is parsed.

use network_types::ip::Ipv4Hdr;

/// A TCP or UDP packet for a VIP, and where its headers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<K> {
    /// The 5-tuple.
    pub key: K,
    /// TCP's flags as on the wire (`FIN`, ...); 0 for UDP.
    pub tcp_flags: u8,
    /// TCP's sequence number; 0 for UDP.
    pub seq: u32,
    /// Whether data follows the transport header.
    pub has_payload: bool,
    /// Whether it came through the tunnel, from a member.
    pub via_peer: bool,
    /// What delivery and hand-off need of the IP header.
    pub ip: IpFields,
    /// What the outer header said; zero where there was none.
    pub outer: OuterFields,
}

/// Fields of the IPv4 header that the balancer reads or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpFields {
    /// Total length: header and payload, in bytes.
    pub length: u16,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Header checksum, network order.
    pub checksum: [u8; 2],
}

/// Fields of the outer IPv4 header that the balancer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterFields {
    /// DSCP and ECN.
    pub tos: u8,
}

/// TCP: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP: the connection begins.
pub const SYN: u8 = 0x02;
/// TCP: the connection is refused or aborted.
pub const RST: u8 = 0x04;
/// TCP: the acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options, thus of the outer header.
pub const IPV4: usize = Ipv4Hdr::LEN;
/// IP protocol number of IPv4 in IPv4 (RFC 2003).
pub const IPIP: u8 = 4;
/// Where the ethertype lies.
pub const ETHERTYPE_AT: usize = 12;
/// Ethertype of IPv4, network order.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// The ECN bits of the traffic class (RFC 3168).
pub const ECN: u8 = 0x03;
/// ECN: congestion experienced.
pub const CE: u8 = 0x03;
