//! What an agent keeps on disk: its incarnation, and the locks that keep a second agent away.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Why the state directory cannot be used. In every case the incarnation on disk is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another agent works with the directory.
    #[error("another agent is running on {}; stop it, or give this one a directory of its own", .0.display())]
    InUse(PathBuf),
    /// The incarnation cannot be read as a number.
    #[error(
        "{} does not hold an incarnation (it holds {content:?}); write into it a number above any this member ever used, \
         or remove it if the member is new", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Its beginning.
        content: String,
    },
    /// There is no incarnation after this one.
    #[error("the incarnation in {} is used up; give the member a new id", .0.display())]
    UsedUp(PathBuf),
    /// A file operation failed.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

/// An exclusive lock on a directory, held until it is dropped or the process ends, however it ends.
///
/// On the directory itself: a lock file could be removed, and in bpffs none can be made.
#[derive(Debug)]
pub struct DirectoryLock {
    _directory: File,
}

impl DirectoryLock {
    /// Locks `directory`, which must exist.
    pub fn take(directory: &Path) -> Result<Self, StateError> {
        let failed = |error| StateError::Io { path: directory.to_owned(), error };
        let file = File::open(directory).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _directory: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::InUse(directory.to_owned())),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// Who holds the lock on `directory`, if anybody does.
///
/// Read from the kernel's list: taking the lock to find out would keep an agent away that starts at this moment.
pub fn lock_holder(directory: &Path) -> io::Result<Option<u32>> {
    let found = fs::metadata(directory)?;
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let locks = fs::read_to_string("/proc/locks")?;
    // "1: FLOCK  ADVISORY  WRITE 4242 00:22:1234 0 EOF"
    let mut fields = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let holder = fields.find(|fields| fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str()));
    Ok(holder.and_then(|fields| fields[4].parse().ok()))
}

/// The agent's state directory, locked.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    _lock: DirectoryLock,
}

impl StateDirectory {
    /// Makes the directory if it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(path).map_err(|error| StateError::Io { path: path.to_owned(), error })?;
        Ok(Self { path: path.to_owned(), _lock: DirectoryLock::take(path)? })
    }

    /// Counts this start: the incarnation on disk plus one, written before it is returned.
    pub fn next_incarnation(&self) -> Result<u32, StateError> {
        let path = self.path.join("incarnation");
        let last = match fs::read_to_string(&path) {
            Ok(content) => parse(&path, &content)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(StateError::Corrupt { path, content: "bytes that are not text".into() });
            }
            Err(error) => return Err(StateError::Io { path, error }),
        };
        let next = last.checked_add(1).ok_or_else(|| StateError::UsedUp(path.clone()))?;
        self.record_incarnation(next)?;
        Ok(next)
    }

    /// Writes `incarnation`: all of it or, if the machine stops half-way, none.
    pub fn record_incarnation(&self, incarnation: u32) -> Result<(), StateError> {
        let path = self.path.join("incarnation");
        let failed = |error| StateError::Io { path: path.clone(), error };
        let draft = self.path.join("incarnation.new");
        let mut file = File::create(&draft).map_err(failed)?;
        writeln!(file, "{incarnation}").map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&draft, &path).map_err(failed)?;
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(failed)
    }
}

fn parse(path: &Path, content: &str) -> Result<u32, StateError> {
    content
        .trim()
        .parse()
        .ok()
        .filter(|incarnation| *incarnation > 0)
        .ok_or_else(|| StateError::Corrupt { path: path.to_owned(), content: content.chars().take(40).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tandem-state-{}-{name}", std::process::id()));
        let _fresh = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn each_start_has_a_higher_incarnation() {
        let path = directory("counts");
        for expected in 1..4 {
            assert_eq!(StateDirectory::open(&path).unwrap().next_incarnation().unwrap(), expected);
        }
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_corrupt_incarnation_is_refused_and_kept() {
        let path = directory("corrupt");
        let state = StateDirectory::open(&path).unwrap();
        for content in ["", "seven", "-1", "0", "99999999999"] {
            fs::write(path.join("incarnation"), content).unwrap();
            assert!(matches!(state.next_incarnation(), Err(StateError::Corrupt { .. })), "{content:?}");
            assert_eq!(fs::read_to_string(path.join("incarnation")).unwrap(), content);
        }
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_second_agent_is_refused() {
        let path = directory("locked");
        let first = StateDirectory::open(&path).unwrap();
        assert!(matches!(StateDirectory::open(&path), Err(StateError::InUse(_))));
        assert_eq!(lock_holder(&path).unwrap(), Some(std::process::id()));
        drop(first);
        assert_eq!(lock_holder(&path).unwrap(), None);
        StateDirectory::open(&path).unwrap();
        fs::remove_dir_all(path).unwrap();
    }
}
