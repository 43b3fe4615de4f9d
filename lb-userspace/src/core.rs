//! The agent's mind: a value machine without clock, randomness, sockets, maps or logs.
//!
//! The driver feeds an [`Input`] with the time it happened, carries out every [`Output`] in order until
//! [`Core::poll_output`] returns `None`, and ticks at [`Core::next_deadline`]. `now` is `CLOCK_MONOTONIC` in
//! nanoseconds and never goes back. The same inputs give the same outputs, always: the simulator replays seeds.
//!
//! A deadline may already have passed when an input returns (the owners' lane is due at once): the driver
//! handles the batch of inputs it has, and then ticks. So a batch becomes one frame.

#![warn(clippy::disallowed_types)]

use std::collections::{BTreeMap, VecDeque};

use lb_common::{
    address::Address,
    flow::FlowEntry,
    liveness::{Heard, Liveness, Probe},
    node::Node,
    service::{Service, ServiceKey},
    target::Target,
};
use zerocopy::FromZeros;

mod acknowledging;
pub mod admission;
mod authority;
mod bulk;
pub mod conditions;
mod configuring;
pub mod digests;
pub mod distribution;
pub mod epochs;
pub mod event;
mod expiry;
pub mod key;
mod lanes;
mod link;
pub mod liveness;
mod parked;
pub mod plan;
mod readiness;
pub mod records;
mod replication;
pub mod ring;
mod rounds;
mod sessions;
mod slots;
pub mod status;
mod stopping;
mod table;
pub mod takeover;
mod tending;
#[cfg(test)]
mod tests;
pub mod view;
pub mod wire;

use self::{
    admission::Census,
    conditions::Conditions,
    distribution::{Distribution, Proposal, Publication},
    epochs::Epochs,
    expiry::{Dues, Timers, Tombstones},
    link::{Introduction, Link, Peer},
    liveness::{State, Watch},
    parked::Parked,
    slots::Slots,
    stopping::Stopping,
    table::Table,
    takeover::Takeover,
};
pub use self::{
    authority::Absurdity,
    event::{CloseReason, Event, Level},
    key::Key,
    plan::{BackendSlot, MapOp, Tables, plan},
    status::{PeerStatus, Status},
    view::View,
};

/// The agent's state: membership, records, what is said to whom.
pub struct Core {
    view: View,
    /// The highest version of the protocol that is spoken.
    speaks: u8,
    incarnation: u32,
    started: u64,
    /// When members were last added or removed, or given other flows by another secret.
    membership_since: u64,
    /// When this member became ready.
    ready_since: u64,
    /// When a session with a peer that was known before last began: it may have missed signs of life.
    reunited_at: u64,
    node: Node,
    outputs: VecDeque<Output>,

    watch: Watch,
    /// The masks as last written; `None` until all peers had their chance to answer.
    masks: Option<(u64, u64)>,
    ready: bool,
    /// Whether the flow map held nothing when this agent started, as if it were new.
    is_empty: bool,
    has_complained: bool,
    stopping: Option<Stopping>,

    peers: BTreeMap<u8, Peer>,
    links: BTreeMap<Session, Link>,
    /// Sessions whose lanes are too long.
    overflown: Vec<Session>,

    /// The services of the configuration, their backends in the conditions that they are in.
    services: Vec<view::Service>,
    conditions: Conditions,
    distribution: Distribution,
    epochs: Epochs,
    takeover: Takeover,
    slots: Slots,
    table: Table,
    /// Young flows, by the time at which they are old enough.
    young: Dues,
    tombstones: Tombstones,
    parked: Parked,
    timers: Timers,
    census: Census,
    is_full: bool,
    /// The next row to visit.
    scanned: u32,
    /// Number of the current sweep, wrapping.
    sweep: u8,
    has_swept: bool,
    /// Whether the map has ever shown an entry.
    has_observed: bool,
    /// Entries of the map that were written anew because they were damaged.
    restored: u64,
    /// Buckets that were sent whole to a peer, because it had others.
    repaired: u64,
}

