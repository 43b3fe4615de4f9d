//! Loading the XDP programs, on maps that outlive the agent.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError},
    pin::PinError,
    programs::{ProgramError, Xdp},
};
use aya_obj::{Object, ParseError};
use lb_common::{decap, maps};
use tracing::{info, warn};

use super::{
    attach::{self, AttachError, Mode},
    interfaces::Interfaces,
    pins::{self, PINNED, PinsError, Shape},
    state::{DirectoryLock, StateError},
};

/// The programs and their maps, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// Why the datapath cannot be made or taken over. In every case no packet is treated differently than before.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The pin directory.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Another agent.
    #[error(transparent)]
    Lock(#[from] StateError),
    /// The interfaces, the kernel, the capabilities.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The object that was built in.
    #[error("the eBPF object in this program cannot be read: {0}")]
    Object(#[from] ParseError),
    /// The object has another content than this program expects.
    #[error("the eBPF object in this program has no {0}")]
    Missing(&'static str),
    /// A map or the object as a whole.
    #[error("loading the eBPF object: {0}")]
    Load(#[from] EbpfError),
    /// The verifier or the lack of a capability.
    #[error("the kernel refuses the program {name}: {error}")]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel said, the verifier's log included.
        error: ProgramError,
    },
    /// A map.
    #[error("map {name}: {error}")]
    Map {
        /// The map.
        name: &'static str,
        /// What happened.
        error: MapError,
    },
    /// Pinning the program.
    #[error("{}: {error}", .path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What happened.
        error: PinError,
    },
    /// Anything else of the operating system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What an agent wants for a datapath.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'s> {
    /// Where its maps and links are pinned.
    pub pins: &'s Path,
    /// Where it is attached.
    pub interfaces: &'s [String],
    /// How it is attached.
    pub mode: Mode,
    /// Capacity of the flow table.
    pub flows_max: u32,
}

/// The program `balancer`, loaded on its pinned maps.
pub struct Datapath {
    ebpf: Ebpf,
    interfaces: Interfaces,
    pins: PathBuf,
    adopted: bool,
    unfinished: Unfinished,
    _lock: DirectoryLock,
}

/// Pins of a datapath that is new and not attached yet: when the agent fails half-way, they go.
struct Unfinished {
    pins: Option<PathBuf>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(pins) = &self.pins
            && let Err(error) = pins::remove(pins)
        {
            warn!(pins = %pins.display(), %error, "cannot remove what was made");
        }
    }
}

impl Datapath {
    /// Loads the program; the maps that are pinned already are used as they are.
    ///
    /// Nothing that exists is touched before everything was checked: host, interfaces, pinned maps.
    pub fn load(spec: &Spec<'_>) -> Result<Self, DatapathError> {
        attach::check_host()?;
        let interfaces = Interfaces::inspect(spec.interfaces, spec.pins, spec.mode)?;
        pins::prepare(spec.pins)?;
        let lock = DirectoryLock::take(spec.pins)?;
        let capacities = BTreeMap::from([(maps::FLOWS, spec.flows_max)]);
        pins::check(spec.pins, &shapes(&capacities)?)?;

        let adopted = pins::exist(spec.pins);
        let unfinished = Unfinished { pins: (!adopted).then(|| spec.pins.to_owned()) };
        let mut loader = EbpfLoader::new();
        // No program reads kernel structures, so none needs the kernel's BTF; the maps keep their own.
        loader.btf(None);
        for (name, capacity) in &capacities {
            loader.map_max_entries(name, *capacity);
        }
        for name in DECAP_MAPS {
            loader.map_max_entries(name, 1);
        }
        for name in PINNED {
            loader.map_pin_path(name, spec.pins.join(name));
        }
        let mut ebpf = loader.load(OBJECT)?;
        start_log(&mut ebpf);
        let pins = spec.pins.to_owned();
        let mut datapath = Self { ebpf, interfaces, pins, adopted, unfinished, _lock: lock };
        datapath.load_program()?;
        info!(pins = %spec.pins.display(), adopted, "datapath loaded");
        Ok(datapath)
    }

    /// Whether the maps were there already.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Index of the cluster's interface.
    pub fn cluster_ifindex(&self) -> u32 {
        self.interfaces.cluster()
    }

