//! Next hops: over which interface and to which MAC packets for a member or a backend go.
//!
//! A thread asks the kernel for the route and the neighbour of each address, has it keep the
//! neighbour resolved, and listens to its changes. The datapath then needs no look-up of its own. The unspecified address
//! of a family stands for its default route.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    io,
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    address::{Address, mapped, unmapped},
    target::NextHop,
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fd::OwnedFd,
};
use tracing::{debug, info, warn};

use super::netlink::{Change, Changes, Link, Neighbour, Netlink, Route};

/// The default route of each family, by `V4` and `V6`.
pub const GATEWAYS: [Address; 2] = [mapped([0; 4]), [0; 16]];

/// Unresolved addresses are asked for again this often: ARP's own retry is once a second.
const RETRY: Duration = Duration::from_millis(200);
/// An address that stays unresolved for this long is reported, once.
const PATIENCE: Duration = Duration::from_secs(3);
/// Everything is looked up again this often, in case an announcement was missed.
const FULL_PASS: Duration = Duration::from_secs(30);
/// Changes of links and routes come in bursts: one look at everything per burst.
const SETTLE: Duration = Duration::from_millis(50);

/// The way to `address`, found or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Of a member or a backend.
    pub address: Address,
    /// How to reach it.
    pub next_hop: NextHop,
}

/// What is to be resolved.
struct Wanted {
    addresses: Vec<Address>,
    /// Indexes of the interfaces that packets may leave by.
    devices: Vec<u32>,
}

/// The handle to the resolving thread, which ends with it.
pub struct NextHops {
    wanted: mpsc::Sender<Wanted>,
    wake: Arc<OwnedFd>,
}

impl NextHops {
    /// Starts the thread, in the current network namespace; what it finds goes to `found`.
    pub fn start(found: tokio::sync::mpsc::Sender<Resolved>) -> io::Result<Self> {
        let (wanted, orders) = mpsc::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut resolver = Resolver {
            netlink: Netlink::open()?,
            changes: Changes::subscribe()?,
            orders,
            wake: Arc::clone(&wake),
            found,
            ways: BTreeMap::new(),
            devices: Vec::new(),
            full_pass: Instant::now() + FULL_PASS,
        };
        thread::Builder::new().name("next-hops".into()).spawn(move || resolver.run())?;
        Ok(Self { wanted, wake })
    }

