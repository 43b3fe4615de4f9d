//! One TCP connection that a test drives by hand, from a port of its choice.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tokio::{net::TcpSocket, runtime::Runtime};

use super::{
    connection::Connection,
    record::{Fault, Kind, Record},
    service::TCP_PORT,
    wire::{DIGEST, ECHO, PAYLOAD_MAX},
};
use crate::{netns::Namespace, topology::VIP};

const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an ordinary request.
const WORD: usize = 200;

/// An open connection to the lab's service.
pub struct Caller {
    runtime: Runtime,
    connection: Connection,
    record: Arc<Record>,
}

impl Caller {
    /// Connects from `port` in the client's namespace.
    pub fn open(client: &Namespace, port: u16) -> Result<Self> {
        Self::open_to(client, SocketAddr::from((VIP, TCP_PORT)), port)
    }

    /// The same to a service of the test's choice, over the family of its address.
    pub fn open_to(client: &Namespace, target: SocketAddr, port: u16) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let record = Arc::new(Record::new(u64::from(port), Kind::Idle));
        let socket = || -> io::Result<TcpSocket> {
            let _inside = runtime.enter();
            let (socket, any): (_, IpAddr) = match target {
                SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
                SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
            };
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from((any, port)))?;
            Ok(socket)
        };
        let socket = client.within(socket).with_context(|| format!("cannot bind port {port}"))?;
        let connecting = Connection::open_from(socket, target, Arc::clone(&record), PATIENCE);
        let connection =
            runtime.block_on(connecting).map_err(|fault| anyhow!("connecting from port {port}: {fault}"))?;
        Ok(Self { runtime, connection, record })
    }

    /// A small request and its answer, checked.
    pub fn ask(&mut self) -> Result<()> {
        self.exchange(ECHO, WORD)
    }

    /// 64 KiB in full-size segments, and the digest of what arrived.
    pub fn upload(&mut self) -> Result<()> {
        self.exchange(DIGEST, PAYLOAD_MAX)
    }

    /// 64 KiB there and back.
    pub fn echo(&mut self) -> Result<()> {
        self.exchange(ECHO, PAYLOAD_MAX)
    }

    /// The server that answers.
    pub fn server(&self) -> u32 {
        self.record.facts().server
    }

    /// The client's port.
    pub fn port(&self) -> u16 {
        self.record.facts().port
    }

    fn exchange(&mut self, kind: u32, length: usize) -> Result<()> {
        let asking = self.connection.exchange(kind, length);
        self.runtime
            .block_on(asking)
            .map_err(|fault: Fault| anyhow!("the connection from port {}: {fault}", self.port()))
    }
}
