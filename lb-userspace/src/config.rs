//! Configuration: one TOML file, equal on all members, becomes valid types here or nothing happens.
//!
//! [`Config::load`] reads the whole file, finds everything that is wrong with it, and touches
//! nothing: what follows from a configuration is up to the agent, which gets one only when it is valid.
//!
//! The file is read in three steps, each of which can run without the next: the text alone
//! ([`draft`](self), also enough to put names to addresses, see [`Names`]), the host (which member is this,
//! do its interfaces exist, is the key file readable by nobody else), and the valid types.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::{
    address::{Address, mapped},
    hash::HashKey,
};

use crate::identity::{MemberKey, PublicKey};

mod catalogue;
mod cluster;
mod diff;
mod digest;
mod draft;
mod effective;
mod example;
mod health;
mod host;
mod import;
mod key;
mod names;
mod node;
mod outline;
mod problem;
mod section;
mod service;
mod share;
#[cfg(test)]
mod tests;
mod value;
mod vip;

pub use diff::{Difference, differences};
pub use effective::Effective;
pub use example::{Example, OwnMember};
pub use health::{BODY_MAX, Health, HealthProbe};
pub use host::Host;
pub use import::{Imported, LeftOut, read_ipvsadm, read_keepalived};
pub use key::{KEY_HEX_DIGITS, Key, KeyFileError};
pub use names::Names;
pub use node::{FLOWS_LEAST, FLOWS_MOST};
pub use outline::{Outline, Secret};
pub use problem::ConfigError;
pub use share::{generation_of, shared_part, with_drains, with_generation, with_own_part};
pub use value::{
    Affinity, AllDown, CheckKind, CheckPath, Handoff, InterfaceName, MemberId, MultiBuffer, Name, OnStop, OtherTraffic,
    Prefix, Replicate, TooBig, Weight,
};
pub use vip::{Protocol, Vip};

/// Where an agent keeps what must outlive it, when nobody says otherwise.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/tandem";

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/tandem/tandem.toml";

/// The only value of `version` that this program reads.
pub const VERSION: u64 = 1;

/// A valid configuration, as one member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Equal on all members.
    pub cluster: Cluster,
    /// What concerns this member only.
    pub node: Node,
    /// What is balanced, in the order of the file.
    pub services: Vec<Service>,
}

/// The part that all members must agree on, without the services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// For people, and so that two clusters do not take each other's configuration for their own.
    pub name: Name,
    /// The secret of the flow hash.
    pub hash_key: Key,
    /// Rises with every change of the file; 0 when the operator does not count.
    pub generation: u64,
    /// UDP port of probes and TCP port of replication.
    pub port: u16,
    /// How often every peer is probed.
    pub probe_interval: Duration,
    /// Consecutive probes without an echo after which a peer counts as dead.
    pub probe_misses: u8,
    /// Who gets a packet whose flow another member owns.
    pub handoff: Handoff,
    /// When a flow is told to the others.
    pub replicate: Replicate,
    /// How long after a change of servers packets of unknown flows that go on follow the servers of before.
    pub grace: Duration,
    /// For how long a member must have been dead before its flows are given to others for good.
    pub takeover_after: Duration,
    /// How long a silent flow is remembered.
    pub timeouts: Timeouts,
    /// Where deliveries come from, at most one prefix of each family; the member's address where there is none.
    pub delivery_source: Vec<Prefix>,
    /// The members, by id.
    pub members: Vec<Member>,
}

/// How long a flow is remembered after its last packet, by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, handshake complete, not yet replicated.
    pub young: Duration,
    /// TCP, established.
    pub tcp: Duration,
    /// TCP, the client sent a FIN.
    pub closing: Duration,
    /// TCP, the client sent a RST.
    pub reset: Duration,
    /// UDP, where the service says nothing else.
    pub udp: Duration,
    /// SCTP, established.
    pub sctp: Duration,
    /// SCTP, the client shuts the association down.
    pub sctp_closing: Duration,
}

impl Timeouts {
    /// `tcp`: RFC 5382, REQ-5. `closing`: 2 MSL. `reset`: the least that a forged RST may cost (law 5). `sctp`: an idle
    /// association that lives is heard of by its heartbeats, every 30 s and five times until one end gives up (RFC 9260,
    /// section 16); a minute more for the longest RTO.
    pub const DEFAULT: Self = Self {
        young: Duration::from_secs(15),
        tcp: Duration::from_secs(2 * 3600 + 4 * 60),
        closing: Duration::from_secs(120),
        reset: Duration::from_secs(30),
        udp: Duration::from_secs(90),
        sctp: Duration::from_secs(210),
        sctp_closing: Duration::from_secs(60),
    };
}

/// A balancer of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity, for ever.
    pub id: MemberId,
    /// For people; also how a host finds itself in the file.
    pub name: Name,
    /// Its agent's address, and where tunnels to it end; of the same family for all members.
    pub address: IpAddr,
    /// An address of the other family, to deliver to backends of that family from.
    pub second_address: Option<IpAddr>,
    /// Gives its flows to others and owns no new ones.
    pub drain: bool,
    /// Where its hand-offs come from, if not from its address; of the same family.
    pub hand_off_source: Option<Prefix>,
    /// What it proves that it is; two while a key is replaced, none only in a cluster of one.
    pub public_keys: Vec<PublicKey>,
}

impl Member {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address).chain(self.second_address)
    }
}

