//! The same facts for Prometheus: read when they are asked for, so that a packet costs nothing more.
//!
//! [`METRICS`] is all there is; `docs/metrics.md` has the same table, and a test holds them together. Names follow the field's
//! conventions: base units, `_total` for what only grows, and labels of which each value keeps its meaning.

use std::fmt;

use lb_common::{
    reason::{Counter, Reason},
    ring::RING_SLOTS,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

use super::{
    listing::{self, ServiceBackend},
    status::{self, MemberStatus, Readings, ServiceStatus, Status, Verdict},
    words::{self, Traffic},
};
use crate::config::Names;

mod source;
#[cfg(test)]
mod tests;

pub use source::Source;

/// What the text is, as HTTP says it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Something that is measured.
pub struct Metric {
    /// Without the `_total` that samples of counters have.
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: fn(&Facts, &mut Samples),
}

/// Whether it can fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Since the maps were made.
    Counter,
    Gauge,
}

impl Metric {
    /// As its samples are called.
    pub fn name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge => self.name.to_owned(),
        }
    }

    /// What it says, in one line.
    pub fn help(&self) -> &'static str {
        self.help
    }
}

/// What metrics are made of.
struct Facts {
    status: Status,
    backends: Vec<ServiceBackend>,
    counters: Vec<(Reason, Counter)>,
}

