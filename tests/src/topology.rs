//! The lab's network: a client, a router, balancers and servers, each in a namespace of its own.
//!
//! ```text
//!                                          +-- lb1 10.0.1.11, fd00:1::11
//!   client 10.0.0.2 --- router (ECMP) -----+-- lb2 10.0.1.12, fd00:1::12
//!          fd00::2        |                +-- lb3 10.0.1.13, fd00:1::13
//!                         +-- web-1 10.0.2.11, fd00:2::11, both VIPs on lo
//!                         +-- web-2 10.0.2.12, fd00:2::12, both VIPs on lo ...
//! ```
//!
//! Every balancer and every server has a routed link of its own, so taking down the router's end
//! withdraws that next hop at once, as a router does that sees its port go dark. The links behind
//! the router carry 1600 bytes: a full-size segment still fits with 40 bytes of outer header.
//! Servers answer the client through the router, past the balancers.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result};

use crate::{command, netns::Namespace, passthrough, run::Run};

/// The address that the lab's services are on.
pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The IPv6 address of those that have one.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
/// The client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The client's IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// Where tunnelled packets come from, for `tandem decap --from`.
pub const BALANCERS: &str = "10.0.1.0/24";
/// The same of IPv6.
pub const BALANCERS_V6: &str = "fd00:1::/64";
/// The end of a link that belongs to a balancer or a server; also the client's.
pub const INTERFACE: &str = "eth0";
/// A balancer's second link, see `Topology::add_server_link`.
pub const SERVER_INTERFACE: &str = "eth1";

const CLIENT_MTU: u32 = 1500;
const UNDERLAY_MTU: u32 = 1600;

/// A balancer's or a server's place in the network.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name, also of the router's end of its link.
    pub name: String,
    /// The address of its end of the link.
    pub address: Ipv4Addr,
    /// Its IPv6 address.
    pub address_v6: Ipv6Addr,
    /// Where it lives.
    pub namespace: Arc<Namespace>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Host {
    /// Its address of this family.
    pub fn address_of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.address.into(),
            Family::V6 => self.address_v6.into(),
        }
    }
}

/// The network, as far as it has been built.
#[derive(Debug)]
pub struct Topology {
    run: Arc<Run>,
    /// Where connections come from.
    pub client: Arc<Namespace>,
    /// Spreads packets to the VIP over the announced balancers by a hash of the 5-tuple.
    pub router: Arc<Namespace>,
    announced: Vec<Host>,
    /// What makes the router's ends take what balancers send by XDP_TX.
    passthrough: Vec<OwnedFd>,
}

impl Topology {
    /// A client and a router, no balancers and no servers yet.
    pub fn new(run: Arc<Run>) -> Result<Self> {
        let client = Namespace::new(&run, "client")?;
        let router = Namespace::new(&run, "router")?;
        router.sysctl("ipv4/ip_forward", "1")?;
        router.sysctl("ipv4/fib_multipath_hash_policy", "1")?;
        router.sysctl("ipv6/conf/all/forwarding", "1")?;
        router.sysctl("ipv6/fib_multipath_hash_policy", "1")?;
        connect(&router, "client", &client, CLIENT_MTU)?;
        router.ip(&["addr add 10.0.0.1/24 dev client", "addr add fd00::1/64 dev client nodad"])?;
        client.ip(&[
            &format!("addr add {CLIENT}/24 dev {INTERFACE}"),
            &format!("addr add {CLIENT_V6}/64 dev {INTERFACE} nodad"),
            &format!("route add default via fd00::1 dev {INTERFACE} onlink rto_min 20ms"),
            // A lost segment is sent again after the round trip plus 20 ms instead of 200 ms, so that
            // stalls show how long the cluster took, not how long TCP by default waits to find out.
            "route add default via 10.0.0.1 rto_min 20ms",
        ])?;
        client.sysctl("ipv4/ip_local_port_range", "10000 64999")?;
        // Tests bind to ports of these; the load's connections leave them free.
        client.sysctl("ipv4/ip_local_reserved_ports", "18000-19999,40000-49999")?;
        Ok(Self { run, client, router, announced: Vec::new(), passthrough: Vec::new() })
    }

