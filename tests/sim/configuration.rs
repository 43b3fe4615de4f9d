//! The cluster's configuration over time: versions that members take over one after the other.

use std::time::Duration;

use lb_common::{
    address::{Address, mapped, unmapped},
    flow::{FlowKeyV4, FlowKeyV6, UDP},
    service::ServiceKey,
};
use lb_userspace::core::{Key, View, view};

use crate::{faults::FIRST_BY, health::name, member::named, mutation::Mutation, time::S, world::World};

/// Networks (RFC 5737): three bytes of their IPv4 addresses, and of their IPv6 addresses below 2001:db8::/32.
pub(crate) const VIPS: Network = [203, 0, 113];
/// See `VIPS`.
pub(crate) const CLIENTS: Network = [198, 51, 100];
/// See `VIPS`.
pub(crate) const ATTACKERS: Network = [192, 0, 2];
/// See `VIPS`.
pub(crate) const MEMBERS: Network = [10, 0, 0];
const SERVERS: Network = [10, 1, 0];

/// What addresses of a network begin with.
pub(crate) type Network = [u8; 3];

/// The service of connections: the last byte of its VIPs, one of each family.
pub(crate) const WEB: u8 = 10;
/// The service of UDP flows.
pub(crate) const DNS: u8 = 11;
/// Port of both, network order.
pub(crate) const PORT: [u8; 2] = [0, 80];

/// One version of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Ids of the members.
    pub(crate) members: Vec<u8>,
    /// Those of them that are draining.
    pub(crate) drained: Vec<u8>,
    /// The servers; each is a backend of both services.
    pub(crate) backends: Vec<Backend>,
}

/// A server in one version of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    /// Its address.
    pub(crate) address: Address,
    /// Keeps its flows and takes no new ones.
    pub(crate) drain: bool,
}

impl Cluster {
    /// Whether there is a member that may own new flows.
    pub(crate) fn has_owners(&self) -> bool {
        self.members.iter().any(|id| !self.drained.contains(id))
    }

    /// Whether flows of this server must live.
    pub(crate) fn serves(&self, address: Address) -> bool {
        self.backends.iter().any(|backend| backend.address == address)
    }
}

/// Address `n` of a network.
pub(crate) fn address(is_v6: bool, [a, b, c]: Network, n: u8) -> Address {
    if is_v6 { [0x20, 0x01, 0x0d, 0xb8, 0, a, b, c, 0, 0, 0, 0, 0, 0, 0, n] } else { mapped([a, b, c, n]) }
}

/// The server number `n`; every other one is reached by IPv6.
pub(crate) fn server(n: u8) -> Address {
    address(n % 2 == 1, SERVERS, n)
}

/// The flow from a client's port to a service; `client` decides the family.
pub(crate) fn flow(client: Address, port: [u8; 2], service: u8, protocol: u8) -> Key {
    let vip = |is_v6| address(is_v6, VIPS, service);
    match (unmapped(client), unmapped(vip(false))) {
        (Some(client), Some(vip)) => Key::V4(FlowKeyV4::new(client, vip, port, PORT, protocol)),
        _ => Key::V6(FlowKeyV6::new(client, vip(true), port, PORT, protocol)),
    }
}

/// What the datapath knows a service's VIP by.
pub(crate) fn service_key(is_v6: bool, service: u8, protocol: u8) -> ServiceKey {
    ServiceKey { address: address(is_v6, VIPS, service), port: PORT, protocol, padding: 0 }
}

impl World {
    /// Version `version` of the configuration as `member` sees it; `None` if it is no member in it.
    pub(crate) fn view(&self, member: u8, version: usize) -> Option<View> {
        let cluster = self.configs.get(version)?;
        if !cluster.members.contains(&member) {
            return None;
        }
        let backends: Vec<view::Backend> = cluster
            .backends
            .iter()
            .map(|backend| view::Backend {
                name: name(backend.address),
                address: backend.address,
                weight: 100,
                drain: backend.drain,
                down: false,
            })
            .collect();
        let service = |name: &str, vip, protocol, checked| view::Service {
            name: name.into(),
            vips: [false, true].map(|is_v6| service_key(is_v6, vip, protocol)).to_vec(),
            backends: backends.clone(),
            affinity: self.plan.affinity,
            echo: true,
            idle_timeout: None,
            checked,
        };
        let is_drained = |id: &u8| cluster.drained.contains(id) && self.mutation != Mutation::DrainsNothing;
        let takes_over_at_once = self.mutation == Mutation::TakesOverAtOnce;
        Some(View {
            me: member,
            members: cluster.members.iter().map(|id| named(member, *id, is_drained(id))).collect(),
            cluster: "sim".into(),
            generation: version as u64 + 1,
            hash: version as u64 + 1,
            hash_key: self.plan.hash_key,
            port: 7400,
            probing: self.plan.probing,
            first_packet: self.plan.first_packet,
            direct: self.plan.direct,
            drop_other: false,
            drop_oversized: false,
            delivery_sources: [None; 2],
            timeouts: self.plan.timeouts,
            grace: self.plan.grace,
            takeover_after: if takes_over_at_once { Duration::ZERO } else { self.plan.takeover_after },
            budgets: self.plan.budgets,
            services: vec![
                service("web", WEB, self.plan.protocol, self.health.checked),
                service("dns", DNS, UDP, None),
            ],
            limits: self.plan.limits,
        })
    }

    /// A new version: every member takes it over at a moment of its own.
    pub(crate) fn reconfigure(&mut self, cluster: Cluster) {
        self.reconfigure_after(cluster, None);
    }

    /// The same, and member `first` is well ahead of the others.
    pub(crate) fn reconfigure_after(&mut self, cluster: Cluster, first: Option<u8>) {
        self.configs.push(cluster);
        self.reconfigured = self.now + FIRST_BY + self.plan.skew;
        let version = self.configs.len() - 1;
        let members: Vec<u8> = self.hosts.keys().copied().collect();
        for member in members {
            let wait = self.rng.below(self.plan.skew);
            if wait > S {
                self.stats.count("reload staggered by seconds");
            }
            let at = self.now + if first.is_none() { wait } else { FIRST_BY + wait };
            let at = if first == Some(member) { self.now } else { at };
            self.agenda.plan(at, crate::agenda::Happening::Configure { member, version });
        }
    }

    /// A member reads a version, unless it has a newer one.
    pub(crate) fn configure(&mut self, member: u8, version: usize) {
        let Some(view) = self.view(member, version) else { return };
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&member).filter(|host| host.agent.is_some() && host.version < version)
        else {
            return;
        };
        host.take_version(version, &self.configs[version], now);
        self.trace(|| format!("member {member}: configuration {version}"));
        self.input(member, lb_userspace::core::Input::Configure(Box::new(view)));
    }
}
