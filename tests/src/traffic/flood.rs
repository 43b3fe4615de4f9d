//! Floods: packets from random sources, as fast as one thread can put them on the balancers' links.

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use lb_common::flow::{TCP, UDP};

use super::service::{TCP_PORT, UDP_PORT};
use crate::{
    command,
    netns::Namespace,
    topology::{Host, INTERFACE, VIP},
};

/// All sources are in it: addresses for benchmarks (RFC 2544), which nobody in the lab has.
pub const SOURCES: &str = "198.18.0.0/15";

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYNs, each from another source.
    Syn,
    /// A SYN and the ACK that its handshake would end with, from a source that never saw the SYN-ACK.
    Handshake,
    /// Datagrams, each from another source.
    Udp,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames that the links took.
    pub packets: u64,
    /// For how long.
    pub seconds: f64,
}

/// A flood that goes on until it is finished or dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<io::Result<Sent>>>,
}

impl Flood {
    /// Begins to send to the VIP on the router's links to `balancers` in turn.
    pub fn start(router: &Arc<Namespace>, balancers: &[Host], kind: Kind) -> Result<Self> {
        let link = |host: &Host| -> Result<Link> {
            let mut front = [0; ETHERNET];
            front[..6].copy_from_slice(&mac_of(&host.namespace, INTERFACE)?);
            front[6..12].copy_from_slice(&mac_of(router, &host.name)?);
            front[12..].copy_from_slice(&[0x08, 0x00]);
            let socket = router.within(|| open(&host.name));
            Ok(Link { socket: socket.with_context(|| format!("cannot send on the link to {}", host.name))?, front })
        };
        let links = balancers.iter().map(link).collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = router.thread("flood", move || send(&links, kind, &flag))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(Ok(sent)) = self.thread.take().map(thread::JoinHandle::join) else {
            bail!("the flood's thread panicked")
        };
        sent.context("sending a flood")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Frames of one system call: a quarter of what a veth ring holds.
const BATCH: usize = 64;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// Ethernet, IPv4, and TCP; a datagram with twelve bytes is as long.
const FRAME: usize = ETHERNET + IPV4 + 20;

/// A packet socket on one link.
struct Link {
    socket: OwnedFd,
    /// The Ethernet header.
    front: [u8; ETHERNET],
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

impl Link {
    /// Sends what the link takes; answers how many that were. A full ring drops the rest, as a NIC's would.
    fn send(&self, frames: &mut [[u8; FRAME]; BATCH]) -> io::Result<u64> {
        let mut parts =
            frames.each_mut().map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: FRAME });
        let mut messages = parts.each_mut().map(|part| {
            // SAFETY: zeroes are a valid header.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
            message
        });
        // SAFETY: every header points to a part, and every part to a frame, that live through the call.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
        match u64::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => match io::Error::last_os_error() {
                full if matches!(full.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(0),
                error => Err(error),
            },
        }
    }
}

fn send(links: &[Link], kind: Kind, stop: &AtomicBool) -> io::Result<Sent> {
    let began = Instant::now();
    let (mut tuple, mut packets) = (0_u32, 0);
    let mut frames = [[0; FRAME]; BATCH];
    for link in links.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for (place, frame) in frames.iter_mut().enumerate() {
            let is_second = kind == Kind::Handshake && place % 2 == 1;
            if !is_second {
                // Odd: 2^32 tuples before one comes again, in no order that would suit a table.
                tuple = tuple.wrapping_add(0x9e37_79b1);
            }
            frame[..ETHERNET].copy_from_slice(&link.front);
            compose(frame, kind, is_second, tuple);
        }
        packets += link.send(&mut frames)?;
    }
    Ok(Sent { packets, seconds: began.elapsed().as_secs_f64() })
}

/// Writes everything behind the Ethernet header; the tuple is the source's address and port.
fn compose(frame: &mut [u8; FRAME], kind: Kind, is_second: bool, tuple: u32) {
    const LENGTH: u8 = (FRAME - ETHERNET) as u8;
    let protocol = if kind == Kind::Udp { UDP } else { TCP };
    let to = if kind == Kind::Udp { UDP_PORT } else { TCP_PORT };
    let [high, low, port_high, port_low] = tuple.to_be_bytes();
    let packet = &mut frame[ETHERNET..];
    packet[..12].copy_from_slice(&[0x45, 0, 0, LENGTH, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet[12..16].copy_from_slice(&[198, 18 | port_high >> 7, high, low]);
    packet[16..20].copy_from_slice(&VIP.octets());
    let checksum = checksum(&packet[..IPV4], 0);
    packet[10..12].copy_from_slice(&checksum);
    packet[20..22].copy_from_slice(&[port_high | 0x80, port_low]);
    packet[22..24].copy_from_slice(&to.to_be_bytes());
    packet[24..].fill(0);
    let at = if kind == Kind::Udp {
        packet[25] = LENGTH - IPV4 as u8;
        26
    } else {
        let sequence = tuple.wrapping_add(u32::from(is_second));
        packet[24..28].copy_from_slice(&sequence.to_be_bytes());
        packet[28..32].copy_from_slice(&if is_second { [1; 4] } else { [0; 4] });
        packet[32..36].copy_from_slice(&[0x50, if is_second { 0x10 } else { 0x02 }, 0xff, 0xff]);
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
    fn floods_are_made_of_packets_that_a_stack_would_take() {
        for kind in [Kind::Syn, Kind::Handshake, Kind::Udp] {
            let mut frame = [0; FRAME];
            frame[12..14].copy_from_slice(&[8, 0]);
            compose(&mut frame, kind, kind == Kind::Handshake, 41);
            let packet = PacketHeaders::from_ethernet_slice(&frame).unwrap();
            let Some(NetHeaders::Ipv4(ip, _)) = &packet.net else { panic!("{packet:?}") };
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let payload = packet.payload.slice();
            match packet.transport.as_ref().unwrap() {
                TransportHeader::Tcp(tcp) => {
                    assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).unwrap());
                    let expected = if kind == Kind::Handshake { (false, true, 42) } else { (true, false, 41) };
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
