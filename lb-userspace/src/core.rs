//! The agent's mind: a value machine without clock, randomness, sockets, maps or logs.
//!
//! The driver feeds an [`Input`] with the time it happened, carries out every [`Output`] in order until
//! [`Core::poll_output`] returns `None`, and ticks at [`Core::next_deadline`]. `now` is `CLOCK_MONOTONIC` in
//! nanoseconds and never goes back. The same inputs give the same outputs, always: the simulator replays seeds.
//!
//! A deadline may already have passed when an input returns (the owners' lane is due at once): the driver
//! handles the batch of inputs it has, and then ticks. So a batch becomes one frame.

use std::collections::VecDeque;

use lb_common::{
    flow::FlowEntry,
    liveness::{Heard, Liveness, Probe},
    service::{Service, ServiceKey},
    target::Target,
};

pub mod event;
pub mod key;
pub mod plan;
pub mod records;
pub mod status;
pub mod view;

pub use self::{
    event::{Event, Level},
    key::Key,
    plan::{BackendSlot, MapOp, Tables, plan},
    status::{PeerStatus, Status},
    view::View,
};

/// The agent's state: membership, records, what is said to whom.
pub struct Core {
    view: View,
    outputs: VecDeque<Output>,
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
    /// A new configuration.
    Configure(Box<View>),
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
    /// Close a session after what was sent; there is no answer, and nothing more is to be said about it.
    Close {
        /// The session.
        session: Session,
    },
    /// Keep this incarnation on disk: a peer knows of a later one than that on disk.
    RaiseIncarnation(u32),
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
}

impl Core {
    /// An agent that starts. Its first outputs tell the datapath what it is.
    ///
    /// `incarnation` is higher than that of any earlier start, as far as the disk knows; not 0.
    pub fn new(_now: u64, view: View, _incarnation: u32, _adopted: &Adopted) -> Self {
        Self { view, outputs: VecDeque::new() }
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, _now: u64, input: Input) {
        match input {
            Input::Configure(view) => self.view = *view,
            Input::Stop => self.outputs.push_back(Output::Stopped),
            Input::Tick
            | Input::Heard { .. }
            | Input::Observed { .. }
            | Input::Swept
            | Input::Deleted { .. }
            | Input::Connected { .. }
            | Input::DialFailed { .. }
            | Input::Received { .. }
            | Input::Drained { .. }
            | Input::Closed { .. } => {}
        }
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to tick next; it may have passed.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// When the next look at the peers is due: `Heard` of every peer goes before a `Tick` at or after this time.
    pub fn next_look(&self) -> u64 {
        u64::MAX
    }
}
