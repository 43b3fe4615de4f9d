//! The link layer: Ethernet with up to two VLAN tags.

use super::Frame;
use crate::{
    bytes::load16,
    packet::{ETHERNET, ETHERTYPE_AT, ETHERTYPE_IPV4},
};

/// The link-layer header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The ethertype behind the tags, as it lies in memory.
    pub ethertype: u16,
    /// Bytes: 14, 18 or 22.
    pub length: usize,
}

/// Bytes of a VLAN tag (IEEE 802.1Q).
pub(crate) const TAG: usize = 4;

impl Link {
    /// Walks over the tags.
    #[inline(always)]
    pub fn of<F: Frame + ?Sized>(frame: &F) -> Option<Self> {
        let mut ethertype = ethertype(frame, ETHERTYPE_AT)?;
        let mut length = ETHERNET;
        // Without a tag, as most frames are, no more is compared than this.
        if ethertype != IP && is_tag(ethertype) {
            ethertype = self::ethertype(frame, ETHERTYPE_AT + TAG)?;
            length = ETHERNET + TAG;
            if is_tag(ethertype) {
                ethertype = self::ethertype(frame, ETHERTYPE_AT + 2 * TAG)?;
                length = ETHERNET + 2 * TAG;
            }
        }
        Some(Self { ethertype, length })
    }
}

/// IPv4, as it lies in memory.
const IP: u16 = u16::from_ne_bytes(ETHERTYPE_IPV4);

#[inline(always)]
fn ethertype<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<u16> {
    frame.header::<[u8; 2]>(at).map(load16::<0, _>)
}

/// 802.1Q, 802.1ad, and the number that older equipment uses for the outer tag.
#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    const TAGS: [u16; 3] =
        [u16::from_ne_bytes([0x81, 0x00]), u16::from_ne_bytes([0x88, 0xa8]), u16::from_ne_bytes([0x91, 0x00])];
    ethertype == TAGS[0] || ethertype == TAGS[1] || ethertype == TAGS[2]
}