/// One TCP connection with a peer; numbers are chosen by the driver and never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// What a restarted agent finds in the pinned maps, so that slots keep their meaning; empty for a new datapath.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// The elements of `services`.
    pub services: Vec<(ServiceKey, Service)>,
    /// The used elements of `backends`, by slot.
    pub backends: Vec<(u16, Target)>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed: `next_deadline` was reached.
    Tick,
    /// An element of `heard`; given for every peer right before a `Tick` at or after `Core::next_look`.
    Heard {
        /// The peer.
        member: u8,
        /// What XDP last heard from it.
        heard: Heard,
    },
    /// A flow's entry, from an event ring, the sweep, or a write that found it there.
    Observed {
        /// The flow.
        key: Key,
        /// Its entry as read.
        entry: FlowEntry,
    },
    /// A sweep is complete: every entry that was in the flow maps all the time since the previous one has been observed.
    Swept,
    /// `DeleteFlow` was carried out, or there was nothing to delete.
    Deleted {
        /// The flow.
        key: Key,
    },
    /// A connection with a peer is up. Accepted ones are of the member that has the connection's source address.
    Connected {
        /// The peer.
        peer: u8,
        /// The new session.
        session: Session,
        /// Whether this follows from `Dial`.
        dialled: bool,
    },
    /// `Dial` came to nothing.
    DialFailed {
        /// The peer.
        peer: u8,
    },
    /// Bytes came in.
    Received {
        /// The session.
        session: Session,
        /// In order, in pieces of any size.
        bytes: Vec<u8>,
    },
    /// Bytes of `Send` went out to the kernel.
    Drained {
        /// The session.
        session: Session,
        /// How many.
        bytes: usize,
    },
    /// The connection ended, other than by `Close`.
    Closed {
        /// The session.
        session: Session,
    },
    /// What the next `Configure` brings, as others may have it; at the start, what `Core::new` was given.
    Publish(Publication),
    /// What `Judge` has come to: stored, with `Publish` and `Configure` to follow, or refused.
    Judged {
        /// Which configuration.
        id: wire::ConfigurationId,
        /// Why it is not taken over.
        refusal: Option<String>,
    },
    /// A new configuration.
    Configure(Box<View>),
    /// This member's checks of a backend have come to another result.
    Checked {
        /// Its service.
        service: ServiceKey,
        /// Its address.
        backend: Address,
        /// Whether it answers as it should.
        is_up: bool,
    },
    /// The operator wants a backend drained at all members, or not any more, beside what the configuration says.
    DrainBackend {
        /// Its name.
        backend: String,
        /// Of which service; of all that have it, if of none.
        service: Option<String>,
        /// Which of both.
        drain: bool,
    },
    /// The operator wants this member drained, or not any more; the configuration may want it as well.
    Drain(bool),
    /// Leave the cluster.
    Stop,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Make the tables so: `plan` against what is installed, and apply.
    Install(Box<Tables>),
    /// Write the one element of `liveness`.
    SetLiveness(Liveness),
    /// Send a probe to a member's address and port.
    SendProbe {
        /// The peer.
        to: u8,
        /// The datagram's payload.
        probe: Probe,
    },
    /// Write a flow's entry.
    PutFlow {
        /// The flow.
        key: Key,
        /// The entry; times are local ticks, `backend` is a local slot.
        entry: FlowEntry,
        /// What to do when there is one already, or none.
        mode: PutMode,
    },
    /// Delete a flow's entry, unless its `last_seen` is later than `unless_seen_since`.
    ///
    /// Answered by `Deleted` (also when there was none), or by `Observed` with the entry that was spared.
    DeleteFlow {
        /// The flow.
        key: Key,
        /// A local tick.
        unless_seen_since: u32,
    },
    /// Connect to a peer's address and port; answered by `Connected` or `DialFailed`.
    Dial {
        /// The peer.
        peer: u8,
    },
    /// Send bytes; answered by `Drained` as they go.
    Send {
        /// The session.
        session: Session,
        /// One frame.
        bytes: Vec<u8>,
    },
    /// What comes in on this session is handed over only when nothing else waits: it is long, and in no hurry.
    Defer {
        /// The session.
        session: Session,
    },
    /// Close a session after what was sent; there is no answer, and nothing more is to be said about it.
    Close {
        /// The session.
        session: Session,
    },
    /// Keep this incarnation on disk: a peer knows of a later one than that on disk.
    RaiseIncarnation(u32),
    /// A peer has a later configuration: to be checked and stored; answered by `Judged`.
    Judge(Box<Proposal>),
    /// Log this.
    Report(Event),
    /// The goodbye is said: exit.
    Stopped,
}

