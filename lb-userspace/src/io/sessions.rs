//! Sessions: the connections between members, TLS over TCP.
//!
//! An address says which member a connection must be with, and the handshake proves it ([`super::handshake`]); before that
//! nobody hears of it. Handshakes are limited in number, rate and time, for each member's address by itself.
//!
//! Each has a task for reading and one for writing, which report through bounded channels: one for all sessions, and one
//! for what is read from deferred ones, which is taken from when nothing else is to be reported. When
//! the driver is slow, reading stops, then TCP stops the peer. Writing is bounded by the core, which makes no more
//! frames than `Drained` allows; `QUEUE_BYTES` is the limit that must never be reached.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lb_common::rank::MEMBERS_MAX;
use socket2::SockRef;
use tokio::{
    io::split,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinHandle, yield_now},
    time::{sleep, timeout},
};
use tokio_rustls::TlsStream;
use tracing::{debug, warn};

use self::{
    guests::Guest,
    streams::{ReaderReports, connect, read, socket, write},
};
use super::{
    complaint::Complaint,
    handshake::{Handshake, Trust, proven_key},
};
use crate::core::{Input, Session};

mod guests;
mod streams;
#[cfg(test)]
mod tests;

/// Bytes waiting in one session before it is given up.
const QUEUE_BYTES: usize = 16 << 20;
/// Reports under way; with what is read at a time this bounds what is read and not yet handled.
const REPORTS: usize = 64;
/// The same of deferred sessions: enough for one frame of each member.
const DEFERRED_REPORTS: usize = 64;
/// A peer that answers takes milliseconds; the core dials again.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Data that a peer does not acknowledge for this long ends the session (RFC 5482). Deaths are noticed by probes.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// What was sent before a close may take this long to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// When accepting fails for want of resources, it is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All sessions of this member.
pub struct Sessions {
    own: IpAddr,
    port: u16,
    listener: TcpListener,
    members: BTreeMap<u8, IpAddr>,
    handshakes: BTreeMap<u8, Handshake>,
    guests: BTreeMap<u8, Guest>,
    live: HashMap<Session, Live>,
    closing: Vec<JoinHandle<()>>,
    last: u64,
    strangers: Complaint,
    impostors: Complaint,
    crowds: Complaint,
    report: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    deferred_report: mpsc::Sender<Report>,
    deferred_reports: mpsc::Receiver<Report>,
}

struct Live {
    peer: u8,
    /// What the peer has proved.
    key: Vec<u8>,
    frames: mpsc::UnboundedSender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    writer: JoinHandle<()>,
    reader: AbortHandle,
    is_deferred: Arc<AtomicBool>,
}

enum Report {
    Dialled(u8, io::Result<TlsStream<TcpStream>>),
    Accepted(u8, io::Result<TlsStream<TcpStream>>),
    Received(Session, Vec<u8>),
    Drained(Session, usize),
    Closed(Session, Option<io::Error>),
}

impl Sessions {
    /// Listens on this member's address and port.
    pub fn listen(own: IpAddr, port: u16) -> io::Result<Self> {
        let socket = socket(own)?;
        // A restarted agent must not wait for the connections of the one before.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(own, port))?;
        let listener = socket.listen(MEMBERS_MAX as u32)?;
        let (report, reports) = mpsc::channel(REPORTS);
        let (deferred_report, deferred_reports) = mpsc::channel(DEFERRED_REPORTS);
        Ok(Self {
            own,
            port,
            listener,
            members: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            guests: BTreeMap::new(),
            live: HashMap::new(),
            closing: Vec::new(),
            last: 0,
            strangers: Complaint::default(),
            impostors: Complaint::default(),
            crowds: Complaint::default(),
            report,
            reports,
            deferred_report,
            deferred_reports,
        })
    }

    /// Who may connect, and where they are dialled.
    pub fn set_members(&mut self, members: BTreeMap<u8, IpAddr>) {
        self.members = members;
    }

    /// Who is believed from now on; sessions that were opened with another key end.
    ///
    /// # Errors
    ///
    /// The keys cannot be used, and nobody is believed.
    pub fn trust(&mut self, trust: &Trust) -> Result<(), rustls::Error> {
        let result = Handshake::with_all(trust);
        let failed = result.as_ref().err().cloned();
        self.handshakes = result.unwrap_or_default();
        let is_trusted = |live: &Live| self.handshakes.get(&live.peer).is_some_and(|with| with.is_of_peer(&live.key));
        for (&session, live) in self.live.iter().filter(|(_, live)| !is_trusted(live)) {
            warn!(peer = live.peer, "ending a session: its key is not in the configuration any more");
            // At once: what waits in its queues is not to go out, or come in.
            live.reader.abort();
            live.writer.abort();
            let report = self.report.clone();
            tokio::spawn(async move { report.send(Report::Closed(session, None)).await });
        }
        failed.map_or(Ok(()), Err)
    }