    /// Adds balancer `id` at 10.0.1.(10 + id). Nothing is routed to it until it is announced.
    pub fn add_balancer(&mut self, id: u8) -> Result<Host> {
        let host = self.add_host(format!("lb{id}"), 1, id)?;
        self.passthrough.push(passthrough::attach(&self.router, &host.name)?);
        Ok(host)
    }

    /// Adds server `number` at 10.0.2.(10 + number), which nobody has set up.
    pub fn add_empty_server(&self, number: u8) -> Result<Host> {
        let host = self.add_host(format!("web-{number}"), 2, number)?;
        // As hosts are addressed that are not of this lab: one whose address has a peer answers no ARP once `arp_ignore` is 1.
        let Host { address, .. } = &host;
        host.namespace.ip(&[
            &format!("addr flush dev {INTERFACE} scope global"),
            &format!("addr add {address}/24 dev {INTERFACE}"),
            &format!("route add default via 10.0.2.1 dev {INTERFACE}"),
        ])?;
        Ok(host)
    }

    /// Adds server `number` at 10.0.2.(10 + number), with the VIPs on its loopback.
    pub fn add_server(&self, number: u8) -> Result<Host> {
        let host = self.add_host(format!("web-{number}"), 2, number)?;
        // Routed links: nobody asks there who has the VIP, and with this nobody hears of it either.
        host.namespace.sysctl("ipv4/conf/all/arp_announce", "2")?;
        host.namespace.ip(&[&format!("addr add {VIP}/32 dev lo"), &format!("addr add {VIP_V6}/128 dev lo nodad")])?;
        Ok(host)
    }

    /// Gives balancer `host` a second link, which it reaches the servers by.
    pub fn add_server_link(&mut self, host: &Host) -> Result<()> {
        let (link, near) = (format!("{}s", host.name), SERVER_INTERFACE);
        let [.., last] = host.address.octets();
        connect_as(&self.router, &link, &host.namespace, near, UNDERLAY_MTU)?;
        self.passthrough.push(passthrough::attach(&self.router, &link)?);
        self.router.ip(&[&format!("addr add 10.0.3.1 peer 10.0.3.{last}/32 dev {link}")])?;
        host.namespace.ip(&[
            &format!("addr add 10.0.3.{last} peer 10.0.3.1/32 dev {near}"),
            &format!("route add 10.0.2.0/24 via 10.0.3.1 dev {near}"),
        ])
    }

    /// Sets the MTU of both ends of the host's link.
    pub fn set_mtu(&self, host: &Host, mtu: u32) -> Result<()> {
        self.router.ip(&[&format!("link set {} mtu {mtu}", host.name)])?;
        host.namespace.ip(&[&format!("link set {INTERFACE} mtu {mtu}")])
    }

    /// Sets the MTU of both ends of the client's link.
    pub fn set_client_mtu(&self, mtu: u32) -> Result<()> {
        self.router.ip(&[&format!("link set client mtu {mtu}")])?;
        self.client.ip(&[&format!("link set {INTERFACE} mtu {mtu}")])
    }

    /// Has the router send the client nothing larger; the client does not know, and promises to take more.
    pub fn narrow_way_back(&self, mtu: u32) -> Result<()> {
        let narrow = |client: IpAddr| format!("route replace {client} dev client mtu {mtu}");
        self.router.ip(&[&narrow(CLIENT.into()), &narrow(CLIENT_V6.into())])
    }

    /// Routes the VIP to `host` too.
    pub fn announce(&mut self, host: &Host) -> Result<()> {
        self.announced.retain(|other| other.name != host.name);
        self.announced.push(host.clone());
        self.announced.sort_by_key(|host| host.address);
        self.route_vip()
    }

    /// Routes the VIP to `host` no more.
    pub fn withdraw(&mut self, host: &Host) -> Result<()> {
        self.announced.retain(|other| other.name != host.name);
        self.route_vip()
    }

    /// Has the router treat packets between hosts by these rules of nftables, and by no earlier ones.
    pub fn disturb(&self, rules: &[String]) -> Result<()> {
        let rules: String = rules.iter().map(|rule| format!("    {rule}\n")).collect();
        let table = format!(
            "table ip faults {{\n}}\ndelete table ip faults\ntable ip faults {{\n  chain forward {{\n    \
             type filter hook forward priority filter;\n{rules}  }}\n}}\n"
        );
        command::run_with_input(self.router.command("nft").args(["-f", "-"]), &table).map(drop)
    }

