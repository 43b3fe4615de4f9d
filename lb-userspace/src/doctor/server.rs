//! The servers' side: what takes the outer header off, who has the VIP, and what is done with packets for it.

use aya::programs::loaded_programs;

use super::{
    Examined, Finding, Mend, Server,
    addresses::{bits, is_local},
    effective, links,
};
use crate::io::netlink::Netlink;

/// The names of the programs that do it begin with this.
const DECAP: &str = "decap";

pub(super) fn tunnel_end(server: &Server, netlink: &mut Netlink) -> Examined {
    if strips(netlink, &server.interface)? || links::all()?.iter().any(|link| link.is_tunnel() && link.is_up()) {
        return Ok(Vec::new());
    }
    let found = format!(
        "nothing takes the balancers' outer header off: no program on {}, no tunnel device that is up",
        server.interface
    );
    let vips: Vec<String> = server.vips.iter().map(ToString::to_string).collect();
    let mend = format!("tandem decap --interface {} --from MEMBERS --vip {}", server.interface, vips.join(" "));
    Ok(vec![Finding::new(found, Mend::Say(mend))])
}

/// Whether `tandem decap` runs on `interface`.
pub(super) fn strips(netlink: &mut Netlink, interface: &str) -> std::io::Result<bool> {
    let Some(attached) = netlink.link_by_name(interface)?.and_then(|link| link.xdp) else { return Ok(false) };
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == attached.program_id);
    Ok(program.is_some_and(|program| program.name_as_str().is_some_and(|name| name.starts_with(DECAP))))
}

pub(super) fn vips_held(server: &Server, netlink: &mut Netlink) -> Examined {
    let mut findings = Vec::new();
    for vip in &server.vips {
        if !is_local(netlink, *vip)? {
            let words = ["addr", "add", &format!("{vip}/{}", bits(*vip)), "dev", "lo"].map(str::to_owned);
            let found = format!("this server does not have {vip}: packets for it are not taken");
            findings.push(Finding::new(found, Mend::Ip(words.to_vec())));
        }
    }
    Ok(findings)
}

/// On a segment with the router, a server that answers for the VIP takes its packets past the balancers.
pub(super) fn arp(server: &Server) -> Examined {
    if !server.vips.iter().any(std::net::IpAddr::is_ipv4) {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for (key, wanted, why) in [
        ("arp_ignore", 1, "answers ARP for its VIPs: routers may send it their packets past the balancers"),
        ("arp_announce", 2, "asks for neighbours in the name of its VIPs: routers may learn from it where they are"),
    ] {
        if effective(&server.interface, key)? < wanted {
            let found = format!("{} {why}", server.interface);
            findings
                .push(Finding::new(found, Mend::Sysctl(format!("net/ipv4/conf/{}/{key}", server.interface), wanted)));
        }
    }
    Ok(findings)
}

/// A strict filter drops clients' packets that come out of a tunnel, or by another interface than answers leave by.
pub(super) fn rp_filter(server: &Server, netlink: &mut Netlink) -> Examined {
    const STRICT: u32 = 1;
    const LOOSE: u32 = 2;
    let way_out = netlink.default_route(true)?.map(|route| route.ifindex);
    let mut ends: Vec<String> =
        links::all()?.into_iter().filter(links::Link::is_tunnel).map(|link| link.name).collect();
    ends.push(server.interface.clone());
    let mut findings = Vec::new();
    for name in ends {
        let Some(link) = netlink.link_by_name(&name)? else { continue };
        if Some(link.ifindex) != way_out && effective(&name, "rp_filter")? == STRICT {
            let found = format!(
                "{name} drops clients' packets: its reverse-path filter is strict, and answers leave by another interface"
            );
            findings.push(Finding::new(found, Mend::Sysctl(format!("net/ipv4/conf/{name}/rp_filter"), LOOSE)));
        }
    }
    Ok(findings)
}