type Labels = Vec<(&'static str, String)>;

/// Values with their labels.
#[derive(Debug, Default)]
struct Samples(Vec<(Labels, Value)>);

#[derive(Clone, Copy, Debug)]
enum Value {
    Whole(u64),
    Fraction(f64),
}

impl Samples {
    fn push(&mut self, labels: Labels, value: u64) {
        self.0.push((labels, Value::Whole(value)));
    }

    fn flag(&mut self, labels: Labels, is_so: bool) {
        self.push(labels, u64::from(is_so));
    }

    fn seconds(&mut self, labels: Labels, nanoseconds: u64) {
        self.0.push((labels, Value::Fraction(nanoseconds as f64 / 1e9)));
    }

    fn ratio(&mut self, labels: Labels, part: u32, whole: usize) {
        self.0.push((labels, Value::Fraction(f64::from(part) / whole as f64)));
    }
}

/// Every metric, in the order in which they are printed.
pub const METRICS: &[Metric] = &[
    gauge("tandem_info", "Always 1: version, cluster, and which member this is", |facts, samples| {
        let Status { member, cluster, .. } = &facts.status;
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("cluster", cluster.clone().unwrap_or_default()),
            ("member", member.name.clone().unwrap_or_default()),
            ("id", member.id.to_string()),
        ];
        samples.push(labels, 1);
    }),
    gauge("tandem_problems", "What is wrong, as status says it, by severity", |facts, samples| {
        for (severity, name) in [(Verdict::Degraded, "degraded"), (Verdict::Down, "down")] {
            let count = facts.status.problems.iter().filter(|problem| problem.severity == severity).count();
            samples.push(vec![("severity", name.to_owned())], count as u64);
        }
    }),
    gauge("tandem_agent_alive", "1 while the agent's lease lasts", |facts, samples| {
        samples.flag(Labels::new(), facts.status.agent.alive);
    }),
    gauge("tandem_agent_incarnation", "Starts of the agent so far", |facts, samples| {
        samples.push(Labels::new(), facts.status.incarnation.into());
    }),
    gauge("tandem_eligible", "1 while this member owns new flows", |facts, samples| {
        samples.flag(Labels::new(), facts.status.members.iter().any(|member| member.this && member.eligible));
    }),
    gauge("tandem_attached", "1 for each interface that the datapath is attached to", |facts, samples| {
        for interface in &facts.status.interfaces {
            samples.push(vec![("interface", interface.clone())], 1);
        }
    }),
    gauge("tandem_epoch", "Rises with every change of servers", |facts, samples| {
        samples.push(Labels::new(), facts.status.epoch.number.into());
    }),
    gauge(
        "tandem_epoch_pending",
        "1 while a change of servers waits for a member's configuration",
        |facts, samples| {
            samples.flag(Labels::new(), facts.status.epoch.pending);
        },
    ),
    gauge(
        "tandem_epoch_behind",
        "1 while the cluster's servers are not in this member's configuration",
        |facts, samples| {
            samples.flag(Labels::new(), facts.status.epoch.behind);
        },
    ),
    gauge("tandem_draining", "1 while this member gives its flows to others", |facts, samples| {
        samples.flag(Labels::new(), facts.status.drain.is_some());
    }),
    gauge(
        "tandem_drain_flows_left",
        "Flows that still name a draining member; none until they were counted",
        |facts, samples| {
            if let Some(left) = facts.status.drain.and_then(|drain| drain.left) {
                samples.push(Labels::new(), left.into());
            }
        },
    ),
    gauge("tandem_flows", "Flows known here; of more than 16,384 a part is counted, within 2.5 %", |facts, samples| {
        each_table(facts, |family, table| samples.push(family, table.used));
    }),
    gauge("tandem_flows_max", "Flows that fit", |facts, samples| {
        each_table(facts, |family, table| samples.push(family, table.max.into()));
    }),
    counter("tandem_packets", "Packets by outcome; all reasons together are what XDP received", |facts, samples| {
        facts.counters.iter().for_each(|(reason, counter)| samples.push(outcome(*reason), counter.packets));
    }),
    counter("tandem_bytes", "Bytes of these packets, from the IP header on", |facts, samples| {
        facts.counters.iter().for_each(|(reason, counter)| samples.push(outcome(*reason), counter.bytes));
    }),
    counter("tandem_service_packets", "Packets of a service by what became of them here", |facts, samples| {
        each_outcome(facts, |labels, traffic| samples.push(labels, traffic.packets));
    }),
    counter("tandem_service_bytes", "Bytes of these packets", |facts, samples| {
        each_outcome(facts, |labels, traffic| samples.push(labels, traffic.bytes));
    }),
    gauge("tandem_service_takes_new_flows", "1 while a new flow of the service finds a backend", |facts, samples| {
        facts.status.services.iter().for_each(|service| samples.flag(of_service(service), service.takes_new_flows));
    }),
    gauge("tandem_service_backends", "Backends of a service by state", |facts, samples| {
        for service in &facts.status.services {
            let ServiceStatus { serving, draining, down, removed, .. } = *service;
            for (state, count) in [("serving", serving), ("draining", draining), ("down", down), ("removed", removed)] {
                let mut labels = of_service(service);
                labels.push(("state", state.to_owned()));
                samples.push(labels, count.into());
            }
        }
    }),
    counter("tandem_backend_packets", "Packets delivered to a backend from here", |facts, samples| {
        facts.backends.iter().for_each(|backend| samples.push(of_backend(backend), backend.delivered.packets));
    }),
    counter("tandem_backend_bytes", "Bytes of these packets", |facts, samples| {
        facts.backends.iter().for_each(|backend| samples.push(of_backend(backend), backend.delivered.bytes));
    }),
    gauge("tandem_backend_up", "0 while most members' checks of the backend fail", |facts, samples| {
        facts.backends.iter().for_each(|found| samples.flag(of_backend(found), found.backend.state != "down"));
    }),
    gauge("tandem_backend_draining", "1 while the backend keeps its flows and takes no new ones", |facts, samples| {
        facts.backends.iter().for_each(|found| samples.flag(of_backend(found), found.backend.state == "draining"));
    }),
    gauge("tandem_backend_reachable", "1 while the next hop to the backend is resolved", |facts, samples| {
        facts.backends.iter().for_each(|found| samples.flag(of_backend(found), found.backend.reachable));
    }),
    gauge(
        "tandem_backend_share_ratio",
        "The part of the service's new flows that goes to the backend",
        |facts, samples| {
            facts.backends.iter().for_each(|found| samples.ratio(of_backend(found), found.ring_slots, RING_SLOTS));
        },
    ),
    gauge("tandem_peer_forwarding", "1 while the peer's datapath answers this member", |facts, samples| {
        peers(facts).for_each(|peer| samples.flag(of_peer(peer), peer.forwarding));
    }),
    gauge("tandem_peer_eligible", "1 while the peer may own new flows", |facts, samples| {
        peers(facts).for_each(|peer| samples.flag(of_peer(peer), peer.eligible));
    }),
    gauge(
        "tandem_peer_not_seen_by",
        "Members whose view is known that the peer's datapath does not answer",
        |facts, samples| {
            peers(facts).for_each(|peer| samples.push(of_peer(peer), peer.not_seen_by.len() as u64));
        },
    ),
    gauge(
        "tandem_peer_round_trip_seconds",
        "Round trip of the last probe that the peer's datapath answered",
        |facts, samples| {
            for (peer, ns) in peers(facts).filter_map(|peer| Some((peer, peer.rtt_ns?))) {
                samples.seconds(of_peer(peer), ns);
            }
        },
    ),
    gauge("tandem_peer_echo_age_seconds", "Since that answer", |facts, samples| {
        for (peer, ms) in peers(facts).filter_map(|peer| Some((peer, peer.echo_age_ms?))) {
            samples.seconds(of_peer(peer), ms.saturating_mul(1_000_000));
        }
    }),
    counter("tandem_peer_handed_off_packets", "Packets handed off to the peer from here", |facts, samples| {
        peers(facts).for_each(|peer| samples.push(of_peer(peer), peer.handed_off.packets));
    }),
    counter("tandem_peer_handed_off_bytes", "Bytes of these packets", |facts, samples| {
        peers(facts).for_each(|peer| samples.push(of_peer(peer), peer.handed_off.bytes));
    }),
];

