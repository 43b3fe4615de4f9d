//! Loading the XDP programs, on maps that outlive the agent.

mod entry;
mod object;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use aya::{
    Ebpf, EbpfError,
    maps::{
        HashMap, Map, MapData, MapError, MapInfo,
        xdp::{DevMapHash, XdpMapError},
    },
    pin::PinError,
    programs::{ProgramError, Xdp, tc::SchedClassifierLink},
};
use aya_obj::{ParseError, programs::XdpAttachType};
use lb_common::{
    flow::{FlowEntry, FlowKeyV4, FlowKeyV6},
    maps,
};
use tracing::{error, info, warn};

use super::{
    attach::{self, AttachError, Mode},
    clock::now_ns,
    copying::{Copying, How},
    egress,
    interfaces::Interfaces,
    layouts::CURRENT,
    pins::{self, Fit, PinsError},
    program::Fingerprint,
    rehearsal::{RehearsalError, rehearse},
    state::{DirectoryLock, StateError},
    upgrade::{self, Changing, Judgement, Tally, Trial, UpgradeError},
};
use crate::config::MultiBuffer;

pub use entry::Entry;
pub use object::{
    Capacities, OBJECT, capacities_beside, clamp, fit, inner_map, load_balancer, load_decap, load_on, program, take,
};

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
    /// Other tables need another program.
    #[error(
        "program {0} was rolled back here, and is needed for the tables that are wanted (node.flows_max, node.flows_v6_max, or \
         this version's layout): start with those of before, or use another version. Nothing was changed"
    )]
    Refused(Fingerprint),
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

/// The programs that the interfaces need, loaded on their pinned maps.
pub struct Datapath {
    ebpf: Ebpf,
    interfaces: Interfaces,
    devices: DevMapHash<MapData>,
    pins: PathBuf,
    adopted: bool,
    unfinished: Unfinished,
    step: Option<(Changing, Step)>,
    /// What the tables that it was loaded on are still filled from.
    copying: Option<Copying>,
    tables: TableIds,
    _lock: DirectoryLock,
}

/// What attaching will do to the programs.
enum Step {
    /// This version's are the first, or those that are there know other maps.
    Attach,
    /// Those that are pinned stay: they are the same, or this version's may not take their place.
    Keep,
    /// This version's take their place; if they are watched, what the counters said a while before.
    Switch(Option<(Tally, Instant)>),
}

/// The kernel's numbers for the flow tables.
type TableIds = [u32; 2];

