//! Explains what the datapath of this host would do with a flow's next packet, and why.
//!
//! The decision is not described here but made: a packet is built, parsed and steered by the functions that the kernel
//! program runs, over a copy of its tables. What is added is the ranking that led to it, in words.

use std::net::SocketAddr;

use lb_common::{
    flow::{FlowKey, UDP, tick},
    maps::PREVIOUS_RINGS,
    outer::{self, Purpose},
    packet::Packet,
    parse::{Parsed, parse},
    rank::{bit, score},
    reason::Reason,
    ring::ring_slot,
    service::SERVICE_AFFINITY,
    steer::{Flows, Tables, Verdict, Way, steer},
    target::Target,
};
use serde::Serialize;

use super::words::{self, Backend, FlowFacts, Member, PendingFacts};
use crate::{
    config::{Names, Vip},
    core::Key,
    pinned::Snapshot,
};

mod frame;
#[cfg(test)]
mod tests;
mod why;

/// What would happen to a flow's next packet, and what that follows from; `tandem explain -o json` prints this.
///
/// Field names are stable. Hashes and scores are hexadecimal strings, because JSON's numbers end at 2^53; times carry
/// their unit in the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Raised when a field changes its meaning or goes.
    pub format_version: u32,
    /// `ADDRESS:PORT` of the client.
    pub client: SocketAddr,
    /// `ADDRESS:PORT/PROTOCOL`.
    pub vip: Vip,
    /// The service's name, if the configuration file was readable.
    pub service: Option<String>,
    /// The member that this host is, which is taken to receive the packet.
    pub receiver: Member,
    /// Whether the agent vouches for the masks; without it this member owns no misses.
    pub agent_alive: bool,
    /// The packet that was decided on: `syn`, `data` or `datagram`.
    pub packet: &'static str,
    /// The flow's entry here, if it is known.
    pub known: Option<FlowFacts>,
    /// What is remembered of it, if it is not known yet.
    pub pending: Option<PendingFacts>,
    /// The keyed flow hash.
    pub flow_hash: String,
    /// Every configured member, best score first.
    pub ranking: Vec<Ranked>,
    /// What is done.
    pub verdict: Judgement,
    /// The backend that gets the packet in the end.
    pub backend: Option<Choice>,
}

/// A member in its rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ranked {
    /// The member.
    #[serde(flatten)]
    pub member: Member,
    /// Its score.
    pub score: String,
    /// Its datapath answers: it may be given known flows.
    pub forwarding: bool,
    /// Its agent lives and is ready: it may own new flows.
    pub eligible: bool,
    /// `primary` or `backup` of this flow: as in its entry, or by rank.
    pub role: Option<&'static str>,
}

/// What is done with the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The reason it would be counted under.
    pub reason: &'static str,
    /// `deliver`, `hand_off`, `pass` or `drop`.
    pub action: &'static str,
    /// The member that delivers it: this one, or the one it is handed to.
    pub member: Option<Member>,
    /// In words.
    pub why: String,
}

/// A backend, and where the choice came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The backend.
    #[serde(flatten)]
    pub backend: Backend,
    /// `entry` (stored), `pending` (an earlier packet went there) or `ring` (stateless answer).
    pub from: &'static str,
    /// The slot of the Maglev ring that the flow hashes to.
    pub ring_slot: usize,
}

/// Explains what `snapshot`'s member would do with the next packet of the flow it was taken for.
pub fn explain(snapshot: &Snapshot, names: &Names) -> Explanation {
    let key = snapshot.key;
    let vip = vip(&key);
    let hash = key.hash(&snapshot.node.hash_key);
    let packet = packet(snapshot);
    let decision = decide(snapshot, packet);
    let backend = choice(snapshot, names, vip, hash, decision);
    Explanation {
        format_version: words::FORMAT_VERSION,
        client: words::client(&key),
        vip,
        service: names.service(vip).map(str::to_owned),
        receiver: words::member(snapshot.node.id, words::own_address(&snapshot.node), names),
        agent_alive: is_agent_alive(snapshot),
        packet,
        known: snapshot.entry.map(|entry| {
            let backend = snapshot.backend(entry.backend).copied().unwrap_or(Target::NONE);
            words::flow_facts(&entry, words::backend(entry.backend, &backend, vip, names), tick(snapshot.now_ns), names)
        }),
        pending: snapshot.pending.map(|pending| words::pending_facts(&pending, tick(snapshot.now_ns))),
        flow_hash: words::hex(hash),
        ranking: ranking(snapshot, names, hash),
        verdict: why::judge(snapshot, names, decision, packet),
        backend,
    }
}

/// What `steer` said, without the borrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Deliver(Target, Reason),
    HandOff(Target, Reason),
    End(Reason),
}

