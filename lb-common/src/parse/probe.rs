//! Probes between members.

use network_types::udp::UdpHdr;

use super::{Arrival, Frame, Place, ProbeFrame, UDP_HEADER};
use crate::{
    address::Address,
    liveness::{PROBE_ECHO, PROBE_MAGIC, PROBE_REQUEST, PROBE_VERSION, Probe},
    packet::{IPV4, IPV6},
    reason::Reason,
    steer::Tables,
};

impl ProbeFrame {
    /// Where the UDP header begins: probes carry no IP options or extensions.
    #[inline(always)]
    pub const fn udp_at(&self) -> usize {
        self.at + if self.is_v6 { IPV6 } else { IPV4 }
    }

    /// Where the probe begins.
    #[inline(always)]
    pub const fn probe_at(&self) -> usize {
        self.udp_at() + UDP_HEADER
    }
}

/// A UDP packet to this member: a probe, its echo, or the host's own.
#[inline(always)]
pub(super) fn parse<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    tables: &T,
    place: Place,
    source: Address,
    is_plain: bool,
    on_cluster_interface: bool,
) -> Arrival {
    let node = tables.node();
    let mut found = ProbeFrame { from: 0, at: place.at, is_v6: place.is_v6 };
    let Some(udp) = frame.header::<UdpHdr>(found.udp_at()) else { return Arrival::End(Reason::NotOurs) };
    if !is_plain || udp.dst != node.port {
        return Arrival::End(Reason::NotOurs);
    }
    let Some(probe) = frame.header::<Probe>(found.probe_at()) else { return Arrival::End(Reason::DropProbe) };
    let Some(member) = tables.member_at(&source) else { return Arrival::End(Reason::DropProbe) };
    if !on_cluster_interface || probe.magic != PROBE_MAGIC || probe.version != PROBE_VERSION || member == node.id {
        return Arrival::End(Reason::DropProbe);
    }
    found.from = member;
    match probe.kind {
        PROBE_REQUEST if probe.from == member && probe.to == node.id => Arrival::Probe(found),
        PROBE_ECHO if probe.from == node.id && probe.to == member => Arrival::ProbeEcho(found),
        _ => Arrival::End(Reason::DropProbe),
    }
}
