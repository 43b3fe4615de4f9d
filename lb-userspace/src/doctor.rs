//! What is wrong with a host: one check for every pitfall that is known, each with the command that mends it.
//!
//! Checks look, and change nothing; what may be mended without asking is in [`Mend`]. `docs/doctor.md` lists them all.

use std::{io, net::IpAddr, path::PathBuf};

use serde::Serialize;

use crate::{
    config::Outline,
    io::{attach::Mode, netlink::Netlink},
};

mod addresses;
mod ethtool;
mod features;
mod files;
mod firewall;
mod interfaces;
mod kernel;
mod links;
mod mend;
mod rules;
mod server;
mod ways;

pub use mend::Mend;

/// What a host does in a cluster.
pub enum Role {
    /// A member.
    Balancer(Box<Balancer>),
    /// A server behind it.
    Server(Server),
}

/// A member, whose agent may run or not.
pub struct Balancer {
    /// The configuration's file.
    pub config: PathBuf,
    /// Reads it, and answers what is wrong with it: the first problem, and how many there are.
    pub problems: Box<dyn Fn() -> Option<(String, usize)>>,
    /// As much of it as can be read.
    pub outline: Outline,
    /// Where maps and links are pinned.
    pub pins: PathBuf,
    /// Where the number of starts and the member's key are.
    pub state: PathBuf,
    /// How programs are to be attached.
    pub mode: Mode,
}

/// A server.
pub struct Server {
    /// What it must hold.
    pub vips: Vec<IpAddr>,
    /// Where balancers' packets come in.
    pub interface: String,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was found, in a sentence.
    pub found: String,
    /// The command or the change that mends it.
    pub mend: Mend,
}

impl Finding {
    fn new(found: impl Into<String>, mend: Mend) -> Self {
        Self { found: found.into(), mend }
    }
}

/// Why a check could not be made.
#[derive(Debug)]
pub struct Unknown(String);

impl From<io::Error> for Unknown {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl Unknown {
    fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

type Examined = Result<Vec<Finding>, Unknown>;

/// A check of a host that is a `T`.
struct Check<T> {
    id: &'static str,
    examine: fn(&T, &mut Netlink) -> Examined,
}

const OF_A_BALANCER: &[Check<Balancer>] = &[
    Check { id: "kernel", examine: |_, _| kernel::version() },
    Check { id: "bpffs", examine: |balancer, _| kernel::bpffs(balancer) },
    Check { id: "memory", examine: |balancer, _| kernel::memory(balancer) },
    Check { id: "key-file", examine: |balancer, _| files::keys_exist(balancer) },
    Check { id: "secret-mode", examine: |balancer, _| files::modes(balancer) },
    Check { id: "state-directory", examine: |balancer, _| files::state_directory(balancer) },
    // After those whose findings it would repeat: what they mend is no longer wrong with it.
    Check { id: "config", examine: |balancer, _| files::config(balancer) },
    Check { id: "interface", examine: |balancer, _| interfaces::up(balancer) },
    Check { id: "xdp-driver", examine: interfaces::driver },
    Check { id: "xdp-mtu", examine: interfaces::mtu },
    Check { id: "foreign-xdp", examine: interfaces::foreign },
    Check { id: "lro", examine: |balancer, _| interfaces::lro(balancer) },
    Check { id: "veth-checksum", examine: |balancer, _| interfaces::veth_checksum(&balancer.outline.interfaces) },
    Check { id: "own-address", examine: addresses::own },
    Check { id: "vip-local", examine: addresses::vip_local },
    Check { id: "forwarding", examine: |balancer, _| addresses::forwarding(balancer) },
    Check { id: "rp-filter", examine: addresses::rp_filter },
    Check { id: "route", examine: ways::routes },
    Check { id: "neighbour", examine: ways::neighbours },
    Check { id: "cluster-interface", examine: ways::cluster_interface },
    Check { id: "tunnel-mtu", examine: ways::tunnel_mtu },
    Check { id: "port", examine: |balancer, _| files::port(balancer) },
    Check { id: "firewall", examine: |balancer, _| firewall::cluster_port(balancer) },
];

const OF_A_SERVER: &[Check<Server>] = &[
    Check { id: "tunnel-end", examine: server::tunnel_end },
    Check { id: "tunnel-filtered", examine: firewall::tunnel },
    Check { id: "vip-missing", examine: server::vips_held },
    Check { id: "arp-ignore", examine: |server, _| server::arp(server) },
    Check { id: "rp-filter", examine: server::rp_filter },
    Check {
        id: "veth-checksum",
        examine: |server, _| interfaces::veth_checksum(std::slice::from_ref(&server.interface)),
    },
];

/// What a check said.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// Which check.
    pub id: &'static str,
    /// How it ended.
    pub status: Status,
    /// What is wrong, or was, if it is mended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Why nothing can be said, or why something could not be mended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something is wrong.
    Found,
    /// Something was wrong and is mended.
    Mended,
    /// It cannot be told.
    Unknown,
    /// The operator does not want to know.
    Skipped,
}

/// Makes every check but those in `skip`; with `fix`, mends what may be mended without asking.
pub fn examine(role: &Role, netlink: &mut Netlink, skip: &[String], fix: bool) -> Vec<Checked> {
    match role {
        Role::Balancer(balancer) => {
            OF_A_BALANCER.iter().map(|check| check.make(balancer, netlink, skip, fix)).collect()
        }
        Role::Server(server) => OF_A_SERVER.iter().map(|check| check.make(server, netlink, skip, fix)).collect(),
    }
}

impl<T> Check<T> {
    fn make(&self, host: &T, netlink: &mut Netlink, skip: &[String], fix: bool) -> Checked {
        let checked = |status, findings, reason| Checked { id: self.id, status, findings, reason };
        if skip.iter().any(|id| id == self.id) {
            return checked(Status::Skipped, Vec::new(), None);
        }
        match (self.examine)(host, netlink) {
            Err(Unknown(reason)) => checked(Status::Unknown, Vec::new(), Some(reason)),
            Ok(findings) if findings.is_empty() => checked(Status::Ok, findings, None),
            Ok(findings) if !fix => checked(Status::Found, findings, None),
            Ok(findings) => {
                let done: Vec<_> = findings.iter().filter_map(|finding| finding.mend.apply()).collect();
                let failed = done.into_iter().find_map(Result::err).map(|error| error.to_string());
                // Only what is no longer found is mended.
                match (self.examine)(host, netlink) {
                    Ok(left) if left.is_empty() => checked(Status::Mended, findings, None),
                    Ok(left) => checked(Status::Found, left, failed),
                    Err(Unknown(reason)) => checked(Status::Found, findings, Some(reason)),
                }
            }
        }
    }
}

/// The ids of all checks.
pub fn ids() -> Vec<&'static str> {
    let mut ids: Vec<&str> = OF_A_BALANCER.iter().map(|check| check.id).collect();
    ids.extend(OF_A_SERVER.iter().map(|check| check.id));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The number in `/proc/sys/KEY`, where dots of the key are slashes.
fn sysctl(path: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/proc/sys/{path}"))?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A setting of interfaces, of which the larger one of `all` and the interface's own is in effect.
fn effective(interface: &str, key: &str) -> io::Result<u32> {
    let of = |interface: &str| sysctl(&format!("net/ipv4/conf/{interface}/{key}"));
    Ok(of("all")?.max(of(interface)?))
}
