//! Tandem's programs: `balancer` on balancers, `decap` on servers without a tunnel device, and there `clamp` for what leaves;
//! `check` on balancers, for the packets of their health checks.
//!
//! A packet's way is `parse -> steer -> forward`. The first two are `lb-common`'s, over the tables
//! of `tables.rs`; all packet pointer arithmetic is in `cursor.rs`.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

mod answer;
mod check;
mod clamp;
mod cursor;
mod decap;
mod forward;
mod maps;
mod probe;
mod tables;
#[cfg(any(feature = "other-version", feature = "defect-seen", feature = "defect-unseen", feature = "defect-refused"))]
mod variant;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    flow::{FlowKey, FlowKeyV4, FlowKeyV6},
    node::{BUDGET_ANSWERS, NODE_DROP_OVERSIZED},
    outer::{self, Purpose},
    packet::{Packet, Part},
    parse::{self, Arrival, Flow, Frame as _, Front, OFFSET_MAX, Place, arrival, flow_v4, flow_v6, front, is_own},
    reason::{Action, Reason},
    steer::{Flows, Tables as _, Verdict, Way, steer_quickly, steer_rest},
    target::Target,
};

use crate::{
    answer::Oversized,
    cursor::Cursor,
    tables::{Aside, Maps},
};

/// Balances packets for the services' VIPs; everything else passes.
#[xdp]
fn balancer(ctx: XdpContext) -> u32 {
    run(&Cursor::linear(&ctx))
}

/// The same for frames that lie in several buffers (kernel 5.18, c2f2cdbeffda): MTUs beyond a page.
#[xdp(frags)]
fn balancer_frags(ctx: XdpContext) -> u32 {
    run(&Cursor::multi_buffer(&ctx))
}

#[inline(always)]
fn run(cursor: &Cursor<'_>) -> u32 {
    // At hand before anything is read, so that traffic of others needs no more than this one.
    let Some(filter) = maps::VIP_FILTER.get(0) else { return xdp_action::XDP_PASS };
    let place = match front(cursor, |address| filter.may_contain(address)) {
        Front::Ours(place) => place,
        Front::End(reason) => {
            maps::count(reason, cursor.length());
            return xdp_action::XDP_PASS;
        }
    };
    let end = balance(cursor, place);
    #[cfg(any(
        feature = "other-version",
        feature = "defect-seen",
        feature = "defect-unseen",
        feature = "defect-refused"
    ))]
    let end = variant::apply(cursor, end);
    maps::count(end.reason, cursor.length());
    action(cursor, end)
}

/// What became of a packet, and the interface that it leaves by; 0 if it does not leave.
#[derive(Clone, Copy)]
struct End {
    reason: Reason,
    way: u32,
}

impl End {
    #[inline(always)]
    const fn here(reason: Reason) -> Self {
        Self { reason, way: 0 }
    }

    /// As one word.
    #[inline(always)]
    const fn pack(self) -> u64 {
        (self.way as u64) << 32 | self.reason as u64
    }

    #[inline(always)]
    fn unpack(packed: u64) -> Self {
        Self { reason: Reason::from_index(packed as u8), way: (packed >> 32) as u32 }
    }
}

#[inline(always)]
fn balance(cursor: &Cursor<'_>, place: Place) -> End {
    let (ctx, length) = (cursor.context(), cursor.length());
    let mut is_v6 = place.is_v6;
    let mut end = if is_v6 { plain_v6(ctx, place.at, length) } else { plain_v4(ctx, place.at, length) };
    if end == OTHER {
        end = quick(ctx, is_v6, place.pack(), length);
    }
    if end == OWN {
        end = arrive(ctx, place.pack());
        if end & ARRIVED != 0 {
            is_v6 = Place::unpack(end).is_v6;
            end = quick(ctx, is_v6, end, length);
        }
    }
    if end == REST {
        end = if is_v6 { forward_v6(ctx, length, rest_v6()) } else { forward_v4(ctx, length, rest_v4()) };
    }
    End::unpack(end)
}

#[inline(always)]
fn quick(ctx: *mut xdp_md, is_v6: bool, place: u64, length: usize) -> u64 {
    if is_v6 { quick_v6(ctx, place, length) } else { quick_v4(ctx, place, length) }
}