/// What concerns one member only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which member this is.
    pub id: MemberId,
    /// What proves it; none only in a cluster of one.
    pub key: Option<MemberKey>,
    /// The interfaces that packets for VIPs come in by, at least one; probes and hand-offs are taken from the first only.
    pub interfaces: Vec<InterfaceName>,
    /// What happens to the datapath when the agent stops.
    pub on_stop: OnStop,
    /// The kernel's routing table in which a routing daemon finds the VIPs that this member serves, if it shall.
    pub announce_table: Option<u32>,
    /// Where Prometheus finds metrics, if it shall.
    pub metrics_listen: Option<SocketAddr>,
    /// IPv4 flows this member can hold.
    pub flows_max: u32,
    /// IPv6 flows this member can hold.
    pub flows_v6_max: u32,
    /// Whether frames may lie in several buffers.
    pub multi_buffer: MultiBuffer,
    /// What becomes of packets for a VIP that are not balanced.
    pub other_traffic: OtherTraffic,
    /// What becomes of IPv4 packets that do not fit and may be fragmented.
    pub too_big: TooBig,
    /// New flows that one CPU may record per second.
    pub budgets: Budgets,
}

/// New flows that one CPU may record per second, so that a flood of one kind cannot fill the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// TCP connections whose handshake was seen.
    pub tcp: u32,
    /// UDP flows.
    pub udp: u32,
    /// TCP connections and SCTP associations known from later packets only.
    pub derived: u32,
    /// SCTP associations whose beginning was seen.
    pub sctp: u32,
    /// Answers to clients: echo replies and ICMP errors. They are no flows, but nobody needs more.
    pub answers: u32,
}

impl Budgets {
    /// One core records about this many before it starves the packets of known flows.
    pub const DEFAULT: Self = Self { tcp: 125_000, udp: 125_000, derived: 125_000, sctp: 125_000, answers: 10_000 };
}

/// Something that is balanced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// For people.
    pub name: Name,
    /// The addresses it is reached at; each is a service of its own to the datapath, with the same backends.
    pub vips: Vec<Vip>,
    /// The servers behind it; at least one has a weight.
    pub backends: Vec<Backend>,
    /// What new flows of one client have in common.
    pub affinity: Affinity,
    /// Whether echo requests to its VIPs are answered; one service of a VIP suffices.
    pub echo: bool,
    /// How long a silent UDP flow is remembered, if not for `Timeouts::udp`.
    pub idle_timeout: Option<Duration>,
    /// How its backends are checked, if at all.
    pub health: Option<Health>,
}

/// A server behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// For people.
    pub name: Name,
    /// Its identity within the service; packets are tunnelled there, whatever their family.
    pub address: IpAddr,
    /// Its share of new flows, relative to the others; 0 for none.
    pub weight: Weight,
    /// Keeps its flows and takes no new ones.
    pub drain: bool,
}

impl Config {
    /// Reads and validates the file at `path`; touches nothing else.
    ///
    /// `node` and a non-empty `interfaces` (from the command line) replace `node.name` and `node.interfaces` of the file;
    /// this member's key is in the directory `state` unless the file says otherwise.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or everything that is wrong with it.
    pub fn load(path: &Path, node: Option<&str>, interfaces: &[String], state: &Path) -> Result<Self, ConfigError> {
        Self::load_on(path, &Host { node, interfaces, state, ..Host::default() })
    }

    /// As [`Self::load`], on a host of the caller's making.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn load_on(path: &Path, host: &Host<'_>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error: error.to_string() })?;
        Self::parse(&text, path, host)
    }

    /// Validates `text`, which came from `path`: messages name it, and relative key files are relative to it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn parse(text: &str, path: &Path, host: &Host<'_>) -> Result<Self, ConfigError> {
        let problems = problem::Problems::default();
        let config = draft::Draft::read(text, &problems).and_then(|draft| draft.resolve(path, host, &problems));
        match (config, problems.into_sorted()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError::Invalid { path: path.to_owned(), text: text.to_owned(), problems }),
        }
    }

    /// What `text` says by itself, wherever it is read: nothing about key files, interfaces, or which member this is.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn check_text(text: &str, path: &Path) -> Result<(), ConfigError> {
        let problems = problem::Problems::default();
        draft::Draft::read(text, &problems);
        match problems.into_sorted() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(ConfigError::Invalid { path: path.to_owned(), text: text.to_owned(), problems }),
        }
    }

    /// All settings that `text` means on `host`, those that it leaves out among them.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    pub fn effective(text: &str, path: &Path, host: &Host<'_>) -> Result<Effective, ConfigError> {
        let config = Self::parse(text, path, host)?;
        Ok(Effective::of(text, &config, host))
    }

    /// A JSON schema of the file.
    pub fn schema() -> serde_json::Value {
        catalogue::Catalogue::read("", catalogue::Recorder::of_everything()).schema()
    }

    /// A hash of everything that the members must agree on: equal for equal meaning, however the files are
    /// written and whatever things are called in them, and different for different hash keys.
    ///
    /// Travels in the hello of replication, beside `cluster.generation`, which is not part of it.
    pub fn cluster_hash(&self) -> u64 {
        digest::cluster(self)
    }

    /// This member.
    pub fn this_member(&self) -> &Member {
        let this = self.cluster.members.iter().find(|member| member.id == self.node.id);
        this.expect("`node.id` was taken from a member")
    }
}

/// `ip` in the form of types for both families.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that `address` holds.
pub fn ip(address: Address) -> IpAddr {
    std::net::Ipv6Addr::from(address).to_canonical()
}

impl Key {
    /// The key as the datapath takes it.
    pub fn words(&self) -> HashKey {
        let [low, high] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&self.bytes()[at..at + 8]);
            u64::from_le_bytes(word)
        });
        [low, high]
    }
}

/// A path in the file, relative to the file.
fn beside(file: &Path, path: &Path) -> PathBuf {
    file.parent().map_or_else(|| path.to_owned(), |directory| directory.join(path))
}
