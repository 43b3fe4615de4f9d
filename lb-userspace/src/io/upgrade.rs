//! Another program in the place of the one that the links run, and back. See docs/design/0012.
//!
//! All state is in the pin directory; `Changing::begin` puts in order what a crash has left, at whatever step.

mod tables;
mod trial;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;
use tracing::{info, warn};

use super::{
    attach::{self, AttachError, LINK_PREFIX},
    bpf::link_facts,
    clock::now_ns,
    copying::{Copying, How},
    datapath::{self, DatapathError, Entry},
    layouts::CURRENT,
    pins::{self, Fit},
    program::{Fingerprint, Program},
    rehearsal::{RehearsalError, Report, rehearse},
    state::{DirectoryLock, StateError},
};

pub use trial::{BASELINE, Judgement, Tally, Trial, WINDOW};

/// Names of the programs that were rolled back begin with it.
const REFUSED_PREFIX: &str = "refused_";
/// How long to wait for another process that changes programs: each does so for milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often an upgrade is judged.
const JUDGED_EVERY: Duration = Duration::from_millis(100);
/// An agent has noticed by then that other tables are pinned: it looks every second.
const NOTICED: Duration = Duration::from_secs(3);

/// Why programs were not changed. Unless it says otherwise, every link runs what it ran before.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// No pins.
    #[error("no datapath is pinned at {}; nothing was changed (tandem run attaches one; other pins: --pin-dir DIR)", .0.display())]
    Absent(PathBuf),
    /// Another process changes programs and does not come to an end.
    #[error("another command is changing the programs at {}; nothing was changed, try again", .0.display())]
    Busy(PathBuf),
    /// Nothing to put another program into.
    #[error("the datapath at {} is attached to no interface, so there is nothing to replace: start the agent. Nothing was changed", .0.display())]
    NoLinks(PathBuf),
    /// Somebody else's.
    #[error("{interface} runs program {program}, which is not pinned at {}: somebody else put it there. Nothing was changed", .pins.display())]
    Foreign {
        /// The interface.
        interface: String,
        /// The program's id.
        program: u32,
        /// The pin directory.
        pins: PathBuf,
    },
    /// Nothing to go back to.
    #[error("no earlier program is pinned at {}; nothing was changed", .0.display())]
    NoPrevious(PathBuf),
    /// It cannot be loaded, or the maps are of another layout.
    #[error("{0}. The program that is attached goes on, nothing was changed")]
    Load(#[source] Box<DatapathError>),
    /// It does not do what it should.
    #[error("{0}\nThe program that is attached goes on, nothing was changed")]
    Rehearsal(#[from] RehearsalError),
    /// The agent of another version must come first.
    #[error(
        "the tables at {} are of another layout ({layout}), which this version's agent converts when it starts: stop the agent \
         that runs and start this version's; no packet is lost. Nothing was changed", .pins.display()
    )]
    Layout {
        /// The pin directory.
        pins: PathBuf,
        /// What they are called.
        layout: &'static str,
    },
    /// More flows than entries.
    #[error(
        "the table holds {flows} flows, {setting} leaves room for {room} of them. Nothing was changed; choose more"
    )]
    TooSmall {
        /// Which table.
        setting: &'static str,
        /// What is in it.
        flows: u64,
        /// What would be.
        room: u64,
    },
    /// The kernel refuses a link; the other links were put back.
    #[error("{0}. Every link runs what it ran before")]
    Attach(#[from] AttachError),
    /// A pin cannot be handled.
    #[error("{}: {error}. What was begun is put in order by the next command or start of an agent", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// What an upgrade shall do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Only show it the golden packets.
    pub only_check: bool,
    /// Capacity of the table of IPv4 flows, if another than it has.
    pub flows_max: Option<u32>,
    /// Capacity of the table of IPv6 flows, if another than it has.
    pub flows_v6_max: Option<u32>,
}

/// What an upgrade has come to.
#[derive(Debug)]
pub enum Upgraded {
    /// The program is attached already.
    Same(Fingerprint),
    /// It passed; nothing was changed, as was wished.
    Passed(Report),
    /// It runs on these interfaces and has been watched.
    Done {
        /// Where.
        interfaces: Vec<String>,
        /// Which program it is.
        fingerprint: Fingerprint,
        /// The golden packets.
        golden: Report,
        /// What happened while it was watched.
        tally: Tally,
    },
    /// It dropped too much, and the program before it is back.
    RolledBack {
        /// What happened while it was watched.
        tally: Tally,
        /// The share that was lost before, in millionths.
        baseline_ppm: u32,
    },
}

