//! What the core is told about its cluster: valid, plain data, made by the configuration.

use std::time::Duration;

use lb_common::{
    address::Address,
    hash::HashKey,
    node::{BUDGET_CLASSES, PROBE_KEYS, Source},
    service::ServiceKey,
};

/// One valid configuration, as member `me` sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// This member's id, 1 to 64; the same for the life of a `Core`.
    pub me: u8,
    /// All members, this one included; ids, names and addresses are unique.
    pub members: Vec<Member>,
    /// The cluster's name, at most `wire::NAME_MAX` bytes.
    pub cluster: String,
    /// Generation of the cluster part of the configuration.
    pub generation: u64,
    /// Hash of the cluster part of the configuration.
    pub hash: u64,
    /// The cluster's secret.
    pub hash_key: HashKey,
    /// UDP port of probes and TCP port of sessions.
    pub port: u16,
    /// How peers are watched.
    pub probing: Probing,
    /// Record and replicate flows at their first packet.
    pub first_packet: bool,
    /// Whoever knows a flow delivers its packets; only packets of unknown flows visit an owner.
    pub direct: bool,
    /// Drop what is for a VIP and not balanced.
    pub drop_other: bool,
    /// Drop IPv4 packets that do not fit and may be fragmented, without an answer.
    pub drop_oversized: bool,
    /// Where deliveries come from, by family (`V4`, `V6`), if not from this member's address.
    pub delivery_sources: [Option<Prefix>; 2],
    /// When idle flows end.
    pub timeouts: Timeouts,
    /// How long after a change of servers packets of unknown flows that go on follow the servers of before.
    pub grace: Duration,
    /// For how long a member must have been dead before its flows are given to others for good.
    pub takeover_after: Duration,
    /// New entries a CPU may make in a budget window, per class.
    pub budgets: [u32; BUDGET_CLASSES],
    /// What is balanced; no `ServiceKey` occurs twice.
    pub services: Vec<Service>,
    /// Bounds of the core's memory.
    pub limits: Limits,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// 1 to 64, for ever.
    pub id: u8,
    /// For people.
    pub name: String,
    /// Tunnel and agent address.
    pub address: Address,
    /// An address of the other family, which deliveries to backends of that family come from.
    pub second_address: Option<Address>,
    /// Gives its flows to others and owns no new ones.
    pub drain: bool,
    /// Where its hand-offs come from, if not from its address; of the same family.
    pub hand_off_source: Option<Prefix>,
    /// Keys of the probes between it and this member, one for each key it has; zeros for none.
    pub probe_keys: [HashKey; PROBE_KEYS],
}

/// A prefix of addresses, its host part zero; an IPv4 one is mapped, and so is its length: 96 more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The prefix.
    pub address: Address,
    /// Its length, 0 to 128.
    pub length: u8,
}

impl Prefix {
    /// The source of outer headers that takes its host part from the flow.
    pub const fn source(&self) -> Source {
        let host = 128 - if self.length < 128 { self.length } else { 128 };
        let spread = match host {
            32.. => u32::MAX,
            host => (1 << host) - 1,
        };
        Source { address: self.address, spread: spread.to_be_bytes() }
    }
}

/// How peers are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    /// Time between two probes to a peer.
    pub interval: Duration,
    /// Unanswered probes that make a peer dead, at least 1.
    pub misses: u32,
}

/// How long a flow may be idle, by its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, not yet worth replicating.
    pub young: Duration,
    /// TCP, established: RFC 5382 asks for at least 2 h 4 min.
    pub established: Duration,
    /// TCP after the client's FIN.
    pub closing: Duration,
    /// TCP after the client's RST.
    pub reset: Duration,
    /// UDP, where the service says nothing else.
    pub udp: Duration,
    /// SCTP, established.
    pub sctp: Duration,
    /// SCTP after the client's SHUTDOWN.
    pub sctp_closing: Duration,
}

/// Something that is balanced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// For people.
    pub name: String,
    /// Its addresses, each a service of its own to the datapath.
    pub vips: Vec<ServiceKey>,
    /// Its servers; addresses are unique.
    pub backends: Vec<Backend>,
    /// New flows of one client go to one backend, whatever their ports.
    pub affinity: bool,
    /// Echo requests to its VIPs are answered.
    pub echo: bool,
    /// How long a UDP flow may be idle, if not `Timeouts::udp`.
    pub idle_timeout: Option<Duration>,
    /// Whether its backends are checked, and what becomes of it when all of them are down.
    pub checked: Option<AllDown>,
}

/// What becomes of a service whose backends are all down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllDown {
    /// Those that went last stay.
    Keep,
    /// It has none.
    Drop,
}

/// A server behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// For people.
    pub name: String,
    /// Where packets are sent.
    pub address: Address,
    /// Share of new flows relative to the other backends of the service; 0 for none.
    pub weight: u16,
    /// Keeps its flows and takes no new ones.
    pub drain: bool,
    /// Its checks fail; never set by a configuration.
    pub down: bool,
}

/// Bounds of the core's memory; only tests and the simulator depart from the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows of both families: as many as the flow maps hold.
    pub flows: usize,
    /// IPv6 flows among them: as many as their map holds.
    pub flows_v6: usize,
    /// Tombstones kept at a time.
    pub tombstones: usize,
    /// Records parked until their backend is configured.
    pub parked: usize,
    /// Flows that wait to be sent to one peer.
    pub queue: usize,
    /// Bytes handed to one session and not yet drained, before another frame is made.
    pub window: usize,
}

impl View {
    /// The member called `id`.
    pub fn member(&self, id: u8) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The mask of all members.
    pub fn configured(&self) -> u64 {
        self.members.iter().fold(0, |mask, member| mask | lb_common::rank::bit(member.id))
    }
}

impl Default for Probing {
    /// 20 ms, 5 misses: 100 ms, as BFD on a LAN, and one false alarm in years at 0.1 % loss.
    fn default() -> Self {
        Self { interval: Duration::from_millis(20), misses: 5 }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            young: Duration::from_secs(15),
            established: Duration::from_secs(2 * 3600 + 4 * 60),
            closing: Duration::from_secs(120),
            reset: Duration::from_secs(30),
            udp: Duration::from_secs(90),
            sctp: Duration::from_secs(210),
            sctp_closing: Duration::from_secs(60),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let flows = lb_common::maps::FLOWS_MAX as usize;
        Self {
            flows,
            flows_v6: flows / 4,
            // Tombstones live for 120 s: 2,000 ends of flows a second.
            tombstones: flows / 4,
            // One frame holds 1,300 records: about 50 frames of a newer configuration.
            parked: 1 << 16,
            // 6 MB on the wire; a peer that is further behind is better served by a snapshot.
            queue: 1 << 17,
            // Four full frames: keeps 10 Gbit/s busy over 200 us, and deltas wait for no more than this.
            window: 1 << 18,
        }
    }
}
