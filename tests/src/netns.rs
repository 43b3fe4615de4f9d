//! Network namespaces that are removed when their owner is dropped.
//!
//! A namespace is entered with setns(2) on a thread of its own, or between fork and exec of a
//! child. `ip netns exec` is not used: it mounts a new /sys, which hides the pins in bpffs.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};

use crate::{command, run::Run};

/// Where `ip netns` keeps its names.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name; it is deleted when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    /// Makes the namespace of `role` in this run, with loopback up and reverse-path filters off.
    pub fn new(run: &Run, role: &str) -> Result<Arc<Self>> {
        let name = format!("{}-{role}", run.prefix());
        command::run(command::ip().args(["netns", "add", &name]))?;
        let path = Path::new(DIRECTORY).join(&name);
        let handle = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let namespace = Self { name, handle };
        namespace.ip(&["link set lo up"])?;
        // Asymmetric paths are the point of direct server return.
        namespace.sysctl("ipv4/conf/all/rp_filter", "0")?;
        namespace.sysctl("ipv4/conf/default/rp_filter", "0")?;
        // Addresses are given by hand: what hosts otherwise say about theirs would only disturb what is counted.
        for (key, value) in
            [("accept_ra", "0"), ("accept_dad", "0"), ("dad_transmits", "0"), ("router_solicitations", "0")]
        {
            namespace.sysctl(&format!("ipv6/conf/default/{key}"), value)?;
        }
        Ok(Arc::new(namespace))
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` commands, given without the leading `ip`, as one batch in here.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        let batch = lines.join("\n") + "\n";
        command::run_with_input(command::ip().args(["-n", &self.name, "-batch", "-"]), &batch)?;
        Ok(())
    }

    /// Writes `/proc/sys/net/KEY`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.within(|| fs::write(&path, value))
            .with_context(|| format!("cannot set {} in {}", path.display(), self.name))
    }

    /// Calls `work` on a short-lived thread inside the namespace. Sockets it makes stay inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            enter(self.handle.as_raw_fd()).expect("the namespace exists while its handle is open");
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Starts a thread that lives inside the namespace.
    pub fn thread<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let namespace = Arc::clone(self);
        let inside = move || {
            enter(namespace.handle.as_raw_fd()).expect("the namespace exists while its handle is open");
            work()
        };
        thread::Builder::new().name(name.to_owned()).spawn(inside).context("cannot start a thread")
    }

    /// A command whose process will run inside the namespace.
    ///
    /// It gets a process group of its own, so that Ctrl-C reaches only the lab, which then ends it;
    /// and it dies with the thread that started it, so that a killed lab leaves no agents.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let handle = self.handle.as_raw_fd();
        let mut command = Command::new(program.as_ref());
        command.process_group(0);
        // SAFETY: between fork and exec only async-signal-safe system calls are made; the handle
        // outlives the command's use, which borrows from the same owner.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                enter(handle)
            })
        };
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = command::run(command::ip().args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

fn enter(handle: RawFd) -> io::Result<()> {
    // SAFETY: setns changes only the calling thread's namespace.
    if unsafe { libc::setns(handle, libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
