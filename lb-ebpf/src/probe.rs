//! Probes between members: judged, stamped and answered here, so that a busy host still answers in time, and one whose agent
//! is dead answers at all.

use core::mem::offset_of;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use lb_common::{
    bytes::{load16, load32, load64, store16, store32, store64},
    checksum::finish,
    hash::HashKey,
    liveness::{Heard, Judgement, PROBE_ECHO, Probe, judge},
    node::Node,
    packet::{IPV4, IPV6},
    parse::{Frame as _, ProbeFrame},
    rank::MEMBERS_MAX,
    reason::Reason,
};

use crate::{answer::turn, cursor::Cursor, maps};

const UDP: usize = 8;
const KIND_WORD: usize = offset_of!(Probe, version) & !3;
const ANSWERS: usize = offset_of!(Probe, answers);
const TAG: usize = offset_of!(Probe, tag);

/// A peer's probe (its agent lives, and this is what it says) or the echo of this member's own (its datapath lives).
#[inline(always)]
pub(crate) fn receive(cursor: &Cursor<'_>, node: &Node, frame: ProbeFrame) -> Reason {
    let (Some(heard), Some(probe)) =
        (maps::HEARD.get_ptr_mut(u32::from(frame.from)), cursor.header::<Probe>(frame.probe_at()))
    else {
        return Reason::DropProbe;
    };
    let peer = usize::from(frame.from.wrapping_sub(1)) & (MEMBERS_MAX - 1);
    // SAFETY: the map's element, copied; other CPUs write too, and a half-written one is judged like one that came before.
    let before = unsafe { *heard };
    let Judgement { reason, key } = judge(probe, node, peer, &before);
    match reason {
        Reason::EchoTaken => take(heard, probe, key),
        Reason::ProbeReflected => believe(heard, probe, key),
        Reason::ProbeIntroduced => {}
        _ => return reason,
    }
    if reason as u32 == Reason::EchoTaken as u32 {
        return reason;
    }
    // A copy: which of two keys it is must not become two ways for the verifier.
    let keys = &node.probe_keys[peer];
    let is_second = u64::from(key).wrapping_neg();
    let key = [keys[0][0] & !is_second | keys[1][0] & is_second, keys[0][1] & !is_second | keys[1][1] & is_second];
    match turn_round(cursor, frame, node.probe_nonce, &key) {
        Some(()) => reason,
        None => Reason::DropProbe,
    }
}

#[inline(always)]
fn believe(heard: *mut Heard, probe: &Probe, key: u8) {
    // SAFETY: the map's element; no reference is made, because other CPUs write too, and its readers tolerate a
    // half-written one.
    unsafe {
        (*heard).forwarding = u64::from_be_bytes(probe.forwarding);
        (*heard).eligible = u64::from_be_bytes(probe.eligible);
        (*heard).probe_counter = u64::from_be_bytes(probe.counter);
        (*heard).incarnation = u32::from_be_bytes(probe.incarnation);
        (*heard).flags = probe.flags;
        (*heard).key = key;
        (*heard).probe_ns = bpf_ktime_get_ns();
    }
}

#[inline(always)]
fn take(heard: *mut Heard, probe: &Probe, key: u8) {
    // SAFETY: as in `believe`.
    unsafe {
        (*heard).echo_counter = u64::from_be_bytes(probe.counter);
        (*heard).echo_sent_ns = u64::from_be_bytes(probe.sent_ns);
        (*heard).nonce = u64::from_be_bytes(probe.answers);
        (*heard).key = key;
        (*heard).echo_ns = bpf_ktime_get_ns();
    }
}

/// Back to the sender, as an echo. Swapped addresses and ports keep every checksum right.
#[inline(always)]
fn turn_round(cursor: &Cursor<'_>, frame: ProbeFrame, nonce: u64, key: &HashKey) -> Option<()> {
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
    let probe = cursor.header_mut::<Probe>(frame.probe_at())?;
    let before = changing(probe, !0);
    probe.kind = PROBE_ECHO;
    store64::<ANSWERS, _>(probe, nonce.to_be());
    let tag = probe.tag_under(key);
    store64::<TAG, _>(probe, tag);
    let after = changing(probe, 0);
    let udp = cursor.header_mut::<[u8; UDP]>(frame.udp_at())?;
    let ports = load32::<0, _>(udp);
    store32::<0, _>(udp, ports.rotate_left(16));
    // IPv4 allows UDP without a checksum (RFC 768); IPv6 does not.
    let checksum = if frame.is_v6 {
        match finish(u64::from(!load16::<6, _>(udp)) + before + after) {
            // Zero stands for "none", which IPv6 does not have (RFC 8200, section 8.1).
            0 => 0xffff,
            checksum => checksum,
        }
    } else {
        0
    };
    store16::<6, _>(udp, checksum);
    Some(())
}

/// The sum of the words that an echo has other ones of, each inverted by `flip`.
#[inline(always)]
fn changing(probe: &Probe, flip: u64) -> u64 {
    let halves = |word: u64| ((word ^ flip) & 0xffff_ffff) + ((word ^ flip) >> 32);
    let kind = u64::from(load32::<KIND_WORD, _>(probe) ^ flip as u32);
    kind + halves(load64::<ANSWERS, _>(probe)) + halves(load64::<TAG, _>(probe))
}
