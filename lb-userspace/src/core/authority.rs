//! What a session may say, and on whose word: `docs/design/0009-identity.md` has the rules and their reasons.
//!
//! A member creates backend registers as itself, and relays what others created as such. What no member that works would
//! say ends the session; of a session of version 1, which has no relays, it is merely not taken.

use lb_common::{
    address::{is_martian_v4, is_martian_v6, unmapped},
    liveness::LIVENESS_DISBELIEVED,
};

use super::{Core, Session, event::CloseReason, link::Link, records::Record, sessions::STARTS_MAX, wire::Item};

/// More than this no generation or term rises between two words about a flow: at one in 30 s, in five days.
const LEAP_MAX: u16 = 1 << 14;
/// What half of the ticks can tell apart, in milliseconds: 26 days.
const IDLE_MS_MAX: u32 = ((1_u64 << 51) / 1_000_000) as u32;
/// The first version that has relays.
const SINCE: u8 = 2;

/// Whose word the records of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The sender created them.
    Own,
    /// Whoever did.
    Relayed,
}

/// What cannot be, in a record that a member has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absurdity {
    /// Another member's register, as one of its own making.
    #[error("it made a record as member {0}")]
    Creator(u8),
    /// A register of a start that has not been.
    #[error("a record of member {member} is of incarnation {said}, and it is {is}")]
    Incarnation {
        /// The creator.
        member: u8,
        /// Its incarnation, as the record says.
        said: u32,
        /// The latest that is known.
        is: u32,
    },
    /// A generation or term far above what is known of the flow.
    #[error("the count of a record leaps from {from} to {to}")]
    Leap {
        /// What is known.
        from: u16,
        /// What it says.
        to: u16,
    },
    /// Longer ago than can be told.
    #[error("a flow was idle for {0} ms")]
    Idle(u32),
    /// Nothing can be sent there.
    #[error("no packet can be sent to the backend of a record")]
    Backend,
}

impl Absurdity {
    /// What `code` stands for in the datapath's maps; nothing else does.
    pub fn of_code(code: u8) -> Option<&'static str> {
        Some(match code {
            1 => "it made a record as another member",
            2 => "it has a record of a start that cannot have been",
            3 => "the count of a record leaps",
            4 => "a flow was idle for longer than clocks can tell",
            5 => "no packet can be sent to the backend of a record",
            _ => return None,
        })
    }

    const fn code(self) -> u8 {
        match self {
            Self::Creator(_) => 1,
            Self::Incarnation { .. } => 2,
            Self::Leap { .. } => 3,
            Self::Idle(_) => 4,
            Self::Backend => 5,
        }
    }
}

impl Core {
    /// Takes in the records of a frame; all of them, or none where one cannot be.
    pub(crate) fn hear(&mut self, now: u64, session: Session, word: Word, items: &[Item]) -> Result<(), CloseReason> {
        let Some((peer, is_strict)) = self.links.get(&session).map(|link| (link.peer, link.relays())) else {
            return Ok(());
        };
        let later = items.iter().filter_map(|item| self.forgotten_start(&item.record)).max();
        if let Some(later) = later {
            self.raise_incarnation(now, peer, later);
            return Ok(());
        }
        if is_strict && let Some(absurdity) = items.iter().find_map(|item| self.judge(peer, word, item).err()) {
            return Err(absurdity.into());
        }
        for item in items {
            if is_strict || self.judge(peer, Word::Relayed, item).is_ok() {
                self.apply(now, peer, item);
            }
        }
        Ok(())
    }

    /// Who was last not believed, and why, for people who read the datapath's maps.
    pub(crate) fn disbelief(&self, now: u64) -> u32 {
        let disbelieved = self.peers.iter().filter(|(_, peer)| peer.is_disbelieved(now));
        let Some((&id, peer)) = disbelieved.max_by_key(|(_, peer)| peer.ended_at) else { return 0 };
        let code = match peer.complaint {
            Some(CloseReason::Disbelieved(absurdity)) => absurdity.code(),
            _ => 0,
        };
        (u32::from(id) | u32::from(code) << 8) << LIVENESS_DISBELIEVED
    }

    /// The incarnation of a record that this member has made in a later start than its disk knows of.
    pub(crate) fn forgotten_start(&self, record: &Record) -> Option<u32> {
        let said = record.backend.incarnation;
        let is_later = record.backend.creator == self.view.me && said > self.incarnation;
        (is_later && said - self.incarnation <= STARTS_MAX).then_some(said)
    }

    /// Whether `peer` can have said this.
    fn judge(&self, peer: u8, word: Word, item: &Item) -> Result<(), Absurdity> {
        let Record { backend, .. } = &item.record;
        if word == Word::Own && backend.creator != peer {
            return Err(Absurdity::Creator(backend.creator));
        }
        // The sender knows its own starts.
        let margin = if backend.creator == peer { 0 } else { STARTS_MAX };
        self.judge_incarnation(&item.record, margin)?;
        if item.idle_ms > IDLE_MS_MAX {
            return Err(Absurdity::Idle(item.idle_ms));
        }
        let is_martian = match unmapped(backend.address) {
            Some(address) => is_martian_v4(address),
            None => is_martian_v6(&backend.address),
        };
        if is_martian {
            return Err(Absurdity::Backend);
        }
        self.judge_leap(item)
    }

    /// Whether the record's creator has been what it says, as far as anybody here can know.
    pub(crate) fn is_of_a_start(&self, record: &Record) -> bool {
        self.judge_incarnation(record, STARTS_MAX).is_ok()
    }

    fn judge_incarnation(&self, record: &Record, margin: u32) -> Result<(), Absurdity> {
        let (member, said) = (record.backend.creator, record.backend.incarnation);
        let is = if member == self.view.me { self.incarnation } else { self.watch.incarnation(member) };
        if said.saturating_sub(is) <= margin { Ok(()) } else { Err(Absurdity::Incarnation { member, said, is }) }
    }

    fn judge_leap(&self, item: &Item) -> Result<(), Absurdity> {
        let counts = |record: &Record| [record.generation, record.owners.term];
        let said = counts(&item.record);
        if said.iter().all(|count| *count <= LEAP_MAX) {
            return Ok(());
        }
        let Some(row) = self.table.find(&item.key).and_then(|number| self.table.row(number)) else { return Ok(()) };
        let leap = counts(&row.record).into_iter().zip(said).find(|(from, to)| to.saturating_sub(*from) > LEAP_MAX);
        leap.map_or(Ok(()), |(from, to)| Err(Absurdity::Leap { from, to }))
    }
}

impl Link {
    /// Whether deltas are of the sender's making only.
    pub(crate) const fn relays(&self) -> bool {
        self.version >= SINCE
    }
}
