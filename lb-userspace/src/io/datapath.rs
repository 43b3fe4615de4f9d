//! Loading the XDP programs, on maps that outlive the agent.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{
        Map, MapData, MapError,
        xdp::{DevMapHash, XdpMapError},
    },
    pin::PinError,
    programs::{ProgramError, SchedClassifier, Xdp},
};
use aya_obj::{Object, ParseError, programs::XdpAttachType};
use lb_common::{decap, maps};
use tracing::{error, info, warn};

use super::{
    attach::{self, AttachError, Mode},
    clock::now_ns,
    interfaces::Interfaces,
    pins::{self, PINNED, PinsError, Shape},
    program::Program,
    rehearsal::{RehearsalError, rehearse},
    state::{DirectoryLock, StateError},
    upgrade::{self, Changing, Judgement, Tally, Trial, UpgradeError},
};
use crate::config::MultiBuffer;

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
    /// Pinning a map.
    #[error("{}: {error}", .path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What happened.
        error: PinError,
    },
    /// Which programs the links run.
    #[error(transparent)]
    Change(Box<UpgradeError>),
    /// This version's programs do something else than they should.
    #[error(transparent)]
    Rehearsal(#[from] RehearsalError),
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
    /// Whether frames may lie in several buffers.
    pub multi_buffer: MultiBuffer,
    /// Capacity of the table of IPv4 flows.
    pub flows_max: u32,
    /// Capacity of the table of IPv6 flows.
    pub flows_v6_max: u32,
}

impl Spec<'_> {
    /// The maps whose capacity is not the object's.
    ///
    /// Of tuples that have not earned an entry, a quarter of the flows is remembered.
    fn capacities(&self) -> BTreeMap<&'static str, u32> {
        let pending = |flows: u32| (flows / 4).clamp(PENDING_MIN, maps::PENDING_MAX);
        BTreeMap::from([
            (maps::FLOWS, self.flows_max),
            (maps::FLOWS_V6, self.flows_v6_max),
            (maps::PENDING, pending(self.flows_max)),
            (maps::PENDING_V6, pending(self.flows_v6_max)),
        ])
    }
}

/// An LRU keeps free elements per CPU, 128 at a time: a smaller one would forget what it has just been told.
const PENDING_MIN: u32 = 1 << 14;

/// One body, two programs: what differs is whether frames may lie in several buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// Frames lie in one buffer.
    Linear,
    /// They may lie in several (kernel 5.18).
    MultiBuffer,
}

/// The largest MTU for which every driver keeps a frame in one buffer of a page: 4096 bytes, less headroom and tailroom.
///
/// veth allows 3,506; Intel's drivers, whose buffers are of 3 KiB, 3,046.
const LINEAR_MTU_MAX: u32 = 3_000;

impl Entry {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Linear, Self::MultiBuffer];

    /// The one for an interface of that MTU.
    ///
    /// In generic mode the kernel makes frames linear before the program sees them.
    pub fn of(multi_buffer: MultiBuffer, mode: Mode, mtu: u32) -> Self {
        match multi_buffer {
            MultiBuffer::On => Self::MultiBuffer,
            MultiBuffer::Auto if mode == Mode::Native && mtu > LINEAR_MTU_MAX => Self::MultiBuffer,
            MultiBuffer::Auto | MultiBuffer::Off => Self::Linear,
        }
    }

    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Linear => "balancer",
            Self::MultiBuffer => "balancer_frags",
        }
    }

    /// The same of the program that takes outer headers off.
    pub const fn decap(self) -> &'static str {
        match self {
            Self::Linear => "decap",
            Self::MultiBuffer => "decap_frags",
        }
    }

    /// Where the program that the links run is pinned.
    pub const fn pin(self) -> &'static str {
        match self {
            Self::Linear => pins::PROGRAM,
            Self::MultiBuffer => pins::PROGRAM_FRAGS,
        }
    }

    /// Where the one that is about to take its place is.
    pub fn next_pin(self) -> String {
        format!("{}_new", self.pin())
    }

    /// Where the one before it is.
    pub fn previous_pin(self) -> String {
        format!("{}_old", self.pin())
    }
}

