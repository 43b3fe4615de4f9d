//! Servers: each knows its connections, resets what it does not know, and answers straight to the client.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::Address,
    flow::{FlowKey as _, UDP},
    packet::Part,
};
use lb_userspace::core::Key;

use crate::{
    agenda::Happening,
    client::ConnId,
    segment::{Reply, ReplyKind, Role, Segment},
    world::World,
};

/// A server's memory.
#[derive(Debug, Default)]
pub(crate) struct Server {
    /// Its connections, by tuple.
    connections: BTreeMap<Key, ConnId>,
    /// Datagrams of which it has one fragment.
    halves: BTreeSet<[u8; 4]>,
}

impl World {
    /// A packet reaches a server.
    pub(crate) fn serve(&mut self, segment: &Segment, backend: Address) {
        let Server { connections, halves } = self.servers.entry(backend).or_default();
        let known = connections.get(&segment.flow) == Some(&segment.conn);
        if segment.conn == 0 {
            // Out of every window: ignored, or reset towards a client that has no such connection.
            return;
        }
        let is_fragment = matches!(segment.packet.part, Part::FirstFragment | Part::LaterFragment);
        if is_fragment && !halves.remove(&segment.packet.datagram) {
            halves.insert(segment.packet.datagram);
            return;
        }
        let kind = match segment.role {
            // It tells the server's kernel of a path, and wants no answer.
            Role::Quote => return,
            Role::Syn => {
                connections.insert(segment.flow, segment.conn);
                ReplyKind::SynAck
            }
            Role::Data if segment.flow.protocol() == UDP && segment.server.is_none_or(|server| server == backend) => {
                connections.insert(segment.flow, segment.conn);
                ReplyKind::Ack
            }
            Role::Ack if known && segment.server == Some(backend) => return,
            Role::Data | Role::Fin if known && segment.server == Some(backend) => ReplyKind::Ack,
            Role::Ack | Role::Data | Role::Fin | Role::Rst => ReplyKind::Reset,
        };
        let reply = Reply { conn: segment.conn, backend, kind, number: segment.number };
        let at = self.network.carry_outside(self.now);
        self.arrive(at, Happening::AtClient { reply });
    }
}
