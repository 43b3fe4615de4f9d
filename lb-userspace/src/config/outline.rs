//! What a file says of the world around the agent, as far as it can be read: for whoever looks for what is wrong there.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use lb_common::maps::FLOWS_MAX;

use super::{Host, MultiBuffer, OtherTraffic, beside, draft::Draft, problem::Problems};
use crate::identity::KEY_FILE;

/// Addresses, interfaces and files of a configuration that may be invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Where packets for VIPs come in, the cluster's interface first.
    pub interfaces: Vec<String>,
    /// Addresses of this member; none when no member is recognised as this one.
    pub own: Vec<IpAddr>,
    /// The other members, by name.
    pub peers: Vec<(String, IpAddr)>,
    /// Between members.
    pub port: u16,
    /// Every VIP's address, once.
    pub vips: Vec<IpAddr>,
    /// Every backend's address, once, by name.
    pub backends: Vec<(String, IpAddr)>,
    /// Flows that the tables hold, IPv4 and IPv6.
    pub flows_max: [u32; 2],
    /// Whether frames may lie in several buffers.
    pub multi_buffer: MultiBuffer,
    /// What becomes of packets for a VIP that are not balanced.
    pub other_traffic: OtherTraffic,
    /// The routing table in which VIPs are announced, if they are.
    pub announce_table: Option<u32>,
    /// The files with secrets, which their owner alone may read.
    pub secrets: Vec<Secret>,
}

/// A file with a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Where it is.
    pub path: PathBuf,
    /// The command that makes one.
    pub made_by: &'static str,
}

impl Outline {
    /// Of `text`, which came from `path`, on `host`; almost empty for a text that is no TOML.
    pub fn of(text: &str, path: &Path, host: &Host<'_>) -> Self {
        let mut outline = Self {
            interfaces: host.interfaces.to_vec(),
            own: Vec::new(),
            peers: Vec::new(),
            port: 7400,
            vips: Vec::new(),
            backends: Vec::new(),
            flows_max: [FLOWS_MAX, FLOWS_MAX / 4],
            multi_buffer: MultiBuffer::Auto,
            other_traffic: OtherTraffic::Pass,
            announce_table: None,
            secrets: Vec::new(),
        };
        if let Some(draft) = Draft::read(text, &Problems::default()) {
            outline.fill(&draft, path, host);
        }
        outline
    }

    fn fill(&mut self, draft: &Draft, path: &Path, host: &Host<'_>) {
        let Draft { cluster, services, node } = draft;
        self.announce_table = node.announce_table;
        if self.interfaces.is_empty() {
            self.interfaces = node.interfaces.iter().map(|name| name.get_ref().as_str().to_owned()).collect();
        }
        let first = node.cluster_interface.as_ref().map(|name| name.get_ref().as_str());
        self.interfaces.sort_by_key(|name| Some(name.as_str()) != first);
        let named = node.name.as_ref().map(|name| name.get_ref().clone());
        let is_by_host = host.node.is_none() && named.is_none();
        let own = host.node.map(str::to_owned).or(named).unwrap_or_else(|| (host.host_name)());
        let label = own.split('.').next().unwrap_or_default();
        for member in &cluster.members {
            let name = member.name.as_ref().map(|name| name.get_ref().as_str()).unwrap_or_default();
            let addresses = member.addresses().map(|address| *address.get_ref());
            if name == own || (is_by_host && name == label) {
                self.own.extend(addresses);
            } else if let Some(address) = &member.address {
                self.peers.push((name.to_owned(), *address.get_ref()));
            }
        }
        self.port = cluster.port.unwrap_or(self.port);
        self.vips = services.iter().flat_map(|service| &service.vips).map(|vip| vip.get_ref().address).collect();
        self.vips.sort();
        self.vips.dedup();
        for backend in services.iter().flat_map(|service| &service.backends) {
            let Some(address) = &backend.address else { continue };
            let name = backend.name.as_ref().map(|name| name.get_ref().as_str()).unwrap_or_default();
            self.backends.push((name.to_owned(), *address.get_ref()));
        }
        self.backends.sort_by_key(|(_, address)| *address);
        self.backends.dedup_by_key(|(_, address)| *address);
        let [v4, v6] = self.flows_max;
        self.flows_max = [node.flows_max.unwrap_or(v4), node.flows_v6_max.unwrap_or(v6)];
        self.multi_buffer = node.multi_buffer.unwrap_or(self.multi_buffer);
        self.other_traffic = node.other_traffic.unwrap_or(self.other_traffic);
        if let Some(file) = &cluster.key_file {
            self.secrets.push(Secret { path: beside(path, file.get_ref()), made_by: "tandem cluster secret" });
        }
        if cluster.members.len() > 1 {
            let file = node.key_file.as_ref().map(|file| beside(path, file.get_ref()));
            let path = file.unwrap_or_else(|| host.state.join(KEY_FILE));
            self.secrets.push(Secret { path, made_by: "tandem cluster keygen" });
        }
    }
}
