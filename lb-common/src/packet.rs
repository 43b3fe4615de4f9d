//! What the datapath knows of a packet once it is parsed.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

/// A packet for a VIP, and where its headers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<K> {
    /// The 5-tuple; of a later fragment without the ports, of a quote the tuple of the client's own packets.
    pub key: K,
    /// TCP's flags as on the wire (`FIN`, ...), SCTP's chunk as the flag that it corresponds to; 0 for UDP.
    pub flags: u8,
    /// TCP's sequence number; for SCTP see `parse::transport`; 0 for UDP.
    pub seq: u32,
    /// Whether data follows the transport header.
    pub has_payload: bool,
    /// What of a flow it is.
    pub part: Part,
    /// Of a fragment: the identification of its datagram, network order.
    pub datagram: [u8; 4],
    /// Whether it came through the tunnel, from a member.
    pub via_peer: bool,
    /// What delivery and hand-off need of the IP header.
    pub ip: IpFields,
    /// What the outer header said; zero where there was none.
    pub outer: OuterFields,
    /// Where the IP header begins in the frame.
    pub at: usize,
}

/// What of a flow a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A packet of the client.
    Whole,
    /// The first fragment of one: the ports are in it.
    FirstFragment,
    /// Another fragment.
    LaterFragment,
    /// An ICMP error that quotes a packet of the server: it changes nothing that is known of the flow.
    Quote,
}

/// Fields of the IP header that the balancer reads or changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpFields {
    /// Header and payload, in bytes.
    pub length: u32,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// IPv4: header checksum, as it lies in memory.
    pub checksum: u16,
    /// IPv6: the first four bits of the flow label, which share a byte with the traffic class.
    pub label: u8,
    /// Whether it must not be fragmented on its way; always for IPv6.
    pub is_whole: bool,
}

/// Fields of the outer header that the balancer reads.
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

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options, thus of an IPv4 outer header.
pub const IPV4: usize = Ipv4Hdr::LEN;
/// Bytes of an IPv6 header without extensions, thus of an IPv6 outer header.
pub const IPV6: usize = Ipv6Hdr::LEN;
/// IP protocol number of IPv4 in IP (RFC 2003, RFC 2473).
pub const IPIP: u8 = 4;
/// IP protocol number of IPv6 in IP (RFC 4213, RFC 2473).
pub const IPV6_IN_IP: u8 = 41;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Where the ethertype, or the first tag, lies.
pub const ETHERTYPE_AT: usize = 12;
/// Ethertype of IPv4, network order.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// Ethertype of IPv6, network order.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// The ECN bits of the traffic class (RFC 3168).
pub const ECN: u8 = 0x03;
/// ECN: congestion experienced.
pub const CE: u8 = 0x03;
/// The traffic class of a hand-off that must not be handed on (law 1), without its ECN bits: DSCP 1.
///
/// It gives no right: a marked packet is only ever delivered.
pub const SECOND_CHANCE: u8 = 0x04;
/// The traffic class of a later fragment that is sent round another member while its first one may be on its way: DSCP 2.
pub const ROUND: u8 = 0x08;

impl<K> Packet<K> {
    /// Whether a member sent it here to have it back a moment later.
    #[inline(always)]
    pub const fn is_sent_round(&self) -> bool {
        self.via_peer && self.outer.tos & !ECN == ROUND
    }

    /// Whether it asks a member for a second chance: it is delivered there, whoever owns the flow.
    #[inline(always)]
    pub const fn is_marked(&self) -> bool {
        self.via_peer && self.outer.tos & !ECN == SECOND_CHANCE
    }
}
