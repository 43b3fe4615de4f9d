//! Map contents in the words of people and of JSON: names, states, addresses.
//!
//! The types here are parts of what `-o json` prints; their field names are stable.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    address::Address,
    flow::ms_of_ticks,
    flow::{
        FlowEntry, FlowKey as _, PENDING_MIDFLOW, PENDING_SYN, PENDING_UDP, Pending, STATE_CLOSING, STATE_ESTABLISHED,
        STATE_RESET, STATE_YOUNG,
    },
    node::Node,
    reason::{Action, Counter},
    service::ServiceKey,
    target::{NextHop, TARGET_DOWN, TARGET_DRAINING, TARGET_REMOVED, TARGET_SERVING, Target},
};
use serde::Serialize;

use crate::{
    config::{self, Names, Protocol, Vip},
    core::Key,
};

/// Of everything that `-o json` prints: raised when a field changes its meaning or goes.
pub const FORMAT_VERSION: u32 = 1;

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its id.
    pub id: u8,
    /// Its name, if the configuration file was readable.
    pub name: Option<String>,
    /// Its tunnel address.
    pub address: IpAddr,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Its name, if the configuration file was readable.
    pub name: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// `serving`, `draining`, `down`, `removed` or `unused`.
    pub state: &'static str,
    /// Its slot in this member's maps.
    pub slot: u16,
    /// Whether packets can be sent there; until then they are dropped as `drop_no_next_hop`.
    pub reachable: bool,
}

/// A flow's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowFacts {
    /// `young`, `established`, `closing` or `reset`.
    pub state: &'static str,
    /// The primary's id.
    pub primary: u8,
    /// The primary's name.
    pub primary_name: Option<String>,
    /// The backup's id; 0 for none.
    pub backup: u8,
    /// The backup's name.
    pub backup_name: Option<String>,
    /// Where its packets go.
    pub backend: Backend,
    /// Since the last packet here, or the last refresh by a peer.
    pub idle_ms: u64,
    /// Since the flow became known here.
    pub age_ms: u64,
    /// How often the tuple was placed anew.
    pub generation: u16,
    /// How often the flow revived.
    pub revision: u16,
    /// How often its owners changed.
    pub term: u16,
    /// The member that chose the backend.
    pub creator: u8,
    /// Whether that member saw the flow's beginning.
    pub witnessed: bool,
}

/// The link-layer way to an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHopFacts {
    /// The interface's name, or `#` and its number where it has none here.
    pub interface: String,
    /// Destination MAC.
    pub mac: String,
    /// Source MAC.
    pub source_mac: String,
    /// The largest IP packet that fits, outer header included; 0 for unknown.
    pub mtu: u16,
}

/// What is remembered of a flow that has no entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PendingFacts {
    /// `syn`, `midflow` or `udp`.
    pub kind: &'static str,
    /// Packets counted.
    pub packets: u8,
    /// Since the first of them.
    pub age_ms: u64,
}

/// Packets and bytes since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the link-layer header on without its 14 bytes.
    pub bytes: u64,
}

impl From<Counter> for Traffic {
    fn from(Counter { packets, bytes }: Counter) -> Self {
        Self { packets, bytes }
    }
}

/// Member `id` at `address`.
pub fn member(id: u8, address: Address, names: &Names) -> Member {
    Member { id, name: names.member(id).map(str::to_owned), address: config::ip(address) }
}

/// A member as people call it: by name, else by id.
pub fn member_name(id: u8, names: &Names) -> String {
    match (id, names.member(id)) {
        (0, _) => "-".into(),
        (_, Some(name)) => name.into(),
        (id, None) => format!("member {id}"),
    }
}

/// The backend in slot `slot`, of the service at `vip`.
pub fn backend(slot: u16, target: &Target, vip: Vip, names: &Names) -> Backend {
    let address = config::ip(target.address);
    Backend {
        name: names.backend(vip, address).map(str::to_owned),
        address,
        state: target_state(target.state),
        slot,
        reachable: target.next_hop.ifindex != 0,
    }
}

impl Backend {
    /// Name and address, or the address.
    pub fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} ({})", self.address),
            None => self.address.to_string(),
        }
    }
}

impl Member {
    /// Name, or id.
    pub fn title(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("member {}", self.id))
    }
}