/// How a flow's entry is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Only if there is none (`BPF_NOEXIST`); otherwise the one that is there is fed back as `Observed`.
    Insert,
    /// Look up, `records::amend` what is there with the entry, write back; insert if there is none.
    Amend,
    /// The same with `records::restore`.
    Restore,
}

impl Core {
    /// An agent that starts. Its first outputs tell the datapath what it is.
    ///
    /// `incarnation` is higher than that of any earlier start, as far as the disk knows; not 0. `nonce` is random, not 0.
    pub fn new(now: u64, view: View, incarnation: u32, nonce: u64, adopted: &Adopted) -> Self {
        let mut slots = Slots::default();
        slots.adopt(adopted);
        let mut core = Self {
            speaks: wire::VERSION,
            incarnation,
            started: now,
            membership_since: now,
            ready_since: now,
            reunited_at: 0,
            node: Node::new_zeroed(),
            outputs: VecDeque::new(),
            watch: Watch::new(now, nonce, &view),
            masks: None,
            ready: false,
            is_empty: adopted.services.is_empty() && adopted.backends.is_empty(),
            has_complained: false,
            stopping: None,
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            overflown: Vec::new(),
            services: Vec::new(),
            conditions: Conditions::default(),
            distribution: Distribution::default(),
            epochs: Epochs::default(),
            takeover: Takeover::default(),
            slots,
            table: Table::new(view.hash_key, view.limits.flows),
            young: Dues::default(),
            tombstones: Tombstones::default(),
            parked: Parked::default(),
            timers: Timers::new(&view),
            census: Census::default(),
            is_full: false,
            scanned: 0,
            sweep: 0,
            has_swept: false,
            has_observed: false,
            restored: 0,
            repaired: 0,
            view,
        };
        core.conditions.adopt(adopted);
        core.place_backends();
        core.hold();
        core.apply_view(now);
        core
    }

