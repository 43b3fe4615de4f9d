//! The configuration's file, replaced as a whole, and what is kept on disk while a configuration is tried.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::state::DirectoryLock;
use crate::config::{generation_of, with_generation};

/// In the state directory.
const FILE: &str = "trial.json";
/// Ending of the file that holds what was tried and undone, beside the configuration.
pub const UNDONE: &str = "undone";
/// Ending of the file that holds what somebody had edited and not applied.
pub const EDITED: &str = "edited";

/// A configuration that is tried, and the one to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Generation of the one that is tried.
    pub generation: u64,
    /// The text of the file before it.
    pub previous: String,
}

impl Trial {
    /// What is kept in the directory `state`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(state: &Path) -> io::Result<Option<Self>> {
        match fs::read(state.join(FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps it there; on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written; what was there stays.
    pub fn keep(&self, state: &Path) -> io::Result<()> {
        replace(&state.join(FILE), &serde_json::to_string(self)?)
    }

    /// Forgets what is kept there, if anything is.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(state: &Path) -> io::Result<()> {
        match fs::remove_file(state.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The text to go back to, a generation later than what is tried.
    ///
    /// # Errors
    /// When it is not TOML.
    pub fn undone(&self) -> io::Result<String> {
        with_generation(&self.previous, self.generation + 1).map_err(io::Error::other)
    }
}

/// A trial does not outlive an agent that runs it: what a dead one has left in `state` is undone in the file at `config`.
/// Answers the generation that was tried, if one was.
///
/// Leaves everything as it is while another agent works with the directory.
///
/// # Errors
/// Those of the files.
pub fn undo_unfinished(config: &Path, state: &Path) -> io::Result<Option<u64>> {
    let Some(trial) = Trial::read(state)? else { return Ok(None) };
    let Ok(_lock) = DirectoryLock::take(state) else { return Ok(None) };
    // Another one in the file: the trial had not begun, or was over.
    let tried = fs::read_to_string(config)?;
    let is_tried = generation_of(&tried) == Some(trial.generation);
    if is_tried {
        replace(&beside(config, UNDONE), &tried)?;
        replace(config, &trial.undone()?)?;
    }
    Trial::forget(state)?;
    Ok(is_tried.then_some(trial.generation))
}

/// Puts `text` in the place of the file at `path`: all of it or, if the machine stops half-way, nothing. The file keeps its owner and
/// mode; where `path` is a link, it goes on being one.
///
/// # Errors
/// Those of the file system; the file is as it was then.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let draft = beside(&path, "new");
    let before = fs::metadata(&path).ok();
    let mode = before.as_ref().map_or(0o600, |before| before.permissions().mode() & 0o7777);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some(before) = &before {
        // Where that is not allowed the file stays this process's own; its mode lets in whom it let in before.
        _ = fchown(&file, Some(before.uid()), Some(before.gid()));
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// `path` with another ending behind its own.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tandem-trial-{}-{name}", std::process::id()));
        _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    fn text(generation: u64) -> String {
        format!("[cluster]\ngeneration = {generation}\n")
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_link_stays_one() {
        let directory = directory("replace");
        let (file, link) = (directory.join("real.toml"), directory.join("link.toml"));
        fs::write(&file, "before").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, "after").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "after");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_a_dead_agent_tried_is_undone_once() {
        let state = directory("undo");
        let config = state.join("tandem.toml");
        fs::write(&config, text(5)).unwrap();
        Trial { generation: 5, previous: text(4) }.keep(&state).unwrap();
        assert_eq!(undo_unfinished(&config, &state).unwrap(), Some(5));
        assert_eq!(fs::read_to_string(&config).unwrap(), text(6));
        assert_eq!(undo_unfinished(&config, &state).unwrap(), None);
        assert_eq!(fs::read_to_string(&config).unwrap(), text(6));
        fs::remove_dir_all(state).unwrap();
    }

    #[test]
    fn a_trial_that_did_not_begin_or_is_over_changes_nothing() {
        let state = directory("over");
        let config = state.join("tandem.toml");
        for generation in [4, 7] {
            fs::write(&config, text(generation)).unwrap();
            Trial { generation: 5, previous: text(4) }.keep(&state).unwrap();
            assert_eq!(undo_unfinished(&config, &state).unwrap(), None);
            assert_eq!(fs::read_to_string(&config).unwrap(), text(generation));
            assert_eq!(Trial::read(&state).unwrap(), None);
        }
        fs::remove_dir_all(state).unwrap();
    }

    #[test]
    fn a_trial_of_a_running_agent_is_left_alone() {
        let state = directory("running");
        let config = state.join("tandem.toml");
        fs::write(&config, text(5)).unwrap();
        let trial = Trial { generation: 5, previous: text(4) };
        trial.keep(&state).unwrap();
        let _lock = DirectoryLock::take(&state).unwrap();
        assert_eq!(undo_unfinished(&config, &state).unwrap(), None);
        assert_eq!(Trial::read(&state).unwrap(), Some(trial));
        fs::remove_dir_all(state).unwrap();
    }
}