/// A packed place that came through a peer, as `Place::pack` marks it; in a packed end this bit is zero.
const ARRIVED: u64 = 1 << 24;
/// Instead of an end: the packet was put aside.
const REST: u64 = u64::MAX;
/// Instead of an end: the packet is for this member itself.
const OWN: u64 = u64::MAX - 1;
/// Instead of an end: the packet is not a plain one.
const OTHER: u64 = u64::MAX - 2;

// Global functions (kernel 5.6, be8704ff07d2): the verifier walks each once, and not once for every path that calls it;
// and one after the other they need less stack than one within the other.

/// A packet to this member's own address: the place of the packet inside, or an end.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn arrive(ctx: *mut xdp_md, place: u64) -> u64 {
    let ctx = XdpContext::new(ctx);
    let cursor = Cursor::new(&ctx, 0);
    let Some(maps) = Maps::open() else { return End::here(Reason::Unconfigured).pack() };
    let end = match arrival(&cursor, &maps, Place::unpack(place), cursor.ingress()) {
        Arrival::HandOff(inner) => return inner.pack(),
        // What does not leave by it does not care.
        Arrival::Probe(probe) | Arrival::ProbeEcho(probe) => {
            End { reason: probe::receive(&cursor, maps.node, probe), way: cursor.ingress() }
        }
        Arrival::End(reason) => End::here(reason),
    };
    end.pack()
}

macro_rules! family {
    ($key:ty, $plain:ident, $flow:ident, $quick:ident, $rest:ident, $forward:ident) => {
        /// Plain packets of known flows, nearly all there are; of others they are put aside.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $plain(ctx: *mut xdp_md, at: usize, length: usize) -> u64 {
            let ctx = XdpContext::new(ctx);
            let cursor = Cursor::new(&ctx, length);
            let at = at & OFFSET_MAX;
            let Some(mut maps) = Maps::open() else { return End::here(Reason::Unconfigured).pack() };
            let Some(packet) = parse::$plain(&cursor, at) else { return OTHER };
            maps.set_clock();
            if let Some(verdict) = steer_quickly(&maps, &packet) {
                return carry_out(&cursor, &maps, &packet, &verdict).pack();
            }
            // No flow is this member's own, so it is early enough to ask now.
            let place = Place { at, is_v6: <$key>::IS_V6, end: length, via_peer: false, outer: packet.outer };
            if is_own(&cursor, &maps, place) {
                return OWN;
            }
            put_aside(packet)
        }

        /// Packets of known flows that are not plain, or came through a peer; of others they are put aside.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $quick(ctx: *mut xdp_md, place: u64, length: usize) -> u64 {
            let ctx = XdpContext::new(ctx);
            let cursor = Cursor::new(&ctx, length);
            let Some(mut maps) = Maps::open() else { return End::here(Reason::Unconfigured).pack() };
            let place = Place { is_v6: <$key>::IS_V6, ..Place::unpack(place) };
            if !place.via_peer && is_own(&cursor, &maps, place) {
                return OWN;
            }
            let flow = $flow(&cursor, &maps, place);
            maps.set_clock();
            go_quickly(&cursor, &maps, flow)
        }

        /// The verdict on the packet that was put aside, packed.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $rest() -> u64 {
            let (Some(mut maps), Some(packet)) = (Maps::open(), Packet::<$key>::aside()) else { return 0 };
            maps.set_clock();
            steer_rest(&maps, packet).pack()
        }

        /// Carries out the verdict on the packet that was put aside.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $forward(ctx: *mut xdp_md, length: usize, verdict: u64) -> u64 {
            let ctx = XdpContext::new(ctx);
            let cursor = Cursor::new(&ctx, length);
            let (Some(mut maps), Some(packet)) = (Maps::open(), Packet::<$key>::aside()) else { return 0 };
            maps.set_clock();
            carry_out(&cursor, &maps, packet, &Verdict::unpack(verdict, &maps)).pack()
        }
    };
}
family!(FlowKeyV4, plain_v4, flow_v4, quick_v4, rest_v4, forward_v4);
family!(FlowKeyV6, plain_v6, flow_v6, quick_v6, rest_v6, forward_v6);

