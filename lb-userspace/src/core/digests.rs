//! What two members hold is compared by digests, and what differs is sent whole.
//!
//! All flows are in `BUCKETS` buckets by their keyed hash; a bucket's digest is the sum of its records' hashes. Members
//! send each other all their digests now and then, behind the deltas that wait: a record that only one of them has shows,
//! however it was lost. What is merely under way shows as well, so only a bucket that differs twice in a row is sent, by
//! both sides. It is for version 2; a peer of version 1 gets snapshots again instead.

use std::time::Duration;

use lb_common::{
    flow::FlowKey as _,
    hash::{HashKey, siphash13},
};
use zerocopy::transmute;

use super::{
    Core, Session,
    key::Key,
    lanes::item,
    link::{Introduction, Link, Stage, nanos},
    records::Record,
    wire::{Batch, Frame},
};

/// Buckets: with a million flows one holds 244, 12 KB on the wire, and all digests are 32 KiB.
pub const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 12;
/// Between two comparisons: what is lost is found within two of them.
const PERIOD: Duration = Duration::from_secs(5);
/// The same while somebody waits for the result: longer than any delta is under way.
const HASTE: Duration = Duration::from_millis(250);
/// For how long after a session has ended the others compare hastily: its peer may have told some of them only.
const AFTERMATH: Duration = Duration::from_secs(2);
/// Buckets sent whole after one comparison; where thousands of flows a second change, more than these may differ for no
/// other reason.
const REPAIRED_MAX: usize = 512;
/// Buckets that differ when a session begins, above which all rows are sent: in their order that is faster.
const SNAPSHOT_FROM: usize = BUCKETS / 2;
/// The first version that has digests.
const SINCE: u8 = 2;

/// The bucket of a flow with this keyed hash.
pub(crate) const fn bucket_of(hash: u64) -> u16 {
    (hash >> (u64::BITS - BUCKET_BITS)) as u16
}

/// The digest of one record: its key, generation and registers, and nothing that differs between members who agree.
pub(crate) fn digest(secret: &HashKey, key: &Key, record: &Record) -> u64 {
    let Record { generation, backend, lifecycle, owners } = record;
    let counts = u64::from(*generation)
        | u64::from(lifecycle.revision) << 16
        | u64::from(owners.term) << 32
        | u64::from(lifecycle.state) << 48
        | u64::from(backend.witnessed) << 56;
    let members = u64::from(backend.incarnation)
        | u64::from(backend.creator) << 32
        | u64::from(owners.primary) << 40
        | u64::from(owners.backup) << 48;
    let [a, b]: [u64; 2] = transmute!(backend.address);
    let (a, b) = (u64::from_le(a), u64::from_le(b));
    match key {
        Key::V4(key) => {
            let [k, l]: [u64; 2] = transmute!(*key);
            siphash13(secret, &[u64::from_le(k), u64::from_le(l), counts, members, a, b])
        }
        Key::V6(key) => {
            let [k, l, m, n, o]: [u64; 5] = transmute!(*key);
            let [k, l, m, n, o] = [k, l, m, n, o].map(u64::from_le);
            siphash13(secret, &[k, l, m, n, o, counts, members, a, b])
        }
    }
}

/// A set of buckets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Buckets([u64; BUCKETS / 64]);

impl Buckets {
    pub(crate) const NONE: Self = Self([0; BUCKETS / 64]);
    const ALL: Self = Self([u64::MAX; BUCKETS / 64]);

    pub(crate) fn insert(&mut self, bucket: u16) {
        if let Some(word) = self.0.get_mut(usize::from(bucket) / 64) {
            *word |= 1 << (bucket % 64);
        }
    }

    pub(crate) fn remove(&mut self, bucket: u16) {
        if let Some(word) = self.0.get_mut(usize::from(bucket) / 64) {
            *word &= !(1 << (bucket % 64));
        }
    }

