//! Answers to clients: echo replies (RFC 792, RFC 4443), and "fragmentation needed" or "packet too big".

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    address::{is_martian_v4, is_martian_v6},
    bytes::{load16, load32, load64, store16, store32, store64},
    checksum::{finish, of_ipv4_header, updated},
    node::{V4, V6},
    packet::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMPV6, IPV4, IPV6},
    parse::{Frame as _, OFFSET_MAX, Ping},
    reason::Reason,
};

use network_types::ip::Ipv6Hdr;

use crate::{cursor::Cursor, forward::Link, maps};

/// TTL of an answer.
const TTL: u8 = 64;
const ICMP_HEADER: usize = 8;
/// What is quoted of a packet: the longest IPv4 header and eight bytes; a packet that is too big has more.
const QUOTE_V4: usize = 68;
/// The rest of 1280 bytes, the smallest MTU of IPv6 (RFC 4443, section 2.4 c).
const QUOTE_V6: usize = 1280 - IPV6 - ICMP_HEADER;

/// Turns an echo request into its reply; a later fragment of one is sent back as it is.
///
/// A later fragment keeps its TTL, less one: should it be somebody's reply, nothing goes round for ever.
#[inline(always)]
pub(crate) fn ping(cursor: &Cursor<'_>, ping: Ping) -> Reason {
    let answered = if ping.is_v6 { ping_v6(cursor, ping) } else { ping_v4(cursor, ping) };
    match answered {
        Some(Reason::PingAnswered) if turn(cursor).is_none() => Reason::DropMalformed,
        Some(reason) => reason,
        None => Reason::DropMalformed,
    }
}

/// Sends a frame back the way it came, with the tags it has.
#[inline(always)]
pub(crate) fn turn(cursor: &Cursor<'_>) -> Option<()> {
    let ethernet = cursor.header_mut::<[u8; ETHERNET]>(0)?;
    let destination = (load32::<0, _>(ethernet), load16::<4, _>(ethernet));
    let source = (load32::<6, _>(ethernet), load16::<10, _>(ethernet));
    store32::<0, _>(ethernet, source.0);
    store16::<4, _>(ethernet, source.1);
    store32::<6, _>(ethernet, destination.0);
    store16::<10, _>(ethernet, destination.1);
    Some(())
}

#[inline(always)]
fn ping_v4(cursor: &Cursor<'_>, ping: Ping) -> Option<Reason> {
    let ip = cursor.header_mut::<[u8; IPV4]>(ping.at)?;
    if is_martian_v4([ip[12], ip[13], ip[14], ip[15]]) {
        return Some(Reason::DropMartian);
    }
    let Some(ttl) = answer_ttl(ping, ip[8]) else { return Some(Reason::DropTtl) };
    let (source, destination) = (load32::<12, _>(ip), load32::<16, _>(ip));
    store32::<12, _>(ip, destination);
    store32::<16, _>(ip, source);
    let checksum = updated(load16::<10, _>(ip), u16::from_ne_bytes([ip[8], ip[9]]), u16::from_ne_bytes([ttl, ip[9]]));
    ip[8] = ttl;
    store16::<10, _>(ip, checksum);
    retype(cursor, ping, 0)
}

#[inline(always)]
fn ping_v6(cursor: &Cursor<'_>, ping: Ping) -> Option<Reason> {
    if is_martian_v6(&cursor.header::<Ipv6Hdr>(ping.at)?.src_addr) {
        return Some(Reason::DropMartian);
    }
    let ip = cursor.header_mut::<[u8; IPV6]>(ping.at)?;
    let Some(ttl) = answer_ttl(ping, ip[7]) else { return Some(Reason::DropTtl) };
    let source = [load64::<8, _>(ip), load64::<16, _>(ip)];
    let destination = [load64::<24, _>(ip), load64::<32, _>(ip)];
    store64::<8, _>(ip, destination[0]);
    store64::<16, _>(ip, destination[1]);
    store64::<24, _>(ip, source[0]);
    store64::<32, _>(ip, source[1]);
    ip[7] = ttl;
    retype(cursor, ping, 129)
}