/// The programs that the interfaces need, loaded on their pinned maps.
pub struct Datapath {
    ebpf: Ebpf,
    interfaces: Interfaces,
    devices: DevMapHash<MapData>,
    pins: PathBuf,
    adopted: bool,
    unfinished: Unfinished,
    step: Option<Step>,
    _lock: DirectoryLock,
}

/// What attaching will do to the programs.
enum Step {
    /// This version's are the first, or those that are there know other maps.
    Attach(Changing),
    /// Those that are pinned stay: they are the same, or this version's may not take their place.
    Keep(Changing),
    /// This version's take their place and are watched; what the counters said a while before.
    Switch(Changing, Tally, Instant),
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
        let interfaces = Interfaces::inspect(spec.interfaces, spec.pins, spec.mode, spec.multi_buffer)?;
        pins::prepare(spec.pins)?;
        let lock = DirectoryLock::take(spec.pins)?;
        let capacities = spec.capacities();
        pins::check(spec.pins, &shapes(OBJECT, &capacities)?)?;

        let adopted = pins::exist(spec.pins);
        let unfinished = Unfinished { pins: (!adopted).then(|| spec.pins.to_owned()) };
        let mut ebpf = load_on(spec.pins, OBJECT, &capacities)?;
        start_log(&mut ebpf);
        let pins = spec.pins.to_owned();
        let devices = take(&mut ebpf, maps::DEVICES)?;
        let changing = Changing::begin(spec.pins).map_err(change_failed)?;
        let step = Some(step(changing, &mut ebpf, &interfaces.entries(), spec.pins)?);
        let datapath = Self { ebpf, interfaces, devices, pins, adopted, unfinished, step, _lock: lock };
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

    /// Indexes of all interfaces that it is attached to.
    pub fn ifindexes(&self) -> Vec<u32> {
        self.interfaces.indexes()
    }

    /// Warns when `peers` are reached another way than through the cluster's interface.
    pub fn check_way_to(&mut self, peers: &[IpAddr]) -> Result<(), DatapathError> {
        Ok(self.interfaces.check_way_to(peers)?)
    }

    /// Where the maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Takes the map `name` out, as a typed one.
    pub fn map<T: TryFrom<Map, Error = MapError>>(&mut self, name: &'static str) -> Result<T, DatapathError> {
        take(&mut self.ebpf, name)
    }