    /// Takes the router's end of the host's link down; the kernel drops its next hop at once.
    pub fn cut_link(&mut self, host: &Host) -> Result<()> {
        self.router.ip(&[&format!("link set {} down", host.name)])?;
        // The kernel refuses a next hop whose link is down when the route is next written.
        self.announced.retain(|other| other.name != host.name);
        Ok(())
    }

    /// Brings the link back; the VIP is routed to the host again only when it is announced.
    pub fn restore_link(&mut self, host: &Host) -> Result<()> {
        // Else the kernel would revive the dead next hop together with the link, before the member is ready.
        self.route_vip()?;
        self.router.ip(&[&format!("link set {} up", host.name)])
    }

    /// A host at 10.0.(subnet).(10 + number) and fd00:(subnet)::(10 + number), the latter in decimal digits.
    fn add_host(&self, name: String, subnet: u8, number: u8) -> Result<Host> {
        let namespace = Namespace::new(&self.run, &name)?;
        connect(&self.router, &name, &namespace, UNDERLAY_MTU)?;
        let last = 10 + number;
        let address = Ipv4Addr::new(10, 0, subnet, last);
        let address_v6: Ipv6Addr = format!("fd00:{subnet}::{last}").parse().context("an IPv6 address of the lab")?;
        let (gateway, gateway_v6) = (format!("10.0.{subnet}.1"), format!("fd00:{subnet}::1"));
        self.router.ip(&[
            &format!("addr add {gateway} peer {address}/32 dev {name}"),
            &format!("addr add {gateway_v6} peer {address_v6}/128 dev {name} nodad"),
        ])?;
        namespace.ip(&[
            &format!("addr add {address} peer {gateway}/32 dev {INTERFACE}"),
            &format!("route add default via {gateway} dev {INTERFACE}"),
            &format!("addr add {address_v6} peer {gateway_v6}/128 dev {INTERFACE} nodad"),
            // The kernel finds out a moment later that the link is up, and that the gateway is on it.
            &format!("route add default via {gateway_v6} dev {INTERFACE} onlink"),
        ])?;
        Ok(Host { name, address, address_v6, namespace })
    }

    fn route_vip(&self) -> Result<()> {
        self.route(format!("{VIP}/32"), |host| host.address.into())?;
        self.route(format!("{VIP_V6}/128"), |host| host.address_v6.into())
    }

    fn route(&self, vip: String, address: impl Fn(&Host) -> IpAddr) -> Result<()> {
        if self.announced.is_empty() {
            // Fails when there was no route either; both end with none.
            let _ = self.router.ip(&[&format!("route del {vip}")]);
            return Ok(());
        }
        let hops = self.announced.iter().map(|host| format!(" nexthop via {} dev {} onlink", address(host), host.name));
        self.router
            .ip(&[&format!("route replace {vip}{}", hops.collect::<String>())])
            .context("cannot route the VIP over the balancers")
    }
}

/// A veth pair: `link` on the router, `eth0` in the namespace.
fn connect(router: &Namespace, link: &str, namespace: &Namespace, mtu: u32) -> Result<()> {
    connect_as(router, link, namespace, INTERFACE, mtu)
}

/// A veth pair: `link` on the router, `near` in the namespace.
fn connect_as(router: &Namespace, link: &str, namespace: &Namespace, near: &str, mtu: u32) -> Result<()> {
    let far = namespace.name();
    router.ip(&[
        &format!("link add {link} mtu {mtu} type veth peer name {near} mtu {mtu} netns {far}"),
        &format!("link set {link} up"),
    ])?;
    namespace.ip(&[&format!("link set {near} up")])?;
    // The kernel leaves checksums to the NIC, which a tunnelled packet never meets: no offload.
    offload(router.command("ethtool").args(["-K", link, "tx", "off", "rx", "off"]))?;
    offload(namespace.command("ethtool").args(["-K", near, "tx", "off", "rx", "off"]))
}

fn offload(ethtool: &mut Command) -> Result<()> {
    command::run(ethtool).map(drop)
}
