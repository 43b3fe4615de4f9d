//! The pin directory: where the datapath outlives the agent, and what must hold before it is used again.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapError};
use lb_common::{abi::SCHEMA, maps};
use rustix::{
    fs::statfs,
    mount::{MountFlags, mount},
    process::geteuid,
};
use tracing::{info, warn};

use super::{attach::LINK_PREFIX, bpf::first_value, layouts::Layout};

/// Where bpffs is on every distribution.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The maps that are pinned, by name.
pub const PINNED: [&str; 24] = [
    maps::FLOWS,
    maps::FLOWS_V6,
    maps::PENDING,
    maps::PENDING_V6,
    maps::FRAGMENTS,
    maps::FRAGMENTS_V6,
    maps::SERVICES,
    maps::VIP_FILTER,
    maps::RINGS,
    maps::BACKENDS,
    maps::MEMBERS,
    maps::PEERS,
    maps::PEER_PREFIXES,
    maps::GATEWAYS,
    maps::DEVICES,
    maps::LIVENESS,
    maps::HEARD,
    maps::NODE,
    maps::COUNTERS,
    maps::SERVICE_COUNT,
    maps::BACKEND_COUNT,
    maps::MEMBER_COUNT,
    maps::BUDGET,
    maps::EVENTS,
];

/// The pinned program.
pub const PROGRAM: &str = "prog";
/// The one for frames in several buffers.
pub const PROGRAM_FRAGS: &str = "prog_frags";
/// Begins the names of all pinned programs: those that the links run, and those before and after them.
const PROGRAM_PREFIX: &str = PROGRAM;
/// The directory that is locked while programs are changed; holds names only.
pub const UPGRADE: &str = "upgrade";
/// The event ring of a CPU: this and the CPU's number.
pub const RING_PREFIX: &str = "events_";

/// `f_type` of bpffs (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Why a pin directory cannot be used. In every case nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// It does not lie in a bpffs.
    #[error(
        "{} is not in a BPF file system; mount one: `mount -t bpf bpf {}`, or choose a directory under {BPFFS}",
        .0.display(), .0.display()
    )]
    NotBpffs(PathBuf),
    /// bpffs does not take dots in names.
    #[error("{}: names in a BPF file system may not contain a dot", .0.display())]
    Dot(PathBuf),
    /// Somebody else could put other maps in the place of ours.
    #[error(
        "{} belongs to user {owner}, who could replace what is pinned in it; remove it or choose another directory \
         (--pin-dir). Nothing was changed", .path.display()
    )]
    Owner {
        /// The pin directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// A pinned map has another shape than the program's, and nothing converts it.
    #[error(
        "{} was made by another version: {difference}. Run that version, or take the datapath away with its flows, which live \
         on at the other members: `tandem datapath detach --pin-dir {}`. Nothing was changed",
        .path.display(), .directory.display()
    )]
    Incompatible {
        /// The pinned map.
        path: PathBuf,
        /// What differs.
        difference: String,
        /// The pin directory.
        directory: PathBuf,
    },
    /// A pinned map cannot be read.
    #[error("{}: {error}", .path.display())]
    Map {
        /// The pinned map.
        path: PathBuf,
        /// What happened.
        error: MapError,
    },
    /// A file operation failed.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

/// What the program expects a map to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// Makes sure that `directory` exists in a bpffs, mounting it where every distribution has it.
pub fn prepare(directory: &Path) -> Result<(), PinsError> {
    if let Some(name) = directory.file_name()
        && name.as_encoded_bytes().contains(&b'.')
    {
        return Err(PinsError::Dot(directory.to_owned()));
    }
    let failed = |error| PinsError::Io { path: directory.to_owned(), error };
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing).map_err(failed)? {
        if !directory.starts_with(BPFFS) || !Path::new(BPFFS).exists() {
            return Err(PinsError::NotBpffs(existing.to_owned()));
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("bpf", BPFFS, "bpf", flags, c"mode=0700")
            .map_err(|errno| PinsError::Io { path: BPFFS.into(), error: errno.into() })?;
        info!("mounted a BPF file system on {BPFFS}");
        if fs::read_link("/proc/self/ns/mnt").ok() != fs::read_link("/proc/1/ns/mnt").ok() {
            // As `ip netns exec` makes one: it mounts a new /sys, which hides the host's bpffs.
            warn!(
                "this process has a mount namespace of its own, and the pins go with it: the datapath will not outlive the \
                 agent. Use `nsenter --net=/run/netns/NAME` instead of `ip netns exec NAME`"
            );
        }
    }
    fs::create_dir_all(directory).map_err(failed)?;
    close(directory)
}

