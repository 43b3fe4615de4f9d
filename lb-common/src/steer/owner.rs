//! Who of a flow's owners acts, in this member's view of who is alive.

use super::Tables;
use crate::{
    rank::{Owners, bit},
    target::Target,
};

/// Members whose datapath answers; this one's does.
#[inline(always)]
pub(super) fn forwarding<T: Tables>(tables: &T) -> u64 {
    audible(tables, tables.liveness().forwarding) | bit(tables.node().id)
}

/// Members that may own a miss; when nobody may, forwarding decides.
#[inline(always)]
pub(super) fn eligible<T: Tables>(tables: &T) -> u64 {
    let node = tables.node();
    let mut mask = audible(tables, tables.liveness().eligible & node.configured);
    if has_lapsed(tables) {
        // Nobody keeps this member's promises while its agent is gone (law 9).
        mask &= !bit(node.id);
    }
    if mask == 0 { forwarding(tables) } else { mask }
}

/// The masks are the agent's; once its lease has lapsed a peer must also have been heard lately.
#[inline(always)]
fn audible<T: Tables>(tables: &T, mask: u64) -> u64 {
    if has_lapsed(tables) { mask & tables.heard_lately() } else { mask }
}

/// Whether the agent has stopped vouching for the masks.
#[inline(always)]
fn has_lapsed<T: Tables>(tables: &T) -> bool {
    tables.liveness().lease_until_ns < tables.now_ns()
}

/// Primary if usable, else backup if usable, else the best-ranked usable member; `mask` says who is usable.
#[inline(always)]
pub(super) fn acting_owner<T: Tables>(tables: &T, owners: Owners, mask: u64, hash: impl Fn() -> u64) -> u8 {
    match living_owner(owners, mask) {
        Some(owner) => owner,
        None => tables.rank(hash(), mask & tables.node().configured).primary,
    }
}

/// Primary if usable, else backup if usable.
#[inline(always)]
pub(super) fn living_owner(owners: Owners, mask: u64) -> Option<u8> {
    if mask & bit(owners.primary) != 0 {
        Some(owners.primary)
    } else if mask & bit(owners.backup) != 0 {
        Some(owners.backup)
    } else {
        None
    }
}

/// The peer to hand off to; none if the owner is this member, unknown, or cannot be reached: then it is delivered here.
#[inline(always)]
pub(super) fn hand_off_target<T: Tables>(tables: &T, owner: u8) -> Option<&Target> {
    if owner == 0 || owner == tables.node().id {
        return None;
    }
    tables.member(owner).filter(|member| member.next_hop.ifindex != 0)
}
