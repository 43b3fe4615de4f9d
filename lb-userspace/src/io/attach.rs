//! Putting an XDP program on an interface so that it stays when the agent goes.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        loaded_links, loaded_programs,
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use tracing::{info, warn};

use super::netlink::{AttachedXdp, Link, Netlink};

/// Names of pinned links begin with it.
pub const LINK_PREFIX: &str = "link_";
/// The kernel takes milliseconds to detach; a grace period of RCU on a loaded machine takes longer.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);

/// Who runs the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The driver.
    #[default]
    Native,
    /// The network stack: slower by an order of magnitude, works on every interface. Only when asked for.
    Generic,
}

/// Why a program cannot be attached. In every case the interface is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// Somebody else's program is there.
    #[error("interface {interface} already runs the XDP program {program}; {}, or give Tandem another interface", program.removal(interface))]
    Occupied {
        /// The interface.
        interface: String,
        /// The program on it.
        program: ForeignProgram,
    },
    /// This process may not.
    #[error("missing capability {0} (run as root, or grant it; it exists since Linux {1})")]
    Capability(&'static str, &'static str),
    /// The kernel is too old.
    #[error(
        "this kernel is {found}; attaching so that the datapath outlives the agent (bpf_link for XDP) needs Linux 5.9"
    )]
    Kernel {
        /// What runs.
        found: String,
    },
    /// The kernel refused.
    #[error("cannot attach to {interface}: {error}{hint}")]
    Refused {
        /// The interface.
        interface: String,
        /// What the kernel said.
        error: io::Error,
        /// What that usually means.
        hint: Hint,
    },
    /// bpffs takes no dots, so they become underscores in the names of pins.
    #[error(
        "interface {0} and another one of this member differ only in dots and underscores; their links cannot both be pinned"
    )]
    SamePin(String),
    /// The kernel did not detach.
    #[error("the program is still on interface {0}, though its link is removed; does another process hold it?")]
    StillAttached(String),
    /// The link to the pinned program cannot be handled.
    #[error("{}: {error}", .path.display())]
    Pin {
        /// The pinned link.
        path: PathBuf,
        /// What happened.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel keeps the program that the link runs.
    #[error("the kernel keeps the program in {}: {error}{hint}", .path.display())]
    Replace {
        /// The pinned link.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
        /// What that usually means.
        hint: Hint,
    },
    /// The kernel cannot be asked about the interface.
    #[error("netlink: {0}")]
    Netlink(#[from] io::Error),
}

/// A program that is not ours.
#[derive(Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    id: u32,
    name: Option<String>,
    link: Option<u32>,
}

impl ForeignProgram {
    fn find(id: u32) -> Self {
        let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
        let link = loaded_links().filter_map(Result::ok).find(|link| link.program_id() == id);
        let name = program.and_then(|program| program.name_as_str().map(str::to_owned));
        Self { id, name, link: link.map(|link| link.id()) }
    }

    /// How it is taken off: a program that a bpf_link holds cannot be removed with `ip`.
    pub fn removal(&self, interface: &str) -> String {
        match self.link {
            Some(link) => format!("stop what attached it, or detach it with `bpftool link detach id {link}`"),
            None => format!("remove it with `ip link set dev {interface} xdp off`"),
        }
    }
}

impl fmt::Display for ForeignProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (id {})", self.id),
            None => write!(f, "with id {}", self.id),
        }
    }
}

