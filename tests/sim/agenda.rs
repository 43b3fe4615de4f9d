//! What will happen, and when.

use std::{cmp::Reverse, collections::BinaryHeap};

use lb_common::{address::Address, flow::FlowKey as _, liveness::Probe};
use lb_userspace::core::Key;

use crate::{
    client::ConnId,
    faults::Fault,
    segment::{Reply, Segment},
    time::Ns,
};

/// Something that happens at one moment.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// An agent's thread gets to run; `run` is its start, so that a dead one's wake-ups come to nothing.
    Wake { member: u8, run: u64 },
    /// An agent's sweep reads its next chunk.
    Sweep { member: u8, run: u64 },
    /// The write half of an agent's read-modify-write.
    Write { member: u8, run: u64, key: Key },
    /// A probe or an echo reaches a member.
    Probe { to: u8, from: u8, probe: Probe },
    /// A packet reaches a member, from the router or through the tunnel.
    Packet { member: u8, segment: Segment },
    /// A packet reaches a server.
    AtServer { segment: Segment, backend: Address },
    /// An answer reaches a client.
    AtClient { reply: Reply },
    /// A client's timer; `stamp` tells a timer that was set again.
    Client { id: ConnId, stamp: u32 },
    /// A client begins.
    NewClient,
    /// An attacker makes up its mind.
    Attack,
    /// A packet to a VIP starts on its way.
    Send { segment: Segment },
    /// Bytes move along a TCP connection between agents, from end `from`.
    Pump { stream: u64, from: usize },
    /// A TCP connection is up, or not.
    Dialled { member: u8, run: u64, peer: u8 },
    /// An agent learns that a connection ended.
    StreamEnded { stream: u64, end: usize },
    /// Something breaks, or is mended.
    Fault(Fault),
    /// A member takes over configuration `version`.
    Configure { member: u8, version: usize },
    /// The router learns whether it can use a member.
    Route { member: u8, usable: bool },
    /// Something befalls a server.
    Befall,
    /// An agent's checks look at all servers.
    Check { member: u8, run: u64 },
    /// The oracle looks at all tables.
    Inspect,
}

/// The happenings to come, in order of time and then of planning.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    /// When, planned as which, and where it is in `happenings`, which are too large to be moved about.
    queue: BinaryHeap<Reverse<(Ns, u64, usize)>>,
    happenings: Vec<Option<Happening>>,
    /// Places in `happenings` that hold nothing.
    free: Vec<usize>,
    planned: u64,
}

impl Agenda {
    /// Plans `happening` for `at`.
    pub(crate) fn plan(&mut self, at: Ns, happening: Happening) {
        self.planned += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.happenings.push(None);
            self.happenings.len() - 1
        });
        self.happenings[place] = Some(happening);
        self.queue.push(Reverse((at, self.planned, place)));
    }

    /// The next happening before or at `until`.
    pub(crate) fn next(&mut self, until: Ns) -> Option<(Ns, Happening)> {
        let Reverse((at, _, place)) = *self.queue.peek()?;
        if at > until {
            return None;
        }
        self.queue.pop();
        self.free.push(place);
        Some((at, self.happenings[place].take()?))
    }
}

/// For traces: a flow as `client:port>vip:port/protocol`.
pub(crate) fn flow_name(key: &Key) -> String {
    format!("{}>{}/{}", key.source(), key.destination(), key.protocol())
}
