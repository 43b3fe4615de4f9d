//! Packets of clients and attackers, and the servers' answers.

use lb_common::{
    address::Address,
    flow::{FlowKey as _, UDP},
    packet::{ACK, ETHERNET, FIN, IpFields, OuterFields, Packet, Part, RST, SYN},
};
use lb_userspace::core::Key;

use crate::client::ConnId;

/// What a packet is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Opens the connection.
    Syn,
    /// No payload: ends the handshake, or acknowledges.
    Ack,
    /// Of a connection or a UDP flow, with payload.
    Data,
    /// The client's last.
    Fin,
    /// Sent by attackers only.
    Rst,
    /// Not the client's: a router's ICMP error, that quotes a packet of the server.
    Quote,
}

/// A packet to a VIP, and what the oracle knows of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// As the balancers see it.
    pub(crate) packet: Packet<Key>,
    /// The flow that it is of: a later fragment does not say.
    pub(crate) flow: Key,
    /// What it is.
    pub(crate) role: Role,
    /// The connection it truly belongs to; 0 for an attacker's.
    pub(crate) conn: ConnId,
    /// Which server the client takes itself to be talking to; for TCP, from the SYN-ACK on.
    pub(crate) server: Option<Address>,
    /// The member it reached first; 0 before that.
    pub(crate) receiver: u8,
    /// Whether that member had an entry of its flow.
    pub(crate) is_known: bool,
    /// How often it was handed off.
    pub(crate) hand_offs: u8,
    /// By whom: a mask.
    pub(crate) handed_by: u64,
    /// The client's number of it, which an answer repeats.
    pub(crate) number: u32,
}

/// A server's answer, straight to the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    /// The connection of the packet that is answered.
    pub(crate) conn: ConnId,
    /// Who answers.
    pub(crate) backend: Address,
    /// What it says.
    pub(crate) kind: ReplyKind,
    /// `Segment::number` of the packet that is answered.
    pub(crate) number: u32,
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyKind {
    /// The handshake's second packet.
    SynAck,
    /// The packet was taken.
    Ack,
    /// It does not know this connection.
    Reset,
}

impl Segment {
    /// A packet of `role`.
    pub(crate) fn new(key: Key, role: Role, seq: u32, conn: ConnId) -> Self {
        let flags = match role {
            Role::Quote => 0,
            _ if key.protocol() == UDP => 0,
            Role::Syn => SYN,
            Role::Ack | Role::Data => ACK,
            Role::Fin => FIN | ACK,
            Role::Rst => RST,
        };
        let packet = Packet {
            key,
            flags,
            seq,
            has_payload: role == Role::Data,
            part: if role == Role::Quote { Part::Quote } else { Part::Whole },
            datagram: [0; 4],
            via_peer: false,
            ip: IpFields { length: 60, ttl: 64, ..IpFields::default() },
            outer: OuterFields::default(),
            at: ETHERNET,
        };
        Self {
            packet,
            flow: key,
            role,
            conn,
            server: None,
            receiver: 0,
            is_known: false,
            hand_offs: 0,
            handed_by: 0,
            number: 0,
        }
    }

    /// Its two fragments; the second says nothing of ports (`parse::transport`).
    pub(crate) fn fragments(self, datagram: [u8; 4]) -> [Self; 2] {
        let (mut first, mut later) = (self, self);
        first.packet = Packet { part: Part::FirstFragment, datagram, ..self.packet };
        let key = self.flow.without_ports();
        later.packet = Packet { part: Part::LaterFragment, datagram, key, flags: ACK, seq: 0, ..self.packet };
        [first, later]
    }
}
