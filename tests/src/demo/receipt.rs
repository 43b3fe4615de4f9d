//! What a run of the demo showed, with the bounds it is held to.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{Kill, screen::Style};
use crate::check::Check;

/// A member's silent death is in every survivor's liveness mask within this.
const DETECTION_MAX_MS: f64 = 150.0;
/// No connection waits longer than this for an answer.
const STALL_MAX_MS: f64 = 400.0;

/// The figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Receipt {
    /// Whether the members shared nothing.
    pub naive: bool,
    /// What was killed.
    pub kill: Kill,
    /// The member that was killed, or whose agent was.
    pub victim: Option<String>,
    /// Long-lived connections.
    pub connections: usize,
    /// Of these, found in at least one survivor's flow table just before the cut.
    pub protected: usize,
    /// Connections that broke although a survivor's table had them.
    pub broken: u64,
    /// Connections that broke and were in no survivor's table just before the cut.
    pub broken_young: u64,
    /// How connections broke.
    pub faults: BTreeMap<String, u64>,
    /// Short connections opened and done.
    pub short_connections: u64,
    /// Short connections that got no handshake.
    pub handshakes_failed: u64,
    /// The slowest handshake that succeeded; a lost SYN is sent again after a second.
    pub slowest_handshake_ms: f64,
    /// The longest time a surviving connection waited for an answer without progress.
    pub longest_stall_ms: f64,
    /// From the cut to the victim's `forwarding` bit cleared, per survivor; null if that never happened.
    pub detection_ms: BTreeMap<String, Option<f64>>,
    /// Long-lived connections by their primary, just before the cut.
    pub flows_per_member: BTreeMap<String, u64>,
    /// Bytes sent and answered on all long-lived connections, each checked.
    pub bytes_checked: u64,
}

impl Receipt {
    /// Whether the run's exit status is 0: nothing that was promised broke.
    pub fn is_clean(&self) -> bool {
        self.broken == 0 && !(self.naive && self.broken_young > 0)
    }

    /// The figures that have a bound.
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = vec![
            Check::count_at_most("protected connections broken", self.broken, 0),
            Check::count_at_most("handshakes failed", self.handshakes_failed, 0),
        ];
        for (name, after) in &self.detection_ms {
            checks.push(Check::ms_at_most(&format!("death noticed by {name}"), *after, DETECTION_MAX_MS));
        }
        checks.push(Check::ms_at_most("longest stall of a connection", Some(self.longest_stall_ms), STALL_MAX_MS));
        checks
    }

    /// The receipt for people.
    pub fn render(&self, style: Style) -> String {
        let mut out = String::new();
        self.render_into(&mut out, style).expect("a String takes all that is written to it");
        out
    }

    fn render_into(&self, out: &mut String, style: Style) -> std::fmt::Result {
        let before = match &self.victim {
            Some(victim) => format!("known to a survivor when {victim} was struck"),
            None => "known to a member when the servers changed".to_owned(),
        };
        writeln!(out, "\n  {}", style.bold(&format!("{:<46}{:>10}   {}", "Receipt", "figure", "bound")))?;
        row(out, "long-lived connections", &self.connections.to_string())?;
        row(out, &before, &self.protected.to_string())?;
        row(out, "others that broke", &self.broken_young.to_string())?;
        row(out, "short connections done", &self.short_connections.to_string())?;
        row(out, "slowest handshake", &ms(self.slowest_handshake_ms))?;
        row(out, "bytes checked", &format!("{:.1} MB", self.bytes_checked as f64 / 1e6))?;
        for (name, flows) in &self.flows_per_member {
            row(out, &format!("flows with {name} as primary, before"), &flows.to_string())?;
        }
        for Check { name, figure, bound, passed } in self.checks() {
            let verdict = if passed { style.good("ok") } else { style.bad("MISSED") };
            writeln!(out, "  {name:<46}{figure:>10}   {bound:<10}{verdict}")?;
        }
        for (fault, count) in &self.faults {
            row(out, &format!("broken by: {fault}"), &count.to_string())?;
        }
        writeln!(out, "\n  {}", self.verdict(style))
    }

    fn verdict(&self, style: Style) -> String {
        let all = self.broken + self.broken_young;
        if self.naive {
            let said = format!("Members that share nothing broke {all} connections.");
            let how = "The same schedule without --naive shows what sharing the flows changes.";
            return format!("{} {how}", if all > 0 { style.bad(&said) } else { said });
        }
        if self.broken > 0 {
            return style.bad(&format!("{} protected connections broke: that must not happen.", self.broken));
        }
        let what = match (self.kill, &self.victim) {
            (Kill::Primary, Some(victim)) => format!("{victim} died, "),
            (Kill::Agent, Some(victim)) => format!("the agent of {victim} was killed, "),
            _ => String::new(),
        };
        style.good(&format!(
            "{what}a server joined and another left within the same second: no protected connection broke."
        ))
    }
}

fn row(out: &mut String, name: &str, figure: &str) -> std::fmt::Result {
    writeln!(out, "  {name:<46}{figure:>10}")
}

fn ms(value: f64) -> String {
    format!("{value:.0} ms")
}
