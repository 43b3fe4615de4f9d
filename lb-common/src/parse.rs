//! From a frame to a `Packet`, or to the reason why it is none.
//!
//! What is not ours passes, always; only a packet for a VIP or from a tunnel can be malformed.

use network_types::{ip::Ipv4Hdr, tcp::TcpHdr, udp::UdpHdr};

use crate::{
    address::{Address, is_martian_v4, low_v4, mapped},
    flow::{FlowKeyV4, TCP, UDP},
    liveness::{PROBE_ECHO, PROBE_MAGIC, PROBE_REQUEST, PROBE_VERSION, Probe},
    node::Node,
    packet::{ETHERNET, ETHERTYPE_AT, ETHERTYPE_IPV4, IPIP, IPV4, IpFields, OuterFields, Packet},
    reason::Reason,
    service::ServiceKey,
    steer::Tables,
};

/// Bytes of a UDP header.
pub const UDP_HEADER: usize = size_of::<UdpHdr>();
/// Where the payload of a probe begins: probes carry no IP options.
pub const PROBE_OFFSET: usize = ETHERNET + IPV4 + UDP_HEADER;
/// Where the inner header of a tunnel packet begins: hand-offs carry no outer options.
const INNER: usize = ETHERNET + IPV4;

/// A header made of bytes only: it may stand at any address, and any bytes are a valid one.
///
/// # Safety
///
/// The type has alignment 1, no padding, and no invalid bit patterns.
pub unsafe trait Header: Copy {}

macro_rules! headers {
    ($($name:ty),*) => {$(
        const _: () = assert!(align_of::<$name>() == 1);
        // SAFETY: made of bytes and byte arrays only, at alignment 1.
        unsafe impl Header for $name {}
    )*};
}
headers!(Ipv4Hdr, TcpHdr, UdpHdr, Probe);

// SAFETY: bytes.
unsafe impl<const N: usize> Header for [u8; N] {}

/// A received frame.
pub trait Frame {
    /// The header at `offset`, if the frame reaches so far.
    fn header<T: Header>(&self, offset: usize) -> Option<&T>;
    /// Bytes in the frame.
    fn length(&self) -> usize;
}

impl Frame for [u8] {
    fn header<T: Header>(&self, offset: usize) -> Option<&T> {
        let bytes = self.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: the slice is as long as `T`, which by its trait has alignment 1 and accepts any bytes.
        Some(unsafe { &*bytes.as_ptr().cast() })
    }

    fn length(&self) -> usize {
        self.len()
    }
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A packet to steer.
    Packet(Packet<FlowKeyV4>),
    /// A peer's probe, to be stamped and reflected.
    Probe {
        /// The member that sent it.
        from: u8,
    },
    /// The echo of this member's own probe, to be stamped and taken.
    Echo {
        /// The member that reflected it.
        from: u8,
    },
    /// Its way ends here.
    End(Reason),
}

/// Parses a frame that arrived on interface `ingress`.
#[inline(always)]
pub fn parse<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T, ingress: u32) -> Parsed {
    if frame.header::<[u8; 2]>(ETHERTYPE_AT) != Some(&ETHERTYPE_IPV4) {
        return Parsed::End(Reason::NotIp);
    }
    let Some(ip) = frame.header::<Ipv4Hdr>(ETHERNET) else { return Parsed::End(Reason::NotIp) };
    let node = tables.node();
    if ip.dst_addr == low_v4(&node.address) {
        return parse_for_member(frame, tables, node, ip, ingress);
    }
    let destination = mapped(ip.dst_addr);
    if !tables.may_be_vip(&destination) {
        return Parsed::End(Reason::NotOurs);
    }
    match parse_flow(frame, ETHERNET, ip, None) {
        Ok(packet) => Parsed::Packet(packet),
        // The filter has false positives; before a packet is dropped, its address must surely be a VIP.
        Err(_) if !is_vip(tables, destination) => Parsed::End(Reason::NotOurs),
        Err(reason) => Parsed::End(reason),
    }
}

/// To this member's own address: a tunnel packet, a probe, or the host's own traffic.
#[inline(always)]
fn parse_for_member<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    tables: &T,
    node: &Node,
    outer: &Ipv4Hdr,
    ingress: u32,
) -> Parsed {
    let on_cluster_interface = node.cluster_ifindex == 0 || node.cluster_ifindex == ingress;
    if outer.proto == UDP {
        return parse_probe(frame, tables, node, outer, on_cluster_interface);
    }
    if outer.proto != IPIP {
        return Parsed::End(Reason::NotOurs);
    }
    if !on_cluster_interface || tables.member_at(&mapped(outer.src_addr)).is_none() {
        return Parsed::End(Reason::DropStranger);
    }
    if outer.vihl != 0x45 || is_fragment(outer) {
        return Parsed::End(Reason::DropMalformed);
    }
    let Some(inner) = frame.header::<Ipv4Hdr>(INNER) else { return Parsed::End(Reason::DropMalformed) };
    if inner.proto == IPIP {
        return Parsed::End(Reason::DropNestedTunnel);
    }
    let fits = u16::from_be_bytes(outer.tot_len) as usize >= IPV4 + u16::from_be_bytes(inner.tot_len) as usize;
    match parse_flow(frame, INNER, inner, Some(OuterFields { tos: outer.tos })) {
        Ok(packet) if fits => Parsed::Packet(packet),
        Ok(_) => Parsed::End(Reason::DropMalformed),
        // What the host could take from the wire, a peer has no reason to send through the tunnel.
        Err(Reason::NotBalanced) => Parsed::End(Reason::DropTunnelNoService),
        Err(reason) => Parsed::End(reason),
    }
}

