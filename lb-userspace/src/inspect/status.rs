//! One verdict on this member and its cluster, and what it rests on.

use std::{collections::BTreeMap, thread, time::Duration};

use lb_common::{
    liveness::{
        Heard, LEFT_UNKNOWN, LIVENESS_BEHIND, LIVENESS_DIFFERS, LIVENESS_DISBELIEVED, LIVENESS_DRAINING,
        LIVENESS_PENDING, Liveness, PROBE_READY,
    },
    node::{Node, V4, V6},
    rank::{MEMBERS_MAX, bit},
    reason::{Counter, Reason, ServiceCounters},
    ring::{RING_SLOTS, Ring},
    service::{Service, ServiceKey},
    target::{TARGET_DOWN, TARGET_DRAINING, TARGET_SERVING, Target},
};
use serde::Serialize;

use super::words::{self, Member, NextHopFacts, Traffic};
use crate::{
    config::{Names, Vip},
    core::Absurdity,
    pinned::{COUNTED_FLOWS, FlowCount, Pinned, PinnedError, SAMPLED_FLOWS},
};

mod verdict;

pub use verdict::{Problem, Verdict};

/// How a member is; `tandem status -o json` prints this.
///
/// Field names are stable. Ages and durations carry their unit in the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Raised when a field changes its meaning or goes.
    pub format_version: u32,
    /// `ok`, `degraded` or `down`.
    pub verdict: Verdict,
    /// What the verdict rests on, worst first; empty when it is `ok`.
    pub problems: Vec<Problem>,
    /// The cluster's name, if the configuration file was readable.
    pub cluster: Option<String>,
    /// The member that this host is; id 0 before its agent has configured the datapath.
    pub member: Member,
    /// Starts of its agent so far.
    pub incarnation: u32,
    /// Its agent.
    pub agent: Agent,
    /// Which servers new flows go to.
    pub epoch: Epoch,
    /// A member runs another configuration than this one.
    pub configurations_differ: bool,
    /// The member that last said what cannot be, if that was within a minute.
    pub disbelieved: Option<Disbelieved>,
    /// How far a draining member is; `None` for one that is not draining.
    pub drain: Option<Drain>,
    /// Interfaces that the datapath is attached to.
    pub interfaces: Vec<String>,
    /// All members, by id.
    pub members: Vec<MemberStatus>,
    /// The table of IPv4 flows.
    pub flows: FlowTable,
    /// The table of IPv6 flows.
    pub flows_v6: FlowTable,
    /// Packets a second, at the moment, whose flow deserved an entry and got none: over the budget, or the table is full.
    pub unprotected_per_s: u64,
    /// The services, by VIP.
    pub services: Vec<ServiceStatus>,
    /// Packets by outcome since the maps were made; outcomes that did not happen are left out.
    pub packets: Vec<Count>,
}

/// Which servers new flows go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Epoch {
    /// Rises with every change of servers; 0 for none yet.
    pub number: u32,
    /// Another set of servers is in a member's configuration.
    pub pending: bool,
    /// Members whose configuration does not have it, for which the change waits.
    pub waits_for: Vec<Member>,
    /// The cluster's servers are others than this member's: it owns no new flows.
    pub behind: bool,
    /// For how long flows that nobody has recorded follow the servers of before.
    pub grace_ms: Option<u64>,
}

/// A member that said what no member that works would say: each time it does, its session ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disbelieved {
    /// The member.
    pub member: Member,
    /// What it was.
    pub reason: &'static str,
}

/// How far a draining member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// Flows that still name it as primary or backup; `None` until they have been counted.
    pub left: Option<u32>,
}

/// Whether the agent of this host lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// Its lease lasts.
    pub alive: bool,
    /// For how long it lasts if it is not renewed.
    pub lease_ms: Option<u64>,
    /// For how long it has been over; `None` if there never was one.
    pub dead_for_ms: Option<u64>,
}

/// A member as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// The member.
    #[serde(flatten)]
    pub member: Member,
    /// Whether it is this one.
    pub this: bool,
    /// Its datapath answers: it may be given known flows.
    pub forwarding: bool,
    /// Its agent lives and is ready: it may own new flows.
    pub eligible: bool,
    /// Whether its last probe said that it is ready.
    pub says_ready: bool,
    /// Members that say, or said within the last second, that its datapath answers them; itself left out.
    pub seen_by: Vec<String>,
    /// Members that say that it does not.
    pub not_seen_by: Vec<String>,
    /// Since its agent's last probe; `None` for never, and for this member.
    pub probe_age_ms: Option<u64>,
    /// Since its datapath's last echo; `None` for never, and for this member.
    pub echo_age_ms: Option<u64>,
    /// Round trip of that echo.
    pub rtt_ns: Option<u64>,
    /// Starts of its agent, as it says; 0 for unknown.
    pub incarnation: u32,
    /// What was handed off to it from here.
    pub handed_off: Traffic,
    /// The way to it; `None` for this member, and while it is not resolved.
    pub next_hop: Option<NextHopFacts>,
}

