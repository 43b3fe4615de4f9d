//! Clients: TCP connections that retry, idle, send and end; UDP flows that just send.

use lb_common::{
    address::Address,
    flow::{FlowKey as _, SCTP, UDP},
};
use lb_userspace::core::Key;

use crate::{
    agenda::Happening,
    configuration::{CLIENTS, DNS, WEB, address, flow},
    segment::{Reply, ReplyKind, Role, Segment},
    time::{MS, Ns, S},
    world::World,
};

/// Numbers connections from 1; 0 is nobody's.
pub(crate) type ConnId = u32;

/// How often a SYN is sent before the client gives up.
const SYN_TRIES: u32 = 6;
/// The first retransmission timeout, and the longest.
const RTO: Ns = 200 * MS;
const RTO_MAX: Ns = 1600 * MS;

/// A client's side of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Its 5-tuple.
    pub(crate) key: Key,
    /// Where it is in its life.
    pub(crate) phase: Phase,
    /// Who answered first.
    pub(crate) server: Option<Address>,
    /// When a packet of it was last delivered to the right server.
    pub(crate) delivered: Ns,
    /// By which member that has an entry of it; 0 for none.
    pub(crate) delivered_by: u8,
    /// When its last answer came.
    pub(crate) answered: Ns,
    /// When it opened.
    pub(crate) opened: Ns,
    seq: u32,
    /// Number of the packet that is to be acknowledged; `tries` counts how often it was sent.
    number: u32,
    waits: bool,
    tries: u32,
    left: u32,
    gap: Ns,
    /// Whether its data comes in fragments.
    splits: bool,
    stamp: u32,
    /// Whether a SYN, be it an attacker's, has taken the tuple elsewhere while its server was down.
    pub(crate) is_let_go: bool,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The SYN is out; UDP: no answer yet.
    Opening,
    /// It carries data.
    Open,
    /// The FIN is out.
    Closing,
    /// Ended as it should.
    Done,
    /// Never came to be.
    Failed,
    /// Reset by a server that does not know it.
    Broken,
}

impl Client {
    /// Whether it can still be broken.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Closing)
    }

    /// Since when it waits for an answer, if it does.
    pub(crate) fn waits_since(&self) -> Option<Ns> {
        (self.is_live() && self.waits).then_some(self.answered)
    }
}

impl World {
    /// Another client begins, and the one after it is planned.
    pub(crate) fn new_client(&mut self) {
        if self.calm {
            return;
        }
        let at = self.now + self.rng.below(2 * self.plan.client_gap);
        self.agenda.plan(at, Happening::NewClient);
        if self.clients.values().filter(|client| client.is_live()).count() >= self.plan.clients {
            return;
        }
        let is_udp = self.rng.chance(200);
        let id = self.next_conn;
        self.next_conn += 1;
        // Few ports: tuples are used again.
        let port = 1024 + self.rng.below(self.plan.ports) as u16;
        let source = address(self.rng.chance(300), CLIENTS, 1 + (id % 4) as u8);
        let (service, protocol) = if is_udp { (DNS, UDP) } else { (WEB, self.plan.protocol) };
        let key = flow(source, port.to_be_bytes(), service, protocol);
        if self.clients.values().any(|client| client.key == key && !matches!(client.phase, Phase::Done | Phase::Failed))
        {
            return;
        }
        self.stats.count("tuple used");
        let lasting = self.rng.chance(500);
        let client = Client {
            key,
            phase: Phase::Opening,
            server: None,
            delivered: self.now,
            delivered_by: 0,
            answered: self.now,
            opened: self.now,
            // SCTP's chunks stand for these (`parse::transport`).
            seq: if protocol == SCTP { 1 } else { self.rng.next() as u32 },
            splits: self.rng.chance(self.plan.splitters),
            number: 0,
            waits: true,
            tries: 0,
            left: if lasting { u32::MAX } else { self.rng.between(1, 12) as u32 },
            gap: self.rng.between(5 * MS, self.plan.gap_max),
            stamp: 0,
            is_let_go: false,
        };
        self.clients.insert(id, client);
        self.client_timer(id, 0);
    }

