//! The benchmark's harness: lays a packet, and calls the program under test.
//!
//! `BPF_PROG_TEST_RUN` does not reset the packet between its rounds: an encapsulating program would grow it until it
//! fails. The harness brings it back to its length, rewrites its headers with the next client's address and port,
//! and tail-calls any XDP program, unmodified. What the harness itself costs is measured with `nothing`.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray, ProgramArray},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_head},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    bench::{
        COURSES, Course, LAYOUT_V4, LAYOUT_V4_IN_V4, LAYOUT_V6, LAYOUT_V6_IN_V4, LAYOUT_V6_IN_V6, TURN, TURNS_MAX,
        Tunnel, client, place, source_port, source_v4, source_v6, turn,
    },
    checksum::of_ipv4_header,
};

/// Written by the driver.
#[btf_map(name = "courses")]
static COURSES_MAP: Array<Course, { COURSES as usize }> = Array::new();

/// How many packets have been laid; one count per CPU.
#[btf_map(name = "position")]
static POSITION: PerCpuArray<u32, 1> = PerCpuArray::new();

/// When each turn began.
#[btf_map(name = "stamps")]
static STAMPS: Array<u64, { TURNS_MAX as usize + 1 }> = Array::new();

/// Packets that came back from the program under test; one count per CPU.
#[btf_map(name = "arrived")]
static ARRIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Where the floor's tunnel leads; written by the driver. A constant would be folded into the checksum.
#[btf_map(name = "tunnel")]
static TUNNEL: Array<Tunnel, 1> = Array::new();

/// The programs under test; written by the driver.
#[btf_map(name = "targets")]
static TARGETS: ProgramArray<16> = ProgramArray::new();

/// Lays the next packet, and calls the program under test.
#[xdp]
fn harness(ctx: XdpContext) -> u32 {
    let Some(n) = next() else { return xdp_action::XDP_ABORTED };
    let turn = turn(n);
    if n % TURN == 0
        && let Some(stamp) = STAMPS.get_ptr_mut(turn)
    {
        // SAFETY: the map's element, written by one CPU at a time; a helper call without arguments.
        unsafe { *stamp = bpf_ktime_get_ns() };
    }
    let Some(course) = COURSES_MAP.get(turn % COURSES) else { return xdp_action::XDP_ABORTED };
    if !lay_packet(&ctx, course, client(place(n), course)) {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the context is the program's own; nothing here needs to be dropped.
    unsafe { TARGETS.tail_call(&ctx, course.target) };
    xdp_action::XDP_ABORTED
}

/// Sends packets of this CPU's course by the course's interface: with live frames they are received at its other end.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    let Some(n) = next() else { return xdp_action::XDP_ABORTED };
    // SAFETY: a helper call without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(course) = COURSES_MAP.get(cpu % COURSES) else { return xdp_action::XDP_ABORTED };
    if !lay_packet(&ctx, course, client(n, course)) {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: a helper call without pointers.
    unsafe { bpf_redirect(course.ifindex, 0) as u32 }
}

/// Counts what comes back.
#[xdp]
fn sink(_: XdpContext) -> u32 {
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: this CPU's own element, and XDP programs of one CPU do not interrupt each other.
        unsafe { *arrived += 1 };
    }
    xdp_action::XDP_DROP
}

