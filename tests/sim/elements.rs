//! The flow table as the kernel keeps it: a preallocated hash whose elements are recycled at once. One for both families.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    flow::{FlowEntry, FlowKeyV4},
    lifecycle::Lifecycle,
    steer::Inserted,
};
use lb_userspace::core::Key;
use zerocopy::FromZeros;

use crate::rng::Rng;

/// A flow table of fixed size.
///
/// XDP holds an element while the agent may replace or delete it: an overwritten entry gets another element, and the old
/// one goes to the next that asks (kernel/bpf/hashtab.c, `htab_map_update_elem`).
#[derive(Debug)]
pub(crate) struct Elements {
    elements: Vec<(Key, FlowEntry)>,
    index: BTreeMap<Key, usize>,
    free: Vec<usize>,
    capacity: usize,
    /// The agent's read-modify-writes that are half done. (It does one at a time; which one makes no difference.)
    waiting: BTreeMap<Key, FlowEntry>,
    /// Flows whose last packet was written into an element that the agent had just replaced: the entry does not show it.
    overwritten: BTreeSet<Key>,
    /// Whose entry was deleted last, since somebody asked.
    removed: Option<Key>,
}

impl Elements {
    /// An empty table.
    pub(crate) fn new(capacity: usize) -> Self {
        // One more, as the kernel has one per CPU for overwriting.
        let empty = (Key::V4(FlowKeyV4::new_zeroed()), FlowEntry::new_zeroed());
        Self {
            elements: vec![empty; capacity + 1],
            index: BTreeMap::new(),
            free: (0..=capacity).rev().collect(),
            capacity,
            waiting: BTreeMap::new(),
            overwritten: BTreeSet::new(),
            removed: None,
        }
    }

    /// Entries in the table.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// The element of a flow.
    pub(crate) fn find(&self, key: &Key) -> Option<usize> {
        self.index.get(key).copied()
    }

    /// A flow's entry.
    pub(crate) fn get(&self, key: &Key) -> Option<FlowEntry> {
        self.find(key).map(|at| self.entry(at))
    }

    /// What an element holds, whosever it is by now.
    pub(crate) fn entry(&self, at: usize) -> FlowEntry {
        self.elements[at].1
    }

    /// Whose an element is, or was last.
    pub(crate) fn key(&self, at: usize) -> Key {
        self.elements[at].0
    }

    /// Whose entry was deleted last, since this was last asked.
    pub(crate) fn take_removed(&mut self) -> Option<Key> {
        self.removed.take()
    }

    /// All entries, by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, FlowEntry)> + '_ {
        self.index.iter().map(|(key, &at)| (*key, self.entry(at)))
    }

    /// XDP's write into an element.
    pub(crate) fn touch(&mut self, at: usize, tag: u32, step: Lifecycle) {
        let (key, entry) = &mut self.elements[at];
        if entry.tag == tag {
            entry.last_seen = step.last_seen;
            entry.revision = step.revision;
            entry.state = step.state;
            entry.packets = step.packets;
        }
        if self.index.get(key) == Some(&at) {
            self.overwritten.remove(key);
        } else {
            self.overwritten.insert(*key);
        }
    }

    /// `BPF_NOEXIST`.
    pub(crate) fn insert(&mut self, key: &Key, entry: &FlowEntry) -> Inserted {
        if self.index.contains_key(key) {
            return Inserted::Exists;
        }
        if self.index.len() >= self.capacity {
            return Inserted::Full;
        }
        let Some(at) = self.free.pop() else { return Inserted::Full };
        self.elements[at] = (*key, *entry);
        self.index.insert(*key, at);
        Inserted::Yes
    }

    /// `BPF_EXIST`; false where there is none.
    pub(crate) fn replace(&mut self, key: &Key, entry: &FlowEntry) -> bool {
        let (Some(old), Some(at)) = (self.find(key), self.free.pop()) else { return false };
        self.elements[at] = (*key, *entry);
        self.index.insert(*key, at);
        self.free.push(old);
        true
    }

    /// Deletes an entry.
    pub(crate) fn remove(&mut self, key: &Key) {
        if let Some(at) = self.index.remove(key) {
            self.free.push(at);
            self.removed = Some(*key);
        }
    }

    /// The agent has looked up `key` and is about to write `entry` over it.
    pub(crate) fn wait_to_write(&mut self, key: Key, entry: FlowEntry) {
        self.waiting.insert(key, entry);
    }

    /// Whether a write to `key` waits.
    pub(crate) fn waits_for(&self, key: &Key) -> bool {
        self.waiting.contains_key(key)
    }

    /// The agent's write to `key` happens, if one waits.
    pub(crate) fn write_waiting(&mut self, key: &Key) {
        if let Some(entry) = self.waiting.remove(key) {
            self.replace(key, &entry);
        }
    }

    /// Whether the flow's entry does not show its last packet.
    pub(crate) fn hides_last_packet(&self, key: &Key) -> bool {
        self.overwritten.contains(key)
    }

    /// The agent died before it wrote.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Planted: makes room at the cost of somebody.
    pub(crate) fn evict_one(&mut self, rng: &mut Rng) {
        let at = rng.below(self.index.len().max(1) as u64) as usize;
        if let Some(key) = self.index.keys().nth(at).copied() {
            self.remove(&key);
        }
    }
}
