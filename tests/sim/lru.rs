//! A table that makes room by forgetting what was written longest ago, as the kernel's LRU_HASH does roughly.

use std::collections::BTreeMap;

use lb_userspace::core::Key;

/// A table of fixed size.
#[derive(Debug)]
pub(crate) struct Lru<V> {
    values: BTreeMap<Key, (u64, V)>,
    writes: u64,
    capacity: usize,
}

impl<V: Copy> Lru<V> {
    /// An empty table.
    pub(crate) const fn new(capacity: usize) -> Self {
        Self { values: BTreeMap::new(), writes: 0, capacity }
    }

    /// What was last written for `key`.
    pub(crate) fn get(&self, key: &Key) -> Option<V> {
        self.values.get(key).map(|(_, value)| *value)
    }

    /// Writes, at the cost of the oldest if there is no room.
    pub(crate) fn set(&mut self, key: &Key, value: V) {
        self.writes += 1;
        if !self.values.contains_key(key) && self.values.len() >= self.capacity {
            let oldest = self.values.iter().min_by_key(|(_, (write, _))| *write).map(|(key, _)| *key);
            oldest.map(|key| self.values.remove(&key));
        }
        self.values.insert(*key, (self.writes, value));
    }

    /// How often something was written.
    pub(crate) const fn writes(&self) -> u64 {
        self.writes
    }
}