/// How full the flow table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FlowTable {
    /// Flows.
    pub used: u64,
    /// Whether each was counted; of a large table `used` is extrapolated, within 1 %.
    pub exact: bool,
    /// Flows that fit.
    pub max: u32,
}

/// A service, by the state of its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceStatus {
    /// Its name, if the configuration file was readable.
    pub name: Option<String>,
    /// Its identity.
    pub vip: Vip,
    /// Backends that take new flows.
    pub serving: u32,
    /// Backends that keep their flows and take no new ones.
    pub draining: u32,
    /// Backends that are dead.
    pub down: u32,
    /// Backends that are no longer configured and still have flows.
    pub removed: u32,
    /// Backends in service that packets cannot be sent to: their next hop is not resolved.
    pub unreachable: u32,
    /// Whether a new flow finds a backend.
    pub takes_new_flows: bool,
    /// What of it was delivered to its backends from here.
    pub delivered: Traffic,
    /// What of it was handed to other members from here.
    pub handed_off: Traffic,
    /// What of it was answered from here: packets that were too big.
    pub answered: Traffic,
    /// What of it was dropped here.
    pub dropped: Traffic,
}

/// Packets of one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The reason's name; docs/reasons.md has them all.
    pub reason: &'static str,
    /// `pass`, `deliver`, `hand_off`, `answer`, `consume` or `drop`.
    pub action: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

/// How many slots of a service's ring lead to each backend's slot; none to 0, which stands for no backend.
pub type Shares = BTreeMap<u16, u32>;

/// Copies of the maps that a status is made of.
pub struct Readings {
    /// When they were read: `CLOCK_MONOTONIC`, in nanoseconds.
    pub now_ns: u64,
    /// This member.
    pub node: Node,
    /// Masks and lease.
    pub liveness: Liveness,
    /// By member id.
    pub heard: Vec<Heard>,
    /// By member id.
    pub members: Vec<Target>,
    /// By slot.
    pub backends: Vec<Target>,
    /// In order, each with its shares.
    pub services: Vec<(ServiceKey, Service, Shares)>,
    /// By reason.
    pub counters: Vec<Counter>,
    /// See `Status::unprotected_per_s`.
    pub unprotected_per_s: u64,
    /// By the index of the service's ring.
    pub service_counters: BTreeMap<u32, ServiceCounters>,
    /// To the used slots.
    pub delivered: BTreeMap<u16, Traffic>,
    /// To the members, by id.
    pub handed_off: BTreeMap<u8, Traffic>,
    /// Flows, by family.
    pub flows: [FlowCount; 2],
    /// Flows that fit, by family.
    pub flows_max: [u32; 2],
    /// Attached interfaces.
    pub interfaces: Vec<String>,
}

impl Readings {
    /// Reads the maps; `clock` is asked last, so that nothing is younger than `now_ns`.
    ///
    /// # Errors
    ///
    /// Those of reading the maps.
    pub fn take(pinned: &Pinned, clock: impl Fn() -> u64) -> Result<Self, PinnedError> {
        let unprotected_per_s = unprotected_per_s(pinned)?;
        Ok(Self { unprotected_per_s, ..Self::read(pinned, COUNTED_FLOWS, clock)? })
    }

    /// The same in less time: for whoever comes back, and has rates from one look to the next.
    ///
    /// # Errors
    ///
    /// Those of reading the maps.
    pub fn glance(pinned: &Pinned, clock: impl Fn() -> u64) -> Result<Self, PinnedError> {
        Self::read(pinned, SAMPLED_FLOWS, clock)
    }

    fn read(pinned: &Pinned, counted: u64, clock: impl Fn() -> u64) -> Result<Self, PinnedError> {
        let with_shares = |(key, service): (ServiceKey, Service)| {
            pinned.ring(service.ring).map(|ring| (key, service, ring.as_ref().map(shares).unwrap_or_default()))
        };
        let (node, backends, services) = (pinned.node()?, pinned.backends()?, pinned.services()?);
        let of_service = |(_, service): &(ServiceKey, Service)| {
            pinned.service_counters(service.ring).map(|counters| (service.ring, counters))
        };
        let of_slot = |(slot, _): (u16, &Target)| pinned.backend_counter(slot).map(|counter| (slot, counter.into()));
        let of_member = |id: u8| pinned.member_counter(id).map(|counter| (id, counter.into()));
        let used = (0_u16..).zip(&backends).filter(|(_, backend)| backend.state != 0);
        let configured = node.seeds.iter().take(node.members as usize).map(|seed| seed.id as u8);
        Ok(Self {
            service_counters: services.iter().map(of_service).collect::<Result<_, _>>()?,
            delivered: used.map(of_slot).collect::<Result<_, _>>()?,
            handed_off: configured.map(of_member).collect::<Result<_, _>>()?,
            unprotected_per_s: 0,
            node,
            backends,
            services: services.into_iter().map(with_shares).collect::<Result<_, _>>()?,
            counters: pinned.counters()?.to_vec(),
            flows: pinned.count_flows(counted)?,
            flows_max: pinned.flows_max()?,
            interfaces: pinned.interfaces(),
            members: pinned.members()?,
            heard: pinned.heard()?,
            liveness: pinned.liveness()?,
            now_ns: clock(),
        })
    }
}