    /// Replaces the set of addresses to resolve, and of the interfaces that packets may leave by; addresses already known are
    /// not reported again.
    pub fn follow(&self, addresses: Vec<Address>, devices: Vec<u32>) {
        // Both fail only when the thread is gone, and then there is nobody to tell.
        let _gone = self.wanted.send(Wanted { addresses, devices });
        let _full = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel();
        self.wanted = closed;
        let _full = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// What is known of the way to one address.
struct Way {
    ifindex: u32,
    via: IpAddr,
    next_hop: Option<NextHop>,
    since: Instant,
    reported: bool,
    /// It is looked for again when routes change, and not before.
    is_absent: bool,
}

struct Resolver {
    netlink: Netlink,
    changes: Changes,
    orders: mpsc::Receiver<Wanted>,
    wake: Arc<OwnedFd>,
    found: tokio::sync::mpsc::Sender<Resolved>,
    ways: BTreeMap<Address, Way>,
    devices: Vec<u32>,
    full_pass: Instant,
}

impl Resolver {
    fn run(&mut self) {
        loop {
            if let Err(error) = self.wait() {
                warn!(%error, "cannot wait for netlink");
                thread::sleep(RETRY);
            }
            loop {
                match self.orders.try_recv() {
                    Ok(wanted) => self.follow(wanted),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let everything = Instant::now() >= self.full_pass;
            if everything {
                self.full_pass = Instant::now() + FULL_PASS;
            }
            self.resolve(|way| everything || way.is_open());
            if self.found.is_closed() {
                return;
            }
        }
    }

    /// Waits for an order, a change or the next pass, and takes changes in.
    fn wait(&mut self) -> io::Result<()> {
        let pass_in = self.full_pass.saturating_duration_since(Instant::now());
        let unresolved = self.ways.values().any(Way::is_open);
        let timeout = if unresolved { pass_in.min(RETRY) } else { pass_in };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let (changed, woken) = {
            let changes = self.changes.as_fd();
            let mut fds = [
                PollFd::from_borrowed_fd(changes, PollFlags::IN),
                PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            ];
            poll(&mut fds, Some(&timeout))?;
            (!fds[0].revents().is_empty(), !fds[1].revents().is_empty())
        };
        if woken {
            let mut count = [0; 8];
            rustix::io::read(&self.wake, &mut count)?;
        }
        if changed {
            let changes = match self.changes.next(Duration::ZERO) {
                // An announcement of a kind this version cannot read.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => vec![Change::Topology],
                changes => changes?,
            };
            changes.into_iter().for_each(|change| self.take(change));
        }
        Ok(())
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Topology => self.full_pass = self.full_pass.min(Instant::now() + SETTLE),
            Change::Neighbour(neighbour) => {
                let Some(mac) = neighbour.mac else { return };
                for (address, way) in &mut self.ways {
                    let concerned = way.ifindex == neighbour.ifindex && way.via == neighbour.address;
                    let Some(next_hop) = way.next_hop.as_mut().filter(|_| concerned) else { continue };
                    if next_hop.destination != mac {
                        next_hop.destination = mac;
                        let _closed = self.found.blocking_send(Resolved { address: *address, next_hop: *next_hop });
                    }
                }
            }
        }
    }

    fn follow(&mut self, wanted: Wanted) {
        let addresses: BTreeSet<Address> = wanted.addresses.into_iter().chain(GATEWAYS).collect();
        self.ways.retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.ways.entry(address).or_insert_with(|| Way {
                ifindex: 0,
                via: shown(&address),
                next_hop: None,
                since: Instant::now(),
                reported: false,
                is_absent: false,
            });
        }
        if wanted.devices != self.devices {
            self.devices = wanted.devices;
            self.full_pass = Instant::now();
        }
    }

    /// Looks up the ways that `wanted` selects.
    ///
    /// A way once found is kept until a better one is: an ARP that fails for a while is no reason to drop packets.
    fn resolve(&mut self, wanted: impl Fn(&Way) -> bool) {
        let mut looking = Looking { netlink: &mut self.netlink, links: HashMap::new(), devices: &self.devices };
        for (address, way) in self.ways.iter_mut().filter(|(_, way)| wanted(way)) {
            let found = looking.look_up(address, way);
            way.is_absent = GATEWAYS.contains(address) && found.is_err();
            match found {
                Ok(next_hop) => {
                    if way.next_hop != Some(next_hop) {
                        debug!(address = %shown(address), ?next_hop, "next hop");
                        if way.reported {
                            info!(address = %shown(address), "the next hop is resolved now");
                        }
                        (way.next_hop, way.reported) = (Some(next_hop), false);
                        let _closed = self.found.blocking_send(Resolved { address: *address, next_hop });
                    }
                }
                Err(reason) if way.is_absent => debug!(%reason, "no default route"),
                Err(reason) if !way.reported && way.next_hop.is_none() && way.since.elapsed() >= PATIENCE => {
                    way.reported = true;
                    warn!(address = %shown(address), %reason, "no next hop; packets for it are dropped (drop_no_next_hop)");
                }
                Err(_) => {}
            }
        }
    }
}

/// Why an address cannot be reached (yet).
#[derive(Debug, thiserror::Error)]
enum NoWay {
    #[error("no route")]
    NoRoute,
    #[error("it is an address of this host")]
    Local,
    #[error("its way is through {0}, which is not among node.interfaces")]
    NotAttached(String),
    #[error("{0} is a VLAN within a VLAN within a VLAN")]
    TooManyTags(String),
    #[error("its interface has no Ethernet address")]
    NoEthernet,
    #[error("{0} does not answer")]
    NoAnswer(IpAddr),
    #[error("netlink: {0}")]
    Netlink(#[from] io::Error),
}

impl Way {
    /// Whether it is to be looked for all the time.
    const fn is_open(&self) -> bool {
        self.next_hop.is_none() && !self.is_absent
    }
}

/// One pass over the ways.
struct Looking<'a> {
    netlink: &'a mut Netlink,
    links: HashMap<u32, Option<Link>>,
    devices: &'a [u32],
}

impl Looking<'_> {
    fn look_up(&mut self, address: &Address, way: &mut Way) -> Result<NextHop, NoWay> {
        let route = self.route(address)?.ok_or(NoWay::NoRoute)?;
        if route.local {
            return Err(NoWay::Local);
        }
        (way.ifindex, way.via) = (route.ifindex, route.via);
        let link = self.link(route.ifindex)?;
        let source = link.mac.ok_or(NoWay::NoEthernet)?;
        let (ifindex, tag_bytes, tags) = self.carrier(&link)?;
        let known = self.netlink.neighbour(route.ifindex, route.via)?;
        if !matches!(known, Some(Neighbour { permanent: true, .. })) {
            self.netlink.keep_resolved(route.ifindex, route.via)?;
        }
        let destination = known.and_then(|neighbour| neighbour.mac).ok_or(NoWay::NoAnswer(route.via))?;
        let mtu = route.mtu.map_or(link.mtu, |path| path.min(link.mtu));
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        Ok(NextHop { destination, source, ifindex, mtu, tag_bytes, padding: 0, tags })
    }

    fn route(&mut self, address: &Address) -> io::Result<Option<Route>> {
        if GATEWAYS.contains(address) {
            self.netlink.default_route(shown(address).is_ipv4())
        } else {
            self.netlink.route(shown(address))
        }
    }

    /// The attached interface that frames of `link` leave by, and their tags, the outer one first.
    fn carrier(&mut self, link: &Link) -> Result<(u32, u8, [u8; 8]), NoWay> {
        let (mut carrier, mut tags) = (link.clone(), Vec::new());
        while let Some(vlan) = carrier.vlan.filter(|_| !self.devices.contains(&carrier.ifindex)) {
            tags.splice(0..0, vlan.tag);
            carrier = self.link(vlan.parent)?;
        }
        let mut bytes = [0; 8];
        bytes.get_mut(..tags.len()).ok_or_else(|| NoWay::TooManyTags(link.name.clone()))?.copy_from_slice(&tags);
        if !self.devices.contains(&carrier.ifindex) {
            return Err(NoWay::NotAttached(carrier.name));
        }
        Ok((carrier.ifindex, tags.len() as u8, bytes))
    }

    fn link(&mut self, ifindex: u32) -> Result<Link, NoWay> {
        let link = match self.links.entry(ifindex) {
            Entry::Occupied(link) => link.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.netlink.link_by_index(ifindex)?),
        };
        link.clone().ok_or(NoWay::NoRoute)
    }
}

