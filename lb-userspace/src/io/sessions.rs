//! Sessions: the connections between members, TLS over TCP.
//!
//! An address says which member a connection must be with, and the handshake proves it ([`super::handshake`]); before that
//! nobody hears of it. Handshakes are limited in number, rate and time, for each member's address by itself.
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
    time::{Duration, Instant},
};

use lb_common::rank::MEMBERS_MAX;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use tokio_rustls::TlsStream;

use super::{
    complaint::Complaint,
    handshake::{Handshake, Trust, is_wrong_key, proven_key},
};
use crate::core::{Input, Session};

/// Connections at a time: each pair may for a moment have one in each direction, and an old one of each.
const SESSIONS_MAX: usize = MEMBERS_MAX * 4;
/// Bytes waiting in one session before it is given up.
const QUEUE_BYTES: usize = 16 << 20;
/// Bytes taken from a session at a time.
const READ_BYTES: usize = 64 << 10;
/// Reports under way; with `READ_BYTES` this bounds what is read and not yet handled.
const REPORTS: usize = 64;
/// Handshakes of accepted connections under way, together and of one member's address: 128 half-open ones cost 2 MiB.
const HANDSHAKES_MAX: usize = MEMBERS_MAX * 2;
/// See `HANDSHAKES_MAX`: a peer has one for each connection, and an old one of each.
const HANDSHAKES_OF_ONE: usize = 4;
/// Handshakes of one member's address a second, and how many may come at once; each costs 0.2 ms. A peer dials ten times a
/// second at most.
const HANDSHAKE_RATE: f64 = 20.0;
/// An accepted handshake takes two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
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
}

/// Accepted connections from one member's address that have proved nothing yet.
struct Guest {
    under_way: usize,
    /// Handshakes that may begin now.
    allowance: f64,
    refilled: Instant,
}

struct Live {
    peer: u8,
    /// What the peer has proved.
    key: Vec<u8>,
    frames: mpsc::UnboundedSender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    writer: JoinHandle<()>,
    reader: AbortHandle,
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

    fn accept(&mut self, stream: TcpStream, from: SocketAddr) -> Option<Input> {
        let address = from.ip();
        let member = self.members.iter().find(|(_, known)| **known == address);
        let Some((&peer, _)) = member.filter(|_| address != self.own) else {
            if let Some(refused) = self.strangers.note() {
                warn!(%from, refused, "refused connections that are not from a member's address");
            }
            return None;
        };
        let handshake = self.handshakes.get(&peer)?.clone();
        if self.live.len() >= SESSIONS_MAX || !self.admit(peer) {
            if let Some(refused) = self.crowds.note() {
                warn!(peer, refused, "refused connections: too many come from a member's address");
            }
            return None;
        }
        let report = self.report.clone();
        tokio::spawn(async move {
            let result = timeout(HANDSHAKE_TIMEOUT, handshake.accept(stream)).await;
            let result = result.unwrap_or_else(|late| Err(late.into()));
            let _stopped = report.send(Report::Accepted(peer, result)).await;
        });
        None
    }

    /// Whether another handshake may begin with who is at a member's address.
    fn admit(&mut self, peer: u8) -> bool {
        let under_way: usize = self.guests.values().map(|guest| guest.under_way).sum();
        let now = Instant::now();
        let fresh = || Guest { under_way: 0, allowance: HANDSHAKE_RATE, refilled: now };
        let guest = self.guests.entry(peer).or_insert_with(fresh);
        let earned = now.duration_since(guest.refilled).as_secs_f64() * HANDSHAKE_RATE;
        (guest.allowance, guest.refilled) = ((guest.allowance + earned).min(HANDSHAKE_RATE), now);
        if under_way >= HANDSHAKES_MAX || guest.under_way >= HANDSHAKES_OF_ONE || guest.allowance < 1.0 {
            return false;
        }
        (guest.allowance, guest.under_way) = (guest.allowance - 1.0, guest.under_way + 1);
        true
    }

