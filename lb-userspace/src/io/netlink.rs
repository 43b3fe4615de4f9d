//! Questions to the kernel's routing: links, routes, neighbours.
//!
//! Blocking, each answer waited for; only for threads that may wait and for the time before the driver runs.

mod blackholes;

use std::{io, net::IpAddr, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoData, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A netlink answer fits: the kernel caps a single message at this.
const ANSWER_BYTES: usize = 32 * 1024;
/// The kernel answers at once; this only keeps a lost answer from blocking a thread for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The tag of a VLAN that does not say which it uses.
const TPID_8021Q: u16 = 0x8100;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its MAC; `None` for an interface without Ethernet addresses.
    pub mac: Option<[u8; 6]>,
    /// The largest IP packet it takes.
    pub mtu: u32,
    /// The XDP program on it.
    pub xdp: Option<AttachedXdp>,
    /// What it is if its packets leave by another interface, with a tag.
    pub vlan: Option<Vlan>,
}

/// A VLAN's sub-interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface that carries the tagged frames.
    pub parent: u32,
    /// TPID and TCI as on the wire (IEEE 802.1Q), priority 0.
    pub tag: [u8; 4],
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// The program's id; 0 where several programs sit on one interface.
    pub program_id: u32,
    /// Whether the network stack runs it (generic) rather than the driver.
    pub generic: bool,
}

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface the packet leaves through.
    pub ifindex: u32,
    /// The neighbour it goes to: a gateway, or the destination itself.
    pub via: IpAddr,
    /// The path's own limit of packet sizes.
    pub mtu: Option<u32>,
    /// Whether the address is this host's own.
    pub local: bool,
}

/// A neighbour's link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface.
    pub ifindex: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// Its MAC, while the kernel takes it for valid.
    pub mac: Option<[u8; 6]>,
    /// Whether an operator set it by hand.
    pub permanent: bool,
}

/// A change that the kernel announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A neighbour's state.
    Neighbour(Neighbour),
    /// A link, an address or a route: everything may be reached differently now.
    Topology,
}

/// A socket for requests.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the current network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The interface called `name`; `None` if there is none.
    pub fn link_by_name(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut ask = LinkMessage::default();
        ask.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.link(ask)
    }

    /// The interface with index `ifindex`; `None` if there is none.
    pub fn link_by_index(&mut self, ifindex: u32) -> io::Result<Option<Link>> {
        let mut ask = LinkMessage::default();
        ask.header.index = ifindex;
        self.link(ask)
    }

    /// How the kernel would send a packet to `to`; `None` if it would not.
    pub fn route(&mut self, to: IpAddr) -> io::Result<Option<Route>> {
        let mut ask = RouteMessage::default();
        let (family, bits, destination) = match to {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        ask.header.address_family = family;
        ask.header.destination_prefix_length = bits;
        ask.attributes.push(RouteAttribute::Destination(destination));
        let answer = match self.ask(RouteNetlinkMessage::GetRoute(ask)) {
            Err(error) if is_unreachable(&error) => return Ok(None),
            answer => answer?,
        };
        let Some(RouteNetlinkMessage::NewRoute(route)) = answer else { return Ok(None) };
        Ok(route_of(&route, to))
    }

    /// The default route of the main table that is preferred; `None` if there is none, or it names no gateway.
    ///
    /// Asked for as part of the table: a question for a route to "any address" is answered with the loopback interface.
    pub fn default_route(&mut self, is_v4: bool) -> io::Result<Option<Route>> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let routes = self.dump(RouteNetlinkMessage::GetRoute(ask))?;
        let routes = routes.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(preferred_default(routes))
    }

    /// What the kernel knows of neighbour `address` on `ifindex`; `None` if nothing.
    pub fn neighbour(&mut self, ifindex: u32, address: IpAddr) -> io::Result<Option<Neighbour>> {
        let ask = RouteNetlinkMessage::GetNeighbour(neighbour_message(ifindex, address));
        match self.ask(ask) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(message))) => Ok(neighbour_of(&message)),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the kernel resolve neighbour `address` and keep it resolved.
    ///
    /// Since Linux 5.16 the kernel does the keeping ("managed", commit 7482e3841d52); an older one only resolves it now.
    /// Not for a permanent neighbour, which this would demote.
    pub fn keep_resolved(&mut self, ifindex: u32, address: IpAddr) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
        let mut managed = neighbour_message(ifindex, address);
        managed.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        match self.request(RouteNetlinkMessage::NewNeighbour(managed), flags) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                let mut used = neighbour_message(ifindex, address);
                used.header.flags = NeighbourFlags::Use;
                self.request(RouteNetlinkMessage::NewNeighbour(used), flags).map(drop)
            }
            other => other.map(drop),
        }
    }

    fn link(&mut self, ask: LinkMessage) -> io::Result<Option<Link>> {
        match self.ask(RouteNetlinkMessage::GetLink(ask)) {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(link_of(message))),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        self.request(message, 0)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        self.send(message, flags)?;
        loop {
            for answer in receive(&self.socket, ANSWER_TIMEOUT)? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                return match answer.payload {
                    NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                    NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
                    _ => Ok(None),
                };
            }
        }
    }

    /// All answers to a question for a whole table.
    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(message, NLM_F_DUMP)?;
        let mut messages = Vec::new();
        loop {
            for answer in receive(&self.socket, ANSWER_TIMEOUT)? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => messages.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(messages),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }
}

