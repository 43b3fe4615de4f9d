//! Layouts of the maps that earlier versions wrote, and how a flow's entry of each becomes one of this version's.
//!
//! Whoever changes `abi::SCHEMA` freezes the entry of before here, with a `From`, and puts the layout into `OLDER`: the flows
//! that are pinned then go on. Without that, an agent of the new version refuses to start on them.

use std::io;

use aya::maps::MapData;
use lb_common::{
    abi::SCHEMA,
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6},
};
use zerocopy::FromBytes;

use super::{
    copying::{Copied, How, copy_flows},
    flows::FlowTable,
};

/// A layout of the maps, as far as their flows are concerned.
#[derive(Debug)]
pub struct Layout {
    /// What it is called.
    pub name: &'static str,
    /// `abi::SCHEMA` of those who wrote it.
    pub schema: u64,
    /// Bytes of an entry.
    pub entry_size: u32,
    /// Copies the IPv4 flows of a map of this layout.
    pub v4: Copy<FlowKeyV4>,
    /// Copies the IPv6 flows.
    pub v6: Copy<FlowKeyV6>,
}

/// Copies the flows of a map of some layout into a table of this version's.
pub type Copy<K> = fn(&MapData, &mut FlowTable<K>, How) -> io::Result<Copied>;

impl Layout {
    /// The layout whose entries are of type `E`.
    pub const fn of<E>(name: &'static str, schema: u64) -> Self
    where
        E: FromBytes + std::marker::Copy,
        FlowEntry: From<E>,
    {
        let entry_size = size_of::<E>() as u32;
        Self { name, schema, entry_size, v4: copy_flows::<FlowKeyV4, E>, v6: copy_flows::<FlowKeyV6, E> }
    }

    /// Whether it is this version's.
    pub fn is_current(&self) -> bool {
        self.schema == SCHEMA
    }
}

/// This version's.
pub static CURRENT: Layout = Layout::of::<FlowEntry>("this version's", SCHEMA);

/// Those that are read and not written.
pub static OLDER: [Layout; 2] = [
    Layout::of::<revision_2::FlowEntry>("revision 2", 0x8b1c_e31d_3205_fca3),
    // Probes are signed; the entry is the same.
    Layout::of::<revision_2::FlowEntry>("revision 3", 0x4d2e_18cd_d8a2_01aa),
];

/// Probes were not signed yet.
mod revision_2 {
    /// The entry of then.
    #[repr(C)]
    #[derive(Clone, Copy, zerocopy::FromBytes)]
    pub struct FlowEntry {
        last_seen: u32,
        created: u32,
        tag: u32,
        creator_incarnation: u32,
        generation: u16,
        revision: u16,
        term: u16,
        backend: u16,
        state: u8,
        packets: u8,
        creator: u8,
        primary: u8,
        backup: u8,
        padding: [u8; 3],
    }

    const _: () = assert!(size_of::<FlowEntry>() == 32);

    impl From<FlowEntry> for lb_common::flow::FlowEntry {
        fn from(old: FlowEntry) -> Self {
            let FlowEntry { padding: _, .. } = old;
            Self {
                last_seen: old.last_seen,
                created: old.created,
                tag: old.tag,
                creator_incarnation: old.creator_incarnation,
                generation: old.generation,
                revision: old.revision,
                term: old.term,
                backend: old.backend,
                state: old.state,
                packets: old.packets,
                creator: old.creator,
                primary: old.primary,
                backup: old.backup,
                event: 0,
                padding: [0; 2],
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_a_schema_of_its_own() {
        let mut schemas: Vec<u64> = OLDER.iter().map(|layout| layout.schema).chain([SCHEMA]).collect();
        schemas.sort_unstable();
        schemas.dedup();
        assert_eq!(schemas.len(), OLDER.len() + 1);
    }
}
