//! The configurations of IPVS, as Tandem would have them: services, servers, checks; and all that has no counterpart, by line.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

mod ipvsadm;
mod keepalived;

pub use ipvsadm::read as read_ipvsadm;
pub use keepalived::read as read_keepalived;

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// What is balanced.
    pub services: Vec<Service>,
    /// What could not be taken over, in the order of the file.
    pub left_out: Vec<LeftOut>,
}

/// Something that could not be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its line, from 1.
    pub line: usize,
    /// What it is, and what to do about it.
    pub what: String,
}

/// A service, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its addresses.
    pub vips: Vec<VirtualAddress>,
    /// Whether all connections of a client go to one server.
    pub affinity: bool,
    /// The value of `health`.
    pub health: Option<String>,
    /// Its servers.
    pub backends: Vec<Backend>,
}

/// A virtual address, port (0 for any) and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where it is.
    pub address: IpAddr,
    /// Its share.
    pub weight: u64,
}

/// The greatest weight there is here.
const WEIGHT_MAX: u64 = 1000;

impl Imported {
    fn leave_out(&mut self, line: usize, what: impl Into<String>) {
        self.left_out.push(LeftOut { line, what: what.into() });
    }

    /// The services, as tables of a file.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for service in &self.services {
            service.write(&mut text);
        }
        text
    }

    /// What both formats have in common of a server: its port must be the VIP's, it is there once, its weight fits.
    fn add_backend(&mut self, line: usize, service: usize, address: IpAddr, port: u16, weight: u64) {
        let Some(found) = self.services.get_mut(service) else { return };
        let vip_port = found.vips.first().map_or(0, |vip| vip.port);
        let mut problems = Vec::new();
        if port != 0 && port != vip_port {
            problems.push(format!(
                "{address}: servers are reached at the VIP's port {vip_port}, port {port} is not translated; let the server listen there"
            ));
        }
        if found.backends.iter().any(|backend| backend.address == address) {
            problems.push(format!(
                "{address}: the server is there already, a second one at the same address has no counterpart"
            ));
        } else {
            if weight > WEIGHT_MAX {
                problems.push(format!(
                    "{address}: weight {weight} became {WEIGHT_MAX}, the greatest there is; scale the others"
                ));
            }
            found.backends.push(Backend { address, weight: weight.min(WEIGHT_MAX) });
        }
        problems.into_iter().for_each(|what| self.leave_out(line, what));
    }

    /// Says what nobody can take over of a way of forwarding.
    fn note_forwarding(&mut self, line: usize, way: &str) {
        match way {
            "TUN" => {}
            "NAT" => self.leave_out(
                line,
                "NAT: servers answer clients directly here; each needs the VIP on lo and takes the tunnel off (docs/servers.md)",
            ),
            _ => self.leave_out(
                line,
                format!("{way}: packets reach servers in a tunnel (IP in IP) here; each must take it off (docs/servers.md)"),
            ),
        }
    }

    /// Says that another way of choosing a server takes the place of `scheduler`; whether it was by the source.
    fn note_scheduler(&mut self, line: usize, scheduler: &str) -> bool {
        match scheduler {
            "rr" | "wrr" | "mh" => false,
            "sh" => true,
            _ => {
                self.leave_out(
                    line,
                    format!("scheduler {scheduler}: a consistent hash with weights (Maglev) chooses servers here"),
                );
                false
            }
        }
    }

    /// Drops services that no file could have, and says so.
    fn finish(mut self) -> Self {
        let has_servers = |service: &Service| service.backends.iter().any(|backend| backend.weight > 0);
        let (kept, empty): (Vec<_>, Vec<_>) = self.services.into_iter().partition(has_servers);
        self.services = kept;
        for service in empty {
            let names: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
            self.left_out.push(LeftOut {
                line: 0,
                what: format!("{}: no server with a weight, the service is left out", names.join(", ")),
            });
        }
        self.left_out.sort_by_key(|left_out| left_out.line);
        self
    }
}

impl std::fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.address, self.port) {
            (IpAddr::V4(address), 0) => write!(f, "{address}:any/{}", self.protocol),
            (IpAddr::V6(address), 0) => write!(f, "[{address}]:any/{}", self.protocol),
            (address, port) => write!(f, "{}/{}", std::net::SocketAddr::new(address, port), self.protocol),
        }
    }
}

impl Service {
    fn write(&self, text: &mut String) {
        let name = self.vips.first().map(|vip| {
            let port = if vip.port == 0 { "any".to_owned() } else { vip.port.to_string() };
            format!("{}-{port}-{}", plain(vip.address), vip.protocol)
        });
        let vips: Vec<String> = self.vips.iter().map(ToString::to_string).collect();
        let line = |text: &mut String, line: std::fmt::Arguments<'_>| {
            text.write_fmt(line).expect("a String takes all that is written to it");
            text.push('\n');
        };
        line(text, format_args!("\n[[service]]\nname = {:?}\nvip = {vips:?}", name.unwrap_or_default()));
        if self.affinity {
            line(text, format_args!("affinity = \"source\""));
        }
        if let Some(health) = &self.health {
            line(text, format_args!("health = {health}"));
        }
        line(text, format_args!("backends = ["));
        for Backend { address, weight } in &self.backends {
            line(
                text,
                format_args!("  {{ name = \"{}\", address = \"{address}\", weight = {weight} }},", plain(*address)),
            );
        }
        line(text, format_args!("]"));
    }
}

/// An address as a name may have it.
fn plain(address: IpAddr) -> String {
    address.to_string().replace(':', "-").trim_matches('-').to_owned()
}

/// Services that differ in nothing but their addresses become one.
fn joined(services: Vec<Service>) -> Vec<Service> {
    let mut joined: Vec<Service> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for service in services {
        let vips = service.vips.clone();
        // Checks go to the port of the VIP: others must stay apart.
        let key = format!("{:?}", Service { vips: vec![], ..service.clone() });
        let place = places.get(&key).copied().filter(|_| service.health.is_none());
        match place.and_then(|place| joined.get_mut(place)) {
            Some(same) => same.vips.extend(vips),
            None => {
                places.insert(key, joined.len());
                joined.push(service);
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests;
