//! The cluster's configuration over time: versions that members take over one after the other.

use lb_common::{
    address::mapped,
    flow::{TCP, UDP},
    service::ServiceKey,
};
use lb_userspace::core::{View, view};

use crate::{member::named, world::World};

/// The VIP of the TCP service.
pub(crate) const WEB: [u8; 4] = [203, 0, 113, 10];
/// The VIP of the UDP service.
pub(crate) const DNS: [u8; 4] = [203, 0, 113, 11];
/// Ports of both, network order.
pub(crate) const PORT: [u8; 2] = [0, 80];

/// One version of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Ids of the members.
    pub(crate) members: Vec<u8>,
    /// The servers; each is a backend of both services.
    pub(crate) backends: Vec<Backend>,
}

/// A server in one version of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    /// Its address.
    pub(crate) address: [u8; 4],
    /// Keeps its flows and takes no new ones.
    pub(crate) drain: bool,
}

impl Cluster {
    /// Whether flows of this server must live.
    pub(crate) fn serves(&self, address: [u8; 4]) -> bool {
        self.backends.iter().any(|backend| backend.address == address)
    }
}

/// The server number `n`.
pub(crate) fn server(n: u8) -> [u8; 4] {
    [10, 1, 0, n]
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
                name: format!("server-{}", backend.address[3]),
                address: mapped(backend.address),
                weight: 100,
                drain: backend.drain,
            })
            .collect();
        let service = |name: &str, vip, protocol| view::Service {
            name: name.into(),
            vips: vec![ServiceKey { address: mapped(vip), port: PORT, protocol, padding: 0 }],
            backends: backends.clone(),
        };
        Some(View {
            me: member,
            members: cluster.members.iter().map(|&id| named(id)).collect(),
            cluster: "sim".into(),
            generation: version as u64 + 1,
            hash: version as u64 + 1,
            hash_key: self.plan.hash_key,
            port: 7400,
            probing: self.plan.probing,
            first_packet: self.plan.first_packet,
            timeouts: self.plan.timeouts,
            budgets: self.plan.budgets,
            services: vec![service("web", WEB, TCP), service("dns", DNS, UDP)],
            limits: self.plan.limits,
        })
    }

    /// A new version: every member takes it over at a moment of its own.
    pub(crate) fn reconfigure(&mut self, cluster: Cluster) {
        self.configs.push(cluster);
        let version = self.configs.len() - 1;
        let members: Vec<u8> = self.hosts.keys().copied().collect();
        for member in members {
            let at = self.now + self.rng.below(self.plan.skew);
            self.agenda.plan(at, crate::agenda::Happening::Configure { member, version });
        }
    }

    /// A member reads a version, unless it has a newer one.
    pub(crate) fn configure(&mut self, member: u8, version: usize) {
        let Some(view) = self.view(member, version) else { return };
        let Some(host) = self.hosts.get_mut(&member).filter(|host| host.agent.is_some() && host.version < version)
        else {
            return;
        };
        host.version = version;
        self.trace(|| format!("member {member}: configuration {version}"));
        self.input(member, lb_userspace::core::Input::Configure(Box::new(view)));
    }
}
