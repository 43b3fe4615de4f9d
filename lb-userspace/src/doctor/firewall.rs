//! What the packet filter keeps out. XDP programs come before it: what they take, answer or strip never meets it.

use super::{
    Balancer, Examined, Finding, Mend, Server, Unknown,
    rules::{self, Fate, Incoming},
    server::strips,
};
use crate::io::netlink::Netlink;

const TCP: (u64, &str) = (6, "tcp");
const IPIP: (u64, &str) = (4, "ipip");

/// Sessions between agents; probes are the datapath's.
pub(super) fn cluster_port(balancer: &Balancer) -> Examined {
    let (Some(interface), false) = (balancer.outline.interfaces.first(), balancer.outline.peers.is_empty()) else {
        return Ok(Vec::new());
    };
    let port = balancer.outline.port;
    let is_v4 = balancer.outline.peers.iter().all(|(_, address)| address.is_ipv4());
    let packet = Incoming { protocol: TCP, is_v4, port: Some(port), interface };
    let ruleset = rules::read()?.ok_or_else(no_nft)?;
    let Fate::Dropped(chain) = rules::fate(&ruleset, &packet) else { return Ok(Vec::new()) };
    let found = format!("the packet filter ({chain}) drops sessions of peers: TCP port {port}");
    Ok(vec![Finding::new(found, Mend::Say(format!("nft insert rule {chain} tcp dport {port} accept")))])
}

/// What balancers send, where a tunnel device is to take it.
pub(super) fn tunnel(server: &Server, netlink: &mut Netlink) -> Examined {
    if strips(netlink, &server.interface)? {
        return Ok(Vec::new());
    }
    let packet = Incoming { protocol: IPIP, is_v4: true, port: None, interface: &server.interface };
    let ruleset = rules::read()?.ok_or_else(no_nft)?;
    let Fate::Dropped(chain) = rules::fate(&ruleset, &packet) else { return Ok(Vec::new()) };
    let found = format!("the packet filter ({chain}) drops what balancers send: IP protocol 4");
    Ok(vec![Finding::new(found, Mend::Say(format!("nft insert rule {chain} meta l4proto ipip accept")))])
}

fn no_nft() -> Unknown {
    Unknown::because("there is no `nft` to ask (apt-get install nftables)")
}
