//! The transport header: ports, and what the packet says of its connection's life.

use network_types::{tcp::TcpHdr, udp::UdpHdr};

use super::Frame;
use crate::{
    bytes::{load16, load32},
    flow::{TCP, UDP},
    packet::{ACK, FIN, Part, RST, SYN},
    reason::Reason,
};

/// Bytes of a UDP header.
pub const UDP_HEADER: usize = size_of::<UdpHdr>();
/// SCTP's common header (RFC 9260, section 3.1) and the head of the first chunk.
const SCTP_HEADER: usize = 16;

/// What a transport header says.
pub(super) struct Transport {
    /// Source and destination port, as they lie in memory.
    pub(super) ports: u32,
    pub(super) flags: u8,
    pub(super) seq: u32,
    pub(super) has_payload: bool,
}

/// `length` is what the IP header leaves for the transport header and its payload.
#[inline(always)]
pub(super) fn parse<F: Frame + ?Sized>(
    frame: &F,
    at: usize,
    protocol: u8,
    length: usize,
    part: Part,
) -> Result<Transport, Reason> {
    if matches!(part, Part::LaterFragment) {
        return Ok(Transport { ports: 0, flags: ACK, seq: 0, has_payload: true });
    }
    match protocol {
        TCP => tcp(frame, at, length),
        UDP => udp(frame, at, length, part),
        _ => sctp(frame, at, length),
    }
}

#[inline(always)]
fn tcp<F: Frame + ?Sized>(frame: &F, at: usize, length: usize) -> Result<Transport, Reason> {
    let tcp = frame.header::<TcpHdr>(at).ok_or(Reason::DropMalformed)?;
    // Data offset and flags share a word.
    let word = u16::from_be(load16::<12, _>(tcp));
    let header = (word >> 12) as usize * 4;
    if header < size_of::<TcpHdr>() || header > length {
        return Err(Reason::DropMalformed);
    }
    Ok(Transport {
        ports: load32::<0, _>(tcp),
        flags: word as u8,
        seq: u32::from_be(load32::<4, _>(tcp)),
        has_payload: length > header,
    })
}

#[inline(always)]
fn udp<F: Frame + ?Sized>(frame: &F, at: usize, length: usize, part: Part) -> Result<Transport, Reason> {
    let udp = frame.header::<UdpHdr>(at).ok_or(Reason::DropMalformed)?;
    let claimed = u16::from_be(load16::<4, _>(udp)) as usize;
    // The length in a first fragment is that of the whole datagram.
    if claimed < UDP_HEADER || length < UDP_HEADER || (claimed > length && matches!(part, Part::Whole)) {
        return Err(Reason::DropMalformed);
    }
    Ok(Transport { ports: load32::<0, _>(udp), flags: 0, seq: 0, has_payload: true })
}

/// SCTP's first chunk as the TCP segment that it corresponds to.
///
/// INIT is a SYN with sequence number 0, COOKIE ECHO the ACK that follows it: the client got the server's INIT ACK.
#[inline(always)]
fn sctp<F: Frame + ?Sized>(frame: &F, at: usize, length: usize) -> Result<Transport, Reason> {
    let header = frame.header::<[u8; SCTP_HEADER]>(at).ok_or(Reason::DropMalformed)?;
    if length < SCTP_HEADER {
        return Err(Reason::DropMalformed);
    }
    let (flags, seq, has_payload) = match header[12] {
        // DATA, I-DATA.
        0 | 64 => (ACK, 2, true),
        // INIT.
        1 => (SYN, 0, false),
        // COOKIE ECHO.
        10 => (ACK, 1, false),
        // ABORT.
        6 => (RST, 2, false),
        // SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE.
        7 | 8 | 14 => (FIN | ACK, 2, false),
        _ => (ACK, 2, false),
    };
    Ok(Transport { ports: load32::<0, _>(header), flags, seq, has_payload })
}
