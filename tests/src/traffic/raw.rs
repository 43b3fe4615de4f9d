//! Packets made by hand, put on the router's links past its own stack.

use std::{
    array,
    ffi::CString,
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use lb_common::flow::{FlowKeyV4, TCP, UDP};

use super::service::{TCP_PORT, UDP_PORT};
use crate::{
    command,
    netns::Namespace,
    topology::{Host, INTERFACE, VIP},
};

/// All sources are in it: addresses for benchmarks (RFC 2544), which nobody in the lab has.
pub const SOURCES: &str = "198.18.0.0/15";

/// Has a server drop what comes from `SOURCES`: what it does about them takes time that is not the question.
pub fn ignore_sources(server: &Namespace) -> Result<()> {
    let rules = format!(
        "table ip raw {{ chain in {{ type filter hook prerouting priority raw; ip saddr {SOURCES} drop; }}; }}\n"
    );
    command::run_with_input(server.command("nft").args(["-f", "-"]), &rules).map(drop)
}

/// One packet of a client that never hears an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// The first of a connection.
    Syn,
    /// One that goes on with it: the end of the handshake, and any after it.
    Ack,
    /// A datagram.
    Datagram,
}

/// The client's address and port of this number; 2^31 different ones.
fn source(tuple: u32) -> (Ipv4Addr, u16) {
    let [high, low, port_high, port_low] = tuple.to_be_bytes();
    (Ipv4Addr::new(198, 18 | port_high >> 7, high, low), u16::from_be_bytes([port_high | 0x80, port_low]))
}

/// The key of the connection whose packets have this number.
pub fn tcp_key(tuple: u32) -> FlowKeyV4 {
    let (source, port) = source(tuple);
    FlowKeyV4::new(source.octets(), VIP.octets(), port.to_be_bytes(), TCP_PORT.to_be_bytes(), TCP)
}

/// Frames of one system call: a quarter of what a veth ring holds.
pub(super) const BATCH: usize = 64;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// Ethernet, IPv4, and TCP; a datagram with twelve bytes is as long.
const FRAME: usize = ETHERNET + IPV4 + 20;

/// One frame.
pub(super) type Frame = [u8; FRAME];

/// A frame without anything in it.
pub(super) const EMPTY: Frame = [0; FRAME];

/// A packet socket on the router's end of one link.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    /// The Ethernet header.
    front: [u8; ETHERNET],
}

impl Link {
    /// The router's link to `host`.
    pub(super) fn new(router: &Namespace, host: &Host) -> Result<Self> {
        let mut front = [0; ETHERNET];
        front[..6].copy_from_slice(&mac_of(&host.namespace, INTERFACE)?);
        front[6..12].copy_from_slice(&mac_of(router, &host.name)?);
        front[12..].copy_from_slice(&[0x08, 0x00]);
        let socket = router.within(|| open(&host.name));
        Ok(Self { socket: socket.with_context(|| format!("cannot send on the link to {}", host.name))?, front })
    }

    /// Makes `frame` this packet of the client of this number.
    pub(super) fn compose(&self, frame: &mut Frame, packet: Packet, tuple: u32) {
        frame[..ETHERNET].copy_from_slice(&self.front);
        compose(&mut frame[ETHERNET..], packet, tuple);
    }

    /// Sends up to `BATCH` frames, or what of them the link takes; answers how many that were. A full ring drops the
    /// rest, as a NIC's would.
    pub(super) fn send(&self, frames: &mut [Frame]) -> io::Result<u64> {
        let count = frames.len().min(BATCH);
        let mut parts: [libc::iovec; BATCH] = array::from_fn(|n| {
            let frame = frames.get_mut(n).map_or(std::ptr::null_mut(), |frame| frame.as_mut_ptr());
            libc::iovec { iov_base: frame.cast(), iov_len: FRAME }
        });
        let mut messages = parts.each_mut().map(|part| {
            // SAFETY: zeroes are a valid header.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
            message
        });
        // SAFETY: the first `count` headers point to parts, and these to frames, that live through the call.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, 0) };
        match u64::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => match io::Error::last_os_error() {
                full if matches!(full.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(0),
                error => Err(error),
            },
        }
    }
}

