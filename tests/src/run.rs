//! One lab's names and directories, and what earlier labs left behind.
//!
//! Everything a lab makes on the host carries the prefix `td<pid>-<n>`: namespaces, a directory
//! for files, a directory in bpffs. So labs never meet, and what a killed one left is
//! recognised by a pid that no longer runs.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};

use crate::{command, netns};

const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPFFS_MAGIC: i64 = 0xcafe_4a11;

/// The names and directories of one lab; the directories go when it is dropped.
#[derive(Debug)]
pub struct Run {
    prefix: String,
    files: PathBuf,
    pins: PathBuf,
}

impl Run {
    /// Claims a fresh prefix and its directories, after removing what dead runs left.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        require_root()?;
        mount_bpffs()?;
        remove_leftovers();
        let prefix = format!("td{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let run = Self { files: std::env::temp_dir().join(&prefix), pins: Path::new(BPFFS).join(&prefix), prefix };
        fs::create_dir(&run.files).with_context(|| format!("cannot make {}", run.files.display()))?;
        fs::create_dir(&run.pins).with_context(|| format!("cannot make {}", run.pins.display()))?;
        Ok(run)
    }

    /// What every name of this lab starts with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where this lab keeps its configuration, keys, state and logs.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// A directory in bpffs for the pins of the member called `name`.
    pub fn pins(&self, name: &str) -> PathBuf {
        self.pins.join(name)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        remove_tree(&self.pins);
        if std::env::var_os("TANDEM_LAB_KEEP").is_some() {
            eprintln!("kept {}", self.files.display());
        } else {
            remove_tree(&self.files);
        }
    }
}

/// Errors with the remedy when the process may not make namespaces.
pub fn require_root() -> Result<()> {
    // SAFETY: reads a process attribute.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the lab makes network namespaces and loads eBPF programs: run it as root (sudo -E)");
    }
    Ok(())
}

/// bpffs at its usual place; it is the host's and stays mounted.
fn mount_bpffs() -> Result<()> {
    let path = CString::new(BPFFS)?;
    // SAFETY: zeroes are a valid statfs, and both pointers live through the call.
    let mounted = unsafe {
        let mut facts: libc::statfs = std::mem::zeroed();
        libc::statfs(path.as_ptr(), &raw mut facts) == 0 && facts.f_type == BPFFS_MAGIC
    };
    if mounted {
        return Ok(());
    }
    let kind = CString::new("bpf")?;
    // SAFETY: strings with a terminating zero that live through the call.
    let result = unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("cannot mount bpffs (mount -t bpf bpf /sys/fs/bpf)");
    }
    Ok(())
}

/// Removes namespaces and directories of labs whose process no longer runs.
fn remove_leftovers() {
    for name in names_in(Path::new(netns::DIRECTORY)) {
        let mut delete = command::ip();
        if is_left_over(&name) && command::run(delete.args(["netns", "del", &name])).is_err() {
            eprintln!("cannot remove the namespace {name} of a lab that was killed");
        }
    }
    for directory in [Path::new(BPFFS), &std::env::temp_dir()] {
        for name in names_in(directory).filter(|name| is_left_over(name)) {
            remove_tree(&directory.join(name));
        }
    }
}

fn names_in(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn is_left_over(name: &str) -> bool {
    pid_in(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// The pid in `td<pid>-<n>` or `td<pid>-<n>-<role>`.
fn pid_in(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix("td")?.split_once('-')?;
    rest.starts_with(|c: char| c.is_ascii_digit()).then(|| pid.parse().ok())?
}

fn remove_tree(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_labs_are_left_over() {
        let own = std::process::id();
        assert!(is_left_over("td4194305-1-lb1"), "above the kernel's largest pid");
        assert!(!is_left_over(&format!("td{own}-1-lb1")));
        assert!(!is_left_over("tdx-1"));
        assert!(!is_left_over("td4194305"));
        assert!(!is_left_over("td4194305-lb1"));
        assert!(!is_left_over("other"));
    }
}