    /// Warns when `peers` are reached another way than through the cluster's interface.
    pub fn check_way_to(&mut self, peers: &[Ipv4Addr]) -> Result<(), DatapathError> {
        Ok(self.interfaces.check_way_to(peers)?)
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Takes the map `name` out, as a typed one.
    pub fn map<T: TryFrom<Map, Error = MapError>>(&mut self, name: &'static str) -> Result<T, DatapathError> {
        let map = self.ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
        T::try_from(map).map_err(|error| DatapathError::Map { name, error })
    }

    /// Attaches to all interfaces. From now on packets are treated; the maps should be filled.
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        let program = program(&mut self.ebpf, "balancer")?;
        // After an error, an adopted datapath keeps what it has; the links of a new one go with its pins.
        self.interfaces.attach(program)?;
        self.pin_program()?;
        self.unfinished.pins = None;
        Ok(())
    }

    /// Attaches again where an interface has come back; true if one has.
    pub fn watch(&mut self) -> Result<bool, DatapathError> {
        Ok(self.interfaces.watch(program(&mut self.ebpf, "balancer")?))
    }

    /// Detaches from all interfaces and removes all maps.
    pub fn remove(self) -> Result<(), DatapathError> {
        self.interfaces.detach()?;
        Ok(pins::remove(&self.pins)?)
    }

    fn load_program(&mut self) -> Result<(), DatapathError> {
        let program = program(&mut self.ebpf, "balancer")?;
        program.load().map_err(|error| DatapathError::Program { name: "balancer", error })
    }

    /// The new program takes the old one's place in one step, so that there always is one.
    fn pin_program(&mut self) -> Result<(), DatapathError> {
        let program = program(&mut self.ebpf, "balancer")?;
        let (path, draft) = (self.pins.join(pins::PROGRAM), self.pins.join(pins::PROGRAM_DRAFT));
        if draft.exists() {
            fs::remove_file(&draft)?;
        }
        program.pin(&draft).map_err(|error| DatapathError::Pin { path: draft.clone(), error })?;
        Ok(fs::rename(&draft, &path)?)
    }
}

/// The maps of `decap`, which `balancer` does not use; and of `balancer`, which `decap` does not use, the large ones.
const DECAP_MAPS: [&str; 2] = [decap::DECAP_FROM, decap::DECAP_VIPS];
const LARGE_BALANCER_MAPS: [&str; 4] = [maps::FLOWS, maps::PENDING, maps::SERVICES, maps::BACKENDS];

/// Loads the object for `decap`: no pins, and the balancer's maps as small as they can be.
pub fn load_decap() -> Result<Ebpf, DatapathError> {
    attach::check_host()?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for name in LARGE_BALANCER_MAPS {
        loader.map_max_entries(name, 1);
    }
    let mut ebpf = loader.load(OBJECT)?;
    start_log(&mut ebpf);
    program(&mut ebpf, "decap")?.load().map_err(|error| DatapathError::Program { name: "decap", error })?;
    Ok(ebpf)
}

/// The XDP program `name`.
pub fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut Xdp, DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::Missing(name))?;
    program.try_into().map_err(|error| DatapathError::Program { name, error })
}

/// An inner map that can take the place of those of outer map `outer`.
pub fn inner_map(outer: &'static str, capacity: u32) -> Result<MapData, DatapathError> {
    let object = Object::parse(OBJECT)?;
    let template = object.maps.get(outer).and_then(aya_obj::Map::inner).ok_or(DatapathError::Missing(outer))?;
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

/// What the object says of its maps, with `capacities` in place of its own.
fn shapes(capacities: &BTreeMap<&'static str, u32>) -> Result<BTreeMap<String, Shape>, DatapathError> {
    let shape = |(name, map): (String, aya_obj::Map)| {
        let shape = Shape {
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: capacities.get(name.as_str()).copied().unwrap_or(map.max_entries()),
            flags: map.map_flags(),
        };
        (name, shape)
    };
    Ok(Object::parse(OBJECT)?.maps.into_iter().map(shape).collect())
}

#[cfg(not(feature = "log"))]
fn start_log(_: &mut Ebpf) {}

/// Prints what the programs log. Failing is no reason to stop: a program without a log call has no log.
#[cfg(feature = "log")]
fn start_log(ebpf: &mut Ebpf) {
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
