//! One verdict on this member and its cluster, and what it rests on.

use lb_common::{
    liveness::{Heard, Liveness, PROBE_READY},
    node::Node,
    rank::bit,
    reason::{Counter, Reason},
    ring::Ring,
    service::{Service, ServiceKey},
    target::{TARGET_DOWN, TARGET_DRAINING, TARGET_SERVING, Target},
};
use serde::Serialize;

use super::words::{self, Member, NextHopFacts};
use crate::{
    config::{Names, Vip},
    pinned::{FlowCount, Pinned, PinnedError},
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
    /// Interfaces that the datapath is attached to.
    pub interfaces: Vec<String>,
    /// All members, by id.
    pub members: Vec<MemberStatus>,
    /// The flow table.
    pub flows: FlowTable,
    /// The services, by VIP.
    pub services: Vec<ServiceStatus>,
    /// Packets by outcome since the maps were made; outcomes that did not happen are left out.
    pub packets: Vec<Count>,
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
    /// Since its agent's last probe; `None` for never, and for this member.
    pub probe_age_ms: Option<u64>,
    /// Since its datapath's last echo; `None` for never, and for this member.
    pub echo_age_ms: Option<u64>,
    /// Round trip of that echo.
    pub rtt_ns: Option<u64>,
    /// Starts of its agent, as it says; 0 for unknown.
    pub incarnation: u32,
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
    /// In order, each with its ring.
    pub services: Vec<(ServiceKey, Service, Option<Box<Ring>>)>,
    /// By reason.
    pub counters: Vec<Counter>,
    /// Flows.
    pub flows: FlowCount,
    /// Flows that fit.
    pub flows_max: u32,
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
        let with_ring = |(key, service): (ServiceKey, Service)| {
            pinned.ring(service.ring).map(|ring| (key, service, ring.map(Box::new)))
        };
        Ok(Self {
            node: pinned.node()?,
            backends: pinned.backends()?,
            services: pinned.services()?.into_iter().map(with_ring).collect::<Result<_, _>>()?,
            counters: pinned.counters()?.to_vec(),
            flows: pinned.count_flows()?,
            flows_max: pinned.flows_max()?,
            interfaces: pinned.interfaces(),
            members: pinned.members()?,
            heard: pinned.heard()?,
            liveness: pinned.liveness()?,
            now_ns: clock(),
        })
    }
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
        interfaces: readings.interfaces.clone(),
        members: members(readings, names),
        flows: FlowTable { used: readings.flows.flows, exact: readings.flows.is_exact, max: readings.flows_max },
        services: services(readings, names),
        packets: packets(&readings.counters),
    };
    status.problems = verdict::problems(&status);
    status.verdict = status.problems.first().map_or(Verdict::Ok, |problem| problem.severity);
    status
}

/// The members, by id.
pub fn members(readings: &Readings, names: &Names) -> Vec<MemberStatus> {
    let node = &readings.node;
    let alive = agent(readings).alive;
    let configured = node.seeds.iter().take(node.members as usize).map(|seed| seed.id as u8);
    let mut members: Vec<_> = configured
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
                probe_age_ms: heard.and_then(|heard| age(heard.probe_ns)),
                echo_age_ms: heard.and_then(|heard| age(heard.echo_ns)),
                rtt_ns: heard
                    .filter(|heard| heard.echo_ns != 0)
                    .map(|heard| heard.echo_ns.saturating_sub(heard.echo_sent_ns)),
                incarnation: if this { node.incarnation } else { heard.map_or(0, |heard| heard.incarnation) },
                next_hop: words::next_hop(&target.next_hop).filter(|_| !this),
            }
        })
        .collect();
    members.sort_by_key(|member| member.member.id);
    members
}

/// The services, by VIP.
pub fn services(readings: &Readings, names: &Names) -> Vec<ServiceStatus> {
    let service = |(key, service, ring): &(ServiceKey, Service, Option<Box<Ring>>)| {
        let vip = words::vip(key)?;
        let mut status = ServiceStatus {
            name: names.service(vip).map(str::to_owned),
            vip,
            serving: 0,
            draining: 0,
            down: 0,
            removed: 0,
            unreachable: 0,
            takes_new_flows: ring.as_ref().is_some_and(|ring| {
                ring.slots.iter().any(|slot| {
                    *slot != 0 && readings.backends.get(usize::from(*slot)).is_some_and(Target::is_in_service)
                })
            }),
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
