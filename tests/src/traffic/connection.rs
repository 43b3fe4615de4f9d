//! One TCP connection of the client: requests, and the checks on their answers.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    record::{Fault, Record},
    wire::{self, ANSWER_BYTES, Answer, Request},
};

/// An open connection. Its record knows all that happens to it.
pub(super) struct Connection {
    stream: TcpStream,
    record: Arc<Record>,
    patience: Duration,
    sequence: u64,
    payload: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    /// Connects within `patience`, from a port of the kernel's choice.
    pub(super) async fn open(target: SocketAddr, record: Arc<Record>, patience: Duration) -> Result<Self, Fault> {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(fault_of)?;
        Self::open_from(socket, target, record, patience).await
    }

    /// Connects within `patience`, with a socket that may be bound.
    pub(super) async fn open_from(
        socket: TcpSocket,
        target: SocketAddr,
        record: Arc<Record>,
        patience: Duration,
    ) -> Result<Self, Fault> {
        let began = Instant::now();
        let Ok(Ok(stream)) = timeout(patience, socket.connect(target)).await else {
            return Err(Fault::Handshake);
        };
        // Without Nagle's algorithm: a small request is sent when it is made.
        stream.set_nodelay(true).map_err(fault_of)?;
        record.opened(stream.local_addr().map_err(fault_of)?.port(), began.elapsed());
        Ok(Self { stream, record, patience, sequence: 0, payload: Vec::new(), answer: Vec::new() })
    }

    /// One request of `length` bytes and its answer, checked byte by byte.
    pub(super) async fn exchange(&mut self, kind: u32, length: usize) -> Result<(), Fault> {
        self.sequence += 1;
        self.record.waits();
        match timeout(self.patience, self.ask(kind, length)).await {
            Ok(Ok(bytes)) => self.record.answered(bytes),
            Ok(Err(fault)) => return Err(fault),
            Err(_) => return Err(Fault::Timeout),
        }
        Ok(())
    }

    async fn ask(&mut self, kind: u32, length: usize) -> Result<u64, Fault> {
        let request = Request { kind, length: length as u32, connection: self.record.id, sequence: self.sequence };
        self.payload.clear();
        self.payload.extend_from_slice(&request.to_bytes());
        self.payload.resize(wire::REQUEST_BYTES + length, 0);
        wire::fill(self.record.id, self.sequence, &mut self.payload[wire::REQUEST_BYTES..]);

        let mut sent = 0;
        while sent < self.payload.len() {
            sent += self.stream.write(&self.payload[sent..]).await.map_err(fault_of)?;
            self.record.progressed();
        }
        self.read(ANSWER_BYTES).await?;
        let answer = self.answer.first_chunk().and_then(Answer::from_bytes).ok_or(Fault::WrongBytes)?;
        let sent = &self.payload[wire::REQUEST_BYTES..];
        let echoed = if kind == wire::ECHO { length } else { 0 };
        if !self.record.is_from(answer.server) {
            return Err(Fault::OtherServer);
        }
        let right =
            answer.sequence == self.sequence && answer.digest == wire::digest(sent) && answer.length as usize == echoed;
        if !right {
            return Err(Fault::WrongBytes);
        }
        self.read(echoed).await?;
        if kind == wire::ECHO && self.answer != self.payload[wire::REQUEST_BYTES..] {
            return Err(Fault::WrongBytes);
        }
        Ok((self.payload.len() + ANSWER_BYTES + echoed) as u64)
    }

    /// Reads exactly `length` bytes into `answer`.
    async fn read(&mut self, length: usize) -> Result<(), Fault> {
        self.answer.resize(length, 0);
        let mut have = 0;
        while have < length {
            let got = self.stream.read(&mut self.answer[have..]).await.map_err(fault_of)?;
            if got == 0 {
                return Err(Fault::Closed);
            }
            self.record.progressed();
            have += got;
        }
        Ok(())
    }
}

fn fault_of(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::TimedOut => Fault::Timeout,
        _ => Fault::Reset,
    }
}