/// The right to change which programs the links run; nobody else has it meanwhile.
pub struct Changing {
    pins: PathBuf,
    _lock: DirectoryLock,
}

/// A pinned link.
struct Link {
    interface: String,
    pin: PathBuf,
    program_id: u32,
}

/// Puts the programs of `object` in the place of those that the links pinned in `pins` run, on tables of the capacities that
/// are wished, and watches them for `WINDOW`.
pub fn upgrade(pins: &Path, object: &[u8], wish: &Wish) -> Result<Upgraded, UpgradeError> {
    attach::check_host().map_err(|error| not_loaded(error.into()))?;
    if !pins::exist(pins) {
        return Err(UpgradeError::Absent(pins.to_owned()));
    }
    let changing = Changing::begin(pins)?;
    let replaced = changing.replace(object, wish);
    if !matches!(replaced, Ok(Replaced::Now(_))) {
        // New tables, prepared programs.
        changing.settle()?;
    }
    // The agent and other commands may have their turn; whoever is there, judges.
    drop(changing);
    match replaced? {
        Replaced::Not(upgraded) => Ok(upgraded),
        Replaced::Now(switch) => switch.watch(pins),
    }
}

fn not_loaded(error: DatapathError) -> UpgradeError {
    UpgradeError::Load(Box::new(error))
}

/// Whether the links run other programs now.
enum Replaced {
    Not(Upgraded),
    Now(Box<Switch>),
}

/// Another program was attached.
struct Switch {
    interfaces: Vec<String>,
    fingerprint: Fingerprint,
    golden: Report,
    trial: Trial,
    tables: Option<Copying>,
}

impl Switch {
    /// Waits for the judgement, whoever speaks it.
    fn watch(mut self, pins: &Path) -> Result<Upgraded, UpgradeError> {
        let Trial { began, baseline_ppm, .. } = self.trial;
        let switched = Instant::now();
        loop {
            thread::sleep(JUDGED_EVERY);
            let changing = Changing::begin(pins)?;
            if switched.elapsed() >= NOTICED
                && let Some(mut tables) = self.tables.take()
            {
                changing.follow_tables(&mut tables, How::Missing)?;
            }
            let tally = changing.tally()? - began;
            match changing.judge()? {
                Some(Judgement::Watching { .. }) => {}
                Some(Judgement::Bad(tally)) => return Ok(Upgraded::RolledBack { tally, baseline_ppm }),
                // An agent was faster.
                None if changing.is_refused(self.fingerprint) => {
                    return Ok(Upgraded::RolledBack { tally, baseline_ppm });
                }
                Some(Judgement::Good(_)) | None => {
                    let Self { interfaces, fingerprint, golden, .. } = self;
                    return Ok(Upgraded::Done { interfaces, fingerprint, golden, tally });
                }
            }
        }
    }
}

/// Puts the programs that the links pinned in `pins` ran before back into them; which ones these are.
pub fn roll_back(pins: &Path) -> Result<Vec<Program>, UpgradeError> {
    if !pins::exist(pins) {
        return Err(UpgradeError::Absent(pins.to_owned()));
    }
    Changing::begin(pins)?.roll_back()
}

/// Whether an upgrade in `pins` is being watched; takes no lock.
pub fn is_watched(pins: &Path) -> bool {
    trial_in(&pins.join(pins::UPGRADE)).is_some()
}

/// The programs that were rolled back in `pins`, and how much longer an upgrade is watched, in milliseconds; takes no lock.
pub fn notes(pins: &Path) -> (Vec<String>, Option<u64>) {
    let directory = pins.join(pins::UPGRADE);
    let mut refused: Vec<String> =
        names(&directory).filter_map(|name| name.strip_prefix(REFUSED_PREFIX).map(str::to_owned)).collect();
    refused.sort();
    (refused, trial_in(&directory).map(|trial| trial.left(now_ns()).as_millis() as u64))
}

