//! The `clamp` program: lowers the segment size in SYNs and SYN-ACKs that leave a server.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use lb_common::{
    address::Address,
    clamp::{Clamp, ClampTables, Outcome, judge},
    parse::Frame as _,
};

use crate::{cursor::Leaving, decap, maps};

/// Leaves every packet to whatever comes next; a SYN from a VIP with a segment size that leaves room for the outer header.
#[classifier]
fn clamp(ctx: TcContext) -> i32 {
    let frame = Leaving::new(&ctx);
    let outcome = match judge(&frame, &Maps) {
        Ok(clamp) => lower(&ctx, &clamp),
        Err(outcome) => outcome,
    };
    maps::add(maps::CLAMP_COUNTERS.get_ptr_mut(outcome as u32), frame.length());
    TC_ACT_UNSPEC
}

struct Maps;

impl ClampTables for Maps {
    #[inline(always)]
    fn is_vip(&self, family: usize, address: &Address) -> bool {
        decap::is_vip(family, address)
    }

    #[inline(always)]
    fn mss(&self, family: usize) -> u16 {
        maps::CLAMP_MSS.get(family as u32).map_or(u16::MAX, |mss| *mss as u16)
    }
}

/// Through helpers, because only they know whether the checksum is whole: where the NIC is to finish it, it does not cover
/// the options yet and stays as it is.
#[inline(always)]
fn lower(ctx: &TcContext, clamp: &Clamp) -> Outcome {
    let (old, new) = clamp.words();
    let is_done = ctx.l4_csum_replace(clamp.checksum_at, old.into(), new.into(), size_of::<u16>() as u64).is_ok()
        && ctx.store(clamp.at, &clamp.new.to_be_bytes(), 0).is_ok();
    if is_done { Outcome::Lowered } else { Outcome::Unreadable }
}
