//! The two connections of a pair fare differently: one breaks, or stands still for a while, and the other goes on.
//!
//! With chance of its own, so that seeds keep their stories.

use lb_userspace::core::{
    Input, Session,
    wire::{Frame, VERSION},
};

use crate::{
    agenda::Happening,
    mutation::Mutation,
    rng::Rng,
    stream::place,
    time::{MS, Ns},
    world::World,
};

/// Attacks of a thousand with which something befalls a connection.
const BEFALLS: u64 = 100;
/// The longest that a connection stands still by itself: as long as a segment takes that is lost.
const HELD: Ns = 250 * MS;
/// Where a frame has its type.
const TYPE: usize = 5;
const SNAPSHOT: u8 = 2;
const ACKNOWLEDGEMENT: u8 = 25;
const BUCKET: u8 = 26;

/// What befalls single connections.
pub(crate) struct Mishaps {
    rng: Rng,
}

impl Mishaps {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed.rotate_left(32) ^ 2) }
    }
}

impl World {
    /// One connection breaks, with what was on its way, or moves nothing for a while.
    pub(crate) fn befall_connection(&mut self) {
        if self.calm || !self.mishaps.rng.chance(BEFALLS) {
            return;
        }
        let mut streams: Vec<u64> = self.streams_in_use().map(|(id, ..)| id).collect();
        streams.dedup();
        let Some(id) = self.mishaps.rng.pick(&streams) else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let is_bulk = stream.is_bulk;
        // What everybody must hear of within a second goes on the other one, which breaks often enough for other reasons.
        let is_break = is_bulk && self.mishaps.rng.chance(400);
        let wait = self.mishaps.rng.between(MS, HELD);
        if is_break {
            stream.is_broken = true;
            for end in 0..2 {
                let at = self.now + self.mishaps.rng.between(MS, 200 * MS);
                self.agenda.plan(at, Happening::StreamEnded { stream: id, end });
            }
        } else {
            stream.held_until = self.now + wait;
        }
        self.stats.count(match (is_bulk, is_break) {
            (true, true) => "connection for bulk broken alone",
            (true, false) => "connection for bulk held alone",
            (false, _) => "connection held, and not that for bulk",
        });
        self.trace(|| format!("stream {id}: bulk {is_bulk}, broken {is_break}, or held for {} ms", wait / MS));
    }

    /// An agent says that a connection is for bulk.
    pub(crate) fn mark_bulk(&mut self, session: Session) {
        if let Some(stream) = self.streams.get_mut(&place(session).0) {
            stream.is_bulk = true;
        }
    }

    /// Whether a planted fault keeps this frame of bulk from going out.
    pub(crate) fn swallows_bulk(&mut self, session: Session, bytes: &[u8]) -> bool {
        let (id, side) = place(session);
        let kind = bytes.get(TYPE).copied().unwrap_or_default();
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.is_bulk) else { return false };
        match self.mutation {
            Mutation::LosesBulk if [SNAPSHOT, BUCKET].contains(&kind) => {
                let (member, frames) = stream.swallow(side);
                self.append(id, 1 - side, &Frame::Acknowledgement { frames }.encode(VERSION));
                self.input(member, Input::Drained { session, bytes: bytes.len() });
                true
            }
            Mutation::MutesBulk if kind == ACKNOWLEDGEMENT => {
                let member = stream.member(side);
                self.input(member, Input::Drained { session, bytes: bytes.len() });
                true
            }
            _ => false,
        }
    }
}