/// The cheapest target: what the harness costs with it is the harness's own.
#[xdp]
fn nothing(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The least that any IPIP balancer must do: room, MAC addresses, an outer header and its checksum.
#[xdp]
fn floor_v4(ctx: XdpContext) -> u32 {
    let length = (ctx.data_end() - ctx.data()) as u16 + 6;
    if !move_head(&ctx, -20) {
        return xdp_action::XDP_DROP;
    }
    let Some(front) = bytes::<34>(&ctx, 0) else { return xdp_action::XDP_DROP };
    let [l0, l1] = length.to_be_bytes();
    let Some(tunnel) = TUNNEL.get(0) else { return xdp_action::XDP_ABORTED };
    let [s0, s1, s2, s3] = tunnel.source_v4;
    let [d0, d1, d2, d3] = tunnel.destination_v4;
    let mut outer = [0x45, 0, l0, l1, 0, 0, 0x40, 0, 64, 4, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    [outer[10], outer[11]] = of_ipv4_header(&outer);
    let (ethernet, ip) = front.split_at_mut(14);
    ethernet[..12].copy_from_slice(&tunnel.macs);
    ethernet[12..].copy_from_slice(&[8, 0]);
    ip.copy_from_slice(&outer);
    xdp_action::XDP_TX
}

/// The same with an outer IPv6 header.
#[xdp]
fn floor_v6(ctx: XdpContext) -> u32 {
    let length = (ctx.data_end() - ctx.data()) as u16 - 14;
    if !move_head(&ctx, -40) {
        return xdp_action::XDP_DROP;
    }
    let Some(front) = bytes::<54>(&ctx, 0) else { return xdp_action::XDP_DROP };
    let [l0, l1] = length.to_be_bytes();
    let (ethernet, ip) = front.split_at_mut(14);
    let Some(tunnel) = TUNNEL.get(0) else { return xdp_action::XDP_ABORTED };
    ethernet[..12].copy_from_slice(&tunnel.macs);
    ethernet[12..].copy_from_slice(&[0x86, 0xdd]);
    let (fixed, addresses) = ip.split_at_mut(8);
    fixed.copy_from_slice(&[0x60, 0, 0, 0, l0, l1, 41, 64]);
    addresses[..16].copy_from_slice(&tunnel.source_v6);
    addresses[16..].copy_from_slice(&tunnel.destination_v6);
    xdp_action::XDP_TX
}

/// The number of the packet that is to be laid.
#[inline(always)]
fn next() -> Option<u32> {
    let position = POSITION.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element, and XDP programs of one CPU do not interrupt each other.
    let position = unsafe { &mut *position };
    *position = position.wrapping_add(1);
    Some(position.wrapping_sub(1))
}

/// The frame back to its length, with the headers of this client's packet.
#[inline(always)]
fn lay_packet(ctx: &XdpContext, course: &Course, client: u32) -> bool {
    // Also by nothing: then the harness costs the same whatever the program under test did.
    if !move_head(ctx, (ctx.data_end() - ctx.data()) as i32 - course.frame_bytes as i32) {
        return false;
    }
    match course.layout {
        LAYOUT_V4 => lay_v4::<7, 26>(ctx, course, client),
        LAYOUT_V4_IN_V4 => lay_v4::<9, 46>(ctx, course, client),
        LAYOUT_V6 => lay_v6::<9, 22>(ctx, course, client),
        LAYOUT_V6_IN_V4 => lay_v6::<11, 42>(ctx, course, client),
        LAYOUT_V6_IN_V6 => lay_v6::<14, 62>(ctx, course, client),
        _ => false,
    }
}

/// `WORDS` words of the template, the source address at `SOURCE`, the port behind both addresses.
#[inline(always)]
fn lay_v4<const WORDS: usize, const SOURCE: usize>(ctx: &XdpContext, course: &Course, client: u32) -> bool {
    if !lay::<WORDS>(ctx, course) {
        return false;
    }
    let Some(fields) = bytes::<10>(ctx, SOURCE) else { return false };
    fields[0..4].copy_from_slice(&source_v4(client));
    fields[8..10].copy_from_slice(&source_port(client));
    true
}

/// The same for IPv6.
#[inline(always)]
fn lay_v6<const WORDS: usize, const SOURCE: usize>(ctx: &XdpContext, course: &Course, client: u32) -> bool {
    if !lay::<WORDS>(ctx, course) {
        return false;
    }
    let Some(fields) = bytes::<34>(ctx, SOURCE) else { return false };
    fields[14..16].copy_from_slice(&source_v6(client));
    fields[32..34].copy_from_slice(&source_port(client));
    true
}

#[inline(always)]
fn lay<const WORDS: usize>(ctx: &XdpContext, course: &Course) -> bool {
    let start = ctx.data();
    if start + WORDS * 8 > ctx.data_end() {
        return false;
    }
    let mut i = 0;
    while i < WORDS {
        // SAFETY: the frame was just shown to hold `WORDS` words; eBPF stores to packets at any alignment.
        unsafe { (start as *mut u64).add(i).write_unaligned(course.template[i]) };
        i += 1;
    }
    true
}

#[inline(always)]
fn move_head(ctx: &XdpContext, by: i32) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), by) == 0 }
}

#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the packet is the driver's memory; the verifier checks each access")]
fn bytes<const N: usize>(ctx: &XdpContext, offset: usize) -> Option<&mut [u8; N]> {
    let start = ctx.data() + offset;
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: the frame was just shown to hold the bytes.
    Some(unsafe { &mut *(start as *mut [u8; N]) })
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
