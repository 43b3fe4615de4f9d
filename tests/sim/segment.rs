//! Packets of clients and attackers, and the servers' answers.

use lb_common::{
    flow::{FlowKeyV4, TCP},
    packet::{ACK, FIN, IpFields, OuterFields, Packet, RST, SYN},
};

use crate::client::ConnId;

/// What a packet is to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// TCP: opens the connection.
    Syn,
    /// TCP without payload: ends the handshake, or acknowledges.
    Ack,
    /// TCP or UDP with payload.
    Data,
    /// TCP: the client's last.
    Fin,
    /// TCP: sent by attackers only.
    Rst,
}

/// A packet to a VIP, and what the oracle knows of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// As the balancers see it.
    pub(crate) packet: Packet<FlowKeyV4>,
    /// What it is.
    pub(crate) role: Role,
    /// The connection it truly belongs to; 0 for an attacker's.
    pub(crate) conn: ConnId,
    /// Which server the client takes itself to be talking to; for TCP, from the SYN-ACK on.
    pub(crate) server: Option<[u8; 4]>,
    /// The member it reached first; 0 before that.
    pub(crate) receiver: u8,
    /// Whether that member had an entry of its flow.
    pub(crate) is_known: bool,
    /// How often it was handed off.
    pub(crate) hand_offs: u8,
    /// The client's number of it, which an answer repeats.
    pub(crate) number: u32,
}

/// A server's answer, straight to the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    /// The connection of the packet that is answered.
    pub(crate) conn: ConnId,
    /// Who answers.
    pub(crate) backend: [u8; 4],
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
    pub(crate) fn new(key: FlowKeyV4, role: Role, seq: u32, conn: ConnId) -> Self {
        let tcp_flags = match role {
            _ if key.protocol != TCP => 0,
            Role::Syn => SYN,
            Role::Ack | Role::Data => ACK,
            Role::Fin => FIN | ACK,
            Role::Rst => RST,
        };
        let ip = IpFields { length: 60, tos: 0, ttl: 64, checksum: [0; 2] };
        let packet = Packet {
            key,
            tcp_flags,
            seq,
            has_payload: role == Role::Data,
            via_peer: false,
            ip,
            outer: OuterFields::default(),
        };
        Self { packet, role, conn, server: None, receiver: 0, is_known: false, hand_offs: 0, number: 0 }
    }
}