    /// The next thing that happened. Cancel-safe.
    pub async fn next(&mut self) -> Input {
        loop {
            tokio::select! {
                biased;
                Some(report) = self.reports.recv() => if let Some(input) = self.take(report) {
                    return input;
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => if let Some(input) = self.accept(stream, from) {
                        return input;
                    },
                    Err(error) => {
                        warn!(%error, "cannot accept connections from peers");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(report) = when_idle(&mut self.deferred_reports) => if let Some(input) = self.take(report) {
                    return input;
                },
            }
        }
    }

    /// What happened and was not asked for yet, without waiting; nothing of deferred sessions.
    pub fn try_next(&mut self) -> Option<Input> {
        while let Ok(report) = self.reports.try_recv() {
            if let Some(input) = self.take(report) {
                return Some(input);
            }
        }
        None
    }

    /// Connects to a peer; `Connected` or `DialFailed` follows.
    pub fn dial(&mut self, peer: u8) {
        let report = self.report.clone();
        let (own, to) = (self.own, self.members.get(&peer).map(|address| SocketAddr::new(*address, self.port)));
        let handshake = self.handshakes.get(&peer).cloned();
        tokio::spawn(async move {
            let result = match to.zip(handshake) {
                Some((to, handshake)) => {
                    timeout(DIAL_TIMEOUT, connect(own, to, handshake)).await.unwrap_or_else(|late| Err(late.into()))
                }
                None => Err(io::ErrorKind::NotFound.into()),
            };
            let _stopped = report.send(Report::Dialled(peer, result)).await;
        });
    }

    /// Queues bytes; `Drained` follows as they go. For a session that has ended they are dropped.
    pub fn send(&mut self, session: Session, bytes: Vec<u8>) {
        let Some(live) = self.live.get(&session) else { return };
        if live.queued.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() > QUEUE_BYTES {
            warn!(?session, "a session's queue is full; closing it");
            live.reader.abort();
            live.writer.abort();
            let report = self.report.clone();
            tokio::spawn(async move { report.send(Report::Closed(session, None)).await });
            return;
        }
        // Fails when the writer has just ended, which is reported.
        let _ended = live.frames.send(bytes);
    }

    /// What comes in on a session from now on is reported when nothing of another one is to be.
    pub fn defer(&mut self, session: Session) {
        if let Some(live) = self.live.get(&session) {
            live.is_deferred.store(true, Ordering::Relaxed);
        }
    }

    /// Closes a session after what was sent; nothing more is heard of it.
    pub fn close(&mut self, session: Session) {
        let Some(live) = self.live.remove(&session) else { return };
        live.reader.abort();
        drop(live.frames);
        self.closing.retain(|writer| !writer.is_finished());
        self.closing.push(tokio::spawn(async move {
            let abort = live.writer.abort_handle();
            if timeout(CLOSE_TIMEOUT, live.writer).await.is_err() {
                abort.abort();
            }
        }));
    }

    /// Closes every session, and waits until what was sent has gone out.
    pub async fn finish(mut self) {
        let sessions: Vec<Session> = self.live.keys().copied().collect();
        sessions.into_iter().for_each(|session| self.close(session));
        // Writers report what has drained.
        self.reports.close();
        for writer in self.closing {
            let _aborted = writer.await;
        }
    }

    fn take(&mut self, report: Report) -> Option<Input> {
        match report {
            Report::Dialled(peer, result) => match result.and_then(|stream| self.start(peer, stream)) {
                Ok(session) => Some(Input::Connected { peer, session, dialled: true }),
                Err(error) => {
                    debug!(peer, %error, "cannot connect to a peer");
                    self.complain_of_key(peer, &error);
                    Some(Input::DialFailed { peer })
                }
            },
            Report::Accepted(peer, result) => {
                if let Some(guest) = self.guests.get_mut(&peer) {
                    guest.under_way = guest.under_way.saturating_sub(1);
                }
                match result.and_then(|stream| self.start(peer, stream)) {
                    Ok(session) => Some(Input::Connected { peer, session, dialled: false }),
                    Err(error) => {
                        debug!(peer, %error, "a connection from a member's address came to nothing");
                        self.complain_of_key(peer, &error);
                        None
                    }
                }
            }
            Report::Received(session, bytes) if self.live.contains_key(&session) => {
                Some(Input::Received { session, bytes })
            }
            Report::Drained(session, bytes) if self.live.contains_key(&session) => {
                Some(Input::Drained { session, bytes })
            }
            Report::Closed(session, error) => {
                let live = self.live.remove(&session)?;
                live.reader.abort();
                live.writer.abort();
                if let Some(error) = error {
                    debug!(?session, %error, "a session was lost");
                }
                Some(Input::Closed { session })
            }
            Report::Received(..) | Report::Drained(..) => None,
        }
    }

    fn start(&mut self, peer: u8, stream: TlsStream<TcpStream>) -> io::Result<Session> {
        let key = proven_key(&stream);
        // The configuration may have changed during the handshake.
        if !self.handshakes.get(&peer).is_some_and(|with| with.is_of_peer(&key)) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let (tcp, _) = stream.get_ref();
        tcp.set_nodelay(true)?;
        SockRef::from(tcp).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        self.last += 1;
        let session = Session(self.last);
        let (from, to) = split(stream);
        let (frames, queue) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let writer = tokio::spawn(write(session, to, queue, Arc::clone(&queued), self.report.clone()));
        let is_deferred = Arc::new(AtomicBool::new(false));
        let (at_once, deferred) = (self.report.clone(), self.deferred_report.clone());
        let reports = ReaderReports { is_deferred: Arc::clone(&is_deferred), at_once, deferred };
        let reader = tokio::spawn(read(session, from, reports)).abort_handle();
        self.live.insert(session, Live { peer, key, frames, queued, writer, reader, is_deferred });
        Ok(session)
    }
}

/// The next report, after all that is ready was given a turn: readers whose sockets have something, too.
async fn when_idle(deferred: &mut mpsc::Receiver<Report>) -> Option<Report> {
    // The first turn looks at the sockets, and in the second one their readers report.
    yield_now().await;
    yield_now().await;
    deferred.recv().await
}