    fn complain_of_key(&mut self, peer: u8, error: &io::Error) {
        if is_wrong_key(error)
            && let Some(refused) = self.impostors.note()
        {
            warn!(
                peer,
                refused,
                "whoever is at this member's address has another key than the configuration says: compare `public_key` \
                 with `tandem cluster public-key` there"
            );
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
        let reader = tokio::spawn(read(session, from, self.report.clone())).abort_handle();
        self.live.insert(session, Live { peer, key, frames, queued, writer, reader });
        Ok(session)
    }
}

/// A socket of the family of `own`.
fn socket(own: IpAddr) -> io::Result<TcpSocket> {
    if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

async fn connect(own: IpAddr, to: SocketAddr, handshake: Handshake) -> io::Result<TlsStream<TcpStream>> {
    let socket = socket(own)?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(own, 0))?;
    handshake.connect(to.ip(), socket.connect(to).await?).await
}

async fn read(session: Session, mut from: ReadHalf<TlsStream<TcpStream>>, report: mpsc::Sender<Report>) {
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::identity::MemberKey;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 2));

    fn pair(port: u16) -> (Sessions, Sessions) {
        let members = BTreeMap::from([(1, ONE), (2, TWO)]);
        let mut both = [ONE, TWO].map(|own| Sessions::listen(own, port).unwrap());
        for (sessions, id) in both.iter_mut().zip(1..) {
            sessions.set_members(members.clone());
            sessions.trust(&trust(id, &[(1, 1), (2, 2)])).unwrap();
        }
        both.into()
    }

    fn key(seed: u8) -> MemberKey {
        MemberKey::from_seed(&[seed; 32])
    }

    /// Has this key, and takes members for those of these keys.
    fn trust(own: u8, peers: &[(u8, u8)]) -> Trust {
        let mut trust = Trust { own: Some(key(own)), ..Trust::default() };
        for (id, seed) in peers {
            trust.peers.entry(*id).or_default().push(key(*seed).public());
        }
        trust
    }

    /// Somebody who speaks from member 2's address.
    async fn guest(port: u16) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(TWO, 0)).unwrap();
        socket.connect(SocketAddr::new(ONE, port)).await.unwrap()
    }

    /// Lets a member work for a while; nothing may happen that its core would hear of.
    async fn hears_nothing(sessions: &mut Sessions, time: Duration) {
        if let Ok(input) = timeout(time, sessions.next()).await {
            panic!("{input:?}");
        }
    }

    async fn is_ended(stream: &mut TcpStream) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match timeout(Duration::from_millis(100), stream.read(&mut bytes)).await {
                Ok(Ok(0) | Err(_)) => return true,
                Ok(Ok(_)) => {}
                Err(_) => return false,
            }
        }
    }

    async fn connected(one: &mut Sessions, two: &mut Sessions) -> (Session, Session) {
        let [peer_of_one, peer_of_two] = if one.own == ONE { [2, 1] } else { [1, 2] };
        one.dial(peer_of_one);
        let (ours, theirs) = tokio::join!(one.next(), two.next());
        let Input::Connected { peer, session: ours, dialled: true } = ours else { panic!("{ours:?}") };
        assert_eq!(peer, peer_of_one);
        let Input::Connected { peer, session: theirs, dialled: false } = theirs else { panic!("{theirs:?}") };
        assert_eq!(peer, peer_of_two);
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
        tokio::select! {
            input = one.next() => panic!("{input:?}"),
            input = two.next() => assert!(matches!(input, Input::DialFailed { peer: 1 })),
        }
        drop(one);
        two.dial(1);
        assert!(matches!(two.next().await, Input::DialFailed { peer: 1 }));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn another_key_opens_nothing_in_either_direction() {
        let (mut one, mut two) = pair(17404);
        // The dialler has another key: its peer hears nothing of it, and it is told so at once.
        two.trust(&trust(9, &[(1, 1)])).unwrap();
        two.dial(1);
        let told = async {
            let Input::Connected { session, .. } = two.next().await else { panic!() };
            let Input::Closed { session: closed } = two.next().await else { panic!() };
            assert_eq!(closed, session);
        };
        tokio::select! {
            () = told => {}
            input = one.next() => panic!("{input:?}"),
        }
        // The one who is dialled has another key.
        one.dial(2);
        tokio::select! {
            input = one.next() => assert!(matches!(input, Input::DialFailed { peer: 2 })),
            input = two.next() => panic!("{input:?}"),
        }
        assert!(one.live.is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_session_ends_when_its_key_is_dropped_and_lives_on_with_either_of_two() {
        let (mut one, mut two) = pair(17405);
        let (ours, theirs) = connected(&mut one, &mut two).await;
        one.trust(&trust(1, &[(2, 7), (2, 2)])).unwrap();
        hears_nothing(&mut one, Duration::from_millis(50)).await;
        one.trust(&trust(1, &[(2, 7)])).unwrap();
        let Input::Closed { session } = one.next().await else { panic!() };
        assert_eq!(session, ours);
        let Input::Closed { session } = two.next().await else { panic!() };
        assert_eq!(session, theirs);
        // With the new key it is welcome again.
        two.trust(&trust(7, &[(1, 1)])).unwrap();
        connected(&mut one, &mut two).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_recorded_session_opens_nothing() {
        let (mut one, mut two) = pair(17406);
        // Between the two somebody who records what the dialler says.
        let wire = TcpSocket::new_v4().unwrap();
        wire.set_reuseaddr(true).unwrap();
        wire.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 7, 9)), 17406)).unwrap();
        let wire = wire.listen(1).unwrap();
        two.members.insert(1, IpAddr::V4(Ipv4Addr::new(127, 0, 7, 9)));
        two.dial(1);
        let (mut dialler, _) = wire.accept().await.unwrap();
        let mut dialled = guest(17406).await;
        let mut recording = Vec::new();
        let relay = async {
            let (mut up, mut down) = ([0; 4096], [0; 4096]);
            loop {
                tokio::select! {
                    Ok(n @ 1..) = dialler.read(&mut up) => {
                        recording.extend_from_slice(&up[..n]);
                        dialled.write_all(&up[..n]).await.unwrap();
                    }
                    Ok(n @ 1..) = dialled.read(&mut down) => dialler.write_all(&down[..n]).await.unwrap(),
                }
            }
        };
        let talk = async {
            let (Input::Connected { session: theirs, .. }, Input::Connected { session: ours, .. }) =
                tokio::join!(two.next(), one.next())
            else {
                panic!()
            };
            two.send(theirs, vec![5; 100]);
            assert!(matches!(two.next().await, Input::Drained { .. }));
            let Input::Received { session, bytes } = one.next().await else { panic!() };
            assert_eq!((session, bytes), (ours, vec![5; 100]));
        };
        tokio::select! {
            () = relay => {}
            () = talk => {}
        }
        assert!(recording.len() > 300);
        let mut again = guest(17406).await;
        again.write_all(&recording).await.unwrap();
        hears_nothing(&mut one, Duration::from_millis(200)).await;
        assert!(is_ended(&mut again).await);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn half_open_handshakes_are_few_short_and_nobody_elses_concern() {
        let (mut one, mut two) = pair(17407);
        // Silent, with rubbish, with a record longer than TLS allows, with the beginning of a handshake.
        let hello = [&[22, 3, 1, 0x40, 1][..], &[0; 600]].concat();
        let mut guests = Vec::new();
        for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &hello, &[22, 3, 1, 2, 0, 1, 0]].repeat(50) {
            let mut guest = guest(17407).await;
            // Refused ones are closed by now.
            let _closed = guest.write_all(bytes).await;
            guests.push(guest);
            hears_nothing(&mut one, Duration::from_millis(1)).await;
            assert!(one.guests[&2].under_way <= HANDSHAKES_OF_ONE);
        }
        // All are gone after the time for a handshake, and the member itself gets through.
        hears_nothing(&mut one, HANDSHAKE_TIMEOUT + Duration::from_millis(300)).await;
        assert_eq!(one.guests[&2].under_way, 0);
        for guest in &mut guests {
            assert!(is_ended(guest).await);
        }
        connected(&mut two, &mut one).await;
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