#[inline(always)]
fn go_quickly<K: FlowKey>(cursor: &Cursor<'_>, maps: &Maps, flow: Flow<K>) -> u64
where
    Maps: Flows<K>,
    Packet<K>: Aside,
{
    let end = match flow {
        Flow::Packet(packet) => match steer_quickly(maps, &packet) {
            Some(verdict) => carry_out(cursor, maps, &packet, &verdict),
            None => return put_aside(packet),
        },
        Flow::Ping(_) if !maps.take_budget(BUDGET_ANSWERS) => End::here(Reason::DropAnswerBudget),
        Flow::Ping(ping) => End { reason: answer::ping(cursor, ping), way: cursor.ingress() },
        Flow::End(reason) => End::here(reason),
    };
    end.pack()
}

#[inline(always)]
fn put_aside<K>(packet: Packet<K>) -> u64
where
    Packet<K>: Aside,
{
    match Packet::<K>::aside() {
        Some(aside) => {
            *aside = packet;
            REST
        }
        // An array of one always has it.
        None => End::here(Reason::Unconfigured).pack(),
    }
}

#[inline(always)]
fn carry_out<K: FlowKey>(cursor: &Cursor<'_>, maps: &Maps, packet: &Packet<K>, verdict: &Verdict<'_>) -> End {
    let bytes = cursor.length();
    let (to, counter) = match verdict.way {
        Way::Deliver(backend, slot) => (backend, maps::BACKEND_COUNT.get_ptr_mut(u32::from(slot))),
        Way::HandOff(member, id) => (member, maps::MEMBER_COUNT.get_ptr_mut(u32::from(id))),
        Way::End => {
            // What passes is of no service.
            maps::count_service(verdict.service, Action::Drop, bytes);
            return End::here(verdict.reason);
        }
    };
    let purpose = Purpose::of(verdict.reason);
    let action = if matches!(purpose, Purpose::Delivery) { Action::Deliver } else { Action::HandOff };
    let refusal = match outer::encapsulate(packet, purpose, to) {
        Ok(rewrite) => match forward::encapsulate(cursor, packet, &rewrite, maps.node, to) {
            Ok(()) => {
                maps::add(counter, bytes);
                maps::count_service(verdict.service, action, bytes);
                return End { reason: verdict.reason, way: to.next_hop.ifindex };
            }
            Err(reason) => reason,
        },
        Err(reason) => reason,
    };
    if refusal as u32 == Reason::DropTooBig as u32 {
        let end = oversized(cursor, maps, packet, to);
        let is_answered = end.reason as u32 == Reason::TooBigAnswered as u32;
        maps::count_service(verdict.service, if is_answered { Action::Answer } else { Action::Drop }, bytes);
        return end;
    }
    maps::count_service(verdict.service, Action::Drop, bytes);
    End::here(refusal)
}

/// No error is sent about an error, or about a later fragment (RFC 1122, section 3.2.2).
#[inline(always)]
fn oversized<K: FlowKey>(cursor: &Cursor<'_>, maps: &Maps, packet: &Packet<K>, to: &Target) -> End {
    let is_silent = !packet.ip.is_whole && maps.node.flags & NODE_DROP_OVERSIZED != 0;
    let mtu = u32::from(to.next_hop.mtu).saturating_sub(outer::overhead(to) as u32);
    if is_silent || mtu == 0 || !matches!(packet.part, Part::Whole | Part::FirstFragment) {
        return End::here(Reason::DropTooBig);
    }
    if !maps.take_budget(BUDGET_ANSWERS) {
        return End::here(Reason::DropAnswerBudget);
    }
    let packet = Oversized { at: packet.at, is_v6: K::IS_V6, via_peer: packet.via_peer, mtu };
    match answer::too_big(cursor, packet) {
        0 => End::here(Reason::DropTooBig),
        way => End { reason: Reason::TooBigAnswered, way },
    }
}

/// The whole pass and drop policy.
#[inline(always)]
fn action(cursor: &Cursor<'_>, end: End) -> u32 {
    match end.reason.action_by_table() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop | Action::Consume => xdp_action::XDP_DROP,
        Action::Answer | Action::Deliver | Action::HandOff if end.way == cursor.ingress() => xdp_action::XDP_TX,
        // An interface that is not in the map drops the packet: the kernel counts it (xdp_redirect_map_err).
        Action::Answer | Action::Deliver | Action::HandOff => {
            maps::DEVICES.redirect(end.way, 0).unwrap_or_else(|action| action)
        }
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
