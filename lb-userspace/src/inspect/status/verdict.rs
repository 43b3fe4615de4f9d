//! What is wrong, from the facts of a status.

use serde::Serialize;

use super::{MemberStatus, ServiceStatus, Status};
use crate::inspect::words::duration;

/// From good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As configured.
    Ok,
    /// Works, with less than what is configured.
    Degraded,
    /// Balances nothing.
    Down,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is for this member.
    pub severity: Verdict,
    /// What it is.
    pub text: String,
}

/// Above this the flow table is called nearly full.
const FULL_PERCENT: u64 = 90;

/// What is younger than this is still coming in.
pub(super) const RECENT_MS: u64 = 1_000;

pub(super) fn problems(status: &Status) -> Vec<Problem> {
    if status.member.id == 0 {
        return vec![down("the agent has not configured the datapath: everything is left to the host")];
    }
    let mut problems = Vec::new();
    if status.interfaces.is_empty() {
        problems.push(down("the datapath is attached to no interface"));
    }
    problems.extend(agent(status));
    problems.extend(status.members.iter().filter_map(|member| peer(member, status.agent.alive)));
    problems.extend(status.disbelieved.iter().map(|disbelieved| {
        let (name, reason) = (disbelieved.member.title(), disbelieved.reason);
        degraded(format!("{name} is not believed, its session was ended: {reason}; look at its host and its key"))
    }));
    if status.configurations_differ && status.agent.alive {
        problems.push(degraded(
            "members run different configurations: `tandem config diff` says which, `tandem config apply` gives all the same",
        ));
    }
    problems.extend(status.services.iter().flat_map(service));
    for (table, name) in [(status.flows, "the flow table"), (status.flows_v6, "the table of IPv6 flows")] {
        let used = table.used.saturating_mul(100) / u64::from(table.max).max(1);
        if used >= FULL_PERCENT {
            problems.push(degraded(format!("{name} is {used} % full: beyond it new flows are unprotected")));
        }
    }
    if status.unprotected_per_s != 0 {
        let rate = status.unprotected_per_s;
        problems.push(degraded(format!(
            "flows are unprotected, {rate} packets a second: over the budget of new flows, or no room (deliver_over_budget, \
             deliver_table_full)"
        )));
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    problems
}

fn agent(status: &Status) -> Option<Problem> {
    let effect = "known flows go on, new ones are left to other members";
    match (status.agent.alive, status.agent.dead_for_ms) {
        (true, _) => {
            let this = status.members.iter().find(|member| member.this)?;
            let why = if status.drain.is_some() {
                "this member is draining"
            } else if status.epoch.behind {
                "this member does not have the cluster's servers in its configuration, or hears of no epoch"
            } else {
                "this member is not ready"
            };
            (!this.eligible).then(|| degraded(format!("{why}: it owns no new flows")))
        }
        (false, Some(ms)) => Some(degraded(format!("the agent has been dead for {}: {effect}", duration(ms)))),
        (false, None) => Some(degraded(format!("the agent has never vouched for this datapath: {effect}"))),
    }
}

/// The masks are the agent's; a dead one's say nothing new.
fn peer(member: &MemberStatus, is_agent_alive: bool) -> Option<Problem> {
    if !is_agent_alive {
        return None;
    }
    let name = member.member.title();
    let blind = member.not_seen_by.join(", ");
    match (member.forwarding, member.eligible) {
        (true, _) if !blind.is_empty() && member.this => Some(degraded(format!(
            "this member is not seen by {blind}, whose probes arrive: look at its way there and back"
        ))),
        (true, _) if !blind.is_empty() => {
            Some(degraded(format!("{name} is not seen by {blind}, and is from here: look at the way between them")))
        }
        _ if member.this => None,
        (true, true) => None,
        (true, false) if member.says_ready && is_recent(member.probe_age_ms) => Some(degraded(format!(
            "{name} owns no new flows: it is draining, or does not have the servers of the epoch in force"
        ))),
        (true, false) => Some(degraded(format!("{name} owns no new flows: its agent is dead or not ready"))),
        (false, _) => {
            let seen = member.seen_by.join(", ");
            let elsewhere = if seen.is_empty() { String::new() } else { format!("; {seen} can see it") };
            Some(degraded(format!("{name} is not forwarding: {}{elsewhere}", silence(member))))
        }
    }
}

fn is_recent(ms: Option<u64>) -> bool {
    ms.is_some_and(|ms| ms < RECENT_MS)
}

/// Probes without echoes point at this host's way out or the peer's driver, not at the peer's death.
fn silence(member: &MemberStatus) -> String {
    match (member.echo_age_ms, member.probe_age_ms) {
        (echo, _) if is_recent(echo) => "its echoes arrive, but it has not been ready since".into(),
        (Some(ms), probe) if is_recent(probe) => {
            format!(
                "last echo {} ago, while its probes arrive: the link carries one direction only, or its driver drops XDP_TX",
                duration(ms)
            )
        }
        (Some(ms), _) => format!("last echo {} ago", duration(ms)),
        (None, Some(_)) => {
            "its probes arrive, but no echo ever did: the link carries one direction only, or its driver drops XDP_TX"
                .into()
        }
        (None, None) => "it was never heard".into(),
    }
}

fn service(service: &ServiceStatus) -> Vec<Problem> {
    let name = service.title();
    let mut problems = Vec::new();
    if !service.takes_new_flows {
        problems.push(degraded(format!("{name} takes no new flows: none of its backends is serving")));
    }
    if service.down != 0 {
        let (down, all) = (service.down, service.serving + service.draining + service.down);
        problems.push(degraded(format!(
            "{name}: {down} of {all} backends down, their checks fail (`tandem backend list`)"
        )));
    }
    if service.unreachable != 0 {
        let count = service.unreachable;
        problems.push(degraded(format!("{name}: next hop not resolved for {count} of its backends")));
    }
    problems
}

impl ServiceStatus {
    /// Name and VIP, or the VIP.
    pub fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("{name} ({})", self.vip),
            None => self.vip.to_string(),
        }
    }
}

fn down(text: impl Into<String>) -> Problem {
    Problem { severity: Verdict::Down, text: text.into() }
}

fn degraded(text: impl Into<String>) -> Problem {
    Problem { severity: Verdict::Degraded, text: text.into() }
}