const fn gauge(name: &'static str, help: &'static str, samples: fn(&Facts, &mut Samples)) -> Metric {
    Metric { name, kind: Kind::Gauge, help, samples }
}

const fn counter(name: &'static str, help: &'static str, samples: fn(&Facts, &mut Samples)) -> Metric {
    Metric { name, kind: Kind::Counter, help, samples }
}

/// The exposition of `readings`, in OpenMetrics' text format.
pub fn exposition(readings: &Readings, names: &Names) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(facts(readings, names))));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a String takes all that is written to it");
    text
}

fn facts(readings: &Readings, names: &Names) -> Facts {
    let counters = Reason::ALL.iter().filter_map(|reason| Some((*reason, *readings.counters.get(*reason as usize)?)));
    Facts {
        status: status::status(readings, names),
        backends: listing::backends(readings, names),
        counters: counters.collect(),
    }
}

struct Scrape(Facts);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scrape").field(&self.0.status).finish()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        const NO_EXEMPLAR: Option<&Exemplar<Labels, u64>> = None;
        for Metric { name, kind, help, samples } in METRICS {
            let metric_type = match kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut found = Samples::default();
            samples(&self.0, &mut found);
            let mut metric = encoder.encode_descriptor(name, help, None, metric_type)?;
            for (labels, value) in &found.0 {
                let mut sample = metric.encode_family(labels)?;
                match (kind, *value) {
                    (Kind::Counter, Value::Whole(value)) => sample.encode_counter(&value, NO_EXEMPLAR)?,
                    (Kind::Counter, Value::Fraction(value)) => sample.encode_counter(&value, NO_EXEMPLAR)?,
                    (Kind::Gauge, Value::Whole(value)) => sample.encode_gauge(&value)?,
                    (Kind::Gauge, Value::Fraction(value)) => sample.encode_gauge(&value)?,
                }
            }
        }
        Ok(())
    }
}

fn outcome(reason: Reason) -> Labels {
    vec![("reason", reason.name().to_owned()), ("action", words::action(reason.action()).to_owned())]
}

fn each_table(facts: &Facts, mut each: impl FnMut(Labels, status::FlowTable)) {
    for (family, table) in [("ipv4", facts.status.flows), ("ipv6", facts.status.flows_v6)] {
        each(vec![("family", family.to_owned())], table);
    }
}

fn each_outcome(facts: &Facts, mut each: impl FnMut(Labels, Traffic)) {
    for service in &facts.status.services {
        let ServiceStatus { delivered, handed_off, answered, dropped, .. } = *service;
        let outcomes = [("deliver", delivered), ("hand_off", handed_off), ("answer", answered), ("drop", dropped)];
        for (action, traffic) in outcomes {
            let mut labels = of_service(service);
            labels.push(("action", action.to_owned()));
            each(labels, traffic);
        }
    }
}

fn of_service(service: &ServiceStatus) -> Labels {
    vec![("service", service.name.clone().unwrap_or_default()), ("vip", service.vip.to_string())]
}

fn of_backend(found: &ServiceBackend) -> Labels {
    vec![
        ("service", found.service.clone().unwrap_or_default()),
        ("vip", found.vip.to_string()),
        ("backend", found.backend.name.clone().unwrap_or_default()),
        ("address", found.backend.address.to_string()),
    ]
}

fn peers(facts: &Facts) -> impl Iterator<Item = &MemberStatus> {
    facts.status.members.iter().filter(|member| !member.this)
}

fn of_peer(peer: &MemberStatus) -> Labels {
    vec![("peer", peer.member.name.clone().unwrap_or_default()), ("peer_id", peer.member.id.to_string())]
}
