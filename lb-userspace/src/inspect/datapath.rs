//! What is pinned and attached on this host, whether an agent runs or not; nothing here writes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use aya::maps::MapData;
use lb_common::{abi::SCHEMA, maps};
use serde::Serialize;

use super::words::FORMAT_VERSION;
use crate::io::{
    attach::LINK_PREFIX,
    bpf::{first_value, link_facts},
    datapath::Entry,
    pins,
    program::Program,
    state, upgrade,
};

/// How often, and how far apart, what does not fit together is looked at again.
const SECOND_LOOKS: usize = 3;
const SECOND_LOOK: Duration = Duration::from_millis(20);

/// Why there is nothing to tell. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// No pins.
    #[error(
        "no datapath is pinned at {}: is the agent started? (tandem run --config FILE; other pins: --pin-dir DIR)",
        .0.display()
    )]
    Absent(PathBuf),
    /// Opening pins takes a capability.
    #[error("the datapath at {} cannot be looked at without privileges: run as root", .0.display())]
    Denied(PathBuf),
    /// A pin cannot be opened, or the directory not be read.
    #[error("{}: {error}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// The datapath of a pin directory; `tandem datapath status -o json` prints this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installation {
    /// Raised when a field changes its meaning or goes.
    pub format_version: u32,
    /// Where it is pinned.
    pub pin_directory: PathBuf,
    /// Process id of the agent that works with it, if one runs.
    pub agent_pid: Option<u32>,
    /// Layout of the maps, 16 hex digits; zeros before an agent has filled them.
    pub schema: String,
    /// Whether this tandem's programs fit the maps.
    pub is_own_schema: bool,
    /// The pinned programs.
    pub programs: Vec<PinnedProgram>,
    /// The pinned links.
    pub links: Vec<PinnedLink>,
    /// Programs that were rolled back: an agent that brings one leaves the one before attached.
    pub refused: Vec<String>,
    /// How much longer an upgrade is watched; none if there is none, or it has been.
    pub watched_ms: Option<u64>,
    /// What is not as it should be; empty when all is well.
    pub problems: Vec<String>,
}

/// A pinned program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinnedProgram {
    /// The pin's name.
    pub pin: String,
    /// `current`, or `previous`: what `tandem datapath rollback` would put back.
    pub role: Role,
    /// The program's name.
    pub name: String,
    /// The kernel's number for it.
    pub id: u32,
    /// Which program it is, 16 hex digits: the same for the same instructions and constants.
    pub fingerprint: String,
    /// How long ago it was loaded.
    pub loaded_s: Option<u64>,
    /// Instructions that the verifier walked.
    pub verified_instructions: Option<u32>,
}

/// A pinned link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinnedLink {
    /// The interface, as the pin calls it (dots are underscores there).
    pub interface: String,
    /// Index of the interface in its network namespace; 0 when the interface has gone.
    pub ifindex: u32,
    /// The program that it runs.
    pub program_id: u32,
    /// What that is here; none if it is none of the pinned ones.
    pub runs: Option<Role>,
}

/// What a pinned program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The links run it.
    Current,
    /// The links ran it before.
    Previous,
}

impl Role {
    /// As people say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
        }
    }
}

impl Installation {
    /// Looks at what is pinned in `directory`.
    ///
    /// # Errors
    ///
    /// Nothing of ours is, or it may not be looked at.
    pub fn look(directory: &Path) -> Result<Self, InspectError> {
        let mut seen = Self::glance(directory)?;
        // Pins and links are read one after the other: a change meanwhile looks like a broken one, and is over in an instant.
        for _ in 0..SECOND_LOOKS {
            if seen.links.iter().all(|link| link.runs == Some(Role::Current)) {
                break;
            }
            thread::sleep(SECOND_LOOK);
            seen = Self::glance(directory)?;
        }
        Ok(seen)
    }

