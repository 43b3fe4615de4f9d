//! Filling tables that are about to take the place of others. See docs/design/0012.

use std::{io, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
};
use lb_common::{
    flow::{FlowEntry, FlowKey, FlowKeyV4, FlowKeyV6, Pending},
    maps,
    service::{Service, ServiceKey},
    target::Target,
};
use zerocopy::FromBytes;

use super::{
    bpf::Batches,
    flows::{FlowTable, Merged},
    layouts::Layout,
};

/// Elements read at a time: more than any hash bucket holds.
const BATCH: usize = 4096;
/// `BPF_NOEXIST` (uapi/linux/bpf.h).
const NOEXIST: u64 = 1;

/// What a copy does with a flow that is in both tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The entry that is copied decides, as in an agent's write.
    Merge,
    /// The entry that is there stays.
    Missing,
}

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Flows that were found.
    pub found: u64,
    /// Those that had to be written.
    pub written: u64,
    /// Those that found no room.
    pub without_room: u64,
}

/// Tables, and what they are filled from.
pub struct Copying {
    layout: &'static Layout,
    v4: Option<(MapData, FlowTable<FlowKeyV4>)>,
    v6: Option<(MapData, FlowTable<FlowKeyV6>)>,
    pending: Option<(MapData, HashMap<MapData, FlowKeyV4, Pending>)>,
    pending_v6: Option<(MapData, HashMap<MapData, FlowKeyV6, Pending>)>,
    slots: Option<Slots>,
}

/// Backends and services, whose slots the flows name.
struct Slots {
    backends: (MapData, Array<MapData, Target>),
    services: (HashMap<MapData, ServiceKey, Service>, HashMap<MapData, ServiceKey, Service>),
}

impl Copying {
    /// From the maps pinned in `from`, which are of `layout`, to those in `to`, which are of this version's; what is not in
    /// both is not copied.
    pub fn open(from: &Path, to: &Path, layout: &'static Layout) -> io::Result<Self> {
        let is_in_both = |name: &str| from.join(name).exists() && to.join(name).exists();
        // What has earned no entry yet is forgotten by a change of the layout.
        let is_copied = |name: &str| is_in_both(name) && layout.is_current();
        let flows = |name| is_in_both(name).then(|| data(from, name)).transpose();
        let pending = |name| is_copied(name).then(|| data(from, name)).transpose();
        let slots = if layout.is_current() {
            None
        } else {
            Some(Slots {
                backends: (data(from, maps::BACKENDS)?, open(to, maps::BACKENDS)?),
                services: (open(from, maps::SERVICES)?, open(to, maps::SERVICES)?),
            })
        };
        Ok(Self {
            layout,
            v4: pair(flows(maps::FLOWS)?, || Ok(FlowTable::new(open(to, maps::FLOWS)?)))?,
            v6: pair(flows(maps::FLOWS_V6)?, || Ok(FlowTable::new(open(to, maps::FLOWS_V6)?)))?,
            pending: pair(pending(maps::PENDING)?, || open(to, maps::PENDING))?,
            pending_v6: pair(pending(maps::PENDING_V6)?, || open(to, maps::PENDING_V6))?,
            slots,
        })
    }

    /// Copies what is missing or says more than what is there; may be repeated. The flows of each family.
    pub fn run(&mut self, how: How) -> io::Result<[Copied; 2]> {
        if let Some(slots) = &mut self.slots {
            slots.copy()?;
        }
        if let Some((from, to)) = &mut self.pending {
            copy_missing(from, to)?;
        }
        if let Some((from, to)) = &mut self.pending_v6 {
            copy_missing(from, to)?;
        }
        let mut copied = [Copied::default(); 2];
        if let Some((from, to)) = &mut self.v4 {
            copied[0] = (self.layout.v4)(from, to, how)?;
        }
        if let Some((from, to)) = &mut self.v6 {
            copied[1] = (self.layout.v6)(from, to, how)?;
        }
        Ok(copied)
    }
}