impl Changing {
    /// Waits for its turn, and puts in order what a crash has left.
    pub fn begin(pins: &Path) -> Result<Self, UpgradeError> {
        let directory = pins.join(pins::UPGRADE);
        let failed = failed(&directory);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let began = Instant::now();
        let lock = loop {
            match DirectoryLock::take(&directory) {
                Ok(lock) => break lock,
                Err(StateError::InUse(_)) if began.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
                Err(StateError::InUse(_)) => return Err(UpgradeError::Busy(pins.to_owned())),
                Err(other) => return Err(failed(io::Error::other(other))),
            }
        };
        let changing = Self { pins: pins.to_owned(), _lock: lock };
        changing.settle()?;
        Ok(changing)
    }

    /// Everything of an upgrade but the watch; on the way out something may have to be put in order.
    fn replace(&self, object: &[u8], wish: &Wish) -> Result<Replaced, UpgradeError> {
        let pins = self.pins.as_path();
        let links = self.links()?;
        let plan = self.plan(&links)?;
        let mut entries: Vec<Entry> = plan.iter().map(|(_, entry)| *entry).collect();
        entries.sort();
        entries.dedup();

        let capacities = datapath::capacities_beside(pins, wish.flows_max, wish.flows_v6_max).map_err(not_loaded)?;
        let fit = datapath::fit(pins, object, &capacities).map_err(not_loaded)?;
        let resized = match fit {
            Fit::Same => Vec::new(),
            Fit::Resized(names) => names,
            Fit::Older(layout) => return Err(UpgradeError::Layout { pins: pins.to_owned(), layout: layout.name }),
        };
        let beside = if resized.is_empty() { pins.to_owned() } else { self.begin_tables()? };
        let mut ebpf = datapath::load_on(pins, (&beside, &resized), object, &capacities).map_err(not_loaded)?;
        let mut is_same = true;
        let mut fingerprint = None;
        for entry in &entries {
            let new = datapath::load_balancer(&mut ebpf, *entry).map_err(not_loaded)?;
            let old = self.pinned(entry.pin())?.map(|old| old.fingerprint);
            is_same &= old == Some(new.fingerprint);
            fingerprint.get_or_insert(new.fingerprint);
        }
        let fingerprint = fingerprint.expect("there is a link, so there is an entry");
        if is_same && resized.is_empty() && !wish.only_check {
            return Ok(Replaced::Not(Upgraded::Same(fingerprint)));
        }
        let golden = rehearse(object, Some(pins))?;
        if wish.only_check {
            return Ok(Replaced::Not(Upgraded::Passed(golden)));
        }
        let mut tables = if resized.is_empty() { None } else { Some(self.fill_tables(&CURRENT)?) };

        let first = self.tally()?;
        thread::sleep(BASELINE);
        if let Some(tables) = &mut tables {
            self.follow_tables(tables, How::Merge)?;
        }
        for entry in &entries {
            self.prepare(*entry, datapath::program(&mut ebpf, entry.program()).map_err(not_loaded)?)?;
        }
        let began = self.tally()?;
        for (link, entry) in &plan {
            attach::replace(&link.pin, &mut self.open(&entry.next_pin())?)?;
        }
        if let Some(tables) = &mut tables {
            self.follow_tables(tables, How::Merge)?;
        }
        let trial = Trial { began_ns: now_ns(), began, baseline_ppm: (began - first).lost_ppm() };
        self.commit(&entries, Some(&trial))?;
        // The operator's word counts more than an earlier rollback.
        self.forgive(fingerprint)?;
        let interfaces = links.into_iter().map(|link| link.interface).collect();
        Ok(Replaced::Now(Box::new(Switch { interfaces, fingerprint, golden, trial, tables })))
    }

