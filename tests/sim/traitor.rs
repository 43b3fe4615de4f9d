//! A member that is not itself: somebody has its key, and says in its sessions what it must not say.
//!
//! What a member may say of itself nobody can refute; here is what is refused. With chance of its own, so that seeds keep
//! their stories.

use lb_common::flow::STATE_ESTABLISHED;
use lb_userspace::core::{
    Key,
    records::{BackendRegister, Lifecycle, OwnersRegister, Record},
    wire::{Frame, Item, VERSION},
};

use crate::{mutation::Mutation, rng::Rng, world::World};

/// Attacks of a thousand in which it speaks: each costs a session, which must not keep records from those who need them.
const SPEAKS: u64 = 10;
/// No record gets here by itself.
const FORGED_TERM: u16 = 777;
/// Above the generation of any flow, so that it would win.
const FORGED_GENERATION: u16 = 50;

/// Who speaks in a member's name.
pub(crate) struct Traitor {
    rng: Rng,
}

impl Traitor {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed.rotate_left(32) ^ 1) }
    }
}

/// Whether an entry was made of a forged record.
pub(crate) const fn is_forged(term: u16) -> bool {
    term == FORGED_TERM
}

impl World {
    /// A forged frame goes out behind what a member has said.
    pub(crate) fn betray(&mut self) {
        if !self.traitor.rng.chance(SPEAKS) {
            return;
        }
        let speaks = |id: u8| self.hosts.get(&id).is_some_and(|host| host.speaks == VERSION);
        let sessions: Vec<(u64, usize, u8)> = self
            .streams_in_use()
            .filter(|(_, _, from, to)| speaks(*from) && speaks(*to))
            .map(|(id, side, from, _)| (id, side, from))
            .collect();
        let keys: Vec<Key> = self.clients.values().filter(|client| client.is_live()).map(|client| client.key).collect();
        let servers: Vec<_> = self.configs.iter().flat_map(|cluster| &cluster.backends).map(|b| b.address).collect();
        let rng = &mut self.traitor.rng;
        let (Some((id, side, from)), Some(key), Some(address)) =
            (rng.pick(&sessions), rng.pick(&keys), rng.pick(&servers))
        else {
            return;
        };
        let others: Vec<u8> = self.hosts.keys().copied().filter(|&id| id != from).collect();
        let Some(other) = rng.pick(&others) else { return };
        let later = rng.chance(500);
        let (creator, incarnation) = if later { (from, u32::MAX) } else { (other, 1) };
        let record = Record {
            generation: FORGED_GENERATION,
            backend: BackendRegister { witnessed: true, creator, incarnation, address },
            lifecycle: Lifecycle { revision: 0, state: STATE_ESTABLISHED },
            owners: OwnersRegister { term: FORGED_TERM, primary: from, backup: other },
        };
        let items = vec![Item { key, record, idle_ms: 0, ended_s: 0 }];
        let is_own = !later && self.mutation != Mutation::BelievesForgeries;
        let frame = if is_own { Frame::Delta(items) } else { Frame::Relay(items) };
        self.stats.count("record forged");
        self.append(id, side, &frame.encode(VERSION));
    }
}
