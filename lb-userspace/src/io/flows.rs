//! Writing a flow table: the agent's half of a table that XDP writes as well.

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData, MapError},
};
use lb_common::flow::FlowEntry;

use super::copying::How;
use crate::core::{
    PutMode,
    records::{amend, restore},
};

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

/// What became of an entry that was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Written.
    Written,
    /// What is there says as much.
    Known,
    /// The table is full.
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

    /// Flows that fit.
    pub fn capacity(&self) -> Result<u32, MapError> {
        Ok(self.map().info()?.max_entries())
    }

    /// Writes an entry.
    ///
    /// What XDP writes between the look-up and the write of `Amend` is lost: a time stamp or a step of the
    /// lifecycle, which the flow's next packet repeats, or a placement anew, which the client's next SYN does.
    pub fn put(&mut self, key: &K, entry: FlowEntry, mode: PutMode) -> Result<Put, MapError> {
        // The entry may come or go between two calls, but not for ever.
        for _ in 0..4 {
            let there = match mode {
                PutMode::Insert => None,
                PutMode::Amend | PutMode::Restore => self.look_up(key)?,
            };
            let written = match there {
                Some(there) if mode == PutMode::Restore => self.map.insert(key, restore(&there, &entry), EXIST),
                Some(there) => self.map.insert(key, amend(&there, &entry), EXIST),
                None => self.map.insert(key, entry, NOEXIST),
            };
            match errno(&written) {
                Some(libc::EEXIST) if mode == PutMode::Insert => {
                    if let Some(there) = self.look_up(key)? {
                        return Ok(Put::Found(there));
                    }
                }
                Some(libc::EEXIST | libc::ENOENT) => {}
                Some(libc::E2BIG | libc::ENOMEM) => return Ok(Put::Full),
                _ => return written.map(|()| Put::Done),
            }
        }
        Ok(Put::Done)
    }

    /// Writes an entry that comes from another table, if it says anything new.
    pub fn merge(&mut self, key: &K, entry: FlowEntry, how: How) -> Result<Merged, MapError> {
        if let Some(there) = self.look_up(key)?
            && (how == How::Missing || amend(&there, &entry) == there)
        {
            return Ok(Merged::Known);
        }
        let mode = if how == How::Missing { PutMode::Insert } else { PutMode::Amend };
        Ok(match self.put(key, entry, mode)? {
            Put::Done => Merged::Written,
            Put::Found(_) => Merged::Known,
            Put::Full => Merged::Full,
        })
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

#[cfg(test)]
mod tests {
    use lb_common::flow::{FlowKey as _, FlowKeyV4};
    use zerocopy::FromZeros as _;

    use super::*;

    const KEY: FlowKeyV4 = FlowKeyV4 {
        source: [192, 0, 2, 1],
        destination: [203, 0, 113, 10],
        source_port: [1, 2],
        destination_port: [0, 80],
        protocol: 6,
        padding: [0; 3],
    };

    /// Needs CAP_BPF; without it there is nothing to test.
    fn table() -> Option<FlowTable<FlowKeyV4>> {
        let Ok(map) = HashMap::create(2, 0) else {
            eprintln!("skipped: cannot create a map; run as root");
            return None;
        };
        Some(FlowTable::new(map))
    }

    fn entry(backend: u16, last_seen: u32) -> FlowEntry {
        FlowEntry { backend, last_seen, tag: KEY.tag(), ..FlowEntry::new_zeroed() }
    }

    #[test]
    fn an_insert_never_overwrites() {
        let Some(mut table) = table() else { return };
        assert_eq!(table.put(&KEY, entry(1, 5), PutMode::Insert).unwrap(), Put::Done);
        assert_eq!(table.put(&KEY, entry(2, 6), PutMode::Insert).unwrap(), Put::Found(entry(1, 5)));
    }

    #[test]
    fn an_amendment_keeps_what_is_newer_in_the_table() {
        let Some(mut table) = table() else { return };
        assert_eq!(table.put(&KEY, entry(1, 9), PutMode::Amend).unwrap(), Put::Done);
        assert_eq!(table.put(&KEY, entry(2, 5), PutMode::Amend).unwrap(), Put::Done);
        let now = table.look_up(&KEY).unwrap().unwrap();
        assert_eq!((now.backend, now.last_seen), (2, 9));
    }

    #[test]
    fn a_restoration_overwrites_what_an_amendment_would_keep() {
        let Some(mut table) = table() else { return };
        let good = FlowEntry { created: 3, state: 2, ..entry(1, 9) };
        let damaged = FlowEntry { generation: 1 << 9, created: 3 ^ 1 << 30, state: 3, last_seen: 12, ..good };
        table.put(&KEY, damaged, PutMode::Insert).unwrap();
        table.put(&KEY, good, PutMode::Amend).unwrap();
        assert_eq!(table.look_up(&KEY).unwrap(), Some(damaged), "a later generation is the datapath's word");
        table.put(&KEY, good, PutMode::Restore).unwrap();
        let wanted = FlowEntry { state: 3, last_seen: 12, ..good };
        assert_eq!(table.look_up(&KEY).unwrap(), Some(wanted), "what the datapath may have written stays");
    }

    #[test]
    fn a_full_table_is_reported_and_keeps_its_flows() {
        let Some(mut table) = table() else { return };
        for port in 0..2 {
            let key = FlowKeyV4 { source_port: [9, port], ..KEY };
            assert_eq!(table.put(&key, entry(1, 5), PutMode::Insert).unwrap(), Put::Done);
        }
        assert_eq!(table.put(&KEY, entry(1, 5), PutMode::Insert).unwrap(), Put::Full);
        assert_eq!(table.delete(&KEY, 5).unwrap(), Deletion::Done);
    }

    #[test]
    fn a_flow_with_later_packets_is_spared_also_when_ticks_wrap() {
        let Some(mut table) = table() else { return };
        table.put(&KEY, entry(1, 3), PutMode::Insert).unwrap();
        assert_eq!(table.delete(&KEY, u32::MAX - 1).unwrap(), Deletion::Spared(entry(1, 3)));
        assert_eq!(table.delete(&KEY, 3).unwrap(), Deletion::Done);
        assert!(table.look_up(&KEY).unwrap().is_none());
    }
}