#[inline(always)]
const fn answer_ttl(ping: Ping, ttl: u8) -> Option<u8> {
    match (ping.icmp_at, ttl) {
        (0, 0 | 1) => None,
        (0, ttl) => Some(ttl - 1),
        _ => Some(TTL),
    }
}

/// The type becomes that of a reply. The checksum is of the whole message, and of addresses that only changed places.
#[inline(always)]
fn retype(cursor: &Cursor<'_>, ping: Ping, reply: u8) -> Option<Reason> {
    if ping.icmp_at != 0 {
        let icmp = cursor.header_mut::<[u8; ICMP_HEADER]>(ping.icmp_at)?;
        let checksum =
            updated(load16::<2, _>(icmp), u16::from_ne_bytes([icmp[0], icmp[1]]), u16::from_ne_bytes([reply, icmp[1]]));
        // Of the two zeros only this one is right for a reply that is all zeros, and right for every other.
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        icmp[0] = reply;
        store16::<2, _>(icmp, checksum);
    }
    Some(Reason::PingAnswered)
}

/// A packet that does not fit, and how much would.
#[derive(Clone, Copy)]
pub(crate) struct Oversized {
    /// Where its IP header begins.
    pub(crate) at: usize,
    /// The family.
    pub(crate) is_v6: bool,
    /// Whether it came through a peer.
    pub(crate) via_peer: bool,
    /// The largest packet that fits.
    pub(crate) mtu: u32,
}

/// Turns a packet into the error that tells its sender the right size; returns the interface that it leaves by, or 0.
///
/// It goes back the way it came, unless that was through a peer: then by the node's gateway.
#[inline(always)]
pub(crate) fn too_big(cursor: &Cursor<'_>, packet: Oversized) -> u32 {
    let flags = u64::from(packet.is_v6) | u64::from(packet.via_peer) << 1;
    answer_too_big(cursor.context(), cursor.length() as u32, packet.at as u32, packet.mtu, flags)
}

/// A global function: the verifier walks it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn answer_too_big(ctx: *mut xdp_md, length: u32, at: u32, mtu: u32, flags: u64) -> u32 {
    let ctx = XdpContext::new(ctx);
    let cursor = Cursor::new(&ctx, length as usize);
    let packet =
        Oversized { at: at as usize & OFFSET_MAX, is_v6: flags & 1 != 0, via_peer: flags & 2 != 0, mtu: mtu & 0xffff };
    rewrite_too_big(&cursor, packet).unwrap_or(0)
}

#[inline(always)]
fn rewrite_too_big(cursor: &Cursor<'_>, packet: Oversized) -> Option<u32> {
    let (way, ifindex) = if packet.via_peer {
        let hop = maps::GATEWAYS.get(if packet.is_v6 { V6 } else { V4 } as u32).filter(|hop| hop.ifindex != 0)?;
        (Link::to(hop), hop.ifindex)
    } else {
        (Link::back(cursor, packet.at)?, cursor.ingress())
    };
    let link = way.length();
    let (ip, quote) = if packet.is_v6 { (IPV6, QUOTE_V6) } else { (IPV4, QUOTE_V4) };
    let front = link + ip + ICMP_HEADER;
    // The tail first, counted from the old beginning: it cannot fail half-way.
    if !cursor.cut_tail(cursor.length() as i32 - (packet.at + quote) as i32)
        || !cursor.move_head(packet.at as i32 - front as i32)
    {
        return None;
    }
    if packet.is_v6 {
        too_big_v6(cursor, link, packet.mtu)?;
        way.write(cursor, ETHERTYPE_IPV6)?;
    } else {
        too_big_v4(cursor, link, packet.mtu)?;
        way.write(cursor, ETHERTYPE_IPV4)?;
    }
    Some(ifindex)
}

