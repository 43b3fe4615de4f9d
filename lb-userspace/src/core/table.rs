//! The record table: all records of this member, in rows that keep their number while they live.
//!
//! Rows are in buckets by their key's hash, and each bucket has a digest of the records that peers should have as well. It
//! is a sum, so that a change of one record takes one subtraction and one addition.

use hashbrown::HashTable;
use lb_common::{flow::FlowKey, hash::HashKey};

use super::{
    digests::{BUCKETS, bucket_of, digest},
    key::Key,
    records::Record,
};

/// Rows for which memory is reserved at the start; untouched pages cost nothing, growing later costs a pause.
const RESERVED_MAX: usize = 1 << 21;

/// A record and what is known of its flow here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) key: Key,
    pub(crate) record: Record,
    /// Local slot of the backend; 0 in a tombstone.
    pub(crate) slot: u16,
    /// Tick of the last packet anybody has told of.
    pub(crate) last_seen: u32,
    /// Tick at which the flow became known here; of a tombstone, its end.
    pub(crate) created: u32,
    /// `last_seen` as the peers know it.
    pub(crate) told: u32,
    /// Mask of the peers in whose queue the row is.
    pub(crate) queued: u64,
    /// Whether a peer may know the record.
    pub(crate) shared: bool,
    /// Whether a flow that is still young has come of the age to be told of.
    pub(crate) plausible: bool,
    /// Whether the driver has been asked to delete the entry because the flow is idle.
    pub(crate) expiring: bool,
    /// The sweep that last saw the flow in the map.
    pub(crate) swept: u8,
    /// Whether the map was seen to hold the record as it is: what differs from now on is damage, and no news.
    pub(crate) mapped: bool,
    pub(crate) place: Place,
}

/// Where a row is among those of its bucket, and what it adds to the bucket's digest; the table's affair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    digest: u64,
    next: u32,
    previous: u32,
    bucket: u16,
}

/// No row.
const NONE: u32 = u32::MAX;

impl Default for Place {
    fn default() -> Self {
        Self { digest: 0, next: NONE, previous: NONE, bucket: 0 }
    }
}

impl Row {
    /// Whether the flow is this member's own affair yet.
    pub(crate) fn is_private(&self) -> bool {
        self.record.is_young() && !self.plausible
    }

    /// The bucket that it is in.
    pub(crate) const fn bucket(&self) -> u16 {
        self.place.bucket
    }

    /// What it adds to its bucket's digest: nothing while it is nobody else's affair, or over.
    pub(crate) fn digest(&self, secret: &HashKey) -> u64 {
        if self.record.is_tombstone() || self.is_private() { 0 } else { digest(secret, &self.key, &self.record) }
    }
}

/// Rows by number and by key. Numbers are used again; iteration is by number, so it is the same in every run.
pub(crate) struct Table {
    rows: Vec<Option<Row>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Digest and first row of each bucket.
    buckets: Vec<(u64, u32)>,
    /// Clients choose keys: without a secret they could choose ones that collide.
    secret: HashKey,
}

impl Table {
    pub(crate) fn new(secret: HashKey, rows: usize) -> Self {
        let reserved = rows.min(RESERVED_MAX);
        Self {
            rows: Vec::with_capacity(reserved),
            free: Vec::new(),
            index: HashTable::with_capacity(reserved),
            buckets: vec![(0, NONE); BUCKETS],
            secret,
        }
    }

