//! Next hops: over which interface and to which MAC packets for a member or a backend go.
//!
//! A thread asks the kernel for the route and the neighbour of each address, has it keep the
//! neighbour resolved, and listens to its changes. The datapath then needs no look-up of its own.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    address::{Address, unmapped},
    target::NextHop,
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fd::OwnedFd,
};
use tracing::{debug, info, warn};

use super::netlink::{Change, Changes, Link, Neighbour, Netlink};

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

/// The handle to the resolving thread, which ends with it.
pub struct NextHops {
    wanted: mpsc::Sender<Vec<Address>>,
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
            full_pass: Instant::now() + FULL_PASS,
        };
        thread::Builder::new().name("next-hops".into()).spawn(move || resolver.run())?;
        Ok(Self { wanted, wake })
    }

    /// Replaces the set of addresses to resolve; those already known are not reported again.
    pub fn follow(&self, addresses: Vec<Address>) {
        // Both fail only when the thread is gone, and then there is nobody to tell.
        let _gone = self.wanted.send(addresses);
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
}

struct Resolver {
    netlink: Netlink,
    changes: Changes,
    orders: mpsc::Receiver<Vec<Address>>,
    wake: Arc<OwnedFd>,
    found: tokio::sync::mpsc::Sender<Resolved>,
    ways: BTreeMap<Address, Way>,
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
                    Ok(addresses) => self.follow(&addresses),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let everything = Instant::now() >= self.full_pass;
            if everything {
                self.full_pass = Instant::now() + FULL_PASS;
            }
            self.resolve(|way| everything || way.next_hop.is_none());
            if self.found.is_closed() {
                return;
            }
        }
    }

    /// Waits for an order, a change or the next pass, and takes changes in.
    fn wait(&mut self) -> io::Result<()> {
        let pass_in = self.full_pass.saturating_duration_since(Instant::now());
        let unresolved = self.ways.values().any(|way| way.next_hop.is_none());
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

    fn follow(&mut self, addresses: &[Address]) {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.ways.retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.ways.entry(*address).or_insert_with(|| Way {
                ifindex: 0,
                via: nowhere,
                next_hop: None,
                since: Instant::now(),
                reported: false,
            });
        }
    }

    /// Looks up the ways that `wanted` selects.
    ///
    /// A way once found is kept until a better one is: an ARP that fails for a while is no reason to drop packets.
    fn resolve(&mut self, wanted: impl Fn(&Way) -> bool) {
        let mut links = HashMap::new();
        for (address, way) in self.ways.iter_mut().filter(|(_, way)| wanted(way)) {
            match look_up(&mut self.netlink, &mut links, address, way) {
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
    #[error("only IPv4 is supported")]
    Family,
    #[error("its interface has no Ethernet address")]
    NoEthernet,
    #[error("{0} does not answer")]
    NoAnswer(IpAddr),
    #[error("netlink: {0}")]
    Netlink(#[from] io::Error),
}

fn look_up(
    netlink: &mut Netlink,
    links: &mut HashMap<u32, Option<Link>>,
    address: &Address,
    way: &mut Way,
) -> Result<NextHop, NoWay> {
    let to = unmapped(*address).ok_or(NoWay::Family)?;
    let route = netlink.route(to.into())?.ok_or(NoWay::NoRoute)?;
    if route.local {
        return Err(NoWay::Local);
    }
    (way.ifindex, way.via) = (route.ifindex, route.via);
    let link = match links.entry(route.ifindex) {
        Entry::Occupied(link) => link.into_mut(),
        Entry::Vacant(unknown) => unknown.insert(netlink.link_by_index(route.ifindex)?),
    };
    let link = link.as_ref().ok_or(NoWay::NoRoute)?;
    let source = link.mac.ok_or(NoWay::NoEthernet)?;
    let known = netlink.neighbour(route.ifindex, route.via)?;
    if !matches!(known, Some(Neighbour { permanent: true, .. })) {
        netlink.keep_resolved(route.ifindex, route.via)?;
    }
    let destination = known.and_then(|neighbour| neighbour.mac).ok_or(NoWay::NoAnswer(route.via))?;
    let mtu = route.mtu.map_or(link.mtu, |path| path.min(link.mtu));
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    Ok(NextHop { destination, source, ifindex: route.ifindex, mtu, ..NextHop::NONE })
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
        next_hops.follow(vec![direct, routed, later, mapped([10, 0, 0, 1])]);

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