/// Destination unreachable, fragmentation needed (RFC 1191, section 4).
#[inline(always)]
fn too_big_v4(cursor: &Cursor<'_>, link: usize, mtu: u32) -> Option<()> {
    let quoted = cursor.header::<[u8; IPV4]>(link + IPV4 + ICMP_HEADER)?;
    let (client, vip) = (load32::<12, _>(quoted), load32::<16, _>(quoted));
    let [m0, m1] = (mtu as u16).to_be_bytes();
    let (kind, next) = (u32::from_ne_bytes([3, 4, 0, 0]), u32::from_ne_bytes([0, 0, m0, m1]));
    let sum = cursor.sum::<QUOTE_V4>(link + IPV4 + ICMP_HEADER, 0)?;
    let [c0, c1] = finish(u64::from(sum) + u64::from(kind) + u64::from(next)).to_ne_bytes();
    let [l0, l1] = ((IPV4 + ICMP_HEADER + QUOTE_V4) as u16).to_be_bytes();
    let mut words = [u32::from_ne_bytes([0x45, 0, l0, l1]), 0, u32::from_ne_bytes([TTL, ICMP, 0, 0]), vip, client];
    let [h0, h1] = of_ipv4_header(&words).to_ne_bytes();
    words[2] = u32::from_ne_bytes([TTL, ICMP, h0, h1]);
    let front = cursor.header_mut::<[u8; IPV4 + ICMP_HEADER]>(link)?;
    store32::<0, _>(front, words[0]);
    store32::<4, _>(front, words[1]);
    store32::<8, _>(front, words[2]);
    store32::<12, _>(front, words[3]);
    store32::<16, _>(front, words[4]);
    store32::<20, _>(front, u32::from_ne_bytes([3, 4, c0, c1]));
    store32::<24, _>(front, next);
    Some(())
}

/// Packet too big (RFC 4443, section 3.2); the checksum covers a pseudo-header (RFC 8200, section 8.1).
#[inline(always)]
fn too_big_v6(cursor: &Cursor<'_>, link: usize, mtu: u32) -> Option<()> {
    let at = link + IPV6 + ICMP_HEADER;
    let quoted = cursor.header::<[u8; IPV6]>(at)?;
    let client = [load64::<8, _>(quoted), load64::<16, _>(quoted)];
    let vip = [load64::<24, _>(quoted), load64::<32, _>(quoted)];
    const LENGTH: u16 = (ICMP_HEADER + QUOTE_V6) as u16;
    let [l0, l1] = LENGTH.to_be_bytes();
    // Source and destination are those of the quoted packet, the other way round.
    let sum = cursor.sum::<32>(at + 8, 0)?;
    let sum = cursor.sum::<512>(at, sum)?;
    let sum = cursor.sum::<512>(at + 512, sum)?;
    let sum = cursor.sum::<{ QUOTE_V6 - 1024 }>(at + 1024, sum)?;
    let sum = u64::from(sum)
        + u64::from(u32::from_ne_bytes([0, 0, l0, l1]))
        + u64::from(u32::from_ne_bytes([0, 0, 0, ICMPV6]))
        + u64::from(u32::from_ne_bytes([2, 0, 0, 0]))
        + u64::from(mtu.to_be());
    let [c0, c1] = finish(sum).to_ne_bytes();
    let front = cursor.header_mut::<[u8; IPV6 + ICMP_HEADER]>(link)?;
    store64::<0, _>(front, u64::from_ne_bytes([0x60, 0, 0, 0, l0, l1, ICMPV6, TTL]));
    store64::<8, _>(front, vip[0]);
    store64::<16, _>(front, vip[1]);
    store64::<24, _>(front, client[0]);
    store64::<32, _>(front, client[1]);
    store32::<40, _>(front, u32::from_ne_bytes([2, 0, c0, c1]));
    store32::<44, _>(front, mtu.to_be());
    Some(())
}
