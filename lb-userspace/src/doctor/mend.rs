//! What mends a finding: said to the operator as a command, and done by `--fix` where nothing can be lost by it.

use std::{fmt, fs, io, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use serde::{Serialize, Serializer};

use super::ethtool;
use crate::io::pins::BPFFS;

/// The remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    /// A command or a change that is the operator's to make: others may depend on what is there now.
    Say(String),
    /// A kernel setting, by its path under `/proc/sys`.
    Sysctl(String, u32),
    /// Words for `ip`.
    Ip(Vec<String>),
    /// A BPF file system where every distribution has it.
    Bpffs,
    /// Permission bits of a file.
    Mode(PathBuf, u32),
    /// A directory that is to exist, for its owner only.
    Directory(PathBuf),
    /// No unfinished checksums on this interface.
    Checksums(String),
    /// No merging of received segments on this interface.
    Lro(String),
}

impl Mend {
    /// Does it; `None` where that is the operator's business.
    pub(super) fn apply(&self) -> Option<io::Result<()>> {
        Some(match self {
            Self::Say(_) => return None,
            Self::Sysctl(path, value) => fs::write(format!("/proc/sys/{path}"), value.to_string()),
            Self::Ip(words) => run(Command::new("ip").args(words)),
            Self::Bpffs => run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS])),
            Self::Mode(path, mode) => fs::set_permissions(path, fs::Permissions::from_mode(*mode)),
            Self::Directory(path) => {
                fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
            }
            Self::Checksums(interface) => ethtool::set_checksums(interface, false),
            Self::Lro(interface) => ethtool::set_lro(interface, false),
        })
    }

    /// Whether `--fix` does it.
    pub fn is_safe(&self) -> bool {
        !matches!(self, Self::Say(_))
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(io::Error::other(said)) }
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Say(text) => f.write_str(text),
            // Interfaces may have dots in their names: sysctl takes slashes, too.
            Self::Sysctl(path, value) => write!(f, "sysctl -w {path}={value}"),
            Self::Ip(words) => write!(f, "ip {}", words.join(" ")),
            Self::Bpffs => write!(f, "mount -t bpf bpf {BPFFS}"),
            Self::Mode(path, mode) => write!(f, "chmod {mode:o} {}", path.display()),
            Self::Directory(path) => write!(f, "install -d -m 700 {}", path.display()),
            Self::Checksums(interface) => write!(f, "ethtool -K {interface} tx off rx off"),
            Self::Lro(interface) => write!(f, "ethtool -K {interface} lro off"),
        }
    }
}

impl Serialize for Mend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
