//! The servers' side: answers requests over TCP and returns datagrams, and says which server it is.

use std::{
    io,
    net::{Ipv6Addr, TcpListener as StdListener, UdpSocket as StdUdp},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
};

use super::wire::{self, Answer, REQUEST_BYTES, Request};
use crate::{
    netns::Namespace,
    topology::{VIP, VIP_V6},
};

/// The port on which connections are answered.
pub const TCP_PORT: u16 = 80;
/// Another one, of no service of its own.
pub const OTHER_TCP_PORT: u16 = 8080;
/// The port from which datagrams are returned.
pub const UDP_PORT: u16 = 53;
/// The longest there are.
const DATAGRAM_MAX: usize = 65_507;

/// A thread in a server's namespace that answers until it is dropped.
#[derive(Debug)]
pub struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Service {
    /// Listens in `namespace` as server `number`, which must not be 0.
    pub fn start(namespace: &Arc<Namespace>, number: u32) -> Result<Self> {
        let (tcp, udp) = namespace.within(bind).context("cannot listen")?;
        let (stop, stopped) = oneshot::channel();
        let thread = namespace.thread(&format!("web-{number}"), move || serve(tcp, udp, number, stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a server's thread panicked");
        }
    }
}

fn bind() -> io::Result<([StdListener; 2], [StdUdp; 2])> {
    // They take connections of both families.
    let any = Ipv6Addr::UNSPECIFIED;
    let tcp = [StdListener::bind((any, TCP_PORT))?, StdListener::bind((any, OTHER_TCP_PORT))?];
    for listener in &tcp {
        listener.set_nonblocking(true)?;
    }
    // Datagrams are returned from the address they were sent to only by a socket bound to it.
    let udp = [StdUdp::bind((VIP, UDP_PORT))?, StdUdp::bind((VIP_V6, UDP_PORT))?];
    for socket in &udp {
        socket.set_nonblocking(true)?;
    }
    Ok((tcp, udp))
}

fn serve(tcp: [StdListener; 2], udp: [StdUdp; 2], number: u32, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime needs only an epoll descriptor");
    runtime.block_on(async move {
        let [tcp, other] = tcp.map(|tcp| TcpListener::from_std(tcp).expect("the listener is not blocking"));
        let [udp, udp_v6] = udp.map(|udp| UdpSocket::from_std(udp).expect("the socket is not blocking"));
        tokio::select! {
            _ = stopped => {}
            () = accept(tcp, number) => {}
            () = accept(other, number) => {}
            () = reflect(udp) => {}
            () = reflect(udp_v6) => {}
        }
    });
}

async fn accept(listener: TcpListener, number: u32) {
    loop {
        // An error concerns one connection that went away before it was accepted.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            // How a connection ends is the client's to judge.
            let _ = answer(stream, number).await;
        });
    }
}

async fn answer(mut stream: TcpStream, server: u32) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut header = [0; REQUEST_BYTES];
    let mut payload = Vec::new();
    loop {
        if stream.read(&mut header[..1]).await? == 0 {
            return Ok(());
        }
        stream.read_exact(&mut header[1..]).await?;
        let Some(request) = Request::from_bytes(&header) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a request"));
        };
        payload.resize(request.length as usize, 0);
        stream.read_exact(&mut payload).await?;
        let digest = wire::digest(&payload);
        if request.kind == wire::DIGEST {
            payload.clear();
        }
        let answer = Answer { server, length: payload.len() as u32, sequence: request.sequence, digest };
        payload.splice(..0, answer.to_bytes());
        stream.write_all(&payload).await?;
    }
}

async fn reflect(socket: UdpSocket) {
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
        // A full socket buffer on the way back is a loss like any other; the client counts it.
        let _ = socket.send_to(&datagram[..length], from).await;
    }
}