/// Whether `directory`, or what it would be made in, is in a bpffs.
pub fn is_in_bpffs(directory: &Path) -> io::Result<bool> {
    is_bpffs(directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")))
}

/// Leaves the directory and the pins of links and programs to this user alone.
///
/// Whoever may open a link can detach it or put another program in it, without any capability.
fn close(directory: &Path) -> Result<(), PinsError> {
    let own = geteuid().as_raw();
    let facts = |path: &Path| fs::metadata(path).map_err(|error| PinsError::Io { path: path.to_owned(), error });
    let found = facts(directory)?;
    if found.uid() != own {
        return Err(PinsError::Owner { path: directory.to_owned(), owner: found.uid() });
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| PinsError::Io { path, error }
    };
    // The root of a bpffs is for others as well.
    let is_root = facts(directory.parent().unwrap_or(directory))?.dev() != found.dev();
    if !is_root && found.mode() & 0o077 != 0 {
        fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed(directory))?;
    }
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with(LINK_PREFIX) && !name.starts_with(PROGRAM_PREFIX) {
            continue;
        }
        let found = facts(&path)?;
        if found.mode() & 0o077 != 0 || found.uid() != own {
            warn!(pin = %path.display(), "others could have detached the datapath; they cannot any more");
            chown(&path, Some(own), None).map_err(failed(&path))?;
            fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// How the pinned maps compare with those that a program expects.
#[derive(Clone, Debug)]
pub enum Fit {
    /// They are as it expects them.
    Same,
    /// These have another capacity; what is in them can be copied.
    Resized(Vec<&'static str>),
    /// They are of a layout that can be converted.
    Older(&'static Layout),
}

impl Fit {
    /// The maps that must be made anew.
    pub fn replaced(&self) -> &[&'static str] {
        match self {
            Self::Same => &[],
            Self::Resized(names) => names,
            Self::Older(_) => &PINNED,
        }
    }
}

/// The maps whose capacity the configuration decides.
const RESIZABLE: [&str; 4] = [maps::FLOWS, maps::FLOWS_V6, maps::PENDING, maps::PENDING_V6];

/// Compares the pinned maps with the shapes that the program expects; pins of other names are not looked at.
///
/// aya reuses a pinned map without a look at it, and the kernel then writes elements of the pinned map's
/// size into the memory of ours. So no pinned map is opened for use before this has been called.
///
/// # Errors
///
/// They differ in something that nothing can be done about: neither a capacity nor one of the `older` layouts.
pub fn compare(directory: &Path, shapes: &BTreeMap<String, Shape>, older: &'static [Layout]) -> Result<Fit, PinsError> {
    let layout = match pinned_schema(directory)? {
        // 0: the agent that made the maps was killed before it filled them.
        None | Some(0 | SCHEMA) => None,
        Some(schema) => {
            let found = older.iter().find(|layout| layout.schema == schema);
            let difference = || {
                let known: Vec<&str> = older.iter().map(|layout| layout.name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                format!(
                    "its schema is {schema:016x}, this program's is {SCHEMA:016x}, and there is no converter (for: {known})"
                )
            };
            Some(found.ok_or_else(|| incompatible(directory, maps::NODE, difference()))?)
        }
    };
    let mut resized = Vec::new();
    for name in PINNED {
        let path = directory.join(name);
        let Some(expected) = shapes.get(name).filter(|_| path.exists()) else { continue };
        let found = shape(&path).map_err(|error| PinsError::Map { path: path.clone(), error })?;
        let expected = match layout {
            None => *expected,
            Some(layout) if is_flows(name) => Shape { value_size: layout.entry_size, ..*expected },
            Some(_) if matches!(name, maps::BACKENDS | maps::SERVICES) => *expected,
            // Made anew, and filled by the agent.
            Some(_) => continue,
        };
        let is_resizable = RESIZABLE.contains(&name);
        let same_but_larger = Shape { max_entries: found.max_entries, ..expected };
        match difference(&found, &expected) {
            None => {}
            Some(_) if is_resizable && found == same_but_larger => resized.push(name),
            Some(difference) => return Err(incompatible(directory, name, difference)),
        }
    }
    Ok(match layout {
        Some(layout) => Fit::Older(layout),
        None if resized.is_empty() => Fit::Same,
        None => Fit::Resized(resized),
    })
}

fn is_flows(name: &str) -> bool {
    matches!(name, maps::FLOWS | maps::FLOWS_V6)
}

fn incompatible(directory: &Path, name: &str, difference: String) -> PinsError {
    PinsError::Incompatible { path: directory.join(name), difference, directory: directory.to_owned() }
}

/// Whether a datapath is pinned here.
pub fn exist(directory: &Path) -> bool {
    directory.join(maps::NODE).exists()
}

/// Removes every pin of ours, and with them, unless something else holds it, the datapath.
///
/// The directory goes as well, unless there is something else in it.
pub fn remove(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == UPGRADE {
            fs::remove_dir_all(entry.path())?;
        } else if is_ours(&name.to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => result,
    }
}

/// Removes the pins of the event rings, which hold only hints, in entries of the layout of before.
pub fn remove_rings(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(RING_PREFIX) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a pin of that name is one of ours.
pub fn is_ours(name: &str) -> bool {
    let programs =
        ["", "_new", "_old"].map(|stage| [PROGRAM, PROGRAM_FRAGS].map(|program| format!("{program}{stage}")));
    programs.as_flattened().iter().any(|program| program == name)
        || PINNED.contains(&name)
        || [LINK_PREFIX, RING_PREFIX].iter().any(|prefix| name.starts_with(prefix))
}

/// The first eight bytes of the node, where every layout has it.
pub fn pinned_schema(directory: &Path) -> Result<Option<u64>, PinsError> {
    let path = directory.join(maps::NODE);
    if !path.exists() {
        return Ok(None);
    }
    let node = MapData::from_pin(&path).map_err(|error| PinsError::Map { path: path.clone(), error })?;
    let value = first_value(&node).map_err(|error| PinsError::Io { path, error })?;
    Ok(Some(value.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))))
}

fn shape(path: &Path) -> Result<Shape, MapError> {
    let info = MapData::from_pin(path)?.info()?;
    Ok(Shape {
        map_type: info.map_type()? as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        flags: info.map_flags(),
    })
}

fn difference(found: &Shape, expected: &Shape) -> Option<String> {
    let facts = [
        ("type", found.map_type, expected.map_type),
        ("key size", found.key_size, expected.key_size),
        ("value size", found.value_size, expected.value_size),
        ("capacity", found.max_entries, expected.max_entries),
        ("flags", found.flags, expected.flags),
    ];
    let (name, found, expected) = facts.into_iter().find(|(_, found, expected)| found != expected)?;
    Some(format!("its {name} is {found}, wanted is {expected}"))
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use aya::maps::{Array, HashMap, IterableMap as _};
    use lb_common::node::Node;
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::io::layouts::OLDER;

    const FLOWS: Shape = Shape { map_type: 1, key_size: 16, value_size: 32, max_entries: 64, flags: 0 };

    /// A pin directory; needs CAP_BPF and a bpffs, without them there is nothing to test.
    fn directory(name: &str) -> Option<PathBuf> {
        let path = Path::new(BPFFS).join(format!("tandem-test-{}-{name}", std::process::id()));
        if let Err(error) = prepare(&path) {
            eprintln!("skipped: {error}; run as root");
            return None;
        }
        Some(path)
    }

    fn shapes() -> BTreeMap<String, Shape> {
        BTreeMap::from([(maps::FLOWS.to_owned(), FLOWS)])
    }

    fn pin_node(path: &Path) -> Array<MapData, Node> {
        let node = Array::<MapData, Node>::create(1, 0).unwrap();
        node.map().pin(path.join(maps::NODE)).unwrap();
        node
    }

    fn set_schema(node: &mut Array<MapData, Node>, schema: u64) {
        node.set(0, Node { schema, ..Node::new_zeroed() }, 0).unwrap();
    }

    #[test]
    fn a_map_of_another_shape_is_refused_and_left_alone() {
        let Some(path) = directory("shape") else { return };
        let pinned = HashMap::<MapData, [u8; 16], [u8; 24]>::create(64, 0).unwrap();
        pinned.map().pin(path.join(maps::FLOWS)).unwrap();
        let error = compare(&path, &shapes(), &OLDER).unwrap_err().to_string();
        assert!(error.contains("its value size is 24, wanted is 32"), "{error}");
        assert!(error.contains("tandem datapath detach") && error.contains("Nothing was changed"), "{error}");
        assert!(path.join(maps::FLOWS).exists());
        remove(&path).unwrap();
    }

    #[test]
    fn only_the_capacity_of_what_the_configuration_sizes_may_differ() {
        let Some(path) = directory("capacity") else { return };
        let pinned = HashMap::<MapData, [u8; 16], [u8; 32]>::create(65, 0).unwrap();
        pinned.map().pin(path.join(maps::FLOWS)).unwrap();
        assert_eq!(compare(&path, &shapes(), &OLDER).unwrap().replaced(), [maps::FLOWS]);
        pinned.map().pin(path.join(maps::SERVICES)).unwrap();
        let both = BTreeMap::from([maps::FLOWS, maps::SERVICES].map(|name| (name.to_owned(), FLOWS)));
        let error = compare(&path, &both, &OLDER).unwrap_err().to_string();
        assert!(error.contains("services") && error.contains("its capacity is 65, wanted is 64"), "{error}");
        remove(&path).unwrap();
    }

    #[test]
    fn another_schema_is_refused_unless_it_has_a_converter() {
        let Some(path) = directory("schema") else { return };
        let mut node = pin_node(&path);
        for schema in [0, SCHEMA] {
            set_schema(&mut node, schema);
            assert!(matches!(compare(&path, &BTreeMap::new(), &OLDER), Ok(Fit::Same)), "{schema}");
        }
        set_schema(&mut node, SCHEMA ^ 1);
        let error = compare(&path, &BTreeMap::new(), &OLDER).unwrap_err().to_string();
        assert!(error.contains(&format!("{:016x}", SCHEMA ^ 1)) && error.contains(OLDER[0].name), "{error}");
        set_schema(&mut node, OLDER[0].schema);
        let fit = compare(&path, &BTreeMap::new(), &OLDER).unwrap();
        assert!(matches!(fit, Fit::Older(layout) if layout.schema == OLDER[0].schema));
        assert_eq!(fit.replaced(), PINNED);
        // The flows must be what the schema says that they are.
        let pinned = HashMap::<MapData, [u8; 16], [u8; 24]>::create(64, 0).unwrap();
        pinned.map().pin(path.join(maps::FLOWS)).unwrap();
        assert!(compare(&path, &shapes(), &OLDER).is_err());
        remove(&path).unwrap();
    }

    #[test]
    fn what_others_pinned_is_not_removed() {
        let Some(path) = directory("foreign") else { return };
        let map = HashMap::<MapData, u32, u32>::create(1, 0).unwrap();
        for name in [maps::FLOWS, "prog", "link_eth0", "events_0", "somebody"] {
            map.map().pin(path.join(name)).unwrap();
        }
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        fs::remove_file(path.join("somebody")).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn only_root_may_open_the_directory_and_the_pins_of_links() {
        let Some(path) = directory("modes") else { return };
        let map = HashMap::<MapData, u32, u32>::create(1, 0).unwrap();
        for name in ["link_eth0", "prog", "flows"] {
            map.map().pin(path.join(name)).unwrap();
            fs::set_permissions(path.join(name), Permissions::from_mode(0o666)).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        chown(path.join("link_eth0"), Some(65_534), None).unwrap();
        prepare(&path).unwrap();
        let seen = |name: &str| fs::metadata(path.join(name)).map(|found| (found.mode() & 0o777, found.uid())).unwrap();
        assert_eq!([seen(""), seen("link_eth0"), seen("prog")], [(0o700, 0), (0o600, 0), (0o600, 0)]);
        chown(&path, Some(65_534), None).unwrap();
        let error = prepare(&path).unwrap_err().to_string();
        assert!(error.contains("belongs to user 65534") && error.contains("Nothing was changed"), "{error}");
        remove(&path).unwrap();
    }

    #[test]
    fn a_directory_outside_of_bpffs_is_refused_with_the_command_that_helps() {
        let error = prepare(&std::env::temp_dir().join("tandem-pins")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
        assert!(matches!(prepare(Path::new("/sys/fs/bpf/a.b")), Err(PinsError::Dot(_))));
    }
}