/// A socket that hears of changes.
pub struct Changes {
    socket: Socket,
}

impl Changes {
    /// Subscribes to links, addresses and routes of both families, and neighbours.
    pub fn subscribe() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV6_ROUTE,
        ] {
            socket.add_membership(group)?;
        }
        Ok(Self { socket })
    }

    /// The socket, to wait for.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.socket)
    }

    /// The changes of one datagram, waiting at most `timeout` for it.
    ///
    /// When the kernel had to drop some (ENOBUFS), that is a change of everything.
    pub fn next(&self, timeout: Duration) -> io::Result<Vec<Change>> {
        let messages = match receive(&self.socket, timeout) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(Vec::new()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(vec![Change::Topology]),
            messages => messages?,
        };
        let changes = messages.into_iter().filter_map(|message| match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                neighbour_of(&message).map(Change::Neighbour)
            }
            // A neighbour that goes says nothing about where it is; the entry comes back with its MAC or fails.
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(_)) => None,
            NetlinkPayload::InnerMessage(_) => Some(Change::Topology),
            _ => None,
        });
        Ok(changes.collect())
    }
}

fn receive(socket: &Socket, timeout: Duration) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    if poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut buffer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut buffer, 0)?;
    let mut messages = Vec::new();
    let mut rest = buffer.as_slice();
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
        rest = &rest[length..];
        messages.push(message);
    }
    Ok(messages)
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ESRCH)
    )
}

fn link_of(message: LinkMessage) -> Link {
    let ifindex = message.header.index;
    let mut link = Link { ifindex, name: String::new(), mac: None, mtu: 0, xdp: None, vlan: vlan_of(&message) };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Xdp(facts) => link.xdp = xdp_of(&facts),
            _ => {}
        }
    }
    link
}

fn vlan_of(message: &LinkMessage) -> Option<Vlan> {
    let parent = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(parent) => Some(*parent),
        _ => None,
    })?;
    let facts = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => info.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vlan(facts)) => Some(facts),
            _ => None,
        }),
        _ => None,
    })?;
    let id = facts.iter().find_map(|fact| match fact {
        InfoVlan::Id(id) => Some(*id & 0x0fff),
        _ => None,
    })?;
    let protocol = facts.iter().find_map(|fact| match fact {
        InfoVlan::Protocol(protocol) => Some(u16::from(*protocol)),
        _ => None,
    });
    let ([t0, t1], [i0, i1]) = (protocol.unwrap_or(TPID_8021Q).to_be_bytes(), id.to_be_bytes());
    Some(Vlan { parent, tag: [t0, t1, i0, i1] })
}

fn xdp_of(facts: &[LinkXdp]) -> Option<AttachedXdp> {
    let mut attached = AttachedXdp { program_id: 0, generic: false };
    let mut present = false;
    for fact in facts {
        match fact {
            LinkXdp::Attached(mode) => {
                present = *mode != XdpAttached::None;
                attached.generic = *mode == XdpAttached::SocketBuffer;
            }
            LinkXdp::ProgId(id) => attached.program_id = *id,
            _ => {}
        }
    }
    present.then_some(attached)
}

