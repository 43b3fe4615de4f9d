//! Encapsulation: the outer headers, and what changes in the inner one.
//!
//! IPv4 in IPv4 (RFC 2003); congestion marks by RFC 6040: copied to the outer header on the way
//! in, merged into the inner header on the way out.

use crate::{
    address::low_v4,
    checksum::{of_ipv4_header, updated},
    node::Node,
    packet::{CE, ECN, ETHERNET, ETHERTYPE_IPV4, IPIP, IPV4, IpFields, OuterFields, Packet},
    reason::Reason,
    target::Target,
};

/// TTL of the outer header: as far as a tunnel within one site can need.
const OUTER_TTL: u8 = 64;
/// "Don't fragment": a tunnel packet that does not fit is counted here, not fragmented on the way.
const DONT_FRAGMENT: u8 = 0x40;

/// The bytes to write: an Ethernet and an outer IPv4 header in front, and these fields of the inner header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Ethernet header.
    pub ethernet: [u8; ETHERNET],
    /// Outer IPv4 header.
    pub outer: [u8; IPV4],
    /// Inner header after the change.
    pub inner: IpFields,
}

/// A packet on its last stage: the TTL is decremented, the tunnel's congestion mark merged in.
#[inline(always)]
pub fn delivery<K>(packet: &Packet<K>, node: &Node, to: &Target) -> Result<Rewrite, Reason> {
    if packet.ip.ttl <= 1 {
        return Err(Reason::DropTtl);
    }
    let tos = if packet.via_peer { merged_tos(packet.ip.tos, packet.outer)? } else { packet.ip.tos };
    let mut inner = with_tos(packet.ip, tos);
    inner.checksum = updated(inner.checksum, [inner.ttl, 0], [inner.ttl - 1, 0]);
    inner.ttl -= 1;
    encapsulated(inner, inner.tos, node, to)
}

/// A packet to the member that owns its flow: the inner packet stays as it came.
///
/// Only the congestion bits are copied: the DSCP of a hand-off belongs to the cluster (law 1).
#[inline(always)]
pub fn hand_off<K>(packet: &Packet<K>, node: &Node, to: &Target) -> Result<Rewrite, Reason> {
    encapsulated(packet.ip, packet.ip.tos & ECN, node, to)
}

#[inline(always)]
fn encapsulated(inner: IpFields, tos: u8, node: &Node, to: &Target) -> Result<Rewrite, Reason> {
    let hop = &to.next_hop;
    if hop.ifindex == 0 {
        return Err(Reason::DropNoNextHop);
    }
    let length = inner.length as u32 + IPV4 as u32;
    if length > 0xffff || (hop.mtu != 0 && length > hop.mtu as u32) {
        return Err(Reason::DropTooBig);
    }
    let [l0, l1] = (length as u16).to_be_bytes();
    let [s0, s1, s2, s3] = low_v4(&node.address);
    let [d0, d1, d2, d3] = low_v4(&to.address);
    let mut outer = [0x45, tos, l0, l1, 0, 0, DONT_FRAGMENT, 0, OUTER_TTL, IPIP, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    [outer[10], outer[11]] = of_ipv4_header(&outer);
    let [a0, a1, a2, a3, a4, a5] = hop.destination;
    let [b0, b1, b2, b3, b4, b5] = hop.source;
    let [t0, t1] = ETHERTYPE_IPV4;
    Ok(Rewrite { ethernet: [a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5, t0, t1], outer, inner })
}

/// The inner traffic class after decapsulation (RFC 6040, figure 4).
#[inline(always)]
pub fn merged_tos(inner: u8, outer: OuterFields) -> Result<u8, Reason> {
    match (inner & ECN, outer.tos & ECN) {
        // Congestion that the endpoints do not understand can only be told by a loss.
        (0, CE) => Err(Reason::DropCongestion),
        (0, _) | (CE, _) => Ok(inner),
        (_, CE) => Ok(inner | CE),
        // ECT(1) from the tunnel overrides ECT(0).
        (_, 1) => Ok((inner & !ECN) | 1),
        (_, _) => Ok(inner),
    }
}

/// The same header with another traffic class.
#[inline(always)]
pub fn with_tos(ip: IpFields, tos: u8) -> IpFields {
    // The version and the header length share a word with the class; they cancel out.
    IpFields { tos, checksum: updated(ip.checksum, [0, ip.tos], [0, tos]), ..ip }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    /// Longer than any frame that the tests of the datapath can send; a driver that merges segments can.
    #[test]
    fn a_packet_that_would_be_longer_than_ip_allows_is_too_big_for_every_link() {
        let node = Node::new_zeroed();
        let mut target = Target::NONE;
        target.next_hop.ifindex = 1;
        let packet = |length| Packet {
            key: (),
            tcp_flags: 0,
            seq: 0,
            has_payload: true,
            via_peer: false,
            ip: IpFields { length, tos: 0, ttl: 64, checksum: [0; 2] },
            outer: OuterFields::default(),
        };
        let total_length = |rewrite: Rewrite| u16::from_be_bytes([rewrite.outer[2], rewrite.outer[3]]);
        assert_eq!(delivery(&packet(65_515), &node, &target).map(total_length), Ok(65_535));
        for length in [65_516, 65_535] {
            assert_eq!(delivery(&packet(length), &node, &target), Err(Reason::DropTooBig));
            assert_eq!(hand_off(&packet(length), &node, &target), Err(Reason::DropTooBig));
        }
    }

    #[test]
    fn congestion_marks_merge_as_in_rfc_6040_figure_4() {
        let (not_ect, ect1, ect0, ce) = (0, 1, 2, 3);
        let merged = |inner, outer| merged_tos(inner, OuterFields { tos: outer });
        let rows = [
            (not_ect, [Some(not_ect), Some(not_ect), Some(not_ect), None]),
            (ect0, [Some(ect0), Some(ect1), Some(ect0), Some(ce)]),
            (ect1, [Some(ect1), Some(ect1), Some(ect1), Some(ce)]),
            (ce, [Some(ce), Some(ce), Some(ce), Some(ce)]),
        ];
        for (inner, row) in rows {
            for (outer, expected) in [not_ect, ect1, ect0, ce].into_iter().zip(row) {
                assert_eq!(merged(inner, outer).ok(), expected, "inner {inner}, outer {outer}");
                // The other six bits are the inner packet's own.
                assert_eq!(merged(inner | 0xb8, outer).ok(), expected.map(|ecn| ecn | 0xb8));
            }
        }
    }
}
