//! TCP connections between agents: ordered bytes, in pieces of any size, that end when the network or an agent does.

use std::{collections::VecDeque, io::Read as _};

use lb_userspace::core::{
    Input, Session,
    wire::{self, Decoder, Frame},
};

use crate::{
    agenda::Happening,
    invariants::Invariant,
    mutation::Mutation,
    time::{MS, Ns, S, US},
    world::World,
};

/// Bytes that the kernel takes from an agent before the peer has them.
const SOCKET_BYTES: usize = 1024;
/// As the agent's edge sets `TCP_USER_TIMEOUT`.
const USER_TIMEOUT: Ns = 5 * S;
/// As the agent's edge limits a dial.
const DIAL_TIMEOUT: Ns = S;
/// What may be sent though the window is full: greetings, and signs of life.
const SHORT_FRAMES_BYTES: usize = 1024;
/// Frames shorter than this hold no record.
const SHORT_FRAME_BYTES: usize = 54;

/// One connection.
#[derive(Debug)]
pub(crate) struct Stream {
    ends: [End; 2],
    /// Whether it is a pair's second one.
    pub(crate) is_bulk: bool,
    /// Until when nothing moves.
    pub(crate) held_until: Ns,
    /// Nothing moves any more, and the ends are about to notice.
    pub(crate) is_broken: bool,
}

impl Stream {
    fn new(ends: [End; 2]) -> Self {
        Self { ends, is_bulk: false, held_until: 0, is_broken: false }
    }

    /// Whose this end is.
    pub(crate) fn member(&self, side: usize) -> u8 {
        self.ends[side].member
    }

    /// Counts a frame that a planted fault keeps from going out.
    pub(crate) fn swallow(&mut self, side: usize) -> (u8, u64) {
        self.ends[side].swallowed += 1;
        (self.ends[side].member, self.ends[side].swallowed)
    }
}

/// One side of it.
#[derive(Debug)]
struct End {
    member: u8,
    run: u64,
    session: Session,
    /// Neither closed by the agent nor reported to it as closed.
    open: bool,
    /// Whether the agent has sent anything.
    has_sent: bool,
    /// Sent and not yet delivered.
    queue: VecDeque<u8>,
    /// How much of `queue` the kernel has.
    kernel: usize,
    /// Since when nothing could be delivered.
    stalled: Option<Ns>,
    /// A `Pump` is planned.
    pumping: bool,
    /// Frames that a planted fault kept from going out.
    swallowed: u64,
}

impl End {
    fn new(member: u8, run: u64, session: Session) -> Self {
        Self {
            member,
            run,
            session,
            open: true,
            has_sent: false,
            queue: VecDeque::new(),
            kernel: 0,
            stalled: None,
            pumping: false,
            swallowed: 0,
        }
    }
}

impl World {
    /// An agent dials a peer.
    pub(crate) fn dial(&mut self, member: u8, run: u64, peer: u8) {
        let at = self.now + 2 * self.network.latency_of_stream();
        self.agenda.plan(at, Happening::Dialled { member, run, peer });
    }

    /// The dial has come to something.
    pub(crate) fn dialled(&mut self, member: u8, run: u64, peer: u8) {
        if !self.is_running(member, run) {
            return;
        }
        let is_frozen = self.hosts.get(&peer).is_some_and(|host| host.is_frozen(self.now));
        let is_cut = is_frozen || self.network.is_cut(member, peer) || self.network.is_cut(peer, member);
        let refuses = self.hosts.get(&peer).and_then(|host| host.agent.as_ref()).map(|agent| agent.run);
        let Some(peer_run) = refuses.filter(|_| !is_cut && self.knows_member(peer, member)) else {
            let late = is_cut || !self.hosts.get(&peer).is_some_and(|host| host.up);
            let at = self.now + if late { DIAL_TIMEOUT } else { 0 };
            self.input_at(at, member, Input::DialFailed { peer });
            return;
        };
        if self.hosts.get(&member).map(|host| host.speaks) != self.hosts.get(&peer).map(|host| host.speaks) {
            self.stats.count("session between versions");
        }
        let id = self.next_stream;
        self.next_stream += 1;
        let (ours, theirs) = (Session(id * 2), Session(id * 2 + 1));
        self.streams.insert(id, Stream::new([End::new(member, run, ours), End::new(peer, peer_run, theirs)]));
        self.input(member, Input::Connected { peer, session: ours, dialled: true });
        self.input(peer, Input::Connected { peer: member, session: theirs, dialled: false });
    }

