//! The record table: all records of this member, in rows that keep their number while they live.

use hashbrown::HashTable;
use lb_common::{flow::FlowKey, hash::HashKey};

use super::{key::Key, records::Record};

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
}

impl Row {
    /// Whether the flow is this member's own affair yet.
    pub(crate) fn is_private(&self) -> bool {
        self.record.is_young() && !self.plausible
    }
}

/// Rows by number and by key. Numbers are used again; iteration is by number, so it is the same in every run.
pub(crate) struct Table {
    rows: Vec<Option<Row>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Clients choose keys: without a secret they could choose ones that collide.
    secret: HashKey,
}

impl Table {
    pub(crate) fn new(secret: HashKey, rows: usize) -> Self {
        let reserved = rows.min(RESERVED_MAX);
        Self { rows: Vec::with_capacity(reserved), free: Vec::new(), index: HashTable::with_capacity(reserved), secret }
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

    pub(crate) fn row_mut(&mut self, row: u32) -> Option<&mut Row> {
        self.rows.get_mut(row as usize)?.as_mut()
    }

    /// Adds a row; the caller knows that its key has none.
    pub(crate) fn insert(&mut self, row: Row) -> u32 {
        let hash = row.key.hash(&self.secret);
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
        let (rows, secret) = (&self.rows, &self.secret);
        self.index.insert_unique(hash, number, |&other| {
            rows.get(other as usize).and_then(Option::as_ref).map_or(0, |row| row.key.hash(secret))
        });
        number
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<Row> {
        let row = self.rows.get_mut(number as usize)?.take()?;
        if let Ok(entry) = self.index.find_entry(row.key.hash(&self.secret), |&other| other == number) {
            entry.remove();
        }
        self.free.push(number);
        Some(row)
    }
}

fn has_key(rows: &[Option<Row>], row: u32, key: &Key) -> bool {
    rows.get(row as usize).and_then(Option::as_ref).is_some_and(|row| row.key == *key)
}