    /// Attaches to all interfaces. From now on packets are treated; the maps should be filled.
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        self.fill_devices()?;
        let entries = self.interfaces.entries();
        let Some(step) = self.step.take() else { return Ok(()) };
        let (Step::Attach(changing) | Step::Keep(changing) | Step::Switch(changing, ..)) = &step;
        let is_kept = |entry: &Entry| matches!(step, Step::Keep(_)) && self.pins.join(entry.pin()).exists();
        let new: Vec<Entry> = entries.iter().copied().filter(|entry| !is_kept(entry)).collect();
        for entry in &new {
            let program = program(&mut self.ebpf, entry.program())?;
            changing.prepare(*entry, program).map_err(change_failed)?;
        }
        let began = match &step {
            Step::Switch(_, _, measured) => {
                std::thread::sleep(upgrade::BASELINE.saturating_sub(measured.elapsed()));
                changing.tally().map_err(change_failed)?
            }
            Step::Attach(_) | Step::Keep(_) => Tally::default(),
        };
        let open = |entry: Entry| {
            let name = if new.contains(&entry) { entry.next_pin() } else { entry.pin().to_owned() };
            changing.open(&name).map_err(change_failed)
        };
        // After an error, an adopted datapath keeps what it has; the links of a new one go with its pins.
        if let Err(error) = self.interfaces.attach(open) {
            if self.adopted {
                changing.settle().map_err(change_failed)?;
            }
            return Err(error);
        }
        let trial = match &step {
            Step::Switch(_, before, _) => {
                Some(Trial { began_ns: now_ns(), began, baseline_ppm: (began - *before).lost_ppm() })
            }
            Step::Attach(_) | Step::Keep(_) => None,
        };
        if !new.is_empty() {
            changing.commit(&new, trial.as_ref()).map_err(change_failed)?;
        }
        // A program that no interface runs any more goes.
        for entry in Entry::ALL.iter().filter(|entry| !entries.contains(entry)) {
            changing.remove(entry.pin()).map_err(change_failed)?;
            changing.remove(&entry.previous_pin()).map_err(change_failed)?;
        }
        if trial.is_some() {
            info!(seconds = upgrade::WINDOW.as_secs(), "another program is attached; it is watched");
        }
        self.unfinished.pins = None;
        Ok(())
    }

    /// Attaches again where an interface has come back; true if one has. Judges an upgrade that is being watched.
    pub fn watch(&mut self) -> Result<bool, DatapathError> {
        let pins = &self.pins;
        let open = |entry: Entry| {
            Xdp::from_pin(pins.join(entry.pin()), XdpAttachType::Interface)
                .map_err(|error| DatapathError::Program { name: entry.program(), error })
        };
        let has_changed = self.interfaces.watch(open)?;
        if has_changed {
            self.fill_devices()?;
        }
        if upgrade::is_watched(&self.pins) {
            match Changing::begin(&self.pins).and_then(|changing| changing.judge()).map_err(change_failed)? {
                Some(Judgement::Bad(Tally { lost, treated })) => error!(
                    lost,
                    treated, "the new program dropped too much and was rolled back: the one before is attached again"
                ),
                Some(Judgement::Good(Tally { lost, treated })) => {
                    info!(lost, treated, "the new program has been watched and stays");
                }
                Some(Judgement::Watching { .. }) | None => {}
            }
        }
        Ok(has_changed)
    }

    /// Detaches from all interfaces and removes all maps.
    pub fn remove(self) -> Result<(), DatapathError> {
        self.interfaces.detach()?;
        Ok(pins::remove(&self.pins)?)
    }

    /// Packets may leave by every interface that the program is on. The kernel takes an interface out that goes.
    fn fill_devices(&mut self) -> Result<(), DatapathError> {
        for ifindex in self.interfaces.indexes() {
            let failed = |error| match error {
                XdpMapError::MapError(error) => DatapathError::Map { name: maps::DEVICES, error },
                XdpMapError::ChainedProgramNotSupported => DatapathError::Missing("chained program, and needs none"),
            };
            self.devices.insert(ifindex, ifindex, None, 0).map_err(failed)?;
        }
        Ok(())
    }
}