    /// An agent sends bytes.
    pub(crate) fn send(&mut self, session: Session, bytes: &[u8]) {
        let (id, side) = place(session);
        let is_lost =
            self.mutation == Mutation::LosesFrames && bytes.len() >= SHORT_FRAME_BYTES && self.rng.chance(200);
        if self.swallows_bulk(session, bytes) {
            return;
        }
        let bound = self.plan.limits.window + SOCKET_BYTES + SHORT_FRAMES_BYTES;
        let is_lost = is_lost || is_swallowed(self.mutation, bytes);
        let Some(end) = self.streams.get_mut(&id).map(|stream| &mut stream.ends[side]) else { return };
        if !end.open {
            return;
        }
        let (member, length) = (end.member, end.queue.len());
        if is_lost {
            self.input(member, Input::Drained { session, bytes: bytes.len() });
            return;
        }
        end.has_sent = true;
        end.queue.extend(bytes);
        self.trace(|| format!("stream {id}: {member} sends {} bytes, {length} wait", bytes.len()));
        self.stats.max("longest session queue", length as u64);
        if length > bound && bytes.len() >= SHORT_FRAME_BYTES {
            self.violate(Invariant::Bounded, || format!("member {member} sends behind {length} bytes, bound {bound}"));
        }
        self.fill_socket(id, side);
        self.pump_soon(id, side);
    }

    /// Ends of connections: stream, side, whose it is, and with whom.
    pub(crate) fn streams_in_use(&self) -> impl Iterator<Item = (u64, usize, u8, u8)> {
        let ends = |(&id, stream): (&u64, &Stream)| {
            let [one, other] = [stream.ends[0].member, stream.ends[1].member];
            // Its greeting has gone before.
            let is_used = stream.ends.iter().all(|end| end.open && end.has_sent);
            [(id, 0, one, other), (id, 1, other, one)].into_iter().filter(move |_| is_used)
        };
        self.streams.iter().flat_map(ends)
    }