    fn glance(directory: &Path) -> Result<Self, InspectError> {
        let names = names(directory)?;
        let is_pinned = |name: &str| directory.join(name).exists();
        if !names.iter().any(|name| pins::is_ours(name)) {
            return Err(InspectError::Absent(directory.to_owned()));
        }
        let schema = if is_pinned(maps::NODE) { Some(schema(directory)?) } else { None };
        let mut programs = Vec::new();
        for (pin, role) in Entry::ALL
            .iter()
            .flat_map(|entry| [(entry.pin().to_owned(), Role::Current), (entry.previous_pin(), Role::Previous)])
        {
            let path = directory.join(&pin);
            let Some(found) = Program::pinned(&path).map_err(|error| failed(directory, &path, error))? else {
                continue;
            };
            programs.push(PinnedProgram::of(pin, role, &found));
        }
        let mut links = Vec::new();
        for name in names.iter().filter(|name| name.starts_with(LINK_PREFIX)) {
            let path = directory.join(name);
            let facts = link_facts(&path).map_err(|error| failed(directory, &path, error))?;
            let role = |program: &&PinnedProgram| program.id == facts.program_id;
            links.push(PinnedLink {
                interface: name[LINK_PREFIX.len()..].to_owned(),
                ifindex: facts.ifindex,
                program_id: facts.program_id,
                runs: programs.iter().find(role).map(|program| program.role),
            });
        }
        let (refused, watched_ms) = upgrade::notes(directory);
        let mut installation = Self {
            format_version: FORMAT_VERSION,
            pin_directory: directory.to_owned(),
            agent_pid: state::lock_holder(directory).map_err(|error| failed(directory, directory, error))?,
            schema: format!("{:016x}", schema.unwrap_or(0)),
            is_own_schema: schema.is_none_or(|schema| schema == SCHEMA || schema == 0),
            programs,
            links,
            refused,
            watched_ms,
            problems: Vec::new(),
        };
        installation.problems = installation.judge(&names);
        Ok(installation)
    }

    fn judge(&self, names: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.is_own_schema {
            problems.push(format!(
                "the maps are of another version of tandem (schema {}, here {SCHEMA:016x}): use the tandem that made them",
                self.schema
            ));
        }
        if self.links.is_empty() {
            problems.push("it is attached to no interface".to_owned());
        }
        for link in &self.links {
            let name = &link.interface;
            if link.ifindex == 0 {
                problems.push(format!("the interface {name} of a pinned link has gone"));
            } else if link.runs.is_none() {
                problems.push(format!("{name} runs program {}, which is not pinned here", link.program_id));
            } else if link.runs == Some(Role::Previous) {
                problems.push(format!("{name} runs the previous program: a change was interrupted, and an agent's start or any command that changes programs puts it in order"));
            }
        }
        let missing: Vec<&str> =
            pins::PINNED.iter().copied().filter(|map| !names.iter().any(|name| name == map)).collect();
        if !missing.is_empty() {
            problems.push(format!("pins of maps are missing: {}", missing.join(", ")));
        }
        problems
    }
}

impl PinnedProgram {
    fn of(pin: String, role: Role, program: &Program) -> Self {
        let age = program.loaded_at.and_then(|at| SystemTime::now().duration_since(at).ok());
        Self {
            pin,
            role,
            name: program.name.clone(),
            id: program.id,
            fingerprint: program.fingerprint.to_string(),
            loaded_s: age.map(|age| age.as_secs()),
            verified_instructions: program.verified_instructions,
        }
    }
}

/// Of whatever layout: the schema is where every layout has it, in the first eight bytes.
fn schema(directory: &Path) -> Result<u64, InspectError> {
    let path = directory.join(maps::NODE);
    let value = MapData::from_pin(&path).map_err(io::Error::other).and_then(|map| first_value(&map));
    let value = value.map_err(|error| failed(directory, &path, error))?;
    Ok(value.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)))
}

fn names(directory: &Path) -> Result<Vec<String>, InspectError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(InspectError::Absent(directory.to_owned()));
        }
        Err(error) => return Err(failed(directory, directory, error)),
    };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn failed(directory: &Path, path: &Path, error: io::Error) -> InspectError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => InspectError::Denied(directory.to_owned()),
        _ => InspectError::Io { path: path.to_owned(), error },
    }
}