/// What attaching must do, seen that these programs are needed and what is pinned.
fn step(changing: Changing, ebpf: &mut Ebpf, entries: &[Entry], pins: &Path) -> Result<Step, DatapathError> {
    let mut pinned = Vec::new();
    for entry in Entry::ALL {
        let found = changing.pinned(entry.pin()).map_err(change_failed)?;
        pinned.extend(found.map(|program| (entry, program)));
    }
    // Somebody removed pins of maps: what the program knows is not what the agent will write.
    let are_current =
        pinned.iter().all(|(_, program)| program.uses(&pins.join(maps::NODE)) && program.uses(&pins.join(maps::FLOWS)));
    let old = |entry: &Entry| pinned.iter().find(|(other, _)| other == entry).map(|(_, program)| program);
    if pinned.is_empty() || !are_current {
        for entry in entries {
            load_balancer(ebpf, *entry)?;
        }
        return Ok(Step::Attach(changing));
    }
    let may_stay = entries.iter().all(|entry| old(entry).is_some());
    let mut is_same = true;
    for entry in entries {
        match load_balancer(ebpf, *entry) {
            Ok(new)
                if changing.is_refused(new.fingerprint)
                    && may_stay
                    && old(entry).is_some_and(|old| old.fingerprint != new.fingerprint) =>
            {
                warn!(program = %new.fingerprint, "this version's program was rolled back here: the one before goes on (`tandem datapath upgrade` tries again)");
                return Ok(Step::Keep(changing));
            }
            Ok(new) => is_same &= old(entry).is_none_or(|old| old.fingerprint == new.fingerprint),
            Err(error) if may_stay => {
                error!(%error, "this version's program cannot be loaded: the one before goes on");
                return Ok(Step::Keep(changing));
            }
            Err(error) => return Err(error),
        }
    }
    if is_same {
        return Ok(Step::Keep(changing));
    }
    let (before, measured) = (changing.tally().map_err(change_failed)?, Instant::now());
    match rehearse(OBJECT, Some(pins)) {
        Ok(golden) => {
            info!(
                golden = golden.cases,
                ms = golden.took.as_millis(),
                "this version's program passed the golden packets"
            );
            Ok(Step::Switch(changing, before, measured))
        }
        Err(error) if may_stay => {
            error!(%error, "this version's program is not attached: the one before goes on");
            Ok(Step::Keep(changing))
        }
        Err(error) => Err(DatapathError::Rehearsal(error)),
    }
}

/// Loads `object` on the maps pinned in `pins`, which must be there and fit: for a process beside the agent.
pub fn load_beside(pins: &Path, object: &[u8]) -> Result<Ebpf, DatapathError> {
    // Of these the configuration decides how large they are, not the object.
    let mut capacities = BTreeMap::new();
    for name in [maps::FLOWS, maps::FLOWS_V6, maps::PENDING, maps::PENDING_V6] {
        let map = MapData::from_pin(pins.join(name)).and_then(|map| map.info());
        capacities.insert(name, map.map_err(|error| DatapathError::Map { name, error })?.max_entries());
    }
    pins::check(pins, &shapes(object, &capacities)?)?;
    load_on(pins, object, &capacities)
}

/// Loads the program of `entry`; which one it is.
pub fn load_balancer(ebpf: &mut Ebpf, entry: Entry) -> Result<Program, DatapathError> {
    load_program(ebpf, entry.program())?;
    let info = program(ebpf, entry.program())?.info();
    let info = info.map_err(|error| DatapathError::Program { name: entry.program(), error })?;
    Ok(Program::of(&info)?)
}

fn load_on(pins: &Path, object: &[u8], capacities: &BTreeMap<&'static str, u32>) -> Result<Ebpf, DatapathError> {
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
        loader.map_pin_path(name, pins.join(name));
    }
    Ok(loader.load(object)?)
}

fn change_failed(error: UpgradeError) -> DatapathError {
    DatapathError::Change(Box::new(error))
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    program(ebpf, name)?.load().map_err(|error| DatapathError::Program { name, error })
}

/// The map `name`, as a typed one.
pub fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DatapathError> {
    let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
    T::try_from(map).map_err(|error| DatapathError::Map { name, error })
}

/// The maps of `decap`, which `balancer` does not use; and of `balancer`, which `decap` does not use, the large ones.
const DECAP_MAPS: [&str; 2] = [decap::DECAP_FROM, decap::DECAP_VIPS];
const LARGE_BALANCER_MAPS: [&str; 10] = [
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

/// The kernel adds it to a map of devices: a program that wrote an index there would write into the device itself
/// (`dev_map_init_map`).
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// What the object says of its maps, with `capacities` in place of its own.
fn shapes(object: &[u8], capacities: &BTreeMap<&'static str, u32>) -> Result<BTreeMap<String, Shape>, DatapathError> {
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
