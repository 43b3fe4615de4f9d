//! Connections that others have dialled, until they have proved who they are.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_common::rank::MEMBERS_MAX;
use tokio::{net::TcpStream, time::timeout};
use tracing::warn;

use super::{Report, Sessions};
use crate::{core::Input, io::handshake::is_wrong_key};

/// Connections at a time: each pair has two, for a moment perhaps dialled in both directions, and old ones beside them.
const SESSIONS_MAX: usize = MEMBERS_MAX * 6;
/// Handshakes of accepted connections under way, together and of one member's address: 128 half-open ones cost 2 MiB.
const HANDSHAKES_MAX: usize = MEMBERS_MAX * 2;
/// See `HANDSHAKES_MAX`: a peer has one for each connection, and an old one of each.
pub(super) const HANDSHAKES_OF_ONE: usize = 4;
/// Handshakes of one member's address a second, and how many may come at once; each costs 0.2 ms. A peer dials ten times a
/// second at most.
const HANDSHAKE_RATE: f64 = 20.0;
/// An accepted handshake takes two round trips.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Accepted connections from one member's address that have proved nothing yet.
pub(super) struct Guest {
    pub(super) under_way: usize,
    /// Handshakes that may begin now.
    allowance: f64,
    refilled: Instant,
}

impl Sessions {
    pub(super) fn accept(&mut self, stream: TcpStream, from: SocketAddr) -> Option<Input> {
        let address = from.ip();
        let member = self.members.iter().find(|(_, known)| **known == address);
        let Some((&peer, _)) = member.filter(|_| address != self.own) else {
            if let Some(refused) = self.strangers.note() {
                warn!(%from, refused, "refused connections that are not from a member's address");
            }
            return None;
        };
        let handshake = self.handshakes.get(&peer)?.clone();
        if self.live.len() >= SESSIONS_MAX || !self.admit(peer) {
            if let Some(refused) = self.crowds.note() {
                warn!(peer, refused, "refused connections: too many come from a member's address");
            }
            return None;
        }
        let report = self.report.clone();
        tokio::spawn(async move {
            let result = timeout(HANDSHAKE_TIMEOUT, handshake.accept(stream)).await;
            let result = result.unwrap_or_else(|late| Err(late.into()));
            let _stopped = report.send(Report::Accepted(peer, result)).await;
        });
        None
    }

    /// Whether another handshake may begin with who is at a member's address.
    fn admit(&mut self, peer: u8) -> bool {
        let under_way: usize = self.guests.values().map(|guest| guest.under_way).sum();
        let now = Instant::now();
        let fresh = || Guest { under_way: 0, allowance: HANDSHAKE_RATE, refilled: now };
        let guest = self.guests.entry(peer).or_insert_with(fresh);
        let earned = now.duration_since(guest.refilled).as_secs_f64() * HANDSHAKE_RATE;
        (guest.allowance, guest.refilled) = ((guest.allowance + earned).min(HANDSHAKE_RATE), now);
        if under_way >= HANDSHAKES_MAX || guest.under_way >= HANDSHAKES_OF_ONE || guest.allowance < 1.0 {
            return false;
        }
        (guest.allowance, guest.under_way) = (guest.allowance - 1.0, guest.under_way + 1);
        true
    }

    pub(super) fn complain_of_key(&mut self, peer: u8, error: &io::Error) {
        if is_wrong_key(error)
            && let Some(refused) = self.impostors.note()
        {
            warn!(
                peer,
                refused,
                "whoever is at this member's address has another key than the configuration says: compare `public_key` \
                 with `tandem cluster public-key` there"
            );
        }
    }
}