    /// Speaks no later version than `version`: as an agent does that is not upgraded yet.
    pub fn speaking(mut self, version: u8) -> Self {
        self.speaks = version.clamp(wire::HELLO_VERSION, wire::VERSION);
        self
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: u64, input: Input) {
        match input {
            Input::Tick => self.tick(now),
            Input::Heard { member, heard } => self.watch.heard(member, heard),
            Input::Observed { key, entry } => {
                self.has_observed = true;
                self.observed(now, key, &entry);
            }
            Input::Swept => self.swept(),
            Input::Deleted { key } => self.deleted(now, &key),
            Input::Connected { peer, session, dialled } => self.connected(now, peer, session, dialled),
            Input::DialFailed { peer } => self.dial_failed(now, peer),
            Input::Received { session, bytes } => self.received(now, session, &bytes),
            Input::Drained { session, bytes } => {
                if let Some(link) = self.links.get_mut(&session) {
                    link.in_flight = link.in_flight.saturating_sub(bytes);
                    self.pump_pair(now, session);
                }
            }
            Input::Closed { session } => self.ended(now, session, CloseReason::Ended),
            Input::Publish(publication) => self.publish(now, publication),
            Input::Judged { id, refusal } => self.judged(now, id, refusal),
            Input::Configure(view) => self.configure(now, *view),
            Input::Checked { service, backend, is_up } => self.checked(now, &service, &backend, is_up),
            Input::DrainBackend { backend, service, drain } => {
                self.drain_backend(now, &backend, service.as_deref(), drain);
            }
            Input::Drain(drain) => self.drain(now, drain),
            Input::Stop => self.stop(now),
        }
        self.shed(now);
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to tick next; it may have passed.
    pub fn next_deadline(&self) -> Option<u64> {
        let goodbye = self.stopping.as_ref().and_then(|stopping| stopping.next);
        [Some(self.watch.next_look()), self.young.next_due(), self.next_flush(), goodbye].into_iter().flatten().min()
    }

    /// When the next look at the peers is due: `Heard` of every peer goes before a `Tick` at or after this time.
    pub fn next_look(&self) -> u64 {
        self.watch.next_look()
    }

    /// Whether this member takes new flows: it is ready, stays, and does not drain.
    pub fn serves(&self) -> bool {
        self.is_eligible() && !self.is_draining()
    }

    /// The addresses that are balanced.
    pub fn vips(&self) -> impl Iterator<Item = Address> {
        self.view.services.iter().flat_map(|service| &service.vips).map(|vip| vip.address)
    }

    /// This member's name.
    pub fn name(&self) -> &str {
        self.view.member(self.view.me).map_or("", |member| &member.name)
    }

    /// A picture of what the core knows.
    pub fn status(&self) -> Status {
        let peers = self.peers.iter().map(|(&id, peer)| self.peer_status(id, peer)).collect();
        Status { peers, ..self.own_status() }
    }

    /// The same without a word of any peer.
    pub fn own_status(&self) -> Status {
        Status {
            ready: self.ready,
            incarnation: self.incarnation,
            forwarding: self.watch.forwarding(),
            eligible: self.eligible(),
            epoch: self.epochs.status(),
            drain: self.drain_status(),
            handed_over: self.takeover.total,
            records: self.live(),
            tombstones: self.tombstones.count,
            restored: self.restored,
            repaired: self.repaired,
            parked: self.parked.len(),
            parked_dropped: self.parked.dropped,
            peers: Vec::new(),
        }
    }

    /// Flows that wait to be sent to the peer for whom most do.
    pub fn longest_queue(&self) -> usize {
        self.links.values().map(Link::queued).max().unwrap_or_default()
    }

    /// The record of a flow, for tests and `tandem` to look at.
    pub fn record(&self, key: &Key) -> Option<records::Record> {
        self.table.find(key).and_then(|number| self.table.row(number)).map(|row| row.record)
    }

    fn swept(&mut self) {
        self.sweep = self.sweep.wrapping_add(1);
        if !self.has_swept {
            self.has_swept = true;
            self.is_empty |= !self.has_observed;
        }
    }

    fn peer_status(&self, id: u8, peer: &Peer) -> PeerStatus {
        let link = peer.open.and_then(|session| self.links.get(&session));
        PeerStatus {
            id,
            datapath: self.watch.state(id).unwrap_or(State::Unknown),
            agent: self.watch.is_agent_alive(id),
            ready: self.watch.is_ready(id),
            incarnation: self.watch.incarnation(id),
            connected: link.is_some(),
            bulk: link.is_some_and(|link| link.bulk.is_some()),
            complaint: peer.complaint,
            configuration: link.map(|link| link.configuration),
            refusal: link.and_then(|link| link.hand.refusal_of(self.configuration())).map(str::to_owned),
            snapshot_sent: link.is_some_and(|link| link.introduction == Introduction::Over),
            snapshot_received: link.is_some_and(|link| link.is_synchronized),
            same_configuration: link.is_none_or(|link| link.configuration == (self.view.generation, self.view.hash)),
            agrees: link.is_some_and(|link| link.comparison.knows_all()),
            queued: link.map_or(0, Link::queued),
            overflows: peer.overflows,
            outstanding: link.filter(|link| link.acknowledges()).map_or(0, |link| link.acknowledgements.outstanding()),
        }
    }

    fn is_eligible(&self) -> bool {
        self.ready && self.stopping.is_none()
    }

    /// The peer's name, for people.
    pub fn label(&self, id: u8) -> String {
        self.view.member(id).map_or_else(|| format!("member {id}"), |member| member.name.clone())
    }

    fn report(&mut self, event: Event) {
        self.outputs.push_back(Output::Report(event));
    }
}
