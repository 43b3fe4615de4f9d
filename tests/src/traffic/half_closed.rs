//! A TCP connection whose client has said all it will say, and still receives.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpSocket;

use super::{
    service::TCP_PORT,
    wire::{self, ANSWER_BYTES, Answer, ECHO, Request},
};
use crate::{netns::Namespace, topology::VIP};

/// Requests that are sent before the client's FIN; what their answers take stays in the buffers of both ends.
const REQUESTS: u64 = 45;
/// Bytes of each.
const LENGTH: usize = 2 << 10;
/// Without a byte for this long it counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// A half-closed connection; what it was sent is checked.
pub struct HalfClosed {
    stream: TcpStream,
    port: u16,
    received: u64,
}

impl HalfClosed {
    /// Connects from `port`, asks, and closes its half.
    pub fn open(client: &Namespace, port: u16) -> Result<Self> {
        let connect = || -> Result<TcpStream> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let connecting = async {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(SocketAddr::from(([0; 4], port)))?;
                // The server is to wait for the client to read.
                socket.set_recv_buffer_size(4 << 10)?;
                socket.connect(SocketAddr::from((VIP, TCP_PORT))).await?.into_std()
            };
            Ok(runtime.block_on(connecting)?)
        };
        let mut stream = client.within(connect).with_context(|| format!("connecting from port {port}"))?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut payload = vec![0; LENGTH];
        for sequence in 0..REQUESTS {
            let request = Request { kind: ECHO, length: LENGTH as u32, connection: u64::from(port), sequence };
            wire::fill(u64::from(port), sequence, &mut payload);
            stream.write_all(&request.to_bytes()).and_then(|()| stream.write_all(&payload)).context("asking")?;
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(Self { stream, port, received: 0 })
    }

    /// Receives the next answer.
    pub fn receive(&mut self) -> Result<()> {
        let port = self.port;
        let at = |what: &str| format!("{what} {} on port {port}", self.received);
        let mut header = [0; ANSWER_BYTES];
        self.stream.read_exact(&mut header).with_context(|| at("answer"))?;
        let answer = Answer::from_bytes(&header).with_context(|| at("what should be answer"))?;
        ensure!((answer.sequence, answer.length) == (self.received, LENGTH as u32), "{answer:?}, {}", at("expected"));
        let (mut payload, mut wanted) = (vec![0; LENGTH], vec![0; LENGTH]);
        self.stream.read_exact(&mut payload).with_context(|| at("bytes of answer"))?;
        wire::fill(u64::from(port), self.received, &mut wanted);
        ensure!(payload == wanted, "{}", at("wrong bytes in answer"));
        self.received += 1;
        Ok(())
    }

    /// Receives the others, and the server's end.
    pub fn receive_all(mut self) -> Result<()> {
        while self.received < REQUESTS {
            self.receive()?;
        }
        let mut rest = [0];
        ensure!(self.stream.read(&mut rest)? == 0, "more than was asked for on port {}", self.port);
        Ok(())
    }
}
