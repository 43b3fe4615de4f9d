//! Taking a datapath away without its agent, whatever version made it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    attach::LINK_PREFIX,
    bpf::detach_link,
    pins,
    state::{DirectoryLock, StateError},
};

/// Why the datapath is still there, all of it or a part.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// No pins.
    #[error("no datapath is pinned at {}; nothing was changed (other pins: --pin-dir DIR)", .0.display())]
    Absent(PathBuf),
    /// Its agent would attach it again.
    #[error(
        "the agent of {} is running and would attach the datapath again: stop it first (node.on_stop = \"detach\" makes it \
         do this itself). Nothing was changed", .0.display()
    )]
    AgentRuns(PathBuf),
    /// Not allowed, or not what its name says.
    #[error("{}: {error}. What was done so far stays done; run the command again", .path.display())]
    Io {
        /// The pin or the directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Detaches every link pinned in `directory` and removes all pins; the interfaces that it was attached to.
///
/// The links first: an interrupted removal leaves an interface without a program, never a program without its pins.
pub fn detach(directory: &Path) -> Result<Vec<String>, RemovalError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| RemovalError::Io { path, error }
    };
    let _lock = match DirectoryLock::take(directory) {
        Ok(lock) => lock,
        Err(StateError::InUse(path)) => return Err(RemovalError::AgentRuns(path)),
        Err(StateError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RemovalError::Absent(directory.to_owned()));
        }
        Err(StateError::Io { path, error }) => return Err(RemovalError::Io { path, error }),
        Err(other) => return Err(failed(directory)(io::Error::other(other))),
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        names.push(entry.map_err(failed(directory))?.file_name().to_string_lossy().into_owned());
    }
    if !names.iter().any(|name| pins::is_ours(name)) {
        return Err(RemovalError::Absent(directory.to_owned()));
    }
    names.sort();
    let mut interfaces = Vec::new();
    for name in names.iter().filter(|name| name.starts_with(LINK_PREFIX)) {
        let path = directory.join(name);
        detach_link(&path).map_err(failed(&path))?;
        fs::remove_file(&path).map_err(failed(&path))?;
        interfaces.push(name[LINK_PREFIX.len()..].to_owned());
    }
    pins::remove(directory).map_err(failed(directory))?;
    Ok(interfaces)
}
