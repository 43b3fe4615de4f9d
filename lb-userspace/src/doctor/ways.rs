//! The ways to peers and servers: whether there is one, who is next on it, and how much it carries.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use super::{Balancer, Examined, Finding, Mend};
use crate::io::netlink::{Netlink, Route};

/// What clients send at most: the internet's MTU, whatever this host's own links carry.
const CLIENTS_MTU: u32 = 1500;
/// How long a neighbour may take to answer; the kernel asks once a second.
const NEIGHBOUR_LIMIT: Duration = Duration::from_millis(1500);
/// Nobody listens there (RFC 863), and nothing needs to: what counts is that the kernel asks for the next hop.
const DISCARD: u16 = 9;

pub(super) fn routes(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    let mut findings = Vec::new();
    for (name, address) in others(balancer) {
        if netlink.route(address)?.is_none() {
            let found = format!("no route to {name} ({address})");
            findings.push(Finding::new(found, Mend::Say(format!("ip route add {address} via GATEWAY"))));
        }
    }
    Ok(findings)
}

pub(super) fn neighbours(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    let mut hops: BTreeMap<(u32, IpAddr), (String, IpAddr)> = BTreeMap::new();
    for (name, address) in others(balancer) {
        let Some(route) = netlink.route(address)?.filter(|route| !route.local) else { continue };
        // Without Ethernet addresses there is nothing to resolve.
        if netlink.link_by_index(route.ifindex)?.is_some_and(|link| link.mac.is_some()) {
            hops.entry((route.ifindex, route.via)).or_insert((name, address));
        }
    }
    for (_, target) in hops.values() {
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // One that cannot be sent is one whose neighbour stays unknown.
        let _unsent = UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(&[], (*target, DISCARD)));
    }
    let end = Instant::now() + NEIGHBOUR_LIMIT;
    loop {
        let mut silent = Vec::new();
        for ((ifindex, via), (name, address)) in &hops {
            if netlink.neighbour(*ifindex, *via)?.is_none_or(|neighbour| neighbour.mac.is_none()) {
                silent.push((*ifindex, *via, name, *address));
            }
        }
        if !silent.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
            continue;
        }
        let mut findings = Vec::new();
        for (ifindex, via, name, address) in silent {
            let interface = netlink.link_by_index(ifindex)?.map_or_else(|| "?".into(), |link| link.name);
            let found = format!("{via}, the next hop to {name} ({address}), does not answer on {interface}");
            let mend =
                format!("look at its host and the link (`ip neigh show {via}`), or correct the route or the address");
            findings.push(Finding::new(found, Mend::Say(mend)));
        }
        return Ok(findings);
    }
}

/// Probes and hand-offs are taken from the cluster's interface only.
pub(super) fn cluster_interface(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    let Some(cluster) = balancer.outline.interfaces.first() else { return Ok(Vec::new()) };
    let Some(link) = netlink.link_by_name(cluster)? else { return Ok(Vec::new()) };
    let mut findings = Vec::new();
    for (name, address) in &balancer.outline.peers {
        let Some(route) = netlink.route(*address)?.filter(|route| route.ifindex != link.ifindex) else { continue };
        let way = netlink.link_by_index(route.ifindex)?.map_or_else(|| "?".into(), |link| link.name);
        let found = format!(
            "the way to {name} ({address}) is {way}, and the cluster's interface is {cluster}: its probes are not taken"
        );
        let mend =
            format!("cluster_interface = {way:?} in [node] (and {way} among node.interfaces), or a route by {cluster}");
        findings.push(Finding::new(found, Mend::Say(mend)));
    }
    Ok(findings)
}

/// A full packet and the outer header around it.
pub(super) fn tunnel_mtu(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    let mut widest = 0;
    for name in &balancer.outline.interfaces {
        widest = netlink.link_by_name(name)?.map_or(widest, |link| link.mtu.max(widest));
    }
    let full = widest.min(CLIENTS_MTU);
    let mut narrow: BTreeMap<(u32, u32, u32), (String, IpAddr, usize)> = BTreeMap::new();
    for (name, address) in others(balancer) {
        let Some(route) = netlink.route(address)?.filter(|route| !route.local) else { continue };
        let (carries, needed) = (carried(netlink, &route)?, full + if address.is_ipv4() { 20 } else { 40 });
        if carries < needed {
            narrow.entry((route.ifindex, carries, needed)).or_insert((name, address, 0)).2 += 1;
        }
    }
    let mut findings = Vec::new();
    for ((ifindex, carries, needed), (name, address, count)) in narrow {
        let way = netlink.link_by_index(ifindex)?.map_or_else(|| "?".into(), |link| link.name);
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        let found = format!(
            "a packet of {full} bytes is one of {needed} in the tunnel to {name} ({address}){more}, and {way} carries {carries}"
        );
        let mend = format!(
            "ip link set dev {way} mtu {needed}, on all hosts of that network; or `tandem decap --mss auto` on the servers, and then \
             `tandem doctor --skip tunnel-mtu`"
        );
        findings.push(Finding::new(found, Mend::Say(mend)));
    }
    Ok(findings)
}

fn carried(netlink: &mut Netlink, route: &Route) -> std::io::Result<u32> {
    let link = netlink.link_by_index(route.ifindex)?.map_or(u32::MAX, |link| link.mtu);
    Ok(route.mtu.unwrap_or(link).min(link))
}

fn others(balancer: &Balancer) -> impl Iterator<Item = (String, IpAddr)> {
    balancer.outline.peers.iter().chain(&balancer.outline.backends).cloned()
}
