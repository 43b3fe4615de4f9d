//! Servers: each knows its connections, resets what it does not know, and answers straight to the client.

use std::collections::BTreeMap;

use lb_common::flow::{FlowKeyV4, UDP};

use crate::{
    agenda::Happening,
    client::ConnId,
    segment::{Reply, ReplyKind, Role, Segment},
    world::World,
};

/// A server's connections, by tuple.
pub(crate) type Connections = BTreeMap<FlowKeyV4, ConnId>;

impl World {
    /// A packet reaches a server.
    pub(crate) fn serve(&mut self, segment: &Segment, backend: [u8; 4]) {
        let connections = self.servers.entry(backend).or_default();
        let known = connections.get(&segment.packet.key) == Some(&segment.conn);
        if segment.conn == 0 {
            // Out of every window: ignored, or reset towards a client that has no such connection.
            return;
        }
        let kind = match segment.role {
            Role::Syn => {
                connections.insert(segment.packet.key, segment.conn);
                ReplyKind::SynAck
            }
            Role::Data
                if segment.packet.key.protocol == UDP && segment.server.is_none_or(|server| server == backend) =>
            {
                connections.insert(segment.packet.key, segment.conn);
                ReplyKind::Ack
            }
            Role::Ack if known && segment.server == Some(backend) => return,
            Role::Data | Role::Fin if known && segment.server == Some(backend) => ReplyKind::Ack,
            Role::Ack | Role::Data | Role::Fin | Role::Rst => ReplyKind::Reset,
        };
        let reply = Reply { conn: segment.conn, backend, kind, number: segment.number };
        if let Some(at) = self.network.carry_outside(self.now) {
            self.agenda.plan(at, Happening::AtClient { reply });
        }
    }
}