    /// A client's timer: sends again what was not answered, or what comes next.
    pub(crate) fn client_timer(&mut self, id: ConnId, stamp: u32) {
        let calm_silence = self.silent;
        let Some(client) = self.clients.get_mut(&id).filter(|client| client.stamp == stamp) else { return };
        let is_udp = client.key.protocol() == UDP;
        match client.phase {
            Phase::Opening if client.tries >= SYN_TRIES => client.phase = Phase::Failed,
            Phase::Opening => {
                client.tries += 1;
                self.transmit(id, if is_udp { Role::Data } else { Role::Syn });
            }
            Phase::Open | Phase::Closing if client.waits && (!is_udp || calm_silence) => {
                client.tries += 1;
                let role = if client.phase == Phase::Closing { Role::Fin } else { Role::Data };
                self.transmit(id, role);
            }
            Phase::Open if calm_silence => {}
            Phase::Open if client.left == 0 => {
                client.phase = if is_udp { Phase::Done } else { Phase::Closing };
                if !is_udp {
                    self.send_next(id, Role::Fin);
                }
            }
            Phase::Open => self.send_next(id, Role::Data),
            Phase::Closing | Phase::Done | Phase::Failed | Phase::Broken => {}
        }
    }

    /// A server's answer.
    pub(crate) fn answer(&mut self, reply: Reply) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&reply.conn) else { return };
        client.answered = now;
        match (reply.kind, client.phase) {
            (ReplyKind::SynAck, Phase::Opening) => {
                client.server = Some(reply.backend);
                client.open(now);
                self.transmit(reply.conn, Role::Ack);
                self.rest(reply.conn);
            }
            (ReplyKind::Ack, Phase::Opening) => {
                client.server = Some(reply.backend);
                client.open(now);
                self.rest(reply.conn);
            }
            // The answer to a SYN that came late: the ACK was lost, or another server has it too.
            (ReplyKind::SynAck, Phase::Open) if client.server == Some(reply.backend) => {
                self.transmit(reply.conn, Role::Ack);
            }
            (ReplyKind::Ack, Phase::Open) if reply.number == client.number && client.waits => {
                client.waits = false;
                client.tries = 0;
                if self.rng.chance(300) && self.clients.get(&reply.conn).is_some_and(|c| c.key.protocol() != UDP) {
                    self.transmit(reply.conn, Role::Ack);
                }
                self.rest(reply.conn);
            }
            (ReplyKind::Ack, Phase::Closing) if reply.number == client.number => {
                client.phase = Phase::Done;
                self.transmit(reply.conn, Role::Ack);
            }
            (ReplyKind::Reset, Phase::Open | Phase::Closing) => {
                client.phase = Phase::Broken;
                self.stats.count("connection broken");
            }
            (ReplyKind::SynAck | ReplyKind::Ack | ReplyKind::Reset, _) => {}
        }
    }

    /// Sends the next packet that wants an answer.
    fn send_next(&mut self, id: ConnId, role: Role) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.seq = client.seq.wrapping_add(100);
        client.number += 1;
        client.waits = true;
        client.tries = 1;
        if client.left != u32::MAX {
            client.left -= u32::from(role == Role::Data);
        }
        self.transmit(id, role);
    }

    /// Puts a packet on the wire, and sets the timer for it.
    fn transmit(&mut self, id: ConnId, role: Role) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let mut segment = Segment::new(client.key, role, client.seq, id);
        segment.server = client.server;
        segment.number = client.number;
        if role == Role::Syn {
            segment.packet.seq = client.seq.wrapping_sub(1);
        }
        if role != Role::Ack {
            let wait = (RTO << (client.tries.max(1) - 1).min(3)).min(RTO_MAX);
            let wait = if client.key.protocol() == UDP && client.phase == Phase::Open { client.gap } else { wait };
            self.set_timer(id, wait);
        }
        if role == Role::Data && self.clients.get(&id).is_some_and(|client| client.splits) {
            self.stats.count("datagram in fragments");
            self.next_datagram += 1;
            let [first, later] = segment.fragments(self.next_datagram.to_be_bytes());
            self.send_to_vip(first);
            // A second one that overtakes the first, whose way may be the longer one, is dropped.
            let at = self.now + if self.calm { 10 * MS } else { self.rng.below(10 * MS) };
            self.agenda.plan(at, Happening::Send { segment: later });
        } else {
            self.send_to_vip(segment);
        }
    }

    /// Waits until it has something to say.
    fn rest(&mut self, id: ConnId) {
        let Some(client) = self.clients.get(&id) else { return };
        let wait = if self.rng.chance(100) { client.gap / 20 } else { client.gap / 2 + self.rng.below(client.gap) };
        self.set_timer(id, wait.clamp(MS, 3 * S));
    }

    fn set_timer(&mut self, id: ConnId, wait: Ns) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.stamp += 1;
        let stamp = client.stamp;
        self.agenda.plan(self.now + wait, Happening::Client { id, stamp });
    }
}

impl Client {
    fn open(&mut self, now: Ns) {
        self.phase = Phase::Open;
        self.opened = now;
        self.waits = false;
        self.tries = 0;
    }
}
