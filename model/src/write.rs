//! What the datapath writes, byte by byte: an oracle for `lb-ebpf`'s writers that shares no code with them.

use lb_common::{
    flow::FlowKey,
    liveness::Probe,
    node::{Node, Source, V4, V6},
    packet::{IpFields, Packet},
    parse::{Ping, ProbeFrame},
    target::{NextHop, Target},
};
use zerocopy::IntoBytes as _;

const IPV4: usize = 20;
const IPV6: usize = 40;
const ICMP: usize = 8;

/// The Internet checksum of bytes, after `sum` of others (RFC 1071).
pub fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(sum, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The sum of the pseudo-header of IPv6 (RFC 8200, section 8.1).
pub fn pseudo_sum(addresses: &[u8], length: usize, protocol: u8) -> u32 {
    u32::from(!checksum(addresses, length as u32 + u32::from(protocol)))
}

/// The checksum in `bytes[at..at + 2]` after the word at `word` has become `new` (RFC 1624, equation 3).
fn update(bytes: &mut [u8], at: usize, word: usize, new: [u8; 2]) {
    let read = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let sum = u32::from(!read(at)) + u32::from(!read(word)) + u32::from(u16::from_be_bytes(new));
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    bytes[word..word + 2].copy_from_slice(&new);
    bytes[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// What an encapsulated packet is made of.
pub struct Outer<'m> {
    /// This member.
    pub node: &'m Node,
    /// The far end.
    pub to: &'m Target,
    /// Whether the outer source is that of deliveries.
    pub is_delivery: bool,
    /// Outer traffic class.
    pub tos: u8,
    /// The inner header afterwards.
    pub inner: IpFields,
}

/// The frame with new outer headers; one that came through the tunnel loses its old ones.
pub fn encapsulated<K: FlowKey>(frame: &[u8], packet: &Packet<K>, outer: &Outer<'_>) -> Vec<u8> {
    let Outer { node, to, is_delivery, tos, inner: ip } = *outer;
    let mut inner = frame[packet.at..].to_vec();
    let length = if K::IS_V6 {
        inner[0] = 6 << 4 | ip.tos >> 4;
        inner[1] = ip.tos << 4 | frame[packet.at + 1] & 0x0f;
        inner[7] = ip.ttl;
        IPV6 + usize::from(u16::from_be_bytes([inner[4], inner[5]]))
    } else {
        // The fields in their order, so that the checksum can be followed.
        let first = [inner[0], ip.tos];
        let ninth = [ip.ttl, inner[9]];
        if inner[1] != ip.tos {
            update(&mut inner, 10, 0, first);
        }
        if inner[8] != ip.ttl {
            update(&mut inner, 10, 8, ninth);
        }
        usize::from(u16::from_be_bytes([inner[2], inner[3]]))
    };
    let protocol = if K::IS_V6 { 41 } else { 4 };
    let sources = if is_delivery { &node.delivery_sources } else { &node.hand_off_sources };
    let spread = packet.key.tag().to_ne_bytes();
    let is_v4 = to.address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let mut out = link(&to.next_hop, is_v4);
    if is_v4 {
        let [l0, l1] = ((IPV4 + length) as u16).to_be_bytes();
        let source = spread_out(&sources[V4], spread);
        let mut header = [0x45, tos, l0, l1, 0, 0, 0x40, 0, 64, protocol, 0, 0].to_vec();
        header.extend(&source[12..]);
        header.extend(&to.address[12..]);
        let sum = checksum(&header, 0);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend(header);
    } else {
        let [l0, l1] = (length as u16).to_be_bytes();
        out.extend([6 << 4 | tos >> 4, tos << 4 | spread[1] & 0x0f, spread[2], spread[3], l0, l1, protocol, 64]);
        out.extend(spread_out(&sources[V6], spread));
        out.extend(to.address);
    }
    out.extend(inner);
    out
}

/// The source address with the host part that the flow decides.
fn spread_out(source: &Source, spread: [u8; 4]) -> [u8; 16] {
    let mut address = source.address;
    for i in 0..4 {
        address[12 + i] |= spread[i] & source.spread[i];
    }
    address
}

/// The link-layer header towards a next hop.
fn link(hop: &NextHop, is_v4: bool) -> Vec<u8> {
    let ethertype: [u8; 2] = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&hop.destination[..], &hop.source, &hop.tags[..usize::from(hop.tag_bytes)], &ethertype].concat()
}

fn swap(bytes: &mut [u8], at: usize, length: usize) {
    let (first, second) = bytes[at..at + 2 * length].split_at_mut(length);
    first.swap_with_slice(second);
}

/// The frame sent back the way it came.
fn turned(frame: &[u8], at: usize, is_v6: bool) -> Vec<u8> {
    let mut out = frame.to_vec();
    swap(&mut out, 0, 6);
    if is_v6 {
        swap(&mut out, at + 8, 16);
    } else {
        swap(&mut out, at + 12, 4);
    }
    out
}

/// A probe's frame, sent back with its echo inside.
pub fn echo(frame: &[u8], probe: &ProbeFrame, echo: &Probe) -> Vec<u8> {
    let mut out = turned(frame, probe.at, probe.is_v6);
    let udp = probe.at + if probe.is_v6 { IPV6 } else { IPV4 };
    swap(&mut out, udp, 2);
    for (word, new) in (udp + 8..).step_by(2).zip(echo.as_bytes().chunks_exact(2)) {
        update(&mut out, udp + 6, word, [new[0], new[1]]);
    }
    let checksum = &mut out[udp + 6..udp + 8];
    match (probe.is_v6, &checksum) {
        (false, _) => checksum.fill(0),
        (true, [0, 0]) => checksum.fill(0xff),
        (true, _) => {}
    }
    out
}

/// The answer to a ping, unless its TTL ends here.
pub fn pong(frame: &[u8], ping: &Ping) -> Option<Vec<u8>> {
    let mut out = turned(frame, ping.at, ping.is_v6);
    let ttl_at = ping.at + if ping.is_v6 { 7 } else { 8 };
    let ttl = if ping.icmp_at == 0 { frame[ttl_at].checked_sub(1).filter(|ttl| *ttl > 0)? } else { 64 };
    if ping.is_v6 {
        out[ttl_at] = ttl;
    } else {
        let protocol = out[ttl_at + 1];
        update(&mut out[ping.at..], 10, 8, [ttl, protocol]);
    }
    if ping.icmp_at != 0 {
        let reply = [if ping.is_v6 { 129 } else { 0 }, out[ping.icmp_at + 1]];
        let icmp = &mut out[ping.icmp_at..];
        update(icmp, 2, 0, reply);
        // Both zeros are right, save for a reply that is all zeros: that one sums up to nothing.
        if icmp[2..4] == [0, 0] {
            icmp[2..4].fill(0xff);
        }
    }
    Some(out)
}

/// The answer to a packet that is larger than `mtu` on its way; none if too little of it is there to quote.
pub fn too_big(frame: &[u8], at: usize, is_v6: bool, mtu: u16, gateway: Option<&NextHop>) -> Option<Vec<u8>> {
    // RFC 1812, section 4.3.2.3 allows more; RFC 4443, section 2.4 c asks for as much as 1280 bytes hold.
    let quoted = frame[at..].get(..if is_v6 { 1280 - IPV6 - ICMP } else { 68 })?;
    let mut out = match gateway {
        Some(hop) => link(hop, !is_v6),
        None => [&frame[6..12], &frame[..6], &frame[12..at]].concat(),
    };
    let [m0, m1] = mtu.to_be_bytes();
    let mut icmp = if is_v6 { [2, 0, 0, 0, 0, 0, m0, m1] } else { [3, 4, 0, 0, 0, 0, m0, m1] }.to_vec();
    icmp.extend(quoted);
    if is_v6 {
        let (client, vip) = (&quoted[8..24], &quoted[24..40]);
        let addresses = [vip, client].concat();
        let sum = checksum(&icmp, pseudo_sum(&addresses, icmp.len(), 58));
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let [l0, l1] = (icmp.len() as u16).to_be_bytes();
        out.extend([6 << 4, 0, 0, 0, l0, l1, 58, 64]);
        out.extend(addresses);
    } else {
        let sum = checksum(&icmp, 0);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let [l0, l1] = ((IPV4 + icmp.len()) as u16).to_be_bytes();
        let mut header = [0x45, 0, l0, l1, 0, 0, 0, 0, 64, 1, 0, 0].to_vec();
        header.extend(&quoted[16..20]);
        header.extend(&quoted[12..16]);
        let sum = checksum(&header, 0);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend(header);
    }
    out.extend(icmp);
    Some(out)
}
