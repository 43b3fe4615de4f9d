//! The only pointer arithmetic on packets in this crate.
//!
//! The verifier wants every access proven against `data_end`; each function here does that for its own access.

use aya_ebpf::{EbpfContext as _, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::parse::{Frame, Header};

/// No header begins beyond this: 14 + 20 bytes of outer headers, 60 of an IPv4 header, and some room.
const OFFSET_MAX: usize = 127;

/// A frame in the driver's buffer.
pub(crate) struct Cursor<'c> {
    ctx: &'c XdpContext,
}

impl<'c> Cursor<'c> {
    /// The frame that the program was called for.
    #[inline(always)]
    pub(crate) const fn new(ctx: &'c XdpContext) -> Self {
        Self { ctx }
    }

    /// Index of the interface that the frame arrived on.
    #[inline(always)]
    pub(crate) fn ingress(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// Moves the beginning of the frame: negative makes room in front. Earlier references into the frame are void.
    #[inline(always)]
    pub(crate) fn move_head(&self, by: i32) -> bool {
        // SAFETY: the context is the program's own.
        unsafe { bpf_xdp_adjust_head(self.ctx.as_ptr().cast(), by) == 0 }
    }

    /// The header at `offset`, to be written.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the packet is the driver's memory; the verifier checks each access")]
    pub(crate) fn header_mut<T: Header>(&self, offset: usize) -> Option<&mut T> {
        // SAFETY: `address` proved that the frame holds a `T` there; a `Header` accepts any bytes at any alignment.
        self.address::<T>(offset).map(|address| unsafe { &mut *(address as *mut T) })
    }

    #[inline(always)]
    fn address<T>(&self, offset: usize) -> Option<usize> {
        let (start, end) = (self.ctx.data(), self.ctx.data_end());
        if offset > OFFSET_MAX || start + offset + size_of::<T>() > end {
            return None;
        }
        Some(start + offset)
    }
}

impl Frame for Cursor<'_> {
    #[inline(always)]
    fn header<T: Header>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `address` proved that the frame holds a `T` there; a `Header` accepts any bytes at any alignment.
        self.address::<T>(offset).map(|address| unsafe { &*(address as *const T) })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.ctx.data_end() - self.ctx.data()
    }
}
