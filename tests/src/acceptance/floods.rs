//! What a flood takes from those who were there before it, and from those who come meanwhile.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_common::reason::Action;

use crate::{
    check::Check,
    cluster::{Cluster, Shape, tcp_flow},
    interrupt, population,
    tables::Packets,
    traffic::{
        flood::{Flood, Kind},
        load::{Load, Plan},
        raw,
        record::Record,
    },
};

/// Established flows that nobody sends packets of.
const ESTABLISHED: u32 = 100_000;
/// Connections that are used all the time.
const LIVE: usize = 1000;
/// Legitimate connections opened during the flood, that many at a time, and how often.
const NEWCOMERS: usize = 50;
const NEWCOMERS_INTERVAL: Duration = Duration::from_millis(500);
/// New TCP flows that a CPU of a member may record in a second: the default, which agents reduce as the table fills.
const BUDGET: u64 = 125_000;
/// `flows` of each member: less than the budget of a long flood of handshakes.
const FLOWS_MAX: u32 = 1 << 20;
/// Requests that a newcomer makes, one an interval: a flow that the budget had no room for is recorded when it keeps coming.
const REQUESTS: usize = 4;
/// A patience that even a machine which does nothing but forward a flood does not use up.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn syn() -> Result<Vec<Check>> {
    Ground::lay()?.flood(Kind::Syn, Duration::from_secs(30))
}

pub(super) fn handshake() -> Result<Vec<Check>> {
    Ground::lay()?.flood(Kind::Handshake, Duration::from_secs(30))
}

pub(super) fn udp() -> Result<Vec<Check>> {
    Ground::lay()?.flood(Kind::Udp, Duration::from_secs(30))
}

/// A cluster with what a flood may not touch.
#[derive(Debug)]
pub struct Ground {
    // Before the cluster: the traffic ends before the lab does.
    live: Option<Load>,
    cluster: Cluster,
}

impl Ground {
    /// Three members that hold the established flows and carry the live connections.
    pub fn lay() -> Result<Self> {
        let cluster = Cluster::start(Shape { balancers: 3, servers: 3, naive: false }, |config| {
            config.flows_max = Some(FLOWS_MAX);
        })?;
        for server in &cluster.servers {
            raw::ignore_sources(&server.host.namespace)?;
        }
        population::fill(&cluster.members[0], ESTABLISHED)?;
        cluster.members.iter().try_for_each(|member| population::wait(member, ESTABLISHED))?;
        let plan = Plan { chatty: LIVE, patience: PATIENCE, ..Plan::quiet() };
        let live = Load::start(&cluster.topology.client, plan)?;
        live.wait_open(PATIENCE).context("before the flood")?;
        Ok(Self { live: Some(live), cluster })
    }

    /// One flood, and what came of it; the ground stands another one.
    pub fn flood(&mut self, kind: Kind, duration: Duration) -> Result<Vec<Check>> {
        let cluster = &self.cluster;
        let held = self.held()?;
        let before = counted(cluster)?;
        let hosts: Vec<_> = cluster.members.iter().map(|member| member.host.clone()).collect();
        let began = Instant::now();
        let flood = Flood::start(&cluster.topology.router, &hosts, kind)?;
        let mut newcomers = Vec::new();
        while began.elapsed() < duration {
            let plan = Plan { idle: NEWCOMERS, patience: PATIENCE, ..Plan::quiet() };
            newcomers.push(Load::start(&cluster.topology.client, plan)?);
            go_on(&newcomers)?;
        }
        let sent = flood.finish()?;
        let after = counted(cluster)?;
        for _ in 0..REQUESTS {
            go_on(&newcomers)?;
        }
        let lasted = began.elapsed();

        let records = || newcomers.iter().flat_map(|load| load.ledger().long());
        let opened = records().filter(|record| record.facts().port != 0).count();
        let mut recorded = 0;
        for record in records() {
            recorded += u64::from(self.is_recorded(record)?);
        }
        let lost = cluster.members.iter().map(|member| population::missing(member, ESTABLISHED));
        let lost: u64 = lost.sum::<Result<u64>>()?;
        let grown = self.held()?.saturating_sub(held);
        let broken: usize = newcomers.into_iter().map(|load| load.finish().broken().len()).sum();
        let broken_live = self.live.as_ref().map_or(0, |load| load.ledger().broken().len());

        let delivered = |(before, after): (&Packets, &Packets)| after.since(before).ended_in(Action::Deliver);
        let delivered: u64 = before.iter().zip(&after).map(delivered).sum();
        let rate = |packets: u64| format!("{:.0} kpps", packets as f64 / sent.seconds / 1e3);
        let budget = match kind {
            Kind::Handshake => self.budget(lasted),
            Kind::Syn | Kind::Udp => 0,
        };
        Ok(vec![
            Check::new("sent", rate(sent.packets), "printed".to_owned(), sent.packets > 0),
            Check::new("refused by a full link", rate(sent.refused), "printed".to_owned(), true),
            Check::new("delivered to servers", rate(delivered), "printed".to_owned(), delivered > 0),
            Check::count_at_most("established entries lost", lost, 0),
            Check::count_at_most("live connections broken, of 1000", broken_live as u64, 0),
            Check::count_at_most("connections opened meanwhile and broken", broken as u64, 0),
            Check::count_at_most("growth of `flows`", grown, (opened as u64 + budget).min(u64::from(FLOWS_MAX) - held)),
            Check::new(
                "legitimate new flows recorded",
                format!("{recorded} of {opened}"),
                "≥ 99 %".to_owned(),
                opened > 0 && recorded as f64 >= 0.99 * opened as f64,
            ),
        ])
    }

    /// Ends the live connections, each of which proves once more that it works; answers how many did not.
    pub fn finish(mut self) -> usize {
        self.live.take().map_or(0, |live| live.finish().broken().len())
    }

    /// Entries of the member that has most.
    fn held(&self) -> Result<u64> {
        let held = self.cluster.members.iter().map(population::flows_of).collect::<Result<Vec<_>>>()?;
        Ok(held.into_iter().max().unwrap_or(0))
    }

    /// Whether a member has the flow of this connection; from one the others hear of it.
    fn is_recorded(&self, record: &Record) -> Result<bool> {
        let key = tcp_flow(record.facts().port);
        for member in &self.cluster.members {
            if member.tables().flow(&key)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What all members together may record in this time, the window that it begins in included.
    fn budget(&self, lasted: Duration) -> u64 {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let per_second = BUDGET * (cpus * self.cluster.members.len()) as u64;
        (per_second as f64 * (lasted.as_secs_f64() + 0.2)) as u64
    }
}

/// The connections opened last make one more request.
fn go_on(newcomers: &[Load]) -> Result<()> {
    interrupt::pause(NEWCOMERS_INTERVAL)?;
    newcomers.iter().rev().take(REQUESTS).for_each(Load::wake_idle);
    Ok(())
}

fn counted(cluster: &Cluster) -> Result<Vec<Packets>> {
    cluster.members.iter().map(|member| member.tables().packets()).collect()
}
