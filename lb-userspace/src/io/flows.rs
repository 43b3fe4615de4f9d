//! Writing a flow table: the agent's half of a table that XDP writes as well.

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData, MapError},
};
use lb_common::flow::FlowEntry;

use crate::core::{PutMode, records::amend};

/// `BPF_ANY`, `BPF_NOEXIST`, `BPF_EXIST` (uapi/linux/bpf.h).
const NOEXIST: u64 = 1;
const EXIST: u64 = 2;

/// The flows of one family.
pub struct FlowTable<K> {
    map: HashMap<MapData, K, FlowEntry>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Written.
    Done,
    /// This entry was there, and stays.
    Found(FlowEntry),
    /// The table is full: the flow is known to the core only.
    Full,
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// There is no entry (any more).
    Done,
    /// The flow has had packets: this entry stays.
    Spared(FlowEntry),
}

impl<K: Pod> FlowTable<K> {
    /// The agent's access to `map`.
    pub fn new(map: HashMap<MapData, K, FlowEntry>) -> Self {
        Self { map }
    }

    /// The kernel's map.
    pub fn map(&self) -> &MapData {
        self.map.map()
    }

    /// Writes an entry.
    ///
    /// What XDP writes between the look-up and the write of `Amend` is lost: a time stamp or a step of the
    /// lifecycle, which the flow's next packet repeats.
    pub fn put(&mut self, key: &K, entry: FlowEntry, mode: PutMode) -> Result<Put, MapError> {
        // The entry may come or go between two calls, but not for ever.
        for _ in 0..4 {
            let there = self.look_up(key)?;
            let written = match (there, mode) {
                (Some(there), PutMode::Insert) => return Ok(Put::Found(there)),
                (Some(there), PutMode::Amend) => self.map.insert(key, amend(&there, &entry), EXIST),
                (None, _) => self.map.insert(key, entry, NOEXIST),
            };
            match errno(&written) {
                Some(libc::EEXIST | libc::ENOENT) => {}
                Some(libc::E2BIG | libc::ENOMEM) => return Ok(Put::Full),
                _ => return written.map(|()| Put::Done),
            }
        }
        Ok(Put::Done)
    }

    /// Deletes an entry unless it was seen later than tick `unless_seen_since`.
    pub fn delete(&mut self, key: &K, unless_seen_since: u32) -> Result<Deletion, MapError> {
        let Some(entry) = self.look_up(key)? else { return Ok(Deletion::Done) };
        if (entry.last_seen.wrapping_sub(unless_seen_since) as i32) > 0 {
            return Ok(Deletion::Spared(entry));
        }
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(Deletion::Done),
            gone if errno(&gone) == Some(libc::ENOENT) => Ok(Deletion::Done),
            Err(error) => Err(error),
        }
    }

    fn look_up(&self, key: &K) -> Result<Option<FlowEntry>, MapError> {
        match self.map.get(key, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn errno<T>(result: &Result<T, MapError>) -> Option<i32> {
    match result {
        Err(MapError::SyscallError(call)) => call.io_error.raw_os_error(),
        _ => None,
    }
}