/// The inner checks are the same for a packet from the wire and from the tunnel: the tunnel carries no authority.
#[inline(always)]
fn parse_flow<F: Frame + ?Sized>(
    frame: &F,
    at: usize,
    ip: &Ipv4Hdr,
    outer: Option<OuterFields>,
) -> Result<Packet<FlowKeyV4>, Reason> {
    let header = (ip.vihl & 0x0f) as usize * 4;
    let length = u16::from_be_bytes(ip.tot_len) as usize;
    if ip.vihl >> 4 != 4 || header < IPV4 || length < header || at + length > frame.length() {
        return Err(Reason::DropMalformed);
    }
    if is_fragment(ip) {
        return Err(Reason::DropFragment);
    }
    if ip.proto != TCP && ip.proto != UDP {
        return Err(Reason::NotBalanced);
    }
    if is_martian_v4(ip.src_addr) {
        return Err(Reason::DropMartian);
    }
    let transport = parse_transport(frame, at + header, ip.proto, length - header)?;
    Ok(Packet {
        key: FlowKeyV4::new(ip.src_addr, ip.dst_addr, transport.source_port, transport.destination_port, ip.proto),
        tcp_flags: transport.flags,
        seq: transport.seq,
        has_payload: transport.has_payload,
        via_peer: outer.is_some(),
        ip: IpFields { length: length as u16, tos: ip.tos, ttl: ip.ttl, checksum: ip.check },
        outer: outer.unwrap_or(OuterFields { tos: 0 }),
    })
}

struct Transport {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    flags: u8,
    seq: u32,
    has_payload: bool,
}

/// `length` is what the IP header leaves for the transport header and its payload.
#[inline(always)]
fn parse_transport<F: Frame + ?Sized>(frame: &F, at: usize, protocol: u8, length: usize) -> Result<Transport, Reason> {
    if protocol == UDP {
        let udp = frame.header::<UdpHdr>(at).ok_or(Reason::DropMalformed)?;
        let claimed = u16::from_be_bytes(udp.len) as usize;
        if claimed < UDP_HEADER || claimed > length {
            return Err(Reason::DropMalformed);
        }
        return Ok(Transport { source_port: udp.src, destination_port: udp.dst, flags: 0, seq: 0, has_payload: true });
    }
    let tcp = frame.header::<TcpHdr>(at).ok_or(Reason::DropMalformed)?;
    let header = tcp.doff() as usize * 4;
    if header < size_of::<TcpHdr>() || header > length {
        return Err(Reason::DropMalformed);
    }
    Ok(Transport {
        source_port: tcp.source,
        destination_port: tcp.dest,
        flags: tcp_flags(tcp),
        seq: u32::from_be_bytes(tcp.seq),
        has_payload: length > header,
    })
}

/// The second byte of TCP's data offset and flags word.
#[inline(always)]
fn tcp_flags(tcp: &TcpHdr) -> u8 {
    // SAFETY: `TcpHdr` is 20 plain bytes (see its `Header` implementation); byte 13 holds the flags.
    unsafe { *core::ptr::from_ref(tcp).cast::<u8>().add(13) }
}

#[inline(always)]
fn parse_probe<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    tables: &T,
    node: &Node,
    ip: &Ipv4Hdr,
    on_cluster_interface: bool,
) -> Parsed {
    let Some(udp) = frame.header::<UdpHdr>(ETHERNET + IPV4) else { return Parsed::End(Reason::NotOurs) };
    if ip.vihl != 0x45 || is_fragment(ip) || udp.dst != node.port {
        return Parsed::End(Reason::NotOurs);
    }
    let Some(probe) = frame.header::<Probe>(PROBE_OFFSET) else { return Parsed::End(Reason::DropProbe) };
    let Some(member) = tables.member_at(&mapped(ip.src_addr)) else { return Parsed::End(Reason::DropProbe) };
    if !on_cluster_interface || probe.magic != PROBE_MAGIC || probe.version != PROBE_VERSION || member == node.id {
        return Parsed::End(Reason::DropProbe);
    }
    match probe.kind {
        PROBE_REQUEST if probe.from == member && probe.to == node.id => Parsed::Probe { from: member },
        PROBE_ECHO if probe.from == node.id && probe.to == member => Parsed::Echo { from: member },
        _ => Parsed::End(Reason::DropProbe),
    }
}

/// More fragments to come, or not the first one (RFC 791).
#[inline(always)]
fn is_fragment(ip: &Ipv4Hdr) -> bool {
    u16::from_be_bytes(ip.frags) & 0x3fff != 0
}

#[inline(always)]
fn is_vip<T: Tables>(tables: &T, address: Address) -> bool {
    tables.service(&ServiceKey::vip(address)).is_some()
}
