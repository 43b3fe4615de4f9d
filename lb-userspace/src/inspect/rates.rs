//! What happens a second: the difference of two looks.

use std::collections::BTreeMap;

use lb_common::reason::{Action, Reason};
use serde::Serialize;

use super::{
    listing,
    status::{self, Problem, Readings, Verdict},
    words::{self, Backend, Member, Traffic},
};
use crate::config::{Names, Vip};

/// A member at work; `tandem top --once -o json` prints this. Field names are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Top {
    /// Raised when a field changes its meaning or goes.
    pub format_version: u32,
    /// Between the two looks.
    pub interval_ms: u64,
    /// `ok`, `degraded` or `down`.
    pub verdict: Verdict,
    /// What the verdict rests on.
    pub problems: Vec<Problem>,
    /// This member.
    pub member: Member,
    /// The cluster's name, if the configuration file was readable.
    pub cluster: Option<String>,
    /// Flows that are known here, of both families; of many, about.
    pub flows: u64,
    /// Flows that became known here with their first packet.
    pub new_flows_per_s: f64,
    /// All packets that came here.
    pub received: Rate,
    /// By what became of them.
    pub actions: Vec<ActionRate>,
    /// The services, by VIP.
    pub services: Vec<ServiceRate>,
    /// Their backends.
    pub backends: Vec<BackendRate>,
    /// Reasons for which packets were dropped since the maps were made.
    pub drops: Vec<DropRate>,
    /// The members, by id.
    pub members: Vec<MemberRate>,
}

/// Packets and bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    /// Packets.
    pub packets_per_s: f64,
    /// Bytes, from the IP header on.
    pub bytes_per_s: f64,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ActionRate {
    /// `pass`, `deliver`, `hand_off`, `answer`, `consume` or `drop`.
    pub action: &'static str,
    /// How many.
    #[serde(flatten)]
    pub rate: Rate,
}

/// A service at work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceRate {
    /// Its name, if the configuration file was readable.
    pub name: Option<String>,
    /// Its identity.
    pub vip: Vip,
    /// Backends that take new flows.
    pub serving: u32,
    /// All its backends, without those that were removed.
    pub backends: u32,
    /// Delivered to them from here.
    pub delivered: Rate,
    /// Handed to other members from here.
    pub handed_off: Rate,
    /// Dropped here.
    pub dropped: Rate,
}

/// A backend at work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendRate {
    /// The service's name, if the configuration file was readable.
    pub service: Option<String>,
    /// The service's identity.
    pub vip: Vip,
    /// The backend.
    #[serde(flatten)]
    pub backend: Backend,
    /// Delivered to it from here.
    pub delivered: Rate,
}

/// Packets that are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DropRate {
    /// The reason's name.
    pub reason: &'static str,
    /// Since the maps were made.
    pub packets: u64,
    /// Now.
    #[serde(flatten)]
    pub rate: Rate,
}

/// A member at work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberRate {
    /// The member.
    #[serde(flatten)]
    pub member: Member,
    /// Whether it is this one.
    pub this: bool,
    /// Its datapath answers.
    pub forwarding: bool,
    /// It may own new flows.
    pub eligible: bool,
    /// Round trip of the last echo.
    pub rtt_ns: Option<u64>,
    /// Handed to it from here.
    pub handed_off: Rate,
}

/// The difference of two counts, over a time. A counter that fell was begun anew meanwhile.
#[derive(Clone, Copy)]
struct Span {
    seconds: f64,
}

impl Span {
    fn rate(self, before: Traffic, now: Traffic) -> Rate {
        let per_s = |before: u64, now: u64| now.saturating_sub(before) as f64 / self.seconds;
        Rate { packets_per_s: per_s(before.packets, now.packets), bytes_per_s: per_s(before.bytes, now.bytes) }
    }
}

/// What happened between two looks at the same member.
pub fn between(before: &Readings, now: &Readings, names: &Names) -> Top {
    let elapsed_ns = now.now_ns.saturating_sub(before.now_ns).max(1);
    let span = Span { seconds: elapsed_ns as f64 / 1e9 };
    let status = status::status(now, names);
    let (received, actions) = actions(before, now, span);
    let new = |readings: &Readings| counted(readings, Reason::DeliverNew);
    Top {
        format_version: words::FORMAT_VERSION,
        interval_ms: elapsed_ns / 1_000_000,
        verdict: status.verdict,
        member: status.member.clone(),
        cluster: status.cluster.clone(),
        flows: status.flows.used + status.flows_v6.used,
        new_flows_per_s: span.rate(new(before), new(now)).packets_per_s,
        received,
        actions,
        services: services(before, &status, names, span),
        backends: backends(before, now, names, span),
        drops: drops(before, now, span),
        members: members(before, &status, span),
        problems: status.problems,
    }
}

fn counted(readings: &Readings, reason: Reason) -> Traffic {
    readings.counters.get(reason as usize).copied().map(Traffic::from).unwrap_or_default()
}

