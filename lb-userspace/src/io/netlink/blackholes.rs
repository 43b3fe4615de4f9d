//! Blackhole routes in a table that no rule uses: words between this agent and a routing daemon.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};

use super::Netlink;

/// Who made a route; a number that no routing daemon has (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 116;

impl Netlink {
    /// The addresses that this agent, or an earlier one, has a blackhole route to in `table`.
    pub fn blackholes(&mut self, table: u32) -> io::Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            let routes = self.dump(RouteNetlinkMessage::GetRoute(ask))?;
            found.extend(routes.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => blackhole(&route, table),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// Adds a blackhole route to `address`; one that is there stays.
    pub fn add_blackhole(&mut self, table: u32, address: IpAddr) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(message(table, address));
        match self.request(message, NLM_F_CREATE | NLM_F_ACK) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes the blackhole route to `address`; one that is not there is gone.
    pub fn remove_blackhole(&mut self, table: u32, address: IpAddr) -> io::Result<()> {
        match self.request(RouteNetlinkMessage::DelRoute(message(table, address)), NLM_F_ACK) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map(drop),
        }
    }
}

fn message(table: u32, address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, bits, destination) = match address {
        IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::BlackHole;
    message.attributes = vec![RouteAttribute::Destination(destination), RouteAttribute::Table(table)];
    message
}

fn blackhole(route: &RouteMessage, wanted: u32) -> Option<IpAddr> {
    let is_ours = route.header.kind == RouteType::BlackHole && route.header.protocol == RouteProtocol::Other(PROTOCOL);
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    address.filter(|_| is_ours && table.unwrap_or(route.header.table.into()) == wanted)
}
