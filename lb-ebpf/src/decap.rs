//! The `decap` program: takes the outer header off packets from the balancers, on a server without a tunnel device.

use aya_ebpf::{bindings::xdp_action, btf_maps::lpm_trie::Key, macros::xdp, programs::XdpContext};
use lb_common::{
    address::Address,
    decap::{DecapTables, Outcome, judge},
    packet::{ETHERNET, IPV4, IpFields},
    parse::Frame as _,
};

use crate::{cursor::Cursor, maps};

/// Passes everything up: a packet from a balancer for a VIP without its outer header, all else untouched.
#[xdp]
fn decap(ctx: XdpContext) -> u32 {
    let cursor = Cursor::linear(&ctx);
    let bytes = cursor.length();
    let outcome = match judge(&cursor, &Maps) {
        Ok(inner) => strip(&cursor, inner),
        Err(outcome) => outcome,
    };
    maps::add(maps::DECAP_COUNTERS.get_ptr_mut(outcome as u32), bytes);
    match outcome {
        Outcome::Passed | Outcome::Stripped => xdp_action::XDP_PASS,
        Outcome::DroppedCongestion => xdp_action::XDP_DROP,
    }
}

struct Maps;

impl DecapTables for Maps {
    #[inline(always)]
    fn is_balancer(&self, address: &Address) -> bool {
        maps::DECAP_FROM.get(&Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address) -> bool {
        // SAFETY: only its presence matters.
        unsafe { maps::DECAP_VIPS.get(address) }.is_some()
    }
}

/// The Ethernet header moves up to the inner packet, over the outer one.
#[inline(always)]
fn strip(cursor: &Cursor<'_>, inner: IpFields) -> Outcome {
    let Some(ethernet) = cursor.header::<[u8; ETHERNET]>(0).copied() else { return Outcome::Passed };
    if !cursor.move_head(IPV4 as i32) {
        return Outcome::Passed;
    }
    if let Some(front) = cursor.header_mut::<[u8; ETHERNET + IPV4]>(0) {
        let (link, ip) = front.split_at_mut(ETHERNET);
        link.copy_from_slice(&ethernet);
        ip[1] = inner.tos;
        [ip[10], ip[11]] = inner.checksum.to_ne_bytes();
    }
    Outcome::Stripped
}
