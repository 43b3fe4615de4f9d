//! Records: what members tell each other about a flow, and how two of them become one.
//!
//! A record is a generation and three registers. The higher generation wins whole; within one generation each register
//! is the maximum of both. A maximum over a total order asks neither who spoke first nor how often: merging is
//! commutative, associative and idempotent, so members that have heard the same things hold the same records.

use lb_common::{
    address::Address,
    flow::{FlowEntry, STATE_DELETED, STATE_YOUNG, WITNESSED},
};

/// No record says more of a generation, revision or term: who claims the highest number there is would win for ever.
/// A flow that gets here (65,280 times placed anew or revived) stays where it is.
pub const COUNT_MAX: u16 = 0xff00;

/// What members tell each other about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// How often the tuple was placed anew; compared before the registers.
    pub generation: u16,
    /// Where the flow goes.
    pub backend: BackendRegister,
    /// How far it is.
    pub lifecycle: Lifecycle,
    /// Whose it is.
    pub owners: OwnersRegister,
}

/// Where a flow goes, and on whose word; the order of the fields is the order of the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendRegister {
    /// Whether its creator saw the flow begin.
    pub witnessed: bool,
    /// The member that chose the backend.
    pub creator: u8,
    /// That member's incarnation.
    pub incarnation: u32,
    /// The backend's identity within the service.
    pub address: Address,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lifecycle {
    /// Rises with every revival, saturating.
    pub revision: u16,
    /// One of `STATE_*`.
    pub state: u8,
}

/// Whose a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnersRegister {
    /// Rises with every change.
    pub term: u16,
    /// The member that delivers.
    pub primary: u8,
    /// The member that delivers when the primary is dead, 0 for none.
    pub backup: u8,
}

impl Record {
    /// What `entry` says of a flow whose backend, a local slot there, is at `address`.
    pub fn of(entry: &FlowEntry, address: Address) -> Self {
        Self {
            generation: entry.generation.min(COUNT_MAX),
            backend: BackendRegister {
                witnessed: entry.is_witnessed(),
                creator: entry.creator_id(),
                incarnation: entry.creator_incarnation,
                address,
            },
            lifecycle: Lifecycle { revision: entry.revision.min(COUNT_MAX), state: entry.state },
            owners: OwnersRegister { term: entry.term.min(COUNT_MAX), primary: entry.primary, backup: entry.backup },
        }
    }

    /// One record of two.
    pub fn merge(&self, other: &Self) -> Self {
        if self.generation != other.generation {
            return if self.generation > other.generation { *self } else { *other };
        }
        Self {
            generation: self.generation,
            backend: self.backend.max(other.backend),
            lifecycle: self.lifecycle.max(other.lifecycle),
            owners: self.owners.max(other.owners),
        }
    }

    /// Whether all is equal that XDP never writes into an entry that is there.
    pub fn is_placed_as(&self, other: &Self) -> bool {
        (self.generation, self.backend, self.owners) == (other.generation, other.backend, other.owners)
    }

    /// Whether the flow has ended.
    pub const fn is_tombstone(&self) -> bool {
        self.lifecycle.state == STATE_DELETED
    }

    /// Whether no third packet of the flow has been seen: its timeout is short.
    pub const fn is_young(&self) -> bool {
        self.lifecycle.state == STATE_YOUNG
    }

    /// The entry that tells the datapath of this record.
    pub fn entry(&self, slot: u16, tag: u32, created: u32, last_seen: u32) -> FlowEntry {
        FlowEntry {
            last_seen,
            created,
            tag,
            creator_incarnation: self.backend.incarnation,
            generation: self.generation,
            revision: self.lifecycle.revision,
            term: self.owners.term,
            backend: slot,
            state: self.lifecycle.state,
            packets: 0,
            creator: self.backend.creator | if self.backend.witnessed { WITNESSED } else { 0 },
            primary: self.owners.primary,
            backup: self.owners.backup,
            event: 0,
            padding: [0; 2],
        }
    }
}

/// The count after `count`.
pub(crate) fn next_count(count: u16) -> u16 {
    count.saturating_add(1).min(COUNT_MAX)
}

/// What a flow's entry shall hold, given what XDP has made of it meanwhile.
///
/// `wanted` decides, except that `last_seen` never goes back, and that XDP's lifecycle stays where it is higher.
/// An entry that XDP has placed anew (a higher generation) stays as it is: its event is on the way.
pub fn amend(existing: &FlowEntry, wanted: &FlowEntry) -> FlowEntry {
    if existing.generation > wanted.generation {
        return *existing;
    }
    let mut entry = *wanted;
    entry.last_seen = later(existing.last_seen, wanted.last_seen);
    if existing.generation == wanted.generation {
        entry.created = existing.created;
        entry.packets = existing.packets;
        if (existing.revision, existing.state) > (wanted.revision, wanted.state) {
            entry.revision = existing.revision;
            entry.state = existing.state;
        }
    }
    entry
}

/// What a flow's entry that is damaged shall hold: `wanted`, and of what XDP has made of it meanwhile what can be true.
pub fn restore(existing: &FlowEntry, wanted: &FlowEntry) -> FlowEntry {
    let mut entry = FlowEntry { packets: existing.packets, ..*wanted };
    if is_plausible(existing, wanted.revision) && (existing.revision, existing.state) > (wanted.revision, wanted.state)
    {
        (entry.revision, entry.state) = (existing.revision, existing.state);
    }
    let later_by = existing.last_seen.wrapping_sub(wanted.last_seen);
    if later_by < IDLE_MAX {
        entry.last_seen = existing.last_seen;
    }
    entry
}

/// Whether an entry's lifecycle can have come of one whose revision was `revision` a sweep ago.
pub(crate) fn is_plausible(entry: &FlowEntry, revision: u16) -> bool {
    matches!(entry.state, STATE_YOUNG..STATE_DELETED) && entry.revision <= revision.saturating_add(REVIVALS_MAX)
}

/// Revivals of a flow between two sweeps; a client that makes more gains nothing by it.
const REVIVALS_MAX: u16 = 1024;
/// 2.4 hours: no flow that is known has been idle for longer.
const IDLE_MAX: u32 = 1 << 23;

/// Whether tick `a` is after tick `b`; ticks wrap.
pub(crate) const fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// The later of two ticks.
pub(crate) const fn later(a: u32, b: u32) -> u32 {
    if is_after(a, b) { a } else { b }
}

/// Ticks from `then` to `now`, 0 if `then` is not in the past.
pub(crate) const fn age(now: u32, then: u32) -> u32 {
    if is_after(now, then) { now.wrapping_sub(then) } else { 0 }
}
