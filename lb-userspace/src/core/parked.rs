//! Records of backends that are not configured here, kept until they are.

use std::collections::BTreeMap;

use super::{key::Key, wire::Item};

/// Parked records by flow, and in the order in which they came.
#[derive(Default)]
pub(crate) struct Parked {
    records: BTreeMap<Key, (u64, u8, Item, u32)>,
    order: BTreeMap<u64, Key>,
    next: u64,
    /// The last one reviewed.
    reviewed: u64,
    /// Records dropped because there were too many.
    pub(crate) dropped: u64,
}

impl Parked {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Keeps the record that `peer` sent and whose flow was last seen at tick `seen`, as far as there is room.
    ///
    /// What is here stays: it is in this member's digests, and where those changed with all that comes and finds no room, some
    /// bucket might never be found to be equal, nor to differ twice.
    pub(crate) fn insert(&mut self, peer: u8, item: &Item, seen: u32, limit: usize) {
        let mut item = *item;
        if self.records.len() >= limit && !self.records.contains_key(&item.key) {
            self.dropped += 1;
            return;
        }
        if let Some((order, _, known, _)) = self.records.remove(&item.key) {
            self.order.remove(&order);
            item.record = known.record.merge(&item.record);
        }
        self.next += 1;
        self.records.insert(item.key, (self.next, peer, item, seen));
        self.order.insert(self.next, item.key);
    }

    /// Each of them.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.records.values().map(|(_, _, item, _)| item)
    }

    /// Its flow has ended.
    pub(crate) fn remove(&mut self, key: &Key) {
        if let Some((order, ..)) = self.records.remove(key) {
            self.order.remove(&order);
        }
    }

    /// Visits the next `count` records, and drops those that need not be kept.
    pub(crate) fn review(&mut self, count: usize, keep: impl Fn(&Item, u32) -> bool) {
        for _ in 0..count.min(self.order.len()) {
            let next = self.order.range(self.reviewed + 1..).next().or_else(|| self.order.iter().next());
            let Some((&order, &key)) = next else { return };
            self.reviewed = order;
            if self.records.get(&key).is_some_and(|(_, _, item, seen)| !keep(item, *seen)) {
                self.remove(&key);
            }
        }
    }

    /// All of them, oldest first.
    pub(crate) fn take(&mut self) -> Vec<(u8, Item, u32)> {
        let mut records = std::mem::take(&mut self.records);
        let order = std::mem::take(&mut self.order);
        order
            .into_values()
            .filter_map(|key| records.remove(&key))
            .map(|(_, peer, item, seen)| (peer, item, seen))
            .collect()
    }
}