/// Of several default routes the one with the lowest metric; of several next hops of one route the first.
fn preferred_default(routes: impl Iterator<Item = RouteMessage>) -> Option<Route> {
    let metric = |route: &RouteMessage| {
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
    };
    let is_default = |route: &RouteMessage| {
        let header = &route.header;
        header.destination_prefix_length == 0
            && header.table == libc::RT_TABLE_MAIN
            && header.kind == RouteType::Unicast
    };
    let mut routes: Vec<RouteMessage> = routes.filter(is_default).collect();
    routes.sort_by_key(|route| metric(route).unwrap_or(0));
    routes.iter().find_map(|route| {
        let mut route = route.clone();
        let first = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => hops.first().cloned(),
            _ => None,
        });
        if let Some(hop) = first {
            route.attributes.push(RouteAttribute::Oif(hop.interface_index));
            route.attributes.extend(hop.attributes);
        }
        let unspecified = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        route_of(&route, unspecified).filter(|route| route.via != unspecified)
    })
}

fn route_of(message: &RouteMessage, to: IpAddr) -> Option<Route> {
    let local = message.header.kind == RouteType::Local;
    if !local && message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Route { ifindex: 0, via: to, mtu: None, local };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = *ifindex,
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => route.via = (*gateway).into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => route.via = (*gateway).into(),
            RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet6(gateway)) => route.via = (*gateway).into(),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (route.ifindex != 0).then_some(route)
}

fn neighbour_message(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}

fn neighbour_of(message: &NeighbourMessage) -> Option<Neighbour> {
    let valid = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    );
    let permanent = matches!(message.header.state, NeighbourState::Noarp | NeighbourState::Permanent);
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::from(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::from(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) if valid => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour { ifindex: message.header.ifindex, address: address?, mac, permanent })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::link::{InfoKind, VlanProtocol};

    use super::*;

    /// As the kernel sends it: through bytes.
    fn parsed(message: &LinkMessage) -> Link {
        let payload = NetlinkPayload::from(RouteNetlinkMessage::NewLink(message.clone()));
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), payload);
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => link_of(message),
            other => panic!("{other:?}"),
        }
    }

    fn link(facts: Vec<InfoVlan>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.attributes.push(LinkAttribute::IfName("eth0.100".to_owned()));
        message.attributes.push(LinkAttribute::Link(3));
        let info = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(facts))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        message
    }

    #[test]
    fn a_vlan_names_its_parent_and_its_tag() {
        let of = |facts| parsed(&link(facts)).vlan;
        let inner = vec![InfoVlan::Protocol(VlanProtocol::Ieee8021Q), InfoVlan::Id(100)];
        assert_eq!(of(inner), Some(Vlan { parent: 3, tag: [0x81, 0x00, 0, 100] }));
        let outer = vec![InfoVlan::Id(0x0abc), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)];
        assert_eq!(of(outer), Some(Vlan { parent: 3, tag: [0x88, 0xa8, 0x0a, 0xbc] }));
        assert_eq!(of(vec![]), None, "without an id it is nothing to send with");
    }

    /// A veth has a peer in the same attribute in which a VLAN has its parent.
    #[test]
    fn a_link_to_a_peer_is_no_vlan() {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Link(3));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]));
        assert_eq!(parsed(&message).vlan, None);
    }

    fn route(metric: u32, bits: u8, gateway: [u8; 4], ifindex: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.header.table = libc::RT_TABLE_MAIN;
        route.header.destination_prefix_length = bits;
        route.attributes.push(RouteAttribute::Priority(metric));
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::from(gateway))));
        route.attributes.push(RouteAttribute::Oif(ifindex));
        route
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_is_the_way_back() {
        let routes = [route(5, 8, [10, 0, 0, 9], 1), route(200, 0, [10, 0, 0, 2], 2), route(100, 0, [10, 0, 0, 3], 3)];
        let found = preferred_default(routes.into_iter()).unwrap();
        assert_eq!((found.ifindex, found.via), (3, IpAddr::from([10, 0, 0, 3])));
        assert_eq!(preferred_default([route(5, 8, [10, 0, 0, 9], 1)].into_iter()), None);
    }
}
