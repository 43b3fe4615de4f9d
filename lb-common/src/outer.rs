//! Encapsulation: the outer headers, and what changes in the inner one.
//!
//! Either family in either (RFC 2003, 2473, 4213); congestion marks by RFC 6040: copied to the outer header on the way
//! in, merged into the inner header on the way out.

use crate::{
    address::low_word,
    bytes::{load32, load64},
    checksum::{of_ipv4_header, updated},
    flow::FlowKey,
    node::{Node, Source, V4, V6},
    packet::{CE, ECN, IPIP, IPV4, IPV6, IPV6_IN_IP, IpFields, OuterFields, Packet, ROUND, SECOND_CHANCE},
    reason::Reason,
    target::Target,
};

/// TTL of the outer header: as far as a tunnel within one site can need.
const OUTER_TTL: u8 = 64;
/// "Don't fragment": a tunnel packet that does not fit is counted here, not fragmented on the way.
const DONT_FRAGMENT: u8 = 0x40;

/// What to write: an outer header in front of the inner one, and these fields of the inner one.
///
/// Holds no references: with one in it the compiler would keep reasons in the same place, and the verifier refuses that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Inner header after the change.
    pub inner: IpFields,
    /// Whether the outer source is that of deliveries.
    is_delivery: bool,
    /// Outer traffic class.
    tos: u8,
    /// The inner packet's family, as a protocol number.
    protocol: u8,
    /// What tells the flow from others; any bits of it.
    spread: u32,
}

impl Rewrite {
    /// The sources of the outer header, by family.
    #[inline(always)]
    const fn sources<'n>(&self, node: &'n Node) -> &'n [Source; 2] {
        if self.is_delivery { &node.delivery_sources } else { &node.hand_off_sources }
    }

    /// The outer IPv4 header (without options) as words, each as it lies in memory.
    #[inline(always)]
    pub fn outer_v4(&self, node: &Node, to: &Target) -> [u32; 5] {
        let source = &self.sources(node)[V4];
        let [l0, l1] = ((self.inner.length + IPV4 as u32) as u16).to_be_bytes();
        let mut words = [
            u32::from_ne_bytes([0x45, self.tos, l0, l1]),
            u32::from_ne_bytes([0, 0, DONT_FRAGMENT, 0]),
            u32::from_ne_bytes([OUTER_TTL, self.protocol, 0, 0]),
            low_word(&source.address) | self.spread & load32::<0, _>(&source.spread),
            low_word(&to.address),
        ];
        let [c0, c1] = of_ipv4_header(&words).to_ne_bytes();
        words[2] = u32::from_ne_bytes([OUTER_TTL, self.protocol, c0, c1]);
        words
    }

    /// The outer IPv6 header (without extensions) as words, each as it lies in memory.
    ///
    /// The flow label tells flows apart for routers that spread tunnels over links (RFC 6438).
    #[inline(always)]
    pub fn outer_v6(&self, node: &Node, to: &Target) -> [u64; 5] {
        let source = &self.sources(node)[V6];
        let [l0, l1] = (self.inner.length as u16).to_be_bytes();
        let [_, f0, f1, f2] = self.spread.to_ne_bytes();
        let low: u64 = zerocopy::transmute!([0_u32, self.spread & load32::<0, _>(&source.spread)]);
        let class = [0x60 | self.tos >> 4, self.tos << 4 | f0 & 0x0f];
        [
            u64::from_ne_bytes([class[0], class[1], f1, f2, l0, l1, self.protocol, OUTER_TTL]),
            load64::<0, _>(&source.address),
            load64::<8, _>(&source.address) | low,
            load64::<0, _>(&to.address),
            load64::<8, _>(&to.address),
        ]
    }
}

/// Bytes that encapsulation towards `to` adds to a packet.
#[inline(always)]
pub fn overhead(to: &Target) -> usize {
    if to.is_v4() { IPV4 } else { IPV6 }
}

/// What a packet is encapsulated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It goes to a backend, its last stage: the TTL is decremented, the tunnel's congestion mark merged in.
    Delivery,
    /// It goes to the member that owns its flow: the inner packet stays as it came.
    ///
    /// Only the congestion bits are copied: the DSCP of a hand-off belongs to the cluster (law 1).
    HandOff,
    /// It goes to a member that may know its flow better, marked so that it stays there.
    ///
    /// The mark might be lost on the way: the TTL is decremented, so that even then nothing goes round for ever.
    SecondChance,
    /// It goes to a member that sends it back, so that it arrives later; the TTL is decremented on both ways.
    Round,
}

