//! Sessions: the TCP connections between members.
//!
//! Each has a task for reading and one for writing; both report through one bounded channel. When
//! the driver is slow, reading stops, then TCP stops the peer. Writing is bounded by the core, which makes no more
//! frames than `Drained` allows; `QUEUE_BYTES` is the limit that must never be reached.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lb_common::rank::MEMBERS_MAX;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::complaint::Complaint;
use crate::core::{Input, Session};

/// Connections at a time: each pair may for a moment have one in each direction, and an old one of each.
const SESSIONS_MAX: usize = MEMBERS_MAX * 4;
/// Bytes waiting in one session before it is given up.
const QUEUE_BYTES: usize = 16 << 20;
/// Bytes taken from a session at a time.
const READ_BYTES: usize = 64 << 10;
/// Reports under way; with `READ_BYTES` this bounds what is read and not yet handled.
const REPORTS: usize = 64;
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
    live: HashMap<Session, Live>,
    closing: Vec<JoinHandle<()>>,
    last: u64,
    strangers: Complaint,
    report: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
}

struct Live {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    writer: JoinHandle<()>,
    reader: AbortHandle,
}

enum Report {
    Dialled(u8, io::Result<TcpStream>),
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
        Ok(Self {
            own,
            port,
            listener,
            members: BTreeMap::new(),
            live: HashMap::new(),
            closing: Vec::new(),
            last: 0,
            strangers: Complaint::default(),
            report,
            reports,
        })
    }

    /// Who may connect, and where they are dialled.
    pub fn set_members(&mut self, members: BTreeMap<u8, IpAddr>) {
        self.members = members;
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
            }
        }
    }

    /// What happened and was not asked for yet, without waiting.
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
        tokio::spawn(async move {
            let result = match to {
                Some(to) => timeout(DIAL_TIMEOUT, connect(own, to)).await.unwrap_or_else(|late| Err(late.into())),
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
            Report::Dialled(peer, Ok(stream)) => match self.start(stream) {
                Ok(session) => Some(Input::Connected { peer, session, dialled: true }),
                Err(error) => {
                    debug!(peer, %error, "a connection was lost at once");
                    Some(Input::DialFailed { peer })
                }
            },
            Report::Dialled(peer, Err(error)) => {
                debug!(peer, %error, "cannot connect to a peer");
                Some(Input::DialFailed { peer })
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

    fn accept(&mut self, stream: TcpStream, from: SocketAddr) -> Option<Input> {
        let address = from.ip();
        let member = self.members.iter().find(|(_, known)| **known == address);
        let Some((&peer, _)) = member.filter(|_| address != self.own) else {
            if let Some(refused) = self.strangers.note() {
                warn!(%from, refused, "refused connections that are not from a member's address");
            }
            return None;
        };
        if self.live.len() >= SESSIONS_MAX {
            warn!(peer, "refused a connection: {SESSIONS_MAX} sessions are open");
            return None;
        }
        let session = self.start(stream).ok()?;
        Some(Input::Connected { peer, session, dialled: false })
    }

    fn start(&mut self, stream: TcpStream) -> io::Result<Session> {
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        self.last += 1;
        let session = Session(self.last);
        let (from, to) = stream.into_split();
        let (frames, queue) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let writer = tokio::spawn(write(session, to, queue, Arc::clone(&queued), self.report.clone()));
        let reader = tokio::spawn(read(session, from, self.report.clone())).abort_handle();
        self.live.insert(session, Live { frames, queued, writer, reader });
        Ok(session)
    }
}

/// A socket of the family of `own`.
fn socket(own: IpAddr) -> io::Result<TcpSocket> {
    if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

async fn connect(own: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(own)?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(own, 0))?;
    socket.connect(to).await
}

async fn read(session: Session, mut from: OwnedReadHalf, report: mpsc::Sender<Report>) {
    let error = loop {
        let mut bytes = Vec::with_capacity(READ_BYTES);
        match from.read_buf(&mut bytes).await {
            Ok(0) => break None,
            Ok(_) => {
                if report.send(Report::Received(session, bytes)).await.is_err() {
                    return;
                }
            }
            Err(error) => break Some(error),
        }
    };
    let _stopped = report.send(Report::Closed(session, error)).await;
}

async fn write(
    session: Session,
    mut to: OwnedWriteHalf,
    mut frames: mpsc::UnboundedReceiver<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    report: mpsc::Sender<Report>,
) {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = to.write_all(&frame).await {
            let _stopped = report.send(Report::Closed(session, Some(error))).await;
            return;
        }
        queued.fetch_sub(frame.len(), Ordering::Relaxed);
        // Nobody listens when the agent is stopping; what is queued still goes out.
        let _stopped = report.send(Report::Drained(session, frame.len())).await;
    }
    let _gone = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 2));

    fn pair(port: u16) -> (Sessions, Sessions) {
        let members = BTreeMap::from([(1, ONE), (2, TWO)]);
        let mut both = [ONE, TWO].map(|own| Sessions::listen(own, port).unwrap());
        both.iter_mut().for_each(|sessions| sessions.set_members(members.clone()));
        both.into()
    }

    async fn connected(one: &mut Sessions, two: &mut Sessions) -> (Session, Session) {
        one.dial(2);
        let Input::Connected { peer: 2, session: ours, dialled: true } = one.next().await else { panic!() };
        let Input::Connected { peer: 1, session: theirs, dialled: false } = two.next().await else { panic!() };
        (ours, theirs)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_sent_before_a_close_arrives() {
        let (mut one, mut two) = pair(17401);
        let (ours, theirs) = connected(&mut one, &mut two).await;
        one.send(ours, vec![7; 300_000]);
        one.close(ours);
        let mut received = 0;
        loop {
            match two.next().await {
                Input::Received { session, bytes } if session == theirs => received += bytes.len(),
                Input::Closed { session } if session == theirs => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, 300_000);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn strangers_are_refused_and_dead_peers_reported() {
        let (mut one, mut two) = pair(17402);
        one.members.remove(&2);
        two.dial(1);
        let Input::Connected { session, .. } = two.next().await else { panic!() };
        tokio::select! {
            input = one.next() => panic!("{input:?}"),
            Input::Closed { session: closed } = two.next() => assert_eq!(closed, session),
        }
        drop(one);
        two.dial(1);
        assert!(matches!(two.next().await, Input::DialFailed { peer: 1 }));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_byte_is_reported_as_drained_once() {
        let (mut one, mut two) = pair(17403);
        let (ours, _) = connected(&mut one, &mut two).await;
        for _ in 0..10 {
            one.send(ours, vec![0; 10_000]);
        }
        let mut drained = 0;
        while drained < 100_000 {
            let Input::Drained { session, bytes } = one.next().await else { panic!() };
            assert_eq!(session, ours);
            drained += bytes;
        }
        assert!(one.try_next().is_none());
    }
}