/// A flow's entry, as of tick `now`.
pub fn flow_facts(entry: &FlowEntry, backend: Backend, now: u32, names: &Names) -> FlowFacts {
    let name = |id: u8| names.member(id).map(str::to_owned);
    FlowFacts {
        state: flow_state(entry.state),
        primary: entry.primary,
        primary_name: name(entry.primary),
        backup: entry.backup,
        backup_name: name(entry.backup),
        backend,
        idle_ms: age_ms(now, entry.last_seen),
        age_ms: age_ms(now, entry.created),
        generation: entry.generation,
        revision: entry.revision,
        term: entry.term,
        creator: entry.creator_id(),
        witnessed: entry.is_witnessed(),
    }
}

/// What is remembered of a flow without an entry, as of tick `now`.
pub fn pending_facts(pending: &Pending, now: u32) -> PendingFacts {
    PendingFacts {
        kind: match pending.kind {
            PENDING_SYN => "syn",
            PENDING_MIDFLOW => "midflow",
            PENDING_UDP => "udp",
            _ => "unknown",
        },
        packets: pending.packets,
        age_ms: age_ms(now, pending.first_seen),
    }
}

/// The client of a flow.
pub fn client(key: &Key) -> SocketAddr {
    let [high, low, ..] = key.ports();
    let address = match key {
        Key::V4(key) => IpAddr::from(key.source),
        Key::V6(key) => IpAddr::from(key.source),
    };
    SocketAddr::new(address, u16::from_be_bytes([high, low]))
}

/// The VIP with that key; `None` for the mark of a VIP and for protocols that are not balanced.
pub fn vip(key: &ServiceKey) -> Option<Vip> {
    let protocol = Protocol::of_number(key.protocol)?;
    Some(Vip { address: config::ip(key.address), port: u16::from_be_bytes(key.port), protocol })
}

/// The way to an address; `None` while it is not resolved.
pub fn next_hop(next_hop: &NextHop) -> Option<NextHopFacts> {
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    (next_hop.ifindex != 0).then(|| NextHopFacts {
        interface: interface_name(next_hop.ifindex),
        mac: mac(next_hop.destination),
        source_mac: mac(next_hop.source),
        mtu: next_hop.mtu,
    })
}

/// The interface's name in this process's network namespace, else its number.
fn interface_name(ifindex: u32) -> String {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the function may write.
    if unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null() {
        return format!("#{ifindex}");
    }
    let bytes = name.map(|byte| byte as u8);
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// The name of a `STATE_*`.
pub fn flow_state(state: u8) -> &'static str {
    match state {
        STATE_YOUNG => "young",
        STATE_ESTABLISHED => "established",
        STATE_CLOSING => "closing",
        STATE_RESET => "reset",
        _ => "unknown",
    }
}

/// The name of a `TARGET_*`.
pub fn target_state(state: u8) -> &'static str {
    match state {
        TARGET_SERVING => "serving",
        TARGET_DRAINING => "draining",
        TARGET_DOWN => "down",
        TARGET_REMOVED => "removed",
        _ => "unused",
    }
}

/// The name of an action.
pub fn action(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Deliver => "deliver",
        Action::HandOff => "hand_off",
        Action::Answer => "answer",
        Action::Consume => "consume",
        Action::Drop => "drop",
    }
}

/// A number that JSON could not hold.
pub fn hex(number: u64) -> String {
    format!("{number:#018x}")
}

/// The age of tick `then` at tick `now`; a tick that XDP wrote after `now` was taken has no age.
pub fn age_ms(now: u32, then: u32) -> u64 {
    let age = now.wrapping_sub(then);
    if age > u32::MAX / 2 { 0 } else { ms_of_ticks(age) }
}

/// Milliseconds as people say them, in the two largest units.
pub fn duration(ms: u64) -> String {
    let (s, m, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{}.{} s", s, ms / 100 % 10),
        10_000..60_000 => format!("{s} s"),
        60_000..3_600_000 => format!("{m} min {} s", s % 60),
        3_600_000..86_400_000 => format!("{h} h {} min", m % 60),
        _ => format!("{d} d {} h", h % 24),
    }
}

/// A round trip as people say it.
pub fn round_trip(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} us", ns / 1_000),
        _ => format!("{}.{:02} ms", ns / 1_000_000, ns / 10_000 % 100),
    }
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Bytes in the unit that leaves up to four digits.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 10_000 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 10_000.0 {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Where tunnels to the member end: its IPv4 address if it has one.
pub fn own_address(node: &Node) -> Address {
    match node.addresses {
        [v4, _] if v4 != [0; 16] => v4,
        [_, v6] => v6,
    }
}
