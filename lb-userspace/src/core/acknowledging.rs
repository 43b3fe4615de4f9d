//! What a peer has applied of what it was told: frames of deltas and of buckets are numbered by counting
//! them, on both sides of a session.

use std::time::Duration;

use lb_common::rank::bit;

use super::{
    Core, Key, Session,
    event::CloseReason,
    link::{Introduction, Link, Stage, nanos},
    table::Row,
    wire::Frame,
};

/// A peer that has not acknowledged for this long is behind; others take a round trip, and what they need to apply a frame.
const BEHIND: Duration = Duration::from_secs(1);

/// Both directions of a session.
#[derive(Default)]
pub(crate) struct Acknowledgements {
    /// Frames that were sent.
    told: u64,
    /// Of these the peer has applied.
    acknowledged: u64,
    /// A frame that is not acknowledged yet, and since when.
    awaited: Option<(u64, u64)>,
    /// Frames that were applied here.
    heard: u64,
    /// Of these the peer has been told.
    answered: u64,
}

impl Acknowledgements {
    /// A frame goes out.
    pub(crate) fn tell(&mut self, now: u64) {
        self.told += 1;
        self.awaited.get_or_insert((self.told, now));
    }

    /// A frame was applied.
    pub(crate) fn hear(&mut self) {
        self.heard += 1;
    }

    /// Whether the peer waits for an acknowledgement.
    pub(crate) fn is_due(&self) -> bool {
        self.heard > self.answered
    }

    /// The number of the last frame that was sent.
    pub(crate) const fn told(&self) -> u64 {
        self.told
    }

    /// Frames that the peer has applied.
    pub(crate) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Frames that the peer has not acknowledged.
    pub(crate) fn outstanding(&self) -> u64 {
        self.told - self.acknowledged
    }

    fn acknowledge(&mut self, now: u64, heard: u64) -> Result<(), CloseReason> {
        if !(self.acknowledged..=self.told).contains(&heard) {
            return Err(CloseReason::Unexpected("acknowledgement of what was not said"));
        }
        self.acknowledged = heard;
        if self.awaited.is_some_and(|(number, _)| number <= heard) {
            // Those behind it were sent later.
            self.awaited = (self.told > heard).then_some((self.told, now));
        }
        Ok(())
    }
}

impl Core {
    /// The peer has applied `heard` frames of this session.
    pub(crate) fn acknowledged(&mut self, now: u64, session: Session, heard: u64) -> Result<(), CloseReason> {
        let Some(link) = self.links.get_mut(&session) else { return Ok(()) };
        link.acknowledgements.acknowledge(now, heard)?;
        link.underway.arrived(heard);
        self.pump_pair(now, session);
        Ok(())
    }

    /// The frame that says what was applied here.
    pub(crate) fn acknowledge(&mut self, session: Session) -> Option<Vec<u8>> {
        let link = self.links.get_mut(&session)?;
        let frames = link.acknowledgements.heard;
        link.acknowledgements.answered = frames;
        Some(Frame::Acknowledgement { frames }.encode(link.version))
    }

    /// Whether the flow's other owner is known to have its record as it is here.
    ///
    /// Late rather than early: as long as anything is outstanding there, the answer is no.
    pub fn is_durable(&self, key: &Key) -> bool {
        let row = self.table.find(key).and_then(|number| self.table.row(number));
        row.is_some_and(|row| {
            let owners = [row.record.owners.primary, row.record.owners.backup];
            let mut others = owners.iter().filter(|&&id| id != 0 && id != self.view.me);
            !row.is_private()
                && others
                    .all(|&id| self.links.values().any(|l| l.peer == id && l.has(row) && self.have_buckets_arrived(l)))
        })
    }

    /// Whether a connected peer may not have heard of this row yet.
    pub(crate) fn is_awaited(&self, now: u64, row: &Row) -> bool {
        self.links.values().filter(|link| link.stage != Stage::Greeting && link.acknowledges()).any(|link| {
            let since = link.acknowledgements.awaited.map(|(_, since)| since);
            row.queued & bit(link.peer) != 0
                || link.comparison.owes(row.bucket())
                || since.is_some_and(|since| now.saturating_sub(since) > nanos(BEHIND))
        })
    }
}

impl Link {
    /// Whether deltas are acknowledged in this session.
    pub(crate) fn acknowledges(&self) -> bool {
        self.version >= 2
    }

    fn has(&self, row: &Row) -> bool {
        let waits = row.queued & bit(self.peer) != 0 || self.comparison.owes(row.bucket());
        let is_told = row.shared && !waits;
        let is_introduced = self.stage == Stage::Open && self.introduction == Introduction::Over;
        is_introduced && self.acknowledges() && is_told && self.acknowledgements.outstanding() == 0
    }
}
