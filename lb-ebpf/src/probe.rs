//! Probes between members: stamped and answered here, so that a busy host still answers in time.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use lb_common::{
    bytes::{load16, load32, load64, store16, store32, store64},
    checksum::updated,
    liveness::{PROBE_ECHO, PROBE_REQUEST, Probe},
    packet::{IPV4, IPV6},
    parse::{Frame as _, ProbeFrame},
    reason::Reason,
};

use crate::{answer::turn, cursor::Cursor, maps};

const UDP: usize = 8;

/// A peer's probe: its agent lives, and this is what it says.
#[inline(always)]
pub(crate) fn reflect(cursor: &Cursor<'_>, frame: ProbeFrame) -> Reason {
    if let (Some(heard), Some(probe)) =
        (maps::HEARD.get_ptr_mut(u32::from(frame.from)), cursor.header::<Probe>(frame.probe_at()))
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
    match turn_round(cursor, frame) {
        Some(()) => Reason::ProbeReflected,
        None => Reason::DropProbe,
    }
}

/// The echo of this member's own probe: the peer's datapath lives.
#[inline(always)]
pub(crate) fn take(cursor: &Cursor<'_>, frame: ProbeFrame) -> Reason {
    if let (Some(heard), Some(probe)) =
        (maps::HEARD.get_ptr_mut(u32::from(frame.from)), cursor.header::<Probe>(frame.probe_at()))
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

/// Back to the sender. Swapped addresses and ports keep every checksum right; only the kind changes.
#[inline(always)]
fn turn_round(cursor: &Cursor<'_>, frame: ProbeFrame) -> Option<()> {
    turn(cursor)?;
    if frame.is_v6 {
        let ip = cursor.header_mut::<[u8; IPV6]>(frame.at)?;
        let source = [load64::<8, _>(ip), load64::<16, _>(ip)];
        let destination = [load64::<24, _>(ip), load64::<32, _>(ip)];
        store64::<8, _>(ip, destination[0]);
        store64::<16, _>(ip, destination[1]);
        store64::<24, _>(ip, source[0]);
        store64::<32, _>(ip, source[1]);
    } else {
        let ip = cursor.header_mut::<[u8; IPV4]>(frame.at)?;
        let (source, destination) = (load32::<12, _>(ip), load32::<16, _>(ip));
        store32::<12, _>(ip, destination);
        store32::<16, _>(ip, source);
    }
    let udp = cursor.header_mut::<[u8; UDP]>(frame.udp_at())?;
    let ports = load32::<0, _>(udp);
    store32::<0, _>(udp, ports.rotate_left(16));
    // IPv4 allows UDP without a checksum (RFC 768); IPv6 does not.
    let checksum = if frame.is_v6 {
        // Version and kind share a word.
        match updated(load16::<6, _>(udp), u16::from_ne_bytes([0, PROBE_REQUEST]), u16::from_ne_bytes([0, PROBE_ECHO]))
        {
            // Zero stands for "none", which IPv6 does not have (RFC 8200, section 8.1).
            0 => 0xffff,
            checksum => checksum,
        }
    } else {
        0
    };
    store16::<6, _>(udp, checksum);
    cursor.header_mut::<Probe>(frame.probe_at())?.kind = PROBE_ECHO;
    Some(())
}