impl Slots {
    fn copy(&mut self) -> io::Result<()> {
        let (from, to) = &mut self.backends;
        let mut batches = Batches::<u32, Target>::of(from, BATCH)?;
        while let Some((slots, targets)) = batches.read()? {
            for (slot, target) in slots.iter().zip(targets).filter(|(_, target)| target.state != 0) {
                to.set(*slot, *target, 0).map_err(io::Error::other)?;
            }
        }
        let (from, to) = &mut self.services;
        for element in from.iter() {
            let (key, service) = element.map_err(io::Error::other)?;
            to.insert(key, service, 0).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Copies the flows of a map whose entries are of type `E`.
pub fn copy_flows<K, E>(from: &MapData, to: &mut FlowTable<K>, how: How) -> io::Result<Copied>
where
    K: Pod + FlowKey + FromBytes,
    E: FromBytes + Copy,
    FlowEntry: From<E>,
{
    let mut copied = Copied::default();
    let mut batches = Batches::<K, E>::of(from, BATCH)?;
    while let Some((keys, entries)) = batches.read()? {
        for (key, entry) in keys.iter().zip(entries) {
            let entry = FlowEntry::from(*entry);
            // An element that the kernel was about to give to another flow.
            if entry.tag != key.tag() {
                continue;
            }
            copied.found += 1;
            match to.merge(key, entry, how).map_err(io::Error::other)? {
                Merged::Written => copied.written += 1,
                Merged::Known => {}
                Merged::Full => copied.without_room += 1,
            }
        }
    }
    Ok(copied)
}

fn copy_missing<K: Pod + FromBytes>(from: &MapData, to: &mut HashMap<MapData, K, Pending>) -> io::Result<()> {
    let mut batches = Batches::<K, Pending>::of(from, BATCH)?;
    while let Some((keys, values)) = batches.read()? {
        for (key, value) in keys.iter().zip(values) {
            match to.insert(key, value, NOEXIST) {
                Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::EEXIST) => {}
                written => written.map_err(io::Error::other)?,
            }
        }
    }
    Ok(())
}

fn pair<A, B>(from: Option<A>, to: impl FnOnce() -> io::Result<B>) -> io::Result<Option<(A, B)>> {
    from.map(|from| Ok((from, to()?))).transpose()
}

fn data(directory: &Path, name: &str) -> io::Result<MapData> {
    MapData::from_pin(directory.join(name)).map_err(io::Error::other)
}

fn open<M: TryFrom<Map, Error = MapError>>(directory: &Path, name: &str) -> io::Result<M> {
    let map = MapData::from_pin(directory.join(name)).and_then(Map::from_map_data).and_then(M::try_from);
    map.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use aya::maps::IterableMap as _;
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::io::{
        layouts::CURRENT,
        pins::{self, BPFFS},
    };

    /// A layout as it might have been: other fields in another order.
    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Frozen {
        tag: u32,
        seen: u32,
        born: u32,
        slot: u32,
        owners: [u8; 2],
        state: u8,
        rest: u8,
        incarnation: u32,
    }

    // SAFETY: integers without padding between them (zerocopy would refuse `FromBytes` for other kinds of fields).
    unsafe impl Pod for Frozen {}

    impl From<Frozen> for FlowEntry {
        fn from(old: Frozen) -> Self {
            Self {
                last_seen: old.seen,
                created: old.born,
                tag: old.tag,
                creator_incarnation: old.incarnation,
                backend: old.slot as u16,
                state: old.state,
                primary: old.owners[0],
                backup: old.owners[1],
                ..Self::new_zeroed()
            }
        }
    }

    static FROZEN: Layout = Layout::of::<Frozen>("a frozen one", 7);

    /// Two pin directories; needs CAP_BPF and a bpffs, without them there is nothing to test.
    struct Pins(PathBuf);

    impl Pins {
        fn new(name: &str) -> Option<Self> {
            let path = Path::new(BPFFS).join(format!("tandem-test-{}-{name}", std::process::id()));
            if let Err(error) = pins::prepare(&path) {
                eprintln!("skipped: {error}; run as root");
                return None;
            }
            for side in ["from", "to"] {
                fs::create_dir(path.join(side)).unwrap();
            }
            Some(Self(path))
        }

        fn table<K: Pod, V: Pod>(&self, side: &str, name: &str, capacity: u32) -> HashMap<MapData, K, V> {
            let map = HashMap::create(capacity, 0).unwrap();
            map.map().pin(self.0.join(side).join(name)).unwrap();
            map
        }

        fn copying(&self, layout: &'static Layout) -> Copying {
            Copying::open(&self.0.join("from"), &self.0.join("to"), layout).unwrap()
        }
    }

    impl Drop for Pins {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn key(port: u16) -> FlowKeyV4 {
        FlowKeyV4::new([192, 0, 2, 1], [203, 0, 113, 10], port.to_be_bytes(), [0, 80], 6)
    }

    fn entry(port: u16, last_seen: u32) -> FlowEntry {
        let packed = port as u8;
        FlowEntry { last_seen, created: 3, tag: key(port).tag(), primary: packed, ..FlowEntry::new_zeroed() }
    }

    #[test]
    fn what_an_older_version_wrote_is_converted_entry_by_entry() {
        let Some(pins) = Pins::new("layouts") else { return };
        let mut old: HashMap<_, FlowKeyV4, Frozen> = pins.table("from", maps::FLOWS, 64);
        let new: HashMap<_, FlowKeyV4, FlowEntry> = pins.table("to", maps::FLOWS, 128);
        let old_v6: HashMap<_, FlowKeyV6, Frozen> = pins.table("from", maps::FLOWS_V6, 64);
        let new_v6: HashMap<_, FlowKeyV6, FlowEntry> = pins.table("to", maps::FLOWS_V6, 64);
        let mut sides = ["from", "to"].map(|side| {
            let backends = Array::<MapData, Target>::create(16, 0).unwrap();
            backends.map().pin(pins.0.join(side).join(maps::BACKENDS)).unwrap();
            (backends, pins.table::<ServiceKey, Service>(side, maps::SERVICES, 8))
        });
        let target = Target { address: [9; 16], ring: 2, state: 1, ..Target::NONE };
        let (service, of) = (ServiceKey::vip([7; 16]), Service { ring: 2, ..Service::new_zeroed() });
        sides[0].0.set(5, target, 0).unwrap();
        sides[0].1.insert(service, of, 0).unwrap();
        let frozen = |port: u16, seen| Frozen {
            tag: key(port).tag(),
            seen,
            born: 3,
            slot: 5,
            owners: [2, 1],
            state: 2,
            rest: 0xff,
            incarnation: 77,
        };
        for port in 1..=40 {
            old.insert(key(port), frozen(port, 100 + u32::from(port)), 0).unwrap();
        }
        // Recycled while it was read.
        old.insert(key(41), frozen(42, 1), 0).unwrap();
        let v6 = FlowKeyV6::new([1; 16], [2; 16], [9, 10], [0, 80], 6);
        let mut old_v6 = old_v6;
        old_v6.insert(v6, Frozen { tag: v6.tag(), ..frozen(1, 9) }, 0).unwrap();

        let mut copying = pins.copying(&FROZEN);
        let [v4, of_v6] = copying.run(How::Merge).unwrap();
        assert_eq!(v4, Copied { found: 40, written: 40, without_room: 0 });
        assert_eq!(of_v6.written, 1);
        let wanted = |port: u16, last_seen| FlowEntry {
            last_seen,
            created: 3,
            tag: key(port).tag(),
            creator_incarnation: 77,
            backend: 5,
            state: 2,
            primary: 2,
            backup: 1,
            ..FlowEntry::new_zeroed()
        };
        for port in 1..=40 {
            assert_eq!(new.get(&key(port), 0).unwrap(), wanted(port, 100 + u32::from(port)));
        }
        assert!(new.get(&key(41), 0).is_err());
        assert_eq!(new_v6.get(&v6, 0).unwrap().tag, v6.tag());
        assert_eq!(sides[1].0.get(&5, 0).unwrap(), target);
        assert_eq!(sides[1].1.get(&service, 0).unwrap(), of);
        // Only what has changed is written again.
        old.insert(key(7), frozen(7, 500), 0).unwrap();
        old.insert(key(50), frozen(50, 600), 0).unwrap();
        assert_eq!(copying.run(How::Merge).unwrap()[0], Copied { found: 41, written: 2, without_room: 0 });
        assert_eq!(new.get(&key(7), 0).unwrap(), wanted(7, 500));
        assert_eq!(new.get(&key(50), 0).unwrap(), wanted(50, 600));
    }

    #[test]
    fn a_table_that_is_too_small_says_how_many_find_no_room_and_a_late_copy_overwrites_nothing() {
        let Some(pins) = Pins::new("resized") else { return };
        let mut old: HashMap<_, FlowKeyV4, FlowEntry> = pins.table("from", maps::FLOWS, 64);
        let mut new: HashMap<_, FlowKeyV4, FlowEntry> = pins.table("to", maps::FLOWS, 16);
        for port in 1..=20 {
            old.insert(key(port), entry(port, 5), 0).unwrap();
        }
        let mut copying = pins.copying(&CURRENT);
        let copied = copying.run(How::Merge).unwrap()[0];
        assert_eq!((copied.found, copied.without_room), (20, 4));
        let there: Vec<FlowKeyV4> = new.iter().filter_map(|element| Some(element.ok()?.0)).collect();
        let (kept, freed) = (there[0], there[1]);
        let other = FlowEntry { primary: 60, ..new.get(&kept, 0).unwrap() };
        new.insert(kept, other, 0).unwrap();
        new.remove(&freed).unwrap();
        let late = copying.run(How::Missing).unwrap()[0];
        assert_eq!((late.written, late.without_room), (1, 4));
        assert_eq!(new.get(&kept, 0).unwrap(), other);
    }
}