fn shares(ring: &Ring) -> Shares {
    let mut shares = Shares::new();
    for slot in ring.slots[..RING_SLOTS].iter().filter(|slot| **slot != 0) {
        *shares.entry(*slot).or_default() += 1;
    }
    shares
}

/// Nothing is waited for where no flow has ever been unprotected.
fn unprotected_per_s(pinned: &Pinned) -> Result<u64, PinnedError> {
    const PAUSE: Duration = Duration::from_millis(100);
    let count = || -> Result<u64, PinnedError> {
        let counters = pinned.counters()?;
        let reasons = [Reason::DeliverOverBudget, Reason::DeliverTableFull];
        Ok(reasons.iter().filter_map(|reason| counters.get(*reason as usize)).map(|counter| counter.packets).sum())
    };
    let before = count()?;
    if before == 0 {
        return Ok(0);
    }
    thread::sleep(PAUSE);
    Ok((count()?.saturating_sub(before)) * 1000 / PAUSE.as_millis() as u64)
}

/// Judges a member by its maps.
pub fn status(readings: &Readings, names: &Names) -> Status {
    let node = &readings.node;
    let mut status = Status {
        format_version: words::FORMAT_VERSION,
        verdict: Verdict::Ok,
        problems: Vec::new(),
        cluster: names.cluster().map(str::to_owned),
        member: words::member(node.id, words::own_address(node), names),
        incarnation: node.incarnation,
        agent: agent(readings),
        epoch: epoch(readings, names),
        configurations_differ: readings.liveness.flags & LIVENESS_DIFFERS != 0,
        disbelieved: disbelieved(readings, names),
        drain: drain(&readings.liveness),
        interfaces: readings.interfaces.clone(),
        members: members(readings, names),
        flows: flow_table(readings, V4),
        flows_v6: flow_table(readings, V6),
        unprotected_per_s: readings.unprotected_per_s,
        services: services(readings, names),
        packets: packets(&readings.counters),
    };
    status.problems = verdict::problems(&status);
    status.verdict = status.problems.first().map_or(Verdict::Ok, |problem| problem.severity);
    status
}

fn flow_table(readings: &Readings, family: usize) -> FlowTable {
    let FlowCount { flows, is_exact } = readings.flows[family];
    FlowTable { used: flows, exact: is_exact, max: readings.flows_max[family] }
}

/// The members, by id.
pub fn members(readings: &Readings, names: &Names) -> Vec<MemberStatus> {
    let node = &readings.node;
    let alive = agent(readings).alive;
    let configured = || node.seeds.iter().take(node.members as usize).map(|seed| seed.id as u8);
    let views: Vec<(u8, u64)> = configured().filter_map(|id| Some((id, view(readings, id)?))).collect();
    let seeing = |id: u8, wanted: bool| {
        let others = views.iter().filter(|(of, mask)| *of != id && (mask & bit(id) != 0) == wanted);
        others.map(|(of, _)| names.member(*of).map_or_else(|| format!("member {of}"), str::to_owned)).collect()
    };
    let mut members: Vec<_> = configured()
        .map(|id| {
            let this = id == node.id;
            let target = readings.members.get(usize::from(id)).copied().unwrap_or(Target::NONE);
            let heard = readings.heard.get(usize::from(id)).filter(|_| !this);
            let age = |at_ns: u64| (at_ns != 0).then(|| readings.now_ns.saturating_sub(at_ns) / 1_000_000);
            MemberStatus {
                member: words::member(id, if this { words::own_address(node) } else { target.address }, names),
                this,
                forwarding: this || readings.liveness.forwarding & bit(id) != 0,
                eligible: readings.liveness.eligible & bit(id) != 0 && (!this || alive),
                says_ready: heard.is_some_and(|heard| heard.flags & PROBE_READY != 0),
                seen_by: seeing(id, true),
                not_seen_by: seeing(id, false),
                probe_age_ms: heard.and_then(|heard| age(heard.probe_ns)),
                echo_age_ms: heard.and_then(|heard| age(heard.echo_ns)),
                rtt_ns: heard
                    .filter(|heard| heard.echo_ns != 0)
                    .map(|heard| heard.echo_ns.saturating_sub(heard.echo_sent_ns)),
                incarnation: if this { node.incarnation } else { heard.map_or(0, |heard| heard.incarnation) },
                handed_off: readings.handed_off.get(&id).copied().unwrap_or_default(),
                next_hop: words::next_hop(&target.next_hop).filter(|_| !this),
            }
        })
        .collect();
    members.sort_by_key(|member| member.member.id);
    members
}

