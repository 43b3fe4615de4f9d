//! Who is alive, as this member sees it.
//!
//! Every peer is probed every interval, and looked at every interval. Its datapath goes through these states:
//!
//! ```text
//!              echo             settled
//!   Unknown --------> Waiting <---------> Up
//!     ^  ^               |        empty   |  ^
//!     |  +--gap or lost--+           lost |  | settled
//!     | back                              v  |
//!    Left <---- goodbye, from any       Down --echo--> Rising
//!                                         ^              |
//!                                         +-gap or lost--+
//! ```
//!
//! Fast down: `misses` probes without an echo. Slow up: after a death the echoes must come for a second without a gap,
//! so that a flapping link stays down; a peer that was never dead here needs only three echoes, so that a restarted
//! agent does not take a second to see its cluster. A miss is a probe that was sent: a prober that wakes late has sent
//! nothing meanwhile and misses nothing.
//!
//! Echoes have settled only when the peer also says that it is ready: a peer with empty tables would deliver known flows
//! by the stateless answer. One that is up stays up while its agent restarts, unless it says that its maps are new
//! (`PROBE_EMPTY`). Of a peer whose agent is dead nothing more will be said: a second of echoes is enough.
//!
//! A peer's agent is alive when its probes come in.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    hash::HashKey,
    liveness::{
        Heard, Liveness, PROBE_EMPTY, PROBE_GOODBYE, PROBE_MAGIC, PROBE_READY, PROBE_REQUEST, PROBE_VERSION, Probe,
    },
    node::PROBE_KEYS,
    rank::bit,
};
use zerocopy::FromZeros as _;

use super::{
    sessions::STARTS_MAX,
    view::{Probing, View},
};

/// Echoes that make a ready peer alive that was never dead here.
pub const FIRST_ECHOES: u32 = 3;
/// How long the echoes of a dead peer, or of one without an agent, must come without a gap.
pub const RISE: Duration = Duration::from_secs(1);
/// Unanswered probes that are a gap: one may still be on its way, and one in a hundred is lost without meaning.
const GAP: u64 = 2;

/// What is known of a peer's datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing was heard of it yet.
    Unknown,
    /// Its echoes come, but it is not known to be ready.
    Waiting,
    /// Alive.
    Up,
    /// Dead.
    Down,
    /// Was dead, and its echoes come again.
    Rising,
    /// Has said goodbye.
    Left,
}

/// What a look at a peer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// An echo that is new.
    Echo,
    /// The same, echoes have come for long enough, and the peer is ready or has no agent to say so.
    Settled,
    /// Several probes in a row without an echo.
    Gap,
    /// All of the last `misses` probes without an echo.
    Lost,
    /// The peer says that its maps are new.
    Empty,
    /// The peer says that it stops.
    Goodbye,
    /// A peer that had left goes on, or is there again.
    Back,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Unknown, Self::Waiting, Self::Up, Self::Down, Self::Rising, Self::Left];

    /// The state after a sign.
    pub const fn after(self, sign: Sign) -> Self {
        use Sign::{Back, Echo, Empty, Gap, Goodbye, Lost, Settled};
        match (self, sign) {
            (Self::Unknown, Echo) => Self::Waiting,
            (Self::Unknown, Settled) => Self::Up,
            (Self::Unknown, Gap | Lost | Empty | Back) => Self::Unknown,

            (Self::Waiting, Echo | Empty | Back) => Self::Waiting,
            (Self::Waiting, Settled) => Self::Up,
            (Self::Waiting, Gap | Lost) => Self::Unknown,

            (Self::Up, Echo | Settled | Gap | Back) => Self::Up,
            (Self::Up, Empty) => Self::Waiting,
            (Self::Up, Lost) => Self::Down,

            (Self::Down, Echo | Settled) => Self::Rising,
            (Self::Down, Gap | Lost | Empty | Back) => Self::Down,

            (Self::Rising, Echo | Empty | Back) => Self::Rising,
            (Self::Rising, Settled) => Self::Up,
            (Self::Rising, Gap | Lost) => Self::Down,

            (Self::Left, Echo | Settled | Gap | Lost | Empty | Goodbye) => Self::Left,
            (Self::Left, Back) => Self::Unknown,

            (Self::Unknown | Self::Waiting | Self::Up | Self::Down | Self::Rising, Goodbye) => Self::Left,
        }
    }
}

impl Sign {
    /// Every sign.
    pub const ALL: [Self; 7] =
        [Self::Echo, Self::Settled, Self::Gap, Self::Lost, Self::Empty, Self::Goodbye, Self::Back];
}

