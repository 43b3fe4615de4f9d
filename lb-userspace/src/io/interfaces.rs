//! The interfaces of this member: attached together, watched afterwards.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::programs::Xdp;
use tracing::{error, info, warn};

use super::{
    attach::{AttachError, Interface, LINK_PREFIX, Mode},
    bpf::link_facts,
    datapath::{DatapathError, Entry},
    netlink::Netlink,
};
use crate::config::MultiBuffer;

/// The interfaces that the program is attached to.
pub struct Interfaces {
    list: Vec<Watched>,
    mode: Mode,
    pins: PathBuf,
    netlink: Netlink,
}

struct Watched {
    interface: Interface,
    /// Which of the programs it runs.
    entry: Entry,
    /// What is wrong with it was said.
    complained: bool,
}

impl Interfaces {
    /// Looks at all of `names`; each must exist and run no program but the one pinned in `pins`.
    pub fn inspect(names: &[String], pins: &Path, mode: Mode, multi_buffer: MultiBuffer) -> Result<Self, AttachError> {
        let mut netlink = Netlink::open()?;
        let mut list = Vec::new();
        for name in names {
            let interface = Interface::inspect(&mut netlink, name, pins, mode)?;
            if list.iter().any(|other: &Watched| other.interface.pin() == interface.pin()) {
                return Err(AttachError::SamePin(name.clone()));
            }
            let entry = Entry::of(multi_buffer, mode, interface.link.mtu);
            list.push(Watched { interface, entry, complained: false });
        }
        Ok(Self { list, mode, pins: pins.to_owned(), netlink })
    }

    /// Attaches to all of them, and detaches from those that an earlier agent was given and this one is not.
    ///
    /// `open` answers the program for each.
    pub fn attach(&self, open: impl Fn(Entry) -> Result<Xdp, DatapathError>) -> Result<(), DatapathError> {
        for watched in &self.list {
            watched.interface.attach(&mut open(watched.entry)?, self.mode)?;
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
    pub fn watch(&mut self, open: impl Fn(Entry) -> Result<Xdp, DatapathError>) -> Result<bool, DatapathError> {
        let mut changed = false;
        for watched in &mut self.list {
            // Whichever program that is: an operator may have put another one there.
            let own = link_facts(watched.interface.pin()).map(|facts| facts.program_id).ok();
            let name = watched.interface.link.name.clone();
            let link = self.netlink.link_by_name(&name);
            let trouble = match &link {
                Ok(Some(link)) if link.xdp.is_some_and(|attached| Some(attached.program_id) == own) => None,
                Ok(_) => match Interface::inspect(&mut self.netlink, &name, &self.pins, self.mode)
                    .map_err(DatapathError::from)
                    .and_then(|interface| {
                        interface.attach(&mut open(watched.entry)?, self.mode)?;
                        Ok(interface)
                    }) {
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
        Ok(changed)
    }

    /// The programs that they run.
    pub fn entries(&self) -> Vec<Entry> {
        let is_run = |entry: &Entry| self.list.iter().any(|watched| watched.entry == *entry);
        Entry::ALL.into_iter().filter(is_run).collect()
    }

    /// Their indexes.
    pub fn indexes(&self) -> Vec<u32> {
        self.list.iter().map(|watched| watched.interface.link.ifindex).collect()
    }

    /// Index of the cluster's interface, the first: probes and hand-offs are taken from it only.
    pub fn cluster(&self) -> u32 {
        self.list.first().map_or(0, |watched| watched.interface.link.ifindex)
    }

    /// Warns when `peers` are reached another way than through the cluster's interface.
    pub fn check_way_to(&mut self, peers: &[IpAddr]) -> io::Result<()> {
        let Some(Watched { interface: cluster, .. }) = self.list.first() else { return Ok(()) };
        for peer in peers {
            let Some(route) = self.netlink.route(*peer)?.filter(|route| route.ifindex != cluster.link.ifindex) else {
                continue;
            };
            let way = self.netlink.link_by_index(route.ifindex)?.map_or_else(String::new, |link| link.name);
            warn!(
                %peer, way, cluster = cluster.link.name,
                "a peer is reached through another interface than the cluster's, so its echoes are not seen (node.cluster_interface)"
            );
        }
        Ok(())
    }
}
