//! The link layer: Ethernet with up to two VLAN tags.

use super::Frame;
use crate::packet::{ETHERNET, ETHERTYPE_AT};

/// The link-layer header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The ethertype behind the tags, network order.
    pub ethertype: [u8; 2],
    /// Bytes: 14, 18 or 22.
    pub length: usize,
}

/// Bytes of a VLAN tag (IEEE 802.1Q).
pub(crate) const TAG: usize = 4;

impl Link {
    /// Walks over the tags.
    #[inline(always)]
    pub fn of<F: Frame + ?Sized>(frame: &F) -> Option<Self> {
        let mut ethertype = *frame.header::<[u8; 2]>(ETHERTYPE_AT)?;
        let mut length = ETHERNET;
        if is_tag(ethertype) {
            ethertype = *frame.header::<[u8; 2]>(ETHERTYPE_AT + TAG)?;
            length = ETHERNET + TAG;
            if is_tag(ethertype) {
                ethertype = *frame.header::<[u8; 2]>(ETHERTYPE_AT + 2 * TAG)?;
                length = ETHERNET + 2 * TAG;
            }
        }
        Some(Self { ethertype, length })
    }
}

/// 802.1Q, 802.1ad, and the number that older equipment uses for the outer tag.
#[inline(always)]
const fn is_tag(ethertype: [u8; 2]) -> bool {
    matches!(ethertype, [0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00])
}
