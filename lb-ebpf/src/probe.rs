//! Probes between members: stamped and answered here, so that a busy host still answers in time.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use lb_common::{
    liveness::{PROBE_ECHO, Probe},
    packet::ETHERNET,
    parse::{Frame as _, PROBE_OFFSET},
    reason::Reason,
};

use crate::{cursor::Cursor, maps};

/// Offsets in a frame with an IPv4 header without options.
const SOURCE_MAC: usize = 6;
const SOURCE: usize = ETHERNET + 12;
const DESTINATION: usize = ETHERNET + 16;
const PORTS: usize = ETHERNET + 20;
const UDP_CHECKSUM: usize = ETHERNET + 26;
/// Everything in front of the payload.
const FRONT: usize = ETHERNET + 28;

/// A peer's probe: its agent lives, and this is what it says.
#[inline(always)]
pub(crate) fn reflect(cursor: &Cursor<'_>, from: u8) -> Reason {
    if let (Some(heard), Some(probe)) = (maps::HEARD.get_ptr_mut(u32::from(from)), cursor.header::<Probe>(PROBE_OFFSET))
    {
        // SAFETY: the map's element; no reference is made, because other CPUs write too, and its readers tolerate a
        // half-written one.
        unsafe {
            (*heard).forwarding = u64::from_be_bytes(probe.forwarding);
            (*heard).eligible = u64::from_be_bytes(probe.eligible);
            (*heard).probe_counter = u64::from_be_bytes(probe.counter);
            (*heard).incarnation = u32::from_be_bytes(probe.incarnation);
            (*heard).flags = probe.flags;
            (*heard).probe_ns = bpf_ktime_get_ns();
        }
    }
    turn_round(cursor);
    Reason::ProbeReflected
}

/// The echo of this member's own probe: the peer's datapath lives.
#[inline(always)]
pub(crate) fn take(cursor: &Cursor<'_>, from: u8) -> Reason {
    if let (Some(heard), Some(probe)) = (maps::HEARD.get_ptr_mut(u32::from(from)), cursor.header::<Probe>(PROBE_OFFSET))
    {
        // SAFETY: as in `reflect`.
        unsafe {
            (*heard).echo_counter = u64::from_be_bytes(probe.counter);
            (*heard).echo_sent_ns = u64::from_be_bytes(probe.sent_ns);
            (*heard).echo_ns = bpf_ktime_get_ns();
        }
    }
    Reason::EchoTaken
}

/// Back to the sender: swapped addresses and ports keep the IP checksum right, UDP goes without one (RFC 768).
#[inline(always)]
fn turn_round(cursor: &Cursor<'_>) {
    let Some(front) = cursor.header_mut::<[u8; FRONT]>(0) else { return };
    swap::<6>(front, 0, SOURCE_MAC);
    swap::<4>(front, SOURCE, DESTINATION);
    swap::<2>(front, PORTS, PORTS + 2);
    [front[UDP_CHECKSUM], front[UDP_CHECKSUM + 1]] = [0, 0];
    if let Some(probe) = cursor.header_mut::<Probe>(PROBE_OFFSET) {
        probe.kind = PROBE_ECHO;
    }
}

#[inline(always)]
fn swap<const N: usize>(front: &mut [u8; FRONT], a: usize, b: usize) {
    let mut i = 0;
    while i < N {
        front.swap(a + i, b + i);
        i += 1;
    }
}