/// Whose datapath answers member `id`, as its agent says; `None` from a dead one.
fn view(readings: &Readings, id: u8) -> Option<u64> {
    if id == readings.node.id {
        return agent(readings).alive.then_some(readings.liveness.forwarding);
    }
    let heard = readings.heard.get(usize::from(id)).filter(|heard| heard.probe_ns != 0)?;
    let is_recent = readings.now_ns.saturating_sub(heard.probe_ns) < verdict::RECENT_MS * 1_000_000;
    is_recent.then_some(heard.forwarding)
}

/// The services, by VIP.
pub fn services(readings: &Readings, names: &Names) -> Vec<ServiceStatus> {
    let service = |(key, service, shares): &(ServiceKey, Service, Shares)| {
        let vip = words::vip(key)?;
        let counters = readings.service_counters.get(&service.ring);
        let traffic = |of: fn(&ServiceCounters) -> Counter| counters.map(of).map(Traffic::from).unwrap_or_default();
        let mut status = ServiceStatus {
            name: names.service(vip).map(str::to_owned),
            vip,
            serving: 0,
            draining: 0,
            down: 0,
            removed: 0,
            unreachable: 0,
            takes_new_flows: shares
                .keys()
                .any(|slot| readings.backends.get(usize::from(*slot)).is_some_and(Target::is_in_service)),
            delivered: traffic(|counters| counters.delivered),
            handed_off: traffic(|counters| counters.handed_off),
            answered: traffic(|counters| counters.answered),
            dropped: traffic(|counters| counters.dropped),
        };
        for backend in readings.backends.iter().filter(|backend| backend.state != 0 && backend.ring == service.ring) {
            *match backend.state {
                TARGET_SERVING => &mut status.serving,
                TARGET_DRAINING => &mut status.draining,
                TARGET_DOWN => &mut status.down,
                _ => &mut status.removed,
            } += 1;
            status.unreachable += u32::from(backend.is_in_service() && backend.next_hop.ifindex == 0);
        }
        Some(status)
    };
    readings.services.iter().filter_map(service).collect()
}

fn epoch(readings: &Readings, names: &Names) -> Epoch {
    let liveness = &readings.liveness;
    let grace_ns = liveness.grace_until_ns.checked_sub(readings.now_ns).filter(|left| *left > 0);
    let address = |id: u8| readings.members.get(usize::from(id)).map_or([0; 16], |member| member.address);
    let awaited = (1..=MEMBERS_MAX as u8).filter(|id| liveness.awaited & bit(*id) != 0);
    Epoch {
        number: liveness.epoch,
        pending: liveness.flags & LIVENESS_PENDING != 0,
        waits_for: awaited.map(|id| words::member(id, address(id), names)).collect(),
        behind: liveness.flags & LIVENESS_BEHIND != 0,
        grace_ms: grace_ns.map(|left| left / 1_000_000),
    }
}

fn disbelieved(readings: &Readings, names: &Names) -> Option<Disbelieved> {
    let [id, code, ..] = (readings.liveness.flags >> LIVENESS_DISBELIEVED).to_le_bytes();
    let reason = Absurdity::of_code(code)?;
    let address = readings.members.get(usize::from(id)).map_or([0; 16], |member| member.address);
    Some(Disbelieved { member: words::member(id, address, names), reason })
}

fn drain(liveness: &Liveness) -> Option<Drain> {
    let left = (liveness.left != LEFT_UNKNOWN).then_some(liveness.left);
    (liveness.flags & LIVENESS_DRAINING != 0).then_some(Drain { left })
}

fn agent(readings: &Readings) -> Agent {
    let until = readings.liveness.lease_until_ns;
    let alive = until >= readings.now_ns && until != 0;
    let ms = |ns: u64| ns / 1_000_000;
    Agent {
        alive,
        lease_ms: alive.then(|| ms(until - readings.now_ns)),
        dead_for_ms: (!alive && until != 0).then(|| ms(readings.now_ns - until)),
    }
}

fn packets(counters: &[Counter]) -> Vec<Count> {
    let count = |reason: &Reason| {
        let counter = counters.get(*reason as usize).filter(|counter| counter.packets != 0)?;
        let action = words::action(reason.action());
        Some(Count { reason: reason.name(), action, packets: counter.packets, bytes: counter.bytes })
    };
    Reason::ALL.iter().filter_map(count).collect()
}
