//! The interfaces of this member: attached together, watched afterwards.

use std::{
    collections::BTreeSet,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use aya::programs::Xdp;
use tracing::{error, info, warn};

use super::{
    attach::{AttachError, Interface, LINK_PREFIX, Mode},
    netlink::Netlink,
};

/// The interfaces that the program is attached to.
pub struct Interfaces {
    list: Vec<Watched>,
    mode: Mode,
    pins: PathBuf,
    netlink: Netlink,
}

struct Watched {
    interface: Interface,
    /// What is wrong with it was said.
    complained: bool,
}

impl Interfaces {
    /// Looks at all of `names`; each must exist and run no program but the one pinned in `pins`.
    pub fn inspect(names: &[String], pins: &Path, mode: Mode) -> Result<Self, AttachError> {
        let mut netlink = Netlink::open()?;
        let mut list = Vec::new();
        for name in names {
            let interface = Interface::inspect(&mut netlink, name, pins, mode)?;
            if list.iter().any(|other: &Watched| other.interface.pin() == interface.pin()) {
                return Err(AttachError::SamePin(name.clone()));
            }
            list.push(Watched { interface, complained: false });
        }
        Ok(Self { list, mode, pins: pins.to_owned(), netlink })
    }

    /// Attaches to all of them, and detaches from those that an earlier agent was given and this one is not.
    pub fn attach(&self, program: &mut Xdp) -> Result<(), AttachError> {
        for watched in &self.list {
            watched.interface.attach(program, self.mode)?;
        }
        for entry in fs::read_dir(&self.pins)? {
            let path = entry?.path();
            let is_link = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LINK_PREFIX));
            if is_link && !self.list.iter().any(|watched| watched.interface.pin() == path) {
                fs::remove_file(&path)?;
                info!(pin = %path.display(), "detached from an interface that is not configured any more");
            }
        }
        Ok(())
    }

    /// Detaches from all of them.
    pub fn detach(&self) -> Result<(), AttachError> {
        self.list.iter().try_for_each(|watched| watched.interface.detach())
    }

    /// Attaches again where an interface was removed and has come back; true if one has.
    ///
    /// What cannot be helped is said once.
    pub fn watch(&mut self, program: &mut Xdp) -> bool {
        let mut changed = false;
        let own = program.info().map(|info| info.id()).unwrap_or(0);
        for watched in &mut self.list {
            let name = watched.interface.link.name.clone();
            let link = self.netlink.link_by_name(&name);
            let trouble = match &link {
                Ok(Some(link)) if link.xdp.is_some_and(|attached| attached.program_id == own) => None,
                Ok(_) => match Interface::inspect(&mut self.netlink, &name, &self.pins, self.mode)
                    .and_then(|interface| interface.attach(program, self.mode).map(|()| interface))
                {
                    Ok(interface) => {
                        watched.interface = interface;
                        changed = true;
                        None
                    }
                    Err(error) => Some(error.to_string()),
                },
                Err(error) => Some(error.to_string()),
            };
            match trouble {
                None => watched.complained = false,
                Some(reason) if !watched.complained => {
                    error!(interface = name, reason, "no packet is treated on it; it is tried again");
                    watched.complained = true;
                }
                Some(_) => {}
            }
        }
        changed
    }

    /// Index of the interface that tunnelled packets and probes come in by: the one towards the peers.
    ///
    /// 0, "any", where the routes do not single one out.
    pub fn towards(&mut self, peers: &[Ipv4Addr]) -> io::Result<u32> {
        let mut ways = BTreeSet::new();
        for peer in peers {
            ways.extend(self.netlink.route(*peer)?.map(|route| route.ifindex));
        }
        let indices: Vec<u32> = self.list.iter().map(|watched| watched.interface.link.ifindex).collect();
        for stray in ways.iter().filter(|way| !indices.contains(way)) {
            let name = self.netlink.link_by_index(*stray)?.map_or_else(|| stray.to_string(), |link| link.name);
            warn!(
                interface = name,
                "peers are reached through it, but it is not in node.interfaces: they get no echo there"
            );
        }
        let mut candidates = indices.iter().copied().filter(|index| ways.is_empty() || ways.contains(index));
        match (indices.as_slice(), candidates.next(), candidates.next()) {
            ([only], ..) => Ok(*only),
            (_, Some(one), None) => Ok(one),
            _ => Ok(0),
        }
    }
}