    /// Which program each link runs.
    fn plan<'l>(&self, links: &'l [Link]) -> Result<Vec<(&'l Link, Entry)>, UpgradeError> {
        if links.is_empty() {
            return Err(UpgradeError::NoLinks(self.pins.clone()));
        }
        let mut plan = Vec::new();
        for link in links {
            let runs =
                |entry: &Entry| matches!(self.pinned(entry.pin()), Ok(Some(program)) if program.id == link.program_id);
            let foreign = || UpgradeError::Foreign {
                interface: link.interface.clone(),
                program: link.program_id,
                pins: self.pins.clone(),
            };
            plan.push((link, Entry::ALL.into_iter().find(runs).ok_or_else(foreign)?));
        }
        Ok(plan)
    }

    /// The program pinned under that name.
    pub fn pinned(&self, name: &str) -> Result<Option<Program>, UpgradeError> {
        let path = self.pins.join(name);
        Program::pinned(&path).map_err(failed(&path))
    }

    /// Opens the program pinned under that name.
    pub fn open(&self, name: &str) -> Result<Xdp, UpgradeError> {
        let path = self.pins.join(name);
        Xdp::from_pin(&path, XdpAttachType::Interface).map_err(|error| failed(&path)(io::Error::other(error)))
    }

    /// Pins a loaded program as the one that the links are about to run.
    pub fn prepare(&self, entry: Entry, program: &mut Xdp) -> Result<(), UpgradeError> {
        let path = self.pins.join(entry.next_pin());
        program.pin(&path).map_err(|error| failed(&path)(io::Error::other(error)))
    }

    /// Makes the prepared programs, which all links run by now, and new tables the current ones; with a trial the ones before
    /// are kept.
    pub fn commit(&self, entries: &[Entry], trial: Option<&Trial>) -> Result<(), UpgradeError> {
        self.forget_trials()?;
        self.forget_tables()?;
        if let Some(trial) = trial {
            self.mark(&trial.name())?;
        }
        if trial.is_some() || self.has_new_tables() {
            // All of them before any is replaced: from the first one on, a crash is followed by going on, not by going back.
            for entry in entries.iter().filter(|entry| self.has(entry.pin())) {
                self.rename(entry.pin(), &entry.previous_pin())?;
            }
        }
        self.move_tables()?;
        entries.iter().try_for_each(|entry| self.rename(&entry.next_pin(), entry.pin()))?;
        if trial.is_none() { self.forget_tables() } else { Ok(()) }
    }

    /// Puts the programs before back into the links, and remembers that the current ones are not wanted.
    pub fn roll_back(&self) -> Result<Vec<Program>, UpgradeError> {
        let entries: Vec<Entry> = Entry::ALL.into_iter().filter(|entry| self.has(&entry.previous_pin())).collect();
        if entries.is_empty() {
            self.forget_trials()?;
            return Err(UpgradeError::NoPrevious(self.pins.clone()));
        }
        let mut back = Vec::new();
        for entry in entries {
            let previous = self.pinned(&entry.previous_pin())?;
            let is_other =
                |current: &Program| previous.as_ref().is_some_and(|old| old.fingerprint != current.fingerprint);
            if let Some(current) = self.pinned(entry.pin())?.filter(is_other) {
                self.mark(&format!("{REFUSED_PREFIX}{}", current.fingerprint))?;
            }
            back.extend(previous);
        }
        self.finish_rollback()?;
        Ok(back)
    }

    /// Looks at the counters if an upgrade is being watched, and rolls it back if they say so.
    pub fn judge(&self) -> Result<Option<Judgement>, UpgradeError> {
        let Some(trial) = trial_in(&self.pins.join(pins::UPGRADE)) else { return Ok(None) };
        let judgement = trial.judge(self.tally()?, now_ns());
        match &judgement {
            Judgement::Watching { .. } => {}
            Judgement::Good(_) => {
                self.forget_trials()?;
                self.forget_tables()?;
            }
            Judgement::Bad(_) => drop(self.roll_back()?),
        }
        Ok(Some(judgement))
    }

    /// Whether this program was rolled back here.
    pub fn is_refused(&self, fingerprint: Fingerprint) -> bool {
        self.has(&format!("{}/{REFUSED_PREFIX}{fingerprint}", pins::UPGRADE))
    }

    /// What the counters say.
    pub fn tally(&self) -> Result<Tally, UpgradeError> {
        Tally::take(&self.pins).map_err(failed(&self.pins))
    }

    /// Puts in order what a crash has left: see the table in docs/design/0012.
    pub fn settle(&self) -> Result<(), UpgradeError> {
        let prepared: Vec<Entry> = Entry::ALL.into_iter().filter(|entry| self.has(&entry.next_pin())).collect();
        if prepared.iter().any(|entry| !self.has(entry.pin())) {
            info!("finishing a change of programs that was interrupted");
            for entry in &prepared {
                if self.has(entry.pin()) {
                    self.rename(entry.pin(), &entry.previous_pin())?;
                }
            }
            self.move_tables()?;
            for entry in prepared {
                self.rename(&entry.next_pin(), entry.pin())?;
            }
        } else if !prepared.is_empty() {
            info!("taking back a change of programs that was interrupted");
            prepared.iter().try_for_each(|entry| self.put(&entry.next_pin(), entry.pin()))?;
            self.drop_new_tables(true)?;
            prepared.iter().try_for_each(|entry| self.remove(&entry.next_pin()))?;
            self.forget_trials()?;
        }
        self.drop_new_tables(false)?;
        for entry in Entry::ALL {
            let previous = self.pinned(&entry.previous_pin())?.map(|program| program.id);
            if previous.is_some() && self.links()?.iter().any(|link| Some(link.program_id) == previous) {
                info!("finishing a rollback that was interrupted");
                return self.finish_rollback();
            }
        }
        if !is_watched(&self.pins) {
            self.forget_tables()?;
        }
        Ok(())
    }

    fn finish_rollback(&self) -> Result<(), UpgradeError> {
        let entries: Vec<Entry> = Entry::ALL.into_iter().filter(|entry| self.has(&entry.previous_pin())).collect();
        // First the links: what is attached loses packets.
        entries.iter().try_for_each(|entry| self.put(entry.pin(), &entry.previous_pin()))?;
        self.return_tables()?;
        entries.iter().try_for_each(|entry| self.rename(&entry.previous_pin(), entry.pin()))?;
        self.forget_trials()
    }

    /// Gives the links that run the program pinned as `from` the one pinned as `to`.
    fn put(&self, from: &str, to: &str) -> Result<(), UpgradeError> {
        let Some(from) = self.pinned(from)? else { return Ok(()) };
        for link in self.links()?.iter().filter(|link| link.program_id == from.id) {
            if !attach::replace(&link.pin, &mut self.open(to)?)? {
                warn!(interface = link.interface, "the interface of a pinned link has gone");
            }
        }
        Ok(())
    }

    fn links(&self) -> Result<Vec<Link>, UpgradeError> {
        let names = names(&self.pins);
        let mut links = Vec::new();
        for name in names.filter(|name| name.starts_with(LINK_PREFIX)) {
            let pin = self.pins.join(&name);
            let facts = link_facts(&pin).map_err(failed(&pin))?;
            let interface = name[LINK_PREFIX.len()..].to_owned();
            // Of an interface that is gone nothing is left to be changed.
            if facts.ifindex != 0 {
                links.push(Link { interface, pin, program_id: facts.program_id });
            }
        }
        Ok(links)
    }

    fn forget_trials(&self) -> Result<(), UpgradeError> {
        let directory = self.pins.join(pins::UPGRADE);
        for name in names(&directory).filter(|name| name.starts_with(trial::PREFIX)) {
            let path = directory.join(name);
            fs::remove_dir(&path).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn forgive(&self, fingerprint: Fingerprint) -> Result<(), UpgradeError> {
        if !self.is_refused(fingerprint) {
            return Ok(());
        }
        let path = self.pins.join(pins::UPGRADE).join(format!("{REFUSED_PREFIX}{fingerprint}"));
        fs::remove_dir(&path).map_err(failed(&path))
    }

    fn mark(&self, name: &str) -> Result<(), UpgradeError> {
        let path = self.pins.join(pins::UPGRADE).join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.pins.join(name).exists()
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), UpgradeError> {
        let path = self.pins.join(from);
        fs::rename(&path, self.pins.join(to)).map_err(failed(&path))
    }

    /// Removes the pin of that name, if there is one.
    pub fn remove(&self, name: &str) -> Result<(), UpgradeError> {
        let path = self.pins.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }
    }
}

fn trial_in(directory: &Path) -> Option<Trial> {
    names(directory).find_map(|name| Trial::parse(&name))
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> UpgradeError + 'static {
    let path = path.to_owned();
    move |error| UpgradeError::Io { path: path.clone(), error }
}
