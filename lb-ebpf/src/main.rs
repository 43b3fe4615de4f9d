//! Tandem's XDP programs: `balancer` on balancers, `decap` on servers without a tunnel device.
//!
//! A packet's way is `parse -> steer -> forward`. The first two are `lb-common`'s, over the tables
//! of `tables.rs`; all packet pointer arithmetic is in `cursor.rs`.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

mod cursor;
mod decap;
mod forward;
mod maps;
mod probe;
mod tables;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, macros::xdp, programs::XdpContext};
use lb_common::{
    outer,
    parse::{Frame as _, Parsed, parse},
    reason::{Action, Reason},
    steer::{Verdict, steer},
    target::Target,
};

use crate::{cursor::Cursor, tables::Maps};

/// Balances packets for the services' VIPs; everything else passes.
#[xdp]
fn balancer(ctx: XdpContext) -> u32 {
    let cursor = Cursor::new(&ctx);
    let bytes = cursor.length();
    let (reason, way) = balance(&cursor);
    maps::count(reason, bytes);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(&ctx, "{}", reason.name());
    action(&cursor, reason, way)
}

/// The interface that a packet leaves by; 0 if it does not leave.
type Way = u32;

#[inline(always)]
fn balance(cursor: &Cursor<'_>) -> (Reason, Way) {
    let Some(mut maps) = Maps::open() else { return (Reason::Unconfigured, 0) };
    let packet = match parse(cursor, &maps, cursor.ingress()) {
        Parsed::End(reason) => return (reason, 0),
        Parsed::Probe { from } => return (probe::reflect(cursor, from), cursor.ingress()),
        Parsed::Echo { from } => return (probe::take(cursor, from), 0),
        Parsed::Packet(packet) => packet,
    };
    maps.set_clock();
    let (rewrite, target, reason): (_, &Target, _) = match steer(&maps, &packet) {
        Verdict::End(reason) => return (reason, 0),
        Verdict::Deliver(target, reason) => (outer::delivery(&packet, maps.node, target), target, reason),
        Verdict::HandOff(target, reason) => (outer::hand_off(&packet, maps.node, target), target, reason),
    };
    let rewrite = match rewrite {
        Ok(rewrite) => rewrite,
        Err(reason) => return (reason, 0),
    };
    let way = target.next_hop.ifindex;
    match forward::encapsulate(cursor, packet.via_peer, &rewrite) {
        Ok(()) => (reason, way),
        Err(reason) => (reason, 0),
    }
}

/// The whole pass and drop policy.
#[inline(always)]
fn action(cursor: &Cursor<'_>, reason: Reason, way: Way) -> u32 {
    match reason.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop | Action::Consume => xdp_action::XDP_DROP,
        Action::Answer | Action::Deliver | Action::HandOff if way == cursor.ingress() => xdp_action::XDP_TX,
        // SAFETY: a helper call without pointers.
        Action::Answer | Action::Deliver | Action::HandOff => unsafe { bpf_redirect(way, 0) as u32 },
    }
}

/// A panic is an endless loop, which the verifier refuses: a program that can panic does not load.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel reads it here: some helpers are only for GPL-compatible programs.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// On the host the crate exists only for clippy.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