    pub(crate) fn contains(&self, bucket: u16) -> bool {
        self.0.get(usize::from(bucket) / 64).is_some_and(|word| word & (1 << (bucket % 64)) != 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    fn first(&self) -> Option<u16> {
        let (at, word) = self.0.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some((at * 64) as u16 + word.trailing_zeros() as u16)
    }
}

/// What a session knows of how its two sides compare.
pub(crate) struct Comparison {
    /// When our digests are due.
    pub(crate) due: Option<u64>,
    /// Until when comparisons are hasty.
    hasty_until: u64,
    /// Buckets that differed last time, and were not sent since.
    differing: Buckets,
    /// Buckets of which we know all that the peer does: since its snapshot was complete they were equal, or it sent them
    /// whole.
    known: Buckets,
    /// Buckets to be sent whole.
    owed: Buckets,
    /// Rows of the first of them that are sent: it may take more than a frame.
    sent: usize,
    /// The bucket after the last one that was found to be owed: all have their turn.
    turn: u16,
}

impl Comparison {
    pub(crate) const fn new() -> Self {
        Self {
            due: None,
            hasty_until: 0,
            differing: Buckets::NONE,
            known: Buckets::NONE,
            owed: Buckets::NONE,
            sent: 0,
            turn: 0,
        }
    }

    /// The bucket is to be sent whole; one that is half sent, again from its beginning.
    pub(crate) fn owe(&mut self, bucket: u16) {
        self.owed.insert(bucket);
        self.sent = 0;
    }

    /// A bucket that is half sent is sent again from its beginning.
    pub(crate) fn begin_bucket_anew(&mut self) {
        self.sent = 0;
    }

    /// Whether the bucket waits to be sent whole.
    pub(crate) fn owes(&self, bucket: u16) -> bool {
        self.owed.contains(bucket)
    }

    /// Whether buckets wait to be sent whole.
    pub(crate) fn is_owing(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Whether there is nothing that the peer knows and we do not.
    pub(crate) fn knows_all(&self) -> bool {
        self.known == Buckets::ALL
    }

    /// Flows are in other buckets now.
    fn renumber(&mut self, is_owing: bool) {
        (self.differing, self.known, self.sent) = (Buckets::NONE, Buckets::NONE, 0);
        if is_owing {
            self.owed = Buckets::ALL;
        }
    }

    /// What the peer knew was less than all.
    pub(crate) fn start_anew(&mut self) {
        self.known = Buckets::NONE;
    }
}

impl Core {
    /// Compares with everybody at once, and soon again: who has ended may have told some of us only.
    pub(crate) fn compare_soon(&mut self, now: u64, except: u8) {
        let others = self.links.values_mut().filter(|link| link.stage == Stage::Open && link.peer != except);
        for link in others.filter(|link| link.compares()) {
            link.comparison.hasty_until = now + nanos(AFTERMATH);
            if link.introduction == Introduction::Over {
                link.comparison.due = Some(now);
            }
        }
    }

    /// The cluster has another secret. Until the others have it, too, all buckets differ, and some are sent whole at every
    /// comparison: merging makes nothing of it.
    pub(crate) fn rekey(&mut self, secret: HashKey) {
        self.table.rekey(secret);
        let on_their_way: Vec<Session> =
            self.links.iter().filter(|(_, link)| !self.is_settled(link)).map(|(&session, _)| session).collect();
        for (session, link) in &mut self.links {
            link.comparison.renumber(on_their_way.contains(session));
        }
    }

    /// The frame of our digests.
    pub(crate) fn digests(&mut self, now: u64, session: Session) -> Option<Vec<u8>> {
        let is_joining = !self.ready;
        let link = self.links.get_mut(&session)?;
        let is_hasty = is_joining || !link.said_ready || now < link.comparison.hasty_until;
        link.comparison.due = Some(now + nanos(if is_hasty { HASTE } else { PERIOD }));
        let version = link.version;
        Some(Frame::Digests(self.all_digests()).encode(version))
    }

    /// Digests of the table and of what is parked: it is known, though there is no place for it yet.
    fn all_digests(&self) -> Vec<u64> {
        let mut digests = self.table.digests();
        let secret = self.table.secret();
        for item in self.parked.items() {
            let known = self.table.find(&item.key).and_then(|number| self.table.row(number));
            let (old, record) =
                known.map_or((0, item.record), |row| (row.digest(secret), row.record.merge(&item.record)));
            if let Some(sum) = digests.get_mut(usize::from(bucket_of(item.key.hash(secret)))) {
                *sum = sum.wrapping_sub(old).wrapping_add(digest(secret, &item.key, &record));
            }
        }
        digests
    }

    /// The peer's digests, behind all it has told.
    pub(crate) fn compare(&mut self, session: Session, theirs: &[u64]) {
        let Some(link) = self.links.get(&session).filter(|_| self.has_swept) else { return };
        match link.introduction {
            Introduction::Asking => self.tell_what_differs(session, theirs),
            Introduction::Over if link.is_synchronized => self.mend_what_differs(session, theirs),
            // What is under way is not missing.
            Introduction::Over | Introduction::Rows(_) | Introduction::Buckets => {}
        }
    }

    /// A session begins: the peer is told what it lacks, or all if that is not much more.
    fn tell_what_differs(&mut self, session: Session, theirs: &[u64]) {
        let ours = self.all_digests();
        let Some(link) = self.links.get_mut(&session) else { return };
        let differing = (0_u16..).zip(ours.iter().zip(theirs)).filter(|(_, (our, their))| our != their);
        let is_empty = theirs.iter().all(|digest| *digest == 0);
        if is_empty || differing.clone().count() > SNAPSHOT_FROM {
            (link.introduction, link.comparison.due) = (Introduction::Rows(0), None);
            return;
        }
        for (bucket, _) in differing {
            link.comparison.owe(bucket);
            self.repaired += 1;
        }
        link.introduction = Introduction::Buckets;
    }

    fn mend_what_differs(&mut self, session: Session, theirs: &[u64]) {
        let ours = self.all_digests();
        let Some(link) = self.links.get_mut(&session) else { return };
        let comparison = &mut link.comparison;
        let mut found = 0;
        let turn = usize::from(comparison.turn);
        for bucket in (turn..BUCKETS).chain(0..turn) {
            let (is_equal, bucket) = (ours.get(bucket) == theirs.get(bucket), bucket as u16);
            if is_equal {
                comparison.known.insert(bucket);
                comparison.differing.remove(bucket);
            } else if !comparison.differing.contains(bucket) {
                comparison.differing.insert(bucket);
            } else if found < REPAIRED_MAX && !comparison.owed.contains(bucket) {
                comparison.owe(bucket);
                comparison.differing.remove(bucket);
                comparison.turn = (bucket + 1) % BUCKETS as u16;
                found += 1;
            }
        }
        self.repaired += found as u64;
    }

    /// The next frame of a bucket that is sent whole, and which one that is.
    pub(crate) fn owed(&mut self, now: u64, session: Session) -> Option<(u16, Vec<u8>)> {
        let link = self.links.get_mut(&session)?;
        let comparison = &mut link.comparison;
        let bucket = comparison.owed.first()?;
        let mut batch = Batch::bucket(link.version, bucket);
        for number in self.table.bucket(bucket).skip(comparison.sent).collect::<Vec<u32>>() {
            if batch.is_full() {
                return Some((bucket, batch.finish()));
            }
            comparison.sent += 1;
            if let Some(row) = self.table.row_mut(number).filter(|row| !row.is_private()) {
                row.shared = true;
                batch.push(&item(now, row));
            }
        }
        (comparison.sent, link.snapshot_at) = (0, now);
        comparison.owed.remove(bucket);
        Some((bucket, batch.finish_bucket()))
    }

    /// The peer has sent all it has of a bucket.
    pub(crate) fn received_whole(&mut self, session: Session, bucket: u16) {
        if let Some(link) = self.links.get_mut(&session).filter(|link| link.is_synchronized) {
            link.comparison.known.insert(bucket);
        }
    }
}

impl Link {
    /// Whether both sides have digests.
    pub(crate) fn compares(&self) -> bool {
        self.version >= SINCE
    }
}