    /// Somebody sends a frame behind what the agent has sent.
    pub(crate) fn append(&mut self, id: u64, side: usize, frame: &[u8]) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ends[side].queue.extend(frame);
            self.pump_soon(id, side);
        }
    }

    /// An agent closes a session: what was sent still goes out.
    pub(crate) fn close(&mut self, session: Session) {
        let (id, side) = place(session);
        let Some(end) = self.streams.get_mut(&id).map(|stream| &mut stream.ends[side]) else { return };
        end.open = false;
        end.kernel = end.queue.len();
        self.pump_soon(id, side);
    }

    /// An agent died: its kernel says so to all peers.
    pub(crate) fn abandon_streams(&mut self, member: u8, run: u64) {
        let mut ended = Vec::new();
        for (&id, stream) in &mut self.streams {
            for side in 0..2 {
                if stream.ends[side].member == member && stream.ends[side].run == run {
                    stream.ends[side].open = false;
                    stream.ends[side].queue.clear();
                    stream.ends[side].kernel = 0;
                    ended.push((id, 1 - side));
                }
            }
        }
        for (stream, end) in ended {
            let at = self.now + self.network.latency_of_stream();
            self.agenda.plan(at, Happening::StreamEnded { stream, end });
        }
    }

    /// A host crashed: what its kernel had not sent is gone, and nobody is told.
    pub(crate) fn lose_unsent(&mut self, member: u8) {
        for end in self.streams.values_mut().flat_map(|stream| &mut stream.ends).filter(|end| end.member == member) {
            let sent = if self.rng.chance(500) { end.kernel } else { 0 };
            end.queue.truncate(sent);
            end.kernel = sent;
        }
    }

    /// Moves what it can of what end `from` has sent.
    pub(crate) fn pump(&mut self, id: u64, from: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.ends[from].pumping = false;
        if stream.is_broken {
            return;
        }
        if self.now < stream.held_until {
            stream.ends[from].pumping = true;
            let at = stream.held_until;
            self.agenda.plan(at, Happening::Pump { stream: id, from });
            return;
        }
        let [sender, receiver] = if from == 0 { [0, 1] } else { [1, 0] }.map(|side: usize| &stream.ends[side]);
        let (a, b, b_run) = (sender.member, receiver.member, receiver.run);
        let receiver_open = receiver.open;
        let is_cut = self.network.is_cut(a, b) || self.network.is_cut(b, a);
        if is_cut || !self.hosts.get(&b).is_some_and(|host| host.up && !host.is_frozen(self.now)) {
            self.stall(id, from);
            return;
        }
        if !receiver_open || !self.is_running(b, b_run) {
            self.stream_ended(id, from);
            return;
        }
        let piece = self.rng.pick(&[1, 7, 200, 1500, 1500, usize::MAX, usize::MAX]).unwrap_or(1);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let session = stream.ends[1 - from].session;
        let end = &mut stream.ends[from];
        end.stalled = None;
        let length = piece.min(end.kernel);
        let mut bytes = vec![0; length];
        // From memory that holds as many.
        let _ = end.queue.read_exact(&mut bytes);
        end.kernel -= length;
        let is_over = !end.open && end.queue.is_empty();
        let left = end.queue.len();
        self.trace(|| format!("stream {id}: {b} gets {length} bytes, {left} wait"));
        if !bytes.is_empty() {
            self.input(b, Input::Received { session, bytes });
        }
        self.fill_socket(id, from);
        if is_over {
            self.stream_ended(id, 1 - from);
        } else {
            self.pump_soon(id, from);
        }
    }

    /// End `side` learns that the connection is gone.
    pub(crate) fn stream_ended(&mut self, id: u64, side: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (here, there) = (stream.ends[side].member, stream.ends[1 - side].member);
        if self.network.is_cut(there, here) && stream.ends[side].stalled.is_none() {
            let at = self.now + 200 * MS;
            self.agenda.plan(at, Happening::StreamEnded { stream: id, end: side });
            return;
        }
        let end = &mut stream.ends[side];
        let (was_open, run, session) = (end.open, end.run, end.session);
        end.open = false;
        end.queue.clear();
        end.kernel = 0;
        if stream.ends.iter().all(|end| !end.open && end.queue.is_empty()) {
            self.streams.remove(&id);
        }
        if was_open && self.is_running(here, run) {
            self.stats.count("session broken");
            self.input(here, Input::Closed { session });
        }
    }

    /// The kernel takes more bytes from the agent.
    fn fill_socket(&mut self, id: u64, side: usize) {
        let at_once = self.mutation == Mutation::DrainsAtOnce;
        let Some(end) = self.streams.get_mut(&id).map(|stream| &mut stream.ends[side]) else { return };
        let room = if at_once { usize::MAX } else { SOCKET_BYTES };
        let taken = room.min(end.queue.len()).saturating_sub(end.kernel);
        end.kernel += taken;
        if taken > 0 && end.open {
            let (member, session) = (end.member, end.session);
            self.input(member, Input::Drained { session, bytes: taken });
        }
    }

    fn pump_soon(&mut self, id: u64, side: usize) {
        let wait = self.network.latency_of_stream();
        let slow = self.plan.slow_member;
        let Some(end) = self.streams.get_mut(&id).map(|stream| &mut stream.ends[side]) else { return };
        if end.pumping || (end.queue.is_empty() && end.open) {
            return;
        }
        end.pumping = true;
        let wait = if slow == Some(end.member) { wait + 2 * MS } else { wait + 10 * US };
        self.agenda.plan(self.now + wait, Happening::Pump { stream: id, from: side });
    }

    /// Nothing gets through: tries again later, and gives up after a while.
    fn stall(&mut self, id: u64, side: usize) {
        let now = self.now;
        let Some(end) = self.streams.get_mut(&id).map(|stream| &mut stream.ends[side]) else { return };
        let since = *end.stalled.get_or_insert(now);
        if now - since > USER_TIMEOUT {
            self.stream_ended(id, side);
            return;
        }
        end.pumping = true;
        let at = now + self.rng.between(50 * MS, 250 * MS);
        self.agenda.plan(at, Happening::Pump { stream: id, from: side });
    }
}

/// The stream of a session, and which end of it.
pub(crate) fn place(session: Session) -> (u64, usize) {
    (session.0 / 2, (session.0 % 2) as usize)
}

/// Whether a planted fault loses this frame.
fn is_swallowed(mutation: Mutation, bytes: &[u8]) -> bool {
    if ![Mutation::LosesStandings, Mutation::LosesConditions, Mutation::LosesOpinions].contains(&mutation) {
        return false;
    }
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    match decoder.next_frame(wire::VERSION) {
        Ok(Some(Frame::Epoch(_))) => mutation == Mutation::LosesStandings,
        Ok(Some(Frame::Conditions(_))) => mutation == Mutation::LosesConditions,
        Ok(Some(Frame::Opinions(_))) => mutation == Mutation::LosesOpinions,
        _ => false,
    }
}
