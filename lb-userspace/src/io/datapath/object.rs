//! The object that the build made, and loading it: on pinned maps, or for a host that only takes outer headers off.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::OnceLock,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError},
    programs::{SchedClassifier, Xdp},
};
use aya_obj::Object;
use lb_common::{check, decap, maps};

use super::{DatapathError, Entry};
use crate::io::{
    attach,
    layouts::OLDER,
    pins::{self, Fit, PINNED, Shape},
    program::Program,
};

/// The programs and their maps, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// Capacities that the configuration decides, by map.
pub type Capacities = BTreeMap<&'static str, u32>;

/// An LRU keeps free elements per CPU, 128 at a time: a smaller one would forget what it has just been told.
const PENDING_MIN: u32 = 1 << 14;

/// The maps whose capacity is not the object's, for tables of so many flows.
pub(super) fn capacities(flows_max: u32, flows_v6_max: u32) -> Capacities {
    Capacities::from([
        (maps::FLOWS, flows_max),
        (maps::FLOWS_V6, flows_v6_max),
        (maps::PENDING, pending(flows_max)),
        (maps::PENDING_V6, pending(flows_v6_max)),
    ])
}

/// Of tuples that have not earned an entry, a quarter of the flows is remembered.
fn pending(flows: u32) -> u32 {
    (flows / 4).clamp(PENDING_MIN, maps::PENDING_MAX)
}

/// The capacities of the maps that are pinned in `pins`, except those that are wished.
pub fn capacities_beside(
    pins: &Path,
    flows_max: Option<u32>,
    flows_v6_max: Option<u32>,
) -> Result<Capacities, DatapathError> {
    let mut capacities = Capacities::new();
    for (flows, before, wish) in
        [(maps::FLOWS, maps::PENDING, flows_max), (maps::FLOWS_V6, maps::PENDING_V6, flows_v6_max)]
    {
        let wanted = match wish {
            Some(wish) => [wish, pending(wish)],
            None => [capacity(pins, flows)?, capacity(pins, before)?],
        };
        capacities.extend([flows, before].into_iter().zip(wanted));
    }
    Ok(capacities)
}

fn capacity(pins: &Path, name: &'static str) -> Result<u32, DatapathError> {
    let map = MapData::from_pin(pins.join(name)).and_then(|map| map.info());
    Ok(map.map_err(|error| DatapathError::Map { name, error })?.max_entries())
}

/// How the maps pinned in `pins` compare with those of `object`.
pub fn fit(pins: &Path, object: &[u8], capacities: &Capacities) -> Result<Fit, DatapathError> {
    Ok(pins::compare(pins, &shapes(object, capacities)?, &OLDER)?)
}

/// Loads the program of `entry`; which one it is.
pub fn load_balancer(ebpf: &mut Ebpf, entry: Entry) -> Result<Program, DatapathError> {
    load_program(ebpf, entry.program())?;
    let info = program(ebpf, entry.program())?.info();
    let info = info.map_err(|error| DatapathError::Program { name: entry.program(), error })?;
    Ok(Program::of(&info)?)
}

/// Loads `object` on the maps pinned in `pins`, which fit where they are there; on those in the other directory where they are named.
pub fn load_on(
    pins: &Path,
    (beside, names): (&Path, &[&str]),
    object: &[u8],
    capacities: &Capacities,
) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    // No program reads kernel structures, so none needs the kernel's BTF; the maps keep their own.
    loader.btf(None);
    for (name, capacity) in capacities {
        loader.map_max_entries(name, *capacity);
    }
    for name in DECAP_MAPS {
        loader.map_max_entries(name, 1);
    }
    for name in PINNED {
        let directory = if names.contains(&name) { beside } else { pins };
        loader.map_pin_path(name, directory.join(name));
    }
    Ok(loader.load(object)?)
}

pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    program(ebpf, name)?.load().map_err(|error| DatapathError::Program { name, error })
}

/// The map `name`, as a typed one.
pub fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DatapathError> {
    let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
    T::try_from(map).map_err(|error| DatapathError::Map { name, error })
}

/// The maps of `decap`, which `balancer` does not use; and of `balancer`, which `decap` does not use, the large ones.
const DECAP_MAPS: [&str; 2] = [decap::DECAP_FROM, decap::DECAP_VIPS];
const LARGE_BALANCER_MAPS: [&str; 11] = [
    check::CHECK_WAYS,
    maps::FLOWS,
    maps::FLOWS_V6,
    maps::PENDING,
    maps::PENDING_V6,
    maps::FRAGMENTS,
    maps::FRAGMENTS_V6,
    maps::SERVICES,
    maps::BACKENDS,
    maps::SERVICE_COUNT,
    maps::BACKEND_COUNT,
];