impl Purpose {
    /// What a packet with this verdict is encapsulated for.
    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::HandOffKnown | Reason::HandOffUnknown | Reason::HandOffFragment => Self::HandOff,
            Reason::HandOffSecondChance => Self::SecondChance,
            Reason::HandOffFragmentRound => Self::Round,
            _ => Self::Delivery,
        }
    }
}

/// Makes the headers of a packet on its way to `to`.
#[inline(always)]
pub fn encapsulate<K: FlowKey>(packet: &Packet<K>, purpose: Purpose, to: &Target) -> Result<Rewrite, Reason> {
    let mut inner = packet.ip;
    // What came through a peer and is handed on has made a way that ends with its TTL.
    if packet.via_peer || !matches!(purpose, Purpose::HandOff) {
        if packet.via_peer {
            inner = with_tos::<K>(inner, merged_tos(inner.tos, packet.outer)?);
        }
        inner = one_hop_on(inner)?;
    }
    let tos = match purpose {
        Purpose::Delivery => inner.tos,
        Purpose::HandOff => inner.tos & ECN,
        Purpose::SecondChance => inner.tos & ECN | SECOND_CHANCE,
        Purpose::Round => inner.tos & ECN | ROUND,
    };
    let hop = &to.next_hop;
    if hop.ifindex == 0 {
        return Err(Reason::DropNoNextHop);
    }
    let length = inner.length + overhead(to) as u32;
    if length > 0xffff || (hop.mtu != 0 && length > hop.mtu as u32) {
        return Err(Reason::DropTooBig);
    }
    Ok(Rewrite {
        inner,
        is_delivery: matches!(purpose, Purpose::Delivery),
        tos,
        protocol: if K::IS_V6 { IPV6_IN_IP } else { IPIP },
        spread: packet.key.tag(),
    })
}

#[inline(always)]
fn one_hop_on(ip: IpFields) -> Result<IpFields, Reason> {
    if ip.ttl <= 1 {
        return Err(Reason::DropTtl);
    }
    let ttl = ip.ttl - 1;
    let checksum = updated(ip.checksum, u16::from_ne_bytes([ip.ttl, 0]), u16::from_ne_bytes([ttl, 0]));
    Ok(IpFields { ttl, checksum, ..ip })
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

/// The same header with another traffic class; `K` tells the family.
#[inline(always)]
pub fn with_tos<K: FlowKey>(ip: IpFields, tos: u8) -> IpFields {
    if K::IS_V6 || tos == ip.tos {
        return IpFields { tos, ..ip };
    }
    // The version and the header length share a word with the class; they cancel out.
    let checksum = updated(ip.checksum, u16::from_ne_bytes([0, ip.tos]), u16::from_ne_bytes([0, tos]));
    IpFields { tos, checksum, ..ip }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::mapped,
        flow::{FlowKeyV4, TCP},
        packet::Part,
    };

    fn packet(length: u32) -> Packet<FlowKeyV4> {
        Packet {
            key: FlowKeyV4::new([1; 4], [2; 4], [3; 2], [4; 2], TCP),
            flags: 0,
            seq: 0,
            has_payload: true,
            part: Part::Whole,
            datagram: [0; 4],
            via_peer: false,
            ip: IpFields { length, ttl: 64, ..IpFields::default() },
            outer: OuterFields::default(),
            at: 14,
        }
    }

    /// Longer than any frame that the tests of the datapath can send; a driver that merges segments can.
    #[test]
    fn a_packet_that_would_be_longer_than_ip_allows_is_too_big_for_every_link() {
        let mut target = Target::NONE;
        target.next_hop.ifindex = 1;
        for (address, header) in [(mapped([10, 0, 0, 1]), 20), ([7; 16], 40)] {
            target.address = address;
            let longest = packet(65_535 - header);
            assert_eq!(
                encapsulate(&longest, Purpose::Delivery, &target).map(|rewrite| rewrite.inner.length),
                Ok(65_535 - header)
            );
            for length in [65_536 - header, 65_535] {
                let too_long = packet(length);
                assert_eq!(encapsulate(&too_long, Purpose::Delivery, &target), Err(Reason::DropTooBig));
                assert_eq!(encapsulate(&too_long, Purpose::HandOff, &target), Err(Reason::DropTooBig));
            }
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
