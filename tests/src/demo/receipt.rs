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
    /// Of these, found in at least one survivor's flow table just before the cut; in any table where nothing is shared.
    pub protected: usize,
    /// Protected connections that broke.
    pub broken: u64,
    /// Connections that broke and were not protected: opened later, or only just before.
    pub broken_young: u64,
    /// The age of the oldest of those when it broke.
    pub oldest_young_ms: f64,
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
        let broken = if self.naive { "known connections broken" } else { "protected connections broken" };
        let mut checks = vec![
            Check::count_at_most(broken, self.broken, 0),
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
            Some(_) if self.naive => "known to one member, and to no other".to_owned(),
            Some(victim) => format!("known to a survivor when {victim} was struck"),
            None => "known to a member when the servers changed".to_owned(),
        };
        writeln!(out, "\n  {}", style.bold(&format!("{:<46}{:>10}   {}", "Receipt", "figure", "bound")))?;
        row(out, "long-lived connections", &self.connections.to_string())?;
        row(out, &before, &self.protected.to_string())?;
        row(out, "others broken, too young to be known", &self.broken_young.to_string())?;
        if self.broken_young > 0 {
            row(out, "the oldest of them", &ms(self.oldest_young_ms))?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Receipt {
        Receipt {
            naive: false,
            kill: Kill::Primary,
            victim: Some("lb2".to_owned()),
            connections: 200,
            protected: 200,
            broken: 0,
            broken_young: 0,
            oldest_young_ms: 0.0,
            faults: BTreeMap::new(),
            short_connections: 600,
            handshakes_failed: 0,
            slowest_handshake_ms: 3.0,
            longest_stall_ms: 180.0,
            detection_ms: BTreeMap::from([("lb1".to_owned(), Some(101.0)), ("lb3".to_owned(), Some(99.0))]),
            flows_per_member: BTreeMap::from([("lb1".to_owned(), 60), ("lb2".to_owned(), 80)]),
            bytes_checked: 5_000_000,
        }
    }

    #[test]
    fn the_exit_status_is_about_protected_connections() {
        assert!(good().is_clean());
        assert!(Receipt { broken_young: 3, ..good() }.is_clean());
        assert!(!Receipt { broken: 1, ..good() }.is_clean());
        assert!(!Receipt { naive: true, broken_young: 1, ..good() }.is_clean());
    }

    #[test]
    fn a_death_that_nobody_noticed_misses_its_bound() {
        assert!(good().checks().iter().all(|check| check.passed));
        let detection_ms = BTreeMap::from([("lb1".to_owned(), None)]);
        let missed = Receipt { detection_ms, ..good() }.checks();
        assert_eq!(missed.iter().filter(|check| !check.passed).count(), 1);
        assert!(Receipt { longest_stall_ms: 401.0, ..good() }.checks().iter().any(|check| !check.passed));
    }

    #[test]
    fn the_receipt_is_one_line_of_json_with_the_promised_names() {
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&good()).unwrap()).unwrap();
        for name in [
            "connections",
            "protected",
            "broken",
            "broken_young",
            "handshakes_failed",
            "longest_stall_ms",
            "detection_ms",
            "flows_per_member",
        ] {
            assert!(json.get(name).is_some(), "no {name}");
        }
        assert_eq!(json["kill"], "primary");
    }

    #[test]
    fn without_colours_the_receipt_is_plain_text() {
        let text = good().render(Style::PLAIN);
        assert!(!text.contains('\x1b'));
        assert!(text.contains("lb2 died"), "{text}");
    }
}
