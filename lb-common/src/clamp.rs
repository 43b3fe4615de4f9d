//! The servers' side of links that have no room for the outer header: SYNs and SYN-ACKs from the VIPs name a segment size
//! with which the clients' segments still fit once they are encapsulated.
//!
//! Such packets leave by the server's own route, past the balancers, so only the server can change them.

use core::mem::offset_of;

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    address::{Address, mapped},
    decap::outcomes,
    flow::TCP,
    node::{V4, V6},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, SYN},
    parse::{Frame, Link, Walk, is_fragment},
    rank::opaque,
};

/// ARRAY by family (`V4`, `V6`): the largest segment size (`u32`) that SYNs from the VIPs may name.
pub const CLAMP_MSS: &str = "clamp_mss";
/// PERCPU_ARRAY by `Outcome`: `Counter`.
pub const CLAMP_COUNTERS: &str = "clamp_counters";

outcomes! {
    /// No SYN from a VIP.
    Passed = "passed";
    /// The segment size was lowered.
    Lowered = "lowered";
    /// The segment size was low enough.
    LowEnough = "low_enough";
    /// Names no segment size: the other end takes the protocol's default, which is lower than any clamp.
    Unnamed = "unnamed";
    /// A SYN from a VIP whose headers contradict each other or lie in more than one buffer.
    Unreadable = "unreadable";
}

/// The tables that `clamp` reads; `family` is `V4` or `V6`.
pub trait ClampTables {
    /// Whether this address is a VIP of this server.
    fn is_vip(&self, family: usize, address: &Address) -> bool;
    /// The largest segment size that a SYN may name.
    fn mss(&self, family: usize) -> u16;
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clamp {
    /// Where the segment size lies.
    pub at: usize,
    /// What it is.
    pub old: u16,
    /// What it becomes.
    pub new: u16,
    /// Where the TCP checksum lies.
    pub checksum_at: usize,
}

impl Clamp {
    /// What leaves and what enters the sum that the checksum is of, as words that lie in memory.
    ///
    /// At an odd offset the two bytes belong to two words, the first to the lower half of one, the second to the upper
    /// half of the next: the sum is the same as that of one word with the bytes swapped.
    #[inline(always)]
    pub const fn words(&self) -> (u16, u16) {
        if (self.at - self.checksum_at).is_multiple_of(2) {
            (self.old.to_be(), self.new.to_be())
        } else {
            (self.old.to_le(), self.new.to_le())
        }
    }
}

/// The options of a TCP header have at most 40 bytes, and that of the segment size takes four.
const OPTIONS_MAX: usize = 37;
const TCP_HEADER: usize = size_of::<TcpHdr>();
const CHECKSUM: usize = offset_of!(TcpHdr, check);
const FLAGS: usize = 13;

/// Option kinds (RFC 9293, section 3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const SEGMENT_SIZE: u8 = 2;

/// Judges a frame that leaves.
#[inline(always)]
pub fn judge<F: Frame + ?Sized, T: ClampTables>(frame: &F, tables: &T) -> Result<Clamp, Outcome> {
    let link = Link::of(frame).ok_or(Outcome::Passed)?;
    let (family, at, source) = match link.ethertype.to_ne_bytes() {
        ETHERTYPE_IPV4 => {
            let ip = frame.header::<Ipv4Hdr>(link.length).ok_or(Outcome::Passed)?;
            if ip.proto != TCP || is_fragment(ip) {
                return Err(Outcome::Passed);
            }
            let header = (ip.vihl & 0x0f) as usize * 4;
            (V4, link.length + header.max(IPV4), mapped(ip.src_addr))
        }
        ETHERTYPE_IPV6 => {
            let ip = frame.header::<Ipv6Hdr>(link.length).ok_or(Outcome::Passed)?;
            let walk = frame.walk(ip.next_hdr, link.length + IPV6);
            if walk.outcome != Walk::DONE || walk.protocol != TCP || walk.fragment_at != 0 {
                return Err(Outcome::Passed);
            }
            (V6, walk.at as usize, ip.src_addr)
        }
        _ => return Err(Outcome::Passed),
    };
    let tcp = frame.header::<[u8; TCP_HEADER]>(at).ok_or(Outcome::Passed)?;
    if tcp[FLAGS] & SYN == 0 || !tables.is_vip(family, &source) {
        return Err(Outcome::Passed);
    }
    let end = at + (tcp[12] >> 4) as usize * 4;
    let (named_at, old) = segment_size(frame, at + TCP_HEADER, end)?;
    let new = tables.mss(family);
    if old <= new {
        return Err(Outcome::LowEnough);
    }
    Ok(Clamp { at: named_at, old, new, checksum_at: at + CHECKSUM })
}

/// Where among the options from `at` to `end` the segment size is named, and the segment size.
#[inline(always)]
fn segment_size<F: Frame + ?Sized>(frame: &F, mut at: usize, end: usize) -> Result<(usize, u16), Outcome> {
    for _ in 0..OPTIONS_MAX {
        if at + 4 > end {
            break;
        }
        let [kind, length, high, low] = *frame.header::<[u8; 4]>(at).ok_or(Outcome::Unreadable)?;
        match (kind, length) {
            (END, _) => break,
            (SEGMENT_SIZE, 4) => return Ok((at + 2, u16::from_be_bytes([high, low]))),
            (SEGMENT_SIZE, _) => return Err(Outcome::Unreadable),
            _ => at += step(kind, length).ok_or(Outcome::Unreadable)?,
        }
    }
    Err(Outcome::Unnamed)
}

/// Bytes of an option; without a branch, or the verifier would follow every mixture of padding and options on its own.
#[inline(always)]
fn step(kind: u8, length: u8) -> Option<usize> {
    // All ones for the option that has no length field, else zero.
    let alone = (opaque(u64::from(kind ^ NO_OPERATION).wrapping_sub(1)) as i64 >> 63) as u64;
    let bytes = opaque((u64::from(length) & !alone) | (alone & 1));
    ((bytes | alone & 2) > 1).then_some(bytes as usize)
}