/// What an errno of attaching usually means.
#[derive(Debug, PartialEq, Eq)]
pub struct Hint(Option<String>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// An interface that was looked at and may be attached to.
#[derive(Debug)]
pub struct Interface {
    /// What the kernel says of it.
    pub link: Link,
    /// Where the bpf_link is or will be pinned.
    pin: PathBuf,
    /// Whether our pinned bpf_link sits on it, in the wanted mode.
    adoptable: bool,
}

impl Interface {
    /// Looks at interface `name`: it must exist, and run no program but the one pinned in `pins`.
    pub fn inspect(netlink: &mut Netlink, name: &str, pins: &Path, mode: Mode) -> Result<Self, AttachError> {
        let link = netlink.link_by_name(name)?.ok_or_else(|| AttachError::NoInterface(name.to_owned()))?;
        let pin = pins.join(link_pin(name));
        let Some(attached) = link.xdp else { return Ok(Self { link, pin, adoptable: false }) };
        let own = if pin.exists() { Some(pinned_program(&pin)?) } else { None };
        if own != Some(attached.program_id) {
            return Err(occupied(&link, attached));
        }
        let adoptable = attached.generic == (mode == Mode::Generic);
        if !adoptable {
            warn!(
                interface = name,
                "attached in another mode than wanted; it is attached anew, which takes an instant"
            );
        }
        Ok(Self { link, pin, adoptable })
    }

    /// Where its link is or will be pinned.
    pub fn pin(&self) -> &Path {
        &self.pin
    }

    /// Attaches `program` and pins the link; where our link is, its program is replaced atomically.
    pub fn attach(&self, program: &mut Xdp, mode: Mode) -> Result<(), AttachError> {
        if self.adoptable && replace(&self.pin, program)? {
            info!(interface = self.link.name, "took over the pinned link");
            say_mode(&self.link, mode);
            return Ok(());
        }
        if self.pin.exists() {
            // Of an interface or a network namespace that is gone, or of the other mode.
            self.detach()?;
        }
        let link = attach_anew(&self.link, program, mode)?;
        link.pin(&self.pin).map_err(|error| self.pin_error(error))?;
        Ok(())
    }

    /// Takes the program off the interface; when this returns, it is off.
    pub fn detach(&self) -> Result<(), AttachError> {
        if self.pin.exists() {
            fs::remove_file(&self.pin).map_err(|error| self.pin_error(error))?;
        }
        // The kernel detaches in the background once the pin, the link's last reference, is gone.
        let mut netlink = Netlink::open()?;
        let began = Instant::now();
        while netlink.link_by_index(self.link.ifindex)?.is_some_and(|link| link.xdp.is_some()) {
            if began.elapsed() >= DETACH_TIMEOUT {
                return Err(AttachError::StillAttached(self.link.name.clone()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn pin_error(&self, error: impl std::error::Error + Send + Sync + 'static) -> AttachError {
        AttachError::Pin { path: self.pin.clone(), error: Box::new(error) }
    }
}

/// Puts `program` in the place of the one that the link pinned at `pin` runs: each packet sees the one or the other.
///
/// False when the link is of an interface or a namespace that is gone (ENOLINK).
pub fn replace(pin: &Path, program: &mut Xdp) -> Result<bool, AttachError> {
    let failed = |error: LinkError| AttachError::Pin { path: pin.to_owned(), error: Box::new(error) };
    let link = FdLink::from(PinnedLink::from_pin(pin).map_err(failed)?);
    let link = XdpLink::try_from(link).map_err(failed)?;
    let error = match program.attach_to_link(link) {
        Ok(id) => {
            // The pin holds the link. Left with the program, this descriptor would keep it after the pin has gone.
            drop(program.take_link(id));
            return Ok(true);
        }
        Err(ProgramError::SyscallError(call)) => call.io_error,
        Err(other) => io::Error::other(other),
    };
    let hint = match error.raw_os_error() {
        Some(libc::ENOLINK) => return Ok(false),
        Some(libc::EINVAL) => Some(
            "the program in it was loaded for another kind of attachment, so none of ours can take its place; `tandem \
             datapath detach` and a start of the agent attach anew, which takes an instant"
                .into(),
        ),
        Some(libc::EOPNOTSUPP) => Some("the MTU needs the program for frames in several buffers".into()),
        Some(libc::EPERM) => Some("missing capability CAP_NET_ADMIN or CAP_BPF (since Linux 5.8)".into()),
        _ => None,
    };
    Err(AttachError::Replace { path: pin.to_owned(), error, hint: Hint(hint) })
}

/// Attaches `program` to interface `name` for as long as the returned link lives.
pub fn attach_unpinned(
    netlink: &mut Netlink,
    name: &str,
    program: &mut Xdp,
    mode: Mode,
) -> Result<FdLink, AttachError> {
    let link = unoccupied(netlink, name)?;
    attach_anew(&link, program, mode)
}

/// The interface `name`, which must run no XDP program.
pub fn unoccupied(netlink: &mut Netlink, name: &str) -> Result<Link, AttachError> {
    let link = netlink.link_by_name(name)?.ok_or_else(|| AttachError::NoInterface(name.to_owned()))?;
    link.xdp.map_or(Ok(()), |attached| Err(occupied(&link, attached)))?;
    Ok(link)
}

/// What must hold before anything is loaded: the kernel's version and this process's capabilities.
pub fn check_host() -> Result<(), AttachError> {
    let version = KernelVersion::current().map_err(io::Error::other)?;
    if version < KernelVersion::new(5, 9, 0) {
        return Err(AttachError::Kernel { found: kernel_release() });
    }
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_PERFMON: u32 = 38;
    const CAP_BPF: u32 = 39;
    let effective = effective_capabilities()?;
    let has = |capability: u32| effective & (1 << capability) != 0;
    if !has(CAP_NET_ADMIN) {
        return Err(AttachError::Capability("CAP_NET_ADMIN", "2.2"));
    }
    for (capability, name) in [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")] {
        if !has(capability) && !has(CAP_SYS_ADMIN) {
            return Err(AttachError::Capability(name, "5.8"));
        }
    }
    Ok(())
}

/// The name of the pinned link for an interface; bpffs takes no dots.
pub fn link_pin(interface: &str) -> String {
    format!("{LINK_PREFIX}{}", interface.replace('.', "_"))
}

fn attach_anew(link: &Link, program: &mut Xdp, mode: Mode) -> Result<FdLink, AttachError> {
    // Never `Default`: the kernel would choose generic mode without a word.
    let wanted = match mode {
        Mode::Native => XdpMode::Driver,
        Mode::Generic => XdpMode::Skb,
    };
    let id = program.attach_to_if_index(link.ifindex, wanted).map_err(|error| refused(link, error))?;
    let attached = program.take_link(id).map_err(|error| refused(link, error))?;
    // After EINVAL aya attaches through netlink. Such a link dies with the process; dropping it detaches.
    let attached =
        FdLink::try_from(attached).map_err(|_not_a_bpf_link| AttachError::Kernel { found: kernel_release() })?;
    info!(interface = link.name, "attached");
    say_mode(link, mode);
    Ok(attached)
}

fn say_mode(link: &Link, mode: Mode) {
    if mode == Mode::Generic {
        warn!(interface = link.name, "GENERIC mode: every packet takes the slow path through the network stack");
    }
}

fn refused(link: &Link, error: ProgramError) -> AttachError {
    let error = match error {
        ProgramError::SyscallError(call) => call.io_error,
        other => io::Error::other(other),
    };
    let hint = hint(&error, link);
    AttachError::Refused { interface: link.name.clone(), error, hint }
}

fn occupied(link: &Link, attached: AttachedXdp) -> AttachError {
    AttachError::Occupied { interface: link.name.clone(), program: ForeignProgram::find(attached.program_id) }
}

fn effective_capabilities() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/self/status"))
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn pinned_program(pin: &Path) -> Result<u32, AttachError> {
    let failed = |error: LinkError| AttachError::Pin { path: pin.to_owned(), error: Box::new(error) };
    let link = FdLink::from(PinnedLink::from_pin(pin).map_err(failed)?);
    Ok(link.info().map_err(failed)?.program_id())
}

fn hint(error: &io::Error, link: &Link) -> Hint {
    let text = match error.raw_os_error() {
        Some(libc::ERANGE) => format!(
            "the MTU of {} bytes is too large for native XDP on this driver (veth: about 3500); lower it, or use \
             --xdp-mode generic",
            link.mtu
        ),
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program sits on the interface (`bpftool net` shows it)".into(),
        Some(libc::EPERM) => "missing capability CAP_NET_ADMIN or CAP_BPF (since Linux 5.8)".into(),
        Some(libc::EOPNOTSUPP) => {
            "the driver has no native XDP; --xdp-mode generic works on every interface, slowly".into()
        }
        Some(libc::ENODEV) => "the interface has gone".into(),
        _ => return Hint(None),
    };
    Hint(Some(text))
}