/// Something about a peer is not as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Its datapath's state.
    Datapath { from: State, to: State },
    /// Whether its agent is alive.
    Agent { alive: bool },
    /// Whether it is ready.
    Ready,
}

/// All peers, the probe clock, and what follows for the datapath.
pub(crate) struct Watch {
    me: u8,
    /// Of this start: who repeats it has heard this member since.
    nonce: u64,
    probing: Probing,
    peers: BTreeMap<u8, Peer>,
    /// Number of the last round; rises over restarts too, because it starts as the time.
    round: u64,
    next_round: u64,
    /// A look between two rounds, when one more probe without an echo would be the last.
    next_look: Option<u64>,
    /// An agent that was alive then is given the benefit of the doubt before: this member was asleep.
    awake_since: u64,
}

struct Peer {
    state: State,
    keys: [HashKey; PROBE_KEYS],
    heard: Heard,
    /// The round before the first probe to it.
    since: u64,
    /// The latest round that was echoed.
    echoed: u64,
    /// Echoes in a row, while `Waiting`.
    echoes: u32,
    /// Start of the row, while `Waiting` or `Rising`.
    clean_since: u64,
    agent: bool,
    ready: bool,
    is_empty: bool,
    /// Its incarnation by its latest session.
    incarnation: u32,
    /// The incarnation that said goodbye.
    left: u32,
    /// While `Left`: since when its probes come without a goodbye.
    speaks_since: Option<u64>,
    /// Whether it has ever been ready.
    was_ready: bool,
}

impl Watch {
    pub(crate) fn new(now: u64, nonce: u64, view: &View) -> Self {
        let mut watch = Self {
            me: view.me,
            nonce,
            probing: view.probing,
            peers: BTreeMap::new(),
            round: now,
            next_round: now,
            next_look: None,
            awake_since: now,
        };
        watch.configure(view);
        watch
    }

    pub(crate) fn configure(&mut self, view: &View) {
        self.probing = view.probing;
        self.peers.retain(|&id, _| view.member(id).is_some());
        for member in view.members.iter().filter(|member| member.id != view.me) {
            self.peers.entry(member.id).or_insert_with(|| Peer::new(self.round)).keys = member.probe_keys;
        }
    }

    /// When the next look, or round, is due.
    pub(crate) fn next_look(&self) -> u64 {
        self.next_look.unwrap_or(self.next_round)
    }

