//! IPv6 extension headers.

use super::{Frame, OFFSET_MAX};
use crate::{bytes::load16, packet::Part, rank::opaque, reason::Reason};

/// Extension headers that are walked: in the order that RFC 8200 recommends, no more than six come before the transport.
const EXTENSIONS_MAX: usize = 6;
/// Bytes of extension headers that are walked; a segment list of ten addresses is 168.
const EXTENSION_BYTES_MAX: usize = 512;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What follows the IPv6 headers.
#[derive(Clone, Copy)]
pub(super) struct Upper {
    pub(super) protocol: u8,
    pub(super) at: usize,
    pub(super) part: Part,
    pub(super) datagram: [u8; 4],
}

/// Where the extension headers end: `Walk::DONE` and the rest, or one of the failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// `DONE`, `CUT_OFF` or `TOO_MANY`.
    pub outcome: u8,
    /// Protocol of what follows.
    pub protocol: u8,
    /// Where it begins, from the beginning of the frame.
    pub at: u16,
    /// Where the fragment header begins; 0 where there is none.
    pub fragment_at: u16,
}

impl Walk {
    /// The walk came to its end.
    pub const DONE: u8 = 0;
    /// The frame ends within a header.
    pub const CUT_OFF: u8 = 1;
    /// More headers, or longer ones, than are walked.
    pub const TOO_MANY: u8 = 2;

    /// The fields as one word.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.outcome as u64 | (self.protocol as u64) << 8 | (self.at as u64) << 16 | (self.fragment_at as u64) << 32
    }

    /// The fields from their word.
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            outcome: packed as u8,
            protocol: (packed >> 8) as u8,
            at: (packed >> 16) as u16,
            fragment_at: (packed >> 32) as u16,
        }
    }
}

/// What follows the IPv6 header at `at`, of protocol `next`.
#[inline(always)]
pub(super) fn upper<F: Frame + ?Sized>(frame: &F, next: u8, at: usize) -> Result<Upper, Reason> {
    if !is_extension(next) {
        return Ok(Upper { protocol: next, at, part: Part::Whole, datagram: [0; 4] });
    }
    let walk = frame.walk(next, at);
    match walk.outcome {
        Walk::DONE => {}
        Walk::CUT_OFF => return Err(Reason::DropMalformed),
        _ => return Err(Reason::DropExtensions),
    }
    let mut upper = Upper {
        protocol: walk.protocol,
        // However many headers there were, the verifier need not tell one number from another.
        at: opaque(u64::from(walk.at)) as usize & OFFSET_MAX,
        part: Part::Whole,
        datagram: [0; 4],
    };
    if walk.fragment_at != 0 {
        let header = frame.header::<[u8; 8]>(walk.fragment_at as usize & OFFSET_MAX).ok_or(Reason::DropMalformed)?;
        let place = u16::from_be(load16::<2, _>(header));
        upper.part = part_of(place >> 3, place & 1 != 0);
        upper.datagram = [header[4], header[5], header[6], header[7]];
    }
    Ok(upper)
}

/// Walks the extension headers (RFC 8200, section 4), to a bound in number and in bytes.
#[inline(always)]
pub fn walk<F: Frame + ?Sized>(frame: &F, next: u8, at: usize) -> Walk {
    let (mut protocol, mut here, mut fragment_at) = (next, at, 0);
    let mut i = 0;
    let outcome = loop {
        if !is_extension(protocol) {
            break Walk::DONE;
        }
        if i == EXTENSIONS_MAX || here - at > EXTENSION_BYTES_MAX {
            break Walk::TOO_MANY;
        }
        let Some(header) = frame.header::<[u8; 4]>(here) else { break Walk::CUT_OFF };
        if protocol == FRAGMENT {
            fragment_at = here;
            // What follows the header of a later fragment are no headers.
            if u16::from_be(load16::<2, _>(header)) & 0xfff8 != 0 {
                protocol = header[0];
                here += 8;
                break Walk::DONE;
            }
            here += 8;
        } else {
            here += (header[1] as usize + 1) * 8;
        }
        protocol = header[0];
        i += 1;
    };
    let outcome = if here > OFFSET_MAX { Walk::TOO_MANY } else { outcome };
    Walk { outcome, protocol, at: here as u16, fragment_at: fragment_at as u16 }
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// What a fragment is by its offset and "more fragments".
#[inline(always)]
pub(super) const fn part_of(offset: u16, has_more: bool) -> Part {
    match (offset, has_more) {
        (0, false) => Part::Whole,
        (0, true) => Part::FirstFragment,
        _ => Part::LaterFragment,
    }
}
