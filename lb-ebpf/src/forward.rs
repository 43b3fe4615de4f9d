//! Writes what was decided into the packet; looks nothing up.

use lb_common::{
    bytes::{load16, load32, store16, store32, store64},
    flow::FlowKey,
    node::Node,
    outer::{self, Rewrite},
    packet::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, Packet},
    parse::Frame as _,
    reason::Reason,
    target::{NextHop, Target},
};

use crate::cursor::Cursor;

/// Puts the link-layer and outer headers in the place of everything that came in front of the IP header.
#[inline(always)]
pub(crate) fn encapsulate<K: FlowKey>(
    cursor: &Cursor<'_>,
    packet: &Packet<K>,
    rewrite: &Rewrite,
    node: &Node,
    to: &Target,
) -> Result<(), Reason> {
    let way = Link::to(&to.next_hop);
    let link = way.length();
    let front = link + outer::overhead(to);
    if front != packet.at && !cursor.move_head(packet.at as i32 - front as i32) {
        return Err(Reason::DropHeadroom);
    }
    let cut = Reason::DropMalformed;
    if to.is_v4() {
        way.write(cursor, ETHERTYPE_IPV4).ok_or(cut)?;
        let outer = cursor.header_mut::<[u8; IPV4]>(link).ok_or(cut)?;
        let words = rewrite.outer_v4(node, to);
        store32::<0, _>(outer, words[0]);
        store32::<4, _>(outer, words[1]);
        store32::<8, _>(outer, words[2]);
        store32::<12, _>(outer, words[3]);
        store32::<16, _>(outer, words[4]);
    } else {
        way.write(cursor, ETHERTYPE_IPV6).ok_or(cut)?;
        let outer = cursor.header_mut::<[u8; IPV6]>(link).ok_or(cut)?;
        let words = rewrite.outer_v6(node, to);
        store64::<0, _>(outer, words[0]);
        store64::<8, _>(outer, words[1]);
        store64::<16, _>(outer, words[2]);
        store64::<24, _>(outer, words[3]);
        store64::<32, _>(outer, words[4]);
    }
    let ip = &rewrite.inner;
    if K::IS_V6 {
        let inner = cursor.header_mut::<[u8; IPV6]>(front).ok_or(cut)?;
        inner[0] = 0x60 | ip.tos >> 4;
        inner[1] = ip.tos << 4 | ip.label;
        inner[7] = ip.ttl;
    } else {
        let inner = cursor.header_mut::<[u8; IPV4]>(front).ok_or(cut)?;
        inner[1] = ip.tos;
        inner[8] = ip.ttl;
        store16::<10, _>(inner, ip.checksum);
    }
    Ok(())
}

/// A link-layer header as words, each as it lies in memory.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// The first four and the last two bytes of a MAC.
    destination: (u32, u16),
    source: (u32, u16),
    /// Up to two tags, the outer one first.
    tags: (u32, u32),
    tag_bytes: usize,
}

impl Link {
    /// The way to a next hop in a map.
    #[inline(always)]
    pub(crate) fn to(hop: &NextHop) -> Self {
        Self {
            destination: (load32::<0, _>(&hop.destination), load16::<4, _>(&hop.destination)),
            source: (load32::<0, _>(&hop.source), load16::<4, _>(&hop.source)),
            tags: (load32::<0, _>(&hop.tags), load32::<4, _>(&hop.tags)),
            tag_bytes: hop.tag_bytes as usize,
        }
    }

    /// The way back to the sender of a frame, whose link-layer header has `length` bytes.
    #[inline(always)]
    pub(crate) fn back(cursor: &Cursor<'_>, length: usize) -> Option<Self> {
        let way = Self::of(cursor, length)?;
        Some(Self { destination: way.source, source: way.destination, ..way })
    }

    /// The way that a frame came, whose link-layer header has `length` bytes.
    #[inline(always)]
    pub(crate) fn of(cursor: &Cursor<'_>, length: usize) -> Option<Self> {
        let ethernet = cursor.header::<[u8; ETHERNET + 8]>(0)?;
        Some(Self {
            destination: (load32::<0, _>(ethernet), load16::<4, _>(ethernet)),
            source: (load32::<6, _>(ethernet), load16::<10, _>(ethernet)),
            tags: (load32::<12, _>(ethernet), load32::<16, _>(ethernet)),
            tag_bytes: length - ETHERNET,
        })
    }

    /// Bytes of the header.
    #[inline(always)]
    pub(crate) const fn length(&self) -> usize {
        ETHERNET + self.tag_bytes
    }

    /// Writes the header at the beginning of the frame.
    #[inline(always)]
    pub(crate) fn write(&self, cursor: &Cursor<'_>, ethertype: [u8; 2]) -> Option<()> {
        let ethertype = u16::from_ne_bytes(ethertype);
        let ethernet = cursor.header_mut::<[u8; ETHERNET]>(0)?;
        store32::<0, _>(ethernet, self.destination.0);
        store16::<4, _>(ethernet, self.destination.1);
        store32::<6, _>(ethernet, self.source.0);
        store16::<10, _>(ethernet, self.source.1);
        match self.tag_bytes {
            0 => store16::<12, _>(ethernet, ethertype),
            4 => {
                let tagged = cursor.header_mut::<[u8; ETHERNET + 4]>(0)?;
                store32::<12, _>(tagged, self.tags.0);
                store16::<16, _>(tagged, ethertype);
            }
            _ => {
                let tagged = cursor.header_mut::<[u8; ETHERNET + 8]>(0)?;
                store32::<12, _>(tagged, self.tags.0);
                store32::<16, _>(tagged, self.tags.1);
                store16::<20, _>(tagged, ethertype);
            }
        }
        Some(())
    }
}