    /// What peers must repeat to be believed.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    pub(crate) fn heard(&mut self, member: u8, heard: Heard) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.heard = heard;
        }
    }

    /// Judges every peer by what was heard of it, if a look is due.
    pub(crate) fn look(&mut self, now: u64, changes: &mut Vec<(u8, Change)>) -> bool {
        if now < self.next_look() {
            return false;
        }
        self.next_look = None;
        if now > self.next_round + self.interval() {
            self.awake_since = now;
        }
        let (misses, silence) = (u64::from(self.probing.misses), self.silence());
        for (&id, peer) in &mut self.peers {
            peer.look_at_agent(id, now, now.saturating_sub(silence), self.awake_since, changes);
            if let Some(sign) = peer.sign(now, self.round, misses) {
                peer.step(id, now, sign, changes);
            }
        }
        true
    }

    /// Starts the next round if it is due: who is to be probed, and with which number.
    pub(crate) fn next_probes(&mut self, now: u64) -> Option<(u64, Vec<u8>)> {
        if now < self.next_round {
            return None;
        }
        let interval = self.interval();
        // A probe is missed only half an interval after it was sent, so the next look is no sooner.
        self.next_round = (self.next_round + interval).max(now + interval / 2);
        self.round += 1;
        let misses = u64::from(self.probing.misses);
        let at_stake = |peer: &Peer| peer.state == State::Up && peer.unanswered(self.round) >= misses;
        if self.peers.values().any(at_stake) {
            self.next_look = Some(now + interval / 2);
        }
        Some((self.round, self.peers.keys().copied().collect()))
    }

    /// A probe to everybody out of turn.
    pub(crate) fn extra_probes(&mut self) -> (u64, Vec<u8>) {
        self.round += 1;
        (self.round, self.peers.keys().copied().collect())
    }

    /// The peer has said goodbye in its session.
    pub(crate) fn goodbye(&mut self, id: u8, now: u64, changes: &mut Vec<(u8, Change)>) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.left = peer.left.max(peer.incarnation);
            peer.step(id, now, Sign::Goodbye, changes);
        }
    }

    /// The peer's session says which incarnation it is; probes of earlier ones count for nothing from now on.
    pub(crate) fn learn_incarnation(&mut self, id: u8, incarnation: u32) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.incarnation = incarnation;
        }
    }

    /// The latest incarnation of the peer that its session or its probes have shown.
    pub(crate) fn incarnation(&self, id: u8) -> u32 {
        self.peers.get(&id).map_or(0, |peer| peer.incarnation)
    }

    pub(crate) fn state(&self, id: u8) -> Option<State> {
        self.peers.get(&id).map(|peer| peer.state)
    }

    /// Whether the peer's agent lives.
    pub(crate) fn is_agent_alive(&self, id: u8) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.agent)
    }

    /// Whether the peer's agent lives and says that it is ready.
    pub(crate) fn is_ready(&self, id: u8) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.agent && peer.ready)
    }

    /// Whether the peer's datapath answers and its agent, perhaps dead by now, has been ready: it holds flows.
    pub(crate) fn holds_flows(&self, id: u8) -> bool {
        let answers = |peer: &Peer| matches!(peer.state, State::Waiting | State::Up | State::Rising);
        self.peers.get(&id).is_some_and(|peer| peer.was_ready && answers(peer))
    }

    /// Whether every peer is known to be up or gone; before, the masks would tell of peers as dead that are not.
    pub(crate) fn has_met_all(&self) -> bool {
        self.peers.values().all(|peer| matches!(peer.state, State::Up | State::Left))
    }

    /// Members whose datapath answers, this one included.
    pub(crate) fn forwarding(&self) -> u64 {
        self.mask(|peer| peer.state == State::Up) | bit(self.me)
    }

    /// Members that may own new flows, and say so themselves; `own` says whether this one may.
    pub(crate) fn eligible(&self, own: bool) -> u64 {
        let is_ready = |peer: &Peer| peer.state == State::Up && peer.agent && peer.ready;
        let says_so = self.peers.iter().filter(|(id, peer)| peer.heard.eligible & bit(**id) != 0);
        let says_so = says_so.fold(0, |mask, (&id, _)| mask | bit(id));
        self.mask(is_ready) & says_so | if own { bit(self.me) } else { 0 }
    }

    /// The masks, vouched for until the lease ends.
    pub(crate) fn liveness(&self, now: u64, ready: bool) -> Liveness {
        Liveness {
            forwarding: self.forwarding(),
            eligible: self.eligible(ready),
            lease_until_ns: now + self.silence(),
            ..Liveness::new_zeroed()
        }
    }

    /// What to say to a peer; `flags` are `PROBE_*`, `eligible` the members that may own new flows.
    pub(crate) fn probe(
        &self,
        now: u64,
        to: u8,
        counter: u64,
        incarnation: u32,
        (flags, eligible): (u8, u64),
    ) -> Probe {
        let peer = self.peers.get(&to);
        let probe = Probe {
            magic: PROBE_MAGIC,
            version: PROBE_VERSION,
            kind: PROBE_REQUEST,
            from: self.me,
            to,
            incarnation: incarnation.to_be_bytes(),
            flags,
            padding: [0; 3],
            counter: counter.to_be_bytes(),
            sent_ns: now.to_be_bytes(),
            forwarding: self.forwarding().to_be_bytes(),
            eligible: eligible.to_be_bytes(),
            nonce: self.nonce.to_be_bytes(),
            answers: peer.map_or(0, |peer| peer.heard.nonce).to_be_bytes(),
            tag: [0; 8],
        };
        probe.tagged(&peer.map_or([0; 2], |peer| peer.probe_key(counter)))
    }

    /// How long a peer may be silent, and how long the masks are vouched for.
    pub(crate) fn silence(&self) -> u64 {
        self.interval() * u64::from(self.probing.misses)
    }

    /// Nanoseconds between two rounds.
    pub(crate) fn interval(&self) -> u64 {
        self.probing.interval.as_nanos() as u64
    }

    fn mask(&self, wanted: impl Fn(&Peer) -> bool) -> u64 {
        self.peers.iter().filter(|(_, peer)| wanted(peer)).fold(0, |mask, (&id, _)| mask | bit(id))
    }
}

impl Peer {
    fn new(round: u64) -> Self {
        Self {
            state: State::Unknown,
            keys: [[0; 2]; PROBE_KEYS],
            heard: zerocopy::FromZeros::new_zeroed(),
            since: round,
            echoed: round,
            echoes: 0,
            clean_since: 0,
            agent: false,
            ready: false,
            is_empty: false,
            incarnation: 0,
            left: 0,
            speaks_since: None,
            was_ready: false,
        }
    }

