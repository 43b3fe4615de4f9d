//! The `check` program: packets of the agent's health checks leave through the tunnel, as deliveries to the backend do.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_get_socket_cookie, bpf_redirect_neigh},
    macros::classifier,
    programs::TcContext,
};
use lb_common::{
    address::is_mapped,
    check::{CheckWay, OUTER},
    packet::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPIP, IPV6_IN_IP},
};

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::maps;

/// `BPF_ADJ_ROOM_MAC`: room behind the link-layer header.
const BEHIND_MAC: u32 = 1;

/// Where the protocol is in headers of both families.
const V4_PROTOCOL: usize = offset_of!(Ipv4Hdr, proto);
const V6_PROTOCOL: usize = offset_of!(Ipv6Hdr, next_hdr);

/// Leaves every packet to whatever comes next; one of a check's socket to its backend, behind an outer header.
#[classifier]
fn check(ctx: TcContext) -> i32 {
    // SAFETY: the context is the one that the program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    // SAFETY: the agent writes an element before the socket sends, and takes it out after; nobody changes it in between.
    let Some(way) = (unsafe { maps::CHECK_WAYS.get(cookie) }) else { return TC_ACT_UNSPEC };
    encapsulate(&ctx, way).unwrap_or(TC_ACT_SHOT)
}

/// Through helpers, because only they keep what the kernel knows of the packet: segments still to be cut, checksums
/// still to be filled in.
#[inline(always)]
fn encapsulate(ctx: &TcContext, way: &CheckWay) -> Option<i32> {
    // SAFETY: the context is the one that the program was called with.
    let ethertype = unsafe { (*ctx.skb.skb).protocol } as u16;
    let is_v6 = ethertype == u16::from_ne_bytes(ETHERTYPE_IPV6);
    if !is_v6 && ethertype != u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return None;
    }
    // What was redirected comes by here once more, its socket still attached to it.
    let protocol: u8 = ctx.load(ETHERNET + if is_v6 { V6_PROTOCOL } else { V4_PROTOCOL }).ok()?;
    if protocol == IPIP || protocol == IPV6_IN_IP {
        return Some(TC_ACT_UNSPEC);
    }
    let length = u16::try_from(ctx.len().checked_sub(ETHERNET as u32)?).ok()?;
    let [v4, v6] = OUTER;
    if is_mapped(&way.target) {
        ctx.adjust_room(v4 as i32, BEHIND_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4.into()).ok()?;
        ctx.store(ETHERNET, &way.outer_v4(is_v6, length), 0).ok()?;
    } else {
        ctx.adjust_room(v6 as i32, BEHIND_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6.into()).ok()?;
        ctx.store(ETHERNET, &way.outer_v6(is_v6, length), 0).ok()?;
    }
    // The kernel asks for the neighbour, and writes the link-layer header.
    // SAFETY: no parameters.
    Some(unsafe { bpf_redirect_neigh(way.ifindex, core::ptr::null_mut(), 0, 0) } as i32)
}
