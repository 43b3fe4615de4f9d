//! What the kernel says of a program: which one it is, and since when.

use std::{fmt, io, path::Path, str::FromStr, time::SystemTime};

use aya::{
    maps::{MapData, MapError, MapInfo},
    programs::{ProgramError, ProgramInfo, loaded_programs},
};

use super::bpf::first_value;

/// The name of the sections that a program's constants are in, as the kernel knows the maps made of them.
const CONSTANTS: &str = ".rodata";

/// How often a pin is opened whose program ends while it is read.
const LOOKS: usize = 5;

/// Two programs with the same fingerprint do the same to the same maps.
///
/// Of the tag, which the kernel computes over the instructions without the numbers of maps, and of the constants, which the kernel
/// keeps as they were when the program was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint(u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A program in the kernel.
#[derive(Clone, Debug)]
pub struct Program {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Which program it is.
    pub fingerprint: Fingerprint,
    /// When it was loaded.
    pub loaded_at: Option<SystemTime>,
    /// Instructions that the verifier walked.
    pub verified_instructions: Option<u32>,
    maps: Vec<u32>,
}

impl Program {
    /// The program pinned at `pin`; none if nothing is pinned there.
    pub fn pinned(pin: &Path) -> io::Result<Option<Self>> {
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let mut looks = LOOKS;
        // Others rename pins at any moment: there is no point in looking first, and what was there may end while it is read.
        loop {
            let info = match ProgramInfo::from_pin(pin).map_err(of_program) {
                Err(error) if is_gone(&error) => return Ok(None),
                info => info?,
            };
            looks -= 1;
            match Self::of(&info) {
                Err(error) if is_gone(&error) && looks > 0 => {}
                found => return found.map(Some),
            }
        }
    }

    /// The program with this number; none if there is no such program any more.
    pub fn with_id(id: u32) -> io::Result<Option<Self>> {
        let info = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
        info.map(|info| Self::of(&info)).transpose()
    }

    /// A loaded program.
    pub fn of(info: &ProgramInfo) -> io::Result<Self> {
        Ok(Self {
            id: info.id(),
            name: info.name_as_str().unwrap_or_default().to_owned(),
            fingerprint: fingerprint(info)?,
            loaded_at: info.loaded_at(),
            verified_instructions: info.verified_instruction_count(),
            maps: info.map_ids().map_err(of_program)?.unwrap_or_default(),
        })
    }

    /// Whether it uses the map pinned at `pin`.
    pub fn uses(&self, pin: &Path) -> bool {
        MapInfo::from_pin(pin).is_ok_and(|map| self.maps.contains(&map.id()))
    }
}

fn fingerprint(info: &ProgramInfo) -> io::Result<Fingerprint> {
    let mut constants = Vec::new();
    for id in info.map_ids().map_err(of_program)?.unwrap_or_default() {
        let map = MapInfo::from_id(id).map_err(of_map)?;
        let name = map.name_as_str().unwrap_or_default();
        if name.starts_with(CONSTANTS) {
            let map = MapData::from_id(id).map_err(of_map)?;
            constants.push((name.to_owned(), first_value(&map)?));
        }
    }
    // The kernel lists maps in the order of their use.
    constants.sort();
    let bytes = info.tag().to_be_bytes().into_iter().chain(constants.into_iter().flat_map(|(_, bytes)| bytes));
    // FNV-1a: nobody gains by making two alike, who may load programs may do anything.
    Ok(Fingerprint(
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)),
    ))
}

/// The operating system's own word where there is one: callers tell apart what is missing and what is not allowed.
fn of_program(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(call) => call.io_error,
        other => io::Error::other(other),
    }
}

fn of_map(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(call) => call.io_error,
        other => io::Error::other(other),
    }
}
