//! One connection: how it comes about, what reads from it and what writes to it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsStream;

use super::{Report, Session};
use crate::io::handshake::Handshake;

/// Bytes taken from a session at a time.
const READ_BYTES: usize = 64 << 10;

/// Where a reader reports, as long as its session is like any other, and after it was deferred.
///
/// Both are taken from in that order, so what was read first is still handled first.
pub(super) struct ReaderReports {
    pub(super) is_deferred: Arc<AtomicBool>,
    pub(super) at_once: mpsc::Sender<Report>,
    pub(super) deferred: mpsc::Sender<Report>,
}

impl ReaderReports {
    fn now(&self) -> &mpsc::Sender<Report> {
        if self.is_deferred.load(Ordering::Relaxed) { &self.deferred } else { &self.at_once }
    }
}

/// What the kernel holds of a connection in each direction, before it doubles it for its own use. Left to itself it holds megabytes, and a change
/// that becomes urgent waits behind them; this is enough for 60 MB a second, two million records, over a millisecond.
const KERNEL_BYTES: u32 = 32 << 10;

/// A socket of the family of `own`.
pub(super) fn socket(own: IpAddr) -> io::Result<TcpSocket> {
    let socket = if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_send_buffer_size(KERNEL_BYTES)?;
    socket.set_recv_buffer_size(KERNEL_BYTES)?;
    Ok(socket)
}

pub(super) async fn connect(own: IpAddr, to: SocketAddr, handshake: Handshake) -> io::Result<TlsStream<TcpStream>> {
    let socket = socket(own)?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(own, 0))?;
    handshake.connect(to.ip(), socket.connect(to).await?).await
}

pub(super) async fn read(session: Session, mut from: ReadHalf<TlsStream<TcpStream>>, reports: ReaderReports) {
    let error = loop {
        let mut bytes = Vec::with_capacity(READ_BYTES);
        match from.read_buf(&mut bytes).await {
            Ok(0) => break None,
            Ok(_) => {
                if reports.now().send(Report::Received(session, bytes)).await.is_err() {
                    return;
                }
            }
            Err(error) => break Some(error),
        }
    };
    let _stopped = reports.now().send(Report::Closed(session, error)).await;
}

pub(super) async fn write(
    session: Session,
    mut to: WriteHalf<TlsStream<TcpStream>>,
    mut frames: mpsc::UnboundedReceiver<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    report: mpsc::Sender<Report>,
) {
    while let Some(frame) = frames.recv().await {
        let written = match to.write_all(&frame).await {
            Ok(()) => to.flush().await,
            failed => failed,
        };
        if let Err(error) = written {
            let _stopped = report.send(Report::Closed(session, Some(error))).await;
            return;
        }
        queued.fetch_sub(frame.len(), Ordering::Relaxed);
        // Nobody listens when the agent is stopping; what is queued still goes out.
        let _stopped = report.send(Report::Drained(session, frame.len())).await;
    }
    let _gone = to.shutdown().await;
}