const CLAMP: &str = "clamp";
pub(super) const CHECK: &str = "check";

/// Loads the object for the program `name`, one of `Entry::decap`, and for the clamp if that is wanted: no pins, and the
/// balancer's maps as small as they can be.
pub fn load_decap(name: &'static str, has_clamp: bool) -> Result<Ebpf, DatapathError> {
    attach::check_host()?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for name in LARGE_BALANCER_MAPS {
        loader.map_max_entries(name, 1);
    }
    let mut ebpf = loader.load(OBJECT)?;
    start_log(&mut ebpf);
    load_program(&mut ebpf, name)?;
    if has_clamp {
        clamp(&mut ebpf)?.load().map_err(|error| DatapathError::Program { name: CLAMP, error })?;
    }
    Ok(ebpf)
}

/// The XDP program `name`.
pub fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut Xdp, DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::Missing(name))?;
    program.try_into().map_err(|error| DatapathError::Program { name, error })
}

/// The program that lowers the segment size of SYNs from VIPs.
pub fn clamp(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, DatapathError> {
    let program = ebpf.program_mut(CLAMP).ok_or(DatapathError::Missing(CLAMP))?;
    program.try_into().map_err(|error| DatapathError::Program { name: CLAMP, error })
}

/// The program that sends health checks through the tunnel.
pub(super) fn check(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, DatapathError> {
    let program = ebpf.program_mut(CHECK).ok_or(DatapathError::Missing(CHECK))?;
    program.try_into().map_err(|error| DatapathError::Program { name: CHECK, error })
}

/// An inner map that can take the place of those of outer map `outer`.
pub fn inner_map(outer: &'static str, capacity: u32) -> Result<MapData, DatapathError> {
    // Parsed once: a change of a thousand services makes a thousand rings.
    static MAPS: OnceLock<HashMap<String, aya_obj::Map>> = OnceLock::new();
    let maps = match MAPS.get() {
        Some(maps) => maps,
        None => {
            let maps = Object::parse(OBJECT)?.maps;
            MAPS.get_or_init(|| maps)
        }
    };
    let template = maps.get(outer).and_then(aya_obj::Map::inner).ok_or(DatapathError::Missing(outer))?;
    inner_map_like(&template, outer, capacity)
}

fn inner_map_like(template: &aya_obj::Map, outer: &'static str, capacity: u32) -> Result<MapData, DatapathError> {
    let definition = aya_obj::Map::new_from_params(
        template.map_type(),
        template.key_size(),
        template.value_size(),
        capacity,
        template.map_flags(),
    );
    MapData::create(definition, outer, None).map_err(|error| DatapathError::Map { name: outer, error })
}

/// The kernel adds it to a map of devices: a program that wrote an index there would write into the device itself
/// (`dev_map_init_map`).
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// What the object says of its maps, with `capacities` in place of its own.
fn shapes(object: &[u8], capacities: &Capacities) -> Result<BTreeMap<String, Shape>, DatapathError> {
    let shape = |(name, map): (String, aya_obj::Map)| {
        let shape = Shape {
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: capacities.get(name.as_str()).copied().unwrap_or(map.max_entries()),
            flags: map.map_flags() | if name == maps::DEVICES { BPF_F_RDONLY_PROG } else { 0 },
        };
        (name, shape)
    };
    Ok(Object::parse(object)?.maps.into_iter().map(shape).collect())
}

#[cfg(not(feature = "log"))]
pub(super) fn start_log(_: &mut Ebpf) {}

/// Prints what the programs log. Failing is no reason to stop: a program without a log call has no log.
#[cfg(feature = "log")]
pub(super) fn start_log(ebpf: &mut Ebpf) {
    use tokio::io::unix::AsyncFd;
    match aya_log::EbpfLogger::init(ebpf).map_err(|error| error.to_string()) {
        Ok(logger) => {
            // SAFETY: the logger keeps its ring buffer's descriptor open for as long as it lives.
            match unsafe { AsyncFd::register(logger) } {
                Ok(mut logger) => drop(tokio::spawn(async move {
                    while let Ok(mut guard) = logger.readable_mut().await {
                        guard.get_inner_mut().flush();
                        guard.clear_ready();
                    }
                })),
                Err(error) => tracing::warn!(%error, "no log of the datapath"),
            }
        }
        Err(error) => tracing::warn!(error, "no log of the datapath"),
    }
}
