//! Sending probes. They are answered, and the answers read, by XDP.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use lb_common::liveness::Probe;
use socket2::{Domain, Protocol, Socket, Type};
use zerocopy::IntoBytes as _;

/// DSCP CS6, "network control" (RFC 4594): a full link must not look like a dead peer.
const TOS_NETWORK_CONTROL: u32 = 48 << 2;
/// Nothing should arrive here; what does (an interface without the program) is not worth memory.
const RECEIVE_BYTES: usize = 4096;

/// The socket that probes are sent from.
#[derive(Debug)]
pub struct Prober {
    socket: UdpSocket,
    port: u16,
}

impl Prober {
    /// Binds to this member's address and port, which peers check.
    pub fn bind(own: IpAddr, port: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(SocketAddr::new(own, port)), Type::DGRAM, Some(Protocol::UDP))?;
        match own {
            IpAddr::V4(_) => socket.set_tos_v4(TOS_NETWORK_CONTROL)?,
            IpAddr::V6(_) => socket.set_tclass_v6(TOS_NETWORK_CONTROL)?,
        }
        socket.set_recv_buffer_size(RECEIVE_BYTES)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(own, port).into())?;
        Ok(Self { socket: socket.into(), port })
    }

    /// Sends a probe. One that the kernel does not take is lost like one on the way.
    pub fn send(&self, to: IpAddr, probe: &Probe) {
        let _lost = self.socket.send_to(probe.as_bytes(), (to, self.port));
    }
}