    /// Probes without an echo, the latest included.
    fn unanswered(&self, round: u64) -> u64 {
        round.saturating_sub(self.echoed)
    }

    /// The key for the probe of this round: the one it used last; while it does not answer, each in turn.
    fn probe_key(&self, round: u64) -> HashKey {
        let used = if self.unanswered(round) <= GAP { u64::from(self.heard.key) } else { round };
        match self.keys[used as usize % PROBE_KEYS] {
            [0, 0] => self.keys[0],
            key => key,
        }
    }

    /// What `heard` means for the datapath; nothing, when the last probe may still be on its way.
    fn sign(&mut self, now: u64, round: u64, misses: u64) -> Option<Sign> {
        let says_goodbye = self.heard.flags & PROBE_GOODBYE != 0;
        if says_goodbye && self.is_believable() {
            return Some(Sign::Goodbye);
        }
        if self.state == State::Left && self.is_back(now) {
            return Some(Sign::Back);
        }
        if self.state == State::Up && self.is_empty {
            return Some(Sign::Empty);
        }
        // An echo of an earlier start, or a number that was never sent, is none.
        let echo = self.heard.echo_counter;
        if echo > self.echoed && echo <= round && echo > self.since {
            self.echoed = echo;
            self.echoes += 1;
            return Some(if self.has_settled(now) { Sign::Settled } else { Sign::Echo });
        }
        let unanswered = self.unanswered(round);
        if unanswered >= misses {
            Some(Sign::Lost)
        } else if unanswered >= GAP {
            Some(Sign::Gap)
        } else {
            None
        }
    }

    /// Whether a peer that said goodbye goes on: a later incarnation of it does, and one that has not said it again for a
    /// second although it speaks.
    fn is_back(&mut self, now: u64) -> bool {
        if !self.agent {
            self.speaks_since = None;
            return false;
        }
        let since = *self.speaks_since.get_or_insert(now);
        self.heard.incarnation > self.left || now.saturating_sub(since) >= RISE.as_nanos() as u64
    }

    /// Whether the last probe is of the incarnation that is known, or of one that may have followed.
    fn is_believable(&self) -> bool {
        self.heard.incarnation >= self.incarnation && self.heard.incarnation - self.incarnation <= STARTS_MAX
    }

    /// Whether the echo that has just come is enough.
    fn has_settled(&self, now: u64) -> bool {
        let is_long = now.saturating_sub(self.clean_since) >= RISE.as_nanos() as u64;
        match self.state {
            State::Waiting if self.agent => self.ready && self.echoes >= FIRST_ECHOES,
            State::Rising if self.agent => self.ready && is_long,
            State::Waiting | State::Rising => is_long,
            State::Unknown | State::Up | State::Down | State::Left => false,
        }
    }

    fn step(&mut self, id: u8, now: u64, sign: Sign, changes: &mut Vec<(u8, Change)>) {
        let (from, to) = (self.state, self.state.after(sign));
        if sign == Sign::Goodbye {
            (self.left, self.speaks_since) = (self.left.max(self.heard.incarnation), None);
        }
        if from == to {
            return;
        }
        self.state = to;
        match to {
            State::Unknown | State::Left => (self.echoes, self.speaks_since) = (0, None),
            State::Waiting | State::Rising => self.clean_since = now,
            State::Up | State::Down => {}
        }
        changes.push((id, Change::Datapath { from, to }));
    }

    /// `since` is when its last probe must have come at the latest.
    fn look_at_agent(&mut self, id: u8, now: u64, since: u64, awake: u64, changes: &mut Vec<(u8, Change)>) {
        let is_of_now = self.is_believable() && self.heard.probe_ns != 0;
        let in_doubt = self.agent && awake >= since && awake <= now;
        let alive = is_of_now && (self.heard.probe_ns >= since || in_doubt);
        if alive != self.agent {
            self.agent = alive;
            changes.push((id, Change::Agent { alive }));
        }
        let ready = is_of_now && self.heard.flags & PROBE_READY != 0 && self.heard.flags & PROBE_GOODBYE == 0;
        self.is_empty = is_of_now && self.heard.flags & PROBE_EMPTY != 0;
        self.was_ready |= alive && ready;
        if ready != self.ready {
            self.ready = ready;
            changes.push((id, Change::Ready));
        }
    }
}