/// A packet socket that sends on `interface`, past its queues, and receives nothing.
fn open(interface: &str) -> io::Result<OwnedFd> {
    let name = CString::new(interface)?;
    // SAFETY: a string with a terminating zero that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if index == 0 || socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call answered with a descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: zeroes are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let on: libc::c_int = 1;
    // SAFETY: address and value live through the calls and are as long as said.
    let results = unsafe {
        let (descriptor, long) = (socket.as_raw_fd(), size_of_val(&address) as libc::socklen_t);
        let (option, short) = (libc::PACKET_QDISC_BYPASS, size_of_val(&on) as libc::socklen_t);
        [
            libc::bind(descriptor, (&raw const address).cast(), long),
            libc::setsockopt(descriptor, libc::SOL_PACKET, option, (&raw const on).cast(), short),
        ]
    };
    if results == [0, 0] { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Writes everything behind the Ethernet header.
fn compose(packet: &mut [u8], kind: Packet, tuple: u32) {
    const LENGTH: u8 = (FRAME - ETHERNET) as u8;
    let (protocol, to) = if kind == Packet::Datagram { (UDP, UDP_PORT) } else { (TCP, TCP_PORT) };
    let (source, port) = source(tuple);
    packet[..12].copy_from_slice(&[0x45, 0, 0, LENGTH, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&VIP.octets());
    let checksum = checksum(&packet[..IPV4], 0);
    packet[10..12].copy_from_slice(&checksum);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&to.to_be_bytes());
    packet[24..].fill(0);
    let at = if kind == Packet::Datagram {
        packet[25] = LENGTH - IPV4 as u8;
        26
    } else {
        let (flags, after, acknowledged) = if kind == Packet::Syn { (0x02, 0, [0; 4]) } else { (0x10, 1, [1; 4]) };
        packet[24..28].copy_from_slice(&tuple.wrapping_add(after).to_be_bytes());
        packet[28..32].copy_from_slice(&acknowledged);
        packet[32..36].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
        36
    };
    let pseudo = u32::from(protocol) + u32::from(LENGTH) - IPV4 as u32;
    let checksum = self::checksum(&packet[12..], pseudo);
    packet[at..at + 2].copy_from_slice(&checksum);
}

/// The Internet checksum (RFC 1071) of bytes of an even number and a sum to begin with.
fn checksum(bytes: &[u8], begin: u32) -> [u8; 2] {
    let (words, _) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(begin, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum + (sum >> 16)) as u16).to_be_bytes()
}

/// The hardware address of an interface.
fn mac_of(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let said = command::run(namespace.command("ip").args(["-json", "link", "show", "dev", interface]))?;
    let links: serde_json::Value = serde_json::from_str(&said)?;
    let text = links[0]["address"].as_str().context("a link without an address")?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).with_context(|| format!("{text} is no hardware address"))?;
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    use super::*;

    #[test]
    fn packets_made_by_hand_are_such_as_a_stack_would_take() {
        for kind in [Packet::Syn, Packet::Ack, Packet::Datagram] {
            let mut bytes = [0; FRAME - ETHERNET];
            compose(&mut bytes, kind, 41);
            let packet = PacketHeaders::from_ip_slice(&bytes).unwrap();
            let Some(NetHeaders::Ipv4(ip, _)) = &packet.net else { panic!("{packet:?}") };
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let payload = packet.payload.slice();
            match packet.transport.as_ref().unwrap() {
                TransportHeader::Tcp(tcp) => {
                    let key = tcp_key(41);
                    assert_eq!((ip.source, tcp.source_port.to_be_bytes()), (key.source, key.source_port));
                    assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).unwrap());
                    let expected = if kind == Packet::Ack { (false, true, 42) } else { (true, false, 41) };
                    assert_eq!((tcp.syn, tcp.ack, tcp.sequence_number), expected);
                }
                TransportHeader::Udp(udp) => {
                    assert_eq!(udp.checksum, udp.calc_checksum_ipv4(ip, payload).unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
