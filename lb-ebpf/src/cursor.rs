//! The only pointer arithmetic on packets in this crate.
//!
//! The verifier wants every access proven against `data_end`; each function here does that for its own access.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_md,
    helpers::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    bytes::Header,
    parse::{Frame, OFFSET_MAX, Walk, walk},
    rank::opaque,
};

/// Where what is summed may begin: an answer is longer than the headers of a packet, 1280 bytes and a tagged link header.
const SUMMED_MAX: usize = 2047;

/// A frame in the driver's buffer, or in several, of which the first one holds the headers.
pub(crate) struct Cursor<'c> {
    ctx: &'c XdpContext,
    length: usize,
}

impl<'c> Cursor<'c> {
    /// The frame that the program was called for, of `length` bytes; 0 where nobody asks.
    #[inline(always)]
    pub(crate) const fn new(ctx: &'c XdpContext, length: usize) -> Self {
        Self { ctx, length }
    }

    /// A frame that lies in one buffer.
    #[inline(always)]
    pub(crate) fn linear(ctx: &'c XdpContext) -> Self {
        Self { ctx, length: ctx.data_end() - ctx.data() }
    }

    /// A frame that may lie in several.
    #[inline(always)]
    pub(crate) fn multi_buffer(ctx: &'c XdpContext) -> Self {
        // SAFETY: the context is the program's own.
        Self { ctx, length: unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) } as usize }
    }

    /// The context, for functions of their own.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut xdp_md {
        self.ctx.as_ptr().cast()
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

    /// Cuts the frame by `by` bytes. Earlier references into the frame are void.
    #[inline(always)]
    pub(crate) fn cut_tail(&self, by: i32) -> bool {
        // SAFETY: the context is the program's own.
        by >= 0 && unsafe { bpf_xdp_adjust_tail(self.ctx.as_ptr().cast(), -by) == 0 }
    }

    /// The header at `offset`, to be written.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the packet is the driver's memory; the verifier checks each access")]
    pub(crate) fn header_mut<T: Header>(&self, offset: usize) -> Option<&mut T> {
        // SAFETY: `address` proved that the frame holds a `T` there; a `Header` accepts any bytes at any alignment.
        self.address::<T>(offset).map(|address| unsafe { &mut *(address as *mut T) })
    }

    /// The sum of the 32-bit words in the `N` bytes at `offset`, added to `sum`, folded to 32 bits.
    ///
    /// `N` is a multiple of 4 and at most 512, what the helper takes on every kernel.
    #[inline(always)]
    pub(crate) fn sum<const N: usize>(&self, offset: usize, sum: u32) -> Option<u32> {
        const { assert!(N.is_multiple_of(4) && N <= 512) };
        // For a helper the verifier wants the offset bounded from below, too, which it reads from a mask.
        let offset = opaque(offset as u64) as usize & SUMMED_MAX;
        let (start, end) = (self.ctx.data(), self.ctx.data_end());
        if start + offset + N > end {
            return None;
        }
        // SAFETY: the frame holds `N` bytes there.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, (start + offset) as *mut u32, N as u32, sum) };
        u32::try_from(sum).ok()
    }

    #[inline(always)]
    fn address<T>(&self, offset: usize) -> Option<usize> {
        address::<T>(self.ctx.data(), self.ctx.data_end(), offset)
    }
}

/// Where the frame from `start` to `end` holds a `T`.
#[inline(always)]
fn address<T>(start: usize, end: usize, offset: usize) -> Option<usize> {
    if offset > OFFSET_MAX || start + offset + size_of::<T>() > end {
        return None;
    }
    Some(start + offset)
}

impl Frame for Cursor<'_> {
    #[inline(always)]
    fn header<T: Header>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `address` proved that the frame holds a `T` there; a `Header` accepts any bytes at any alignment.
        self.address::<T>(offset).map(|address| unsafe { &*(address as *const T) })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn walk(&self, next: u8, at: usize) -> Walk {
        Walk::unpack(walk_extensions(self.ctx.as_ptr().cast(), u32::from(next), at as u32))
    }
}

/// A frame that leaves, as far as it lies in the socket buffer's head; the kernel puts the headers there.
pub(crate) struct Leaving<'c> {
    ctx: &'c TcContext,
}

impl<'c> Leaving<'c> {
    /// The frame that the program was called for.
    #[inline(always)]
    pub(crate) const fn new(ctx: &'c TcContext) -> Self {
        Self { ctx }
    }
}

impl Frame for Leaving<'_> {
    #[inline(always)]
    fn header<T: Header>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `address` proved that the head holds a `T` there; a `Header` accepts any bytes at any alignment.
        address::<T>(self.ctx.data(), self.ctx.data_end(), offset).map(|address| unsafe { &*(address as *const T) })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.ctx.len() as usize
    }
}

/// A global function (kernel 5.6, be8704ff07d2): the verifier walks it once, and not once for every path that calls it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_extensions(ctx: *mut xdp_md, next: u32, at: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    walk(&Cursor::new(&ctx, 0), next as u8, at as usize & OFFSET_MAX).pack()
}
