//! The `decap` program: takes the outer header off packets from the balancers, on a server without a tunnel device.

use aya_ebpf::{bindings::xdp_action, btf_maps::lpm_trie::Key, macros::xdp, programs::XdpContext};
use lb_common::{
    address::Address,
    bytes::store16,
    decap::{DecapTables, Outcome, Strip, judge},
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6},
    parse::Frame as _,
};

use crate::{cursor::Cursor, forward::Link, maps};

/// Passes everything up: a packet from a balancer for a VIP without its outer header, all else untouched.
#[xdp]
fn decap(ctx: XdpContext) -> u32 {
    run(&Cursor::linear(&ctx))
}

/// The same for frames that lie in several buffers (kernel 5.18, c2f2cdbeffda): MTUs beyond a page.
#[xdp(frags)]
fn decap_frags(ctx: XdpContext) -> u32 {
    run(&Cursor::multi_buffer(&ctx))
}

#[inline(always)]
fn run(cursor: &Cursor<'_>) -> u32 {
    let outcome = match judge(cursor, &Maps) {
        Ok(found) => strip(cursor, &found).unwrap_or(Outcome::PassedMalformed),
        Err(outcome) => outcome,
    };
    maps::add(maps::DECAP_COUNTERS.get_ptr_mut(outcome as u32), cursor.length());
    match outcome {
        Outcome::Passed
        | Outcome::Stripped
        | Outcome::PassedStranger
        | Outcome::PassedNoVip
        | Outcome::PassedMalformed => xdp_action::XDP_PASS,
        Outcome::DroppedCongestion => xdp_action::XDP_DROP,
    }
}

struct Maps;

impl DecapTables for Maps {
    #[inline(always)]
    fn is_balancer(&self, family: usize, address: &Address) -> bool {
        maps::DECAP_FROM.get(&Key::new(128, *address)).is_some_and(|of| *of as usize == family)
    }

    #[inline(always)]
    fn is_vip(&self, family: usize, address: &Address) -> bool {
        is_vip(family, address)
    }
}

/// Whether `address` is a VIP of this server.
#[inline(always)]
pub(crate) fn is_vip(family: usize, address: &Address) -> bool {
    // SAFETY: the value is one word; a concurrent update is seen whole or not at all.
    unsafe { maps::DECAP_VIPS.get(address) }.is_some_and(|of| *of as usize == family)
}

/// The link-layer header moves up to the inner packet, over the outer header.
#[inline(always)]
fn strip(cursor: &Cursor<'_>, found: &Strip) -> Option<Outcome> {
    let way = Link::of(cursor, found.link)?;
    if !cursor.move_head(found.outer as i32) {
        return None;
    }
    let inner = &found.inner;
    if found.is_v6 {
        way.write(cursor, ETHERTYPE_IPV6)?;
        let ip = cursor.header_mut::<[u8; IPV6]>(found.link)?;
        ip[0] = 0x60 | inner.tos >> 4;
        ip[1] = inner.tos << 4 | inner.label;
    } else {
        way.write(cursor, ETHERTYPE_IPV4)?;
        let ip = cursor.header_mut::<[u8; IPV4]>(found.link)?;
        ip[1] = inner.tos;
        store16::<10, _>(ip, inner.checksum);
    }
    Some(Outcome::Stripped)
}
