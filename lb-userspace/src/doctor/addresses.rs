//! Which addresses this host has, and what its stack does with packets for and from VIPs.

use std::net::IpAddr;

use super::{Balancer, Examined, Finding, Mend, effective, sysctl};
use crate::{config::OtherTraffic, io::netlink::Netlink};

pub(super) fn own(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    let mut findings = Vec::new();
    for address in &balancer.outline.own {
        if !is_local(netlink, *address)? {
            let found =
                format!("this host does not have {address}, its member's address: neither probes nor hand-offs arrive");
            let mend = format!(
                "ip addr add {address}/... dev {}, or correct the address in [[cluster.member]]",
                first(balancer)
            );
            findings.push(Finding::new(found, Mend::Say(mend)));
        }
    }
    Ok(findings)
}

/// What a server answers comes from the VIP: a host that takes the VIP for its own drops it as forged.
pub(super) fn vip_local(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    let mut findings = Vec::new();
    for vip in &balancer.outline.vips {
        if is_local(netlink, *vip)? {
            let found = format!(
                "this host has the VIP {vip} as its own address: it answers for ports that are not balanced, and servers' answers \
                 from it are dropped"
            );
            let mend = format!("ip addr del {vip}/{} dev lo (`ip addr show to {vip}` names the interface)", bits(*vip));
            findings.push(Finding::new(found, Mend::Say(mend)));
        }
    }
    Ok(findings)
}

/// A packet for a VIP's port without a service is left to the host, which would send it back to the router it came from.
pub(super) fn forwarding(balancer: &Balancer) -> Examined {
    if balancer.outline.other_traffic == OtherTraffic::Drop {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for (is_v4, key) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        let has_vips = balancer.outline.vips.iter().any(|vip| vip.is_ipv4() == is_v4);
        if has_vips && sysctl(key).unwrap_or(0) == 1 {
            let found = format!(
                "this host forwards packets ({key}): those for a VIP's ports without a service go back to the router, round and round"
            );
            let mend =
                format!("other_traffic = \"drop\" in [node], or sysctl -w {key}=0: balancing needs no forwarding");
            findings.push(Finding::new(found, Mend::Say(mend)));
        }
    }
    Ok(findings)
}

/// A strict filter drops what comes from a VIP by another interface than the way to that VIP: the answers to checks.
pub(super) fn rp_filter(balancer: &Balancer, netlink: &mut Netlink) -> Examined {
    const STRICT: u32 = 1;
    const LOOSE: u32 = 2;
    let mut strict: Vec<(String, IpAddr)> = Vec::new();
    for (_, backend) in balancer.outline.backends.iter().filter(|(_, address)| address.is_ipv4()) {
        let Some(way) = netlink.route(*backend)?.filter(|route| !route.local) else { continue };
        let Some(link) = netlink.link_by_index(way.ifindex)? else { continue };
        if strict.iter().any(|(name, _)| *name == link.name) || effective(&link.name, "rp_filter")? != STRICT {
            continue;
        }
        for vip in balancer.outline.vips.iter().filter(|vip| vip.is_ipv4()) {
            if netlink.route(*vip)?.is_none_or(|route| route.ifindex != way.ifindex) {
                strict.push((link.name.clone(), *vip));
                break;
            }
        }
    }
    Ok(strict
        .into_iter()
        .map(|(name, vip)| {
            let found = format!("{name} drops what servers send from {vip}: its reverse-path filter is strict, and the way to {vip} is another");
            Finding::new(found, Mend::Sysctl(format!("net/ipv4/conf/{name}/rp_filter"), LOOSE))
        })
        .collect())
}

pub(super) fn is_local(netlink: &mut Netlink, address: IpAddr) -> std::io::Result<bool> {
    Ok(netlink.route(address)?.is_some_and(|route| route.local))
}

/// Length of a prefix that holds one address.
pub(super) fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn first(balancer: &Balancer) -> &str {
    balancer.outline.interfaces.first().map_or("eth0", String::as_str)
}