fn shown(address: &Address) -> IpAddr {
    unmapped(*address).map_or_else(|| IpAddr::from(*address), IpAddr::from)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use lb_common::address::mapped;
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(done.success(), "ip {arguments}");
    }

    fn resolved(found: &mut tokio::sync::mpsc::Receiver<Resolved>) -> Resolved {
        for _ in 0..100 {
            if let Ok(resolved) = found.try_recv() {
                return resolved;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("nothing was resolved");
    }

    /// In a network namespace of its own; without the right to make one there is nothing to test.
    #[test]
    fn next_hops_follow_routes_and_neighbours() {
        // SAFETY: only this test's thread, and those it starts, move to the new network namespace.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            eprintln!("skipped: cannot make a network namespace ({error}); run as root");
            return;
        }
        ip("link add name test0 address 02:00:00:00:00:0a mtu 1400 type veth peer name test1");
        ip("link set test0 up");
        ip("link set test1 up");
        ip("addr add 10.0.0.1/24 dev test0");
        ip("route add 10.1.0.0/16 via 10.0.0.3 mtu 1300");
        ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev test0 nud permanent");
        ip("neigh add 10.0.0.3 lladdr 02:00:00:00:00:03 dev test0 nud permanent");

        let (sender, mut found) = tokio::sync::mpsc::channel(8);
        let next_hops = NextHops::start(sender).unwrap();
        let (direct, routed, later) = (mapped([10, 0, 0, 2]), mapped([10, 1, 2, 3]), mapped([10, 2, 0, 1]));
        let device = Netlink::open().unwrap().link_by_name("test0").unwrap().unwrap().ifindex;
        next_hops.follow(vec![direct, routed, later, mapped([10, 0, 0, 1])], vec![device]);

        let first = resolved(&mut found);
        assert_eq!((first.address, first.next_hop.destination[5], first.next_hop.mtu), (direct, 2, 1400));
        assert_eq!(first.next_hop.source, [2, 0, 0, 0, 0, 0x0a]);
        let second = resolved(&mut found);
        assert_eq!((second.address, second.next_hop.destination[5], second.next_hop.mtu), (routed, 3, 1300));

        ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:22 dev test0 nud permanent");
        let moved = resolved(&mut found);
        assert_eq!((moved.address, moved.next_hop.destination[5]), (direct, 0x22));

        ip("route add 10.2.0.0/16 via 10.0.0.2");
        let reached = resolved(&mut found);
        assert_eq!((reached.address, reached.next_hop.destination[5]), (later, 0x22));
        assert!(found.try_recv().is_err(), "an own address has no next hop");
    }
}