fn actions(before: &Readings, now: &Readings, span: Span) -> (Rate, Vec<ActionRate>) {
    const ACTIONS: [Action; 6] =
        [Action::Deliver, Action::HandOff, Action::Pass, Action::Answer, Action::Consume, Action::Drop];
    let sum = |readings: &Readings, wanted: Option<Action>| {
        let reasons = Reason::ALL.iter().filter(|reason| wanted.is_none_or(|action| reason.action() == action));
        reasons.map(|reason| counted(readings, *reason)).fold(Traffic::default(), |sum, of| Traffic {
            packets: sum.packets + of.packets,
            bytes: sum.bytes + of.bytes,
        })
    };
    let rate = |wanted| span.rate(sum(before, wanted), sum(now, wanted));
    let of = |action| ActionRate { action: words::action(action), rate: rate(Some(action)) };
    (rate(None), ACTIONS.map(of).to_vec())
}

fn services(before: &Readings, now: &status::Status, names: &Names, span: Span) -> Vec<ServiceRate> {
    let earlier: BTreeMap<Vip, _> =
        status::services(before, names).into_iter().map(|service| (service.vip, service)).collect();
    let rate = |service: &status::ServiceStatus| {
        let earlier = earlier.get(&service.vip).unwrap_or(service);
        ServiceRate {
            name: service.name.clone(),
            vip: service.vip,
            serving: service.serving,
            backends: service.serving + service.draining + service.down,
            delivered: span.rate(earlier.delivered, service.delivered),
            handed_off: span.rate(earlier.handed_off, service.handed_off),
            dropped: span.rate(earlier.dropped, service.dropped),
        }
    };
    now.services.iter().map(rate).collect()
}

fn backends(before: &Readings, now: &Readings, names: &Names, span: Span) -> Vec<BackendRate> {
    let rate = |found: listing::ServiceBackend| {
        // A slot that another backend had before counts from its beginning.
        let earlier = before.delivered.get(&found.backend.slot).copied().unwrap_or(found.delivered);
        let delivered = span.rate(earlier, found.delivered);
        BackendRate { service: found.service, vip: found.vip, backend: found.backend, delivered }
    };
    listing::backends(now, names).into_iter().map(rate).collect()
}

fn drops(before: &Readings, now: &Readings, span: Span) -> Vec<DropRate> {
    let dropped = Reason::ALL.iter().filter(|reason| reason.action() == Action::Drop);
    let rate = |reason: &Reason| {
        let traffic = counted(now, *reason);
        let rate = span.rate(counted(before, *reason), traffic);
        (traffic.packets != 0).then(|| DropRate { reason: reason.name(), packets: traffic.packets, rate })
    };
    dropped.filter_map(rate).collect()
}

fn members(before: &Readings, now: &status::Status, span: Span) -> Vec<MemberRate> {
    let rate = |member: &status::MemberStatus| MemberRate {
        member: member.member.clone(),
        this: member.this,
        forwarding: member.forwarding,
        eligible: member.eligible,
        rtt_ns: member.rtt_ns,
        handed_off: span
            .rate(before.handed_off.get(&member.member.id).copied().unwrap_or(member.handed_off), member.handed_off),
    };
    now.members.iter().map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::fixture::{names, readings};

    #[test]
    fn rates_are_differences_over_the_time_between_and_a_counter_begun_anew_is_no_rate() {
        let (before, mut now) = (readings(), readings());
        now.now_ns += 2_000_000_000;
        now.liveness.lease_until_ns += 2_000_000_000;
        let delivered = &mut now.service_counters.get_mut(&3).unwrap().delivered;
        (delivered.packets, delivered.bytes) = (delivered.packets + 500, delivered.bytes + 40_000);
        now.delivered.get_mut(&1).unwrap().packets += 300;
        now.handed_off.get_mut(&2).unwrap().packets += 20;
        now.counters[Reason::DropFragmentNoHead as usize].packets += 8;
        now.counters[Reason::DeliverNew as usize].packets += 50;
        let top = between(&before, &now, &names());
        assert_eq!((top.interval_ms, top.new_flows_per_s), (2000, 25.0));
        assert_eq!(top.services[0].delivered, Rate { packets_per_s: 250.0, bytes_per_s: 20_000.0 });
        assert_eq!(top.backends[0].delivered.packets_per_s, 150.0);
        assert_eq!(top.members[1].handed_off.packets_per_s, 10.0);
        assert_eq!((top.drops[0].packets, top.drops[0].rate.packets_per_s), (11, 4.0));
        assert_eq!(top.received.packets_per_s, 29.0);
        let sum: f64 = top.actions.iter().map(|action| action.rate.packets_per_s).sum();
        assert_eq!(sum, top.received.packets_per_s);
        let anew = between(&now, &before, &names());
        assert_eq!(anew.received.packets_per_s, 0.0);
    }
}