    /// Rows in use.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Numbers are below this.
    pub(crate) fn end(&self) -> u32 {
        self.rows.len() as u32
    }

    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        let rows = &self.rows;
        self.index.find(key.hash(&self.secret), |&row| has_key(rows, row, key)).copied()
    }

    pub(crate) fn row(&self, row: u32) -> Option<&Row> {
        self.rows.get(row as usize)?.as_ref()
    }

    /// For what is not part of the digest; `record` and `plausible` are changed through `change`.
    pub(crate) fn row_mut(&mut self, row: u32) -> Option<&mut Row> {
        self.rows.get_mut(row as usize)?.as_mut()
    }

    /// Changes a row, and its bucket's digest with it.
    pub(crate) fn change<R>(&mut self, row: u32, change: impl FnOnce(&mut Row) -> R) -> Option<R> {
        let row = self.rows.get_mut(row as usize)?.as_mut()?;
        let before = (row.record, row.plausible);
        let result = change(row);
        if before != (row.record, row.plausible) {
            row.mapped &= before.0.is_placed_as(&row.record);
            let (old, new) = (row.place.digest, row.digest(&self.secret));
            row.place.digest = new;
            if let Some((sum, _)) = self.buckets.get_mut(usize::from(row.place.bucket)) {
                *sum = sum.wrapping_sub(old).wrapping_add(new);
            }
        }
        Some(result)
    }

    /// The digests of all buckets.
    pub(crate) fn digests(&self) -> Vec<u64> {
        self.buckets.iter().map(|(sum, _)| *sum).collect()
    }

    /// The rows of a bucket.
    pub(crate) fn bucket(&self, bucket: u16) -> impl Iterator<Item = u32> {
        let some = |number: u32| (number != NONE).then_some(number);
        let first = self.buckets.get(usize::from(bucket)).and_then(|(_, first)| some(*first));
        std::iter::successors(first, move |number| some(self.row(*number)?.place.next))
    }

    /// The secret that keys are hashed with.
    pub(crate) const fn secret(&self) -> &HashKey {
        &self.secret
    }

    /// Another secret: each row has another bucket and another digest, and keeps its number. Takes half a second for a
    /// million rows.
    pub(crate) fn rekey(&mut self, secret: HashKey) {
        self.secret = secret;
        self.index.clear();
        self.buckets.fill((0, NONE));
        (0..self.end()).for_each(|number| self.place(number));
    }

    /// Adds a row; the caller knows that its key has none.
    pub(crate) fn insert(&mut self, row: Row) -> u32 {
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.rows.get_mut(number as usize) {
                    *place = Some(row);
                }
                number
            }
            None => {
                self.rows.push(Some(row));
                self.rows.len() as u32 - 1
            }
        };
        self.place(number);
        number
    }

    /// Puts a row into the index and its bucket.
    fn place(&mut self, number: u32) {
        let secret = self.secret;
        let Some(row) = self.row_mut(number) else { return };
        let hash = row.key.hash(&secret);
        let (bucket, digest) = (bucket_of(hash), row.digest(&secret));
        row.place = Place { digest, bucket, ..Place::default() };
        if let Some((sum, first)) = self.buckets.get_mut(usize::from(bucket)) {
            *sum = sum.wrapping_add(digest);
            let second = std::mem::replace(first, number);
            self.join(number, second);
        }
        let rows = &self.rows;
        self.index.insert_unique(hash, number, |&other| {
            rows.get(other as usize).and_then(Option::as_ref).map_or(0, |row| row.key.hash(&secret))
        });
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<Row> {
        let row = self.rows.get_mut(number as usize)?.take()?;
        if let Ok(entry) = self.index.find_entry(row.key.hash(&self.secret), |&other| other == number) {
            entry.remove();
        }
        self.free.push(number);
        let Place { digest, next, previous, bucket } = row.place;
        if let Some((sum, first)) = self.buckets.get_mut(usize::from(bucket)) {
            *sum = sum.wrapping_sub(digest);
            if *first == number {
                *first = next;
            }
        }
        self.join(previous, next);
        Some(row)
    }

    /// Makes two rows, or one and none, neighbours in their bucket.
    fn join(&mut self, one: u32, other: u32) {
        if let Some(row) = self.row_mut(one) {
            row.place.next = other;
        }
        if let Some(row) = self.row_mut(other) {
            row.place.previous = one;
        }
    }
}

fn has_key(rows: &[Option<Row>], row: u32, key: &Key) -> bool {
    rows.get(row as usize).and_then(Option::as_ref).is_some_and(|row| row.key == *key)
}
