//! How a command ends.

use std::{io::IsTerminal, process::ExitCode};

use super::paint;
use crate::{
    config::ConfigError,
    control::client::{self, AskError},
    pinned::PinnedError,
};

/// The exit codes; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Not done.
    Failed = 1,
    /// Not understood; clap's code for its own errors, too.
    Usage = 2,
    /// No datapath or agent found.
    Absent = 3,
    /// The configuration is invalid; nothing was changed.
    Configuration = 4,
    /// `status`: something is not as it should be.
    Degraded = 5,
    /// `--wait`: what was waited for did not happen in time.
    Late = 6,
}

/// Why a command was not carried out: what happened, whether anything changed, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    /// A failure that ends the process with `exit`.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: format!("error: {}", text.into()) }
    }

    /// Says it on stderr.
    pub(super) fn report(self) -> ExitCode {
        eprintln!("{}", self.text);
        self.exit.into()
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<PinnedError> for Failure {
    fn from(error: PinnedError) -> Self {
        let exit = match &error {
            PinnedError::Absent(_) | PinnedError::OtherVersion { .. } => Exit::Absent,
            PinnedError::Denied(_) | PinnedError::Map { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let exit = match &error {
            AskError::Unreachable { .. } | AskError::Strange { .. } => Exit::Absent,
            AskError::Refused { status: client::INVALID, .. } => Exit::Configuration,
            AskError::Refused { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let styled = paint::is_wanted(std::io::stderr().is_terminal());
        Self { exit: Exit::Configuration, text: error.render(styled) }
    }
}