/// An unknown TCP flow begins with a SYN, an SCTP association with an INIT; of a known one, data is next.
fn packet(snapshot: &Snapshot) -> &'static str {
    if snapshot.key.protocol() == UDP {
        "datagram"
    } else if snapshot.entry.is_none() && snapshot.pending.is_none() {
        "syn"
    } else {
        "data"
    }
}

fn decide(snapshot: &Snapshot, packet: &str) -> Decision {
    if snapshot.node.id == 0 {
        return Decision::End(Reason::Unconfigured);
    }
    let frame = frame::build(&snapshot.key, packet == "syn");
    // A packet for a VIP reaches every interface alike.
    match parse(frame.as_slice(), snapshot, 0) {
        Parsed::V4(packet) => steered(snapshot, packet),
        Parsed::V6(packet) => steered(snapshot, packet),
        Parsed::End(reason) => Decision::End(reason),
        // No packet to a port of a VIP can be parsed as one of these.
        Parsed::Ping(_) | Parsed::Probe(_) | Parsed::ProbeEcho(_) => Decision::End(Reason::NotOurs),
    }
}

fn steered<K: FlowKey>(snapshot: &Snapshot, mut packet: Packet<K>) -> Decision
where
    Snapshot: Flows<K>,
{
    let Verdict { way, reason, .. } = steer(snapshot, &mut packet);
    let (purpose, target) = match way {
        Way::Deliver(backend, _) => (Purpose::Delivery, *backend),
        Way::HandOff(member, _) => (Purpose::HandOff, *member),
        Way::End => return Decision::End(reason),
    };
    match (outer::encapsulate(&packet, purpose, &target), purpose) {
        (Ok(_), Purpose::Delivery) => Decision::Deliver(target, reason),
        (Ok(_), _) => Decision::HandOff(target, reason),
        (Err(reason), _) => Decision::End(reason),
    }
}

fn is_agent_alive(snapshot: &Snapshot) -> bool {
    snapshot.liveness.lease_until_ns >= snapshot.now_ns
}

fn ranking(snapshot: &Snapshot, names: &Names, hash: u64) -> Vec<Ranked> {
    let node = &snapshot.node;
    let configured = node.seeds.iter().take(node.members as usize);
    let mut scores: Vec<(u64, u8)> =
        configured.map(|seed| (score(hash, seed.seed, seed.id as u8), seed.id as u8)).collect();
    scores.sort_unstable_by(|a, b| b.cmp(a));
    let owners = why::owners(snapshot);
    let ranked = |(score, id): (u64, u8)| Ranked {
        member: words::member(id, snapshot.member(id).map_or([0; 16], |member| member.address), names),
        score: words::hex(score),
        forwarding: id == node.id || snapshot.liveness.forwarding & bit(id) != 0,
        eligible: snapshot.liveness.eligible & bit(id) != 0 && (id != node.id || is_agent_alive(snapshot)),
        role: match id {
            id if id == owners.primary => Some("primary"),
            id if id == owners.backup => Some("backup"),
            _ => None,
        },
    };
    scores.into_iter().map(ranked).collect()
}

/// The backend of a hand-off is the deliverer's choice, which is the same: stored, or by the same ring (law 2).
fn choice(snapshot: &Snapshot, names: &Names, vip: Vip, hash: u64, decision: Decision) -> Option<Choice> {
    if matches!(decision, Decision::End(_)) {
        return None;
    }
    let (_, service) = snapshot.service?;
    let has_affinity = service.flags & SERVICE_AFFINITY != 0;
    let ring_slot =
        ring_slot(if has_affinity { snapshot.key.without_ports().hash(&snapshot.node.hash_key) } else { hash });
    let stateless = snapshot.ring(service.ring, ring_slot);
    let before = (snapshot.ring(service.ring + PREVIOUS_RINGS, ring_slot), "ring before the last change");
    let stored = snapshot.entry.map(|entry| (entry.backend, "entry"));
    let remembered = snapshot.pending.map(|pending| (pending.backend, "pending"));
    let candidates = [stored, remembered, Some((stateless, "ring")), Some(before)];
    let matching = |slot: u16| match decision {
        Decision::Deliver(target, _) => snapshot.backend(slot).is_some_and(|backend| backend.address == target.address),
        Decision::HandOff(..) | Decision::End(_) => true,
    };
    let (slot, from) = candidates.into_iter().flatten().find(|(slot, _)| matching(*slot))?;
    let target = snapshot.backend(slot)?;
    Some(Choice { backend: words::backend(slot, target, vip, names), from, ring_slot })
}

fn vip(key: &Key) -> Vip {
    let service = key.service();
    words::vip(&service).unwrap_or(Vip {
        address: crate::config::ip(service.address),
        port: u16::from_be_bytes(service.port),
        protocol: crate::config::Protocol::Tcp,
    })
}