/// The flow tables of both families.
pub type FlowMaps = (HashMap<MapData, FlowKeyV4, FlowEntry>, HashMap<MapData, FlowKeyV6, FlowEntry>);

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
        let changing = Changing::begin(spec.pins).map_err(change_failed)?;
        let capacities = object::capacities(spec.flows_max, spec.flows_v6_max);
        let fit = fit(spec.pins, OBJECT, &capacities)?;

        let adopted = pins::exist(spec.pins);
        let unfinished = Unfinished { pins: (!adopted).then(|| spec.pins.to_owned()) };
        let loaded = load(&changing, &interfaces, spec.pins, &capacities, &fit);
        if loaded.is_err() && adopted {
            // New tables take memory.
            changing.settle().map_err(change_failed)?;
        }
        let Loaded { mut ebpf, step, copying, tables } = loaded?;
        let pins = spec.pins.to_owned();
        let devices = take(&mut ebpf, maps::DEVICES)?;
        let step = Some((changing, step));
        let datapath =
            Self { ebpf, interfaces, devices, pins, adopted, unfinished, step, copying, tables, _lock: lock };
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

    /// Has health checks leave by `interfaces` through the tunnel, while the answer lives.
    pub fn attach_checks(&mut self, interfaces: &[String]) -> Result<Vec<SchedClassifierLink>, DatapathError> {
        let name = object::CHECK;
        let program = object::check(&mut self.ebpf)?;
        let failed = |error| DatapathError::Program { name, error };
        if program.fd().is_err() {
            program.load().map_err(failed)?;
        }
        interfaces.iter().map(|interface| egress::attach(program, interface).map_err(failed)).collect()
    }

    /// Attaches to all interfaces. From now on packets are treated; the maps should be filled.
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        self.fill_devices()?;
        let entries = self.interfaces.entries();
        let Some((changing, step)) = self.step.take() else { return Ok(()) };
        let is_kept = |entry: &Entry| matches!(step, Step::Keep) && self.pins.join(entry.pin()).exists();
        let new: Vec<Entry> = entries.iter().copied().filter(|entry| !is_kept(entry)).collect();
        let began = match &step {
            Step::Switch(Some((before, measured))) => {
                std::thread::sleep(upgrade::BASELINE.saturating_sub(measured.elapsed()));
                Some((*before, changing.tally().map_err(change_failed)?))
            }
            Step::Switch(None) | Step::Attach | Step::Keep => None,
        };
        // After an error, an adopted datapath keeps what it has; the links of a new one go with its pins.
        if let Err(error) = self.switch(&changing, &new) {
            if self.adopted {
                changing.settle().map_err(change_failed)?;
            }
            return Err(error);
        }
        let trial =
            began.map(|(before, began)| Trial { began_ns: now_ns(), began, baseline_ppm: (began - before).lost_ppm() });
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

    /// Pins the programs that are `new` and puts them into the links, with the tables filled before and after.
    fn switch(&mut self, changing: &Changing, new: &[Entry]) -> Result<(), DatapathError> {
        let follow = |copying: &mut Option<Copying>| {
            copying
                .as_mut()
                .map_or(Ok(()), |copying| changing.follow_tables(copying, How::Merge))
                .map_err(change_failed)
        };
        follow(&mut self.copying)?;
        for entry in new {
            let program = program(&mut self.ebpf, entry.program())?;
            changing.prepare(*entry, program).map_err(change_failed)?;
        }
        let open = |entry: Entry| {
            let name = if new.contains(&entry) { entry.next_pin() } else { entry.pin().to_owned() };
            changing.open(&name).map_err(change_failed)
        };
        self.interfaces.attach(open)?;
        follow(&mut self.copying)?;
        self.copying = None;
        Ok(())
    }

    /// The flow tables that somebody has put in the place of those that are known here.
    pub fn other_tables(&mut self) -> Result<Option<FlowMaps>, DatapathError> {
        let found = table_ids(&self.pins, &[], &self.pins)?;
        if found == self.tables {
            return Ok(None);
        }
        let maps = (pinned(&self.pins, maps::FLOWS)?, pinned(&self.pins, maps::FLOWS_V6)?);
        self.tables = found;
        Ok(Some(maps))
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

/// This version's programs on the pinned maps, or on tables that are about to take the place of some.
struct Loaded {
    ebpf: Ebpf,
    step: Step,
    copying: Option<Copying>,
    tables: TableIds,
}

fn load(
    changing: &Changing,
    interfaces: &Interfaces,
    pins: &Path,
    capacities: &Capacities,
    fit: &Fit,
) -> Result<Loaded, DatapathError> {
    let new = fit.replaced();
    let beside = if new.is_empty() { pins.to_owned() } else { changing.begin_tables().map_err(change_failed)? };
    let mut ebpf = load_on(pins, (&beside, new), OBJECT, capacities)?;
    object::start_log(&mut ebpf);
    let step = step(changing, &mut ebpf, &interfaces.entries(), pins, fit)?;
    let layout = match fit {
        Fit::Same => None,
        Fit::Resized(_) => Some(&CURRENT),
        Fit::Older(layout) => Some(*layout),
    };
    // Before anything reads them: an agent that finds no flows takes the cluster for a new one.
    let copying = layout.map(|layout| changing.fill_tables(layout)).transpose().map_err(change_failed)?;
    if matches!(fit, Fit::Older(_)) {
        pins::remove_rings(pins)?;
    }
    Ok(Loaded { ebpf, step, copying, tables: table_ids(pins, new, &beside)? })
}

/// What attaching must do, seen that these programs are needed and what is pinned.
fn step(
    changing: &Changing,
    ebpf: &mut Ebpf,
    entries: &[Entry],
    pins: &Path,
    fit: &Fit,
) -> Result<Step, DatapathError> {
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
        return Ok(Step::Attach);
    }
    let has_all = entries.iter().all(|entry| old(entry).is_some());
    let tables_stay = matches!(fit, Fit::Same);
    let may_stay = has_all && tables_stay;
    let mut is_same = true;
    for entry in entries {
        let is_other = |new: Fingerprint| old(entry).is_some_and(|old| old.fingerprint != new);
        match load_balancer(ebpf, *entry) {
            Ok(new) if changing.is_refused(new.fingerprint) && has_all && is_other(new.fingerprint) => {
                if !tables_stay {
                    return Err(DatapathError::Refused(new.fingerprint));
                }
                warn!(program = %new.fingerprint, "this version's program was rolled back here: the one before goes on (`tandem datapath upgrade` tries again)");
                return Ok(Step::Keep);
            }
            Ok(new) => is_same &= !is_other(new.fingerprint),
            Err(error) if may_stay => {
                error!(%error, "this version's program cannot be loaded: the one before goes on");
                return Ok(Step::Keep);
            }
            Err(error) => return Err(error),
        }
    }
    if is_same && tables_stay {
        return Ok(Step::Keep);
    }
    let is_converted = matches!(fit, Fit::Older(_));
    // What was counted in another layout cannot be compared, and nobody writes tables of it any more: no way back.
    let before = if is_converted { None } else { Some((changing.tally().map_err(change_failed)?, Instant::now())) };
    if is_same {
        return Ok(Step::Switch(before));
    }
    match rehearse(OBJECT, (!is_converted).then_some(pins)) {
        Ok(golden) => {
            info!(
                golden = golden.cases,
                ms = golden.took.as_millis(),
                "this version's program passed the golden packets"
            );
            Ok(Step::Switch(before))
        }
        Err(error) if may_stay => {
            error!(%error, "this version's program is not attached: the one before goes on");
            Ok(Step::Keep)
        }
        Err(error) => Err(DatapathError::Rehearsal(error)),
    }
}

fn change_failed(error: UpgradeError) -> DatapathError {
    DatapathError::Change(Box::new(error))
}

/// Of the tables pinned in `pins`; of those that are `new`, in the other directory.
fn table_ids(pins: &Path, new: &[&str], beside: &Path) -> Result<TableIds, DatapathError> {
    let id = |name: &'static str| {
        let directory = if new.contains(&name) { beside } else { pins };
        let info = MapInfo::from_pin(directory.join(name)).map_err(|error| DatapathError::Map { name, error })?;
        Ok::<_, DatapathError>(info.id())
    };
    Ok([id(maps::FLOWS)?, id(maps::FLOWS_V6)?])
}

fn pinned<M: TryFrom<Map, Error = MapError>>(pins: &Path, name: &'static str) -> Result<M, DatapathError> {
    let map = MapData::from_pin(pins.join(name)).and_then(Map::from_map_data).and_then(M::try_from);
    map.map_err(|error| DatapathError::Map { name, error })
}
