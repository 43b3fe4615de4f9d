//! Writes what was decided into the packet; looks nothing up.

use lb_common::{
    outer::Rewrite,
    packet::{ETHERNET, IPV4},
    reason::Reason,
};

use crate::cursor::Cursor;

/// Ethernet, outer and inner header.
const HEADERS: usize = ETHERNET + IPV4 + IPV4;
const INNER: usize = ETHERNET + IPV4;

/// Puts the outer headers in front of the packet; one from a peer has room for them already.
#[inline(always)]
pub(crate) fn encapsulate(cursor: &Cursor<'_>, via_peer: bool, rewrite: &Rewrite) -> Result<(), Reason> {
    if !via_peer && !cursor.move_head(-(IPV4 as i32)) {
        return Err(Reason::DropHeadroom);
    }
    let headers = cursor.header_mut::<[u8; HEADERS]>(0).ok_or(Reason::DropMalformed)?;
    let (front, inner) = headers.split_at_mut(INNER);
    let (ethernet, outer) = front.split_at_mut(ETHERNET);
    ethernet.copy_from_slice(&rewrite.ethernet);
    outer.copy_from_slice(&rewrite.outer);
    inner[1] = rewrite.inner.tos;
    inner[8] = rewrite.inner.ttl;
    [inner[10], inner[11]] = rewrite.inner.checksum;
    Ok(())
}
